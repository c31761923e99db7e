"""What compression costs: bytes of one file against loss, over seeds and texts.

    python benchmarks/model_compression.py --text topics --text NAME=FILE --out FOLDER [--report]

A teacher (the default model of ``vfejax train``) learns each text from every seed; everything else
is made from it. A line of ``runs.jsonl`` in the folder is one file that was written, read again and
evaluated on every character of the validation text; it is not made again, so that the benchmark
can be run in pieces (``--settings``, ``--seeds``). ``--report`` makes the table and the picture of
what is there; ``--out benchmarks/measured/compression --report`` those that are published. Ratios
compare files with files: that of the setting with that of the teacher in
float32, vocabulary and header in both.

Students and references read the same batches as the teacher that is trained on, with the same
schedule (AdamW, warm-up, cosine to a tenth, rounded weights in the last three tenths). A reference
is a gpt-modern trained from scratch on as many tokens as teacher and student together, whose file,
rounded and packed in the same way (or in float16), is as large as the student's. Rates of
references and fresh students are chosen on the first seed from ``--rates``, by the loss of the file
on the training text.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np

from vfejax import runs
from vfejax.compression import storage
from vfejax.compression.distill import taught, trained
from vfejax.compression.quantize import Scheme
from vfejax.compression.rules import rule
from vfejax.compression.storage import Form
from vfejax.data import batches
from vfejax.figures.compression import loss_against_bytes
from vfejax.models import table
from vfejax.models.pruning import pruned
from vfejax.runs import artefact
from vfejax.training import partial as partly
from vfejax.training import sharding
from vfejax.training.evaluate import evaluator
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer
from vfejax.types import PyTree, SequenceModel, TrainState

LENGTH, BATCH, CHUNK = models.LENGTH, models.BATCH, models.CHUNK
TEACHER = "resnet-bk"
CALIBRATION = 96  # windows that tell which experts matter
CHOICE = 240  # windows of the training text by which a rate is chosen
LATER = 10_000  # added to the seed: batches that the teacher has not seen
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


def forms_of(params: PyTree, setting: Setting) -> dict[str, Form]:
    """How the leaves of a model are kept."""

    def scheme(bits: int) -> Scheme:
        return Scheme(bits if bits <= 8 else 8, setting.group)

    half = Form(half=setting.rest_bits == 16)
    found = {}
    rules = rule(params, scheme(setting.bits), embedding=scheme(setting.embedding_bits))
    for name, leaf in rules.items():
        quantised = leaf.scheme is not None and setting.bits <= 8
        found[name] = Form(leaf.scheme, leaf.axis) if quantised else half
    return {name: form for name, form in found.items() if form != Form()}


@cache
def model_of(name: str, options: str, argument: str) -> SequenceModel:
    """A model for the characters of a text; ``options`` as JSON."""
    config = table.MODELS[name].config(**json.loads(options))
    return table.build(name, config, models.load(argument).corpus.vocabulary.size, LENGTH)


@cache
def evaluation(name: str, options: str, argument: str) -> Callable[..., Any]:
    """The loss on validation windows, compiled once for each model and text."""
    padding = models.load(argument).corpus.vocabulary.padding_id
    return evaluator(model_of(name, options, argument), sharding.data_mesh(BATCH), padding)


class Program(NamedTuple):
    """First state, and a chunk of updates at a rate."""

    init: Callable[[PyTree, PyTree], TrainState]
    advance: Callable[[TrainState, np.ndarray, jax.Array], tuple[TrainState, jax.Array]]


@cache
def program(setting_name: str, name: str, options: str, argument: str, steps: int) -> Program:
    """How a student learns, with a teacher whose weights are part of the state, or without."""
    setting = SETTINGS[setting_name]
    student = model_of(name, options, argument)
    model, teacher = student, None
    if setting.weight:
        teacher = model_of(TEACHER, "{}", argument)
        model = taught(student, teacher, temperature=setting.temperature, weight=setting.weight)
    forms = forms_of(jax.eval_shape(student.init, jax.random.key(0)), setting)
    begin = steps - round(setting.rounded * steps)

    def read(params: PyTree, step: jax.Array) -> PyTree:
        return jax.lax.cond(
            step >= begin, partial(storage.as_stored, forms=forms), lambda p: p, params
        )

    def weights_fn(params: PyTree, step: jax.Array) -> PyTree:
        if teacher is None:
            return read(params, step)
        return params | {"student": read(params["student"], step)}

    def joined(params: PyTree, teacher_params: PyTree) -> PyTree:
        return {"student": params, "teacher": teacher_params} if teacher else params

    abstract = jax.eval_shape(model.init, jax.random.key(0))
    learns = trained(abstract) if teacher else None

    def optimizer(rate: Any) -> Any:
        return adamw(warmup_cosine(rate, min(100, steps // 10), steps, 0.1))

    def init(params: PyTree, teacher_params: PyTree) -> TrainState:
        whole = joined(params, teacher_params)
        learning, _ = partly.split(whole, learns)
        return TrainState(jnp.zeros((), jnp.int32), whole, optimizer(1.0).init(learning))

    def advance(state: TrainState, windows: jax.Array, rate: jax.Array) -> Any:
        method = trainer(
            model,
            optimizer(rate),
            jax.random.key(1),
            trained=learns,
            weights_fn=weights_fn if setting.rounded else None,
        )
        state, infos = jax.lax.scan(method.step, state, windows)
        return state, infos.parts.cross_entropy.mean()

    return Program(jax.jit(init), jax.jit(advance, donate_argnums=0))


def train(
    setting: Setting, name: str, options: str, text: models.Text, params: PyTree, job: Job,
    teacher_params: PyTree,
) -> PyTree:  # fmt: skip
    """The weights after all updates."""
    if not job.steps:
        return params
    run = program(job.setting, name, options, text.argument, job.steps)
    state = run.init(params, teacher_params if setting.weight else {})
    seed = job.seed if job.setting == "teacher" else job.seed + LATER
    sampler = batches.Batches(text.corpus.train.tokens, BATCH, LENGTH, seed=seed)
    for step in range(0, job.steps, CHUNK):
        windows = sampler.at(step, min(CHUNK, job.steps - step))
        state, loss = run.advance(state, windows, jnp.float32(job.rate))
    if not math.isfinite(float(loss)):
        print(f"{job.setting}: diverged")
    return state.params["student"] if setting.weight else state.params


def teacher_path(plan: Plan, text: models.Text, seed: int) -> Path:
    """Where the file of a teacher is, from which all others are made."""
    return plan.out / f"{text.name}-{seed}-teacher.safetensors"


@cache
def teacher_of(path: Path) -> PyTree:
    """The weights of a teacher, from its file."""
    return runs.load(path).params


def start(
    plan: Plan, setting: Setting, text: models.Text, seed: int
) -> tuple[str, dict[str, Any], PyTree, PyTree]:
    """Model, options and first weights of a student, and its teacher's weights."""
    teacher = {} if setting.sizes is None else teacher_of(teacher_path(plan, text, seed))
    if setting.fresh is not None or setting.sizes is None:
        name, options = setting.fresh or (TEACHER, {})
        if setting.like is not None:
            options = size_like(plan, setting, text)
        model = model_of(name, json.dumps(options), text.argument)
        return name, options, jax.jit(model.init)(jax.random.key(seed)), teacher
    params, config = teacher, table.MODELS[TEACHER].config()
    if setting.first:
        rounding = forms_of(params, setting)
        params = jax.jit(partial(storage.as_stored, forms=rounding))(params)
    if setting.sizes:
        model = model_of(TEACHER, "{}", text.argument)
        tokens = batches.Batches(text.corpus.train.tokens, CALIBRATION, LENGTH, seed=LATER).at(0, 1)
        found = jax.jit(model.activations)(params, tokens[0, :, :-1])
        params, config = pruned(TEACHER, config, params, found, setting.sizes)
    return TEACHER, asdict(config), params, teacher


