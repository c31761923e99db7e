"""Attention over a ring of devices: every device keeps its own queries, and the keys and values
travel round.

:func:`ring` makes a method for :func:`vfejax.attention.toroidal.toroidal_attention` and
``axial_attention`` from a mesh whose devices share the tokens. In hop r, device d reads the keys of
device ``d - r``; the averages are joined by :func:`vfejax.attention.softmax.combine`. Values and
gradients are those of ``dense``, to rounding. With a window, only the neighbours that it reaches
are visited.

Memory. A device holds its own block of tokens, the one that passes by, and the logits of one tile.
The backward pass keeps the block's queries, keys, values and answer and one number per query, and
sends the keys round once more, together with their gradients. Keeping the blocks that passed, as
plain differentiation does even with ``jax.checkpoint`` around a hop, would gather the whole
sequence on every device.

Order. Of consecutive blocks under causality, the first device reads one block and the last reads
all of them, and the others wait for it. *Striped* tokens, dealt round to the devices by
:func:`stripe`, give every device the same work: tiles that no query reads are left out. Deal the
tokens once, at the entrance of a model, give the attention their places, and undo it at the exit:

    places = stripe(jnp.arange(n), num_devices, axis=0)
    answer = toroidal_attention(stripe(q, p), ..., causal=True, positions=places, method=...)
    answer = unstripe(answer, p)

Source: Liu, Zaharia and Abbeel, Ring attention with blockwise transformers (2023); Brandon et al.,
Striped attention (2023).
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
from vfejax.attention.toroidal import Method
from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree

__all__ = ["ring", "stripe", "unstripe"]


class _Layout(NamedTuple):
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


def stripe(x: Array, num_devices: int, axis: int = 1) -> Array:
    """Deal tokens out round by round: device d holds tokens ``d, d + p, d + 2 p, ...``.

    Args:
        x: any array, with tokens along ``axis``.
        num_devices: devices that share the tokens, p, a divisor of their number.
        axis: of the tokens.

    Returns:
        Shape of ``x``: the tokens of device 0 first, then those of device 1, ...

    Raises:
        ValueError: for tokens that cannot be dealt out evenly.

    >>> stripe(jnp.arange(6), 2, axis=0).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    return _deal(x, axis, num_devices, lambda n: (n // num_devices, num_devices))


def unstripe(x: Array, num_devices: int, axis: int = 1) -> Array:
    """Put striped tokens back in their order: the inverse of :func:`stripe`.

    Args:
        x: any array, with striped tokens along ``axis``.
        num_devices: devices that share the tokens.
        axis: of the tokens.

    Raises:
        ValueError: for tokens that cannot be dealt out evenly.

    >>> unstripe(stripe(jnp.arange(6), 2, axis=0), 2, axis=0).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    return _deal(x, axis, num_devices, lambda n: (num_devices, n // num_devices))


def _deal(x: Array, axis: int, num_devices: int, shape: Callable[[int], tuple[int, int]]) -> Array:
    n = x.shape[axis]
    if num_devices < 1 or n % num_devices:
        raise ValueError(f"num_devices must divide the {n} tokens, got {num_devices}")
    axis = axis % x.ndim
    dealt = x.reshape(*x.shape[:axis], *shape(n), *x.shape[axis + 1 :])
    return jnp.swapaxes(dealt, axis, axis + 1).reshape(x.shape)


def ring(
    mesh: Mesh, axis: str, *, batch_axis: str | None = None, tile: int | None = None
) -> Method:
    """A method that shares the tokens out over the devices of one axis of a mesh.

    Args:
        mesh: its axes must be of type Auto (``jax.make_mesh(..., axis_types=...)``).
        axis: axis of the mesh along the sequence; its size divides the length of the sequence.
        batch_axis: axis of the mesh along the batch; by default every device of another axis has
            all sequences.
        tile: largest number of places, of queries and of keys, whose logits are made at once; a
            divisor of the places of a device. By default all of them. Tiles that causality or a
            causal window leaves empty are skipped.

    Returns:
        A method for ``method=`` of :func:`vfejax.attention.toroidal.toroidal_attention`, which
        differentiates in reverse mode.

    Raises:
        ValueError: for an axis that the mesh does not have or that is not of type Auto, and when
            called, for sizes that do not divide.

    >>> from vfejax.attention.toroidal import toroidal_attention
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> x = jnp.ones((1, 4, 2, 3))
    >>> over_devices = ring(mesh, "sequence")
    >>> toroidal_attention(
    ...     x, x, x, depth=2, slope=1.0, circumference=4, method=over_devices
    ... ).shape
    (1, 4, 2, 3)
    """
    _check_mesh(mesh, axis, batch_axis)

    def method(query: Array, key: Array, value: Array, pattern: Pattern) -> Array:
        layout = _layout(mesh, axis, batch_axis, tile, pattern)
        if batch_axis is not None and query.shape[0] % mesh.shape[batch_axis]:
            raise ValueError(
                f"the batch must be a multiple of the {mesh.shape[batch_axis]} devices of "
                f"{batch_axis!r}, got {query.shape[0]}"
            )
        attend = _differentiable(mesh, layout)
        return attend((query, key, value), pattern.slope, replace(pattern, slope=None))

    return method


def _check_mesh(mesh: Mesh, axis: str, batch_axis: str | None) -> None:
    rings.check_axis(mesh, axis)
    if batch_axis is not None:
        rings.check_axis(mesh, batch_axis, "batch_axis")
    if axis == batch_axis:
        raise ValueError(f"batch_axis must be another axis than that of the sequence, got {axis!r}")


def _layout(
    mesh: Mesh, axis: str, batch_axis: str | None, tile: int | None, pattern: Pattern
) -> _Layout:
    devices, n = mesh.shape[axis], pattern.query_places.shape[1]
    if n % devices or not n:
        raise ValueError(f"the {devices} devices of {axis!r} must divide the sequence, got {n}")
    local = n // devices
    size = local if tile is None else tile
    if size < 1 or local % size:
        raise ValueError(f"tile must divide the {local} places of a device, got {tile}")
    hops = _hops(pattern, local, devices)
    return _Layout(axis, batch_axis, devices, local, local // size, hops, pattern.depth)


def _hops(pattern: Pattern, local: int, devices: int) -> tuple[int, int]:
    """First hop and number of hops that bring every key that a query reads."""
    if pattern.window is None or not pattern.is_counted:
        return 0, devices
    if pattern.causal:
        return 0, min(devices, 1 - (1 - pattern.window) // local)
    reach = -(-pattern.window // local)
    return (0, devices) if 2 * reach + 1 >= devices else (-reach, 2 * reach + 1)


def _differentiable(mesh: Mesh, layout: _Layout) -> Callable[..., Array]:
    """Attention of sharded tokens, with a backward pass of its own."""

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
        answer, log_total = sharded(_forward, pattern, "tr", "tt")(projected, slope, pattern)
        return answer, (projected, slope, pattern, answer, log_total)

    def backward(kept: PyTree, cotangent: Array) -> tuple[PyTree, Array | None, None]:
        projected, slope, pattern, answer, log_total = kept
        pull_back = sharded(_backward, pattern, "trttt", "tr")
        arguments = (projected, slope, answer, log_total, cotangent, pattern)
        by_projected, by_slope = pull_back(*arguments)
        return by_projected, by_slope, None

    attend.defvjp(forward, backward)
    return attend


def _pattern_specs(pattern: Pattern, layout: _Layout) -> Pattern:
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


def _split(x: Array, layout: _Layout) -> Array:
    """Cut the tokens of a device, ``[b, g, L D, ...]`` to ``[tiles, b, g, S D, ...]``."""
    batch, group, tokens = x.shape[:3]
    cut = x.reshape(batch, group, layout.tiles, tokens // layout.tiles, *x.shape[3:])
    return jnp.moveaxis(cut, 2, 0)


def _join(x: Array) -> Array:
    """Undo :func:`_split`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], *x.shape[4:])


