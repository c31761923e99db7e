"""What the layers that mix tokens share: their interface, their diagnostics, and the treatment of
padding.

The layers stand in :mod:`vfejax.models.resnet_bk.resolvents`,
:mod:`vfejax.models.resnet_bk.tridiagonal` and :mod:`vfejax.models.resnet_bk.gates`. Each is a flax
layer of its own, for a model of your own too:

    mixer = ResolventOperator(dim=64, heads=8, rngs=rngs)
    mixed, info = mixer(states, mask)           # [b, n, 64] to [b, n, 64]
"""

from typing import NamedTuple, Protocol

import jax.numpy as jnp
from flax import nnx

from vfejax.models.protocol import packing, permute
from vfejax.models.resnet_bk.heads import heads_first
from vfejax.types import Array, PyTree

__all__ = ["Mixer", "MixerInfo", "Packed"]


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


class Packed(nnx.Module):
    """A layer that mixes tokens by :meth:`mix`, for which the padding of each row stands behind its
    tokens.

    Padding may then stand anywhere: it is moved behind the tokens, where no token of a causal layer
    reads it, and back.
    """

    def __call__(self, states: Array, mask: Array | None = None) -> tuple[Array, MixerInfo]:
        """``states [b, n, dim]`` to the mixed ``[b, n, dim]``; ``mask [b, n]`` is True at real
        tokens.
        """
        if mask is None:
            return self.mix(states, None)
        order, place = packing(mask)
        packed = permute(states, order, place)
        mixed, info = self.mix(packed, jnp.take_along_axis(mask, order, axis=1))
        log_gates = permute(heads_first(info.log_gates), place, order)
        return permute(mixed, place, order), MixerInfo(heads_first(log_gates))

    def mix(self, states: Array, mask: Array | None) -> tuple[Array, MixerInfo]:
        """The same for states whose padding, where the mask is False, stands behind the tokens of
        each row. A causal layer need not look at the mask.
        """
        raise NotImplementedError