def size_like(plan: Plan, setting: Setting, text: models.Text) -> dict[str, int]:
    """Options of the largest gpt-modern whose weights take no more bytes than those of another
    setting: the width that allows a feed-forward layer of the usual share, widened to the limit.
    """
    rows = [row for row in results(plan).values() if row["job"]["setting"] == setting.like]
    rows = [row for row in rows if row["job"]["digest"] == text.digest]
    if not rows:
        raise SystemExit(f"{setting.like} on {text.name} must be there before its reference")
    target = rows[0]["counted"]

    def counted(dim: int, hidden: int) -> int:
        options = {"dim": dim, "hidden": hidden}
        model = model_of("gpt-modern", json.dumps(options), text.argument)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return storage.num_bytes(shapes, forms_of(shapes, setting))

    dim = max(8 * k for k in range(2, 40) if counted(8 * k, round(2.72 * 8 * k)) <= target)
    hidden = round(2.72 * dim)
    while counted(dim, hidden + 1) <= target:
        hidden += 1
    return {"dim": dim, "hidden": hidden}


@cache
def _result_lines(path: Path, changed: float) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {json.dumps(row["job"], sort_keys=True): row for row in map(json.loads, lines)}


def results(plan: Plan) -> dict[str, dict[str, Any]]:
    """All lines, by their jobs."""
    path = plan.out / "runs.jsonl"
    return _result_lines(path, path.stat().st_mtime_ns if path.exists() else 0)


