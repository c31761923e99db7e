"""What the shards of a chain exchange: the belief from which each of them starts.

A *shard* is the stretch of a chain that one device of a ``shard_map`` holds. It maps the belief
before it to the belief behind it, and its *element* is that map in a few numbers. The devices
gather the elements of all, and each applies those of the shards before its own.

Derivatives are not those of the elements. A start moves with the starts before it and with the
arrays of the shards between, ``db' = J db + f``: f is the derivative of one sweep over a shard from
its own start, and J that of a shard's map. Both are gathered as the elements are, so that nothing
the elements were made of is kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Way", "starts"]


class Way(NamedTuple):
    """Beliefs that go through the shards one way.

    Attributes:
        apply: ``apply(element, belief) -> belief`` behind the shard.
        sweep: ``sweep(belief, arrays) -> belief``, the same from the arrays of the shard.
        slope: ``slope(belief, arrays, element)``: the derivative of the map at its own start, as
            arrays.
        push: ``push(slope, before, behind, tangent) -> tangent`` behind the shard, linear, where
            the beliefs before and behind it are given.
        reverse: from the last shard to the first.
    """

    apply: Callable[[Any, Any], Any]
    sweep: Callable[[Any, Any], Any]
    slope: Callable[[Any, Any, Any], Any]
    push: Callable[[Any, Any, Any, Any], Any]
    reverse: bool = False


def _part(tree: Any, part: slice) -> Any:
    return jax.tree.map(lambda x: x[part], tree)


def _gathered(tree: Any, axis_name: str) -> Any:
    """Arrays of all devices, ``[p, ...]``. Tiles, since the transpose of a gather that is not tiled
    fails under ``vmap``, at least until JAX 0.10.2.
    """
    return jax.lax.all_gather(jax.tree.map(lambda x: x[None], tree), axis_name, tiled=True)


def _own(tree: Any, axis_name: str) -> Any:
    here = jax.lax.axis_index(axis_name)
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, here, 0, False), tree)


def starts(
    ways: tuple[Way, ...],
    elements: Callable[[Any], Any],
    axis_name: str,
    firsts: tuple[Any, ...],
    arrays: Any,
) -> tuple[Any, ...]:
    """The belief from which each shard starts, one for every way.

    Args:
        ways: how beliefs go through the shards.
        elements: ``elements(arrays)``, the element of a shard, for all ways.
        axis_name: axis of the mesh along the chain.
        firsts: for each way, the belief before its first shard, the same on all devices.
        arrays: of this shard, floating.

    Returns:
        Beliefs as ``firsts``.

    >>> way = Way(jnp.add, lambda b, x: b + jnp.sum(x), lambda *_: jnp.ones(()), lambda *a: a[3])
    >>> before = lambda x: starts((way,), jnp.sum, "time", (jnp.zeros(()),), x)[0]
    >>> jax.vmap(before, axis_name="time")(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [0.0, 3.0]
    """
    return _own(_solved(ways, elements, axis_name, firsts, arrays)[1], axis_name)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _solved(
    ways: tuple[Way, ...],
    elements: Callable[[Any], Any],
    axis_name: str,
    firsts: tuple[Any, ...],
    arrays: Any,
) -> tuple[Any, tuple[Any, ...]]:
    """Elements of all shards, and for each way the beliefs before them, ``[p, ...]``."""
    gathered = _gathered(elements(arrays), axis_name)

    def before(way: Way, first: Any) -> Any:
        def step(belief: Any, element: Any) -> tuple[Any, Any]:
            return way.apply(element, belief), belief

        return jax.lax.scan(step, first, gathered, reverse=way.reverse)[1]

    return gathered, tuple(before(*pair) for pair in zip(ways, firsts, strict=True))


@_solved.defjvp
def _solved_jvp(
    ways: tuple[Way, ...],
    elements: Callable[[Any], Any],
    axis_name: str,
    primals: tuple[Any, Any],
    tangents: tuple[Any, Any],
) -> tuple[tuple[Any, tuple[Any, ...]], tuple[Any, tuple[Any, ...]]]:
    (_, arrays), (first_changes, changes) = primals, tangents
    gathered, found = _solved(ways, elements, axis_name, *primals)
    # Only a second derivative reads this one.
    _, element_changes = jax.jvp(elements, (arrays,), (changes,))

    def moved(way: Way, before: Any, change: Any) -> Any:
        start, element = _own((before, gathered), axis_name)
        _, own = jax.jvp(partial(way.sweep, start), (arrays,), (changes,))
        slopes, added = _gathered((way.slope(start, arrays, element), own), axis_name)
        # Nobody reads the tangent behind the last shard.
        here, there = (slice(1, None), slice(-1)) if way.reverse else (slice(-1), slice(1, None))
        shards = *_part((slopes, before), here), _part(before, there), _part(added, here)

        def step(tangent: Any, shard: tuple) -> tuple[Any, Any]:
            slope, before, behind, own = shard
            pushed = way.push(slope, before, behind, tangent)
            return jax.tree.map(jnp.add, pushed, own), tangent

        last, others = jax.lax.scan(step, change, shards, reverse=way.reverse)

        def joined(last: Any, others: Any) -> Any:
            return jnp.concatenate([last[None], others][:: 1 if way.reverse else -1])

        return jax.tree.map(joined, last, others)

    moves = tuple(moved(*triple) for triple in zip(ways, found, first_changes, strict=True))
    return (gathered, found), (_gathered(element_changes, axis_name), moves)
