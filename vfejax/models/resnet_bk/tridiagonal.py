"""Layers that mix a sequence by a tridiagonal operator whose off-diagonals are computed from the
tokens.

One off-diagonal is the complex gate of :mod:`vfejax.models.resnet_bk.gates`; by the other the
tokens couple every site forward, by ``|b_i| <= 1/4``. :class:`TridiagonalOperator` is causal and
contains the gate alone as ``b = 0``; :class:`TwoSidedTridiagonal` is its twin for encoders.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.resnet_bk.gates import PolarGates
from vfejax.models.resnet_bk.heads import heads_first, levels
from vfejax.models.resnet_bk.mixers import MixerInfo, Packed
from vfejax.models.resnet_bk.readout import Readout, ShortConvolution
from vfejax.spectral.gates import (
    bounded_coupling,
    dominant_diagonal,
    gate_weight,
    polar_gate,
    tridiagonal_solve,
    tridiagonal_sweep,
)
from vfejax.spectral.streaming import StreamingState, streaming_init, streaming_step
from vfejax.types import Array

__all__ = ["Chain", "TridiagonalOperator", "TridiagonalState", "TwoSidedTridiagonal"]


class Chain(NamedTuple):
    """What the tokens write: diagonal, off-diagonals and decay ``[..., heads]``, and the vectors
    that drive the system ``[..., heads, c]``.
    """

    diagonal: Array
    superdiagonal: Array
    subdiagonal: Array
    decay: Array
    inputs: Array


class TridiagonalState(NamedTuple):
    """``recent [b, width - 1, dim]``: the tokens that the convolution spans; ``chain``: gL and y of
    the last token.
    """

    recent: Array
    chain: StreamingState


class TwoSidedTridiagonal(Readout):
    """``T^{-1} sqrt(1 - |a|^2) u`` of a tridiagonal operator T whose off-diagonals the tokens
    write, gated and projected: sees both sides, for encoders and denoising, never for next-token
    models.

    Below the diagonal stands the gate ``-a_i``, above it a coupling ``|b_i| <= coupling``, and on
    it ``1 + |k_i|`` with ``k_i = -a_i b_i``. What precedes a token reaches it by the gates, what
    follows it by the couplings; at most 1 in size, neither lets anything grow.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of operators.
        coupling: bound of the couplings, from 0 to 1.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the operator's is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width and the bound fits.

    >>> layer = TwoSidedTridiagonal(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 3, 4)))[0].shape
    (1, 3, 4)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        coupling: float = 0.25,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, heads, out_scale=out_scale, dtype=dtype, rngs=rngs)
        if not 0.0 <= coupling <= 1.0:
            raise ValueError(f"coupling must lie between 0 and 1, got {coupling}")
        self.coupling = coupling
        self.gates = PolarGates(dim, heads, dtype=dtype, rngs=rngs)
        self.couplings = levels(dim, heads, dtype=dtype, rngs=rngs)

    def chain(self, states: Array) -> Chain:
        """The systems that tokens ``states [..., dim]`` write."""
        decay, phase = self.gates(states)
        gate = polar_gate(decay, phase)
        real, imag = jnp.split(self.couplings(states), 2, axis=-1)
        coupling = bounded_coupling(real, imag, self.coupling)
        u = gate_weight(decay)[..., None] * self.inputs(states)
        return Chain(dominant_diagonal(gate * coupling), coupling, -gate, decay, u)

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        d, b, c, decay, u = jax.tree.map(heads_first, self.chain(states))
        y = tridiagonal_solve(d, b, c, u, mask=None if mask is None else mask[:, None])
        return self.project(heads_first(y), states), MixerInfo(-decay)


class TridiagonalOperator(Packed, TwoSidedTridiagonal):
    """The causal sweep ``y_i = gL_i (sqrt(1 - |a_i|^2) u_i + a_i y_{i-1})`` of a tridiagonal
    operator whose off-diagonals the tokens write, gated and projected. Causal; a head remembers gL
    and y.

    Below the diagonal stands the gate ``-a_i``, above it a coupling ``|b_i| <= coupling``, and on
    it ``1 + |k_i|`` with ``k_i = -a_i b_i``, so that ``|gL_i| <= 1``: no gate becomes longer than
    it was written, but how much shorter, and how it turns, depends on all that came before. With
    ``b = 0`` it is :class:`vfejax.models.resnet_bk.gates.GateOperator`.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of operators.
        coupling: bound of the couplings, from 0 to 1.
        convolution: tokens that a short convolution spans, which gates, couplings and inputs are
            read from.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the recurrence is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width and the bound fits.

    >>> layer = TridiagonalOperator(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> token, state = layer.decode(layer.init_decode(1), jnp.ones((1, 4)))
    >>> token.shape, state.chain.left.shape
    ((1, 4), (1, 2))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        coupling: float = 0.25,
        convolution: int = 1,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, heads, coupling=coupling, out_scale=out_scale, dtype=dtype, rngs=rngs)
        self.convolution = ShortConvolution(dim, convolution, dtype=dtype, rngs=rngs)

    def mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        d, b, c, decay, u = jax.tree.map(heads_first, self.chain(self.convolution(states)))
        left, y = tridiagonal_sweep(d, b, c, u)
        info = MixerInfo(jnp.log(jnp.abs(left)) - decay)
        return self.project(heads_first(y), states), info

    def init_decode(self, batch_size: int) -> TridiagonalState:
        """Memory before the first token: gL and y of every head, and the convolution's tokens."""
        chain = streaming_init((batch_size, self.heads), self.channels, self.output_dtype)
        return TridiagonalState(self.convolution.init_decode(batch_size), chain)

    def decode(self, state: TridiagonalState, states: Array) -> tuple[Array, TridiagonalState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        near, recent = self.convolution.decode(state.recent, states)
        d, b, c, _, u = self.chain(near)
        chain = streaming_step(state.chain, d, b, c, 0.0, u)
        return self.project(chain.output, states), TridiagonalState(recent, chain)
