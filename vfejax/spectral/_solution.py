"""The solution of the equations of chains, with derivatives of every order, by either algorithm."""

from functools import partial

import jax
import jax.numpy as jnp

from vfejax.spectral import _folded_solve
from vfejax.spectral._diagonal import coefficients, zeros_of
from vfejax.spectral.recurrence import linear_scan
from vfejax.spectral.scans import ASSOCIATIVE, Scans, pad_front, scaled
from vfejax.spectral.sides import Sides, both_ways, sides, sum_both
from vfejax.types import Array

__all__ = ["solution_of_chains"]


def _solve_folded(
    a: Array, b: Array, c: Array, z: Array, s: Array, chain: Sides, x: Array
) -> Array:
    return _folded_solve.solve(a, b, c, z, s, x)


def _solve_by_tree(
    a: Array, b: Array, c: Array, z: Array, s: Array, chain: Sides, x: Array
) -> Array:
    """``G_ii (x_i - c_{i-1} yL_{i-1} - b_i yR_{i+1})`` for ``x [lanes, n, channels]``: the sweeps
    from both ends meet at every site.

    Unlike back substitution after one sweep this divides by no pivot, so that large entries beside
    a vanishing minor do no harm.
    """
    x, ratios = jnp.moveaxis(x, 1, 0), chain.both[..., None]
    b, c = (scaled(s[:, None], v) for v in (b, c))
    # Those to the site before, c in order and b in reverse.
    coupled = jnp.stack([c.T, b.T[::-1]], axis=1).astype(x.dtype)[..., None]
    swept = linear_scan(-ratios[1:] * coupled, ratios * both_ways(x), False, ASSOCIATIVE)
    y = chain.diagonal[..., None] * (x - sum_both(pad_front(coupled * swept[:-1])))
    return scaled(s[:, None, None], jnp.moveaxis(y, 0, 1))


def _product(a: Array, b: Array, c: Array, z: Array, y: Array) -> Array:
    """``(T - z) y``."""
    d, b, c = (x.astype(z.dtype)[..., None] for x in (a, b, c))
    above = jnp.pad(b * y[:, 1:], ((0, 0), (0, 1), (0, 0)))
    below = jnp.pad(c * y[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return (d - z[:, None, None]) * y + above + below


def solution_of_chains(
    a: Array, b: Array, c: Array, z: Array, s: Array, x: Array, scans: Scans
) -> Array:
    """``y`` with ``(T - z) y = x`` for chains side by side.

    Derivatives solve the same equations again, or the transposed ones.

    Args:
        a: diagonal, real or complex, ``[lanes, n]``, n >= 1.
        b: superdiagonal, real or complex, ``[lanes, n - 1]``.
        c: subdiagonal, of the same dtype and shape.
        z: spectral parameter, complex, ``[lanes]``.
        s: what multiplies all of them before they are swept, and y after it, a power of two, real,
            ``[lanes]``. Without derivatives: y does not depend on it.
        x: complex, ``[lanes, n, channels]``.
        scans: the algorithm.

    Returns:
        Shape and dtype of ``x``.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.zeros(1) + 0j
    >>> x = jnp.array([[[3.0 + 0j], [5.0]]])
    >>> print(solution_of_chains(a, b, b, z, jnp.ones(1), x, PLATFORM)[0, :, 0].real)
    [5. 3.]
    """
    constant, s = jax.lax.stop_gradient(((a, b, c, z), s))

    def tree_sides(a: Array, b: Array, c: Array, z: Array) -> Sides:
        return sides(*coefficients(a, b, c, z, s), ASSOCIATIVE)

    chain = scans.choose(partial(zeros_of, tree_sides), tree_sides, *constant)

    def solve(a: Array, b: Array, c: Array, z: Array, x: Array) -> Array:
        return scans.choose(_solve_folded, _solve_by_tree, a, b, c, z, s, chain, x)

    def solve_transposed(a: Array, b: Array, c: Array, z: Array, x: Array) -> Array:
        return solve(a, c, b, z, x)

    return jax.lax.custom_linear_solve(
        lambda y: _product(a, b, c, z, y),
        x,
        solve=lambda _, x: solve(*constant, x),
        transpose_solve=lambda _, x: solve_transposed(*constant, x),
    )
