"""Rows of adaptive computation and of the order of data: learning at equal time, and decoding."""

from typing import Any

import numpy as np
from claim_rows.measure import KEPT, PART, REFUTED, Found, interval, runs, short

STUDY = "benchmarks/measured/adaptive/runs.jsonl"
WITHOUT_EXITS = ("package", "no branches", "branches that nothing takes")


def _learned(arm: str, text: str) -> dict[int, float]:
    """Losses at equal time by seed, at the rate that the training text chose."""
    mine = [
        run
        for run in runs(STUDY)
        if run["job"]["part"] == "learning"
        and (run["job"]["arm"], run["job"]["text"], run["job"]["equal"]) == (arm, text, "time")
    ]
    first = min((run for run in mine if run["job"]["seed"] == 0), key=lambda r: r["training_loss"])
    rate = first["job"]["rate"]
    return {run["job"]["seed"]: run["loss"] for run in mine if run["job"]["rate"] == rate}


def _changes(text: str) -> dict[str, list[float]]:
    """Loss of every arm less that of a fully decayed schedule of the same time, by seed."""
    control = _learned("control", text)
    arms = {run["job"]["arm"] for run in runs(STUDY) if run["job"]["part"] == "learning"}
    losses = {arm: _learned(arm, text) for arm in sorted(arms - {"control"})}
    return {arm: [mine[seed] - control[seed] for seed in control] for arm, mine in losses.items()}


def learning() -> Found:
    """What leaving out blocks, curricula and selection do to the loss at equal time."""
    topics, other = _changes("topics"), _changes("shakespeare")
    figure = "; ".join(
        f"{arm} {interval(change)} and {interval(other[arm])}" for arm, change in topics.items()
    )
    helped = any(max(topics[arm] + other[arm]) < 0 for arm in topics)
    reason = "the time is worth more as plain updates of a schedule that falls to 0"
    return Found(
        f"{figure} nats to control (topics and shakespeare)",
        PART if helped else f"{REFUTED}: {reason}",
    )


def _ways(text: str) -> dict[str, list[tuple[float, float]]]:
    """How many times as fast each way to exit is, and its loss over the control's, by seed."""
    rows = [r for r in runs(STUDY) if r["job"]["part"] == "exits" and r["job"]["text"] == text]
    whole = {r["job"]["seed"]: r["loss"] for r in rows if r["job"]["model"] == "control"}
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        own = row["job"]["model"].startswith("default")
        reference = row["loss"] if own else whole[row["job"]["seed"]]
        seconds: dict[str, Any] = row["seconds"]
        plain = min(seconds[name] for name in WITHOUT_EXITS)
        for way, measured in row["ways"].items():
            pair = plain / seconds[way], measured["loss"] / reference - 1.0
            found.setdefault(f"{row['job']['model']}: {way}", []).append(pair)
    return found


def early_exit() -> Found:
    """The fastest way to leave decoding early within 1 % of the loss, and the fastest of all."""
    means = {name: np.mean(pairs, axis=0) for name, pairs in _ways("topics").items()}
    close = [name for name, (_, loss) in means.items() if loss <= 0.01]
    chosen = [max(names, key=lambda name: means[name][0]) for names in (close, [*means])]
    figure = "; ".join(
        f"{short(means[name][0])} times as fast at {100 * means[name][1]:+.2g} % ({name})"
        for name in dict.fromkeys(chosen)
    )
    speed = means[chosen[0]][0]
    verdict = KEPT if speed >= 1.3 else PART if speed >= 1.1 else REFUTED
    reason = "heads are rarely sure before the last block, and to ask them costs what is saved"
    return Found(figure, f"{verdict}: {reason}")
