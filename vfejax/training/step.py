"""Training of a sequence model as pure steps, to be scanned over a chunk of batches and compiled by
the caller.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vfejax.training import frozen_weights
from vfejax.training.losses import (
    counted_targets,
    next_token_loss,
    token_nats,
    training_batch,
)
from vfejax.training.momentum import eval_params
from vfejax.types import (
    Array,
    Batch,
    LossInfo,
    Prediction,
    PyTree,
    SequenceModel,
    Trainer,
    TrainInfo,
    TrainState,
)

__all__ = ["TrainInfo", "TrainState", "Trainer", "trainer"]

_Gradient = tuple[PyTree, tuple[Array, LossInfo]]


def trainer(
    model: SequenceModel,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    padding: int | None = None,
    accumulation: int = 1,
    trained: PyTree | None = None,
    weights_fn: Callable[[PyTree, Array], PyTree] | None = None,
) -> Trainer:
    """Minimise the next-token loss.

    Args:
        model: the model.
        optimizer: an optax transformation. One that asks for the value of the loss, such as
            ``optax.contrib.reduce_on_plateau``, is given it; line searches, which ask for the loss
            as a function, need a loop of their own.
        key: source of all randomness in training; the step's own key is ``fold_in(key, step)``, so
            a run can go on from any step.
        padding: the token that is neither read nor asked for.
        accumulation: a batch is worked through in this many equal parts, one after the other: the
            memory of a small batch with the loss and the gradient of the large one, padding and
            balance of experts included (dropout and routing noise are drawn for each part). A model
            whose further loss terms are made from statistics reads every part twice, once for the
            statistics of the whole batch; terms that ``summarize`` does not make count as means
            over the real tokens.
        trained: True for the weights that learn, a tree like the parameters; all by default. The
            others have no gradient and no place in the optimiser's state, and keep their bits; see
            :mod:`vfejax.training.frozen_weights`.
        weights_fn: ``weights_fn(params, step) -> params``: what the model reads in place of all
            weights at the update of that number, such as rounded ones from some step on. Gradients
            pass through it, to the weights themselves; None for the weights as they are.

    Returns:
        The functions. To train, ``lax.scan(trainer.step, state, windows [steps, b, n + 1])``;
        instead of windows ``step`` also takes a :class:`vfejax.types.Batch` with targets.
        ``weights`` are :func:`vfejax.training.momentum.eval_params`.

    Raises:
        ValueError: at trace time, for a batch that ``accumulation`` does not divide.

    >>> from vfejax.models import table
    >>> model = table.build("transformer", table.MODELS["transformer"].tiny, 11, length=8)
    >>> method = trainer(model, optax.sgd(0.1), jax.random.key(1))
    >>> state = jax.jit(method.init)(jax.random.key(0))
    >>> state, info = jax.jit(method.step)(state, jnp.ones((2, 9), int))
    >>> int(state.step), int(info.parts.num_tokens)
    (1, 16)
    """
    if accumulation < 1:
        raise ValueError(f"accumulation must be at least 1, got {accumulation}")
    updating = optax.with_extra_args_support(optimizer)

    def init(key: Array) -> TrainState:
        params = model.init(key)
        learning, _ = frozen_weights.split(params, trained)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(learning))

    def step(state: TrainState, windows: Array | Batch) -> tuple[TrainState, TrainInfo]:
        batch = windows if isinstance(windows, Batch) else training_batch(windows, padding)
        step_key = jax.random.fold_in(key, state.step)
        learning, fixed = frozen_weights.split(state.params, trained)
        learner = frozen_weights.fix(_reading(model, weights_fn, state.step), fixed)
        if accumulation == 1:
            gradient, (loss, info) = _gradient(learner, learning, batch, step_key, padding)
        else:
            parts, keys = _parts(batch, accumulation), jax.random.split(step_key, accumulation)
            gradient, (loss, info) = _accumulated(learner, learning, parts, keys, padding)
        updates, optimizer_state = updating.update(
            gradient, state.optimizer_state, learning, value=loss
        )
        params = frozen_weights.merge(optax.apply_updates(learning, updates), fixed)
        return TrainState(state.step + 1, params, optimizer_state), TrainInfo(
            loss, info, optax.tree.norm(gradient)
        )

    def weights(state: TrainState) -> PyTree:
        learning, fixed = frozen_weights.split(state.params, trained)
        return frozen_weights.merge(eval_params(learning, state.optimizer_state), fixed)

    return Trainer(init, step, weights)


def _reading(
    model: SequenceModel, weights_fn: Callable[[PyTree, Array], PyTree] | None, step: Array
) -> SequenceModel:
    """The model that reads what ``weights_fn`` makes of its weights."""
    if weights_fn is None:
        return model

    def apply(params: PyTree, *inputs: Any) -> Any:
        return model.apply(weights_fn(params, step), *inputs)

    return model._replace(apply=apply)


def _gradient(
    model: SequenceModel, params: PyTree, batch: Batch, key: Array, padding: int | None
) -> _Gradient:
    """Gradient, loss and its parts of a whole batch."""
    loss_fn = jax.value_and_grad(
        lambda p: next_token_loss(model, p, batch, key, padding), has_aux=True
    )
    found, gradient = loss_fn(params)
    return gradient, found


def _parts(batch: Batch, count: int) -> Batch:
    """The batch in ``count`` equal parts, stacked. Every part takes sequences from all over the
    batch, so that devices which share the batch share each of its parts.
    """
    size = batch.tokens.shape[0]
    if size % count:
        raise ValueError(f"the batch must be a multiple of accumulation {count}, got {size}")
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(size // count, count, *x.shape[1:]), 0, 1), batch
    )


def _add(total: PyTree, part: PyTree) -> PyTree:
    return jax.tree.map(lambda t, p: t + p.astype(t.dtype), total, part)


def _zeros_like(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _total_statistics(model: SequenceModel, params: PyTree, parts: Batch, keys: Array) -> PyTree:
    """The statistics of a batch from those of its parts."""

    def statistics(part: Batch, key: Array) -> PyTree:
        return model.apply(params, part, key).statistics

    def add(total: PyTree, part: tuple[Batch, Array]) -> tuple[PyTree, None]:
        return _add(total, statistics(*part)), None

    first = jax.eval_shape(statistics, *jax.tree.map(lambda x: x[0], (parts, keys)))
    return jax.lax.scan(add, _zeros_like(first), (parts, keys))[0]


def _accumulated(
    model: SequenceModel, params: PyTree, parts: Batch, keys: Array, padding: int | None
) -> _Gradient:
    """Gradient and loss of a batch given in parts.

    Cross-entropies add up once divided by the number of tokens of the whole batch. Further terms
    are functions f of sums S over the batch, so that the gradient is the sum of ``<f'(S), dS>``
    over the parts: one pass for S, and one for the parts' gradients with f'(S) held fixed. Terms
    that are not made from statistics are taken for means over tokens.
    """
    targets, counts = jax.vmap(lambda part: counted_targets(part, padding))(parts)
    num_tokens = jnp.sum(counts)
    shares = jnp.sum(counts, axis=(1, 2)) / jnp.maximum(num_tokens, 1)
    shares = jnp.where(num_tokens == 0, 1.0 / shares.shape[0], shares)
    abstract = jax.eval_shape(model.apply, params, *jax.tree.map(lambda x: x[0], (parts, keys)))
    summarize = _no_terms if model.summarize is None else model.summarize
    made = jax.eval_shape(summarize, abstract.statistics)
    slopes = None
    if made[0]:
        total = _total_statistics(model, params, parts, keys)
        slopes = jax.grad(lambda sums: _sum(summarize(sums)[0].values()))(total)

    def part_loss(
        params: PyTree, part: Batch, key: Array, targets: Array, counts: Array, share: Array
    ) -> tuple[Array, PyTree]:
        prediction = model.apply(params, part, key)
        nats, _ = token_nats(prediction.logits, targets, counts=counts)
        cross_entropy = jnp.sum(nats) / jnp.maximum(num_tokens, 1).astype(nats.dtype)
        means = _means(prediction, made, share)
        loss = _with_terms(cross_entropy, means[0])
        if slopes is not None:
            loss = _with_terms(loss, {"": _inner(slopes, prediction.statistics)})
        sums = () if model.summarize is None else prediction.statistics
        return loss, (cross_entropy, means, sums)

    def add(total: PyTree, part: tuple[Any, ...]) -> tuple[PyTree, None]:
        gradient, aux = jax.grad(part_loss, has_aux=True)(params, *part)
        return _add(total, (gradient, aux)), None

    inputs = (parts, keys, targets, counts, shares)
    first = jax.tree.map(lambda x: x[0], inputs)
    aux = jax.eval_shape(part_loss, params, *first)[1]
    start = _zeros_like((params, aux))
    (gradient, (cross_entropy, means, sums)), _ = jax.lax.scan(add, start, inputs)
    losses, diagnostics = (a | b for a, b in zip(summarize(sums), means, strict=True))
    loss = _with_terms(cross_entropy, losses)
    return gradient, (loss, LossInfo(cross_entropy, num_tokens, losses, diagnostics))


def _no_terms(statistics: PyTree) -> tuple[dict[str, Array], dict[str, Array]]:
    """The summary of a model without statistics."""
    del statistics
    return {}, {}


def _means(
    prediction: Prediction, made: tuple[PyTree, PyTree], share: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Terms and diagnostics that statistics do not make, times the share of the tokens."""
    losses, diagnostics = (
        {name: x * share.astype(x.dtype) for name, x in found.items() if name not in known}
        for found, known in zip((prediction.losses, prediction.diagnostics), made, strict=True)
    )
    return losses, diagnostics


def _with_terms(cross_entropy: Array, losses: dict[str, Array]) -> Array:
    """Cross-entropy and further terms, added up in its precision."""
    for term in losses.values():
        cross_entropy = cross_entropy + term.astype(cross_entropy.dtype)
    return cross_entropy


def _inner(slopes: PyTree, sums: PyTree) -> Array:
    """``sum slopes * sums`` over all leaves."""
    return _sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), slopes, sums)))


def _sum(terms: Iterable[Array]) -> Array:
    """Scalars added up, at least one of them."""
    return jnp.sum(jnp.stack(list(terms)))
