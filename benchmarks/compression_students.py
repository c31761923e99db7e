"""How a student learns: its model, its losses, and its weights after all updates."""

import json
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np
from compression_settings import BATCH, CHUNK, LENGTH, SETTINGS, TEACHER, Job, Setting

from vfejax.compression import storage
from vfejax.compression.distill import distillation, trainable
from vfejax.compression.quantize import Scheme
from vfejax.compression.rules import rule
from vfejax.compression.storage import Form
from vfejax.data import batches
from vfejax.models import table
from vfejax.training import frozen_weights, sharding
from vfejax.training.evaluate import evaluator
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer
from vfejax.types import PyTree, SequenceModel, TrainState

LATER = 10_000  # added to the seed: batches that the teacher has not seen


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
        model = distillation(
            student, teacher, temperature=setting.temperature, weight=setting.weight
        )
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
    learns = trainable(abstract) if teacher else None

    def optimizer(rate: Any) -> Any:
        return adamw(warmup_cosine(rate, min(100, steps // 10), steps, 0.1))

    def init(params: PyTree, teacher_params: PyTree) -> TrainState:
        whole = joined(params, teacher_params)
        learning, _ = frozen_weights.split(whole, learns)
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
