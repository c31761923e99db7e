"""Free-energy language models beside the references: the study that README.md describes.

    python examples/free_energy_study/run.py --text shakespeare=FILE --text wikitext=FILE \
        [--arms vfe gpt-modern] [--ablations] [--seeds 3] [--lanes 12] [--out FOLDER] [--report]

Every finished run is a line of ``runs.jsonl`` in the folder, and is not run again. Tables and
picture are made of what is there. Batches, optimiser, choice of rates and statistics are those of
``benchmarks/language_models.py``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from arms import ABLATIONS, ARMS, MODELS, options_of
from picture import draw

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import language_models as benchmark

RATE_SEEDS = 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--text", action="append", help="NAME=FILE, or a bare name for the help topics of Python"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(MODELS))
    parser.add_argument("--ablations", action="store_true", help="those of vfe besides --arms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="updates, a multiple of 200")
    parser.add_argument("--lanes", type=int, default=1, help="runs trained side by side")
    parser.add_argument("--out", type=Path, default=Path("runs/free_energy_study"))
    parser.add_argument("--report", action="store_true", help="show what is there, train nothing")
    options = parser.parse_args(arguments)
    for name in ("seeds", "lanes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if options.steps < 200 or options.steps % 200:
        parser.error(f"--steps must be a positive multiple of 200, got {options.steps}")
    return options


def plan_of(options: argparse.Namespace) -> benchmark.Plan:
    """What is to be there at the end."""
    names = [*options.arms, *(ABLATIONS if options.ablations else ())]
    names = list(dict.fromkeys(names))
    benchmark.ARMS.update({name: (ARMS[name].model, options_of(ARMS[name])) for name in names})
    texts = [benchmark.load(argument) for argument in options.text or ["topics"]]
    seeds = range(options.seeds)
    return benchmark.Plan(
        names, texts, seeds, list(benchmark.RATES), range(RATE_SEEDS), options.steps
    )


def report(plan: benchmark.Plan, results: benchmark.Results) -> str:
    """Losses by rate, losses with their spread over seeds, and differences to gpt-modern."""
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
    if "gpt-modern" in plan.arms:
        others = [arm for arm in plan.arms if arm != "gpt-modern"]
        lines += ["", *benchmark.difference_table(plan, results, "gpt-modern", others)]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the study from the command line; returns its tables."""
    options = parse(arguments)
    plan = plan_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    results = benchmark.Results(options.out / "runs.jsonl")
    if not options.report:
        benchmark.train_missing(plan, results, options.lanes)
    text = report(plan, results)
    (options.out / "tables.md").write_text(text)
    draw(plan, results).savefig(options.out / "curves.png")
    print(text)
    return text


if __name__ == "__main__":
    main()
