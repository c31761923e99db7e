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
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np

from vfejax import runs
from vfejax.compression.distill import taught, trained
from vfejax.data import batches
from vfejax.koopman import streaming
from vfejax.models import table
from vfejax.models.koopman.conversion import converted
from vfejax.models.spans import DelayMap
from vfejax.training import detours, sharding, surrogate
from vfejax.training import step as steps
from vfejax.training.cost import product_flops
from vfejax.training.evaluate import evaluator
from vfejax.training.losses import next_token_loss, training_batch
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.types import PyTree, SequenceModel, Trainer

LENGTH, BATCH = models.LENGTH, models.BATCH
RATES = {"blocks": (1e-3, 4e-3), "gradients": (2e-3, 4e-3, 8e-3)}
START = adamw(warmup_cosine(1.0, 1, 2, 0.1))  # makes the optimiser's first state
CHUNK = 50
WINDOWS = 240  # of the validation text, and of the training text by which a rate is chosen
SMALL = {"dim": 64, "hidden": 64}
BLOCK = 1  # the one that is replaced
FITTED = (4, 96)  # batches and windows that operators are fitted on
LATER = 10_000  # added to the seed: batches that the teacher has not seen


class Arm(NamedTuple):
    """One row: what learns, and for which share of the updates."""

    kind: str
    tuned: str = "all"
    share: float = 1.0


SKIPPED = "skipped, then all weights"
BLOCKS = {
    "untouched": Arm("teacher", "none"),
    "skipped": Arm("skipped", "none"),
    SKIPPED: Arm("skipped"),
    "operator": Arm("operator", "none"),
    "operator, then alone": Arm("operator", "operator"),
    "operator, then all weights": Arm("operator"),
}
GRADIENTS = {
    "exact": Arm("exact"),
    "exact, a third of the updates": Arm("exact", share=1 / 3),
    "exact, a fifth of the updates": Arm("exact", share=1 / 5),
    "operators": Arm("operators"),
    "identity": Arm("identity"),
    "readout": Arm("readout"),
}
TRAINERS: dict[str, Callable[..., Trainer]] = {
    "exact": steps.trainer,
    "operators": surrogate.koopman_trainer,
    "identity": surrogate.identity_trainer,
    "readout": surrogate.readout_trainer,
}


class Plan(NamedTuple):
    """What was asked for."""

    text: models.Text
    seeds: list[int]
    rates: dict[str, tuple[float, ...]]
    updates: int
    teacher_updates: int
    teachers: Path | None
    out: Path
    parts: list[str]


def build(text: models.Text, name: str, config: Any) -> SequenceModel:
    """A model for the characters of a text."""
    return table.build(name, config, text.corpus.vocabulary.size, LENGTH)


def small(text: models.Text) -> SequenceModel:
    """The model that learns from scratch."""
    return build(text, "resnet-bk", table.MODELS["resnet-bk"].config(**SMALL))


