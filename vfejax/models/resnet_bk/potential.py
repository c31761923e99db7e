"""The tridiagonal operator whose potential is computed from the tokens.

Each head reads from the token states h_i a potential v_i and an absorption w_i >= 0, which make up
the diagonal of

    T_ii = v_i + e - i w_i,   T_{i,i+1} = T_{i+1,i} = t,      z = i (floor + gamma),

with the head's own offset e (it plays the part of -Re z), hopping t > 0 and width gamma > 0. At an
energy inside the band, ``|v + e| < 2 t``, a wave reaches far, about ``t / Im z`` tokens; the
potential can stop it, and absorption lets a token end what came before it.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.resnet_bk.heads import heads_first, inverse_softplus, levels, spread
from vfejax.models.resnet_bk.mixers import MixerInfo
from vfejax.numerics import at_least_float32
from vfejax.spectral.streaming import StreamingState, streaming_init, streaming_step
from vfejax.types import Array

__all__ = ["Potential"]

_FIRST_ABSORPTION = -3.0  # softplus(-3) = 0.05: at first a token lets its past through
_WIDTHS = (0.02, 1.0)  # of the heads at first: reaches from about 50 tokens down to one


class Potential(nnx.Module):
    """Token states ``[..., dim]`` to the diagonal of every head's T, and the heads' hoppings and z.

    Offsets start evenly over the band, and widths evenly on a logarithmic scale, paired so that
    near ones differ. All are at least single precision.

    Args:
        dim: width of the states.
        heads: number of operators.
        v_max: bound of ``|v|``, in units of energy.
        z_floor: smallest Im z, in units of energy.
        dtype: that of the model.
        rngs: where first weights come from.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        v_max: float = 3.0,
        z_floor: float = 0.01,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        real = at_least_float32(dtype)
        self.v_max, self.z_floor = v_max, z_floor
        self.levels = levels(dim, heads, dtype=real, rngs=rngs)
        self.offset = nnx.Param(jnp.linspace(-1.8, 1.8, heads, dtype=real))
        width = _WIDTHS[0] * (_WIDTHS[1] / _WIDTHS[0]) ** spread(heads, real)
        self.width = nnx.Param(inverse_softplus(width))
        self.hop = nnx.Param(jnp.full((heads,), inverse_softplus(jnp.ones((), real))))

    def diagonal(self, states: Array) -> Array:
        """``v + e - i w`` of every head, complex ``[..., heads]``, with ``|v| <= v_max``."""
        level, absorption = jnp.split(self.levels(states), 2, axis=-1)
        v = self.v_max * jnp.tanh(level / self.v_max)
        return jax.lax.complex(
            v + self.offset[...], -jax.nn.softplus(absorption + _FIRST_ABSORPTION)
        )

    def hopping(self) -> Array:
        """t of every head, ``[heads]``."""
        return jax.nn.softplus(self.hop[...])

    def z(self) -> Array:
        """Spectral parameter of every head, imaginary ``[heads]``."""
        width = self.z_floor + jax.nn.softplus(self.width[...])
        return jax.lax.complex(jnp.zeros_like(width), width)

    def tridiagonal(
        self, states: Array, mask: Array | None = None
    ) -> tuple[Array, Array, Array, Array]:
        """Arguments of a resolvent over ``states [b, n, dim]``: diagonals ``[b, heads, n]``,
        off-diagonals ``[heads, n - 1]`` twice, z.

        With a ``mask [b, n]`` the off-diagonals are ``[b, heads, n - 1]``, and 0 beside padding.
        """
        hopping = jnp.broadcast_to(
            self.hopping()[:, None], (self.hop.shape[0], states.shape[1] - 1)
        )
        if mask is not None:
            joined = (mask[:, 1:] & mask[:, :-1])[:, None]
            hopping = jnp.where(joined, hopping[None], jnp.zeros((), hopping.dtype))
        return heads_first(self.diagonal(states)), hopping, hopping, self.z()[None]

    def stream(self, state: StreamingState, states: Array, x: Array) -> StreamingState:
        """The chains with one more token at their ends.

        Args:
            state: of the chains before, ``[b, heads]`` of them.
            states: those of the new token, ``[b, dim]``.
            x: its inputs to the causal sweep, ``[b, heads, c]``.

        Returns:
            The state of the chains that end with the token.
        """
        hopping = self.hopping()[None]
        return streaming_step(state, self.diagonal(states), hopping, hopping, self.z()[None], x)

    def start(self, batch_size: int, channels: int) -> StreamingState:
        """Chains without a token."""
        return streaming_init((batch_size, self.hop.shape[0]), channels, self.z().dtype)

    def info(self, resolvent: Array) -> MixerInfo:
        """``log |t g|`` of resolvents ``g [b, heads, n]``."""
        return MixerInfo(jnp.log(jnp.abs(resolvent)) + jnp.log(self.hopping())[None, :, None])
