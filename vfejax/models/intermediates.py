"""Intermediate values of sequence modules: the outputs of their blocks, at no cost when these are
not requested.
"""

from typing import Any, ClassVar, Protocol

from flax import nnx

from vfejax.types import Array, Batch, Layers, Prediction

__all__ = ["WatchFn", "Watched", "unseen"]


class WatchFn(Protocol):
    """What a block hands out: its residual stream ``[b, n, d]`` and, for a block that has one, the
    modulus of its resolvent ``[b, n, heads]``.
    """

    def __call__(self, hidden: Array, resolvent: Array | None = None, /) -> Layers | None: ...


def unseen(hidden: Array, resolvent: Array | None = None, /) -> None:
    """Nothing is handed out."""


class Watched(nnx.Module):
    """A module that states what it computes once, in ``_forward``, watched or not.

    >>> class Copy(Watched):
    ...     def _forward(self, batch, key, watch_fn):
    ...         x = batch.tokens
    ...         return Prediction(x, {}, {}), watch_fn(x)
    >>> Copy()(Batch(3)).logits, Copy().watch(Batch(3))[1].hidden
    (3, 3)
    """

    residual: ClassVar[bool] = False
    """Whether the stack ``blocks`` hands on a residual stream ``[b, n, d]`` and nothing else."""

    def __call__(self, batch: Batch, key: Array | None = None) -> Prediction:
        """Predictions for a batch whose padding stands behind the real tokens of each row."""
        return self._forward(batch, key, unseen)[0]

    def watch(self, batch: Batch, key: Array | None = None) -> tuple[Prediction, Layers]:
        """The same, and what the blocks did."""
        return self._forward(batch, key, Layers)

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        """Predictions, and what ``watch_fn`` made of each block, stacked by layer.

        Args:
            batch: what is read.
            key: for what is random in training; None for evaluation.
            watch_fn: to be called once in every block.
        """
        raise NotImplementedError