def learned(
    make: Callable[[Any], Trainer], state: Any, text: models.Text, seed: int, rate: float, n: int
) -> tuple[Any, float]:
    """The state after n updates, and seconds of this process for one of them."""

    def advance(state: Any, windows: jax.Array, rate: jax.Array) -> Any:
        method = make(adamw(warmup_cosine(rate, max(1, n // 10), n, 0.1)))
        return jax.lax.scan(method.step, state, windows)[0]

    sampler = batches.Batches(text.corpus.train.tokens, BATCH, LENGTH, seed=seed)
    compiled, spent, measured, highest = {}, 0.0, 0, jnp.float32(rate)
    for start in range(0, n, CHUNK):
        windows = sampler.at(start, min(CHUNK, n - start))
        if len(windows) not in compiled:
            compiled[len(windows)] = jax.jit(advance).lower(state, windows, highest).compile()
        began = time.process_time()
        state = jax.block_until_ready(compiled[len(windows)](state, windows, highest))
        spent, measured = spent + time.process_time() - began, measured + len(windows)
    return state, spent / max(measured, 1)


def losses(text: models.Text, model: SequenceModel, params: PyTree) -> dict[str, float]:
    """On validation text, and on training text for the choice of a rate."""
    padding = text.corpus.vocabulary.padding_id
    evaluate_fn = evaluator(model, sharding.data_mesh(BATCH), padding)
    found = {}
    for name, split in (("loss", text.corpus.valid), ("training_loss", text.corpus.train)):
        windows = batches.evaluation_windows(split.tokens, LENGTH, BATCH, padding, limit=WINDOWS)
        found[name] = evaluate_fn(params, windows).nats_per_token
    return found


@cache
def teacher(plan_text: str, seed: int, folder: Path | None, out: Path, updates: int) -> PyTree:
    """Weights of the trained default model."""
    text = models.load(plan_text)
    for place in filter(None, (folder, out)):
        path = place / f"{text.name}-{seed}-teacher.safetensors"
        if path.exists():
            return runs.load(path).params
    model = build(text, "resnet-bk", table.MODELS["resnet-bk"].config())
    key = jax.random.key(seed)
    state = jax.jit(steps.trainer(model, START, key).init)(key)
    return learned(
        lambda optimizer: steps.trainer(model, optimizer, key), state, text, seed, 2e-3, updates
    )[0].params


def student(plan: Plan, arm: Arm, seed: int) -> tuple[SequenceModel, PyTree, int]:
    """Model and first weights in place of a teacher, and operations of what replaces the block."""
    text, config = plan.text, table.MODELS["resnet-bk"].config()
    whole = teacher(text.argument, seed, plan.teachers, plan.out, plan.teacher_updates)
    model = build(text, "resnet-bk", config)
    if arm.kind == "teacher":
        return model, whole, block_flops(model)
    if arm.kind == "operator":
        sampler = batches.Batches(text.corpus.train.tokens, FITTED[1], LENGTH, seed=seed + LATER)
        tokens = sampler.at(0, FITTED[0])[:, :, :-1]
        config, params = converted_once(model, config, whole, tokens)
        cost = 2 * (config.delays + 1) * config.dim * config.rank
        return build(text, "koopman", config), params, cost
    kept = np.asarray([n for n in range(config.layers) if n != BLOCK])
    params = whole | {"blocks": jax.tree.map(lambda x: x[kept], whole["blocks"])}
    shallow = table.MODELS["resnet-bk"].config(layers=len(kept))
    return build(text, "resnet-bk", shallow), params, 0


def converted_once(model: SequenceModel, config: Any, params: PyTree, tokens: Any) -> Any:
    """The weights with an operator, by one compiled program."""
    found = {}

    def fit(params: PyTree, tokens: jax.Array) -> PyTree:
        found["config"], weights = converted(config, model, params, tokens, (BLOCK,))
        return weights

    weights = jax.jit(fit)(params, tokens)
    return found["config"], weights


def block_flops(model: SequenceModel) -> int:
    """Operations of one block for a token."""
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    whole = product_flops(lambda p, t: model.apply(p, t).logits, params, tokens)
    vocabulary, dim = params["tokens"]["embedding"].shape
    layers = jax.tree.leaves(params["blocks"])[0].shape[0]
    return (whole // LENGTH - 2 * vocabulary * dim) // layers


def distilled(plan: Plan, arm: Arm, seed: int, rate: float) -> dict[str, Any]:
    """A student after its lessons."""
    model, params, cost = student(plan, arm, seed)
    if arm.tuned != "none":
        text = plan.text
        known = teacher(text.argument, seed, plan.teachers, plan.out, plan.teacher_updates)
        tutor = build(text, "resnet-bk", table.MODELS["resnet-bk"].config())
        lesson = taught(model, tutor)
        whole = {"student": params, "teacher": known}
        learns = trained(whole)
        if arm.tuned == "operator":
            mine = {
                k: jax.tree.map(lambda _, on=k == "operators": on, v) for k, v in params.items()
            }
            learns = learns | {"student": mine}
        lesson = lesson._replace(init=lambda key: whole)

        def make(optimizer: Any) -> Trainer:
            return steps.trainer(lesson, optimizer, jax.random.key(1), trained=learns)

        state = make(START).init(jax.random.key(0))
        state, _ = learned(make, state, text, seed + LATER, rate, plan.updates)
        params = state.params["student"]
    return losses(plan.text, model, params) | {"flops_of_block": cost}


def update_flops(model: SequenceModel, kind: str, every: int = 10) -> float:
    """Operations of an update for a token, the learning of operators included."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    windows = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), jnp.int32)
    dim = params["tokens"]["embedding"].shape[1]
    layers = jax.tree.leaves(params["blocks"])[0].shape[0]
    further = 0.0
    if kind == "operators":
        arrays = DelayMap(
            jax.ShapeDtypeStruct((layers, dim, dim), jnp.float32),
            jax.ShapeDtypeStruct((layers, dim), jnp.float32),
        )
        used, weights = detours.through_operators(model), {"model": params, "operators": arrays}
        forward = product_flops(lambda p, w: model.apply(p, w[:, :-1]).logits, params, windows)
        absorbed = 2 * BATCH * LENGTH * (1 + 2 * dim) ** 2 * layers
        further = (forward + absorbed) / every
    elif kind == "exact":
        used, weights = model, params
    else:
        used, weights = detours.past_blocks(model, identity=kind == "identity"), params

    def loss(p: PyTree, w: jax.Array) -> jax.Array:
        return next_token_loss(used, p, training_batch(w, None), None, None)[0]

    return (product_flops(jax.grad(loss), weights, windows) + further) / (BATCH * LENGTH)


def from_scratch(plan: Plan, arm: Arm, seed: int, rate: float) -> dict[str, Any]:
    """A model after training, with what an update costs."""
    model, key = small(plan.text), jax.random.key(seed)

    def make(optimizer: Any) -> Trainer:
        return TRAINERS[arm.kind](model, optimizer, jax.random.key(1))

    state = jax.jit(make(START).init)(key)
    updates = round(arm.share * plan.updates)
    state, seconds = learned(make, state, plan.text, seed, rate, updates)
    found = losses(plan.text, model, state.params)
    if arm == GRADIENTS["exact"]:
        rows = alignment(plan, model, seed, jax.jit(model.init)(key), state.params)
        found = found | {"alignment": rows}
    return found | {"seconds": seconds, "flops": update_flops(model, arm.kind), "updates": updates}


def alignment(
    plan: Plan, model: SequenceModel, seed: int, first: PyTree, last: PyTree
) -> dict[str, Any]:
    """Cosine and relative error of each block's gradient to the exact one."""
    sampler = batches.Batches(plan.text.corpus.train.tokens, 48, LENGTH, seed=seed + LATER)
    windows = sampler.at(0, 5)
    dim, layers = SMALL["dim"], table.MODELS["resnet-bk"].config().layers

    def gradient(used: SequenceModel, params: PyTree) -> PyTree:
        def loss(p: PyTree) -> jax.Array:
            return next_token_loss(used, p, training_batch(windows[-1], None), None, None)[0]

        return jax.grad(loss, allow_int=True)(params)

    @jax.jit
    def compare(params: PyTree) -> dict[str, Any]:
        factor = jax.tree.map(
            lambda x: jnp.zeros((layers, *x.shape), x.dtype), streaming.init(1 + dim, dim)
        )
        for tokens in windows[:-1, :, :-1]:
            factor, maps = surrogate.observed(model, params, tokens, factor)
        whole = {"model": params, "operators": maps}
        exact = gradient(model, params)
        others = {
            "operators": gradient(detours.through_operators(model), whole)["model"],
            "identity": gradient(detours.past_blocks(model, identity=True), params),
        }
        return {name: _compared(exact["blocks"], found["blocks"]) for name, found in others.items()}

    return {
        when: jax.tree.map(lambda x: np.asarray(x).tolist(), compare(params))
        for when, params in (("first", first), ("trained", last))
    }


def _compared(exact: PyTree, other: PyTree) -> dict[str, jax.Array]:
    def flat(tree: PyTree) -> jax.Array:
        return jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1)

    a, b = flat(exact), flat(other)
    size_a, size_b = jnp.linalg.norm(a, axis=1), jnp.linalg.norm(b, axis=1)
    return {
        "cosine": jnp.sum(a * b, axis=1) / (size_a * size_b),
        "relative_error": jnp.linalg.norm(a - b, axis=1) / size_a,
    }


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
