"""Language models at equal parameters and tokens: losses over seeds and texts, with the intervals
of their differences.

    python benchmarks/language_models.py --text shakespeare=FILE --text topics --results FILE.jsonl

Every model reads the same batches (12 windows of 64 characters) with the same optimiser (AdamW,
warm-up 100 steps, cosine to a tenth, decay 0.1, clip 1, beta2 0.99). The last tenth of every text
is for validation. Learning rates are chosen without it: each model trains on the first nine tenths
of the training text at every rate of the same grid, for a quarter of the steps, and keeps the rate
whose loss on the last tenth of the training text is smallest. It then trains on the whole training
text from several seeds; a seed stands for the same batches in every model, so differences are taken
seed by seed. The loss is over every character of the validation text.

Every training run that ends is a line of --results, and one that is there already is not run again:
the table can be made in pieces, and a run that is interrupted is repeated from its start. The table
is printed from all lines whose text, model and steps are those asked for. On a GPU models of this
size leave most of the device idle: --lanes 12 trains up to 12 runs of a model side by side, in one
program. Weights are kept when a run ends, not for lines that are there already. Speeds are measured
by ``language_model_training.py`` and ``language_model_decoding.py``, which need a quiet machine;
this script may share one.
"""

import argparse
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from vfejax.data import batches, corpus
from vfejax.models import table
from vfejax.training.evaluate import EvaluationSums, evaluate
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer
from vfejax.types import PyTree, SequenceModel, Trainer, TrainState

LENGTH, BATCH, CHUNK = 64, 12, 50
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
QUANTILE = 0.975  # of Student's t: two-sided intervals of 95 %

# Rows of the table: the model's name and the options that are not its defaults. Hidden widths make
# the numbers of parameters equal to about half a percent.
ALONE = {"convolution": 1}
ONE_EXPERT = {"experts": 1, "hidden": 512, **ALONE}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-modern": ("gpt-modern", {}),
    "transformer": ("transformer", {}),
    "gate": ("resnet-bk", {"mixer": "gate", **ALONE}),
    "gate, convolution": ("resnet-bk", {}),
    "tridiagonal": ("resnet-bk", {"mixer": "tridiagonal", **ALONE, "hidden": 126}),
    "tridiagonal, convolution": ("resnet-bk", {"mixer": "tridiagonal", "hidden": 126}),
    "tridiagonal, convolution, coupling 1": (
        "resnet-bk",
        {"mixer": "tridiagonal", "hidden": 126, "coupling": 1.0},
    ),
    "operator": ("resnet-bk", {"mixer": "operator", **ALONE}),
    "features": ("resnet-bk", {"mixer": "features", **ALONE, "heads": 64, "hidden": 160}),
    "rg-lru": ("resnet-bk", {"mixer": "rg-lru", **ALONE, "hidden": 144}),
    "gate, one expert": ("resnet-bk", {"mixer": "gate", **ONE_EXPERT}),
    "tridiagonal, one expert": ("resnet-bk", {"mixer": "tridiagonal", **ONE_EXPERT, "hidden": 504}),
    "operator, one expert": ("resnet-bk", {"mixer": "operator", **ONE_EXPERT}),
}
# Every model that has no row yet, with its defaults.
ARMS |= {name: (name, {}) for name in table.MODELS.keys() - {name for name, _ in ARMS.values()}}


class Text(NamedTuple):
    """A corpus, the argument that it was loaded by, and what identifies it in the results."""

    argument: str
    name: str
    digest: str
    corpus: corpus.Corpus


class Job(NamedTuple):
    """One training run: ``options`` are all of the model's, and ``stage`` is ``rate`` (on part of
    the training text) or ``final``.
    """

    arm: str
    options: dict[str, Any]
    text: str
    digest: str
    stage: str
    rate: float
    seed: int
    steps: int


@cache
def load(argument: str) -> Text:
    """The text of ``NAME=FILE``, or the help topics of the running Python for a bare name."""
    name, _, path = argument.partition("=")
    loaded = corpus.load_text(Path(path) if path else None, "character", length=LENGTH)
    digest = hashlib.sha256()
    for split in (loaded.train, loaded.valid):
        digest.update(split.tokens.tobytes())
    return Text(argument, name, digest.hexdigest()[:16], loaded)


def config_of(arm: str) -> Any:
    """The options of one row."""
    name, options = ARMS[arm]
    return table.MODELS[name].config(**options)


def model_of(arm: str, text: Text, length: int = LENGTH) -> SequenceModel:
    """The model of one row, for the characters of one text."""
    size = text.corpus.vocabulary.size
    counts = np.bincount(text.corpus.train.tokens, minlength=size)
    return table.build(ARMS[arm][0], config_of(arm), size, length, counts=counts)


