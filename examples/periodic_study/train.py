"""Training and evaluation of one arm on one task, many seeds side by side as one program."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arms import ARMS, Arm, apply, init
from tasks import Task

__all__ = ["Settings", "World", "first_params", "make_lanes", "make_world"]


class Settings(NamedTuple):
    """Sizes of a run.

    Attributes:
        num_train: sequences of the training set of a seed.
        num_test: sequences that a seed is evaluated on, a multiple of 256 or fewer.
        num_steps: updates.
        batch_size: sequences of an update.
        share_hidden: probability that a symbol is hidden.
    """

    num_train: int = 2048
    num_test: int = 1024
    num_steps: int = 750
    batch_size: int = 32
    share_hidden: float = 0.3


class World(NamedTuple):
    """What a seed sees, the same in every arm. Drawn beforehand: random bits take longer to compile
    than the encoder.

    Attributes:
        tokens: sequences of every update, from the training set, ``[steps, b, n]``.
        hidden: their hidden places, bool ``[steps, b, n]``.
        shifts: rolls, for an arm that rolls its sequences, ``[steps, b]``.
        test: sequences of the evaluation ``[e, n]``.
        test_hidden: their hidden places, bool ``[e, n]``.
        optimal: exact predictions there, ``[e, n, V]``.
    """

    tokens: np.ndarray
    hidden: np.ndarray
    shifts: np.ndarray
    test: np.ndarray
    test_hidden: np.ndarray
    optimal: np.ndarray


def make_world(task: Task, seed: int, settings: Settings) -> World:
    """Draw the data of a seed: a training set, and other sequences to be evaluated on."""
    rng = np.random.default_rng([20261126, seed])
    parameters = task.parameters(rng)
    train = task.sample(rng, parameters, settings.num_train)
    test = task.sample(rng, parameters, settings.num_test)
    test_hidden = rng.random(test.shape) < settings.share_hidden
    optimal = task.predict(test, test_hidden, parameters)
    size = (settings.num_steps, settings.batch_size)
    tokens = train[rng.integers(settings.num_train, size=size)]
    hidden = rng.random(tokens.shape) < settings.share_hidden
    shifts = rng.integers(task.length, size=size)
    return World(
        tokens.astype(np.int8),
        hidden,
        shifts.astype(np.int8),
        test.astype(np.int8),
        test_hidden,
        optimal.astype(np.float32),
    )


def _loss(params: dict, arm: Arm, tokens: jax.Array, hidden: jax.Array) -> jax.Array:
    """Cross-entropy per hidden symbol, in nats."""
    logits = apply(params, arm, jnp.where(hidden, params["read"].shape[1], tokens))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return jnp.sum(jnp.where(hidden, losses, 0.0)) / jnp.maximum(jnp.sum(hidden), 1)


def _rolled(tokens: jax.Array, shifts: jax.Array) -> jax.Array:
    """Every sequence ``[b, n]`` rolled forward by its own number of places ``[b]``."""
    places = jnp.arange(tokens.shape[1], dtype=shifts.dtype)[None] - shifts[:, None]
    return jnp.take_along_axis(tokens, places % tokens.shape[1], axis=1)


def _excess(params: dict, arm: Arm, world: World) -> jax.Array:
    """``sum KL(optimal | predicted)`` over the hidden symbols of each place, ``[n]``, in nats."""
    num = world.test.shape[0]
    chunk = min(256, num)

    def one(chunked: tuple) -> jax.Array:
        tokens, hidden, optimal = chunked
        logits = apply(params, arm, jnp.where(hidden, optimal.shape[-1], tokens))
        ratio = jnp.log(optimal) - jax.nn.log_softmax(logits)
        return jnp.sum(jnp.where(hidden[..., None], optimal * ratio, 0.0), axis=(0, 2))

    parts = (world.test.astype(jnp.int32), world.test_hidden, world.optimal)
    chunks = jax.tree.map(lambda x: x.reshape(num // chunk, chunk, *x.shape[1:]), parts)
    return jnp.sum(jax.lax.map(one, chunks), axis=0)


def _train_one(
    params: dict, world: World, rate: jax.Array, arm: Arm, settings: Settings
) -> tuple[jax.Array, jax.Array]:
    """Train by Adam, with warm-up over a twentieth of the updates and a cosine down to 0.

    Returns:
        Training losses ``[steps]``, and the excess over the optimal loss, ``[n]``.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, max(1, settings.num_steps // 20), settings.num_steps
    )

    def step(carry: tuple, drawn: tuple) -> tuple[tuple, jax.Array]:
        params, state = carry
        number, tokens, hidden, shifts = drawn
        tokens = tokens.astype(jnp.int32)
        if arm.is_rolled:
            tokens = _rolled(tokens, shifts.astype(jnp.int32))
        loss, slope = jax.value_and_grad(_loss)(params, arm, tokens, hidden)
        updates, state = optimizer.update(slope, state)
        size = (-rate * schedule(number + 1)).astype(loss.dtype)
        params = jax.tree.map(lambda x, u: x + size * u, params, updates)
        return (params, state), loss

    numbers = jnp.arange(settings.num_steps)
    (params, _), losses = jax.lax.scan(
        step,
        (params, optimizer.init(params)),
        (numbers, world.tokens, world.hidden, world.shifts),
    )
    return losses, _excess(params, arm, world)


def make_lanes(
    arm: Arm, settings: Settings, compiler_options: dict | None = None
) -> Callable[[dict, World, jax.Array], tuple]:
    """A compiled ``(params [L, ...], worlds [L, ...], rates [L]) -> (losses [L, steps], excess [L,
    n])``, all L lanes side by side.
    """
    lanes = jax.vmap(lambda *lane: _train_one(*lane, arm, settings))
    return jax.jit(lanes, compiler_options=compiler_options)


def first_params(arm: str, seeds: Sequence[int], num_symbols: int) -> dict:
    """First weights of every seed, one after the other on a leading axis."""
    trees = [_first(seed, arm, num_symbols) for seed in seeds]
    return jax.tree.map(lambda *x: np.stack(x), *trees)


@functools.cache  # the lanes of a cell, its two cells and further tasks start at the same weights
def _first(seed: int, arm: str, num_symbols: int) -> dict:
    return jax.device_get(init(jax.random.key(seed), ARMS[arm], num_symbols))
