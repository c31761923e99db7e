"""Eigenvalues alone of many small Hermitian matrices, side by side on the last axis and without
LAPACK: Householder's reduction to tridiagonal form, then bisection by Sturm's counts.

A complex matrix is one real one, ``M = Re + Im`` (:func:`vfejax.quantum.hermitian.packed`), and a
vector is a tuple of its real part and, of a complex one, its imaginary part. Of an off-diagonal
entry of the tridiagonal form only the modulus counts. Loops run over rows, since XLA vectorises
over the stack only what is written as one row at a time (1.5 ns per entry become 0.3).
"""

import jax.numpy as jnp
from jax import lax

from vfejax.types import Array

__all__ = ["side_by_side"]

Vector = tuple[Array, ...]


def _row(x: Array, index: Array, axis: int = 0, *, keep: bool = False) -> Array:
    return lax.dynamic_index_in_dim(x, index, axis, keepdims=keep)


def _times(matrix: Array, v: Vector, size: Array) -> Vector:
    """``A v`` for v that is 0 from place ``size`` on."""
    if len(v) == 1:
        return (
            lax.fori_loop(
                0, size, lambda j, y: y + _row(matrix, j) * _row(v[0], j, keep=True), 0 * v[0]
            ),
        )
    plus, minus = v[0] + v[1], v[0] - v[1]

    def add(j: Array, product: Vector) -> Vector:
        row, column = _row(matrix, j), _row(matrix, j, 1)
        p, m = _row(plus, j, keep=True), _row(minus, j, keep=True)
        return product[0] + column * m + row * p, product[1] + column * p - row * m

    real, imag = lax.fori_loop(0, size, add, (jnp.zeros_like(plus), jnp.zeros_like(plus)))
    return 0.5 * real, 0.5 * imag


def _minus_rank_two(matrix: Array, v: Vector, w: Vector, size: Array) -> Array:
    """The first rows of ``A - v w^dag - w v^dag``."""
    left, right = (*v, *w), (*w, *v)
    if len(v) == 2:
        left = v[0] + v[1], v[1] - v[0], w[0] + w[1], w[1] - w[0]

    def subtract(j: Array, matrix: Array) -> Array:
        change = sum(_row(x, j, keep=True) * y for x, y in zip(left, right, strict=True))
        row = _row(matrix, j) - change
        return lax.dynamic_update_index_in_dim(matrix, row, j, 0)

    return lax.fori_loop(0, size, subtract, matrix)


def _squared(v: Vector) -> Array:
    return sum((x * x for x in v[1:]), v[0] * v[0])


def _reflection(matrix: Array, last: Array, is_complex: bool) -> tuple[Vector, Vector, Array]:
    """v and w of the reflection ``A - v w^dag - w v^dag`` that leaves one entry beside the diagonal
    in row ``last`` of the leading block, with that row: its diagonal entry, the modulus beside it.
    """
    row = _row(matrix, last)
    x: Vector = (row,)
    if is_complex:
        column = _row(matrix, last, 1)
        x = 0.5 * (column + row), 0.5 * (column - row)
    diagonal = _row(x[0], last, keep=True)
    places = lax.broadcasted_iota(jnp.int32, row.shape, 0)
    x = tuple(jnp.where(places < last, part, 0.0) for part in x)
    pivot = tuple(_row(part, last - 1, keep=True) for part in x)
    square, length = jnp.sum(_squared(x), axis=0, keepdims=True), jnp.sqrt(_squared(pivot))
    norm = jnp.sqrt(square)
    # v = x + |x| (phase of the pivot) at the pivot; H = 1 - scale v v^dag.
    no_pivot = length <= 0
    phase = [part / jnp.where(no_pivot, 1.0, length) for part in pivot]
    phase[0] = jnp.where(no_pivot, 1.0, phase[0])
    v = tuple(
        jnp.where(places == last - 1, part + unit * norm, part)
        for part, unit in zip(x, phase, strict=True)
    )
    # Entries are at most 1. What is below eps^2 is left out: its square may be subnormal.
    negligible = square <= jnp.finfo(row.dtype).eps ** 4
    scale = jnp.where(negligible, 0.0, 1.0 / jnp.where(negligible, 1.0, norm * (norm + length)))
    product = tuple(scale * part for part in _times(matrix, v, last))
    inner = sum(p * part for p, part in zip(product, v, strict=True))
    inner = 0.5 * scale * jnp.sum(inner, axis=0, keepdims=True)
    w = tuple(p - inner * part for p, part in zip(product, v, strict=True))
    return v, w, jnp.concatenate([diagonal, norm])


