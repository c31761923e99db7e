"""Runs: the directory, its checkpoints, metrics, progress and report."""

from vfejax.runs import (
    checkpoint,
    directory,
    inputs,
    interrupt,
    loop,
    progress,
    report,
    seeds,
)

__all__ = [
    "checkpoint",
    "directory",
    "inputs",
    "interrupt",
    "loop",
    "progress",
    "report",
    "seeds",
]
