"""Runs: the directory, its checkpoints, metrics, progress and report; and ``load``, which reads a
run back.
"""

from vfejax.runs import (
    checkpoint,
    checkpoint_arrays,
    checkpoint_record,
    directory,
    environment,
    events,
    inputs,
    interrupt,
    lines,
    loop,
    metrics,
    progress,
    report,
    seeds,
    tensorboard,
    toml_values,
    written_files,
)
from vfejax.runs.load import Run, load

__all__ = [
    "Run",
    "checkpoint",
    "checkpoint_arrays",
    "checkpoint_record",
    "directory",
    "environment",
    "events",
    "inputs",
    "interrupt",
    "lines",
    "load",
    "loop",
    "metrics",
    "progress",
    "report",
    "seeds",
    "tensorboard",
    "toml_values",
    "written_files",
]
