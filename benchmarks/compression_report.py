"""The table and the picture of the files that are there."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import language_models as models
import numpy as np
from compression_settings import SETTINGS, Plan, results

from vfejax.figures.compression import loss_against_bytes


def choice(row: dict[str, Any]) -> float:
    """What a rate is chosen by; training that diverged comes last."""
    loss = row["training_loss"]
    return math.inf if math.isnan(loss) else loss


def rows_of(plan: Plan, name: str, text: models.Text) -> list[dict[str, Any]]:
    """Lines of a setting by seed, at the rate that the first seed chose."""
    options, found = json.loads(json.dumps(SETTINGS[name]._asdict())), {}
    for row in results(plan).values():
        job = row["job"]
        same = {**job["options"], "like": options["like"]} == options
        same &= job["teacher_steps"] == plan.teacher_steps
        if job["setting"] == name and job["digest"] == text.digest and same:
            found.setdefault(job["rate"], {})[job["seed"]] = row
    first = plan.seeds[0]
    with_first = {rate: choice(rows[first]) for rate, rows in found.items() if first in rows}
    if not with_first:
        return []
    best = found[min(with_first, key=lambda rate: with_first[rate])]
    return [best[seed] for seed in plan.seeds if seed in best]


def report(plan: Plan) -> Iterator[str]:
    """One row for each setting, Markdown."""
    yield (
        "| text, setting | seeds, rate | weights | bytes | of float32 | of bfloat16 | loss | to "
        "the teacher | to the teacher trained on | by rounding | bar |"
    )
    yield "| --- |" + " ---: |" * 9 + " --- |"
    for text in plan.texts:
        base = {row["job"]["seed"]: row for row in rows_of(plan, "teacher", text)}
        longer = {row["job"]["seed"]: row for row in rows_of(plan, "teacher trained on", text)}
        for name in SETTINGS:
            rows = rows_of(plan, name, text)
            if not rows or not base:
                continue
            size = np.mean([row["size"] for row in rows])
            full = np.mean([row["size"] for row in base.values()])
            half = full - 2 * next(iter(base.values()))["weights"]
            losses = [row["loss"] for row in rows]
            rounding = [row["loss"] - row["unrounded"] for row in rows if row["unrounded"]]
            cells = [
                f"{text.name}, {name}",
                f"{len(rows)}, {rows[0]['job']['rate']:g}",
                f"{rows[0]['weights']:,}",
                f"{size:,.0f}",
                f"{full / size:.2f}x",
                f"{half / size:.2f}x",
                _spread(losses),
                _change(rows, base),
                _change(rows, longer),
                f"{np.mean(rounding):+.4f}" if rounding else "",
                SETTINGS[name].bar,
            ]
            yield "| " + " | ".join(cells) + " |"
        exact = all(row["equal"] for name in SETTINGS for row in rows_of(plan, name, text))
        yield f"| {text.name}: read back bit for bit: {'yes' if exact else 'NO'} |" + " |" * 10


def _spread(losses: Sequence[float]) -> str:
    mean, half = models.interval(losses)
    return f"{mean:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def _change(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Change of the loss to that of other lines, seed by seed, in per cent."""
    pairs = [(row["loss"], base[row["job"]["seed"]]["loss"]) for row in rows
             if row["job"]["seed"] in base]  # fmt: skip
    return f"{np.mean([100 * (a / b - 1) for a, b in pairs]):+.2f} %" if pairs else ""


def draw(plan: Plan, text: models.Text) -> Any:
    """Loss against bytes of every setting that is there."""
    groups: dict[str, dict[str, Any]] = {"teacher": {}, "compressed": {}, "GPT from scratch": {}}
    for name in SETTINGS:
        rows = rows_of(plan, name, text)
        kind = "GPT from scratch" if SETTINGS[name].like else "compressed"
        kind = "teacher" if name.startswith("teacher") else kind
        if rows:
            groups[kind][name] = [[row["size"], row["loss"]] for row in rows]
    level = np.mean([row["loss"] for row in rows_of(plan, "teacher", text)])
    return loss_against_bytes(groups, level=float(level), title=f"Loss against bytes: {text.name}")
