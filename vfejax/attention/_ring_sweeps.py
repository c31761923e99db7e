"""The sweeps of ring attention: what each device does with the keys and values that come by, for
its answer and for the gradients, tile by tile.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vfejax import rings
from vfejax.attention import tiles
from vfejax.attention.pattern import Pattern, columns, rows
from vfejax.attention.softmax import Average, combine, finish
from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree

__all__ = ["Layout", "is_read", "sweeps"]


class Layout(NamedTuple):
    """How tokens lie on the mesh.

    Attributes:
        axis: axis of the mesh along the sequence.
        batch_axis: axis of the mesh along the batch, or None.
        devices: along the sequence, p.
        places: of the sequence, on one device.
        tiles: into how many parts the places of a device are cut.
        hops: the devices visited: from how far ahead, and how many.
        depth: platters, D.
    """

    axis: str
    batch_axis: str | None
    devices: int
    places: int
    tiles: int
    hops: tuple[int, int]
    depth: int

    @property
    def axes(self) -> tuple[str, ...]:
        return (self.axis,) if self.batch_axis is None else (self.axis, self.batch_axis)


def sweeps(mesh: Mesh, layout: Layout) -> Callable[..., Array]:
    """Attention of sharded tokens, with a backward pass of its own.

    Returns:
        ``attend((query, key, value), slope, pattern)`` with arrays ``[b, g, n D, c]``, the slope
        of the pattern apart from it.

    >>> from vfejax.geometry.torus import circular_distance
    >>> mesh = jax.make_mesh((1,), ("ring",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> places, x = jnp.arange(4)[None], jnp.ones((1, 2, 4, 3))
    >>> pattern = Pattern(places, places, None, None, 1, 4, circular_distance, True, None, True)
    >>> attend = sweeps(mesh, Layout("ring", None, 1, 4, 2, (0, 1), 1))
    >>> attend((x, x, x), None, pattern).shape
    (1, 2, 4, 3)
    """

    def sharded(function: Callable, pattern: Pattern, in_kinds: str, out_kinds: str) -> Callable:
        """Kinds: t for arrays with tokens on axis 2, r for replicated ones."""
        spec = {"t": PartitionSpec(layout.batch_axis, None, layout.axis), "r": PartitionSpec()}
        return jax.shard_map(
            partial(function, layout),
            mesh=mesh,
            in_specs=(*(spec[k] for k in in_kinds), _pattern_specs(pattern, layout)),
            out_specs=tuple(spec[k] for k in out_kinds),
        )

    @jax.custom_vjp
    def attend(projected: tuple[Array, ...], slope: Array | None, pattern: Pattern) -> Array:
        return forward(projected, slope, pattern)[0]

    def forward(
        projected: tuple[Array, ...], slope: Array | None, pattern: Pattern
    ) -> tuple[Array, PyTree]:
        read = sharded(_forward, pattern, "tr", "tt")
        answer, log_total = read(projected, slope, pattern)
        return answer, (projected, slope, pattern, answer, log_total)

    def backward(kept: PyTree, cotangent: Array) -> tuple[PyTree, Array | None, None]:
        projected, slope, pattern, answer, log_total = kept
        pull_back = sharded(_backward, pattern, "trttt", "tr")
        arguments = (projected, slope, answer, log_total, cotangent, pattern)
        by_projected, by_slope = pull_back(*arguments)
        return by_projected, by_slope, None

    attend.defvjp(forward, backward)
    return attend


def _pattern_specs(pattern: Pattern, layout: Layout) -> Pattern:
    """Queries are split over the devices, keys are cut by each device as they pass."""

    def over_batch(x: Array) -> str | None:
        return None if x.shape[0] == 1 else layout.batch_axis

    fields: dict[str, Any] = {
        "query_places": PartitionSpec(over_batch(pattern.query_places), layout.axis),
        "key_places": PartitionSpec(over_batch(pattern.key_places)),
    }
    if pattern.mask is not None:
        of_queries = layout.axis if pattern.mask.shape[3] > 1 else None
        fields["mask"] = PartitionSpec(over_batch(pattern.mask), None, None, of_queries)
    return replace(pattern, **fields)


def _forward(
    layout: Layout, projected: tuple[Array, Array, Array], slope: Array | None, pattern: Pattern
) -> tuple[Array, Array]:
    """Answer and ``log sum_j exp(l_ij)`` of the queries of a device."""
    query, key, value = (_split(x, layout) for x in projected)
    real = at_least_float32(query.dtype)
    nothing = Average(
        _constant(query.shape[:-1], real, layout, -jnp.inf),
        _constant(query.shape[:-1], real, layout),
        _constant((*query.shape[:-1], value.shape[-1]), real, layout),
    )
    read = _tiles_read(query, replace(pattern, slope=slope), layout)
    found, _ = _each_hop(read, nothing, (key, value), layout)
    log_total = jnp.where(found.top == -jnp.inf, 0.0, found.top + jnp.log(found.total))
    return _join(finish(found)).astype(value.dtype), _join(log_total)


def _backward(
    layout: Layout,
    projected: tuple[Array, Array, Array],
    slope: Array | None,
    answer: Array,
    log_total: Array,
    cotangent: Array,
    pattern: Pattern,
) -> tuple[tuple[Array, ...], Array | None]:
    """Gradients of the tokens of a device, and of the slopes over all devices."""
    real = log_total.dtype
    inner = jnp.sum(answer.astype(real) * cotangent.astype(real), axis=-1)
    arrays = (*projected, log_total, cotangent, inner)
    query, key, value, *totals = (_split(x, layout) for x in arrays)
    if slope is not None:
        # Differentiating by a number that all devices share would sum over them within each tile,
        # where devices may skip: the sum comes last.
        pattern = replace(pattern, slope=rings.varying(slope, layout.axes))
    by_query, by_key, by_value = (_constant(x.shape, real, layout) for x in (query, key, value))
    by_slope = None if slope is None else _constant(slope.shape, slope.dtype, layout)
    (by_query, by_slope), (_, by_blocks) = _each_hop(
        _tiles_pulled_back(query, totals, pattern, layout),
        (by_query, by_slope),
        ((key, value), (by_key, by_value)),
        layout,
    )
    first, number = layout.hops
    by_blocks = rings.shift(by_blocks, 1 - first - number, layout.axis)
    by_projected = tuple(
        _join(x).astype(like.dtype)
        for x, like in zip((by_query, *by_blocks), projected, strict=True)
    )
    return by_projected, jax.lax.psum(by_slope, layout.axes)


def _tiles_read(
    query: Array, pattern: Pattern, layout: Layout
) -> Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]:
    """How the queries of a device, ``[tiles, b, g, S D, c]``, read the keys that come by."""
    order, size = jnp.arange(layout.tiles), layout.places // layout.tiles

    def read(own: Average, blocks: PyTree, source: Array) -> tuple[Average, PyTree]:
        start = source.astype(order.dtype) * layout.places

        def over_queries(_: None, item: PyTree) -> tuple[None, Average]:
            i, q, so_far = item
            these = rows(pattern, i * size, size)

            def over_keys(so_far: Average, item: PyTree) -> tuple[Average, None]:
                j, k, v = item
                here = columns(these, start + j * size, size)

                def join(so_far: Average) -> Average:
                    return combine(so_far, tiles.average(q, k, v, here))

                return jax.lax.cond(is_read(here), join, lambda same: same, so_far), None

            return None, jax.lax.scan(over_keys, so_far, (order, *blocks))[0]

        return jax.lax.scan(over_queries, None, (order, query, own))[1], blocks

    return read


def _tiles_pulled_back(
    query: Array, totals: list[Array], pattern: Pattern, layout: Layout
) -> Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]:
    """How the queries of a device, with the three numbers or vectors per query that
    :func:`vfejax.attention.tiles.gradients` needs, add to gradients of their own and to those that
    travel with the keys.
    """
    order, size = jnp.arange(layout.tiles), layout.places // layout.tiles

    def read(own: PyTree, travelling: PyTree, source: Array) -> tuple[PyTree, PyTree]:
        start = source.astype(order.dtype) * layout.places
        blocks, by_blocks = travelling

        def over_queries(carry: PyTree, item: PyTree) -> tuple[PyTree, Array]:
            by_blocks, by_slope = carry
            i, q, of_queries, by_query = item
            these = rows(pattern, i * size, size)

            def over_keys(sums: PyTree, item: PyTree) -> tuple[PyTree, PyTree]:
                j, (k, v), by_block = item
                here = columns(these, start + j * size, size)

                def add(sums: PyTree) -> PyTree:
                    found = tiles.gradients((q, k, v), here, *of_queries)
                    new = (found.query, found.slope), (found.key, found.value)
                    return jax.tree.map(jnp.add, sums, new)

                return jax.lax.cond(is_read(here), add, lambda same: same, (sums, by_block))

            items = (order, blocks, by_blocks)
            sums, by_blocks = jax.lax.scan(over_keys, (by_query, by_slope), items)
            return (by_blocks, sums[1]), sums[0]

        items = (order, query, totals, own[0])
        (by_blocks, by_slope), by_query = jax.lax.scan(over_queries, (by_blocks, own[1]), items)
        return (by_query, by_slope), (blocks, by_blocks)

    return read


def _each_hop(read: Callable, own: PyTree, travelling: PyTree, layout: Layout) -> tuple:
    """As :func:`vfejax.rings.each_hop`, over the hops of the layout."""
    first, number = layout.hops
    return rings.each_hop(read, own, travelling, layout.axis, first=first, number=number)


def is_read(pattern: Pattern) -> Array:
    """Whether causality and a causal window leave anything of a tile, ``[]``.

    >>> from vfejax.geometry.torus import circular_distance
    >>> old, new = jnp.arange(2)[None], jnp.arange(2, 4)[None]
    >>> bool(is_read(Pattern(old, new, None, None, 1, 4, circular_distance, True, None, True)))
    False
    """
    if not pattern.causal:
        return jnp.asarray(True)
    youngest = jnp.max(pattern.query_places) - jnp.min(pattern.key_places)
    oldest = jnp.min(pattern.query_places) - jnp.max(pattern.key_places)
    return (youngest >= 0) & (True if pattern.window is None else oldest < pattern.window)


def _split(x: Array, layout: Layout) -> Array:
    """Cut the tokens of a device, ``[b, g, L D, ...]`` to ``[tiles, b, g, S D, ...]``."""
    batch, group, tokens = x.shape[:3]
    cut = x.reshape(batch, group, layout.tiles, tokens // layout.tiles, *x.shape[3:])
    return jnp.moveaxis(cut, 2, 0)


def _join(x: Array) -> Array:
    """Undo :func:`_split`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])


def _constant(shape: tuple[int, ...], dtype: jnp.dtype, layout: Layout, fill: float = 0.0) -> Array:
    """A constant that every device is going to change by itself."""
    return rings.varying(jnp.full(shape, fill, dtype), layout.axes)
