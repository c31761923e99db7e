"""Training of a sequence model as pure steps, to be scanned over a chunk of batches and compiled by
the caller.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfejax.training.losses import LossInfo, next_token_loss
from vfejax.types import Array, PyTree, SequenceModel

__all__ = ["TrainInfo", "TrainState", "Trainer", "trainer"]


class TrainState(NamedTuple):
    """Number of updates done, weights, and the optimiser's own state."""

    step: Array
    params: PyTree
    optimizer_state: PyTree


class TrainInfo(NamedTuple):
    """Before the update: the loss that was minimised (nats), its parts, and the norm of its
    gradient.
    """

    loss: Array
    parts: LossInfo
    gradient_norm: Array


class Trainer(NamedTuple):
    """``init(key) -> TrainState`` and ``step(state, windows [b, n + 1]) -> (TrainState,
    TrainInfo)``.
    """

    init: Callable[[Array], TrainState]
    step: Callable[[TrainState, Array], tuple[TrainState, TrainInfo]]


def trainer(
    model: SequenceModel,
    optimizer: optax.GradientTransformation,
    key: Array,
    *,
    padding: int | None = None,
    accumulation: int = 1,
) -> Trainer:
    """Minimise the next-token loss.

    Args:
        model: the model.
        optimizer: any optax transformation.
        key: source of all randomness in training; the step's own key is ``fold_in(key, step)``, so
            a run can go on from any step.
        padding: the token whose prediction does not count.
        accumulation: a batch is worked through in this many equal parts, one after the other, whose
            gradients are averaged: the memory of a
            small batch with the gradient of a large one.

    Returns:
        The pair of functions. To train, ``lax.scan(trainer.step, state, windows [steps, b, n +
        1])``.

    Raises:
        ValueError: at trace time, for a batch that ``accumulation`` does not divide.
    """

    def init(key: Array) -> TrainState:
        params = model.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    def gradient(
        params: PyTree, windows: Array, key: Array
    ) -> tuple[PyTree, tuple[Array, LossInfo]]:
        loss_fn = jax.value_and_grad(
            lambda p: next_token_loss(model, p, windows, key, padding), has_aux=True
        )
        (loss, parts), slope = loss_fn(params)
        return slope, (loss, parts)

    def averaged(
        params: PyTree, windows: Array, key: Array
    ) -> tuple[PyTree, tuple[Array, LossInfo]]:
        if windows.shape[0] % accumulation:
            raise ValueError(
                f"the batch must be a multiple of accumulation {accumulation}, got {windows.shape[0]}"
            )
        parts = windows.reshape(accumulation, -1, windows.shape[1])
        keys = jax.random.split(key, accumulation)

        def add(total: PyTree, part: tuple[Array, Array]) -> tuple[PyTree, tuple[Array, LossInfo]]:
            slope, info = gradient(params, *part)
            return jax.tree.map(lambda t, s: t + s / accumulation, total, slope), info

        slope, infos = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), (parts, keys))
        loss, info = jax.tree.map(lambda x: jnp.mean(x, axis=0).astype(x.dtype), infos)
        return slope, (loss, info._replace(num_tokens=jnp.sum(infos[1].num_tokens)))

    def step(state: TrainState, windows: Array) -> tuple[TrainState, TrainInfo]:
        gradient_fn = gradient if accumulation == 1 else averaged
        slope, (loss, parts) = gradient_fn(
            state.params, windows, jax.random.fold_in(key, state.step)
        )
        updates, optimizer_state = optimizer.update(slope, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, optimizer_state), TrainInfo(
            loss, parts, optax.tree.norm(slope)
        )

    return Trainer(init, step)
