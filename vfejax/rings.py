"""Blocks of arrays that are passed around a ring of devices, inside ``shard_map``: each device
keeps blocks of its own, and reads those that are passed on to it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from vfejax.types import Array, PyTree

__all__ = ["check_axis", "each_hop", "shift", "varying"]


def check_axis(mesh: Mesh, axis: str, name: str = "axis") -> None:
    """Refuse an axis that a mesh does not have, or that is not of type Auto.

    Args:
        mesh: the mesh.
        axis: name of one of its axes.
        name: of the argument, for the message.

    Raises:
        ValueError: when it cannot be used.

    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    >>> check_axis(mesh, "model")
    Traceback (most recent call last):
    ...
    ValueError: axis must be one of the mesh's ('data',), got 'model'
    """
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if axis not in kinds:
        raise ValueError(f"{name} must be one of the mesh's {tuple(mesh.shape)}, got {axis!r}")
    if kinds[axis] != AxisType.Auto:
        raise ValueError(f"{name} {axis!r} must be of type Auto, got {kinds[axis].name}")


def varying(tree: PyTree, axes: str | tuple[str, ...]) -> PyTree:
    """Arrays that are the same on all devices, such as constants, as what every device is going to
    change by itself.

    Args:
        tree: the arrays.
        axes: names of the axes of the mesh along which they are going to differ.

    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    >>> add = lambda total, x: (total + x, None)
    >>> zero = lambda: varying(jnp.zeros(1), "data")
    >>> total = lambda x: jax.lax.scan(add, zero(), x)[0]  # of each device
    >>> spec = jax.P("data")
    >>> jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.ones((4, 1))).tolist()
    [4.0]
    """
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), tree)


def shift(tree: PyTree, hops: int, axis: str) -> PyTree:
    """Send arrays ``hops`` devices on.

    Args:
        tree: the arrays.
        hops: how far, a Python number of either sign.
        axis: name of the mesh's axis.

    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    >>> spec = jax.P("data")
    >>> once_round = lambda x: shift(x, 1, "data")
    >>> jax.shard_map(once_round, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.arange(2)).tolist()
    [0, 1]
    """
    devices = jax.lax.axis_size(axis)
    if hops % devices == 0:
        return tree
    route = [(d, (d + hops) % devices) for d in range(devices)]
    return jax.lax.ppermute(tree, axis, route)


def each_hop(
    read: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]],
    own: PyTree,
    travelling: PyTree,
    axis: str,
    *,
    first: int = 0,
    number: int | None = None,
) -> tuple[PyTree, PyTree]:
    """Read every block that comes by. In hop r, device d reads the block of device ``d - r``.

    Args:
        read: ``(own, travelling, source) -> (own, travelling)``; the source is the number of the
            device whose block it is.
        own: what stays.
        travelling: what goes round; what ``read`` adds to it goes along.
        axis: name of the mesh's axis.
        first: first hop.
        number: of hops; by default one for each device.

    Returns:
        What stays, and what travelled, where the last hop left it: ``shift`` by ``1 - first -
        number`` brings it home.

    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    >>> add = lambda own, block, source: (own + jnp.sum(block), block)
    >>> total = lambda x: each_hop(add, jnp.zeros_like(x[:1]), x, "data")[0]
    >>> spec = jax.P("data")
    >>> jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.arange(4.0)).tolist()
    [6.0]
    """
    devices, here = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    number = devices if number is None else number

    def source(hop: Array | int) -> Array:
        return jnp.mod(here - jnp.asarray(hop, here.dtype), jnp.asarray(devices, here.dtype))

    def body(carry: tuple[PyTree, PyTree], hop: Array) -> tuple[tuple[PyTree, PyTree], None]:
        own, travelling = carry
        return read(own, shift(travelling, 1, axis), source(hop)), None

    carry = read(own, shift(travelling, first, axis), source(first))
    hops = jnp.arange(first + 1, first + number, dtype=here.dtype)
    return jax.lax.scan(body, carry, hops)[0]