def make(plan: Plan, name: str, text: models.Text, seed: int, rate: float) -> dict[str, Any]:
    """The line of one file, made if it is not there."""
    setting = SETTINGS[name]
    config = setting._asdict() | {"like": setting.like and size_like(plan, setting, text)}
    job = Job(
        name,
        json.loads(json.dumps(config)),
        {"model": TEACHER},
        text.name,
        text.digest,
        seed,
        plan.updates(setting) if name != "teacher" else plan.teacher_steps,
        plan.teacher_steps,
        rate,
    )
    known = json.dumps(job._asdict(), sort_keys=True)
    if known in results(plan) and (name != "teacher" or teacher_path(plan, text, seed).exists()):
        return results(plan)[known]
    began = time.perf_counter()
    model, options, params, teacher = start(plan, setting, text, seed)
    written = json.dumps(options)
    params = train(setting, model, written, text, params, job, teacher)
    row = {"job": job._asdict(), **stored(plan, job, setting, model, options, params, text)}
    row |= {"seconds": round(time.perf_counter() - began), "jax": jax.__version__}
    with (plan.out / "runs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{text.name}, {name}, seed {seed}, rate {rate:g}: {row['size']:,} bytes, loss "
          f"{row['loss']:.4f} in {row['seconds']} s", flush=True)  # fmt: skip
    return row


def stored(
    plan: Plan, job: Job, setting: Setting, model: str, options: dict[str, Any], params: PyTree,
    text: models.Text,
) -> dict[str, Any]:  # fmt: skip
    """Write the file, read it, and evaluate what was read."""
    whole = asdict(table.MODELS[model].config(**options))
    config = {"model": model, "length": LENGTH, "compute": "float32"}
    config |= {table.field_name(model): whole}
    forms = forms_of(params, setting)
    known = text.corpus.vocabulary
    content = artefact.Content(config, known, forms, "", job.steps, math.nan)
    leaves = artefact.encode(params, forms)
    place = plan.out / f"{job.text}-{job.seed}-{job.setting.replace(' ', '-')}.safetensors"
    size = artefact.write(place, leaves, content)
    read = runs.load(place).params
    before = artefact.decode(leaves, content, jax.eval_shape(lambda: params))
    equal = jax.tree.map(lambda a, b: np.array_equal(a, b), before, read)
    evaluate = evaluation(model, json.dumps(options), text.argument)
    tokens = text.corpus.valid.tokens
    windows = batches.evaluation_windows(tokens, LENGTH, BATCH, known.padding_id)
    seen = batches.evaluation_windows(
        text.corpus.train.tokens, LENGTH, BATCH, known.padding_id, limit=CHOICE
    )
    return {
        "size": size,
        "counted": storage.num_bytes(params, forms),
        "weights": sum(x.size for x in jax.tree.leaves(params)),
        "loss": evaluate(read, windows).nats_per_token,
        "training_loss": evaluate(read, seen).nats_per_token,
        "unrounded": evaluate(params, windows).nats_per_token if forms else None,
        "equal": all(jax.tree.leaves(equal)),
    }


def missing(plan: Plan) -> None:
    """Make every file that is not there; a rate is chosen where there is more than one."""
    for text in plan.texts:
        for seed in plan.seeds:
            make(plan, "teacher", text, seed, 2e-3)
        for name in plan.settings:
            if name == "teacher":
                continue
            rates = plan.rates if SETTINGS[name].fresh else [plan.rate]
            if not plan.updates(SETTINGS[name]):
                rates = [0.0]
            first = {rate: make(plan, name, text, plan.seeds[0], rate) for rate in rates}
            rate = min(first, key=lambda rate: _choice(first[rate]))
            for seed in plan.seeds:
                make(plan, name, text, seed, rate)


def _choice(row: dict[str, Any]) -> float:
    """What a rate is chosen by; training that diverged comes last."""
    loss = row["training_loss"]
    return math.inf if math.isnan(loss) else loss


def rows_of(plan: Plan, name: str, text: models.Text) -> list[dict[str, Any]]:
    """Lines of a setting by seed, at the rate that the first seed chose."""
    options, found = json.loads(json.dumps(SETTINGS[name]._asdict())), {}
    for row in results(plan).values():
        job = row["job"]
        same = {**job["options"], "like": options["like"]} == options
        same &= job["teacher_steps"] == plan.teacher_steps
        if job["setting"] == name and job["digest"] == text.digest and same:
            found.setdefault(job["rate"], {})[job["seed"]] = row
    first = plan.seeds[0]
    with_first = {rate: _choice(rows[first]) for rate, rows in found.items() if first in rows}
    if not with_first:
        return []
    best = found[min(with_first, key=lambda rate: with_first[rate])]
    return [best[seed] for seed in plan.seeds if seed in best]


