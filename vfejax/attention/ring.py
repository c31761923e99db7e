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

Order. Tiles that no query reads are left out. Under causality, give the ring striped tokens
(:mod:`vfejax.attention.striping`): every device then has the same work.

Source: Liu, Zaharia and Abbeel, Ring attention with blockwise transformers (2023).
"""

from dataclasses import replace

from jax.sharding import Mesh

from vfejax import rings
from vfejax.attention._ring_sweeps import Layout, sweeps
from vfejax.attention.pattern import Pattern
from vfejax.attention.striping import stripe, unstripe
from vfejax.attention.toroidal import Method
from vfejax.types import Array

__all__ = ["ring", "stripe", "unstripe"]


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

    >>> import jax
    >>> import jax.numpy as jnp
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
        attend = sweeps(mesh, layout)
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
) -> Layout:
    devices, n = mesh.shape[axis], pattern.query_places.shape[1]
    if n % devices or not n:
        raise ValueError(f"the {devices} devices of {axis!r} must divide the sequence, got {n}")
    local = n // devices
    size = local if tile is None else tile
    if size < 1 or local % size:
        raise ValueError(f"tile must divide the {local} places of a device, got {tile}")
    hops = _hops(pattern, local, devices)
    return Layout(axis, batch_axis, devices, local, local // size, hops, pattern.depth)


def _hops(pattern: Pattern, local: int, devices: int) -> tuple[int, int]:
    """First hop and number of hops that bring every key that a query reads."""
    if pattern.window is None or not pattern.is_counted:
        return 0, devices
    if pattern.causal:
        return 0, min(devices, 1 - (1 - pattern.window) // local)
    reach = -(-pattern.window // local)
    return (0, devices) if 2 * reach + 1 >= devices else (-reach, 2 * reach + 1)
