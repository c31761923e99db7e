"""Diagonal of the resolvent ``G = (T - z)^{-1}`` of a tridiagonal matrix in O(n), by ratios that
never overflow, with its exact derivatives.

The resolvent is also known as the Green's function, up to its sign. With ``d_i = a_i - z`` and
``k_i = b_i c_i`` (super- times subdiagonal) the left- and right-connected resolvents are continued
fractions,

    gL_i = 1 / (d_i - k_{i-1} gL_{i-1}),   gR_i = 1 / (d_i - k_i gR_{i+1}),
    G_ii = 1 / (d_i - k_{i-1} gL_{i-1} - k_i gR_{i+1}).

The textbook form ``G_ii = theta_i phi_i / theta_N`` by three-term recursions of determinants
overflows complex64 near n = 110 and complex128 near n = 915. The ratios are bounded, ``|g| <= 1 /
Im z`` for real a, ``k >= 0`` and ``Im z > 0``, and accurate to rounding at every n.

A leading minor of ``T - z`` may vanish off the spectrum, as at the centre of the band of a chain
with equal sites. gL then has a pole, and G has none: the recursions pass it, see
:func:`vfejax.spectral.scans.pivot_reciprocal`.

G_ii sees the whole chain, gL_i only the sites up to i: a causal model must use
:func:`left_resolvent_diagonal`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from vfejax.spectral import _folded
from vfejax.spectral._arguments import chain_shape, complex_dtype
from vfejax.spectral._folded import Folded
from vfejax.spectral.recurrence import (
    ASSOCIATIVE,
    PLATFORM,
    Scans,
    moebius_recurrence,
    pad_front,
)
from vfejax.spectral.sides import Sides, diagonal_tangent, sides
from vfejax.types import Array

__all__ = [
    "complex_dtype",
    "left_resolvent_diagonal",
    "resolvent_diagonal",
    "shifted_tridiagonal",
    "sites_first",
]

Operands: TypeAlias = tuple[Array, Array, Array]


def sites_first(x: Array, batch: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """``x [..., n]`` cast, broadcast to the leading axes ``batch``, and with the sites first.

    Args:
        x: ``[..., n]``.
        batch: leading axes wanted.
        dtype: dtype wanted.

    Returns:
        ``[n, *batch]``.

    >>> sites_first(jnp.ones(4), (3, 2), jnp.dtype("complex64")).shape
    (4, 3, 2)
    """
    return jnp.moveaxis(jnp.broadcast_to(x.astype(dtype), (*batch, x.shape[-1])), -1, 0)


def shifted_tridiagonal(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array | complex
) -> tuple[Array, Array]:
    """``d = a - z [n, ...]``, complex, and ``k = b c [n - 1, ...]``, real where both are, broadcast
    and with the sites first.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b, ``[..., n - 1]``.
        subdiagonal: c, ``[..., n - 1]``.
        z: a number or ``[...]``.

    Returns:
        d and k.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> d, k = shifted_tridiagonal(jnp.ones((4, 3)), jnp.ones(2), jnp.ones(2), 1j)
    >>> d.shape, k.shape, k.dtype
    ((3, 4), (2, 4), dtype('float32'))
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    batch = chain_shape(diagonal, superdiagonal, subdiagonal, z)
    real_couplings = not (jnp.iscomplexobj(superdiagonal) or jnp.iscomplexobj(subdiagonal))
    coupling_dtype = jnp.finfo(dtype).dtype if real_couplings else dtype
    a = sites_first(diagonal, batch, dtype)
    b, c = (sites_first(x, batch, coupling_dtype) for x in (superdiagonal, subdiagonal))
    return a - jnp.broadcast_to(jnp.asarray(z, dtype), a.shape), b * c


