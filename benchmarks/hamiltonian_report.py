"""Tables of :mod:`hamiltonian`, from its lines."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import hamiltonian_networks as networks
import hamiltonian_optimizers as optimizers
import numpy as np

Row = dict[str, Any]


def _table(header: Iterable[str], lines: list[tuple[Any, ...]]) -> None:
    header = list(header)
    print("| " + " | ".join(header) + " |")
    print("| --- |" + " ---: |" * (len(header) - 1))
    for line in lines:
        print("| " + " | ".join(map(str, line)) + " |")
    print()


def _mean(rows: list[Row], name: str, form: str) -> str:
    """Mean over seeds, and the least and largest."""
    values = [row[name] for row in rows]
    least, most = format(min(values), form), format(max(values), form)
    return f"{np.mean(values):{form}} ({least} to {most})"


def _groups(rows: list[Row], piece: str, *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Lines of a piece that differ in their seed alone."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["job"]["piece"] == piece:
            found[tuple(row["job"][key] for key in keys)].append(row)
    return found


def _functions(rows: list[Row]) -> None:
    for name in optimizers.FUNCTIONS:
        lines = []
        for (arm,), (row,) in _groups(rows, name, "arm").items():
            setting = row["setting"]
            delta = f"{setting['delta']:g}" if arm == "relativistic" else ""
            values = (f"{setting['rate']:.2g}", setting["momentum"], delta, row["settings tried"])
            reached = (f"{row['best']:.1e}", f"{row['median of starts']:.1e}")
            lines.append((arm, *values, *reached))
        if lines:
            found = ("value reached", "median, other starts")
            _table((name, "rate", "momentum", "delta", "settings tried", *found), lines)


def _learners(rows: list[Row]) -> None:
    for task in optimizers.NETWORKS:
        lines = []
        for (arm, rate, delta), runs in _groups(rows, task, "arm", "rate", "delta").items():
            if len(runs) < len(optimizers.SEEDS):
                continue  # a rate that was tried, not chosen
            right = (_mean(runs, "accuracy", ".4f"),) if task == "digits" else ()
            chosen = (f"{rate:g}", f"{delta:g}" if arm == "relativistic" else "")
            lines.append((arm, *chosen, _mean(runs, "loss", ".4f"), *right))
        if lines:
            right = ("share that is right",) if task == "digits" else ()
            _table((task, "rate", "delta", "loss (nats)", *right), lines)


def _networks(rows: list[Row]) -> None:
    lines = []
    for (name, arm), runs in _groups(rows, "networks", "system", "arm").items():
        errors = _mean(runs, "energy error", ".1e"), f"{np.mean([r['median'] for r in runs]):.1e}"
        loss = _mean(runs, "test loss", ".2e")
        lines.append((name, arm, f"{runs[0]['parameters']:,}", loss, *errors))
    if lines:
        found = ("test loss", "energy error", "median path")
        _table(("system", "network", "weights", *found), lines)
        published = [(name, *task.published) for name, task in networks.TASKS.items()]
        _table(("published, plain / Hamiltonian", "test loss", "energy error"), published)


def _drift(rows: list[Row]) -> None:
    lines = []
    for key, runs in _groups(rows, "drift", "system", "of", "scheme").items():
        errors = [
            f"{max(run[f'{when} of {whose} energy'] for run in runs):.1e}"
            if f"{when} of {whose} energy" in runs[0]
            else ""
            for whose in ("the true", "its own")
            for when in ("first", "last")
        ]
        lines.append((*key, len(runs), *errors))
    if lines:
        found = ("true, first 1 %", "true, last 1 %", "own, first 1 %", "own, last 1 %")
        _table(("system", "energy", "scheme", "seeds", *found), lines)


def report(rows: list[Row]) -> None:
    """Print every table of which there are lines."""
    for tables in (_functions, _learners, _networks, _drift):
        tables(rows)
    versions = {(row["jax"], row["device"]) for row in rows}
    print("; ".join(f"jax {version}, {device}" for version, device in sorted(versions)))
