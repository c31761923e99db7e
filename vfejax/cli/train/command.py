"""``vfejax train``: a next-token model learns a text.

Without arguments: ResNet-BK learns English, character by character, from the help topics that ship
with every Python.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.cli import language_models
from vfejax.cli import options as configuration
from vfejax.cli.train import report as train_report
from vfejax.cli.train.config import TrainConfig, check_values, model_options, parse
from vfejax.cli.train.corpora import train_corpus
from vfejax.data import tokenizers
from vfejax.data.batches import Batches, evaluation_windows
from vfejax.data.corpus import Corpus
from vfejax.data.files import atomic_write
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError
from vfejax.models.table import MODELS
from vfejax.runs import checkpoint
from vfejax.runs import directory as run_directory
from vfejax.runs.interrupt import Interrupt
from vfejax.runs.progress import progress
from vfejax.training import sharding
from vfejax.training.evaluate import EvaluateFn, evaluator
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import Trainer, TrainInfo, TrainState, trainer
from vfejax.types import SequenceModel

__all__ = ["main", "train"]


def main(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    if config.compute == "float64":
        jax.config.update("jax_enable_x64", True)
    return train(config)


class Best(NamedTuple):
    """Smallest validation loss so far (nats per token), its step, and the number of evaluations
    since then.
    """

    valid_loss: np.ndarray
    step: np.ndarray
    stale: np.ndarray


class Position(NamedTuple):
    """Everything a run needs to go on: what a checkpoint holds."""

    state: TrainState
    best: Best


def _best(valid_loss: float, step: int, stale: int) -> Best:
    return Best(np.float64(valid_loss), np.int64(step), np.int64(stale))


class Task(NamedTuple):
    """What is trained on what: fixed during a run."""

    config: TrainConfig
    corpus: Corpus
    model: SequenceModel
    trainer: Trainer
    learning_rate: Callable[[Any], Any]
    mesh: jax.sharding.Mesh
    evaluate_fn: EvaluateFn
    valid_windows: np.ndarray


def _own_tokenizer(config: TrainConfig) -> Tokenizer | None:
    """The tokenizer of the run that is resumed: its weights mean nothing with another."""
    path = config.out / "vocabulary.json"
    return tokenizers.load(path) if config.resume and path.exists() else None


def _trainer(
    config: TrainConfig, model: SequenceModel, rate: Callable[[Any], Any], key: jax.Array
) -> Trainer:
    """The model's own method of learning, or else gradient descent by AdamW.

    The windows of training are cut from the text and hold no padding.
    """
    own = MODELS[config.model].trainer
    if own is not None:
        return own(model, model_options(config), rate, key)
    optimizer = adamw(
        rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm, b2=config.beta2
    )
    return trainer(model, optimizer, key, accumulation=config.accumulation)


def _task(config: TrainConfig) -> Task:
    data = train_corpus(config, _own_tokenizer(config))
    padding = data.vocabulary.padding_id
    model = language_models.build(config, data.vocabulary.size, data.train.tokens)
    rate = warmup_cosine(config.learning_rate, config.warmup_steps, config.steps, config.final_rate)
    # Weights are drawn from the seed's key itself, so randomness in training must not share it.
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    method = _trainer(config, model, rate, key)
    mesh = sharding.data_mesh(config.batch_size)
    windows = evaluation_windows(
        data.valid.tokens,
        config.length,
        config.batch_size,
        padding,
        limit=config.eval_windows or None,
    )
    evaluate_fn = evaluator(model, mesh, padding)
    return Task(config, data, model, method, rate, mesh, evaluate_fn, windows)


def _start(task: Task, run: run_directory.RunDirectory) -> tuple[Position, bool]:
    """The newest checkpoint of a resumed run, else the initial state; and whether it is a fresh
    one.
    """
    config = task.config
    key = jax.random.key(config.seed)
    latest = checkpoint.latest_step(run) if config.resume else None
    if latest is None:
        # Runs once, so what counts is how fast it compiles.
        init = jax.jit(task.trainer.init, compiler_options={"xla_backend_optimization_level": 0})
        state = sharding.replicate(task.mesh, init(key))
        return Position(state, _best(math.inf, 0, 0)), True
    if latest > config.steps:
        raise UserError(
            f"--steps {config.steps}: the run in {config.out} is at step {latest} already; give at least that"
        )
    template = Position(jax.eval_shape(task.trainer.init, key), _best(0.0, 0, 0))
    position, _ = checkpoint.restore(run, template)
    checkpoint.discard_after(run.path / language_models.BEST, latest)
    best = position.best
    if checkpoint.latest_step(run.path / language_models.BEST) != best.step:
        # A later best had replaced it before the run was stopped: the next evaluation is the best
        # there is.
        best = _best(math.inf, 0, 0)
    return Position(sharding.replicate(task.mesh, position.state), best), False


def _row(
    task: Task, step: int, infos: TrainInfo | None, valid_loss: float, names: list[str]
) -> dict[str, float]:
    """One row of the metrics: means over a chunk, and the validation loss where there is one."""
    row = {
        "step": step,
        "valid_loss": valid_loss,
        "learning_rate": float(task.learning_rate(max(step - 1, 0))),
    }
    if infos is None:
        return row | dict.fromkeys(names, math.nan)
    found = {"loss": infos.parts.cross_entropy, "gradient_norm": infos.gradient_norm}
    found |= infos.parts.losses | infos.parts.diagnostics
    return row | {name: float(np.mean(np.asarray(found[name], np.float64))) for name in names}


def _columns(task: Task, state: TrainState) -> list[str]:
    """Names of what a step reports besides the validation loss."""
    config = task.config
    windows = jax.ShapeDtypeStruct((config.batch_size, config.length + 1), np.int32)
    _, info = jax.eval_shape(task.trainer.step, state, windows)
    return ["loss", "gradient_norm", *info.parts.losses, *info.parts.diagnostics]


def _advance(
    task: Task,
    run: run_directory.RunDirectory,
    position: Position,
    fresh: bool,
    interrupt: Interrupt,
) -> None:
    """Train to the last step, an early stop or an interruption, writing metrics and checkpoints."""
    config = task.config
    batches = Batches(task.corpus.train.tokens, config.batch_size, config.length, config.seed)
    names = _columns(task, position.state)
    chunk = jax.jit(
        lambda state, windows: jax.lax.scan(task.trainer.step, state, windows), donate_argnums=0
    )
    state, best = position
    step = int(state.step)

    def evaluated(step: int, state: TrainState, best: Best) -> tuple[float, Best]:
        loss = task.evaluate_fn(state.params, task.valid_windows).nats_per_token
        if not loss < best.valid_loss:
            return loss, best._replace(stale=best.stale + 1)
        meta = {"step": step, "valid_loss": loss}
        checkpoint.save(run.path / language_models.BEST, step, state.params, meta, keep=1)
        return loss, _best(loss, step, 0)

    def log(row: dict[str, float]) -> None:
        run_directory.append_metrics(run, list(row), [list(row.values())])

    if fresh:
        loss, best = evaluated(0, state, best)
        log(_row(task, 0, None, loss, names))
        checkpoint.save(run.path, 0, Position(state, best), {})
    window_tokens = config.batch_size * config.length
    bar = progress(
        config.steps,
        quiet=config.quiet,
        description="train",
        start=step,
        unit="tokens",
        units_per_step=window_tokens,
    )
    with bar as update:
        stopped = 0 < config.patience <= best.stale  # a run that had stopped early is not continued
        while step < config.steps and not interrupt.requested and not stopped:
            num_steps = min(config.log_every, config.steps - step)
            state, infos = chunk(
                state, sharding.split_batches(task.mesh, batches.at(step, num_steps))
            )
            _check_finite(infos, step, run.path)
            step += num_steps
            loss = math.nan
            if step % config.eval_every == 0 or step == config.steps:
                loss, best = evaluated(step, state, best)
                stopped = 0 < config.patience <= best.stale
            row = _row(task, step, infos, loss, names)
            log(row)
            update(step, {"loss": row["loss"], "best valid": float(best.valid_loss)})
            if (
                step % config.checkpoint_every == 0
                or step == config.steps
                or interrupt.requested
                or stopped
            ):
                checkpoint.save(run.path, step, Position(state, best), {})


def _check_finite(infos: TrainInfo, step: int, path: Path) -> None:
    finite = np.isfinite(np.asarray(infos.loss)) & np.isfinite(np.asarray(infos.gradient_norm))
    if not finite.all():
        raise UserError(
            f"training diverged: loss or gradient is not finite at step {step + int(np.argmin(finite)) + 1}. The last good checkpoint is step "
            f"{checkpoint.latest_step(path)} in {path}; try a smaller --learning-rate"
        )


def train(config: TrainConfig) -> int:
    """Train as ``config`` says, write the run's directory, and return the exit status."""
    began = time.perf_counter()
    task = _task(config)
    settings = configuration.settings(config)
    with configuration.open_run(config) as run, Interrupt() as interrupt:
        position, fresh = _start(task, run)
        if config.resume:
            run_directory.write_config(run, settings)
            run_directory.truncate_metrics(run, -1 if fresh else int(position.state.step))
        vocabulary_file = run.path / "vocabulary.json"
        if not vocabulary_file.exists():  # a resumed run keeps its own
            tokenizers.save(vocabulary_file, task.corpus.vocabulary)
        _advance(task, run, position, fresh, interrupt)
        stop_fn = lambda: interrupt.requested  # noqa: E731
        evaluate_fn = partial(task.evaluate_fn, stop_fn=stop_fn)
        summary = train_report.write(config, task.corpus, task.model, run, evaluate_fn, settings)
    summary["seconds"] = round(time.perf_counter() - began, 1)
    atomic_write(config.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    if not config.quiet:
        print(train_report.summary_text(summary))
        print(f"report: {config.out / 'report.html'}")
    if interrupt.requested:
        raise KeyboardInterrupt
    return 0
