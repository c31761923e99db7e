"""Training by gradients that pass the blocks of a model by a surrogate of their Jacobians.

Every block is run as it is and learns from the gradient at its output, but what goes on to the
block before is not that gradient times the block's Jacobian:

- :func:`koopman_trainer`: times that of the linear operator that predicts the block best, learned
  from the streams of the training itself;
- :func:`identity_trainer`: the gradient at the output, as if the block were skipped;
- :func:`readout_trainer`: nothing. Only what reads the last stream learns.

The loss is exact in all of them. They are there to be measured: what a block costs is mostly its
own weights' gradient, which no surrogate saves (``docs/results/koopman.md``).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfejax.koopman import operators, streaming
from vfejax.koopman.streaming import Factor
from vfejax.models.span_fit import streams
from vfejax.models.spans import DelayMap, delayed
from vfejax.numerics import at_least_float32
from vfejax.training.losses import training_batch
from vfejax.training.step import trainer
from vfejax.training.surrogate_gradients import past_blocks, through_operators
from vfejax.types import (
    Array,
    Batch,
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
    "readout_trainer",
]

_RIDGE = 1e-3  # of an operator, in units of the mean square of its coordinates


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

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> params = jax.eval_shape(model.init, jax.random.key(0))
    >>> factor = jax.tree.map(lambda x: jnp.stack([x] * 2), streaming.init(17, 16))
    >>> tokens = jnp.ones((1, 8), int)
    >>> jax.eval_shape(lambda p: observed(model, p, tokens, factor), params)[1].kernel.shape
    (2, 16, 16)
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


def _nothing_observed(model: SequenceModel, params: PyTree, delays: int) -> tuple[Factor, DelayMap]:
    """Statistics of the blocks before all batches, and operators that are 0."""
    token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    num, *_, dim = jax.eval_shape(lambda p, t: streams(model, p, t), params, token).shape
    layers, dtype = num - 1, at_least_float32(jax.tree.leaves(params)[0].dtype)
    factor = jax.tree.map(
        lambda x: jnp.zeros((layers, *x.shape), x.dtype),
        streaming.init(1 + delays * dim, dim, dtype=dtype),
    )
    kernel = jnp.zeros((layers, delays * dim, dim), dtype)
    return factor, DelayMap(kernel, jnp.zeros((layers, dim), dtype))


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
        factor, maps = _nothing_observed(model, params, delays)
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
    :func:`koopman_trainer`.

    Args:
        model: whose blocks can be visited.
        optimizer: any optax transformation.
        key: source of all randomness in training.
        padding: the token that is neither read nor asked for.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> method = identity_trainer(model, optax.sgd(0.1), jax.random.key(1))
    >>> jax.eval_shape(method.init, jax.random.key(0)).step.shape
    ()
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
    are.

    Args:
        model: whose blocks can be visited, and are its weights ``blocks``.
        optimizer: any optax transformation.
        key: source of all randomness in training.
        padding: the token that is neither read nor asked for.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> method = readout_trainer(model, optax.sgd(0.1), jax.random.key(1))
    >>> jax.eval_shape(method.init, jax.random.key(0)).step.shape
    ()
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    learns = {
        name: jax.tree.map(lambda _, on=name != "blocks": on, part) for name, part in shapes.items()
    }
    reading = past_blocks(model, identity=False)
    return trainer(reading, optimizer, key, padding=padding, trained=learns)
