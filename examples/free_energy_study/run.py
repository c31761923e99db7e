"""Free-energy language models beside the references: the study that README.md describes.

    python examples/free_energy_study/run.py --text shakespeare=FILE --text wikitext=FILE \
        [--arms vfe gpt-modern | --ablations] [--seeds 3] [--lanes 12] [--out FOLDER]
        [--outward] [--report | --pace]

Every finished run is a line of ``runs.jsonl`` in the folder, and is not run again. Tables and
picture are made of what is there; the folder ``measured`` here keeps the lines that the
documentation shows. ``--pace`` trains nothing to the end: it measures what an update
of each arm costs, arm after arm in one process on this machine, for the picture's axis of time.
Batches, optimiser, choice of rates and statistics are those of ``benchmarks/language_models.py``.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from arms import ABLATIONS, ARMS, MODELS, options_of
from picture import draw

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import language_models as benchmark

ROUNDS = 5  # the fastest of these counts


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--text", action="append", help="NAME=FILE, or a bare name for the help topics of Python"
    )
    arms = parser.add_mutually_exclusive_group()
    arms.add_argument("--arms", nargs="+", choices=ARMS, default=list(MODELS))
    arms.add_argument("--ablations", action="store_true", help="those of vfe, small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--outward", action="store_true", help="go on beyond the ends of the grid")
    parser.add_argument("--rate-seeds", type=int, default=1, help="seeds per rate tried")
    parser.add_argument(
        "--steps", type=int, help="updates, a multiple of 200; by default 2000, of ablations 1000"
    )
    parser.add_argument("--lanes", type=int, default=1, help="runs trained side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/free_energy_study"))
    parser.add_argument("--report", action="store_true", help="show what is there, train nothing")
    parser.add_argument("--pace", action="store_true", help="measure seconds per update only")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = 1000 if options.ablations else 2000
    for name in ("seeds", "rate_seeds", "lanes"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} must be at least 1, got {getattr(options, name)}")
    if options.steps < 200 or options.steps % 200:
        parser.error(f"--steps must be a positive multiple of 200, got {options.steps}")
    return options


def plan_of(options: argparse.Namespace) -> benchmark.Plan:
    """What is to be there at the end."""
    names = list(ABLATIONS) if options.ablations else list(dict.fromkeys(options.arms))
    benchmark.ARMS.update({name: (ARMS[name].model, options_of(ARMS[name])) for name in names})
    texts = [benchmark.load(argument) for argument in options.text or ["topics"]]
    seeds, rate_seeds, rates = range(options.seeds), range(options.rate_seeds), benchmark.RATES
    asked = (list(rates), rate_seeds, options.steps, options.outward)
    return benchmark.Plan(names, texts, seeds, *asked)


def paces(plan: benchmark.Plan) -> dict[str, float]:
    """Seconds of one update of every arm on the first text, one run at a time: the fastest of some
    chunks of 50 updates, which the arms take in turn.
    """
    text, rates, lengths = plan.texts[0], np.asarray([1e-3], np.float32), {}
    windows = benchmark.batches.Batches(
        text.corpus.train.tokens, benchmark.BATCH, benchmark.LENGTH, seed=0
    ).at(0, benchmark.CHUNK)[None]
    programs = {arm: benchmark.programs(arm, text.argument, plan.steps, 1) for arm in plan.arms}
    states = {arm: run.init(jax.random.key(0)[None]) for arm, run in programs.items()}
    for _ in range(1 + ROUNDS):  # the first compiles
        for arm, run in programs.items():
            start = time.perf_counter()
            states[arm], loss = run.advance(states[arm], windows, rates)
            loss.block_until_ready()
            lengths.setdefault(arm, []).append(time.perf_counter() - start)
    return {arm: min(found[1:]) / benchmark.CHUNK for arm, found in lengths.items()}


def pace_table(measured: dict[str, float]) -> list[str]:
    """Milliseconds per update, and how often gpt-modern's."""
    reference = measured.get("gpt-modern")
    lines = ["| model | ms per update | times gpt-modern |", "| --- | ---: | ---: |"]
    for arm, seconds in measured.items():
        ratio = f"{seconds / reference:.2f}" if reference else ""
        lines.append(f"| {arm} | {1000 * seconds:.1f} | {ratio} |")
    return lines


def report(plan: benchmark.Plan, results: benchmark.Results, measured: dict[str, float]) -> str:
    """Losses by rate, losses with their spread over seeds, what the VFE transformer has more than
    the others, and what an update costs.
    """
    lines = [*benchmark.rate_table(plan, results), "", *benchmark.loss_table(plan, results), ""]
    lines += ["| model | " + " | ".join(text.name for text in plan.texts) + " |"]
    lines += ["| --- |" + " ---: |" * len(plan.texts)]
    for arm in plan.arms:
        cells = []
        for text in plan.texts:
            losses = list(plan.losses(arm, text, results).values())
            mean, half = benchmark.interval(losses) if losses else (0.0, 0.0)
            cells.append(f"{mean:.4f} ± {half:.4f}" if losses else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    for first in {"vfe", "small vfe"} & set(plan.arms):
        others = [arm for arm in plan.arms if arm != first]
        lines += ["", *benchmark.difference_table(plan, results, first, others)]
    if measured:
        lines += ["", *pace_table(measured)]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the study from the command line; returns its tables."""
    options = parse(arguments)
    plan = plan_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results = benchmark.Results(options.out / "runs.jsonl")
    pace = options.out / "pace.json"
    if options.pace:
        pace.write_text(json.dumps(paces(plan)))
    elif not options.report:
        benchmark.train_missing(plan, results, options.lanes)
    measured = json.loads(pace.read_text()) if pace.exists() else {}
    text = report(plan, results, measured)
    name = "ablations" if options.ablations else "models"
    (options.out / f"{name}.md").write_text(text)
    draw(plan, results, measured).savefig(options.out / f"{name}.png")
    print(text)
    return text


if __name__ == "__main__":
    main()
