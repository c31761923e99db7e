"""Resolvents and recurrences of whole arrays whose sequence the devices of a mesh share.

:func:`over_mesh` makes the functions of :mod:`vfejax.spectral.sharded` take whole arrays.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec

from vfejax.spectral import sharded
from vfejax.spectral._arguments import complex_dtype
from vfejax.spectral.scans import PLATFORM, Scans
from vfejax.spectral.streaming import StreamingState
from vfejax.types import Array

__all__ = ["OverMesh", "over_mesh"]


class OverMesh(NamedTuple):
    """The functions of :mod:`vfejax.spectral.sharded` without their ``axis_name`` and ``scans``.

    Attributes:
        linear_recurrence: ``linear_recurrence(gates, inputs, reverse=False, *, axis=-1)``.
        left_resolvent_diagonal: ``left_resolvent_diagonal(diagonal, superdiagonal, subdiagonal,
            z)``, all but z with n entries.
        resolvent_diagonal: likewise.
        tridiagonal_sweep: ``tridiagonal_sweep(diagonal, superdiagonal, subdiagonal, x)``.
        tridiagonal_solve: likewise.
    """

    linear_recurrence: Callable[..., Array]
    left_resolvent_diagonal: Callable[..., Array]
    resolvent_diagonal: Callable[..., Array]
    tridiagonal_sweep: Callable[..., StreamingState]
    tridiagonal_solve: Callable[..., Array]


def over_mesh(mesh: Mesh, axis: str, *, scans: Scans = PLATFORM) -> OverMesh:
    """Functions whose sequence the devices along one axis of a mesh share.

    Other axes of the mesh stay the compiler's, such as one along the batch.

    Args:
        mesh: its axes are of type Auto.
        axis: axis of the mesh along the sequence; its size divides the length of the sequence.
        scans: the algorithm within a shard.

    Returns:
        The functions. Their results are shared over the mesh as their arguments are.

    Raises:
        ValueError: for an axis that the mesh does not have or that is not of type Auto, and when
            called, for a length that the devices do not divide.

    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(AxisType.Auto,))
    >>> recurrence = jax.jit(over_mesh(mesh, "sequence").linear_recurrence)
    >>> print(recurrence(jnp.full(3, 0.5), jnp.ones(3)))
    [1.   1.5  1.75]
    """
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if axis not in kinds:
        raise ValueError(f"axis must be one of the mesh's {tuple(mesh.shape)}, got {axis!r}")
    if kinds[axis] != AxisType.Auto:
        raise ValueError(f"axis {axis!r} must be of type Auto, got {kinds[axis].name}")
    whole = partial(_whole, mesh, axis)

    def recurrence(gates: Array, inputs: Array, reverse: bool = False, *, axis: int = -1) -> Array:
        at = axis - inputs.ndim if axis >= 0 else axis
        run = partial(sharded.linear_recurrence, reverse=reverse, axis=at, scans=scans)
        return whole(run, (at, at), at)(gates, inputs)

    def diagonal(run: Callable) -> Callable[..., Array]:
        def call(a: Array, b: Array, c: Array, z: Array | complex) -> Array:
            z = jnp.asarray(z, complex_dtype(diagonal=a, z=z))
            return whole(partial(run, scans=scans), (-1, -1, -1, None), -1)(a, b, c, z)

        return call

    def sweep(d: Array, b: Array, c: Array, x: Array, axis_name: str) -> tuple[Array, ...]:
        return tuple(sharded.tridiagonal_sweep(d, b, c, x, axis_name, scans=scans))

    rows = (-1, -1, -1, -2)
    swept = whole(sweep, rows, (-1, -2))
    return OverMesh(
        recurrence,
        diagonal(sharded.left_resolvent_diagonal),
        diagonal(sharded.resolvent_diagonal),
        lambda *arrays: StreamingState(*swept(*arrays)),
        whole(partial(sharded.tridiagonal_solve, scans=scans), rows, -2),
    )


def _whole(
    mesh: Mesh, axis: str, run: Callable, places: tuple[int | None, ...], found: Any
) -> Callable[..., Any]:
    """``run`` of whole arrays: ``places`` are their axes along the sequence, from behind, and
    ``found`` those of the results.
    """
    devices = mesh.shape[axis]

    def local(*shards: Array) -> Any:
        # The sequence first: its place from the front does not depend on what broadcasts.
        results = run(*shards, axis_name=axis)
        return jax.tree.map(lambda x, at: jnp.moveaxis(x, at, 0), results, found)

    def call(*arrays: Array) -> Any:
        specs = []
        for x, at in zip(arrays, places, strict=True):
            if at is None:
                specs.append(PartitionSpec())
                continue
            if x.ndim < -at or x.shape[at] % devices:
                raise ValueError(
                    f"the {devices} devices of {axis!r} must divide the sequence, axis {at} of "
                    f"each array, got {x.shape}"
                )
            specs.append(PartitionSpec(*(None,) * (x.ndim + at), axis))
        share = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=PartitionSpec(axis),
            axis_names={axis},
        )
        return jax.tree.map(lambda x, at: jnp.moveaxis(x, 0, at), share(*arrays), found)

    return call
