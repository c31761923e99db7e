"""``vfejax train``: a next-token model learns a text.

Without arguments: ResNet-BK learns English, character by character, from the help topics that ship
with every Python.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from vfejax.cli import drawing, executable_cache
from vfejax.cli import session as sessions
from vfejax.cli.background import compile_beside, import_beside
from vfejax.cli.distributed import check_group, joined
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.session import Session
from vfejax.cli.train import devices, metric_columns
from vfejax.cli.train import model as train_model
from vfejax.cli.train.best import NONE, Best, BestWeights
from vfejax.cli.train.config import TrainConfig, parse, with_defaults
from vfejax.cli.train.corpora import named_inputs, train_corpus
from vfejax.cli.train.limits import check_values
from vfejax.cli.train.trainer import trainer_of
from vfejax.data import tokenizers
from vfejax.data.batches import Batches, evaluation_windows
from vfejax.data.corpus import Corpus
from vfejax.data.tokenizers import Tokenizer
from vfejax.runs import loop, processes
from vfejax.runs.chunk import compiled
from vfejax.runs.seeds import random_key
from vfejax.training import sharding
from vfejax.training.evaluate import EvaluateFn, evaluator
from vfejax.training.optimizer import warmup_cosine
from vfejax.types import PyTree, Trainer, TrainInfo, TrainState

__all__ = ["main", "train"]

_LATER = ("orbax.checkpoint", "vfejax.cli.train.report")
_FEWEST_BATCHES = 8  # that are evaluated in one call where there are more


def main(arguments: Sequence[str]) -> int:
    """Parse, run, and return the exit status."""
    config = parse(arguments)
    check_values(config)
    check_group(config)
    if config.compute == "float64":
        jax.config.update("jax_enable_x64", True)
    with joined(config, "train", lambda: named_inputs(config, config.out)):
        return train(config)


class Task(NamedTuple):
    """What is trained on what: fixed during a run."""

    config: TrainConfig
    corpus: Corpus
    start: train_model.Start
    trainer: Trainer
    learning_rate: Callable[[Any], Any]
    mesh: jax.sharding.Mesh
    evaluate_fn: EvaluateFn
    valid_windows: np.ndarray


def _learning_rate(config: TrainConfig) -> Callable[[Any], Any]:
    peak = cast(float, with_defaults(config).learning_rate)
    return warmup_cosine(peak, config.warmup_steps, config.steps, config.final_rate)


def _own_tokenizer(config: TrainConfig) -> Tokenizer | None:
    """The tokenizer of the run that is resumed: its weights mean nothing with another."""
    path = config.out / "vocabulary.json"
    return tokenizers.load(path) if config.resume and path.exists() else None


def _task(config: TrainConfig) -> Task:
    data = train_corpus(config, _own_tokenizer(config))
    padding = data.vocabulary.padding_id
    start = train_model.start(config, data.vocabulary.size, data.train.tokens)
    rate = _learning_rate(config)
    # Weights are drawn from the seed's key itself, so randomness in training must not share it.
    key = jax.random.fold_in(random_key(config.seed), 1)
    trainer = trainer_of(config, start, rate, key)
    mesh = devices.train_mesh(config)
    windows = evaluation_windows(
        data.valid.tokens,
        config.length,
        config.batch_size,
        padding,
        limit=config.eval_windows or None,
    )
    # One program for the evaluations during the run and for those at its end.
    together = min(max(len(windows), _FEWEST_BATCHES), 32)
    rule = devices.rule_of_weights(config)
    evaluate_fn = evaluator(start.model, mesh, padding, together, rule, executable_cache.jit)
    # Asked for outside of steps too: one program in place of nine for its operations.
    return Task(
        config, data, start, trainer, executable_cache.jit(rate), mesh, evaluate_fn, windows
    )


def _first_state(task: Task) -> TrainState:
    key = random_key(task.config.seed)
    if task.start.trained is not None:  # weights that were read: nothing to compute
        return task.trainer.init(key)
    shapes = executable_cache.shapes(task.trainer.init, key)
    places = devices.shardings(task.config, task.mesh, shapes)
    return compiled_once(task.trainer.init, out_shardings=places)(key)


def _evaluation(
    task: Task, weights: BestWeights
) -> Callable[[int, TrainState, Best], tuple[float, Best]]:
    """``(step, state, best) -> (validation loss, best)``; new best weights are saved."""
    weights_fn = executable_cache.jit(task.trainer.weights)

    def evaluated(step: int, state: TrainState, before: Best) -> tuple[float, Best]:
        params = weights_fn(state)
        loss = task.evaluate_fn(params, task.valid_windows).nats_per_token
        loss = processes.said_by_first(loss)  # so that all find the same weights best
        return loss, weights.compared(step, task.start.learning(params), loss, before)

    return evaluated


def _inputs(task: Task) -> Callable[[int, int], Any]:
    """``(step, num_steps) -> batches`` on the devices; each process reads its share."""
    config, share = task.config, (processes.index(), processes.count())
    tokens = task.corpus.train.tokens
    batches = Batches(tokens, config.batch_size, config.length, config.seed, share)
    return lambda step, num_steps: sharding.split_batches(task.mesh, batches.at(step, num_steps))


def _stored(task: Task, state: TrainState) -> TrainState:
    """The state as checkpoints hold it: without the weights that stay."""
    return state._replace(params=task.start.learning(state.params))


def _placed(task: Task, state: TrainState) -> TrainState:
    """The whole state on its devices."""
    whole = state._replace(params=task.start.whole(state.params))
    return sharding.place(whole, devices.shardings(task.config, task.mesh, whole))


def _begin(task: Task, program: loop.Program) -> None:
    """Compile the first updates of a new run in a thread, while its first weights are drawn and
    evaluated.
    """
    config = task.config
    if not config.steps or task.start.trained is not None:
        return
    shapes = executable_cache.shapes(task.trainer.init, random_key(config.seed))
    places = devices.shardings(config, task.mesh, shapes)
    inputs, num_steps = _first_inputs(task)
    compile_beside(program.step, shapes, num_steps, executable_cache.jit, inputs, places)


def _first_inputs(task: Task) -> tuple[Any, int]:
    """What the first chunk of updates reads, and how many there are in it."""
    config = task.config
    num_steps = min(config.log_every, config.steps or config.log_every)
    return _inputs(task)(0, num_steps), num_steps


def _program(task: Task, session: Session) -> loop.Program:
    """Training as the loop runs it: after a chunk, evaluation where it is due."""
    config, weights = task.config, BestWeights(session.run)
    evaluated = _evaluation(task, weights)
    update = sharding.in_scope(task.mesh, task.trainer.step)

    def observe(
        step: int, state: TrainState, infos: TrainInfo | None, best: Best
    ) -> loop.Observation:
        loss = math.nan
        if step % config.eval_every == 0 or step == config.steps:
            loss, best = evaluated(step, state, best)
        row = _row(task, step, loss)
        row |= _blank(task, update, state) if infos is None else metric_columns.means(infos)
        shown = {"loss": row["loss"], "best valid": float(best.valid_loss)}
        return loop.Observation(row, best, shown, _stop(config, step, best))

    def prepare(step: int, state: TrainState, best: Best) -> Best:
        if weights.restored(step, best):
            return best
        # They are lost, so those of the checkpoint are the best there are.
        return evaluated(step, state, NONE)[1]

    def init() -> TrainState:
        weights.discard()
        return _stored(task, _first_state(task))

    return loop.Program(
        init=init,
        template=lambda: _stored(task, task.trainer.init(random_key(config.seed))),
        place=partial(_placed, task),
        shardings=lambda shapes: devices.shardings(config, task.mesh, shapes),
        stored=partial(_stored, task),
        step=update,
        observe=observe,
        memory=NONE,
        inputs=_inputs(task),
        watched=lambda infos: {"loss": infos.loss, "gradient norm": infos.gradient_norm},
        advice="go on with --resume and a smaller --learning-rate",
        prepare=prepare,
        saved=lambda step, best: weights.saved(best),
        ended=lambda step, best: _stop(config, step, best),
    )


def _stop(config: TrainConfig, step: int, best: Best) -> str:
    """Why the training ends early; empty when it does not."""
    if not 0 < config.patience <= best.stale:
        return ""
    return (
        f"stopped early at step {step}: {int(best.stale)} evaluations without a better loss than "
        f"{float(best.valid_loss):.6g}; --resume with a larger --patience than {config.patience} "
        "goes on"
    )


def _row(task: Task, step: int, valid_loss: float) -> dict[str, float]:
    """What a row of the metrics says besides what updates report."""
    rate = float(task.learning_rate(np.int32(max(step - 1, 0))))
    return {"valid_loss": valid_loss, "learning_rate": rate}


def _blank(
    task: Task, update: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], state: TrainState
) -> dict[str, float]:
    """The same columns before the first update."""
    _, infos = executable_cache.shapes(
        compiled(update, state, executable_cache.jit), state, *_first_inputs(task)
    )
    return dict.fromkeys(metric_columns.columns(infos), math.nan)


def _remarks(task: Task, session: Session) -> None:
    """What a user should know about devices, data and learning rate before it begins."""
    config, present = task.config, jax.device_count()
    start = session.start  # refuses a run that is beyond --steps already
    if present > 1:
        template = executable_cache.shapes(task.trainer.init, random_key(config.seed))
        session.note(devices.remark(config, task.mesh, present, template))
    if 0 < config.steps < config.warmup_steps + 2:
        session.note(
            f"--steps {config.steps} leave no room for --warmup-steps {config.warmup_steps}: the "
            f"warm-up is shortened to {max(config.steps - 2, 0)}"
        )
    if np.ptp(task.corpus.train.tokens) == 0:
        session.note(
            f"all {len(task.corpus.train.tokens):,} training tokens are the same, so that there is "
            "nothing to learn; give data with more than one kind of token"
        )
    if start and start < config.steps:
        _announce_rate(task, session, start)


def _announce_rate(task: Task, session: Session, start: int) -> None:
    """Say so when the learning rate of a resumed run is not what it would have been."""
    before = _learning_rate(cast(TrainConfig, session.before))
    last, planned, following = before(start - 1), before(start), task.learning_rate(np.int32(start))
    if not math.isclose(float(planned), float(following), rel_tol=0.01):
        session.note(
            f"the learning rate goes from {float(last):.3g} to {float(following):.3g} at step "
            f"{start}, since the cosine now ends at step {task.config.steps}"
        )


def train(config: TrainConfig) -> int:
    """Train as ``config`` says, write the run's directory, and return the exit status."""
    import_beside(*_LATER)
    inputs = named_inputs(config, config.out)
    sessions.compare(config, inputs)
    task = _task(config)
    with sessions.begin(config, "train", inputs) as session:
        own = (session.run.path / "vocabulary.json").exists()  # a resumed run keeps it
        if processes.leads() and not own:
            tokenizers.save(session.run.file("vocabulary.json"), task.corpus.vocabulary)
        _remarks(task, session)
        window_tokens = config.batch_size * config.length
        program = _program(task, session)
        if session.start is None:
            _begin(task, program)
        outcome = session.advance(program, unit="tokens", units_per_step=window_tokens)
        from vfejax.cli.train import report as train_report

        drawing.begin()
        session.say("evaluating the best weights and counting the baselines")
        report, summary = train_report.build(
            config,
            task.corpus,
            task.start,
            session.run,
            task.evaluate_fn,
            stop_fn=lambda: outcome.interrupted,
        )
        summary |= {"stopped_early": bool(outcome.stop)}
        return session.finish(outcome, report, summary, train_report.summary_text)
