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
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import language_models as models
import numpy as np
from compression_report import choice, draw, report, rows_of
from compression_settings import (
    BATCH,
    CHUNK,
    LENGTH,
    SETTINGS,
    TEACHER,
    Job,
    Plan,
    Setting,
    results,
)
from compression_students import LATER, evaluation, forms_of, model_of, train

from vfejax import runs
from vfejax.compression import storage
from vfejax.data import batches
from vfejax.models import table
from vfejax.models.pruning import pruned
from vfejax.runs import artefact
from vfejax.types import PyTree

CALIBRATION = 96  # windows that tell which experts matter
CHOICE = 240  # windows of the training text by which a rate is chosen


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
            rate = min(first, key=lambda rate: choice(first[rate]))
            for seed in plan.seeds:
                make(plan, name, text, seed, rate)


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
