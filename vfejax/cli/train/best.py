"""The best weights of a training run: which they are, and where they are kept."""

import math
from typing import NamedTuple

import numpy as np

from vfejax.runs import checkpoint, processes
from vfejax.runs.directory import RunDirectory
from vfejax.runs.load import BEST
from vfejax.types import PyTree

__all__ = ["NONE", "Best", "BestWeights", "record"]


class Best(NamedTuple):
    """Smallest validation loss so far (nats per token), its step, and the number of evaluations
    since then. NumPy scalars, which checkpoints hold.
    """

    valid_loss: np.ndarray
    step: np.ndarray
    stale: np.ndarray


def record(valid_loss: float, step: int, stale: int) -> Best:
    """The record of a best loss.

    Args:
        valid_loss: in nats per token.
        step: at which it was reached.
        stale: evaluations since then.
    """
    return Best(np.float64(valid_loss), np.int64(step), np.int64(stale))  # type: ignore[arg-type]


NONE = record(math.inf, 0, 0)
"""Before the first evaluation."""


class BestWeights:
    """The best weights of a run on the disk. Those that the newest checkpoint knows stay until a
    newer checkpoint is complete, so that a run that is stopped in between goes on with them.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._path = run.path / BEST
        self._known = -1  # step of those that the newest checkpoint knows

    def save(self, step: int, params: PyTree, loss: float) -> None:
        """Keep weights as the best.

        Args:
            step: at which they were reached.
            params: the weights.
            loss: of validation, in nats per token.
        """
        if processes.leads():
            self._run.file(f"{BEST}/checkpoints/")
        meta = {"step": step, "valid_loss": loss}
        checkpoint.save(self._path, step, params, meta, keep=1, protect=(self._known,))

    def compared(self, step: int, params: PyTree, loss: float, before: Best) -> Best:
        """The best after an evaluation; its weights are saved when it is a new one.

        Args:
            step: of the evaluation.
            params: the weights.
            loss: of validation, in nats per token.
            before: the best until then.
        """
        if not loss < before.valid_loss:
            return before._replace(stale=before.stale + 1)
        self.save(step, params, loss)
        return record(loss, step, 0)

    def saved(self, best: Best) -> None:
        """A checkpoint that knows these is complete."""
        self._known = int(best.step)
        checkpoint.keep_only(self._path, self._known)

    def restored(self, step: int, best: Best) -> bool:
        """Whether the weights are there that the checkpoint of ``step`` knows."""
        checkpoint.discard_after(self._path, step)
        found = int(best.step) in checkpoint.steps(self._path)
        self._known = int(best.step) if found else -1
        return found

    def discard(self) -> None:
        checkpoint.discard_after(self._path, -1)
