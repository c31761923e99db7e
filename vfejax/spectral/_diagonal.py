"""The diagonal of the resolvent of chains, with derivatives of every order, by either algorithm.

The tangent is one linear recurrence (:func:`vfejax.spectral.sides.diagonal_tangent`). Its transpose
is written out for folded chains, and handed to JAX as that of a linear solve.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from vfejax.spectral import _folded
from vfejax.spectral._folded import Folded
from vfejax.spectral._folded_adjoint import adjoint
from vfejax.spectral.scans import ASSOCIATIVE, Scans, scaled
from vfejax.spectral.sides import Sides, diagonal_tangent, sides
from vfejax.types import Array, PyTree

__all__ = ["Chain", "Operands", "chain_sides", "coefficients", "diagonal_of_chains", "zeros_of"]

Operands: TypeAlias = tuple[Array, Array, Array, Array]
Chain: TypeAlias = tuple[Array, Array, Array, Array, Array]


class _Kept(NamedTuple):
    """What the adjoint reads: one of two things, by the algorithm, and the other zero.

    Attributes:
        folded: of folded chains.
        both: the fractions from both ends, ``[n, 2, lanes]``, of the tree.
    """

    folded: Folded
    both: Array


def _nothing(operands: Operands, dtype: jnp.dtype) -> Array:
    """An array without entries that depends on all operands."""
    return jnp.concatenate([jnp.ravel(x)[:0].astype(dtype) for x in operands])


def _tied(operands: Operands, result: Array) -> tuple[Operands, Array]:
    """The operands and a zero ``result``, each with a zero that is linear in all operands: the
    transpose of a linear solve wants no right-hand side that is known.
    """
    nothing = _nothing(operands, result.dtype)

    def zero(like: Array) -> Array:
        rows = jnp.reshape(nothing, (0, *like.shape[1:]))
        rows = rows if jnp.issubdtype(like.dtype, jnp.complexfloating) else jnp.real(rows)
        widths = [(like.shape[0], 0, 0), *[(0, 0, 0)] * (len(like.shape) - 1)]
        return jax.lax.pad(rows, jnp.zeros((), like.dtype), widths)

    a, b, c, z = operands
    return (a + zero(a), b + zero(b), c + zero(c), z + zero(z)), zero(result)


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


def chain_sides(a: Array, b: Array, c: Array, z: Array, s: Array, scans: Scans) -> Sides:
    """:func:`vfejax.spectral.sides.sides` of chains side by side: the fractions of the chains
    multiplied by s, and G of the chains themselves.

    Args:
        a: diagonal, ``[lanes, n]``.
        b: superdiagonal, ``[lanes, n - 1]``.
        c: subdiagonal, ``[lanes, n - 1]``.
        z: spectral parameter, complex, ``[lanes]``.
        s: real, ``[lanes]``.
        scans: the algorithm.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> chain_sides(a, b, b, z, jnp.ones(1), PLATFORM).both.shape
    (2, 2, 1)
    """
    both, diagonal = sides(*coefficients(a, b, c, z, s), scans)
    return Sides(both, scaled(s[None], diagonal))


def coefficients(a: Array, b: Array, c: Array, z: Array, s: Array) -> tuple[Array, Array]:
    """``s (a - z)`` and ``s^2 b c``, sites first: those of the recurrences of the chains multiplied
    by s.

    Args:
        a: diagonal, ``[lanes, n]``.
        b: superdiagonal, ``[lanes, n - 1]``.
        c: subdiagonal, ``[lanes, n - 1]``.
        z: spectral parameter, complex, ``[lanes]``.
        s: a power of two, real, ``[lanes]``.

    Returns:
        Complex ``[n, lanes]`` and ``[n - 1, lanes]``, real where b and c are.

    >>> a, b, z = jnp.ones((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> [x[0, 0].item() for x in coefficients(a, b, b, z, jnp.full(1, 2.0))]
    [(2-2j), 4.0]
    """
    a, b, c = (scaled(s[None], x.T) for x in (a, b, c))
    return a.astype(z.dtype) - scaled(s, z)[None], b * c


def _tangent(chain: Sides, b: Array, c: Array, s: Array, changes: Operands, scans: Scans) -> Array:
    a_change, b_change, c_change, z_change = changes
    b, c = (scaled(s[:, None], x) for x in (b, c))
    d_change = (a_change.astype(z_change.dtype) - z_change[:, None]).T
    # Times s, since the fractions of the multiplied chains are those of the chains over s.
    k_change = (b * c_change + b_change * c).T
    return diagonal_tangent(chain, (b * c).T, d_change, k_change, scans).T


def zeros_of(fn: Callable, *arguments: Array) -> PyTree:
    """Zeros in the place of what a function returns.

    Args:
        fn: the function, which is not run.
        *arguments: what it takes.

    >>> print(zeros_of(jnp.exp, jnp.ones(2)))
    [0. 0.]
    """
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, *arguments))


def _diagonal_folded(a: Array, b: Array, c: Array, z: Array, s: Array) -> tuple[Array, _Kept]:
    g, folded = _folded.diagonal(a, b, c, z, s)
    return g, _Kept(folded, jnp.zeros((a.shape[1], 2, a.shape[0]), z.dtype))


def _diagonal_by_tree(a: Array, b: Array, c: Array, z: Array, s: Array) -> tuple[Array, _Kept]:
    chain = chain_sides(a, b, c, z, s, ASSOCIATIVE)
    return chain.diagonal.T, _Kept(zeros_of(_folded.diagonal, a, b, c, z, s)[1], chain.both)


def _adjoint_folded(
    a: Array, b: Array, c: Array, z: Array, s: Array, g: Array, kept: _Kept, w: Array
) -> Operands:
    return adjoint(a, b, c, z, s, g, kept.folded, w)


def _adjoint_by_tree(
    a: Array, b: Array, c: Array, z: Array, s: Array, g: Array, kept: _Kept, w: Array
) -> Operands:
    chain = Sides(kept.both, g.T)
    arguments = jax.eval_shape(lambda: (a, b, c, z))
    return jax.linear_transpose(lambda *x: _tangent(chain, b, c, s, x, ASSOCIATIVE), *arguments)(w)


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def diagonal_of_chains(
    a: Array, b: Array, c: Array, z: Array, s: Array, scans: Scans
) -> tuple[Array, _Kept]:
    """Diagonal of the resolvent of chains side by side.

    Args:
        a: diagonal, real or complex, ``[lanes, n]``, n >= 1.
        b: superdiagonal, real or complex, ``[lanes, n - 1]``.
        c: subdiagonal, of the same dtype and shape.
        z: spectral parameter, complex, ``[lanes]``.
        s: what multiplies all of them before they are swept, and G after it, a power of two, real,
            ``[lanes]``. Without derivatives: G does not depend on it.
        scans: the algorithm, for the derivatives too.

    Returns:
        G, complex ``[lanes, n]``, and what its adjoint reads, whose derivatives are not to be used.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> print(diagonal_of_chains(a, b, b, z, jnp.ones(1), PLATFORM)[0].imag)
    [[0.5 0.5]]
    """
    return scans.choose(_diagonal_folded, _diagonal_by_tree, a, b, c, z, s)


@diagonal_of_chains.defjvp
def _diagonal_jvp(scans: Scans, primals: Chain, tangents: Chain) -> tuple[Any, Any]:
    g, kept = diagonal_of_chains(*primals, scans)
    constant = jax.lax.stop_gradient((*primals, g, kept))

    def tangent(chain: Chain, changes: Operands) -> Array:
        _, b, c, _, s = chain
        return _tangent(chain_sides(*chain, scans), b, c, s, changes, scans)

    g_change = _linear(
        partial(tangent, primals),
        partial(tangent, constant[:5]),
        lambda w: scans.choose(_adjoint_folded, _adjoint_by_tree, *constant, w),
        tangents[:4],
    )
    # A one that depends on the chain, and with it the cotangent that the transpose solves for: its
    # own transpose, of reverse mode over reverse mode, wants nothing that is known either.
    one = 1.0 + jnp.sum(jnp.real(_nothing(primals[:4], g.dtype)))
    return (g, kept), (scaled(one, g_change), jax.tree.map(jnp.zeros_like, kept))