def report(plan: Plan) -> Iterator[str]:
    """One row for each setting, Markdown."""
    yield (
        "| text, setting | seeds, rate | weights | bytes | of float32 | of bfloat16 | loss | to "
        "the teacher | to the teacher trained on | by rounding | bar |"
    )
    yield "| --- |" + " ---: |" * 9 + " --- |"
    for text in plan.texts:
        base = {row["job"]["seed"]: row for row in rows_of(plan, "teacher", text)}
        longer = {row["job"]["seed"]: row for row in rows_of(plan, "teacher trained on", text)}
        for name in SETTINGS:
            rows = rows_of(plan, name, text)
            if not rows or not base:
                continue
            size = np.mean([row["size"] for row in rows])
            full = np.mean([row["size"] for row in base.values()])
            half = full - 2 * next(iter(base.values()))["weights"]
            losses = [row["loss"] for row in rows]
            rounding = [row["loss"] - row["unrounded"] for row in rows if row["unrounded"]]
            cells = [
                f"{text.name}, {name}",
                f"{len(rows)}, {rows[0]['job']['rate']:g}",
                f"{rows[0]['weights']:,}",
                f"{size:,.0f}",
                f"{full / size:.2f}x",
                f"{half / size:.2f}x",
                _spread(losses),
                _change(rows, base),
                _change(rows, longer),
                f"{np.mean(rounding):+.4f}" if rounding else "",
                SETTINGS[name].bar,
            ]
            yield "| " + " | ".join(cells) + " |"
        exact = all(row["equal"] for name in SETTINGS for row in rows_of(plan, name, text))
        yield f"| {text.name}: read back bit for bit: {'yes' if exact else 'NO'} |" + " |" * 10


def _spread(losses: Sequence[float]) -> str:
    mean, half = models.interval(losses)
    return f"{mean:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def _change(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Change of the loss to that of other lines, seed by seed, in per cent."""
    pairs = [(row["loss"], base[row["job"]["seed"]]["loss"]) for row in rows
             if row["job"]["seed"] in base]  # fmt: skip
    return f"{np.mean([100 * (a / b - 1) for a, b in pairs]):+.2f} %" if pairs else ""


def draw(plan: Plan, text: models.Text) -> Any:
    """Loss against bytes of every setting that is there."""
    groups: dict[str, dict[str, Any]] = {"teacher": {}, "compressed": {}, "GPT from scratch": {}}
    for name in SETTINGS:
        rows = rows_of(plan, name, text)
        kind = "GPT from scratch" if SETTINGS[name].like else "compressed"
        kind = "teacher" if name.startswith("teacher") else kind
        if rows:
            groups[kind][name] = [[row["size"], row["loss"]] for row in rows]
    level = np.mean([row["loss"] for row in rows_of(plan, "teacher", text)])
    return loss_against_bytes(groups, level=float(level), title=f"Loss against bytes: {text.name}")


def parse(arguments: Sequence[str] | None) -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text", action="append", help="NAME=FILE, or a bare name for the help topics of Python"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/compression"))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--rate", type=float, default=1e-3, help="of a pruned student")
    parser.add_argument("--teacher-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=300, help="of a pruned student")
    parser.add_argument("--fresh-steps", type=int, default=1200, help="of a fresh student")
    parser.add_argument("--report", action="store_true", help="show what is there, make nothing")
    options = parser.parse_args(arguments)
    for name in ("teacher_steps", "steps", "fresh_steps"):
        value = getattr(options, name)
        if value < CHUNK or value % CHUNK:
            parser.error(f"--{name.replace('_', '-')} must be a positive multiple of {CHUNK}")
    texts = [models.load(argument) for argument in options.text or ["topics"]]
    plan = Plan(
        options.settings,
        texts,
        options.seeds,
        options.rates,
        options.rate,
        options.teacher_steps,
        options.steps,
        options.fresh_steps,
        options.out,
    )
    return plan, options.report


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the benchmark from the command line; returns its table."""
    plan, only_report = parse(arguments)
    plan.out.mkdir(parents=True, exist_ok=True)
    if not only_report:
        missing(plan)
    found = "\n".join(report(plan))
    (plan.out / "report.md").write_text(found + "\n")
    for text in plan.texts:
        if rows_of(plan, "teacher", text):
            draw(plan, text).savefig(plan.out / f"{text.name}.png")
    print(found)
    return found


if __name__ == "__main__":
    main()
