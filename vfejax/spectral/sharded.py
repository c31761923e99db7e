"""Resolvents and recurrences of sequences that the devices of a mesh share.

Every device holds a stretch of the sequence, a shard. What a shard does to whatever comes before it
is one small map: of a continued fraction ``g -> (A g + B) / (C g + D)``, of a linear recurrence ``y
-> p y + x``. The devices gather these maps, compose those of the shards before, and sweep their
shard from the right start. The result is that of one device, to rounding, whether anything decays
along the sequence or not. Derivatives of every order, forward and reverse, are sweeps of the same
kind. On p devices memory and time are O(n / p) each, and what travels does not grow with n.

The functions here are for shards, inside ``jax.shard_map``; those of :mod:`vfejax.spectral.mesh`
take whole arrays. As in :mod:`vfejax.spectral.gates`, all rows have the length of the sequence:
entry i of an off-diagonal couples site i to the site before it, ``b_i = T_{i-1,i}`` and ``c_i =
T_{i,i-1}``, and those of the first site are without effect.

Source: De et al., Griffin: mixing gated linear recurrences with local attention for efficient
language models (2024), for linear recurrences. The continued fraction is ours.
"""

import jax
import jax.numpy as jnp

from vfejax.numerics import broadcast_named
from vfejax.spectral._arguments import check_arrays, complex_dtype
from vfejax.spectral._scale import inverse_unit_over
from vfejax.spectral._sharded_sweeps import (
    diagonal_of,
    left_fraction,
    linear_sweep,
    two_sided_solve,
)
from vfejax.spectral._shards import neighbour
from vfejax.spectral._site_units import shared_unit_roots
from vfejax.spectral.scans import PLATFORM, Scans, scaled
from vfejax.spectral.streaming import StreamingState
from vfejax.types import Array

__all__ = [
    "left_resolvent_diagonal",
    "linear_recurrence",
    "resolvent_diagonal",
    "tridiagonal_solve",
    "tridiagonal_sweep",
]


def linear_recurrence(
    gates: Array,
    inputs: Array,
    axis_name: str,
    reverse: bool = False,
    *,
    axis: int = -1,
    scans: Scans = PLATFORM,
) -> Array:
    """``y_i = g_i y_{i-1} + x_i``, or ``y_i = g_i y_{i+1} + x_i`` in reverse, from 0.

    The product of the gates of a shard must stay in range, as it does for ``|g| <= 1``.

    Args:
        gates: a shard, real or complex, of the rank of ``inputs``; axes other than ``axis`` may
            have size 1 and are then shared.
        inputs: a shard, same dtype.
        axis_name: axis of the mesh along the sequence.
        reverse: from the last site of the sequence to the first.
        axis: the sequence axis of both.
        scans: the algorithm within a shard.

    Returns:
        Shape and dtype of ``inputs``.

    Raises:
        ValueError: when shapes or dtypes do not fit.

    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> decayed = jax.shard_map(
    ...     lambda x: linear_recurrence(0.5 * x, x, "sequence"),
    ...     mesh=mesh, in_specs=P("sequence"), out_specs=P("sequence"),
    ... )
    >>> print(jax.jit(decayed)(jnp.ones(3)))
    [1.   1.5  1.75]
    """
    check_arrays(gates=gates, inputs=inputs)
    if gates.dtype != inputs.dtype:
        raise ValueError(f"gates must have the dtype of inputs {inputs.dtype}, got {gates.dtype}")
    fits = gates.ndim == inputs.ndim > 0 and gates.shape[axis] == inputs.shape[axis]
    if not fits or any(g not in (1, x) for g, x in zip(gates.shape, inputs.shape, strict=True)):
        raise ValueError(
            f"gates must broadcast to inputs {inputs.shape} and have its length, got {gates.shape}"
        )
    gates, inputs = jnp.moveaxis(gates, axis, 0), jnp.moveaxis(inputs, axis, 0)
    return jnp.moveaxis(linear_sweep(gates, inputs, axis_name, reverse, scans), 0, axis)


