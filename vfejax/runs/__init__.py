"""Runs: the directory, its checkpoints, metrics, progress and report."""

from vfejax.runs import checkpoint, directory, interrupt, progress, report

__all__ = ["checkpoint", "directory", "interrupt", "progress", "report"]
