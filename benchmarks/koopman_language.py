"""Koopman operators in a language model: distilled blocks, and gradients that pass by operators.

    python benchmarks/koopman_language.py --text topics --out FOLDER [--teachers FOLDER] [--report]

*Blocks.* A block of a trained ResNet-BK (the default model of ``vfejax train``, 1,200 updates) is
replaced by an operator of low rank on delay coordinates, which least squares fit on training text;
then it is distilled, the operator alone or all weights. Beside it: the block skipped, with the same
distillation. Teachers are ``TEXT-SEED-teacher.safetensors`` of ``model_compression.py``, or trained
here.

*Gradients.* A ResNet-BK of half the width learns from scratch by exact gradients; by gradients that
pass each block by the operator that predicts it, or by the identity; by those of the readout
alone. Every arm reads the same batches. The cost of an update is in operations of matrix products,
and in seconds of this process (not of a clock, so that a busy machine does no harm). Gradients are
compared with exact ones block by block, at first and trained weights.

Rates come from the same grid for every arm of a part, by the loss on training text at the first
seed. A line
of ``runs.jsonl`` is one run; it is not made again. ``--report`` prints the tables of what is there.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import language_models as models
import numpy as np
from koopman_blocks import BLOCKS, SKIPPED, distilled
from koopman_gradients import GRADIENTS, SMALL, from_scratch, small, update_flops
from koopman_lessons import Arm, Plan

RATES = {"blocks": (1e-3, 4e-3), "gradients": (2e-3, 4e-3, 8e-3)}

PARTS: dict[str, tuple[dict[str, Arm], Callable[..., dict[str, Any]]]] = {
    "gradients": (GRADIENTS, from_scratch),
    "blocks": (BLOCKS, distilled),
}


def results(plan: Plan) -> dict[str, dict[str, Any]]:
    """All lines, by their jobs."""
    path = plan.out / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {json.dumps(row["job"], sort_keys=True): row for row in map(json.loads, lines)}


def job_of(plan: Plan, part: str, name: str, seed: int, rate: float) -> dict[str, Any]:
    """Everything that decides what comes out."""
    arm = PARTS[part][0][name]
    job = {"part": part, "arm": name, "text": plan.text.name, "digest": plan.text.digest}
    job |= {"seed": seed, "rate": rate if arm.tuned != "none" else 0.0}
    return job | {"updates": plan.updates if arm.tuned != "none" else 0}


def make(plan: Plan, part: str, name: str, seed: int, rate: float) -> dict[str, Any]:
    """The line of one run, made if it is not there."""
    job, known = job_of(plan, part, name, seed, rate), results(plan)
    if (line := json.dumps(job, sort_keys=True)) in known:
        return known[line]
    row = {"job": job, **PARTS[part][1](plan, PARTS[part][0][name], seed, rate)}
    with (plan.out / "runs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{part}, {name}, seed {seed}, rate {rate:g}: loss {row['loss']:.4f}", flush=True)
    return row


def best_rate(plan: Plan, part: str, name: str) -> float | None:
    """The rate of the first seed with the smallest loss on training text; None before all are
    there.
    """
    known = results(plan)
    jobs = {r: json.dumps(job_of(plan, part, name, plan.seeds[0], r), sort_keys=True)
            for r in plan.rates[part]}  # fmt: skip
    if not all(job in known for job in jobs.values()):
        return None
    found = {rate: known[job]["training_loss"] for rate, job in jobs.items()}
    return min(found, key=lambda r: math.inf if math.isnan(found[r]) else found[r])


def missing(plan: Plan) -> None:
    """Make every run that is not there."""
    for part in plan.parts:
        names = list(PARTS[part][0])
        for name, rate in itertools.product(names, plan.rates[part]):
            make(plan, part, name, plan.seeds[0], rate)
        for seed, name in itertools.product(plan.seeds[1:], names):
            rate = best_rate(plan, part, name)
            assert rate is not None  # the first seed has made it
            make(plan, part, name, seed, rate)


def rows_of(plan: Plan, part: str, name: str) -> list[dict[str, Any]]:
    """Lines of an arm by seed, at its rate."""
    rate, known = best_rate(plan, part, name), results(plan)
    if rate is None:
        return []
    jobs = [json.dumps(job_of(plan, part, name, seed, rate), sort_keys=True) for seed in plan.seeds]
    return [known[job] for job in jobs if job in known]


def _spread(values: list[float]) -> str:
    mean, half = models.interval(values)
    return f"{mean:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def _less(rows: list[dict[str, Any]], base: dict[int, float]) -> str:
    """Differences seed by seed."""
    found = [row["loss"] - base[s] for row in rows if (s := row["job"]["seed"]) in base]
    mean, half = models.interval(found)
    return f"{mean:+.4f} ± {half:.4f}"


def block_report(plan: Plan) -> Iterator[str]:
    """Each way to replace a block, with the share of what skipping costs that it recovers."""
    base = {row["job"]["seed"]: row["loss"] for row in rows_of(plan, "blocks", "untouched")}
    gone = {row["job"]["seed"]: row["loss"] for row in rows_of(plan, "blocks", "skipped")}
    yield (
        "| block 1 | seeds, rate | operations a token | loss | recovered of what skipping costs | "
        "less skipped with the same lessons |"
    )
    yield "| --- |" + " ---: |" * 5
    fair = {row["job"]["seed"]: row["loss"] for row in rows_of(plan, "blocks", SKIPPED)}
    for name in BLOCKS:
        rows = rows_of(plan, "blocks", name)
        if not rows or not base or not gone:
            continue
        shares = [
            (gone[s] - row["loss"]) / (gone[s] - base[s])
            for row in rows
            if (s := row["job"]["seed"]) in base and s in gone
        ]
        yield (
            f"| {name} | {len(rows)}, {rows[0]['job']['rate']:g} | {rows[0]['flops_of_block']:,} | "
            f"{_spread([row['loss'] for row in rows])} | {100 * np.mean(shares):.0f} % | "
            f"{_less(rows, fair) if BLOCKS[name].tuned == 'all' and name != SKIPPED else ''} |"
        )


def gradient_report(plan: Plan) -> Iterator[str]:
    """Loss at equal tokens, and what an update costs."""
    exact = rows_of(plan, "gradients", "exact")
    yield (
        "| gradient | seeds, rate | updates | operations a token | of exact | seconds of this "
        "process an update | of exact | loss | less exact |"
    )
    yield "| --- |" + " ---: |" * 8
    base = {row["job"]["seed"]: row["loss"] for row in exact}
    for name in GRADIENTS:
        rows = rows_of(plan, "gradients", name)
        if not rows or not exact:
            continue
        seconds = [np.median([row["seconds"] for row in found]) for found in (rows, exact)]
        yield (
            f"| {name} | {len(rows)}, {rows[0]['job']['rate']:g} | {rows[0]['updates']} | "
            f"{rows[0]['flops']:,.0f} | {rows[0]['flops'] / exact[0]['flops']:.2f} | "
            f"{seconds[0]:.3f} | {seconds[0] / seconds[1]:.2f} | "
            f"{_spread([row['loss'] for row in rows])} | "
            f"{_less(rows, base) if name != 'exact' else ''} |"
        )
    yield ""
    yield "| weights, gradient | | block 0 | block 1 | block 2 | block 3 |"
    yield "| --- | --- |" + " ---: |" * 4
    with_rows = [row["alignment"] for row in exact if "alignment" in row]
    for when in ("first", "trained"):
        for name in ("operators", "identity"):
            for measure in ("cosine", "relative_error"):
                values = [row[when][name][measure] for row in with_rows]
                if values:
                    cells = " | ".join(f"{x:.3f}" for x in np.mean(values, axis=0))
                    yield f"| {when}, {name} | {measure.replace('_', ' ')} | {cells} |"
    text = small(plan.text)
    head = 6 * SMALL["dim"] * plan.text.corpus.vocabulary.size
    whole = update_flops(text, "exact")
    yield ""
    yield (
        f"The head takes {head / whole:.3f} of an exact update: no gradient of blocks, however "
        f"cheap, makes it more than {whole / head:.1f} times cheaper. The forward pass takes a "
        "third: without any backward pass of the blocks an update costs at least "
        f"{update_flops(text, 'readout') / whole:.2f} of it."
    )


def parse(arguments: list[str] | None) -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", default="topics", help="NAME=FILE, or a bare name for topics")
    parser.add_argument("--out", type=Path, default=Path("runs/koopman-language"))
    parser.add_argument("--teachers", type=Path, help="folder with trained teachers")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", help="in place of those of the parts")
    parser.add_argument("--updates", type=int, default=150)
    parser.add_argument("--teacher-updates", type=int, default=1200)
    parser.add_argument("--report", action="store_true", help="show what is there, make nothing")
    options = parser.parse_args(arguments)
    plan = Plan(
        models.load(options.text),
        options.seeds,
        {part: tuple(options.rates or rates) for part, rates in RATES.items()},
        options.updates,
        options.teacher_updates,
        options.teachers,
        options.out,
        options.parts,
    )
    return plan, options.report


def main(arguments: list[str] | None = None) -> str:
    """Run the benchmark from the command line; returns its tables."""
    plan, only_report = parse(arguments)
    if not only_report:
        plan.out.mkdir(parents=True, exist_ok=True)
        missing(plan)
    reports = {"gradients": gradient_report, "blocks": block_report}
    found = "\n\n".join("\n".join(reports[part](plan)) for part in plan.parts)
    print(found)
    return found


if __name__ == "__main__":
    main()
