"""Slow descent: from the slopes of a batch to the change of all that is learned.

Slopes are optionally smoothed by momentum and divided by running squares of themselves: their mean
square is the diagonal of an empirical Fisher information. With its root as divisor and momentum,
the arithmetic of a step is that of Adam. Gaussians of tokens may be moving averages of beliefs
instead.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.pure_fep import growth
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.gaussians import IrrepGaussian, moments
from vfejax.models.pure_fep.layer import Surroundings
from vfejax.models.pure_fep.learning import Lesson, Observed
from vfejax.models.pure_fep.parameters import Anatomy, Parameters
from vfejax.types import Array, PyTree

__all__ = ["SCALINGS", "SlowMemory", "averaged", "slow_step"]

_DAMPING = 1e-3  # of the Fisher information of a parameter per token


class SlowMemory(NamedTuple):
    """What learning remembers: smoothed slopes, running squares of slopes, and what decides about
    layers.
    """

    slopes: Parameters
    squares: Parameters
    watched: growth.Watch


def _plain(slope: Array, square: Array, tokens: float) -> Array:
    """The slope itself: steepest descent."""
    del square, tokens
    return slope


def _fisher(slope: Array, square: Array, tokens: float) -> Array:
    """Slope over the diagonal of the empirical Fisher information per token: a natural gradient."""
    return slope / (tokens * square + _DAMPING)


def _rms(slope: Array, square: Array, tokens: float) -> Array:
    """Slope over the root of its running mean square, shortened to a mean square of 1: slopes that
    are larger than those before would else make a step ten times as long.
    """
    del tokens
    step = slope / (jnp.sqrt(square) + 1e-8)
    return step * jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(step)), 1.0))


SCALINGS: dict[str, Callable[[Array, Array, float], Array]] = {
    "plain": _plain,
    "fisher": _fisher,
    "rms": _rms,
}
"""Directions of slow descent by the name of the option: ``(slope, running square, tokens per
batch) -> direction``.
"""


def slow_step(
    config: PureFEPConfig, memory: SlowMemory, slopes: Parameters, count: Array, tokens: float
) -> tuple[Parameters, SlowMemory]:
    """Directions of the slow descent.

    Args:
        config: scaling, momentum and memory.
        memory: of the updates before.
        slopes: of this batch.
        count: updates that came before, a scalar.
        tokens: of a batch.

    Returns:
        What is subtracted from the parameters, times the rate; and the memory with this batch.
    """

    def running(kept: float, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: kept * x + (1.0 - kept) * y, old, new)

    smoothed = running(config.momentum, memory.slopes, slopes)
    squares = running(config.memory, memory.squares, jax.tree.map(jnp.square, slopes))
    updates = (count + 1).astype(jnp.float32)

    def direction(slope: Array, square: Array) -> Array:
        # Running means start at 0: what they lack is made up for.
        first, second = (
            (1.0 - jnp.power(kept, updates)).astype(slope.dtype)
            for kept in (config.momentum, config.memory)
        )
        return SCALINGS[config.scaling](slope / first, square / second, tokens)

    # The layers' axis is not theirs to know: each has its own step.
    layers = jax.tree.map(jax.vmap(direction), smoothed.layers, squares.layers)
    directions = jax.tree.map(direction, smoothed, squares)._replace(layers=layers)
    return directions, memory._replace(slopes=smoothed, squares=squares)


def averaged(
    parts: Anatomy,
    params: Parameters,
    around: Surroundings,
    observed: Observed,
    lessons: Lesson,
    share: Array,
) -> tuple[IrrepGaussian | None, IrrepGaussian | None]:
    """Table and bank after a moving average.

    A token's first prior takes the step, times ``share``, from the priors of the first layer to its
    beliefs once the target was shown. Its Gaussian of the bank, where that is an output, goes
    towards the last layer's beliefs that the token followed.

    Args:
        parts: the model.
        params: its parameters.
        around: tokens and where they stand.
        observed: what followed.
        lessons: stacked by layer.
        share: of the way that is gone, a scalar of at most 1.
    """
    kind, vocab = parts.rules.kind, parts.vocab_size
    first = jax.tree.map(lambda x: x[0], (lessons.prior, lessons.shown))
    last = jax.tree.map(lambda x: x[growth.last_of(params.alive)], lessons.shown)

    def moved(rows: IrrepGaussian, start: PyTree, goal: PyTree, number: Array) -> IrrepGaussian:
        step = jnp.where(number > 0, share, 0.0)[:, None, None]
        return jax.tree.map(lambda x, s, g: x + step * (g - s), rows, start, goal)

    table, bank = params.table, params.readout.bank
    start, goal = (moments(q, around.tokens, observed.counts, vocab, kind) for q in first)
    followed, number = moments(last, observed.targets, observed.counts, vocab, kind)
    if bank is not None and parts.config.output != "linear":
        bank = moved(bank, bank, followed, number)
    if table is not None:
        table = moved(table, start[0], goal[0], start[1])
    elif bank is not None:
        bank = moved(bank, start[0], goal[0], start[1])
    return table, bank
