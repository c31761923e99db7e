"""Adaptive computation and the order of data in training, beside a schedule that decays to 0 in the
same time.

    python benchmarks/adaptive_computation.py --text topics --out FOLDER [--report]

A ResNet-BK of half the width (a quarter of the weights of the default) learns a text. The control
reads random windows with all of its blocks. An arm leaves blocks out at random, more often the
deeper they are, without computing them; has a head after every block; begins with short windows, or
with easy ones; or looks at two windows for each that it reads, and reads those of the highest loss,
or of the highest loss less that of a model that has learned the other half of the text.

*Equal time.* Programs take turns in one process, and the price of an update is the smallest of
several measurements of its processor time. An arm has as many updates as the control pays for, and
its rate decays to 0 in them. What is paid once (the model of the other half, the sorting of
windows) is not counted. *Equal tokens.* As many tokens are learned from as by the control, those
that are only looked at not counted.

Rates come from the same grid for every arm, by the loss on training text at the first seed; twice
the largest is tried too where that is best. A line
of ``runs.jsonl`` is one run; it is not made again. ``--report`` prints the table of what is there.
Weights are kept for ``early_exit.py``.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import adaptive_arms as arms
import jax
import jax.numpy as jnp
import language_models as models
import numpy as np

from vfejax.data import batches
from vfejax.training import evaluate
from vfejax.training import step as steps
from vfejax.training.losses import token_nats
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.types import PyTree, TrainState

RATES = (2e-3, 4e-3, 8e-3)
CHUNK = 20  # updates in one call of a program
ROUNDS = 9  # of the measurement of prices
WINDOWS = {"valid": 720, "train": 240}  # by which a run is judged, and a rate is chosen
EQUAL = ("time", "tokens")
CONTROL = "control"
SAME = (CONTROL, "easy windows first", "short windows first", "a head after every block")  # to 5 %
EXITS = (CONTROL, "a head after every block", "blocks left out, to 0.5")  # weights kept


class Plan(NamedTuple):
    """What was asked for."""

    text: models.Text
    seeds: list[int]
    rates: tuple[float, ...]
    updates: int
    arms: list[str]
    equal: list[str]
    out: Path


@cache
def program(argument: str, kind: str) -> Callable[[TrainState, arms.Inputs], TrainState]:
    """A chunk of updates, compiled for every shape of its inputs."""
    update = arms.update(models.load(argument), kind)

    def advance(state: TrainState, inputs: arms.Inputs) -> TrainState:
        return jax.lax.scan(lambda s, i: (update(s, i), None), state, inputs)[0]

    return jax.jit(advance)


def start(text: models.Text, seed: int) -> TrainState:
    """The state before the first update."""
    key = jax.random.key(seed)
    return jax.jit(steps.trainer(arms.build(text), adamw(0.0), key).init)(key)


def prices(plan: Plan) -> dict[str, float]:
    """Processor seconds of an update by program and length, or number of blocks kept."""
    found = make(plan, {"part": "prices"}, lambda: {"seconds": measured_prices(plan.text)})
    return found["seconds"]


def measured_prices(text: models.Text) -> dict[str, float]:
    """Programs take turns; the smallest measurement of each."""
    state, rates = start(text, 0), np.full(CHUNK, 1e-3, np.float32)
    known = np.zeros(len(text.corpus.train.tokens))
    calls = {}
    for arm in arms.ARMS.values():
        kind = arms.kind(arm)
        for _, length in arm.lengths:
            inputs = next(arms.chunks(text, arm, length, 0, rates, CHUNK, known, 0, CHUNK))
            counts = range(1, arms.LAYERS + 1) if kind == arms.SHALLOW else [0]
            for count in counts:
                chosen = inputs._replace(kept=np.full_like(inputs.kept, count or arms.LAYERS))
                name = f"{kind} {count or length}"
                calls[name] = partial(program(text.argument, kind), state, chosen)
    return in_turns(calls, CHUNK)


def in_turns(calls: dict[str, Callable[[], Any]], units: int) -> dict[str, float]:
    """Processor seconds for one of the units of a call, the smallest of measurements that take
    turns.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.process_time()
            jax.block_until_ready(call())
            seconds[name].append((time.process_time() - began) / units)
    return {name: min(values) for name, values in seconds.items()}


def price(known: dict[str, float], arm: arms.Arm, length: int = arms.LENGTH) -> float:
    """Expected seconds of an update of an arm."""
    kind = arms.kind(arm)
    if kind != arms.SHALLOW:
        return known[f"{kind} {length}"]
    shares = arms.counts(arm.drop)
    return sum(share * known[f"{kind} {n}"] for n, share in enumerate(shares, 1))


