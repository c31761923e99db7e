"""``vfejax compress``: a trained model becomes one small file.

Prune, teach, round, pack; then the file is read in a fresh process and evaluated there.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.cli import output
from vfejax.cli import session as sessions
from vfejax.cli.compress import comparison
from vfejax.cli.compress import report as compress_report
from vfejax.cli.compress import student as students
from vfejax.cli.compress import teacher as teachers
from vfejax.cli.compress.config import CompressConfig, check_values, parse
from vfejax.cli.compress.student import Student
from vfejax.cli.compress.teacher import Teacher
from vfejax.cli.devices import batch_remark
from vfejax.cli.session import Session
from vfejax.compression.distill import distillation, trainable
from vfejax.data.batches import Batches
from vfejax.data.files import one_line
from vfejax.errors import UserError
from vfejax.models.table import MODELS
from vfejax.runs import artefact, loop
from vfejax.runs import inputs as run_inputs
from vfejax.runs.seeds import random_key
from vfejax.training import frozen_weights, sharding
from vfejax.training.evaluate import EvaluateFn, evaluator
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import Trainer, TrainInfo, TrainState, trainer
from vfejax.types import PyTree

__all__ = ["compress", "main"]


def main(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    _check_file(config)
    return compress(config, teachers.read(config))


def _check_file(config: CompressConfig) -> None:
    """Refuse a file that would replace something; what a resumed run wrote may be written again."""
    assert config.file is not None  # parse has set it
    if config.file.parent == config.out:
        return
    output.check_replaceable(config.file, config.overwrite or (config.resume and _is_own(config)))


def _is_own(config: CompressConfig) -> bool:
    """Whether the file was made from the teacher of the run that is resumed."""
    assert config.file is not None  # parse has set it
    try:
        teacher = artefact.read(config.file)[0].teacher
        run_inputs.check(config.out, {"run": run_inputs.Content(str(config.file), teacher)})
    except UserError:
        return False
    return True


class Task(NamedTuple):
    """Teacher, student and what the student learns: fixed during a run."""

    config: CompressConfig
    teacher: Teacher
    student: Student
    trainer: Trainer
    learns: PyTree
    fixed: PyTree
    first_rounded: int
    learning_rate: Callable[[Any], Any]
    mesh: jax.sharding.Mesh
    evaluate_fn: EvaluateFn
    read_fn: Callable[[PyTree, bool], PyTree]

    @property
    def batch_size(self) -> int:
        """Sequences per update."""
        return self.config.batch_size or self.teacher.config.batch_size


def _task(config: CompressConfig, teacher: Teacher) -> Task:
    student = students.prepare(config, teacher)
    batch_size = config.batch_size or teacher.config.batch_size
    first_rounded = config.steps - round(config.rounded_share * config.steps)
    if config.order == "quantise-first":
        first_rounded = 0
    padding = teacher.corpus.vocabulary.padding_id
    rate = warmup_cosine(config.learning_rate, config.warmup_steps, config.steps, config.final_rate)
    method, learns, fixed = _method(config, teacher, student, first_rounded, rate)
    evaluation_mesh = sharding.data_mesh(teacher.config.batch_size)
    return Task(
        config,
        teacher,
        student,
        trainer=method,
        learns=learns,
        fixed=fixed,
        first_rounded=first_rounded,
        learning_rate=jax.jit(rate),
        mesh=sharding.data_mesh(batch_size),
        evaluate_fn=evaluator(student.model, evaluation_mesh, padding),
        read_fn=jax.jit(student.read, static_argnums=1),
    )


def _method(
    config: CompressConfig,
    teacher: Teacher,
    student: Student,
    first_rounded: int,
    rate: Callable[[Any], Any],
) -> tuple[Trainer, PyTree, PyTree]:
    """How the student learns, which weights do, and the others."""
    first = jax.device_get(student.params)
    try:
        model = distillation(
            student.model._replace(init=lambda key: students.dense(first)),
            teacher.model._replace(init=lambda key: teacher.params),
            temperature=config.temperature,
            weight=config.weight,
            hidden_weight=config.hidden_weight,
        )
        whole = model.init(random_key(config.seed)) | {"student": first}
    except ValueError as error:
        raise UserError(f"--hidden-weight {config.hidden_weight}: {one_line(error)}") from error

    def weights_fn(params: PyTree, step: jax.Array) -> PyTree:
        read = jax.lax.cond(
            step >= first_rounded,
            lambda p: student.read(p, rounded=True),
            lambda p: student.read(p, rounded=False),
            params["student"],
        )
        return params | {"student": read}

    learns = trainable(whole, MODELS[student.name].constants)
    optimizer = adamw(
        rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm, b2=config.beta2
    )
    # Batches come from the seed's key itself, so randomness in training must not share it.
    key = jax.random.fold_in(random_key(config.seed), 1)
    method = trainer(
        model._replace(init=lambda key: whole),
        optimizer,
        key,
        trained=learns,
        weights_fn=weights_fn,
    )
    return method, learns, jax.device_get(frozen_weights.split(whole, learns)[1])


def _program(task: Task) -> loop.Program:
    """The student's updates as the loop runs them."""
    config, teacher = task.config, task.teacher
    tokens = teacher.corpus.train.tokens
    # Other batches than the teacher's first ones, whose seed is often the same.
    batches = Batches(tokens, task.batch_size, teacher.config.length, config.seed + 2**64)
    windows = teacher.valid_windows(config.eval_windows)

    def observe(
        step: int, state: TrainState, infos: TrainInfo | None, last: np.ndarray
    ) -> loop.Observation:
        loss = math.nan
        if step % config.eval_every == 0 or step == config.steps:
            read = task.read_fn(state.params["student"], step > task.first_rounded)
            loss = task.evaluate_fn(read, windows).nats_per_token
            last = np.asarray(loss)
        row = _row(task, state, step, infos, loss)
        return loop.Observation(row, last, {"loss": row["loss"], "last valid": float(last)})

    def stored(state: TrainState) -> TrainState:
        return state._replace(params=frozen_weights.split(state.params, task.learns)[0])

    def place(state: TrainState) -> TrainState:
        whole = state._replace(params=frozen_weights.merge(state.params, task.fixed))
        return sharding.replicate(task.mesh, whole)

    def init() -> TrainState:
        return stored(task.trainer.init(random_key(config.seed)))

    return loop.Program(
        init=init,
        place=place,
        stored=stored,
        # Else several devices would gather their tokens where experts sort them.
        step=sharding.in_scope(task.mesh, task.trainer.step),
        observe=observe,
        memory=np.asarray(math.nan),
        inputs=lambda step, count: sharding.split_batches(task.mesh, batches.at(step, count)),
        watched=lambda infos: {"loss": infos.loss, "gradient norm": infos.gradient_norm},
        advice="begin again with a smaller --learning-rate",
    )


