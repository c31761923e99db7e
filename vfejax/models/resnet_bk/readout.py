"""Input and output maps around a recurrence that carries one complex vector per head."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models import kernel_products
from vfejax.models.blocks import normal
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["Readout", "ShortConvolution"]

_NORM_EPSILON = 1e-5


class Readout(nnx.Module):
    """``W_o (s * norm(parts(y)) * silu(W_g h))`` of a recurrence driven by ``u = W_u h``.

    u is split over the heads. The parts of y, ``[Re y, Im y]`` or y itself where it is real, are
    brought to unit root mean square in each head, with learned scales s.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of recurrences.
        complex_output: whether y is complex.
        out_scale: standard deviation of the first weights that write the output.
        dtype: that of the projections; y is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        complex_output: bool = True,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got dim {dim} and heads {heads}")
        self.heads, self.channels = heads, dim // heads
        self.real, self.parts = at_least_float32(dtype), 1 + complex_output
        linear = partial(
            kernel_products.linear, use_bias=False, dtype=dtype, param_dtype=self.real, rngs=rngs
        )
        self.values = linear(dim, dim, kernel_init=normal(0.02))
        self.gate = linear(dim, dim, kernel_init=normal(0.02))
        self.scale = nnx.Param(jnp.ones((heads, self.parts * self.channels), self.real))
        self.out = linear(self.parts * dim, dim, kernel_init=normal(out_scale))

    @property
    def output_dtype(self) -> jnp.dtype:
        """That of y."""
        return jnp.result_type(self.real, jnp.complex64) if self.parts == 2 else self.real

    def inputs(self, states: Array) -> Array:
        """u, real ``[..., heads, c]``."""
        return self.values(states).astype(self.real).reshape(*states.shape[:-1], self.heads, -1)

    def project(self, y: Array, states: Array) -> Array:
        """``y [..., heads, c]`` to ``[..., dim]``."""
        parts = jnp.concatenate([y.real, y.imag], axis=-1) if self.parts == 2 else y
        parts = parts * jax.lax.rsqrt(
            jnp.mean(parts * parts, axis=-1, keepdims=True) + _NORM_EPSILON
        )
        parts = parts * jnp.broadcast_to(self.scale[...], parts.shape)
        gate = nnx.silu(self.gate(states)).reshape(*parts.shape[:-1], -1)
        gated = parts.astype(gate.dtype) * jnp.concatenate([gate] * self.parts, axis=-1)
        return self.out(gated.reshape(*states.shape[:-1], -1))


class ShortConvolution(nnx.Module):
    """``sum_j taps_j x_{i-j}`` over the last few tokens, for every channel by itself: causal, the
    identity at first.

    Args:
        dim: number of channels.
        width: number of tokens that it spans; 1 leaves every token as it is, without weights.
        dtype: that of the arithmetic.
        rngs: where first weights come from.

    >>> layer = ShortConvolution(dim=4, width=3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 5, 4))).shape
    (1, 5, 4)
    """

    def __init__(self, dim: int, width: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.dim, self.width, self.dtype = dim, width, dtype
        if width > 1:
            first = normal(0.02)(rngs.params(), (width, dim), at_least_float32(dtype))
            self.taps = nnx.Param(first.at[0].add(1.0))

    def __call__(self, states: Array) -> Array:
        """``[b, n, dim]`` to ``[b, n, dim]``."""
        if self.width == 1:
            return states
        padded = jnp.pad(states, ((0, 0), (self.width - 1, 0), (0, 0)))
        return self._apply(padded, states.shape[1])

    def _apply(self, padded: Array, length: int) -> Array:
        taps, last = self.taps[...].astype(self.dtype), self.width - 1
        shifted = [padded[:, last - j : last - j + length] for j in range(self.width)]
        # Written out: a product with a stack of the shifted would hold each token many times.
        return reduce(jnp.add, [x * tap for x, tap in zip(shifted, taps, strict=True)])

    def init_decode(self, batch_size: int) -> Array:
        """The tokens before the first one: zeros ``[b, width - 1, dim]``."""
        return jnp.zeros((batch_size, self.width - 1, self.dim), self.dtype)

    def decode(self, recent: Array, states: Array) -> tuple[Array, Array]:
        """One token ``[b, dim]``: its ``[b, dim]``, and the tokens to remember with it."""
        if self.width == 1:
            return states, recent
        window = jnp.concatenate([recent, states[:, None].astype(recent.dtype)], axis=1)
        return self._apply(window, 1)[:, 0], window[:, 1:]