def _sites_first(
    axis_name: str,
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    leading: dict[str, tuple[int, ...]],
    dtype: jnp.dtype,
) -> tuple[Array, Array, Array]:
    """The three rows ``[l, ...]``, complex; nothing couples to what is before the first site."""
    rows = {"diagonal": diagonal, "superdiagonal": superdiagonal, "subdiagonal": subdiagonal}
    length = diagonal.shape[-1] if diagonal.ndim else 0
    if length == 0:
        raise ValueError(f"diagonal must be [..., l] with l >= 1, got {diagonal.shape}")
    for name, row in rows.items():
        if row.ndim == 0 or row.shape[-1] != length:
            raise ValueError(
                f"{name} must be [..., {length}], one entry for each site, got {row.shape}"
            )
    batch = broadcast_named(**{name: row.shape[:-1] for name, row in rows.items()}, **leading)
    d, b, c = (
        jnp.moveaxis(jnp.broadcast_to(row.astype(dtype), (*batch, length)), -1, 0)
        for row in rows.values()
    )
    begins = jax.lax.axis_index(axis_name) == 0

    def cut(x: Array) -> Array:
        return x.at[0].set(jnp.where(begins, jnp.zeros_like(x[0]), x[0]))

    return d, cut(b), cut(c)


def _shifted(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array | complex, axis_name: str
) -> tuple[Array, Array, Array]:
    """``a - z``, b and c, sites first."""
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    leading = {"z": jnp.shape(z)}
    a, b, c = _sites_first(axis_name, diagonal, superdiagonal, subdiagonal, leading, dtype)
    z = jnp.broadcast_to(jnp.asarray(z, dtype), a.shape[1:])
    # A choice between equals: z becomes one number for each shard before it becomes one for each
    # site, so that its derivative is added up over the sites before the devices exchange it.
    z = jnp.where(jnp.isnan(a[0].real), z, z)
    return a - jnp.broadcast_to(z, a.shape), b, c


def _left(d: Array, b: Array, c: Array, axis_name: str, scans: Scans) -> Array:
    """gL ``[l, ...]``, every site swept in a unit of its own."""
    r = shared_unit_roots(d, (b, c), axis_name)
    links = r * neighbour(r, axis_name)
    k = scaled(links, b) * scaled(links, c)
    return scaled(r, scaled(r, left_fraction(scaled(r, scaled(r, d)), k, axis_name, scans)))


def left_resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    axis_name: str,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Left-connected resolvent ``gL_i = 1 / (a_i - z - b_i c_i gL_{i-1})``, causal.

    Args:
        diagonal: a shard of a, real or complex, ``[..., l]``, l >= 1.
        superdiagonal: of b, ``[..., l]``.
        subdiagonal: of c, ``[..., l]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``, the same on all devices.
        axis_name: axis of the mesh along the sequence.
        scans: the algorithm within a shard.

    Returns:
        Complex ``[..., l]``; see :func:`vfejax.spectral.resolvent.left_resolvent_diagonal`.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> from vfejax.spectral.mesh import over_mesh
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> a, b = jnp.zeros(2), jnp.ones(2)
    >>> left = over_mesh(mesh, "sequence").left_resolvent_diagonal
    >>> jax.eval_shape(left, a, b, b, 1j).dtype
    dtype('complex64')
    """
    d, b, c = _shifted(diagonal, superdiagonal, subdiagonal, z, axis_name)
    return jnp.moveaxis(_left(d, b, c, axis_name, scans), 0, -1)


def resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    axis_name: str,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Diagonal of the resolvent, ``G_ii = [(T - z)^{-1}]_{ii}``; every entry sees the sequence.

    Args:
        diagonal, superdiagonal, subdiagonal, z: as :func:`left_resolvent_diagonal` takes them.
        axis_name, scans: likewise.

    Returns:
        Complex ``[..., l]``; see :func:`vfejax.spectral.resolvent.resolvent_diagonal`.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> from vfejax.spectral.mesh import over_mesh
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> a, b = jnp.zeros(2), jnp.ones(2)
    >>> diagonal = jax.jit(over_mesh(mesh, "sequence").resolvent_diagonal)
    >>> print(diagonal(a, b, b, 1j).imag)
    [0.5 0.5]
    """
    d, b, c = _shifted(diagonal, superdiagonal, subdiagonal, z, axis_name)
    s = inverse_unit_over(d, b, c, axis_name)
    d, b, c = (scaled(s[None], x) for x in (d, b, c))
    return jnp.moveaxis(scaled(s[None], diagonal_of(d, b * c, axis_name, scans)), 0, -1)


