"""The report of a simulation: summary, tables, pictures."""

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from vfejax.agents.hierarchy import Hierarchy, Scales
from vfejax.agents.population import Population
from vfejax.cli.simulate import group_accuracy, grouped_pictures
from vfejax.cli.simulate.accuracy import References, achieved, rms
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.pictures import pictures
from vfejax.cli.simulate.problem import Problem, quadrature
from vfejax.runs.directory import RunDirectory
from vfejax.runs.events import read_events
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Picture, Report

__all__ = ["Grouped", "build", "summary_text"]


class Grouped(NamedTuple):
    """The last state of a run with meta-agents.

    Attributes:
        hierarchy: agents and meta-agents.
        scales: how its rows are divided.
        refusal: what to tell about groups that found no slot; empty when all did.
    """

    hierarchy: Hierarchy
    scales: Scales
    refusal: str


def _summary(
    config: SimulateConfig,
    problem: Problem,
    references: References | None,
    population: Population,
    metrics: dict,
) -> dict[str, Any]:
    last = {name: float(values[-1]) for name, values in metrics.items()}
    summary: dict[str, Any] = {
        "agents": population.phi.shape[0],
        "steps": int(last["step"]),
        "initial_energy_nats": float(metrics["total"][0]),
        "final_energy_nats": last["total"],
    }
    if config.dynamics == "hamiltonian":
        drift = np.abs(metrics["hamiltonian"] - metrics["hamiltonian"][0]).max()
        summary["largest_energy_drift_nats"] = float(drift)
    if "solver_residual" in metrics:
        summary["largest_solver_residual"] = float(metrics["solver_residual"].max())
    if references is not None:
        rows = {
            "an agent alone": references.alone,
            "two agents, raw data": references.pairs,
            "this run": achieved(problem, population),
            "best possible (maximum likelihood)": references.best,
        }
        summary["errors"] = {
            name: {"landmark_error_m": place, "rotation_error_deg": math.degrees(rms(turns))}
            for name, (place, turns) in rows.items()
        }
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        f"{summary['agents']} agents, {summary['steps']} steps, {summary['seconds']} s: free "
        "energy "
        f"{summary['initial_energy_nats']:.6g} -> {summary['final_energy_nats']:.6g} nats"
    ]
    if "errors" in summary:
        lines.append(
            f"{'rms error against the truth':<36} {'landmarks':>12} {'relative rotations':>20}"
        )
        for name, row in summary["errors"].items():
            lines.append(
                f"{name:<36} {1e3 * row['landmark_error_m']:>9.1f} mm "
                f"{row['rotation_error_deg']:>16.2f} deg"
            )
    lines += _group_lines(summary)
    return "\n".join(lines)


def _group_lines(summary: dict[str, Any]) -> list[str]:
    """How many groups there are, and how many were right, a line each."""
    lines = []
    for name, row in summary.get("groups", {}).items():
        index = row.get("adjusted_rand_index")
        right = "" if index is None else f"; adjusted Rand index against the truth {index:.3f}"
        are = "1 group" if row["groups"] == 1 else f"{row['groups']} groups"
        lines.append(f"{name}: {are}, {row['agents']} agents in them{right}")
    return lines


def build(
    config: SimulateConfig,
    problem: Problem,
    references: References | None,
    population: Population,
    run: RunDirectory,
    grouped: Grouped | None = None,
) -> tuple[Report, dict[str, Any]]:
    """What the run shows in the end, and its summary.

    Args:
        config: the command's options.
        problem: what was computed.
        references: errors to compare with; None when the truth is unknown.
        population: the last state.
        run: the run, whose metrics and events are read.
        grouped: the last state with meta-agents, if there were any to come.

    Raises:
        UserError: when the metrics are not those of a simulation.
    """
    metrics = read_metrics(run, required=("step", "total"))
    summary = _summary(config, problem, references, population, metrics)
    rows: list[tuple[Any, ...]] = [
        (name, _fixed(1e3 * row["landmark_error_m"], 1), _fixed(row["rotation_error_deg"], 2))
        for name, row in summary.get("errors", {}).items()
    ]
    header: tuple[str, ...]
    header = ("rms error against the truth", "landmarks (mm)", "relative rotations (degrees)")
    notes = [
        f"{summary['agents']} agents, {summary['steps']} steps of {config.dynamics} dynamics; free "
        f"energy {summary['initial_energy_nats']:.6g} -> {summary['final_energy_nats']:.6g} nats.",
        *_error_notes(config, summary),
    ]
    if not rows:
        header = ("quantity", "value")
        rows = [(name.replace("_", " "), value) for name, value in summary.items()]
    about_groups: Iterable[Picture] = ()
    if grouped is not None:
        hierarchy, scales, refusal = grouped
        found = group_accuracy.summary(problem, hierarchy, scales, quadrature(config, problem))
        summary["groups"] = found
        notes += _group_lines(summary) + _group_notes(config, summary, refusal)
        about_groups = grouped_pictures.pictures(
            config, problem, hierarchy, scales, metrics, read_events(run)
        )
    shown = pictures(config, problem, references, population, metrics, about_groups)
    report = Report("vfejax simulate", rows, shown, notes=notes, header=header)
    return report, summary


def _error_notes(config: SimulateConfig, summary: dict[str, Any]) -> list[str]:
    """What a reader of the errors should know."""
    if "errors" not in summary or len(config.irreps) > 1:
        return []
    return [
        "One landmark looks the same however a sensor is turned about it, so no data tell the "
        "relative rotations, and their errors do not say how good a run is."
    ]


def _group_notes(config: SimulateConfig, summary: dict[str, Any], refusal: str) -> list[str]:
    """What a reader of the groups should know."""
    notes = [f"{refusal[0].upper()}{refusal[1:]}."] if refusal else []
    if summary["steps"] < config.meta.detect_from:
        notes.append(
            f"Groups are looked for from step {config.meta.detect_from} on (--meta.detect-from), "
            f"and the run ended at step {summary['steps']}."
        )
    return notes


def _fixed(value: float, decimals: int) -> Decimal:
    """A number with as many decimals as its neighbours in the table."""
    return Decimal(f"{value:.{decimals}f}")
