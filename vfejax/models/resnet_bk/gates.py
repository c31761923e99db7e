"""Layers that mix a sequence by gates that are computed from the tokens.

Each head reads from the token states h_i a decay and a phase, which make a complex gate

    a_i = exp(-r_i + i theta_i),   r_i = softplus(W_r h_i + r) > 0,   theta_i = W_t h_i + theta,

with a learned reach of its own, 1 / softplus(r) tokens at first, and a learned phase theta.
:class:`GateOperator` is the recurrence ``y_i = a_i y_{i-1} + sqrt(1 - |a_i|^2) u_i``;
:class:`RealGateOperator` has a real gate for the memory and one for the input.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.resnet_bk.heads import heads_first, inverse_softplus, levels, spread
from vfejax.models.resnet_bk.mixers import MixerInfo, Packed
from vfejax.models.resnet_bk.readout import Readout, ShortConvolution
from vfejax.numerics import at_least_float32
from vfejax.spectral.gates import gate_weight, polar_gate
from vfejax.spectral.recurrence import linear_recurrence
from vfejax.types import Array

__all__ = ["GateOperator", "GateState", "PolarGates", "RealGateOperator"]

_LONGEST_REACH = 50.0  # tokens, of the heads at first: down to one
_LARGEST_PHASE = jnp.pi  # per token, of the heads at first: up from 0
_FASTER = 8.0  # of the real gate: its decay when a token closes it, in units of softplus(l)
_SLOWEST = 1e-4  # decay per token that no gate goes below: a reach of ten thousand tokens


def _first_decays(heads: int, dtype: jnp.dtype) -> Array:
    """Arguments of a softplus that make reaches from one token to the longest one, evenly on a
    logarithmic scale, neighbours far apart.
    """
    return inverse_softplus(_LONGEST_REACH ** -spread(heads, dtype))


class PolarGates(nnx.Module):
    """Token states ``[..., dim]`` to decay and phase of every head's gate, real ``[..., heads]``
    and at least single precision.

    Args:
        dim: width of the states.
        heads: number of gates.
        dtype: that of the model.
        rngs: where first weights come from.
    """

    def __init__(self, dim: int, heads: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        real = at_least_float32(dtype)
        self.levels = levels(dim, heads, dtype=dtype, rngs=rngs)
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


class _GateRecurrence(Packed, Readout):
    """``y_i = a_i y_{i-1} + v_i`` in every head, gated and projected, of gates a and inputs v that
    the tokens write by :meth:`read`.
    """

    convolution: ShortConvolution

    def read(self, near: Array) -> tuple[Array, Array, Array]:
        """Decay and gate a ``[..., heads]``, ``|a| = exp(-decay)``, and v ``[..., heads, c]``."""
        raise NotImplementedError

    def mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        del mask  # what stands behind a token never reaches it
        decay, gate, v = self.read(self.convolution(states))
        y = linear_recurrence(gate[..., None], v, axis=1)
        return self.project(y, states), MixerInfo(-heads_first(decay))

    def init_decode(self, batch_size: int) -> GateState:
        """Memory before the first token."""
        y = jnp.zeros((batch_size, self.heads, self.channels), self.output_dtype)
        return GateState(self.convolution.init_decode(batch_size), y)

    def decode(self, state: GateState, states: Array) -> tuple[Array, GateState]:
        """One token ``states [b, dim]``: its ``[b, dim]``, and the memory with it."""
        near, recent = self.convolution.decode(state.recent, states)
        _, gate, v = self.read(near)
        y = gate[..., None] * state.output + v
        return self.project(y, states), GateState(recent, y)


class GateOperator(_GateRecurrence):
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

    def read(self, near: Array) -> tuple[Array, Array, Array]:
        decay, phase = self.gates(near)
        gate = polar_gate(decay, phase)
        return decay, gate, (gate_weight(decay)[..., None] * self.inputs(near)).astype(gate.dtype)


class RealGateOperator(_GateRecurrence):
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
        self.levels = levels(dim, heads, dtype=dtype, rngs=rngs)
        # A first level of 0 halves the fastest decay.
        fastest = 2.0 * jax.nn.softplus(_first_decays(heads, self.real)) / _FASTER
        self.decay = nnx.Param(inverse_softplus(fastest))
        self.convolution = ShortConvolution(dim, convolution, dtype=dtype, rngs=rngs)

    def read(self, near: Array) -> tuple[Array, Array, Array]:
        decay, entry = jnp.split(jax.nn.sigmoid(self.levels(near)), 2, axis=-1)
        decay = _SLOWEST + _FASTER * jax.nn.softplus(self.decay[...]) * decay
        v = (gate_weight(decay) * entry)[..., None] * self.inputs(near)
        return decay, jnp.exp(-decay), v
