"""Gradients that pass the blocks of a model by a surrogate of their Jacobians.

Every block is run as it is and learns from the gradient at its output, but what goes on to the
block before is not that gradient times the block's Jacobian:

- :func:`koopman_trainer`: times that of the linear operator that predicts the block best, learned
  from the streams of the training itself;
- :func:`identity_trainer`: the gradient at the output, as if the block were skipped;
- :func:`readout_trainer`: nothing. Only what reads the last stream learns.

The loss is exact in all of them. They are there to be measured: what a block costs is mostly its
own weights' gradient, which no surrogate saves (``docs/results.md``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfejax.koopman import operators, streaming
from vfejax.koopman.streaming import Factor
from vfejax.models.span_fit import streams
from vfejax.models.spans import DelayMap, delayed, mapped
from vfejax.numerics import at_least_float32
from vfejax.training.losses import training_batch
from vfejax.training.step import trainer
from vfejax.types import (
    Array,
    Batch,
    Prediction,
    PyTree,
    SequenceModel,
    Trainer,
    TrainInfo,
    TrainState,
)

__all__ = [
    "KoopmanState",
    "identity_trainer",
    "koopman_trainer",
    "observed",
    "past_blocks",
    "readout_trainer",
    "through_operators",
]

_RIDGE = 1e-3  # of an operator, in units of the mean square of its coordinates


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


class KoopmanState(NamedTuple):
    """The optimiser's state, and what operators have seen of each block and are, stacked by layer.

    Attributes:
        optimizer: state of the optimiser.
        factor: of ``[1, h_t, h_{t-1}, ...]`` and the block's change of the stream.
        maps: the operators.
    """

    optimizer: PyTree
    factor: Factor
    maps: DelayMap


def observed(
    model: SequenceModel, params: PyTree, tokens: Array, factor: Factor, forgetting: float = 1.0
) -> tuple[Factor, DelayMap]:
    """Statistics of the blocks with a batch more, and the operators from them.

    Args:
        model: whose blocks can be visited.
        params: its weights.
        tokens: integers ``[b, n]``.
        factor: so far, stacked by layer.
        forgetting: factor of the weight of what was seen before.
    """
    seen = streams(model, params, tokens).astype(factor.now.dtype)
    dim = seen.shape[-1]
    delays = (factor.now.shape[-1] - 1) // dim

    def one(factor: Factor, before: Array, after: Array) -> tuple[Factor, DelayMap]:
        now = delayed(before, delays).reshape(-1, delays * dim)
        now = jnp.concatenate([jnp.ones_like(now[:, :1]), now], axis=1)
        old = factor._replace(
            now=factor.now * forgetting**0.5,
            cross=factor.cross * forgetting**0.5,
            residual=factor.residual * forgetting**0.5,
            count=factor.count * forgetting,
        )
        factor = streaming.update(old, now, (after - before).reshape(-1, dim))
        ridge = _RIDGE * jnp.sum(factor.now**2) / len(factor.now)
        found = operators.ridge(factor, ridge).T
        return factor, DelayMap(found[1:], found[0])

    return jax.lax.map(lambda x: one(*x), (factor, seen[:-1], seen[1:]))


def koopman_trainer(
    model: SequenceModel,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    padding: int | None = None,
    delays: int = 1,
    every: int = 10,
    forgetting: float = 0.9,
) -> Trainer:
    """Minimise the next-token loss by gradients that pass the blocks by linear operators.

    Args:
        model: whose blocks can be visited.
        optimizer: any optax transformation.
        key: source of all randomness in training.
        padding: the token that is neither read nor asked for.
        delays: tokens that an operator reads.
        every: updates after which the operators see another batch, at the cost of a forward pass.
        forgetting: factor of the weight of what they saw before.

    Returns:
        As :func:`vfejax.training.step.trainer`; the optimiser's state is a :class:`KoopmanState`.

    Raises:
        ValueError: for a model whose blocks cannot be visited.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> method = koopman_trainer(model, optax.sgd(0.1), jax.random.key(1))
    >>> state = jax.jit(method.init)(jax.random.key(0))
    >>> state.optimizer_state.maps.kernel.shape
    (2, 16, 16)
    """
    passing = through_operators(model)

    def inner(params: PyTree) -> Trainer:
        learns = {"model": jax.tree.map(lambda _: True, params)}
        learns["operators"] = DelayMap(False, False)  # type: ignore[arg-type]
        return trainer(passing, optimizer, key, padding=padding, trained=learns)

    def init(key: Array) -> TrainState:
        params = model.init(key)
        token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        layers, *_, dim = jax.eval_shape(lambda p, t: streams(model, p, t), params, token).shape
        layers, dtype = layers - 1, at_least_float32(jax.tree.leaves(params)[0].dtype)
        size = 1 + delays * dim
        factor = jax.tree.map(
            lambda x: jnp.zeros((layers, *x.shape), x.dtype),
            streaming.init(size, dim, dtype=dtype),
        )
        maps = DelayMap(
            jnp.zeros((layers, delays * dim, dim), dtype), jnp.zeros((layers, dim), dtype)
        )
        whole = {"model": params, "operators": DelayMap(None, None)}  # type: ignore[arg-type]
        state = KoopmanState(optimizer.init(whole), factor, maps)
        return TrainState(jnp.zeros((), jnp.int32), params, state)

    def step(state: TrainState, windows: Any) -> tuple[TrainState, TrainInfo]:
        batch = windows if isinstance(windows, Batch) else training_batch(windows, padding)
        before, factor, maps = state.optimizer_state
        factor, maps = jax.lax.cond(
            state.step % every == 0,
            lambda: observed(model, state.params, batch.tokens, factor, forgetting),
            lambda: (factor, maps),
        )
        whole = {"model": state.params, "operators": maps}
        after, info = inner(state.params).step(TrainState(state.step, whole, before), windows)
        told = KoopmanState(after.optimizer_state, factor, maps)
        return TrainState(after.step, after.params["model"], told), info

    def weights(state: TrainState) -> PyTree:
        whole = {"model": state.params, "operators": state.optimizer_state.maps}
        alone = TrainState(state.step, whole, state.optimizer_state.optimizer)
        return inner(state.params).weights(alone)["model"]

    return Trainer(init, step, weights)


def identity_trainer(
    model: SequenceModel,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    padding: int | None = None,
) -> Trainer:
    """Minimise the next-token loss by gradients that pass the blocks unchanged: the baseline of
    :func:`koopman_trainer`, with the same arguments.
    """
    return trainer(past_blocks(model, identity=True), optimizer, key, padding=padding)


def readout_trainer(
    model: SequenceModel,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    padding: int | None = None,
) -> Trainer:
    """Minimise the next-token loss by what reads the last stream alone; the blocks stay as they
    are. Arguments as of :func:`koopman_trainer`.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    learns = {
        name: jax.tree.map(lambda _, on=name != "blocks": on, part) for name, part in shapes.items()
    }
    reading = past_blocks(model, identity=False)
    return trainer(reading, optimizer, key, padding=padding, trained=learns)
