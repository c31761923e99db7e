"""Layers that mix a sequence by gates that the tokens write: alone, or as one off-diagonal of a
tridiagonal operator whose other off-diagonal they write too.

Each head reads from the token states h_i a decay and a phase, which make a complex gate

    a_i = exp(-r_i + i theta_i),   r_i = softplus(W_r h_i + r) > 0,   theta_i = W_t h_i + theta,

with a learned reach of its own, 1 / softplus(r) tokens at first, and a learned phase theta.
:class:`GateOperator` is the recurrence ``y_i = a_i y_{i-1} + sqrt(1 - |a_i|^2) u_i``.
:class:`TridiagonalOperator` lets the tokens also couple every site forward, by ``|b_i| < 1/4``, and
contains the first as ``b = 0``. :class:`TwoSidedTridiagonal` is its twin for encoders;
:class:`RealGateOperator` has a real gate for the memory and one for the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.models.resnet_bk.mixers import MixerInfo, without_padding
from vfejax.models.resnet_bk.readout import Readout, ShortConvolution
from vfejax.numerics import at_least_float32
from vfejax.spectral.gates import (
    bounded_coupling,
    dominant_diagonal,
    gate_weight,
    polar_gate,
    tridiagonal_solve,
    tridiagonal_sweep,
)
from vfejax.spectral.recurrence import linear_recurrence
from vfejax.spectral.streaming import StreamingState, streaming_init, streaming_step
from vfejax.types import Array

__all__ = [
    "Chain",
    "GateOperator",
    "GateState",
    "PolarGates",
    "RealGateOperator",
    "TridiagonalOperator",
    "TridiagonalState",
    "TwoSidedTridiagonal",
]

_LONGEST_REACH = 50.0  # tokens, of the heads at first: down to one
_LARGEST_PHASE = jnp.pi  # per token, of the heads at first: up from 0
_FASTER = 8.0  # of the real gate: its decay when a token closes it, in units of softplus(l)
_SLOWEST = 1e-4  # decay per token that no gate goes below: a reach of ten thousand tokens


def _first_decays(heads: int, dtype: jnp.dtype) -> Array:
    """Arguments of a softplus that make reaches from one token to the longest one, evenly on a
    logarithmic scale, neighbours far apart.
    """
    # The golden ratio's multiples modulo 1 are spread as evenly as any.
    place = (jnp.arange(heads, dtype=dtype) * ((5.0**0.5 - 1.0) / 2.0)) % 1.0
    return jnp.log(jnp.expm1(_LONGEST_REACH**-place))


def _heads_first(x: Array) -> Array:
    return jnp.swapaxes(x, 1, 2)


class PolarGates(nnx.Module):
    """Token states ``[..., dim]`` to decay and phase of every head's gate, real ``[..., heads]``.

    In float32, or float64 where that is the dtype of the model: a phase over many tokens has no
    room for half precision.
    """

    def __init__(self, dim: int, heads: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        real = at_least_float32(dtype)
        self.levels = nnx.Linear(
            dim, 2 * heads, kernel_init=normal(0.02), dtype=real, param_dtype=real, rngs=rngs
        )
        self.decay = nnx.Param(_first_decays(heads, real))
        self.phase = nnx.Param(jnp.linspace(0.0, _LARGEST_PHASE, heads, dtype=real))

    def __call__(self, states: Array) -> tuple[Array, Array]:
        """Decay per token, positive, and angle per token in radians."""
        decay, phase = jnp.split(self.levels(states), 2, axis=-1)
        return _SLOWEST + jax.nn.softplus(decay + self.decay[...]), phase + self.phase[...]


class GateState(NamedTuple):
    """``recent [b, width - 1, dim]``: the tokens that the convolution spans; ``output [b, heads,
    c]``: y of the last token.
    """

    recent: Array
    output: Array


class GateOperator(Readout):
    """``y_i = a_i y_{i-1} + sqrt(1 - |a_i|^2) u_i`` in every head, gated and projected. Causal; a
    head remembers y.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of gates.
        convolution: tokens that a short convolution spans, which gates and inputs are read from.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the recurrence is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width.

    Source: De et al., Griffin (2024) and Orvieto et al., Resurrecting recurrent neural networks for
    long sequences (2023) for gates that start at many reaches, and for the weight of the input.

    >>> layer = GateOperator(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> mixed, info = layer(jnp.ones((1, 3, 4)))
    >>> mixed.shape, info.log_gates.shape
    ((1, 3, 4), (1, 2, 3))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        convolution: int = 1,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, heads, out_scale=out_scale, dtype=dtype, rngs=rngs)
        self.gates = PolarGates(dim, heads, dtype=dtype, rngs=rngs)
        self.convolution = ShortConvolution(dim, convolution, dtype=dtype, rngs=rngs)

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        return without_padding(self._mix, states, mask)

    def _mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        near = self.convolution(states)
        decay, phase = self.gates(near)
        gate = polar_gate(decay, phase)
        u = (gate_weight(decay)[..., None] * self.inputs(near)).astype(gate.dtype)
        y = linear_recurrence(gate[..., None], u, axis=1)
        return self.project(y, states), MixerInfo(-_heads_first(decay))

    def init_decode(self, batch_size: int) -> GateState:
        """Memory before the first token."""
        shape = (batch_size, self.heads, self.scale.shape[1] // self.parts)
        dtype = jnp.result_type(self.real, jnp.complex64)
        return GateState(self.convolution.init_decode(batch_size), jnp.zeros(shape, dtype))

    def decode(self, state: GateState, states: Array) -> tuple[Array, GateState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        near, recent = self.convolution.decode(state.recent, states)
        decay, phase = self.gates(near)
        u = gate_weight(decay)[..., None] * self.inputs(near)
        y = polar_gate(decay, phase)[..., None] * state.output + u
        return self.project(y, states), GateState(recent, y)


class RealGateOperator(Readout):
    """``y_i = a_i y_{i-1} + sqrt(1 - a_i^2) g_i u_i`` in every head, with a real gate a for the
    memory and a gate g for the input, both written by the token (RG-LRU). Causal; a head remembers
    y.

    ``a_i = exp(-8 softplus(l) sigmoid(W_a h_i))``, ``g_i = sigmoid(W_g h_i)``.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of gates.
        convolution: tokens that a short convolution spans, which gates and inputs are read from.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the recurrence is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width.

    Source: De et al., Griffin (2024), equations 1 to 4; our gates are shared by the channels of a
    head.

    >>> layer = RealGateOperator(dim=4, heads=2, convolution=4, rngs=nnx.Rngs(0))
    >>> token, state = layer.decode(layer.init_decode(1), jnp.ones((1, 4)))
    >>> token.shape, state.recent.shape, state.output.shape
    ((1, 4), (1, 3, 4), (1, 2, 2))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        convolution: int = 1,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            dim, heads, complex_output=False, out_scale=out_scale, dtype=dtype, rngs=rngs
        )
        self.levels = nnx.Linear(
            dim,
            2 * heads,
            kernel_init=normal(0.02),
            dtype=self.real,
            param_dtype=self.real,
            rngs=rngs,
        )
        # A first level of 0 halves the fastest decay.
        fastest = 2.0 * jax.nn.softplus(_first_decays(heads, self.real)) / _FASTER
        self.decay = nnx.Param(jnp.log(jnp.expm1(fastest)))
        self.convolution = ShortConvolution(dim, convolution, dtype=dtype, rngs=rngs)

    def _read(self, near: Array) -> tuple[Array, Array]:
        """Decays ``[..., heads]``, and what drives the recurrence ``[..., heads, c]``."""
        decay, entry = jnp.split(jax.nn.sigmoid(self.levels(near)), 2, axis=-1)
        decay = _SLOWEST + _FASTER * jax.nn.softplus(self.decay[...]) * decay
        return decay, (gate_weight(decay) * entry)[..., None] * self.inputs(near)

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        return without_padding(self._mix, states, mask)

    def _mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        decay, u = self._read(self.convolution(states))
        y = linear_recurrence(jnp.exp(-decay)[..., None], u, axis=1)
        return self.project(y, states), MixerInfo(-_heads_first(decay))

    def init_decode(self, batch_size: int) -> GateState:
        """Memory before the first token."""
        empty = jnp.zeros((batch_size, *self.scale.shape), self.real)
        return GateState(self.convolution.init_decode(batch_size), empty)

    def decode(self, state: GateState, states: Array) -> tuple[Array, GateState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        near, recent = self.convolution.decode(state.recent, states)
        decay, u = self._read(near)
        y = jnp.exp(-decay)[..., None] * state.output + u
        return self.project(y, states), GateState(recent, y)


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

    Below the diagonal stands the gate ``-a_i``, above it a coupling ``|b_i| < 1/4``, and on it
    ``1 + |k_i|`` with ``k_i = -a_i b_i``. What precedes a token reaches far, by the gates; what
    follows it reaches few tokens.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of operators.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the operator's is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width.

    >>> layer = TwoSidedTridiagonal(dim=4, heads=2, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 3, 4)))[0].shape
    (1, 3, 4)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, heads, out_scale=out_scale, dtype=dtype, rngs=rngs)
        self.gates = PolarGates(dim, heads, dtype=dtype, rngs=rngs)
        self.couplings = nnx.Linear(
            dim,
            2 * heads,
            kernel_init=normal(0.02),
            dtype=self.real,
            param_dtype=self.real,
            rngs=rngs,
        )

    def chain(self, states: Array) -> Chain:
        """The systems that tokens ``states [..., dim]`` write."""
        decay, phase = self.gates(states)
        gate = polar_gate(decay, phase)
        real, imag = jnp.split(self.couplings(states), 2, axis=-1)
        coupling = bounded_coupling(real, imag)
        u = gate_weight(decay)[..., None] * self.inputs(states)
        return Chain(dominant_diagonal(gate * coupling), coupling, -gate, decay, u)

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        d, b, c, decay, u = jax.tree.map(_heads_first, self.chain(states))
        y = tridiagonal_solve(d, b, c, u, mask=None if mask is None else mask[:, None])
        return self.project(_heads_first(y), states), MixerInfo(-decay)


class TridiagonalOperator(TwoSidedTridiagonal):
    """The causal sweep ``y_i = gL_i (sqrt(1 - |a_i|^2) u_i + a_i y_{i-1})`` of a tridiagonal
    operator whose off-diagonals the tokens write, gated and projected. Causal; a head remembers gL
    and y.

    Below the diagonal stands the gate ``-a_i``, above it a coupling ``|b_i| < 1/4``, and on it
    ``1 + |k_i|`` with ``k_i = -a_i b_i``, so that ``|gL_i| <= 1``: no gate becomes longer than it
    was written, but how much shorter, and how it turns, depends on all that came before. With ``b =
    0`` it is :class:`GateOperator`.

    Args:
        dim: width of the states, a multiple of ``heads``.
        heads: number of operators.
        convolution: tokens that a short convolution spans, which gates, couplings and inputs are
            read from.
        out_scale: standard deviation of the first weights that write the output; less in deep
            models.
        dtype: that of the projections; the recurrence is at least single precision.
        rngs: where first weights come from.

    Raises:
        ValueError: unless heads divide the width.

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
        convolution: int = 1,
        out_scale: float = 0.02,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(dim, heads, out_scale=out_scale, dtype=dtype, rngs=rngs)
        self.convolution = ShortConvolution(dim, convolution, dtype=dtype, rngs=rngs)

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        return without_padding(self._mix, states, mask)

    def _mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        d, b, c, decay, u = jax.tree.map(_heads_first, self.chain(self.convolution(states)))
        left, y = tridiagonal_sweep(d, b, c, u)
        info = MixerInfo(jnp.log(jnp.abs(left)) - decay)
        return self.project(_heads_first(y), states), info

    def init_decode(self, batch_size: int) -> TridiagonalState:
        """Memory before the first token: gL and y of every head, and the convolution's tokens."""
        channels = self.scale.shape[1] // self.parts
        chain = streaming_init(
            (batch_size, self.heads), channels, jnp.result_type(self.real, jnp.complex64)
        )
        return TridiagonalState(self.convolution.init_decode(batch_size), chain)

    def decode(self, state: TridiagonalState, states: Array) -> tuple[Array, TridiagonalState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        near, recent = self.convolution.decode(state.recent, states)
        d, b, c, _, u = self.chain(near)
        chain = streaming_step(state.chain, d, b, c, 0.0, u)
        return self.project(chain.output, states), TridiagonalState(recent, chain)
