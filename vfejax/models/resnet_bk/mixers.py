"""Layers that mix a sequence by the resolvent of a tridiagonal operator whose potential the tokens
write.

Each head reads from the token states h_i a potential v_i and an absorption w_i >= 0, which make up
the diagonal of

    T_ii = v_i + e - i w_i,   T_{i,i+1} = T_{i+1,i} = t,      z = i (floor + gamma),

with the head's own offset e (it plays the part of -Re z), hopping t > 0 and width gamma > 0. At an
energy inside the band, ``|v + e| < 2 t``, a wave reaches far, about ``t / Im z`` tokens; the
potential can stop it, and absorption lets a token end what came before it.

Three layers share that potential: :class:`LeftFeatures` and :class:`ResolventOperator` are causal,
:class:`ResolventFeatures` sees the whole sequence and is for encoders and denoising.

Each is a flax layer of its own, for a model of your own too:

    mixer = ResolventOperator(dim=64, heads=8, rngs=rngs)
    mixed, info = mixer(states, mask)           # [b, n, 64] to [b, n, 64]

Padding may stand anywhere: it is moved behind the real tokens, where it reaches nobody.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.models.protocol import packing, permute
from vfejax.models.resnet_bk.readout import Readout
from vfejax.numerics import at_least_float32
from vfejax.spectral.resolvent import left_resolvent_diagonal, resolvent_diagonal
from vfejax.spectral.streaming import StreamingState, streaming_init, streaming_step
from vfejax.spectral.tridiagonal import causal_sweep
from vfejax.types import Array, PyTree

__all__ = [
    "LeftFeatures",
    "Mixer",
    "MixerInfo",
    "Potential",
    "ResolventFeatures",
    "ResolventOperator",
    "without_padding",
]

_FIRST_ABSORPTION = -3.0  # softplus(-3) = 0.05: at first a token lets its past through
_WIDTHS = (0.02, 1.0)  # of the heads at first: reaches from about 50 tokens down to one


class MixerInfo(NamedTuple):
    """``log_gates [b, heads, n]``: logarithm of the modulus of the factor by which each token
    multiplies what its head remembers, ``log |t gL|``; meaningless at padding.
    """

    log_gates: Array


class Mixer(Protocol):
    """What a block asks of the layer that mixes its tokens: causal, with constant memory.

    A new one is a flax module with these three methods, and one line in
    ``vfejax.models.resnet_bk.model.MIXERS``.
    """

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``. ``mask [b, n]`` is True at real
        tokens; None when all are, or when padding stands behind them.
        """
        ...

    def init_decode(self, batch_size: int) -> PyTree:
        """Memory before the first token."""
        ...

    def decode(self, state: PyTree, states: Array) -> tuple[Array, PyTree]:
        """One token ``states [b, dim]`` of each sequence: its mixed ``[b, dim]``, and the memory
        with it.
        """
        ...


def _inverse_softplus(x: Array) -> Array:
    return jnp.log(jnp.expm1(x))


def without_padding(
    mix_fn: Callable[[Array, Array | None], tuple[Array, MixerInfo]],
    states: Array,
    mask: Array | None,
) -> tuple[Array, MixerInfo]:
    """``mix_fn(states, mask)`` with the padding of each row moved behind its tokens, and back.

    Args:
        mix_fn: a mixer that is right when padding stands behind the tokens, as every causal one is.
        states: ``[b, n, dim]``.
        mask: True at real tokens, ``[b, n]``; None when all are.

    Returns:
        The mixed ``[b, n, dim]``, and the info, in the order of ``states``.
    """
    if mask is None:
        return mix_fn(states, None)
    order, place = packing(mask)
    mixed, info = mix_fn(permute(states, order, place), jnp.take_along_axis(mask, order, axis=1))
    log_gates = permute(jnp.swapaxes(info.log_gates, 1, 2), place, order)
    return permute(mixed, place, order), MixerInfo(jnp.swapaxes(log_gates, 1, 2))


