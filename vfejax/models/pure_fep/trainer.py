"""Learning of the Pure-FEP transformer: a batch is one slow step of all that is not a belief.

Every layer learns from its own free energy (:mod:`vfejax.models.pure_fep.learning`), with what the
layer below believes held. So there is no global loss whose gradient runs through the model, and no
optimiser object. A slow step follows the local slopes, optionally smoothed by momentum and divided
by running squares of themselves: their mean square is the diagonal of an empirical Fisher
information. With its root as divisor and momentum, the arithmetic of a step is that of Adam.

The loss that is reported belongs to predictions that were made before the targets were shown.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.models.protocol import pack, positions_of
from vfejax.models.pure_fep import growth
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.gaussians import IrrepGaussian, kl_divergence
from vfejax.models.pure_fep.layer import Ancestors, Surroundings
from vfejax.models.pure_fep.learning import Lesson, Observed, learn_layer
from vfejax.models.pure_fep.model import ancestor_weights, perceive, surroundings
from vfejax.models.pure_fep.parameters import Anatomy, Parameters, anatomy, draw_layers
from vfejax.models.pure_fep.slow_descent import SlowMemory, averaged, slow_step
from vfejax.numerics import tree_norm
from vfejax.types import (
    Array,
    Batch,
    LossInfo,
    PyTree,
    SequenceModel,
    Trainer,
    TrainInfo,
    TrainState,
)

__all__ = ["learn", "slow_slopes", "trainer"]

_NEWBORN = -3.0  # coupling of a layer that is added: it hardly listens yet


def learn(
    parts: Anatomy, params: Parameters, around: Surroundings, observed: Observed
) -> tuple[Lesson, Array]:
    """Lessons of all layers, stacked ``[l, ...]``, and the mean divergence of each layer's beliefs
    from those it was given, ``[l]``.

    Args:
        parts: the model.
        params: what it has learned so far.
        around: tokens and where they stand.
        observed: what followed.
    """
    ancestors = None
    if parts.config.tower_depth:
        ancestors = perceive(parts, params, around)[0].ancestors
    weights = ancestor_weights(params.alive, parts.config)

    def step(below: IrrepGaussian, inputs: PyTree) -> tuple[IrrepGaussian, tuple]:
        layer, alive, weight = inputs
        above = None if ancestors is None else Ancestors(ancestors, weight)
        lesson = learn_layer(parts, layer, params.readout, below, around, above, observed)
        apart = kl_divergence(lesson.belief, below, parts.rules.kind)
        mean = jnp.sum(observed.counts * apart) / jnp.maximum(jnp.sum(observed.counts), 1.0)
        return growth.passed_on(alive, lesson.belief, below), (lesson, mean)

    first = parts.embed_fn(params, around.tokens, around.positions)
    _, found = jax.lax.scan(step, first, (params.layers, params.alive, weights))
    lessons, divergence = found
    return lessons, divergence


def slow_slopes(
    parts: Anatomy, params: Parameters, around: Surroundings, lessons: Lesson
) -> Parameters:
    """Slopes of all parameters, from the lessons of the layers that there are.

    The tokens' Gaussians learn from the first layer's slope in what it is given, the output from
    the mean over layers: each of them predicts.

    Args:
        parts: the model.
        params: its parameters.
        around: tokens and where they stand.
        lessons: stacked by layer.
    """
    alive = params.alive
    zero = jax.tree.map(jnp.zeros_like, lessons.layer)
    layers = growth.renewed(zero, lessons.layer, alive)
    _, pull = jax.vjp(lambda p: parts.embed_fn(p, around.tokens, around.positions), params)
    (embedded,) = pull(jax.tree.map(lambda x: x[0], lessons.below))
    share = alive / jnp.sum(alive)
    readout = jax.tree.map(
        lambda own, x: own + jnp.tensordot(share, x, axes=1), embedded.readout, lessons.readout
    )
    return embedded._replace(readout=readout, layers=layers)


def _grown(
    parts: Anatomy, params: Parameters, memory: SlowMemory, key: Array
) -> tuple[Parameters, SlowMemory]:
    """Layers that are added begin afresh, with nothing remembered of who was there before: their
    running squares are the mean of those of the layers that there are. From 0, which they would
    leave slowly, the first steps would be ten times too long. A layer that goes stands still.
    """
    happened, watched = growth.grow(params.alive, memory.watched, parts.config)
    fresh = draw_layers(key, parts)
    fresh = fresh._replace(coupling=jnp.full_like(fresh.coupling, _NEWBORN))
    forgotten = jax.tree.map(jnp.zeros_like, fresh)
    share = params.alive / jnp.sum(params.alive)

    def typical(square: Array) -> Array:
        return jnp.full_like(square, jnp.mean(jnp.tensordot(share, square, axes=1)))

    layers = growth.renewed(params.layers, fresh, happened.added)
    changed = happened.added + happened.removed
    slopes = growth.renewed(memory.slopes.layers, forgotten, changed)
    others = jax.tree.map(typical, memory.squares.layers)
    squares = growth.renewed(memory.squares.layers, others, happened.added)
    slopes, squares = memory.slopes._replace(layers=slopes), memory.squares._replace(layers=squares)
    return params._replace(layers=layers, alive=happened.alive), SlowMemory(
        slopes, squares, watched
    )


def _report(
    params: Parameters, lessons: Lesson, cross_entropy: Array, num_tokens: Array
) -> LossInfo:
    """Loss of the predictions, and the free energy per token, mean over layers."""
    share = params.alive / jnp.sum(params.alive)
    terms = {name: jnp.sum(share * x) for name, x in lessons.terms._asdict().items()}
    terms["free_energy"] = jnp.sum(share * lessons.terms.total)
    terms["pressure"] = lessons.pressure[growth.last_of(params.alive)]
    terms["layers"] = jnp.sum(params.alive)
    return LossInfo(cross_entropy, num_tokens, {}, terms)


def trainer(
    model: SequenceModel,
    config: PureFEPConfig,
    learning_rate_fn: Callable[[Array], Array],
    key: Array,
) -> Trainer:
    """Learning by free energy alone.

    Args:
        model: a Pure-FEP transformer.
        config: its options.
        learning_rate_fn: the rate of the slow descent, from the number of the update.
        key: source of what a layer that is added begins with.

    Returns:
        ``init`` and ``step``, to be scanned over windows ``[steps, b, n + 1]`` or batches with
        targets.

    >>> from vfejax.models.pure_fep.model import build
    >>> config = PureFEPConfig(layers=1, max_layers=1, dim=16, hidden=8)
    >>> method = trainer(build(config, 5, 8), config, lambda step: 1e-2, jax.random.key(1))
    >>> state = method.init(jax.random.key(0))
    >>> state, info = jax.jit(method.step)(state, jnp.ones((2, 9), int))
    >>> int(state.step), int(info.parts.num_tokens)
    (1, 16)
    """

    def init(key: Array) -> TrainState:
        params = model.init(key)
        slopes, squares = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        watched = growth.first_watch(config.max_layers, params.alive.dtype)
        memory = SlowMemory(slopes, squares, watched)
        return TrainState(jnp.zeros((), jnp.int32), params, memory)

    def step(state: TrainState, windows: Array | Batch) -> tuple[TrainState, TrainInfo]:
        params, memory = state.params, state.optimizer_state
        parts = _anatomy_of(params, config)
        around, observed = _arranged(windows, params.alive.dtype)
        lessons, divergence = learn(parts, params, around, observed)
        slopes = slow_slopes(parts, params, around, lessons)
        directions, memory = slow_step(config, memory, slopes, state.step, around.tokens.size)
        rate = jnp.asarray(learning_rate_fn(state.step), params.alive.dtype)
        learned = jax.tree.map(lambda x, d: x - rate * d, params, directions)
        if config.prior_update == "average":
            share = jnp.minimum(config.average_gain * rate, 1.0)
            table, bank = averaged(parts, params, around, observed, lessons, share)
            learned = learned._replace(table=table, readout=learned.readout._replace(bank=bank))
        learned = learned._replace(alive=params.alive)
        change = tree_norm(jax.tree.map(jnp.subtract, learned, params))

        number = jnp.sum(observed.counts)
        loss = lessons.terms.observation[growth.last_of(params.alive)]
        info = TrainInfo(loss, _report(params, lessons, loss, number.astype(jnp.int32)), change)
        watched = growth.watch(memory.watched, lessons.pressure, divergence, params.alive)
        # A batch of padding alone says nothing about layers.
        watched = jax.tree.map(
            lambda new, old: jnp.where(number > 0, new, old), watched, memory.watched
        )
        memory = memory._replace(watched=watched)
        after, memory = _grown(parts, learned, memory, jax.random.fold_in(key, state.step))
        return TrainState(state.step + 1, after, memory), info

    return Trainer(init, step)


def _anatomy_of(params: Parameters, config: PureFEPConfig) -> Anatomy:
    """The model that has these parameters."""
    _, vocab_size, _, _ = params.layers.frames.shape
    return anatomy(config, vocab_size, params.layers.links.shape[-1], params.alive.dtype)


def _arranged(windows: Array | Batch, dtype: jnp.dtype) -> tuple[Surroundings, Observed]:
    """Tokens with their padding behind them, and what followed each."""
    batch = (
        windows if isinstance(windows, Batch) else Batch(windows[:, :-1], targets=windows[:, 1:])
    )
    if batch.targets is None:
        raise ValueError("batch must have targets, the token that follows each token")
    batch, _ = pack(batch)
    assert batch.targets is not None  # as before
    mask = jnp.ones(batch.tokens.shape, bool) if batch.mask is None else batch.mask
    targets = jnp.where(mask, batch.targets, 0)
    return surroundings(batch.tokens, positions_of(batch)), Observed(targets, mask.astype(dtype))