def phases(plan: Plan, name: str, equal: str) -> list[tuple[int, int]]:
    """Lengths of windows, and how many updates have each; all but the last are whole chunks."""
    arm, known = arms.ARMS[name], prices(plan)
    control = price(known, arms.ARMS[CONTROL]) if equal == "time" else arms.LENGTH
    found, left = [], plan.updates * control
    for share, length in arm.lengths[:-1]:
        paid = price(known, arm, length) if equal == "time" else length
        count = CHUNK * round(share * plan.updates * control / paid / CHUNK)
        found.append((length, count))
        left -= count * paid
    length = arm.lengths[-1][1]
    paid = price(known, arm, length) if equal == "time" else length
    return [*found, (length, round(left / paid))]


def learned(plan: Plan, name: str, seed: int, rate: float, equal: str) -> tuple[PyTree, dict]:
    """Weights after training, and how many updates of what price they took."""
    text, arm, parts = plan.text, arms.ARMS[name], phases(plan, name, equal)
    total = sum(count for _, count in parts)
    known = other_half(plan) if arm.score == "reducible" else np.zeros(0)
    return trained(text, arm, parts, seed, rate, known), {"updates": total}


def trained(
    text: models.Text, arm: arms.Arm, parts: list[tuple[int, int]], seed: int, rate: float,
    known: np.ndarray,
) -> PyTree:  # fmt: skip
    """Weights after updates whose rate rises for a tenth of them, and falls to 0."""
    total = sum(count for _, count in parts)
    schedule = warmup_cosine(rate, total // 10, total, 0.0)
    rates = np.asarray(schedule(jnp.arange(total)), np.float32)
    state, first = start(text, seed), 0
    for length, count in parts:
        made = arms.chunks(text, arm, length, seed, rates, CHUNK, known, first, first + count)
        for inputs in made:
            state = program(text.argument, arms.kind(arm))(state, inputs)
        first += count
    return jax.block_until_ready(state.params)


@cache
def judge(argument: str) -> Callable[[PyTree, np.ndarray], evaluate.EvaluationSums]:
    """The evaluation, compiled."""
    text = models.load(argument)
    padding = text.corpus.vocabulary.padding_id
    return jax.jit(partial(evaluate.evaluate, arms.build(text), padding=padding))


def losses(text: models.Text, params: PyTree) -> dict[str, float]:
    """Nats per character of validation text, and of training text."""
    found = {}
    for name, limit in WINDOWS.items():
        tokens = getattr(text.corpus, name).tokens
        padding = text.corpus.vocabulary.padding_id
        windows = batches.evaluation_windows(tokens, arms.LENGTH, 48, padding, limit)
        sums = judge(text.argument)(params, windows)
        found[name] = float(sums.nats) / int(sums.num_tokens)
    return {"loss": found["valid"], "training_loss": found["train"]}


def other_half(plan: Plan) -> np.ndarray:
    """Nats of each token of the training text by a model that has learned the other half of it."""
    path = plan.out / f"{plan.text.name}-{plan.updates}-other-half.npy"
    if path.exists():
        return np.load(path)
    text, tokens = plan.text, plan.text.corpus.train.tokens
    model, middle = arms.build(text), len(tokens) // 2
    padding = text.corpus.vocabulary.padding_id

    @jax.jit
    def nats(params: PyTree, windows: jax.Array) -> jax.Array:
        return token_nats(model.apply(params, windows[:, :-1], None).logits, windows[:, 1:])[0]

    found = np.zeros(len(tokens))
    for own, other in (
        (slice(0, middle), slice(middle, None)),
        (slice(middle, None), slice(middle)),
    ):
        train = text.corpus.train._replace(tokens=tokens[other])
        half = text._replace(corpus=text.corpus._replace(train=train))
        parts = [(arms.LENGTH, plan.updates)]
        params = trained(half, arms.ARMS[CONTROL], parts, 0, RATES[1], np.zeros(0))
        windows = batches.evaluation_windows(tokens[own], arms.LENGTH, 240, padding)
        each = np.concatenate([np.asarray(nats(params, w)).ravel() for w in windows])
        size = len(tokens[own])
        found[own] = np.append(0.0, each[: size - 1])
    np.save(path, found)
    return found


def results(plan: Plan) -> dict[str, dict[str, Any]]:
    """All lines, by their jobs."""
    path = plan.out / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {json.dumps(row["job"], sort_keys=True): row for row in map(json.loads, lines)}


def make(plan: Plan, job: dict[str, Any], found_fn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The line of a job, made if it is not there."""
    job = job | {"text": plan.text.name, "digest": plan.text.digest}
    known = results(plan).get(json.dumps(job, sort_keys=True))
    if known is not None:
        return known
    row = {"job": job, **found_fn()}
    with (plan.out / "runs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    return row


def job_of(plan: Plan, name: str, seed: int, rate: float, equal: str) -> dict[str, Any]:
    """What decides the outcome of a run, the text and the prices aside."""
    job = {"part": "learning", "arm": name, "seed": seed, "rate": rate}
    return job | {"equal": equal, "updates": plan.updates}


def weights_file(out: Path, text: str, name: str, seed: int, rate: float) -> Path:
    """Where the weights of a run at equal time are kept."""
    words = [text, *name.replace(",", "").split(), str(seed), f"{rate:g}"]
    return out / "weights" / f"{'-'.join(words)}.npz"


def run(plan: Plan, name: str, seed: int, rate: float, equal: str = "time") -> dict[str, Any]:
    """One run, if its line is not there."""

    def found() -> dict[str, Any]:
        params, row = learned(plan, name, seed, rate, equal)
        if equal == "time" and name in EXITS:
            path = weights_file(plan.out, plan.text.name, name, seed, rate)
            models.save_weights(path, params)
        return losses(plan.text, params) | row

    return make(plan, job_of(plan, name, seed, rate, equal), found)


def line_of(plan: Plan, name: str, seed: int, rate: float, equal: str) -> dict[str, Any] | None:
    """The line of a run, if it is there."""
    job = job_of(plan, name, seed, rate, equal)
    job |= {"text": plan.text.name, "digest": plan.text.digest}
    return results(plan).get(json.dumps(job, sort_keys=True))


def tried(plan: Plan, name: str) -> dict[float, float]:
    """Losses on training text of the first seed, by rate."""
    own = job_of(plan, name, plan.seeds[0], 0.0, "time")
    own |= {"text": plan.text.name, "digest": plan.text.digest}
    rows = [r for r in results(plan).values() if r["job"] | {"rate": 0.0} == own]
    return {row["job"]["rate"]: row["training_loss"] for row in rows}


def best_rate(plan: Plan, name: str) -> float | None:
    """The rate with the smallest loss of those that were tried; None before the grid is there."""
    found = tried(plan, name)
    if not found.keys() >= set(plan.rates):
        return None
    return min(found, key=lambda rate: math.inf if math.isnan(found[rate]) else found[rate])


def missing(plan: Plan) -> None:
    """Make every run that is not there."""
    for name, rate in itertools.product(plan.arms, plan.rates):
        run(plan, name, plan.seeds[0], rate)
    for name in plan.arms:
        while (rate := best_rate(plan, name)) == max(tried(plan, name)):
            run(plan, name, plan.seeds[0], 2 * rate)
    for equal, seed, name in itertools.product(plan.equal, plan.seeds, plan.arms):
        rate = best_rate(plan, name)
        assert rate is not None  # the first seed has made it
        if equal == "time" or name not in SAME:
            run(plan, name, seed, rate, equal)


def report(plan: Plan) -> Iterator[str]:
    """Losses at equal time and at equal tokens, and what an update costs."""
    yield (
        "| arm | rate | price of an update | updates | loss at equal time | less control | updates "
        "| loss at equal tokens | less control |"
    )
    yield "| --- |" + " ---: |" * 8
    known = prices(plan)
    base = price(known, arms.ARMS[CONTROL])
    for name in plan.arms:
        rate = best_rate(plan, name)
        if rate is None:
            continue
        arm = arms.ARMS[name]
        paid = [f"{price(known, arm, n) / base:.2f}" for _, n in arm.lengths]
        cells = [name, f"{rate:g}", ", ".join(paid)]
        for equal in EQUAL:
            cells += _cells(plan, name, rate, equal)
        yield f"| {' | '.join(cells)} |"


def _cells(plan: Plan, name: str, rate: float, equal: str) -> list[str]:
    """Updates, loss, and the difference to the control, seed by seed."""
    rows = [line_of(plan, name, seed, rate, equal) for seed in plan.seeds]
    first = best_rate(plan, CONTROL)
    if not any(rows) or first is None:
        return [""] * 3
    pairs = [
        (row["loss"], base["loss"])
        for seed, row in zip(plan.seeds, rows, strict=True)
        if row and (base := line_of(plan, CONTROL, seed, first, "time"))
    ]
    loss, less = models.interval([a for a, _ in pairs]), models.interval([a - b for a, b in pairs])
    return [
        str(next(row["updates"] for row in rows if row)),
        _cell(*loss, ""),
        "" if name == CONTROL else _cell(*less, "+"),
    ]


def _cell(mean: float, half: float, sign: str) -> str:
    return f"{mean:{sign}.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="topics", help="NAME=FILE, or a bare name for topics")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive"))
    parser.add_argument("--arms", nargs="+", choices=arms.ARMS, default=list(arms.ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--equal", nargs="+", choices=EQUAL, default=EQUAL)
    parser.add_argument("--report", action="store_true", help="show what is there, make nothing")
    options = parser.parse_args(arguments)
    text = models.load(options.text)
    plan = Plan(
        text, options.seeds, tuple(options.rates), options.updates, options.arms, options.equal,
        options.out,
    )  # fmt: skip
    if not options.report:
        plan.out.mkdir(parents=True, exist_ok=True)
        missing(plan)
    print("\n".join(report(plan)))


if __name__ == "__main__":
    main()
