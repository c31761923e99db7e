"""Early exit in decoding, one sequence at a time: a token leaves the stack of blocks once the head
is sure enough.

    python benchmarks/early_exit.py --runs FOLDER --text topics [--teachers FOLDER] [--report]

After a block the shared norm and head read the stream, or an affine map of it that was fitted to
training text; where their largest probability reaches a threshold, the remaining blocks are not
run. Their mixers may *go on*: they read the stream of the exit, so that what they remember knows of
the token; experts, gates and what mixers write are not computed. Or their memory *stands still*.

The threshold is the smallest of a grid at which the loss on the first half of the validation text
rises by at most 1 %; loss, blocks run and time are those of the second half. Time is processor time
for a token of one sequence, read one after the other by a compiled loop with real branches; loops
take turns, and the smallest of several measurements counts. The baseline is the fastest of three
that run all blocks: the package's decoding, the same loop without branches, and the same loop with
branches that ask no head and that no token takes (a CPU may run a program in pieces faster).

Models are those that ``adaptive_computation.py`` left in ``--runs``, and the default ones of
``model_compression.py --teachers``.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import adaptive_arms as arms
import adaptive_computation as training
import jax
import jax.numpy as jnp
import language_models as models
import numpy as np
from early_exit_decoding import ANY, BASELINES, FITTING, LAYERS, WAYS, Maps, Programs, Way, programs
from language_model_decoding import read_weights

from vfejax import runs
from vfejax.data import batches
from vfejax.types import PyTree

ROWS, TOKENS = 128, 128  # of text by which losses are judged, in each half
PIECES, PIECE = 8, 64  # of the second half, one after the other, by which decoding is timed
ALLOWED = 1.01  # loss over that with all blocks
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
TEACHER = "default of vfejax train"


def halves(text: models.Text) -> list[np.ndarray]:
    """Rows of the two halves of the validation text."""
    tokens = text.corpus.valid.tokens
    middle = len(tokens) // 2
    found = []
    for part in (tokens[:middle], tokens[middle:]):
        length = min(TOKENS, len(part) // ROWS - 1)
        starts = np.arange(ROWS) * (len(part) // ROWS)
        found.append(part[starts[:, None] + np.arange(length + 1)])
    return found


def thresholds_of(way: Way, threshold: float) -> np.ndarray:
    """The threshold after each block that has an exit; elsewhere one that nothing reaches."""
    return np.asarray([threshold if n in way.exits else 2.0 for n in ANY], np.float32)


def calibrated(loss_fn: Callable[[float], float], most: float) -> float:
    """The smallest threshold of the grid whose loss is at most ``most``; 2 where none is."""
    low, high = 0, len(GRID)
    while low < high:
        middle = (low + high) // 2
        if loss_fn(GRID[middle]) <= most:
            high = middle
        else:
            low = middle + 1
    return GRID[low] if low < len(GRID) else 2.0


def found_with(text: models.Text, params: PyTree, small: bool, seed: int) -> dict[str, Any]:
    """Losses, blocks and times of every way of one model."""
    run = programs(text.argument, small)
    sampler = batches.Batches(text.corpus.train.tokens, arms.BATCH, arms.LENGTH, seed=seed + 10_000)
    fitted = run.fit(params, sampler.at(0, FITTING[0]))
    none = jax.tree.map(jnp.zeros_like, fitted)
    first, second = halves(text)
    never = np.full(LAYERS - 1, 2.0, np.float32)
    whole = [float(run.judge[True](params, none, never, half)[0]) for half in (first, second)]
    row = second[:: ROWS // PIECES, :PIECE].ravel()
    calls = {name: partial(run.read[name], params, none, never, row) for name in BASELINES}
    calls["package"] = partial(run.package, params, row)
    found: dict[str, Any] = {}
    for name, way in WAYS.items():
        maps, judge = fitted if way.fitted else none, run.judge[way.goes_on]

        def loss(threshold: float, way: Way = way, maps: Maps = maps, judge: Any = judge) -> float:
            return float(judge(params, maps, thresholds_of(way, threshold), first)[0])

        threshold = calibrated(loss, ALLOWED * whole[0])
        nats, blocks = judge(params, maps, thresholds_of(way, threshold), second)
        found[name] = {"threshold": threshold, "loss": float(nats), "blocks": float(blocks)}
        calls[name] = partial(run.read[name], params, maps, thresholds_of(way, threshold), row)
        found[name]["blocks_timed"] = float(calls[name]()[1])
    heads = _heads(run, params, none, fitted, second)
    seconds = training.in_turns(calls, PIECES * PIECE)  # for a token
    return {"loss": whole[1], "ways": found, "seconds": seconds, "heads": heads}


def _heads(
    run: Programs, params: PyTree, none: Maps, fitted: Maps, text: np.ndarray
) -> dict[str, list[float]]:
    """Loss when every token leaves after block 1, 2, ..., by the shared head and the fitted one."""
    found = {}
    for name, maps in (("shared", none), ("fitted", fitted)):
        always = [np.where(np.asarray(ANY) == n, 0.0, 2.0).astype(np.float32) for n in ANY]
        found[name] = [float(run.judge[True](params, maps, at, text)[0]) for at in always]
    return found


def weights(plan: training.Plan, teachers: Path | None, name: str, seed: int) -> PyTree | None:
    """Those of a model, if they are there."""
    if name == TEACHER:
        path = teachers / f"{plan.text.name}-{seed}-teacher.safetensors" if teachers else None
        return runs.load(path).params if path and path.exists() else None
    rate = training.best_rate(plan, name)
    if rate is None:
        return None
    path = training.weights_file(plan.out, plan.text.name, name, seed, rate)
    return read_weights(path) if path.exists() else None


def job_of(plan: training.Plan, name: str, seed: int) -> dict[str, Any]:
    """What decides the outcome of a run, its text aside."""
    return {"part": "exits", "model": name, "seed": seed}


def missing(plan: training.Plan, teachers: Path | None) -> None:
    """Make every line that is not there and whose weights are."""
    for seed in plan.seeds:
        for name in (*training.EXITS, TEACHER):
            params = weights(plan, teachers, name, seed)
            if params is not None:
                small = name != TEACHER
                training.make(
                    plan,
                    job_of(plan, name, seed),
                    partial(found_with, plan.text, params, small, seed),
                )


def rows_of(plan: training.Plan, model: str) -> list[dict[str, Any]]:
    """Lines of a model, by seed."""
    known = training.results(plan)
    text = {"text": plan.text.name, "digest": plan.text.digest}
    jobs = [json.dumps(job_of(plan, model, s) | text, sort_keys=True) for s in plan.seeds]
    return [known[job] for job in jobs if job in known]


def report(plan: training.Plan) -> Iterator[str]:
    """Each way of each model, and the loss where every token leaves after the same block; means
    over seeds.
    """
    yield (
        "| model | exit | seeds | thresholds | blocks run of 4 (timed) | loss to all blocks | to "
        "control | tokens/s with all blocks | with exits | times as fast |"
    )
    yield "| --- | --- |" + " ---: |" * 8
    found = {model: rows_of(plan, model) for model in (*training.EXITS, TEACHER)}
    for model, rows in found.items():
        base = rows if model == TEACHER else found[training.CONTROL]
        losses = {row["job"]["seed"]: row["loss"] for row in base}
        for name in WAYS if rows else ():
            cells = _cells(rows, name, losses)
            yield f"| {model} | {name} | {len(rows)} | {' | '.join(cells)} |"
    yield ""
    yield "| loss where all tokens leave after block | head | 1 | 2 | 3 | 4 |"
    yield "| --- | --- |" + " ---: |" * LAYERS
    for model, rows in found.items():
        for head in ("shared", "fitted") if rows else ():
            nats = np.mean([[*row["heads"][head], row["loss"]] for row in rows], axis=0)
            yield f"| {model} | {head} | {' | '.join(f'{x:.4f}' for x in nats)} |"


def _cells(rows: list[dict[str, Any]], name: str, base: dict[int, float]) -> list[str]:
    ways = [row["ways"][name] for row in rows]
    change = [100 * (way["loss"] / row["loss"] - 1) for way, row in zip(ways, rows, strict=True)]
    lost = [
        100 * (way["loss"] / base[seed] - 1)
        for way, row in zip(ways, rows, strict=True)
        if (seed := row["job"]["seed"]) in base
    ]
    full = [min(row["seconds"][name] for name in ("package", *BASELINES)) for row in rows]
    own = [row["seconds"][name] for row in rows]
    mean, half = models.interval([a / b for a, b in zip(full, own, strict=True)])
    return [
        ", ".join("never" if way["threshold"] > 1 else f"{way['threshold']:g}" for way in ways),
        "{:.2f} ({:.2f})".format(
            *np.mean([[way["blocks"], way["blocks_timed"]] for way in ways], axis=0)
        ),
        f"{np.mean(change):+.2f} %",
        f"{np.mean(lost):+.2f} %" if lost else "",
        f"{1 / np.mean(full):,.0f}",
        f"{1 / np.mean(own):,.0f}",
        f"{mean:.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}"),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="topics", help="NAME=FILE, or a bare name for topics")
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptive"))
    parser.add_argument("--teachers", type=Path, help="folder with trained default models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--report", action="store_true", help="show what is there, make nothing")
    options = parser.parse_args(arguments)
    text = models.load(options.text)
    plan = training.Plan(
        text, options.seeds, training.RATES, options.updates, list(arms.ARMS), [], options.runs
    )
    if not options.report:
        missing(plan, options.teachers)
    print("\n".join(report(plan)))


if __name__ == "__main__":
    main()
