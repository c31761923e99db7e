"""Layers that mix a sequence by the resolvent of a tridiagonal operator whose potential is computed
from the tokens (:mod:`vfejax.models.resnet_bk.potential`).

:class:`LeftFeatures` and :class:`ResolventOperator` are causal, :class:`ResolventFeatures` sees the
whole sequence and is for encoders and denoising.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from vfejax.models import kernel_products
from vfejax.models.resnet_bk.heads import heads_first
from vfejax.models.resnet_bk.mixers import MixerInfo, Packed
from vfejax.models.resnet_bk.potential import Potential
from vfejax.models.resnet_bk.readout import Readout
from vfejax.numerics import at_least_float32
from vfejax.spectral.resolvent import left_resolvent_diagonal, resolvent_diagonal
from vfejax.spectral.streaming import StreamingState
from vfejax.spectral.tridiagonal import causal_sweep
from vfejax.types import Array

__all__ = ["LeftFeatures", "ResolventFeatures", "ResolventOperator"]

DiagonalFn = Callable[[Array, Array, Array, Array], Array]


class ResolventFeatures(Packed):
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
        self.out = kernel_products.linear(
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

    def mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        diagonal = self.diagonal_fn(*self.potential.tridiagonal(states, mask))
        return self.project(heads_first(diagonal)), self.potential.info(diagonal)


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


class ResolventOperator(Packed, Readout):
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

    def mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        chain = self.potential.tridiagonal(states)
        left = left_resolvent_diagonal(*chain)
        y = causal_sweep(left, chain[2], heads_first(self.inputs(states)))
        return self.project(heads_first(y), states), self.potential.info(left)

    def init_decode(self, batch_size: int) -> StreamingState:
        """Memory before the first token: gL and y of every head."""
        return self.potential.start(batch_size, self.channels)

    def decode(self, state: StreamingState, states: Array) -> tuple[Array, StreamingState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        state = self.potential.stream(state, states, self.inputs(states))
        return self.project(state.output, states), state