class Potential(nnx.Module):
    """Token states ``[..., dim]`` to the diagonal of every head's T, and the heads' hoppings and z.

    Offsets start evenly over the band, and widths evenly on a logarithmic scale, paired so that
    near ones differ. All in float32, or float64 where that is the dtype of the model: a phase over
    many tokens has no room for half precision.
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
        self.levels = nnx.Linear(
            dim, 2 * heads, kernel_init=normal(0.02), dtype=real, param_dtype=real, rngs=rngs
        )
        self.offset = nnx.Param(jnp.linspace(-1.8, 1.8, heads, dtype=real))
        # The golden ratio's multiples modulo 1 are spread as evenly as any, and neighbours are far
        # apart.
        place = (jnp.arange(heads, dtype=real) * ((5.0**0.5 - 1.0) / 2.0)) % 1.0
        self.width = nnx.Param(_inverse_softplus(_WIDTHS[0] * (_WIDTHS[1] / _WIDTHS[0]) ** place))
        self.hop = nnx.Param(jnp.full((heads,), _inverse_softplus(jnp.ones((), real))))

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
        return jnp.swapaxes(self.diagonal(states), 1, 2), hopping, hopping, self.z()[None]

    def stream(self, state: StreamingState, states: Array, x: Array) -> StreamingState:
        """One more token ``states [b, dim]`` at the end of every chain, with the input ``x [b,
        heads, c]`` of the causal sweep.
        """
        hopping = self.hopping()[None]
        return streaming_step(state, self.diagonal(states), hopping, hopping, self.z()[None], x)

    def start(self, batch_size: int, channels: int) -> StreamingState:
        """Chains without a token."""
        return streaming_init((batch_size, self.hop.shape[0]), channels, self.z().dtype)

    def info(self, resolvent: Array) -> MixerInfo:
        """``log |t g|`` of resolvents ``g [b, heads, n]``."""
        return MixerInfo(jnp.log(jnp.abs(resolvent)) + jnp.log(self.hopping())[None, :, None])


DiagonalFn = Callable[[Array, Array, Array, Array], Array]


class ResolventFeatures(nnx.Module):
    """``W [Re G, Im G]`` of a diagonal of the resolvent, features clamped to ``+-clamp``.

    By default the full diagonal ``G_ii``, which sees both sides: for encoders, never for next-token
    models. It cannot decode token by token, since every answer depends on tokens to come.

    Args:
        dim: width of the states.
        heads: number of tridiagonal operators.
        diagonal_fn: ``(diagonal, superdiagonal, subdiagonal, z) -> [b, heads, n]``.
        v_max: bound of the potential, in units of energy.
        z_floor: smallest Im z, in units of energy.
        clamp: bound of the features, in inverse energy.
        dtype: that of the projection; the resolvent's is at least single precision.
        rngs: where first weights come from.

    >>> layer = ResolventFeatures(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> mixed, info = layer(jnp.ones((1, 3, 4)))
    >>> mixed.shape, info.log_gates.shape
    ((1, 3, 4), (1, 2, 3))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        diagonal_fn: DiagonalFn = resolvent_diagonal,
        v_max: float = 3.0,
        z_floor: float = 0.01,
        clamp: float = 10.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.clamp, self.diagonal_fn = clamp, diagonal_fn
        self.potential = Potential(dim, heads, v_max=v_max, z_floor=z_floor, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(
            2 * heads,
            dim,
            use_bias=False,
            dtype=dtype,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )

    def project(self, resolvent: Array) -> Array:
        """Features of ``resolvent [..., heads]`` to ``[..., dim]``."""
        features = jnp.concatenate([resolvent.real, resolvent.imag], axis=-1)
        return self.out(jnp.clip(features, -self.clamp, self.clamp))

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        return without_padding(self._mix, states, mask)

    def _mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        diagonal = self.diagonal_fn(*self.potential.tridiagonal(states, mask))
        return self.project(jnp.swapaxes(diagonal, 1, 2)), self.potential.info(diagonal)


class LeftFeatures(ResolventFeatures):
    """:class:`ResolventFeatures` of the left-connected resolvent gL: causal; one complex number per
    head is remembered.

    Args:
        dim: width of the states.
        heads: number of tridiagonal operators.
        v_max: bound of the potential, in units of energy.
        z_floor: smallest Im z, in units of energy.
        clamp: bound of the features, in inverse energy.
        dtype: that of the projection; the resolvent's is at least single precision.
        rngs: where first weights come from.

    >>> layer = LeftFeatures(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> token, state = layer.decode(layer.init_decode(1), jnp.ones((1, 4)))
    >>> token.shape, state.left.shape
    ((1, 4), (1, 2))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        v_max: float = 3.0,
        z_floor: float = 0.01,
        clamp: float = 10.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim,
            heads,
            diagonal_fn=left_resolvent_diagonal,
            v_max=v_max,
            z_floor=z_floor,
            clamp=clamp,
            dtype=dtype,
            rngs=rngs,
        )

    def init_decode(self, batch_size: int) -> StreamingState:
        """Memory before the first token: gL of every head."""
        return self.potential.start(batch_size, 0)

    def decode(self, state: StreamingState, states: Array) -> tuple[Array, StreamingState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        state = self.potential.stream(state, states, jnp.zeros_like(state.output.real))
        return self.project(state.left), state


class ResolventOperator(Readout):
    """The causal sweep of ``(T - z)^{-1}`` applied to vectors: ``y_i = gL_i (u_i - t y_{i-1})``,
    gated and projected.

    ``u = W_u h`` is split over the heads; ``[Re y, Im y]`` of each head is brought to unit root
    mean square with learned scales, multiplied by ``silu(W_g h)`` and projected back. Causal; a
    head remembers gL and y, so memory is constant and the reach unbounded.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of tridiagonal operators.
        v_max: bound of the potential, in units of energy.
        z_floor: smallest Im z, in units of energy.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the resolvent's is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width.

    >>> layer = ResolventOperator(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> mixed, info = layer(jnp.ones((1, 3, 4)), mask=jnp.asarray([[False, True, True]]))
    >>> mixed.shape
    (1, 3, 4)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        v_max: float = 3.0,
        z_floor: float = 0.01,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.potential = Potential(dim, heads, v_max=v_max, z_floor=z_floor, dtype=dtype, rngs=rngs)
        super().__init__(dim, heads, out_scale=out_scale, dtype=dtype, rngs=rngs)

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        return without_padding(self._mix, states, mask)

    def _mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        chain = self.potential.tridiagonal(states)
        left = left_resolvent_diagonal(*chain)
        y = causal_sweep(left, chain[2], jnp.swapaxes(self.inputs(states), 1, 2))
        return self.project(jnp.swapaxes(y, 1, 2), states), self.potential.info(left)

    def init_decode(self, batch_size: int) -> StreamingState:
        """Memory before the first token: gL and y of every head."""
        return self.potential.start(batch_size, self.scale.shape[1] // 2)

    def decode(self, state: StreamingState, states: Array) -> tuple[Array, StreamingState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        state = self.potential.stream(state, states, self.inputs(states))
        return self.project(state.output, states), state
