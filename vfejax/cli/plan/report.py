"""The report of ``vfejax plan``: summary, tables, pictures."""

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from vfejax.cli.plan import pictures, references
from vfejax.cli.plan.config import PlanConfig, learned
from vfejax.cli.plan.episodes import Shown
from vfejax.cli.plan.problem import Problem
from vfejax.cli.plan.references import Fare
from vfejax.runs.directory import RunDirectory
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Report

__all__ = ["build", "summary_text"]


def build(
    config: PlanConfig, problem: Problem, shown: Shown, run: RunDirectory
) -> tuple[Report, dict[str, Any]]:
    """What the run shows in the end, and its summary.

    Args:
        config: the command's options.
        problem: the world.
        shown: the last episode.
        run: the run, whose metrics are read.
    """
    metrics = read_metrics(run, required=("step", "success_rate", "reward", "steps_to_goal"))
    episodes = int(metrics["step"][-1])
    summary: dict[str, Any] = {
        "world": config.env,
        "planner": config.planner,
        "agents": config.batch,
        "episodes": episodes,
        "length": config.length,
    }
    if not episodes:
        return Report("vfejax plan", list(summary.items())), summary
    first = references.since(config, episodes)
    rival = references.greedy(config, problem, first, episodes)
    fares = {"this run": references.of_run(metrics, first)}
    best = references.best(config, problem)
    if best is not None:
        fares["best possible"] = best
    fares["greedy agent"] = rival.fare
    summary["counted_from_episode"] = first
    summary["fares"] = {name: _plain(fare) for name, fare in fares.items()}
    report = Report(
        "vfejax plan",
        [(_LONG.get(name, name), *_cells(fare)) for name, fare in summary["fares"].items()],
        pictures.pictures(config, problem, shown, metrics, rival.states, fares),
        notes=_notes(config, summary),
        header=("agents", "episodes with the goal (%)", "reward (nats)", "actions to the goal"),
    )
    return report, summary


_LONG = {
    "best possible": "best possible (optimal policy of the belief MDP, expected)",
    "greedy agent": "greedy agent (one step ahead, in the same worlds)",
}


def _plain(fare: Fare) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    known = None if math.isnan(fare.steps) else fare.steps
    return {"success_rate": fare.success, "reward_nats": fare.reward, "steps_to_goal": known}


def _cells(fare: Mapping[str, float | None]) -> tuple[Decimal | str, ...]:
    success, reward, steps = fare["success_rate"], fare["reward_nats"], fare["steps_to_goal"]
    assert success is not None
    return (
        Decimal(f"{100 * success:.1f}"),
        Decimal(f"{reward:.2f}"),
        "never" if steps is None else Decimal(f"{steps:.1f}"),
    )


def _notes(config: PlanConfig, summary: Mapping[str, Any]) -> list[str]:
    notes = [
        f"{_first_line(summary)}. Rewards are log preferences of all observations of an episode "
        "after the first."
    ]
    if config.learn is not None:
        notes.append(
            f"Agents learn {', '.join(learned(config))}; the table counts the episodes from number "
            f"{summary['counted_from_episode'] + 1} on. The greedy agent learns nothing."
        )
    if "best possible" not in summary["fares"]:
        notes.append("The best possible is not known: too many beliefs can come about.")
    notes.append("figures/episode.gif shows the last episode of the first agent as a film.")
    return notes


def _first_line(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['agents']} agents ({summary['planner']}), {summary['episodes']} episodes of "
        f"{summary['length']} observations in the world {summary['world']}"
    )


def summary_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [f"{_first_line(summary)}, {summary['seconds']} s"]
    if "fares" in summary:
        lines.append(f"{'':<16}{'goal observed':>14}{'reward':>14}{'actions to it':>16}")
        for name, fare in summary["fares"].items():
            success, reward, steps = _cells(fare)
            lines.append(f"{name:<16}{success:>12} %{reward:>9} nats{steps:>16}")
    return "\n".join(lines)