def _row(
    task: Task, state: TrainState, step: int, infos: TrainInfo | None, valid_loss: float
) -> dict[str, float]:
    """One row of the metrics: means over a chunk, and the validation loss where there is one."""
    rate = float(task.learning_rate(np.int32(max(step - 1, 0))))
    row = {
        "valid_loss": valid_loss,
        "learning_rate": rate,
        "rounded": float(step > task.first_rounded),
    }
    if infos is None:
        windows = jax.ShapeDtypeStruct((task.batch_size, task.teacher.config.length + 1), np.int32)
        _, info = jax.eval_shape(task.trainer.step, state, windows)
        names = ["loss", "gradient_norm", *info.parts.losses, *info.parts.diagnostics]
        return row | dict.fromkeys(names, math.nan)
    found = {"loss": infos.parts.cross_entropy, "gradient_norm": infos.gradient_norm}
    found |= infos.parts.losses | infos.parts.diagnostics
    return row | {name: float(np.mean(np.asarray(x, np.float64))) for name, x in found.items()}


def compress(config: CompressConfig, teacher: Teacher) -> int:
    """Compress as ``config`` says, write file and run, and return the exit status."""
    told = run_inputs.Content(str(config.run), teacher.checksum)
    inputs = {"run": told}
    sessions.compare(config, inputs)
    other = comparison.read(config, teacher)
    task = _task(config, teacher)
    with sessions.begin(config, "compress", inputs) as session:
        _announce(task, session)
        units = task.batch_size * teacher.config.length
        outcome = session.advance(_program(task), unit="tokens", units_per_step=units)
        result = compress_report.Result(
            config,
            teacher,
            task.student,
            outcome,
            run=session.run,
            evaluate_fn=task.evaluate_fn,
            say=session.say,
            beside=other,
        )
        whole, summary = compress_report.build(result)
        return session.finish(outcome, whole, summary, compress_report.summary_text)


def _announce(task: Task, session: Session) -> None:
    """What the student is and which devices teach it, before it learns."""
    if jax.device_count() > 1:
        session.note(batch_remark(task.batch_size, task.mesh.size, jax.device_count()))
    smaller = ", ".join(f"{name} {size}" for name, size in task.student.sizes.items())
    weights = sum(x.size for x in jax.tree.leaves(task.student.params))
    session.say(
        f"{task.student.name} with {weights:,} weights" + (f" ({smaller})" if smaller else "")
    )
