"""A block of a trained ResNet-BK is replaced by an operator, or skipped, and distilled."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np
from koopman_lessons import LATER, LENGTH, START, Arm, Plan, build, learned, losses

from vfejax import runs
from vfejax.compression.distill import distillation, trainable
from vfejax.data import batches
from vfejax.models import table
from vfejax.models.koopman.conversion import converted
from vfejax.training import step as steps
from vfejax.training.cost import product_flops
from vfejax.types import PyTree, SequenceModel, Trainer

BLOCK = 1  # the one that is replaced
FITTED = (4, 96)  # batches and windows that operators are fitted on

SKIPPED = "skipped, then all weights"
BLOCKS = {
    "untouched": Arm("teacher", "none"),
    "skipped": Arm("skipped", "none"),
    SKIPPED: Arm("skipped"),
    "operator": Arm("operator", "none"),
    "operator, then alone": Arm("operator", "operator"),
    "operator, then all weights": Arm("operator"),
}


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
        params, config = converted_once(model, config, whole, tokens)
        cost = 2 * (config.delays + 1) * config.dim * config.rank
        return build(text, "koopman", config), params, cost
    kept = np.asarray([n for n in range(config.layers) if n != BLOCK])
    params = whole | {"blocks": jax.tree.map(lambda x: x[kept], whole["blocks"])}
    shallow = table.MODELS["resnet-bk"].config(layers=len(kept))
    return build(text, "resnet-bk", shallow), params, 0


def converted_once(model: SequenceModel, config: Any, params: PyTree, tokens: Any) -> Any:
    """The weights with an operator and the options, by one compiled program."""
    found = {}

    def fit(params: PyTree, tokens: jax.Array) -> PyTree:
        weights, found["config"] = converted(config, model, params, tokens, (BLOCK,))
        return weights

    weights = jax.jit(fit)(params, tokens)
    return weights, found["config"]


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
        lesson = distillation(model, tutor)
        whole = {"student": params, "teacher": known}
        learns = trainable(whole)
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
