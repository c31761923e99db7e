"""A ResNet-BK learns from scratch by exact gradients, and by gradients that pass its blocks by
operators.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np
from koopman_lessons import BATCH, LATER, LENGTH, START, Arm, Plan, build, learned, losses

from vfejax.data import batches
from vfejax.koopman import streaming
from vfejax.models import table
from vfejax.models.spans import DelayMap
from vfejax.training import step as steps
from vfejax.training import surrogate_gradients, surrogate_trainers
from vfejax.training.cost import product_flops
from vfejax.training.losses import next_token_loss, training_batch
from vfejax.types import PyTree, SequenceModel, Trainer

SMALL = {"dim": 64, "hidden": 64}
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
    "operators": surrogate_trainers.koopman_trainer,
    "identity": surrogate_trainers.identity_trainer,
    "readout": surrogate_trainers.readout_trainer,
}


def small(text: models.Text) -> SequenceModel:
    """The model that learns from scratch."""
    return build(text, "resnet-bk", table.MODELS["resnet-bk"].config(**SMALL))


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
        used, weights = (
            surrogate_gradients.through_operators(model),
            {"model": params, "operators": arrays},
        )
        forward = product_flops(lambda p, w: model.apply(p, w[:, :-1]).logits, params, windows)
        absorbed = 2 * BATCH * LENGTH * (1 + 2 * dim) ** 2 * layers
        further = (forward + absorbed) / every
    elif kind == "exact":
        used, weights = model, params
    else:
        used, weights = surrogate_gradients.past_blocks(model, identity=kind == "identity"), params

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
            factor, maps = surrogate_trainers.observed(model, params, tokens, factor)
        whole = {"model": params, "operators": maps}
        exact = gradient(model, params)
        others = {
            "operators": gradient(surrogate_gradients.through_operators(model), whole)["model"],
            "identity": gradient(surrogate_gradients.past_blocks(model, identity=True), params),
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