class Programs(NamedTuple):
    """Start, a chunk of updates at a given rate, and evaluation, compiled. States, batches, rates
    and keys have an axis of lanes in front: runs that share nothing but the program.
    """

    init: Callable[[jax.Array], TrainState]
    advance: Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, jax.Array]]
    evaluate: Callable[[PyTree, np.ndarray], EvaluationSums]


def over_lanes(function: Callable, lanes: int) -> Callable:
    """``function`` for every lane; a single one costs no batched products."""
    if lanes > 1:
        return jax.vmap(function)

    def alone(*arguments: PyTree) -> PyTree:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    return alone


@cache
def programs(arm: str, argument: str, steps: int, lanes: int) -> Programs:
    """The programs of one model and text, shared by all rates and seeds."""
    text = load(argument)
    model, padding = model_of(arm, text), text.corpus.vocabulary.padding_id

    def method(rate: Any) -> Trainer:
        schedule, key = warmup_cosine(rate, 100, steps, 0.1), jax.random.key(1)
        own = table.MODELS[ARMS[arm][0]].trainer
        if own is not None:
            return own(model, config_of(arm), schedule, key)
        return trainer(model, adamw(schedule), key, padding=padding)

    def advance(
        state: TrainState, windows: jax.Array, rate: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        state, infos = jax.lax.scan(method(rate).step, state, windows)
        return state, infos.parts.cross_entropy.mean()

    def sums(params: PyTree, windows: jax.Array) -> EvaluationSums:
        one = partial(evaluate, model, windows=windows, padding=padding)
        return over_lanes(one, lanes)(params)

    return Programs(
        jax.jit(over_lanes(method(1.0).init, lanes)),
        jax.jit(over_lanes(advance, lanes), donate_argnums=0),
        jax.jit(sums),
    )


def train(jobs: list[Job], text: Text) -> Iterator[tuple[PyTree, dict[str, Any]]]:
    """Train runs of one model, text and stage side by side: for each, its weights and what becomes
    of it in the results.
    """
    arm, stage, steps = jobs[0].arm, jobs[0].stage, jobs[0].steps
    run = programs(arm, text.argument, steps, len(jobs))
    tokens, held_out = text.corpus.train.tokens, text.corpus.valid.tokens
    if stage == "rate":
        cut = len(tokens) * 9 // 10
        tokens, held_out = tokens[:cut], tokens[cut:]
    start = time.perf_counter()
    state = run.init(jnp.stack([jax.random.key(job.seed) for job in jobs]))
    samplers = [batches.Batches(tokens, BATCH, LENGTH, seed=job.seed) for job in jobs]
    rates, losses = np.asarray([job.rate for job in jobs], np.float32), []
    for step in range(0, steps, CHUNK):
        windows = np.stack([sampler.at(step, CHUNK) for sampler in samplers])
        state, loss = run.advance(state, windows, rates)
        losses.append(np.asarray(loss))
    padding = text.corpus.vocabulary.padding_id
    windows = batches.evaluation_windows(held_out, LENGTH, 4 * BATCH, padding)
    sums = run.evaluate(state.params, windows)
    found = np.asarray(sums.nats) / np.asarray(sums.num_tokens)
    for lane in range(len(jobs)):
        params = jax.tree.map(lambda x: x[lane], state.params)  # noqa: B023
        yield (
            params,
            {
                "loss": float(found[lane]),
                "parameters": sum(x.size for x in jax.tree.leaves(params)),
                "training": [round(float(loss[lane]), 5) for loss in losses],
                "seconds": round(time.perf_counter() - start),
                "lanes": len(jobs),
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
            },
        )


def weights_file(folder: Path, text: str, arm: str, seed: int, steps: int) -> Path:
    """Where the weights of a run are kept."""
    words = [text, *arm.replace(",", "").split(), str(seed), f"{steps}-steps"]
    return folder / f"{'-'.join(words)}.npz"


def save_weights(path: Path, params: PyTree) -> None:
    """Write a nested dict of arrays, by the names on the way to each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    np.savez(path, **{"/".join(key.key for key in keys): leaf for keys, leaf in leaves})


class Results:
    """A file with one line per finished run; without a file they are kept in memory. Weights of
    final runs go to a folder of their own, if there is one.
    """

    def __init__(self, path: Path | None, weights: Path | None = None):
        self.path, self.weights, self.rows = path, weights, {}
        lines = path.read_text().splitlines() if path and path.exists() else []
        for row in map(json.loads, lines):
            self.rows[json.dumps(row["job"], sort_keys=True)] = row

    def find(self, job: Job) -> dict[str, Any] | None:
        return self.rows.get(json.dumps(job._asdict(), sort_keys=True))

    def run(self, jobs: list[Job], text: Text, lanes: int = 1) -> None:
        """Run those that are missing: all of one model, text and stage."""
        missing = [job for job in jobs if not self.find(job)]
        for first in range(0, len(missing), lanes):
            together = missing[first : first + lanes]
            for job, (params, measured) in zip(together, train(together, text), strict=True):
                self.add(job, params, measured)

    def add(self, job: Job, params: PyTree, measured: dict[str, Any]) -> None:
        row = json.loads(json.dumps({"job": job._asdict(), **measured}))
        if self.weights and job.stage == "final":
            place = weights_file(self.weights, job.text, job.arm, job.seed, job.steps)
            save_weights(place, params)
        self.rows[json.dumps(job._asdict(), sort_keys=True)] = row
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        about = f"{job.text}, {job.arm}, {job.stage}, rate {job.rate:g}, seed {job.seed}"
        print(f"{about}: loss {row['loss']:.4f} in {row['seconds']} s", flush=True)


def smallest(losses: dict[float, float]) -> float:
    """The rate whose loss is smallest; one that diverged is never it."""
    return min(losses, key=lambda rate: math.inf if math.isnan(losses[rate]) else losses[rate])


class Plan(NamedTuple):
    """What was asked for. ``outward``: a row whose best rate is at an end of the grid tries the
    next one outwards, a factor of two away, until it is not.
    """

    arms: list[str]
    texts: list[Text]
    seeds: range
    rates: list[float]
    rate_seeds: range
    steps: int
    outward: bool = False

    def job(self, arm: str, text: Text, stage: str, rate: float, seed: int) -> Job:
        steps = self.steps if stage == "final" else self.steps // 4
        return Job(arm, asdict(config_of(arm)), text.name, text.digest, stage, rate, seed, steps)

    def tried(self, arm: str, text: Text, results: Results) -> dict[float, float | None]:
        """Mean loss on the held-out part of the training text by rate, in order; None where it is
        still to be found.
        """
        losses = {rate: self.rate_loss(arm, text, rate, results) for rate in sorted(self.rates)}
        while self.outward and None not in losses.values():
            best, lowest, highest = smallest(losses), min(losses), max(losses)
            if lowest < best < highest or math.isnan(losses[best]):
                break
            further = 2 * highest if best == highest else lowest / 2
            losses[further] = self.rate_loss(arm, text, further, results)
        return dict(sorted(losses.items()))

    def rate(self, arm: str, text: Text, results: Results) -> float | None:
        """The rate with the smallest mean loss on the held-out part of the training text, once all
        are there.
        """
        losses = self.tried(arm, text, results)
        return None if None in losses.values() else smallest(losses)

    def rate_loss(self, arm: str, text: Text, rate: float, results: Results) -> float | None:
        """Mean loss at one rate over the seeds that choose it, once all are there."""
        rows = [results.find(self.job(arm, text, "rate", rate, s)) for s in self.rate_seeds]
        return float(np.mean([row["loss"] for row in rows if row])) if all(rows) else None

    def losses(self, arm: str, text: Text, results: Results) -> dict[int, float]:
        """Validation loss by seed, as far as they are there."""
        rate = self.rate(arm, text, results)
        if rate is None:
            return {}
        rows = {s: results.find(self.job(arm, text, "final", rate, s)) for s in self.seeds}
        return {seed: row["loss"] for seed, row in rows.items() if row}


def interval(values: ArrayLike, groups: int = 1) -> tuple[float, float]:
    """Mean of the values, and half the width of its 95 % confidence interval by Student's t.

    With ``groups`` of equal size (texts), the variance is that within the groups.
    """
    parts = np.reshape(np.asarray(values), (groups, -1))
    freedom = parts.size - groups
    if freedom < 1:
        return float(np.mean(parts)), math.nan
    variance = np.sum((parts - parts.mean(axis=1, keepdims=True)) ** 2) / freedom
    return float(np.mean(parts)), t.ppf(QUANTILE, freedom) * float(np.sqrt(variance / parts.size))


def _cell(mean: float, half: float, sign: str = "+") -> str:
    return f"{mean:{sign}.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def rate_table(plan: Plan, results: Results) -> Iterator[str]:
    """Losses on the held-out part of the training text by learning rate, Markdown."""
    rows = {
        f"{text.name}, {arm}": plan.tried(arm, text, results)
        for text in plan.texts
        for arm in plan.arms
    }
    rates = sorted(set().union(*rows.values()))
    yield "| text, model | " + " | ".join(f"{rate:g}" for rate in rates) + " |"
    yield "| --- |" + " ---: |" * len(rates)
    for name, losses in rows.items():
        if any(losses.values()):
            cells = [f"{losses[rate]:.4f}" if losses.get(rate) else "" for rate in rates]
            yield f"| {name} | " + " | ".join(cells) + " |"


def loss_table(plan: Plan, results: Results) -> Iterator[str]:
    """Mean losses of every row, Markdown; numbers of parameters are those for the first text."""
    names, first = [text.name for text in plan.texts], plan.texts[0].name
    yield "| model | parameters | " + " | ".join(f"{name} (rate, seeds)" for name in names) + " |"
    yield "| --- | ---: |" + " ---: |" * len(names)
    for arm in plan.arms:
        cells = []
        for text in plan.texts:
            losses = plan.losses(arm, text, results)
            rate = plan.rate(arm, text, results)
            mean = np.mean(list(losses.values())) if losses else math.nan
            cells.append(f"{mean:.4f} ({rate:g}, {len(losses)})" if losses else "")
        options = json.loads(json.dumps(asdict(config_of(arm))))
        sizes = [
            row["parameters"]
            for row in results.rows.values()
            if row["job"]["options"] == options and row["job"]["text"] == first
        ]
        yield f"| {arm} | {sizes[0] if sizes else 0:,} | " + " | ".join(cells) + " |"


def difference_table(
    plan: Plan, results: Results, first: str, references: list[str]
) -> Iterator[str]:
    """Paired differences of one row to others, with 95 % confidence intervals, Markdown."""
    names = [text.name for text in plan.texts]
    yield f"| {first} less | " + " | ".join(names) + " | all texts |"
    yield "| --- |" + " ---: |" * (len(names) + 1)
    for arm in references:
        cells, pooled = [], []
        for text in plan.texts:
            ours, theirs = (plan.losses(a, text, results) for a in (first, arm))
            shared = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
            cells.append(f"{_cell(*interval(shared))} ({len(shared)})" if shared else "")
            pooled.append(shared)
        complete = all(len(d) == len(plan.seeds) for d in pooled)
        cells.append(_cell(*interval(np.ravel(pooled), len(names))) if complete else "")
        yield f"| {arm} | " + " | ".join(cells) + " |"


def parse() -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", action="append", help="NAME=FILE, or a bare name for the help topics of Python"
    )
    parser.add_argument("--results", type=Path, help="file of JSON lines to read and append to")
    parser.add_argument("--weights", type=Path, help="folder for the weights of final runs")
    arms = ["gpt-modern", "gate", "gate, convolution"]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--outward", action="store_true", help="go on beyond the ends of the grid")
    parser.add_argument("--rate-seeds", type=int, default=1, help="seeds per rate tried")
    parser.add_argument("--lanes", type=int, default=1, help="runs trained side by side")
    parser.add_argument("--steps", type=int, default=2000, help=f"a multiple of {4 * CHUNK}")
    parser.add_argument("--stage", choices=("rate", "final", "table"), default="final")
    parser.add_argument("--difference", choices=ARMS, default="gate, convolution")
    options = parser.parse_args()
    if options.steps % (4 * CHUNK) or options.steps <= 0:
        parser.error(f"--steps must be a positive multiple of {4 * CHUNK}, got {options.steps}")
    for name in ("seeds", "rate_seeds", "lanes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.difference not in options.arms:
        parser.error(f"--difference {options.difference!r} is not among --arms")
    texts = [load(argument) for argument in options.text or ["topics"]]
    seeds, rate_seeds = range(options.seeds), range(options.rate_seeds)
    asked = (options.rates, rate_seeds, options.steps, options.outward)
    return Plan(options.arms, texts, seeds, *asked), options


def train_missing(plan: Plan, results: Results, lanes: int = 1, *, final: bool = True) -> None:
    """Train what is asked for and not there: the rates tried and, unless that is all, the final
    runs at the rates chosen.
    """
    for text in plan.texts:
        for arm in plan.arms:
            while (chosen := plan.rate(arm, text, results)) is None:
                pairs = itertools.product(plan.tried(arm, text, results), plan.rate_seeds)
                jobs = [plan.job(arm, text, "rate", rate, seed) for rate, seed in pairs]
                results.run(jobs, text, lanes)
            if final:
                jobs = [plan.job(arm, text, "final", chosen, seed) for seed in plan.seeds]
                results.run(jobs, text, lanes)


def main() -> None:
    """Train what is missing and print the tables."""
    plan, options = parse()
    results = Results(options.results, options.weights)
    if options.stage != "table":
        train_missing(plan, results, options.lanes, final=options.stage == "final")
    references = [arm for arm in plan.arms if arm != options.difference]
    print("\n".join(["", *rate_table(plan, results), ""]))
    print("\n".join([*loss_table(plan, results), ""]))
    print("\n".join(difference_table(plan, results, options.difference, references)))


if __name__ == "__main__":
    main()
