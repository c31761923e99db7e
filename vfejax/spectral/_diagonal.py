"""The diagonal of the resolvent of chains, with derivatives of every order, by either algorithm.

The tangent is one linear recurrence (:func:`vfejax.spectral.sides.diagonal_tangent`). Its transpose
is written out for folded chains, and handed to JAX as that of a linear solve.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from vfejax.spectral import _folded
from vfejax.spectral._folded import Folded
from vfejax.spectral.scans import ASSOCIATIVE, Scans, pad_front
from vfejax.spectral.sides import Sides, diagonal_tangent, sides
from vfejax.types import Array

__all__ = ["diagonal_of_chains"]

Operands: TypeAlias = tuple[Array, Array, Array]


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


def _overlapping(rows: Array, num: int) -> Array:
    """``[num * rows + 1, ...]`` cut into ``[num, rows + 1, ...]``, with the next block's first."""
    shape = (num, (rows.shape[0] - 1) // num, *rows.shape[1:])
    first, following = (jnp.reshape(x, shape) for x in (rows[:-1], rows[1:]))
    return jnp.concatenate([first, following[:, -1:]], axis=1)


def _joined(blocks: Array) -> Array:
    """The inverse of :func:`_overlapping`."""
    num, rows, *item = blocks.shape
    return jnp.concatenate([blocks[0, :1], jnp.reshape(blocks[:, 1:], (num * (rows - 1), *item))])


def _folded_chain(folded: Folded, g: Array) -> Sides:
    """The other layout of the same numbers."""
    there, back = _joined(folded.inward)[1:], _joined(folded.outward)[:-1]
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
    folded = (_overlapping(jnp.reshape(x, (half + 1, 2 * lanes)), num) for x in (there, back))
    return whole.diagonal.T[:, :n], Folded(*folded)


def _adjoint_by_tree(
    a: Array, k: Array, g: Array, folded: Folded, w: Array
) -> tuple[Array, Array, Array]:
    chain = _folded_chain(folded, g)
    arguments = jax.eval_shape(lambda: (a, k, g[:, 0]))
    return jax.linear_transpose(lambda *x: _tangent(chain, k, x, ASSOCIATIVE), *arguments)(w)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def diagonal_of_chains(a: Array, k: Array, z: Array, scans: Scans) -> tuple[Array, Folded]:
    """Diagonal of the resolvent of chains side by side.

    Args:
        a: diagonal, real or complex, ``[lanes, n]``, n >= 1.
        k: super- times subdiagonal, real or complex, ``[lanes, n - 1]``.
        z: spectral parameter, complex, ``[lanes]``.
        scans: the algorithm, for the derivatives too.

    Returns:
        G, complex ``[lanes, n]``, and what its adjoint reads, whose derivatives are not to be used.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> arguments = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> print(diagonal_of_chains(*arguments, PLATFORM)[0].imag)
    [[0.5 0.5]]
    """
    return scans.choose(_folded.diagonal, _diagonal_by_tree, a, k, z)


@diagonal_of_chains.defjvp
def _diagonal_jvp(scans: Scans, primals: Operands, tangents: Operands) -> tuple[Any, Any]:
    a, k, z = primals
    g, folded = diagonal_of_chains(a, k, z, scans)
    kept = jax.lax.stop_gradient((a, k, g, folded))
    g_change = _linear(
        lambda changes: _tangent(_chain(a, k, z, scans), k, changes, scans),
        lambda changes: _tangent(_folded_chain(kept[3], kept[2]), kept[1], changes, scans),
        lambda w: scans.choose(_folded.adjoint, _adjoint_by_tree, *kept, w),
        tangents,
    )
    return (g, folded), (g_change, jax.tree.map(jnp.zeros_like, folded))