def _with_vectors(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, x: Array, axis_name: str
) -> tuple[Array, Array, Array, Array]:
    """The three rows ``[l, ...]`` and the vectors ``[l, ..., channels]``, complex."""
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, x=x
    )
    if x.ndim < 2 or x.shape[-2:-1] != diagonal.shape[-1:]:
        raise ValueError(f"x must be [..., l, c] beside diagonal {diagonal.shape}, got {x.shape}")
    leading = {"x": x.shape[:-2]}
    rows = _sites_first(axis_name, diagonal, superdiagonal, subdiagonal, leading, dtype)
    full = (*rows[0].shape[1:], *x.shape[-2:])
    return *rows, jnp.moveaxis(jnp.broadcast_to(x.astype(dtype), full), -2, 0)


def tridiagonal_sweep(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    x: Array,
    axis_name: str,
    *,
    scans: Scans = PLATFORM,
) -> StreamingState:
    """``gL_i = 1 / (d_i - b_i c_i gL_{i-1})`` and ``y_i = gL_i (x_i - c_i y_{i-1})``: the causal
    half of ``T^{-1} x``.

    Units: any, as of :func:`vfejax.spectral.gates.tridiagonal_sweep`.

    Args:
        diagonal: a shard of d, real or complex, ``[..., l]``, l >= 1.
        superdiagonal: of b, ``[..., l]``.
        subdiagonal: of c, ``[..., l]``.
        x: a shard, ``[..., l, channels]``. Leading axes of all broadcast.
        axis_name: axis of the mesh along the sequence.
        scans: the algorithm within a shard.

    Returns:
        gL ``[..., l]`` and y ``[..., l, channels]``, complex, as of
        :func:`vfejax.spectral.gates.tridiagonal_sweep`.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> from vfejax.spectral.mesh import over_mesh
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> a, x = jnp.full(3, 0.5), jnp.ones((3, 2))
    >>> sweep = over_mesh(mesh, "sequence").tridiagonal_sweep
    >>> found = jax.eval_shape(sweep, jnp.ones(3), 0 * a, -a, x)
    >>> found.left.shape, found.output.shape
    ((3,), (3, 2))
    """
    d, b, c, x = _with_vectors(diagonal, superdiagonal, subdiagonal, x, axis_name)
    left = _left(d, b, c, axis_name, scans)
    y = linear_sweep(-(left * c)[..., None], left[..., None] * x, axis_name, False, scans)
    return StreamingState(jnp.moveaxis(left, 0, -1), jnp.moveaxis(y, 0, -2))


def tridiagonal_solve(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    x: Array,
    axis_name: str,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``T^{-1} x``: sweeps from both ends, which meet at every site.

    Args:
        diagonal, superdiagonal, subdiagonal, x: as :func:`tridiagonal_sweep` takes them.
        axis_name, scans: likewise.

    Returns:
        Complex ``[..., l, channels]``.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> from vfejax.spectral.mesh import over_mesh
    >>> mesh = jax.make_mesh((1,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> b, x = jnp.full(3, 0.5), jnp.ones((3, 2))
    >>> solve = over_mesh(mesh, "sequence").tridiagonal_solve
    >>> jax.eval_shape(solve, jnp.ones(3), b, b, x).shape
    (3, 2)
    """
    d, b, c, x = _with_vectors(diagonal, superdiagonal, subdiagonal, x, axis_name)
    s = inverse_unit_over(d, b, c, axis_name)
    d, b, c = (scaled(s[None], row) for row in (d, b, c))
    y = scaled(s[None, ..., None], two_sided_solve(d, b, c, x, axis_name, scans))
    return jnp.moveaxis(y, 0, -2)