def _tridiagonal(matrix: Array, is_complex: bool) -> Array:
    """``[d, 2, n]``: diagonals, and moduli of the entries before them in their rows."""
    d = matrix.shape[0]
    Carry = tuple[Array, Vector, Vector, Array]

    def eliminate(i: Array, carry: Carry) -> Carry:
        matrix, v, w, rows = carry
        last = d - 1 - i
        # First of all, before anything else reads the matrix, or XLA copies it.
        matrix = _minus_rank_two(matrix, v, w, last + 1)
        v, w, row = _reflection(matrix, last, is_complex)
        return matrix, v, w, lax.dynamic_update_index_in_dim(rows, row, last, 0)

    zeros = (jnp.zeros_like(matrix[0]),) * (2 if is_complex else 1)
    rows = jnp.zeros_like(matrix, shape=(d, 2, matrix.shape[-1]))
    matrix, v, w, rows = lax.fori_loop(0, d - 1, eliminate, (matrix, zeros, zeros, rows))
    return rows.at[0, 0].set(_minus_rank_two(matrix, v, w, jnp.asarray(1))[0, 0])


def _num_at_most(x: Array, diagonal: Array, square: Array) -> Array:
    """How many eigenvalues are at most x: the negative pivots of ``T - x``."""
    tiny = jnp.finfo(x.dtype).tiny

    def pivot(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        q, count = carry
        q = (_row(diagonal, j, keep=True) - x) - _row(square, j, keep=True) / q
        q = jnp.where(jnp.abs(q) <= tiny, -tiny, q)
        return q, count + jnp.where(q < 0, 1.0, 0.0)

    return lax.fori_loop(0, x.shape[0], pivot, (jnp.ones_like(x), jnp.zeros_like(x)))[1]


def _halved(low: Array, high: Array, times: int, diagonal: Array, beside: Array) -> Array:
    """Lower ends of the brackets of all eigenvalues after so many halvings."""
    index, square = lax.broadcasted_iota(low.dtype, low.shape, 0), beside * beside

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        above = _num_at_most(middle, diagonal, square) <= index
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    return lax.fori_loop(0, times, halve, (low, high))[0]


def _bisect(rows: Array) -> Array:
    """Lower ends of the brackets of all eigenvalues: one that is 0 does not come out positive.

    The last brackets are eps / 16 of the radius of the first. In double precision single precision
    finds the first half of the digits: its errors are a few eps, and the bracket that is left has
    16 on either side.
    """
    diagonal, beside = rows[:, 0], rows[:, 1]
    info = jnp.finfo(rows.dtype)
    following = jnp.concatenate([beside[1:], jnp.zeros_like(beside[:1])])
    radius = jnp.max(jnp.abs(diagonal) + beside + following, axis=0, keepdims=True)
    radius = jnp.broadcast_to(radius * (1 + 4 * info.eps), diagonal.shape)
    if rows.dtype != jnp.float64:
        return _halved(-radius, radius, info.nmant + 5, diagonal, beside)
    single = [x.astype(jnp.float32) for x in (radius, diagonal, beside)]
    low = _halved(-single[0], single[0], 20, *single[1:]).astype(rows.dtype)
    return _halved(low - 2.0**-19 * radius, low + 2.0**-18 * radius, 39, diagonal, beside)


def side_by_side(matrix: Array, is_complex: bool) -> Array:
    """Eigenvalues ``[d, n]``, ascending, of n symmetric matrices ``[d, d, n]`` or of the Hermitian
    matrices that packed ones stand for. Errors are a few eps times the norm.

    >>> side_by_side(jnp.array([[0.0, 1.0], [1.0, 0.0]])[..., None], False)[:, 0].round(4).tolist()
    [-1.0, 1.0]
    """
    size = jnp.max(jnp.abs(matrix), axis=(0, 1), keepdims=True)
    size = jnp.where(size <= 0, 1.0, size)
    return _bisect(_tridiagonal(matrix / size, is_complex)) * size[0]
