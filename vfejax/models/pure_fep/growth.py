"""Growth: a layer is added under the pressure of the last layer's energy, and two layers with equal
beliefs are merged.

Arrays have room for ``max_layers``; a layer that is not there passes on what it is given. After
either event nothing further happens for a while.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.types import Array, PyTree

__all__ = ["Growth", "Watch", "first_watch", "grow", "last_of", "passed_on", "renewed", "watch"]

_MEMORY = 0.9  # share of the running means that an update keeps


class Watch(NamedTuple):
    """What is watched: running means of the last layer's pressure ``[]`` and of every layer's
    divergence from the one below it ``[l]``, and updates since the last event.
    """

    pressure: Array
    divergence: Array
    since: Array


class Growth(NamedTuple):
    """What happens: which layers there are now, and 1 for one that was added or removed, ``[l]``
    each.
    """

    alive: Array
    added: Array
    removed: Array


def first_watch(num_layers: int, dtype: jnp.dtype) -> Watch:
    """Before the first update.

    >>> first_watch(2, jnp.float32).divergence.tolist()
    [0.0, 0.0]
    """
    zero = jnp.zeros((), dtype)
    return Watch(zero, jnp.zeros(num_layers, dtype), jnp.zeros((), jnp.int32))


def last_of(alive: Array) -> Array:
    """Index of the last layer that there is, ``[]``."""
    places = jnp.arange(alive.shape[0], dtype=jnp.int32)
    return jnp.max(jnp.where(alive > 0, places, 0))


def passed_on(alive: Array, found: PyTree, given: PyTree) -> PyTree:
    """What the next layer is given: what this one found, or what it was given if it is not there.

    Args:
        alive: 1 or 0, a scalar. NaN, which no run makes, says nothing: all is NaN then.
        found: beliefs of the layer.
        given: beliefs of the layer below.

    >>> passed_on(jnp.asarray(0.0), jnp.ones(2), jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(alive > 0, new, jnp.where(alive <= 0, old, jnp.nan))

    return jax.tree.map(chosen, found, given)


def watch(before: Watch, pressure: Array, divergence: Array, alive: Array) -> Watch:
    """Running means with those of one more batch. The first batch after an event counts alone.

    Args:
        before: what was known.
        pressure: of every layer, ``[l]``; that of the last one counts.
        divergence: mean KL of each layer's beliefs from those of the layer below, ``[l]``.
        alive: which layers there are.
    """
    kept = jnp.where(before.since == 0, 0.0, _MEMORY).astype(pressure.dtype)
    now = pressure[last_of(alive)]
    return Watch(
        kept * before.pressure + (1.0 - kept) * now,
        kept * before.divergence + (1.0 - kept) * divergence,
        before.since + 1,
    )


def grow(alive: Array, seen: Watch, config: PureFEPConfig) -> tuple[Growth, Watch]:
    """Add a layer, merge two, or neither.

    The layer is added behind the last one, or in the first gap where there is no room behind. Of
    two layers whose divergence is least, and below the threshold, the upper one goes: what it
    passed on is nearly what it was given. The first layer stays.

    Args:
        alive: which layers there are, ``[l]``.
        seen: what was watched.
        config: thresholds and cool-down.

    Returns:
        What happens, and the watch that goes on.

    >>> config = PureFEPConfig(layers=1, max_layers=2, spawn_pressure=1.0, cool_down=0)
    >>> seen = Watch(jnp.asarray(2.0), jnp.zeros(2), jnp.asarray(1))
    >>> grow(jnp.array([1.0, 0.0]), seen, config)[0].alive.tolist()
    [1.0, 1.0]
    """
    places = jnp.arange(alive.shape[0], dtype=jnp.int32)
    ready = seen.since > config.cool_down
    upper = (alive > 0) & (places > 0)
    apart = jnp.where(upper, seen.divergence, jnp.inf)
    closest = jnp.argmin(apart)
    merges = ready & (apart[closest] < config.merge_divergence)
    removed = merges & (places == closest)

    behind = last_of(alive) + 1
    room = jnp.where(behind < alive.shape[0], behind, jnp.argmin(alive).astype(behind.dtype))
    presses = (config.spawn_pressure > 0) & (seen.pressure > config.spawn_pressure)
    spawns = ready & ~merges & presses & jnp.any(alive == 0)
    added = spawns & (places == room)

    one = jnp.ones((), alive.dtype)
    now = jnp.where(added, one, jnp.where(removed, 0 * one, alive))
    since = jnp.where(merges | spawns, jnp.zeros_like(seen.since), seen.since)
    events = (flags.astype(alive.dtype) for flags in (added, removed))
    return Growth(now, *events), seen._replace(since=since)


def renewed(tree: PyTree, fresh: PyTree, which: Array) -> PyTree:
    """Stacked leaves with fresh ones in some layers.

    Args:
        tree: leaves ``[l, ...]``.
        fresh: the same tree.
        which: 1 where the fresh ones count, ``[l]``.

    >>> renewed(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.array([0.0, 1.0])).tolist()
    [[0.0], [1.0]]
    """

    def chosen(old: Array, new: Array) -> Array:
        flags = which.reshape(-1, *(1,) * (old.ndim - 1))
        return jnp.where(flags > 0, new, old)

    return jax.tree.map(chosen, tree, fresh)
