"""Metrics for TensorBoard, beside ``metrics.csv``: an extra that pip installs."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping

from vfejax.data.files import write_errors
from vfejax.errors import UserError
from vfejax.runs.directory import RunDirectory

__all__ = ["FOLDER", "require", "writer"]

FOLDER = "tensorboard"


def require() -> None:
    """Raise a UserError with the remedy unless the extra is installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError(
            "--tensorboard: needs tensorboardX, which is not installed; run: "
            "pip install 'vfejax[tensorboard]'"
        ) from None


@contextlib.contextmanager
def writer(
    run: RunDirectory, start: int | None
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function ``write(step, row)`` that adds a row to the event files in ``tensorboard/``.

    Args:
        run: the run, held.
        start: step that the run goes on from, None for one that begins; what TensorBoard has of
            later steps is dropped. A killed process may leave rows of its last seconds out, which
            ``metrics.csv`` has.

    Raises:
        UserError: when the extra is missing, or the folder cannot be written.
    """
    require()
    from tensorboardX import SummaryWriter

    folder = run.path / FOLDER
    with write_errors(folder):
        before = set(os.listdir(folder)) if folder.is_dir() else set()
        first = 0 if start is None else start + 1  # what was written of ``start`` itself stays
        events = SummaryWriter(
            logdir=str(folder),
            purge_step=first,
            flush_secs=10,
            filename_suffix=f".{first}.{os.getpid()}",  # two sessions may begin in one second
        )
        for name in sorted(set(os.listdir(folder)) - before):
            run.file(f"{FOLDER}/{name}")

    def write(step: int, row: Mapping[str, float]) -> None:
        with write_errors(folder):
            for name, value in row.items():
                if not math.isnan(value):  # no value at this step, such as no evaluation
                    events.add_scalar(name, float(value), step)

    try:
        yield write
    finally:
        events.close()
