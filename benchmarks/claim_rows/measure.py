"""What is found for a row of the table of claims, and ways to find it."""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import stdtrit

ROOT = Path(__file__).parents[2]
KEPT, PART, REFUTED, UNTESTED = "kept", "in part", "refuted", "cannot be tested here"


class Found(NamedTuple):
    """Our figure, with its spread, and the verdict: ``KEPT``, ``PART``, ``REFUTED`` or
    ``UNTESTED``, with the reason behind a colon.
    """

    figure: str
    verdict: str


class Spread(NamedTuple):
    """A median, and the quartiles about it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{short(self.median)} ({short(self.low)} to {short(self.high)})"


def short(x: float) -> str:
    """Three digits: ``0.123``, ``12.3``, ``12,300``."""
    if not math.isfinite(x) or x == 0 or 1e-3 <= abs(x) < 100:
        return f"{x:.3g}"
    return f"{float(f'{x:.3g}'):,.0f}" if 100 <= abs(x) < 1e7 else f"{x:.1e}"


def call_of(function: Callable, *inputs: Any, options: dict[str, Any] | None = None) -> Any:
    """A compiled call on these inputs that waits for its results, and what XLA says about it."""
    compiled = jax.jit(function).lower(*inputs).compile(compiler_options=options)
    return (lambda: jax.block_until_ready(compiled(*inputs))), compiled


def turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    clock: Callable[[], float] = time.perf_counter,
    least: float = 0.005,
) -> dict[str, np.ndarray]:
    """Seconds of one call in each of several rounds, in which all calls take turns. A call of less
    than ``least`` seconds is made several times in its turn.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, math.ceil(least / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((clock() - start) / repeats[name])
    return {name: np.asarray(x) for name, x in seconds.items()}


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Median and quartiles."""
    return Spread(*(float(x) for x in np.quantile(np.asarray(values), [0.5, 0.25, 0.75])))


def backward_over_forward(
    forward: Callable[[], object], both: Callable[[], object], rounds: int = 25
) -> Spread:
    """Time of a backward pass over that of its forward pass, ``(both - forward) / forward``, round
    by round.

    ``forward`` computes a value, ``both`` the value and its gradient. Where a cotangent is given,
    it is an array of its own: what reads one array twice, XLA does once. The processor time of all
    threads counts, which other work on the machine lengthens least. It is known to a few ms, so
    that a turn is long.
    """
    seconds = turns({"forward": forward, "both": both}, rounds, time.process_time, least=0.05)
    return spread(seconds["both"] / seconds["forward"] - 1)


def ratio(seconds: Mapping[str, np.ndarray], slow: str, fast: str) -> Spread:
    """How many times as long ``slow`` takes, round by round."""
    return spread(seconds[slow] / seconds[fast])


def judged(found: Spread | float, claimed: float, reason: str = "") -> str:
    """The verdict on a claim of ``claimed`` times: kept when it is reached, refuted when nothing
    (less than 1.1 times) is gained.
    """
    times = found.median if isinstance(found, Spread) else found
    verdict = KEPT if times >= claimed else PART if times >= 1.1 else REFUTED
    return f"{verdict}: {reason}" if reason else verdict


def interval(values: Sequence[float], digits: int = 4) -> str:
    """Mean with its sign, and its 95 % confidence interval by Student's t."""
    x = np.asarray(values, float)
    width = stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():+.{digits}f} ± {width:.{digits}f}"


def runs(path: str) -> list[dict[str, Any]]:
    """The kept runs of a study."""
    return [json.loads(line) for line in (ROOT / path).read_text().splitlines()]


def published(page: str, heading: str, row: str) -> list[str]:
    """The cells of the one table row below a heading of a page in ``docs/results`` that begins with
    ``row``.
    """
    text = (ROOT / f"docs/results/{page}.md").read_text()
    section = re.split(rf"^#+ {re.escape(heading)}$", text, flags=re.MULTILINE)[1]
    section = re.split(r"^##", section, flags=re.MULTILINE)[0]
    found = re.findall(rf"^\| {re.escape(row)} \|.*$", section, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"one row of {heading} must begin with {row!r}, got {len(found)}")
    return [cell.strip() for cell in found[0].strip("|").split("|")]
