"""The reversible model: loss beside plain blocks at equal parameters and tokens, what a penalty on
changes of its energy does, and memory and time of its gradient by depth.

    python benchmarks/reversible.py --text topics --text NAME=FILE --out FOLDER [--report]
    python benchmarks/reversible.py --memory

The study is that of ``language_models.py`` on models a quarter as large: the same batches,
optimiser, seeds, and choice of rates on the training text (in half of the updates). *plain, same
parts* has the gate of the reversible block, and a feed-forward layer with as many weights. Arms
with a penalty take the rate of the arm without. A line of ``runs.jsonl`` in the folder is one
training run, and is not made again; of reversible arms it also has, for every block, the root mean
square change of a token's energy in the block (*drift*) and the standard deviation of the energy
over tokens (*spread*), on validation windows. ``--out benchmarks/measured/reversible --report``
prints the tables that are published.

``--memory`` compiles some updates at several depths with the three gradients that
``--reversible.gradient`` offers, and prints the bytes of temporary arrays, the time relative to the
gradient that stores all activations, and the norm of the difference from that.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np

from vfejax.data import batches
from vfejax.models import table
from vfejax.models.reversible.config import ReversibleConfig
from vfejax.models.reversible.model import GRADIENTS
from vfejax.numerics import tree_norm
from vfejax.training.losses import next_token_loss
from vfejax.types import PyTree

RATES = (4e-3, 8e-3, 1.6e-2)
SMALL = {"dim": 128, "hidden": 240}
PENALTIES = (0.1, 1.0, 10.0, 1000.0)
OURS = "reversible, quarter"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    OURS: ("reversible", SMALL),
    "plain, same parts": ("resnet-bk", {"dim": 64, "hidden": 256, "experts": 1}),
    "gpt-modern, quarter": ("gpt-modern", {"dim": 64, "hidden": 178}),
}
PENALISED = {
    f"energy penalty {weight:g}": ("reversible", SMALL | {"energy_penalty": weight})
    for weight in PENALTIES
}
models.ARMS |= ARMS | PENALISED
WINDOWS = 48  # of the validation text, in which energies are measured
DEPTHS = (2, 6, 12)
SYMBOLS = 96
ROUNDS, UPDATES, RATE = 6, 10, 0.1  # of --memory


@cache
def _statistics(argument: str, depth: int) -> Any:
    """Sums of energies of a trained model without penalty, whose weights are the same."""
    config = ReversibleConfig(layers=depth, energy_penalty=1.0, **SMALL)
    size = models.load(argument).corpus.vocabulary.size
    model = table.build("reversible", config, size, models.LENGTH)
    return jax.jit(lambda params, tokens: model.apply(params, tokens, None).statistics)


def energies(params: PyTree, text: models.Text) -> dict[str, list[float]]:
    """Drift and spread of the energy in every block."""
    padding = text.corpus.vocabulary.padding_id
    windows = batches.evaluation_windows(text.corpus.valid.tokens, models.LENGTH, WINDOWS, padding)
    depth = len(params["blocks"]["block"]["step_size"])
    sums = _statistics(text.argument, depth)(params, windows[0, :, :-1])
    mean, square = sums.energy / sums.tokens, sums.squared_energy / sums.tokens
    found = {
        "drift": np.sqrt(sums.squared_change / sums.tokens),
        "spread": np.sqrt(np.maximum(square - mean * mean, 0)),
        "step_size": params["blocks"]["block"]["step_size"],
    }
    rounded = {name: [round(float(x), 5) for x in values] for name, values in found.items()}
    return rounded | {"gradient_error": gradient_error(text, params, depth)}


def _slope(vocab_size: int, depth: int, gradient: str, compute: str = "float32") -> Any:
    """The gradient of the loss, of weights and windows."""
    config = replace(ReversibleConfig(**SMALL), layers=depth, gradient=gradient)
    model = table.build("reversible", config, vocab_size, models.LENGTH, jnp.dtype(compute))
    return jax.grad(lambda params, windows: next_token_loss(model, params, windows)[0])


def _difference(found: PyTree, expected: PyTree) -> float:
    """Norm of the difference of two gradients, relative to that of the second."""
    error = jax.tree.map(jnp.subtract, found, expected)
    return float(tree_norm(error) / tree_norm(expected))


@cache
def _both_gradients(vocab_size: int, depth: int) -> Any:
    kinds = ("reconstruct", "store")
    slopes = [_slope(vocab_size, depth, gradient) for gradient in kinds]
    return jax.jit(lambda params, windows: [slope(params, windows) for slope in slopes])


def gradient_error(text: models.Text, params: PyTree, depth: int) -> float:
    """Of the reconstructing gradient of a trained model on a batch of the training text."""
    windows = batches.Batches(text.corpus.train.tokens, models.BATCH, models.LENGTH, seed=99)
    both = _both_gradients(text.corpus.vocabulary.size, depth)
    return _difference(*both(params, windows.at(0, 1)[0]))


class Study(models.Plan):
    """The plan, in which a rate is tried for half of the updates, and penalised arms take the rate
    of the arm without a penalty.
    """

    def job(self, arm: str, text: models.Text, stage: str, rate: float, seed: int) -> models.Job:
        steps = self.steps if stage == "final" else self.steps // 2
        return super().job(arm, text, stage, rate, seed)._replace(steps=steps)

    def rate(self, arm: str, text: models.Text, results: models.Results) -> float | None:
        return super().rate(OURS if arm in PENALISED else arm, text, results)


class Results(models.Results):
    """Lines that also say what energies of reversible models do."""

    def add(self, job: models.Job, params: PyTree, measured: dict[str, Any]) -> None:
        if models.ARMS[job.arm][0] == "reversible":
            texts = {text.digest: text for text in self.texts}
            measured = measured | energies(params, texts[job.digest])
        super().add(job, params, measured)

    def __init__(self, path: Path | None, texts: list[models.Text]):
        super().__init__(path)
        self.texts = texts


def train_missing(study: Study, results: Results) -> None:
    """Train what is not there."""
    for text, arm in itertools.product(study.texts, study.arms):
        if arm not in PENALISED:
            pairs = itertools.product(study.rates, study.rate_seeds)
            results.run([study.job(arm, text, "rate", *pair) for pair in pairs], text)
        rate = study.rate(arm, text, results)
        if rate is None:
            raise SystemExit(f"{OURS} on {text.name} must be there before {arm}")
        results.run([study.job(arm, text, "final", rate, seed) for seed in study.seeds], text)


def energy_table(study: Study, results: Results) -> Iterator[str]:
    """What the penalty does, Markdown: means over seeds and blocks."""
    yield "| text, penalty | loss | less that without | drift | spread | drift / spread | dt |"
    yield "| --- |" + " ---: |" * 6
    for text in study.texts:
        rate = study.rate(OURS, text, results)
        for arm in [OURS, *PENALISED]:
            rows = [results.find(study.job(arm, text, "final", rate, s)) for s in study.seeds]
            rows = [row for row in rows if row]
            if not rows:
                continue
            ours, without = (study.losses(name, text, results) for name in (arm, OURS))
            mean, half = models.interval([ours[s] - without[s] for s in ours.keys() & without])
            loss, drift, spread, dt = (
                np.mean([row[name] for row in rows])
                for name in ("loss", "drift", "spread", "step_size")
            )
            weight = models.ARMS[arm][1].get("energy_penalty", 0)
            difference = "" if arm == OURS else f"{mean:+.4f} ± {half:.4f}"
            yield (
                f"| {text.name}, {weight:g} | {loss:.4f} | {difference} | {drift:.4f} | "
                f"{spread:.4f} | {drift / spread:.4f} | {dt:.3f} |"
            )


class Measured(NamedTuple):
    """Sum of the gradients of some updates, bytes of temporary arrays, and seconds of all calls."""

    gradient: PyTree
    size: int
    seconds: list[float]


def measure(depth: int, kinds: Sequence[str], compute: str = "float32") -> dict[str, Measured]:
    """Compile updates by gradients that treat activations so, and call them in turns. Several in a
    program, as in training: the memory of a single one would be new to the process at every call.
    """
    config = replace(ReversibleConfig(**SMALL), layers=depth)
    model = table.build("reversible", config, SYMBOLS, models.LENGTH)
    params = jax.jit(model.init)(jax.random.key(0))
    shape = (UPDATES, models.BATCH, models.LENGTH + 1)
    windows = jax.random.randint(jax.random.key(1), shape, 1, SYMBOLS, jnp.int32)
    compiled, found = {}, {}
    for kind in kinds:
        slope = _slope(SYMBOLS, depth, kind, compute)

        def update(carry: Any, batch: jax.Array, slope: Any = slope) -> tuple[Any, None]:
            params, total = carry
            gradient = slope(params, batch)
            params = jax.tree.map(lambda x, g: x - RATE * g, params, gradient)
            return (params, jax.tree.map(jnp.add, total, gradient)), None

        def total(params: PyTree, windows: jax.Array, update: Any = update) -> PyTree:
            zero = jax.tree.map(jnp.zeros_like, params)
            return jax.lax.scan(update, (params, zero), windows)[0][1]

        compiled[kind] = jax.jit(total).lower(params, windows).compile()
        size = compiled[kind].memory_analysis().temp_size_in_bytes
        found[kind] = Measured(compiled[kind](params, windows), size, [])
    for kind in list(kinds) * ROUNDS:
        start = time.perf_counter()
        jax.block_until_ready(compiled[kind](params, windows))
        found[kind].seconds.append(time.perf_counter() - start)
    return found


def memory_table() -> Iterator[str]:
    """Memory, time and error of a gradient by depth, Markdown."""
    yield "| gradient | " + " | ".join(f"{depth} blocks" for depth in DEPTHS) + " |"
    yield "| --- |" + " ---: |" * len(DEPTHS)
    found = {depth: measure(depth, list(GRADIENTS)) for depth in DEPTHS}
    for kind in GRADIENTS:
        cells = []
        for depth in DEPTHS:
            one, plain = found[depth][kind], found[depth]["store"]
            ratio = np.min(one.seconds) / np.min(plain.seconds)
            error = _difference(one.gradient, plain.gradient)
            cells.append(f"{one.size / 2**20:.1f} MiB, {ratio:.2f}x, {error:.1e}")
        yield f"| {kind} | " + " | ".join(cells) + " |"
    half = measure(DEPTHS[-1], ["store", "reconstruct"], "bfloat16")
    error = _difference(half["reconstruct"].gradient, half["store"].gradient)
    own = _difference(half["store"].gradient, found[DEPTHS[-1]]["store"].gradient)
    yield ""
    yield f"bfloat16, {DEPTHS[-1]} blocks: error {error:.1e}, of storing to float32 {own:.1e}"


def parse() -> tuple[Study, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", action="append", help="NAME=FILE, or a bare name for the help topics of Python"
    )
    parser.add_argument("--out", type=Path, help="folder of runs.jsonl")
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *PENALISED])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--steps", type=int, default=400, help=f"a multiple of {4 * models.CHUNK}")
    parser.add_argument("--report", action="store_true", help="print the tables and train nothing")
    parser.add_argument("--memory", action="store_true", help="memory and time by depth, no study")
    options = parser.parse_args()
    if options.steps % (4 * models.CHUNK) or options.steps <= 0:
        parser.error(f"--steps must be a positive multiple of {4 * models.CHUNK}")
    texts = [models.load(argument) for argument in options.text or ["topics"]]
    arms = options.arms or [*ARMS, *PENALISED]
    study = Study(arms, texts, range(options.seeds), options.rates, range(1), options.steps)
    return study, options


def main() -> None:
    """Train what is missing and print the tables."""
    study, options = parse()
    if options.memory:
        print("\n".join(memory_table()))
        return
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    results = Results(options.out / "runs.jsonl" if options.out else None, study.texts)
    if not options.report:
        train_missing(study, results)
    plain = study._replace(arms=[arm for arm in study.arms if arm in ARMS])
    others = [arm for arm in plain.arms if arm != OURS]
    print("\n".join(["", *models.rate_table(plain, results), ""]))
    print("\n".join([*models.loss_table(plain, results), ""]))
    print("\n".join([*models.difference_table(plain, results, OURS, others), ""]))
    print("\n".join(energy_table(study, results)))


if __name__ == "__main__":
    main()
