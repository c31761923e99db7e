"""Decoding in which a token may leave the stack of blocks: what is judged, what is timed,
and the affine maps before the head, compiled for a size of model and a text.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import adaptive_arms as arms
import jax
import jax.numpy as jnp
import language_models as models
import optax
from flax import nnx

from vfejax.models import table
from vfejax.training.losses import token_nats
from vfejax.types import Array, PyTree

LAYERS = arms.LAYERS
FITTING = (150, 3e-3)  # updates and rate of the affine maps
Module = Callable[[PyTree], Any]


class Way(NamedTuple):
    """After which blocks a token may leave, whether a fitted map stands before the head, whether
    the mixers of skipped blocks go on, and whether the head is asked at all.
    """

    exits: tuple[int, ...]
    fitted: bool
    goes_on: bool
    asks: bool = True


ANY = tuple(range(1, LAYERS))
WAYS = {
    "shared head, mixers go on": Way(ANY, fitted=False, goes_on=True),
    "shared head, memory stands still": Way(ANY, fitted=False, goes_on=False),
    "fitted head, mixers go on": Way(ANY, fitted=True, goes_on=True),
    "fitted head, memory stands still": Way(ANY, fitted=True, goes_on=False),
    "fitted head after block 2 alone, mixers go on": Way((2,), fitted=True, goes_on=True),
}

BASELINES = {
    "no branches": Way((), fitted=False, goes_on=False),
    "branches that nothing takes": Way(ANY, fitted=False, goes_on=False, asks=False),
}


class Maps(NamedTuple):
    """What is added to the stream after each block but the last before the head reads it: ``x W +
    b``, ``[layers - 1, d, d]`` and ``[layers - 1, d]``.
    """

    kernel: Array
    bias: Array


def blocks_of(module: Any) -> list[Any]:
    """The blocks of a model one by one."""
    graphdef, stacked = nnx.split(module.blocks.block)
    return [nnx.merge(graphdef, jax.tree.map(lambda x: x[n], stacked)) for n in range(LAYERS)]  # noqa: B023


def moved(maps: Maps, number: int, x: Array) -> Array:
    """The stream after a block as the head reads it."""
    return x + x @ maps.kernel[number] + maps.bias[number]


def surest(logits: Array) -> Array:
    """The largest probability."""
    return jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))


def judged(
    made: Module, goes_on: bool, params: PyTree, maps: Maps, thresholds: Array, text: Array
) -> tuple[Array, Array]:
    """Nats per token of the rows ``text [b, n + 1]``, and blocks run per token, when a token leaves
    after the first block whose head is as sure as ``thresholds [layers - 1]`` say. All blocks are
    computed, and those that would not be have no effect.
    """
    module = made(params)
    blocks = blocks_of(module)

    def step(states: list[PyTree], pair: tuple[Array, Array]) -> tuple[list[PyTree], Any]:
        token, target = pair
        x, after = module.embed(token, jnp.zeros_like(token)), []
        inside, run = jnp.ones(token.shape, bool), jnp.zeros(())
        chosen = jnp.zeros(())
        for number, (block, state) in enumerate(zip(blocks, states, strict=True)):
            hidden, new = block.decode(x, state)
            # The stream of a token that has left is that of its exit.
            skipped = block.mixer.decode(state, block.mixer_norm(x))[1] if goes_on else state
            after.append(jax.tree.map(partial(_where, inside), new, skipped))
            x, run = _where(inside, hidden, x), run + jnp.mean(inside, dtype=jnp.float32)
            if number < LAYERS - 1:
                logits = module.logits(moved(maps, number, x))
                leaves = inside & (surest(logits) >= thresholds[number])
            else:
                logits, leaves = module.logits(x), inside
            chosen = _where(leaves, logits, jnp.broadcast_to(chosen, logits.shape))
            inside = inside & ~leaves
        return after, (jnp.mean(token_nats(chosen, target)[0]), run)

    states = [block.mixer.init_decode(text.shape[0]) for block in blocks]
    _, (nats, run) = jax.lax.scan(step, states, (text[:, :-1].T, text[:, 1:].T))
    return jnp.mean(nats), jnp.mean(run)


def _where(mask: Array, new: Array, old: Array) -> Array:
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def read(
    made: Module, way: Way, params: PyTree, maps: Maps, thresholds: Array, text: Array
) -> tuple[Array, Array]:
    """The same of one row ``text [n + 1]``, without computing what is left out."""
    module = made(params)
    blocks = blocks_of(module)

    def level(number: int, x: Array, states: tuple[PyTree, ...]) -> Any:
        x, new = blocks[number].decode(x, states[number])
        states = (*states[:number], new, *states[number + 1 :])
        if number == LAYERS - 1:
            return module.logits(x), states, jnp.float32(LAYERS)
        if number + 1 not in way.exits:
            return level(number + 1, x, states)
        logits = module.logits(moved(maps, number, x) if way.fitted else x)
        return jax.lax.cond(
            (surest(logits)[0] if way.asks else 1.0) >= thresholds[number],
            lambda: (logits, left(number, x, states), jnp.float32(number + 1)),
            lambda: level(number + 1, x, states),
        )

    def left(number: int, x: Array, states: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        if not way.goes_on:
            return states
        further = zip(blocks[number + 1 :], states[number + 1 :], strict=True)
        return (
            *states[: number + 1],
            *(block.mixer.decode(state, block.mixer_norm(x))[1] for block, state in further),
        )

    def step(states: tuple[PyTree, ...], pair: tuple[Array, Array]) -> tuple[Any, Any]:
        token, target = (x[None] for x in pair)
        logits, states, run = level(0, module.embed(token, jnp.zeros_like(token)), states)
        return states, (token_nats(logits, target)[0], run)

    states = tuple(block.mixer.init_decode(1) for block in blocks)
    _, (nats, run) = jax.lax.scan(step, states, (text[:-1], text[1:]))
    return jnp.mean(nats), jnp.mean(run)


def read_by_package(model: Any, params: PyTree, text: Array) -> Array:
    """Nats per token by the decoding of the package."""

    def step(state: PyTree, pair: tuple[Array, Array]) -> tuple[PyTree, Array]:
        logits, state = model.decode(params, state, pair[0][None])
        return state, token_nats(logits, pair[1][None])[0]

    return jnp.mean(jax.lax.scan(step, model.init_decode(params, 1), (text[:-1], text[1:]))[1])


class Programs(NamedTuple):
    """Everything that is compiled for a size of model and a text."""

    fit: Callable[..., Maps]
    judge: dict[bool, Callable[..., tuple[Array, Array]]]
    read: dict[str, Callable[..., tuple[Array, Array]]]
    package: Callable[..., Array]


@cache
def programs(argument: str, small: bool) -> Programs:
    """Compiled once for all seeds."""
    text = models.load(argument)
    config, size = table.MODELS["resnet-bk"].config(), text.corpus.vocabulary.size
    config = arms.config() if small else config
    model, made = table.build("resnet-bk", config, size, arms.LENGTH), arms.module(config, size)

    def fit(params: PyTree, windows: Array) -> Maps:
        optimizer = optax.adam(FITTING[1])
        maps = Maps(
            jnp.zeros((LAYERS - 1, config.dim, config.dim)), jnp.zeros((LAYERS - 1, config.dim))
        )

        def loss(maps: Maps, streams: Array, targets: Array) -> Array:
            x = [moved(maps, number, streams[number]) for number in range(LAYERS - 1)]
            return jnp.mean(token_nats(made(params).logits(jnp.stack(x)), targets[None])[0])

        def step(carry: tuple[Maps, PyTree], window: Array) -> tuple[tuple[Maps, PyTree], None]:
            maps, memory = carry
            streams = model.watch(params, window[:, :-1])[1].hidden
            gradient = jax.grad(loss)(maps, streams, window[:, 1:])
            changes, memory = optimizer.update(gradient, memory)
            return (optax.apply_updates(maps, changes), memory), None

        return jax.lax.scan(step, (maps, optimizer.init(maps)), windows)[0][0]

    return Programs(
        jax.jit(fit),
        {on: jax.jit(partial(judged, made, on)) for on in (True, False)},
        {name: jax.jit(partial(read, made, way)) for name, way in (WAYS | BASELINES).items()},
        jax.jit(partial(read_by_package, model)),
    )
