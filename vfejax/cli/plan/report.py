"""What ``vfejax plan`` tells its reader in the end: summary, tables, pictures."""

import math
from typing import Any

from vfejax.cli.plan.config import PlanConfig
from vfejax.runs.directory import RunDirectory
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Report

__all__ = ["build", "summary_text"]


def build(config: PlanConfig, run: RunDirectory) -> tuple[Report, dict[str, Any]]:
    """What the run shows in the end, and its summary."""
    metrics = read_metrics(run, required=("step", "success_rate", "reward"))
    last = {name: float(values[-1]) for name, values in metrics.items()}
    summary: dict[str, Any] = {
        "world": config.env,
        "planner": config.planner,
        "agents": config.batch,
        "episodes": int(last.pop("step")),
        **{name: value if math.isfinite(value) else None for name, value in last.items()},
    }
    rows = [(name.replace("_", " "), value) for name, value in summary.items()]
    return Report("vfejax plan", rows), summary


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    return (
        f"{summary['agents']} agents, {summary['episodes']} episodes, {summary['seconds']} s: "
        f"success rate {summary['success_rate']}, reward {summary['reward']} nats"
    )