def left_resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Left-connected resolvent ``gL_i = [(T_{0..i} - z)^{-1}]_{ii}``: site i with everything after
    it cut off.

    Causal: ``gL_i`` depends on ``a_0 .. a_i`` and ``k_0 .. k_{i-1}`` alone.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``. A zero in b or c cuts the chain.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[..., n]``, complex64 for float32 and complex128 for float64. Where z is an
        eigenvalue of the chain cut off after site i, gL_i is infinite. It comes out as ``2^40``
        (``2^100`` in double precision), and the other entries are right. Derivatives of every
        order, forward and reverse.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> print(left_resolvent_diagonal(jnp.zeros(2), jnp.ones(1), jnp.ones(1), 1j).imag)
    [1.  0.5]
    """
    d, k = shifted_tridiagonal(diagonal, superdiagonal, subdiagonal, z)
    return jnp.moveaxis(moebius_recurrence(d, k, axis=0, scans=scans), 0, -1)


def _tied(operands: Operands, result: Array) -> tuple[Operands, Array]:
    """The operands and a zero ``result``, each with a zero that is linear in all operands: the
    transpose of a linear solve wants no right-hand side that is known.
    """
    nothing = sum(jnp.ravel(x)[:0].astype(result.dtype) for x in operands)

    def zero(like: Array) -> Array:
        rows = jnp.reshape(nothing, (0, *like.shape[1:]))
        rows = rows if jnp.issubdtype(like.dtype, jnp.complexfloating) else jnp.real(rows)
        widths = [(like.shape[0], 0, 0), *[(0, 0, 0)] * (len(like.shape) - 1)]
        return jax.lax.pad(rows, jnp.zeros((), like.dtype), widths)

    a, k, z = operands
    return (a + zero(a), k + zero(k), z + zero(z)), zero(result)


def _linear(
    apply_fn: Callable[[Operands], Array],
    solved_fn: Callable[[Operands], Array],
    transposed_fn: Callable[[Array], Operands],
    operands: Operands,
) -> Array:
    """``solved_fn(operands)``, linear, with its transpose given.

    It solves ``x = operands, y - apply(x) = 0``, so that derivatives by what ``apply_fn`` closes
    over follow from it, as they do from any linear equations.
    """
    add = partial(jax.tree.map, jnp.add)
    return jax.lax.custom_linear_solve(
        lambda pair: (pair[0], pair[1] - apply_fn(pair[0])),
        _tied(operands, jax.eval_shape(apply_fn, operands)),
        solve=lambda _, pair: (pair[0], pair[1] + solved_fn(pair[0])),
        transpose_solve=lambda _, pair: (add(pair[0], transposed_fn(pair[1])), pair[1]),
    )[1]


def _chain(a: Array, k: Array, z: Array, scans: Scans) -> Sides:
    return sides((a.astype(z.dtype) - z[:, None]).T, k.T, scans)


def _tangent(chain: Sides, k: Array, changes: Operands, scans: Scans) -> Array:
    a_change, k_change, z_change = changes
    d_change = (a_change.astype(z_change.dtype) - z_change[:, None]).T
    return diagonal_tangent(chain, k.T, d_change, k_change.T, scans).T


def _folded_chain(folded: Folded, g: Array) -> Sides:
    """The other layout of the same numbers."""
    there, back = _folded.joined(folded.inward)[1:], _folded.joined(folded.outward)[:-1]
    n, split = g.shape[1], (there.shape[0], 2, g.shape[0])
    there, back = jnp.reshape(there, split), jnp.reshape(back, split)
    whole = jnp.concatenate([there, back[::-1, ::-1]])
    return Sides(jnp.stack([whole[:n, 0], whole[-n:, 1]], axis=1), g.T)


def _diagonal_by_tree(a: Array, k: Array, z: Array) -> tuple[Array, Folded]:
    lanes, n = a.shape
    num, rows = _folded.blocks(lanes, n)
    half = num * rows
    a, k = _folded.extended(a, z, 2 * half), _folded.bordered(k, 2 * half)[:, 1:-1]
    whole = _chain(a, k, z, ASSOCIATIVE)
    there, back = whole.both[:half], whole.both[half:][::-1, ::-1]
    there, back = pad_front(there), jnp.concatenate([back, there[-1:, ::-1]])
    folded = (
        _folded.overlapping(jnp.reshape(x, (half + 1, 2 * lanes)), num) for x in (there, back)
    )
    return whole.diagonal.T[:, :n], Folded(*folded)


def _adjoint_by_tree(
    a: Array, k: Array, g: Array, folded: Folded, w: Array
) -> tuple[Array, Array, Array]:
    chain = _folded_chain(folded, g)
    arguments = jax.eval_shape(lambda: (a, k, g[:, 0]))
    return jax.linear_transpose(lambda *x: _tangent(chain, k, x, ASSOCIATIVE), *arguments)(w)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _diagonal(a: Array, k: Array, z: Array, scans: Scans) -> tuple[Array, Folded]:
    """G, ``[lanes, n]``, and what its adjoint reads, whose derivatives are not to be used."""
    return scans.choose(_folded.diagonal, _diagonal_by_tree, a, k, z)


@_diagonal.defjvp
def _diagonal_jvp(scans: Scans, primals: Operands, tangents: Operands) -> tuple[Any, Any]:
    a, k, z = primals
    g, folded = _diagonal(a, k, z, scans)
    kept = jax.lax.stop_gradient((a, k, g, folded))
    g_change = _linear(
        lambda changes: _tangent(_chain(a, k, z, scans), k, changes, scans),
        lambda changes: _tangent(_folded_chain(kept[3], kept[2]), kept[1], changes, scans),
        lambda w: scans.choose(_folded.adjoint, _adjoint_by_tree, *kept, w),
        tangents,
    )
    return (g, folded), (g_change, jax.tree.map(jnp.zeros_like, folded))


def resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Diagonal of the resolvent, ``G_ii = [(T - z)^{-1}]_{ii}``, of the tridiagonal T, in O(n) time
    and memory.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``. A zero in b or c cuts the chain.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``, off the spectrum (``Im z > 0`` is enough when
            T is symmetric). Leading minors of ``T - z`` may vanish.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[..., n]``, complex64 for float32 and complex128 for float64. For symmetric T and
        Im z > 0, Im G > 0; for Im z >= 0.5 and entries of order 1 the relative error is then below
        1e-12 and 5e-6 at every n (it grows as ``|T - z| / Im z``). At an eigenvalue of T, where G
        is infinite, entries are NaN or of the order of 2^40 (2^100). Derivatives are exact in all
        four arguments, forward and reverse, of every order (of the first where a minor vanishes),
        and real for real arguments.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    Source: Economou, Green's Functions in Quantum Physics (2006), section 5.3 and appendix; Usmani,
    Linear Algebra Appl. 212 (1994) 413 for theta and phi. Carrying ratios, and their adjoint, are
    ours.

    >>> a, b = jnp.zeros(2), jnp.ones(1)
    >>> print(resolvent_diagonal(a, b, b, 1j).imag)
    [0.5 0.5]
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    batch, n = chain_shape(diagonal, superdiagonal, subdiagonal, z), diagonal.shape[-1]
    size = math.prod(batch)

    def lanes(x: Array, *like: Array) -> Array:
        x = x.astype(jnp.result_type(x, *like))
        return jnp.reshape(jnp.broadcast_to(x, (*batch, x.shape[-1])), (size, x.shape[-1]))

    b, c = lanes(superdiagonal, subdiagonal), lanes(subdiagonal, superdiagonal)
    z = jnp.reshape(jnp.broadcast_to(jnp.asarray(z, dtype), batch), (size,))
    g, _ = _diagonal(lanes(diagonal), b * c, z, scans)
    return jnp.reshape(g, (*batch, n))
