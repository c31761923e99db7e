"""Layers that mix a sequence by the resolvent of a tridiagonal operator whose potential the tokens
write.

Each head reads from the token states h_i a potential v_i and an absorption w_i >= 0, which make up
the diagonal of

    T_ii = v_i + e - i w_i,   T_{i,i+1} = T_{i+1,i} = t,      z = i (floor + gamma),

with the head's own offset e (it plays the part of -Re z), hopping t > 0 and width gamma > 0. At an
energy inside the band, ``|v + e| < 2 t``, a wave reaches far, about ``t / Im z`` tokens; the
potential can stop it, and absorption lets a token end what came before it.

Three layers share that potential: :class:`LeftFeatures` and :class:`ResolventOperator` are causal,
:class:`TwoSidedFeatures` sees the whole sequence and is for encoders and denoising.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.numerics import at_least_float32
from vfejax.spectral.resolvent import left_resolvent_diagonal, resolvent_diagonal
from vfejax.spectral.streaming import StreamingState, streaming_init, streaming_step
from vfejax.spectral.tridiagonal import causal_sweep
from vfejax.types import Array

__all__ = ["LeftFeatures", "Potential", "ResolventOperator", "TwoSidedFeatures"]

_FIRST_ABSORPTION = -3.0  # softplus(-3) = 0.05: at first a token lets its past through
_WIDTHS = (0.02, 1.0)  # of the heads at first: reaches from about 50 tokens down to one
_NORM_EPSILON = 1e-5


def _inverse_softplus(x: Array) -> Array:
    return jnp.log(jnp.expm1(x))


class Potential(nnx.Module):
    """Token states ``[..., dim]`` to the diagonal of every head's T, and the heads' hoppings and z.

    Offsets start evenly over the band, and widths evenly on a logarithmic scale, paired so that
    near ones differ. All in float32, or float64 where that is the dtype of the model: a phase over
    many tokens has no room for half precision.
    """

    def __init__(
        self, dim: int, heads: int, v_max: float, z_floor: float, dtype: jnp.dtype, rngs: nnx.Rngs
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

    def tridiagonal(self, states: Array) -> tuple[Array, Array, Array, Array]:
        """Arguments of a resolvent over ``states [b, n, dim]``: diagonals ``[b, heads, n]``,
        off-diagonals ``[heads, n - 1]`` twice, z.
        """
        hopping = jnp.broadcast_to(
            self.hopping()[:, None], (self.hop.shape[0], states.shape[1] - 1)
        )
        return jnp.swapaxes(self.diagonal(states), 1, 2), hopping, hopping, self.z()[None]

    def stream(self, state: StreamingState, states: Array, x: Array) -> StreamingState:
        """One more token ``states [b, dim]`` at the end of every chain, with the input ``x [b,
        heads, c]`` of the causal sweep.
        """
        hopping = self.hopping()[None]
        return streaming_step(state, self.diagonal(states), hopping, hopping, self.z()[None], x)

    def start(self, batch: int, channels: int) -> StreamingState:
        """Chains without a token."""
        return streaming_init((batch, self.hop.shape[0]), channels, self.z().dtype)


class LeftFeatures(nnx.Module):
    """``W [Re gL, Im gL]`` of the left-connected resolvent, features clamped to
    ``+-feature_clamp``. Causal; one number per head is remembered.
    """

    def __init__(self, dim: int, heads: int, config: Any, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.clamp = config.feature_clamp
        self.potential = Potential(dim, heads, config.v_max, config.z_floor, dtype, rngs)
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

    def __call__(self, states: Array) -> tuple[Array, Array]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]`` and gL ``[b, heads, n]``."""
        left = left_resolvent_diagonal(*self.potential.tridiagonal(states))
        return self.project(jnp.swapaxes(left, 1, 2)), left

    def init_decode(self, batch: int) -> StreamingState:
        """Memory before the first token: gL of every head."""
        return self.potential.start(batch, 0)

    def decode(self, state: StreamingState, states: Array) -> tuple[Array, StreamingState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        state = self.potential.stream(state, states, jnp.zeros_like(state.output.real))
        return self.project(state.left), state


class TwoSidedFeatures(LeftFeatures):
    """As :class:`LeftFeatures` with the full diagonal ``G_ii``, which sees both sides: for
    encoders, never for next-token models.
    """

    def __call__(self, states: Array) -> tuple[Array, Array]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]`` and G ``[b, heads, n]``."""
        resolvent = resolvent_diagonal(*self.potential.tridiagonal(states))
        return self.project(jnp.swapaxes(resolvent, 1, 2)), resolvent

    def decode(self, state: StreamingState, states: Array) -> tuple[Array, StreamingState]:
        """Not possible: every answer depends on tokens to come."""
        raise TypeError(
            "a two-sided layer cannot decode token by token; use LeftFeatures or ResolventOperator"
        )


class ResolventOperator(nnx.Module):
    """The causal sweep of ``(T - z)^{-1}`` applied to vectors: ``y_i = gL_i (u_i - t y_{i-1})``,
    gated and projected.

    ``u = W_u h`` is split over the heads; ``[Re y, Im y]`` of each head is brought to unit root
    mean square with learned scales, multiplied by ``silu(W_g h)`` and projected back. Causal; a
    head remembers gL and y, so memory is constant and the reach unbounded.
    """

    def __init__(self, dim: int, heads: int, config: Any, dtype: jnp.dtype, rngs: nnx.Rngs):
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {dim} and heads {heads}")
        kinds = {
            "use_bias": False,
            "dtype": dtype,
            "param_dtype": at_least_float32(dtype),
            "rngs": rngs,
        }
        self.heads, self.real = heads, at_least_float32(dtype)
        self.potential = Potential(dim, heads, config.v_max, config.z_floor, dtype, rngs)
        self.values = nnx.Linear(dim, dim, kernel_init=normal(0.02), **kinds)
        self.gate = nnx.Linear(dim, dim, kernel_init=normal(0.02), **kinds)
        self.scale = nnx.Param(jnp.ones((heads, 2 * dim // heads), self.real))
        self.out = nnx.Linear(
            2 * dim, dim, kernel_init=normal(0.02 / (2 * config.layers) ** 0.5), **kinds
        )

    def inputs(self, states: Array) -> Array:
        """u, real ``[..., heads, c]``."""
        return self.values(states).astype(self.real).reshape(*states.shape[:-1], self.heads, -1)

    def project(self, y: Array, states: Array) -> Array:
        """``y [..., heads, c]``, complex, to ``[..., dim]``."""
        parts = jnp.concatenate([y.real, y.imag], axis=-1)
        parts = parts * jax.lax.rsqrt(
            jnp.mean(parts * parts, axis=-1, keepdims=True) + _NORM_EPSILON
        )
        parts = parts * jnp.broadcast_to(self.scale[...], parts.shape)
        gate = nnx.silu(self.gate(states)).reshape(*parts.shape[:-1], -1)
        gated = parts.astype(gate.dtype) * jnp.concatenate([gate, gate], axis=-1)
        return self.out(gated.reshape(*states.shape[:-1], -1))

    def __call__(self, states: Array) -> tuple[Array, Array]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]`` and gL ``[b, heads, n]``."""
        chain = self.potential.tridiagonal(states)
        left = left_resolvent_diagonal(*chain)
        y = causal_sweep(left, chain[2], jnp.swapaxes(self.inputs(states), 1, 2))
        return self.project(jnp.swapaxes(y, 1, 2), states), left

    def init_decode(self, batch: int) -> StreamingState:
        """Memory before the first token: gL and y of every head."""
        return self.potential.start(batch, self.scale.shape[1] // 2)

    def decode(self, state: StreamingState, states: Array) -> tuple[Array, StreamingState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        state = self.potential.stream(state, states, self.inputs(states))
        return self.project(state.output, states), state
