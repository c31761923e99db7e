"""What a simulation tells its reader in the end: summary, tables, pictures."""

import math
from decimal import Decimal
from typing import Any

import numpy as np

from vfejax.agents.population import Population
from vfejax.cli.simulate.accuracy import References, achieved, rms
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.pictures import pictures
from vfejax.cli.simulate.problem import Problem
from vfejax.runs.directory import RunDirectory
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Report

__all__ = ["build", "summary_text"]


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
    return "\n".join(lines)


def build(
    config: SimulateConfig,
    problem: Problem,
    references: References | None,
    population: Population,
    run: RunDirectory,
) -> tuple[Report, dict[str, Any]]:
    """What the run shows in the end, and its summary.

    Args:
        config: the command's options.
        problem: what was computed.
        references: errors to compare with; None when the truth is unknown.
        population: the last state.
        run: the run, whose metrics are read.

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
        f"energy {summary['initial_energy_nats']:.6g} -> {summary['final_energy_nats']:.6g} nats."
    ]
    if not rows:
        header = ("quantity", "value")
        rows = [(name.replace("_", " "), value) for name, value in summary.items()]
    shown = pictures(config, problem, references, population, metrics)
    report = Report("vfejax simulate", rows, shown, notes=notes, header=header)
    return report, summary


def _fixed(value: float, decimals: int) -> Decimal:
    """A number with as many decimals as its neighbours in the table."""
    return Decimal(f"{value:.{decimals}f}")