def _is_read(pattern: Pattern) -> Array:
    """Whether causality and a causal window leave anything of a tile, ``[]``."""
    if not pattern.causal:
        return jnp.asarray(True)
    youngest = jnp.max(pattern.query_places) - jnp.min(pattern.key_places)
    oldest = jnp.min(pattern.query_places) - jnp.max(pattern.key_places)
    return (youngest >= 0) & (True if pattern.window is None else oldest < pattern.window)


def _constant(
    shape: tuple[int, ...], dtype: jnp.dtype, layout: _Layout, fill: float = 0.0
) -> Array:
    """A constant that every device is going to change by itself."""
    return rings.varying(jnp.full(shape, fill, dtype), layout.axes)


def _each_hop(read: Callable, own: PyTree, travelling: PyTree, layout: _Layout) -> tuple:
    """As :func:`vfejax.rings.each_hop`, over the hops of the layout."""
    first, number = layout.hops
    return rings.each_hop(read, own, travelling, layout.axis, first=first, number=number)


def _tiles_read(
    query: Array, pattern: Pattern, layout: _Layout
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

                return jax.lax.cond(_is_read(here), join, lambda same: same, so_far), None

            return None, jax.lax.scan(over_keys, so_far, (order, *blocks))[0]

        return jax.lax.scan(over_queries, None, (order, query, own))[1], blocks

    return read


def _tiles_pulled_back(
    query: Array, totals: list[Array], pattern: Pattern, layout: _Layout
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

                return jax.lax.cond(_is_read(here), add, lambda same: same, (sums, by_block))

            items = (order, blocks, by_blocks)
            sums, by_blocks = jax.lax.scan(over_keys, (by_query, by_slope), items)
            return (by_blocks, sums[1]), sums[0]

        items = (order, query, totals, own[0])
        (by_blocks, by_slope), by_query = jax.lax.scan(over_queries, (by_blocks, own[1]), items)
        return (by_query, by_slope), (blocks, by_blocks)

    return read


def _forward(
    layout: _Layout, projected: tuple[Array, Array, Array], slope: Array | None, pattern: Pattern
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
    layout: _Layout,
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
