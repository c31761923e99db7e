"""Exact predictions whose gradients pass the blocks of a model by surrogates of their Jacobians."""

from typing import Any

import jax
import jax.numpy as jnp

from vfejax.models.spans import DelayMap, mapped
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = ["past_blocks", "through_operators"]


@jax.custom_vjp
def _detour(value: Array, hidden: Array, maps: DelayMap) -> Array:
    """``value``, whose gradient also reaches ``hidden`` as if it were ``mapped(maps, hidden)``."""
    del hidden, maps
    return value


def _detour_forward(value: Array, hidden: Array, maps: DelayMap) -> tuple[Array, Any]:
    return value, (jax.ShapeDtypeStruct(hidden.shape, hidden.dtype), maps)


def _detour_backward(residuals: tuple[Any, DelayMap], slope: Array) -> tuple[Array, Array, Any]:
    hidden, maps = residuals
    back = jax.linear_transpose(
        lambda h: mapped(maps._replace(bias=jnp.zeros_like(maps.bias)), h), hidden
    )
    return slope, back(slope)[0], jax.tree.map(jnp.zeros_like, maps)


_detour.defvjp(_detour_forward, _detour_backward)


@jax.custom_vjp
def _passed(value: Array, hidden: Array) -> Array:
    """``value``, whose gradient also reaches ``hidden`` as it is."""
    del hidden
    return value


_passed.defvjp(lambda value, hidden: (value, None), lambda _, slope: (slope, slope))


def _visiting(model: SequenceModel) -> Any:
    if model.visit is None:
        raise ValueError("model must have blocks that hand on one stream, got one without visit")
    return model.visit


def through_operators(model: SequenceModel) -> SequenceModel:
    """The model with exact predictions, and gradients that pass each block by its operator.

    Its weights are ``{"model": params, "operators": DelayMap}``, with the maps stacked by layer;
    they have no gradient.

    Raises:
        ValueError: for a model whose blocks cannot be visited.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> maps = DelayMap(jnp.zeros((2, 16, 16)), jnp.zeros((2, 16)))
    >>> params = {"model": jax.eval_shape(model.init, jax.random.key(0)), "operators": maps}
    >>> tokens = jnp.ones((1, 8), int)
    >>> jax.eval_shape(through_operators(model).apply, params, tokens).logits.shape
    (1, 8, 11)
    """
    visit = _visiting(model)

    def apply(params: PyTree, batch: Batch | Array, key: Array | None = None) -> Prediction:
        maps = jax.lax.stop_gradient(params["operators"])

        def instead(number: Array, block_fn: Any, hidden: Array) -> tuple[Array, PyTree, None]:
            after, said = block_fn(jax.lax.stop_gradient(hidden))
            return _detour(after, hidden, jax.tree.map(lambda x: x[number], maps)), said, None

        return visit(params["model"], batch, instead, key)[0]

    return model._replace(apply=apply)


def past_blocks(model: SequenceModel, *, identity: bool) -> SequenceModel:
    """The model with exact predictions, and gradients that pass every block unchanged
    (``identity``), or that reach no block at all.

    Raises:
        ValueError: for a model whose blocks cannot be visited.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> passing = past_blocks(model, identity=True)
    >>> jax.eval_shape(passing.apply, params, jnp.ones((1, 8), int)).logits.shape
    (1, 8, 11)
    """
    visit = _visiting(model)
    stop = jax.lax.stop_gradient

    def instead(number: Array, block_fn: Any, hidden: Array) -> tuple[Array, PyTree, None]:
        del number
        if identity:
            after, said = block_fn(stop(hidden))
            return _passed(after, hidden), said, None
        after, said = stop(block_fn(stop(hidden)))
        return after, said, None

    def apply(params: PyTree, batch: Batch | Array, key: Array | None = None) -> Prediction:
        return visit(params, batch, instead, key)[0]

    return model._replace(apply=apply)
