"""Runs: the directory, its checkpoints, metrics, progress and report; and ``load``, which reads a
run back.
"""

from vfejax.runs import (
    checkpoint,
    directory,
    inputs,
    interrupt,
    loop,
    progress,
    report,
    seeds,
    tensorboard,
    toml_values,
)
from vfejax.runs.load import Run, load

__all__ = [
    "Run",
    "checkpoint",
    "directory",
    "inputs",
    "interrupt",
    "load",
    "loop",
    "progress",
    "report",
    "seeds",
    "tensorboard",
    "toml_values",
]
