"""Ways from a trained model to one small file, and which files there are."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import language_models as models

LENGTH, BATCH, CHUNK = models.LENGTH, models.BATCH, models.CHUNK
TEACHER = "resnet-bk"
EXACT = 32


class Setting(NamedTuple):
    """One way to a file.

    Attributes:
        bits, embedding_bits, rest_bits: of kernels, of the embedding, of all else.
        group: weights that share a scale.
        sizes: options that the teacher is pruned to; None for the teacher itself.
        fresh: model and options of a fresh student or reference.
        steps: updates, in units of ``--steps``; of a fresh model in units of ``--fresh-steps``.
        weight: of the teacher in the loss; 0 for the text alone.
        temperature: at which both are compared.
        rounded: share of the updates, at their end, with rounded weights.
        first: whether the teacher is rounded before it is pruned.
        like: the setting whose bytes a reference has, and whose tokens, with those of its teacher.
        bar: what is claimed.
    """

    bits: int = 4
    embedding_bits: int = 8
    rest_bits: int = 16
    group: int = 64
    sizes: dict[str, int] | None = {}  # noqa: RUF012
    fresh: tuple[str, dict[str, Any]] | None = None
    steps: int = 1
    weight: float = 0.7
    temperature: float = 2.0
    rounded: float = 0.3
    first: bool = False
    like: str | None = None
    bar: str = ""


SMALL = (TEACHER, {"dim": 64, "hidden": 64, "experts": 2})
SMALLEST = (TEACHER, {"dim": 48, "hidden": 44, "experts": 2, "layers": 3})
HALF = {"experts": 2}
NARROW = {"experts": 1, "hidden": 32}
FULL = {"bits": EXACT, "embedding_bits": EXACT, "rest_bits": EXACT}
SETTINGS = {
    "teacher": Setting(**FULL, sizes=None, weight=0.0, rounded=0.0),
    "teacher trained on": Setting(**FULL, weight=0.0, rounded=0.0),
    "int8 by column": Setting(8, 8, group=0, steps=0, bar=">= 3.8x, <= +0.1 %"),
    "int4 rounded": Setting(steps=0, bar=">= 7x, <= +1.2 %"),
    "pruned, int4 rounded": Setting(sizes=HALF, steps=0),
    "default": Setting(sizes=HALF, bar=">= 10x, <= 0 %, <= +1 % of the teacher trained on"),
    "default by the text alone": Setting(sizes=HALF, weight=0.0, bar=">= 0.005 nats above"),
    "rounded first": Setting(sizes=HALF, rounded=1.0, first=True),
    "int3": Setting(3, group=128, sizes=HALF, bar=">= 13x, <= +1 %"),
    "one narrow expert": Setting(sizes=NARROW),
    "one narrow expert, int3": Setting(3, group=128, sizes=NARROW),
    "small": Setting(fresh=SMALL, temperature=1.0, bar=">= 35x, <= +5 %"),
    "small by the text alone": Setting(fresh=SMALL, weight=0.0, bar=">= 0.005 nats above"),
    "smallest": Setting(4, 6, fresh=SMALLEST, temperature=1.0, bar=">= 75x, <= +12 %"),
}
SETTINGS |= {
    f"GPT like {name}": Setting(fresh=("gpt-modern", {}), weight=0.0, like=name)
    for name in ("default", "int3", "small", "smallest")
}
SETTINGS |= {
    f"GPT like {name}, float16": Setting(16, 16, fresh=("gpt-modern", {}), weight=0.0, like=name)
    for name in ("default", "small", "smallest")
}


class Job(NamedTuple):
    """One file: everything that decides what is in it."""

    setting: str
    options: dict[str, Any]
    model: dict[str, Any]
    text: str
    digest: str
    seed: int
    steps: int
    teacher_steps: int
    rate: float


class Plan(NamedTuple):
    """What was asked for."""

    settings: list[str]
    texts: list[models.Text]
    seeds: list[int]
    rates: list[float]
    rate: float
    teacher_steps: int
    steps: int
    fresh_steps: int
    out: Path

    def updates(self, setting: Setting) -> int:
        """How many updates a setting takes."""
        if setting.like is not None:
            return self.teacher_steps + self.updates(SETTINGS[setting.like])
        return setting.steps * (self.fresh_steps if setting.fresh else self.steps)


@cache
def _result_lines(path: Path, changed: float) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {json.dumps(row["job"], sort_keys=True): row for row in map(json.loads, lines)}


def results(plan: Plan) -> dict[str, dict[str, Any]]:
    """All lines, by their jobs."""
    path = plan.out / "runs.jsonl"
    return _result_lines(path, path.stat().st_mtime_ns if path.exists() else 0)
