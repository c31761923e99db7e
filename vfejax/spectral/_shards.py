"""What the shards of a sequence exchange: neighbouring entries, and the combined map of all shards
before.

A *shard* is the stretch of a sequence that one device of a ``shard_map`` holds, sites first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = [
    "compose_affine",
    "compose_moebius",
    "fold",
    "in_pairs",
    "in_turn",
    "moebius_map",
    "neighbour",
    "up_to_here",
]


def _taken(tree: Any, part: Any) -> Any:
    return jax.tree.map(lambda x: x[part], tree)


def neighbour(x: Array, axis_name: str, reverse: bool = False) -> Array:
    """For every site the entry of the site before it, 0 at the first site of the sequence; in
    reverse, that of the site after it, 0 at the last.

    Args:
        x: a shard, ``[l, ...]``, l >= 1.
        axis_name: axis of the mesh along the sequence.
        reverse: whether the entries are those after.

    >>> before = jax.vmap(lambda x: neighbour(x, "sequence"), axis_name="sequence")
    >>> before(jnp.array([[1, 2], [3, 4]])).tolist()  # two shards of two sites
    [[0, 1], [2, 3]]
    """
    here, size = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    ring = [(i, (i + 1) % size) for i in range(size)]
    if reverse:
        came = jax.lax.ppermute(x[:1], axis_name, [(j, i) for i, j in ring])
        return jnp.concatenate([x[1:], jnp.where(here == size - 1, jnp.zeros_like(came), came)])
    came = jax.lax.ppermute(x[-1:], axis_name, ring)
    return jnp.concatenate([jnp.where(here == 0, jnp.zeros_like(came), came), x[:-1]])


def fold(
    compose: Callable[[Any, Any], Any],
    element: Callable[[Any], Any],
    rows: Any,
    reverse: bool = False,
) -> Any:
    """What all sites of a shard compose to: one after the other on a CPU, as a tree elsewhere.

    Args:
        compose: ``compose(first, second)``, associative.
        element: ``element(row)``, what one site does.
        rows: arrays ``[l, ...]``, l >= 1.
        reverse: from the last site to the first.

    Returns:
        As ``element`` does.

    >>> float(fold(jnp.multiply, jnp.sqrt, jnp.array([4.0, 9.0, 16.0])))
    24.0
    """
    return jax.lax.platform_dependent(
        rows,
        cpu=partial(in_turn, compose, element, reverse=reverse),
        default=partial(in_pairs, compose, element, reverse=reverse),
    )


def in_turn(
    compose: Callable[[Any, Any], Any], element: Callable[[Any], Any], rows: Any, reverse: bool
) -> Any:
    """:func:`fold` by l - 1 compositions, each with the next site: what a CPU is quickest at, since
    no element is stored.

    Args:
        compose, element, rows, reverse: as :func:`fold` takes them.

    >>> in_turn(jnp.subtract, jnp.negative, jnp.array([1, 2]), reverse=True).item()
    -1
    """
    size = jax.tree.leaves(rows)[0].shape[0]

    def read(i: Any) -> Any:
        # Read from the rows where they are: a slice of them, as a scan wants it, is a copy.
        site = size - 1 - i if reverse else i
        return element(
            jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, site, 0, False), rows)
        )

    return jax.lax.fori_loop(1, size, lambda i, so_far: compose(so_far, read(i)), read(0))


def in_pairs(
    compose: Callable[[Any, Any], Any], element: Callable[[Any], Any], rows: Any, reverse: bool
) -> Any:
    """:func:`fold` by O(log l) rounds, in each of which neighbours compose in pairs: all elements
    are stored.

    Args:
        compose, element, rows, reverse: as :func:`fold` takes them.

    >>> in_pairs(jnp.subtract, jnp.negative, jnp.array([1, 2]), reverse=True).item()
    -1
    """
    found = jax.vmap(element)(_taken(rows, slice(None, None, -1)) if reverse else rows)
    while (size := jax.tree.leaves(found)[0].shape[0]) > 1:
        even = size - size % 2
        first, second = (_taken(found, slice(i, even, 2)) for i in (0, 1))
        joined, rest = jax.vmap(compose)(first, second), _taken(found, slice(even, size))
        found = jax.tree.map(lambda *parts: jnp.concatenate(parts), joined, rest)
    return _taken(found, 0)


def up_to_here(
    compose: Callable[[Any, Any], Any], total: Any, axis_name: str, reverse: bool = False
) -> tuple[Array, Any]:
    """What all shards before this one compose to; in reverse, all shards after it.

    Every device gathers the totals of all, a few numbers each, and composes those it needs.

    Args:
        compose: ``compose(first, second)``, associative.
        total: what this shard does.
        axis_name: axis of the mesh along the sequence.
        reverse: from the last shard to the first.

    Returns:
        Whether no shard is before this one, ``[]``, and the composition, which then means nothing.

    >>> before = jax.vmap(lambda x: up_to_here(jnp.add, x, "sequence"), axis_name="sequence")
    >>> [x.tolist() for x in before(jnp.array([1, 2, 3]))]
    [[True, False, False], [1, 1, 3]]
    """
    here, size = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    totals = jax.lax.all_gather(total, axis_name)
    if reverse:
        here, totals = size - 1 - here, _taken(totals, slice(None, None, -1))

    def step(so_far: Any, item: tuple[Array, Any]) -> tuple[Any, None]:
        shard, total = item
        joined = compose(so_far, total)
        return jax.tree.map(lambda x, y: jnp.where(shard < here, x, y), joined, so_far), None

    shards = jnp.arange(1, size, dtype=here.dtype)
    found, _ = jax.lax.scan(step, _taken(totals, 0), (shards, _taken(totals, slice(1, None))))
    return here == 0, found


def compose_affine(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The map ``y -> g y + x`` that two of them, (g, x), make one after the other.

    >>> compose_affine((2.0, 1.0), (3.0, 0.5))
    (6.0, 3.5)
    """
    return second[0] * first[0], second[0] * first[1] + second[1]


