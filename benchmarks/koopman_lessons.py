"""What both parts of ``koopman_language.py`` share: arms, models of a text, how they learn, and
their losses.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_models as models

from vfejax.data import batches
from vfejax.models import table
from vfejax.training import sharding
from vfejax.training.evaluate import evaluator
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.types import PyTree, SequenceModel, Trainer

LENGTH, BATCH = models.LENGTH, models.BATCH
START = adamw(warmup_cosine(1.0, 1, 2, 0.1))  # makes the optimiser's first state
CHUNK = 50
WINDOWS = 240  # of the validation text, and of the training text by which a rate is chosen
LATER = 10_000  # added to the seed: batches that the teacher has not seen


class Arm(NamedTuple):
    """One row: what learns, and for which share of the updates."""

    kind: str
    tuned: str = "all"
    share: float = 1.0


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