def _size(x: Array, axis: int | tuple[int, ...]) -> Array:
    return jnp.max(jnp.maximum(jnp.abs(x.real), jnp.abs(x.imag)), axis=axis, keepdims=True)


def _normalized(matrix: Array) -> Array:
    """The same Moebius map with entries of size 1: no product overflows or underflows."""
    # Twice its root, since the reciprocal of the largest numbers counts as 0.
    root = jax.lax.rsqrt(_size(matrix, (0, 1))).astype(matrix.dtype)
    return matrix * root * root


def _larger(rows: Array, axis: int) -> Array:
    """Of the two vectors along an axis of a map the larger one."""
    sizes = _size(rows, 1 - axis)
    first, second = jnp.split(rows, 2, axis)
    return jnp.where(jnp.greater_equal(*jnp.split(sizes, 2, axis)), first, second)


def moebius_map(row: tuple[Array, Array]) -> Array:
    """``g -> 1 / (d - k g)`` as a matrix ``[2, 2, ...]`` of entries of size 1.

    Args:
        row: d, complex ``[...]``, and k, of the same shape; its dtype may be the real one.

    >>> print(moebius_map((jnp.array(4.0 + 0j), jnp.array(1.0))).real)
    [[ 0.    0.25]
     [-0.25  1.  ]]
    """
    d, k = row
    upper = jnp.stack([jnp.zeros_like(d), jnp.ones_like(d)])
    return _normalized(jnp.stack([upper, jnp.stack([-k.astype(d.dtype), d])]))


def compose_moebius(first: Array, second: Array) -> Array:
    """Product of two maps ``[2, 2, ...]``, of which the first comes first, of entries of size 1.

    Maps to a constant have rank 1. Two of them, ``u v^T`` and ``u' v'^T``, make ``u' v^T``, also
    where their product vanishes: at a pole before a coupling of 0.

    >>> print(compose_moebius(jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[1.0, 2.0], [0, 4]])))
    [[0.5  0.25]
     [1.   0.  ]]
    """
    product = second[:, :1] * first[:1] + second[:, 1:] * first[1:]
    vanishes = jnp.all(product == 0.0, axis=(0, 1), keepdims=True)
    return _normalized(jnp.where(vanishes, _larger(second, 1) * _larger(first, 0), product))
