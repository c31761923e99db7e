"""Equations ``z = G(z)`` over pytrees, solved by iteration or by Newton's method.

A solver is a function ``(update_fn, guess) -> Solution``. It says how well it did and raises no
error: the caller decides. :func:`implicit_solution` gives what a solver finds the derivative of the
exact solution, in forward and reverse mode, without differentiating the iterations.

The inner linear systems of Newton's method are solved by the stabilised biconjugate gradient method
(BiCGSTAB): it needs products with the Jacobian alone, keeps six vectors, and, unlike the GMRES of
``jax.scipy.sparse.linalg``, calls no LAPACK routine, which must not be batched on a CPU
(:mod:`vfejax.numerics`).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import bicgstab

from vfejax.numerics import common_dtype
from vfejax.types import Array, PyTree

__all__ = ["Solution", "SolverFn", "fixed_point", "implicit_solution", "newton_krylov", "residual"]

UpdateFn = Callable[[PyTree], PyTree]


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
        value: the last iterate.
        iterations: how many times it was improved, an integer.
        residual: of the iterate before it, see :func:`residual`; the last one is at least as good
            where the iteration converges.
        converged: whether the residual is at most the tolerance; False where it is NaN.
    """

    value: PyTree
    iterations: Array
    residual: Array
    converged: Array


class SolverFn(Protocol):
    """A method for ``z = G(z)``: ``(update_fn, guess) -> Solution``."""

    def __call__(self, update_fn: UpdateFn, guess: PyTree, /) -> Solution: ...


def residual(value: PyTree, updated: PyTree) -> Array:
    """``max |G(z) - z| / (1 + max |z|)``, the larger of both maxima's ratio over the leaves.

    It is absolute for small numbers and relative for large ones, leaf by leaf: momenta of 10^4 do
    not hide an error of positions of order 1.

    Args:
        value: z.
        updated: G(z), of the same shapes.

    Returns:
        A scalar in the widest dtype of the leaves; NaN where a number is.

    >>> float(residual({"x": jnp.ones(2), "p": jnp.array(99.0)}, {"x": jnp.ones(2), "p": 100.0}))
    0.009999999776482582
    """

    def leaf(z: Array, g: Array) -> Array:
        return jnp.max(jnp.abs(g - z), initial=0.0) / (1.0 + jnp.max(jnp.abs(z), initial=0.0))

    found = jax.tree.leaves(jax.tree.map(leaf, value, updated))
    if not found:
        return jnp.zeros(())
    dtype = common_dtype(*found)
    return jnp.max(jnp.stack([x.astype(dtype) for x in found]))


def _tolerance(tolerance: float | None, guess: PyTree) -> float:
    """The tolerance, by default ``eps^(3/4)`` of the least precise leaf."""
    if tolerance is not None:
        return tolerance
    return max((float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(guess)), default=0.0) ** 0.75


def _iterate(
    improve: Callable[[PyTree], tuple[PyTree, Array]],
    guess: PyTree,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Improve a guess until its residual is small, is NaN, or the iterations are used up."""

    def unfinished(solution: Solution) -> Array:
        # False for a NaN, which no further iteration removes.
        return (solution.residual > tolerance) & (solution.iterations < max_iterations)

    def improved(solution: Solution) -> Solution:
        value, size = improve(solution.value)
        return Solution(value, solution.iterations + 1, size, size <= tolerance)

    dtype = residual(guess, guess).dtype
    unknown = jnp.asarray(jnp.inf, dtype)
    start = Solution(guess, jnp.zeros((), jnp.int32), unknown, jnp.zeros((), bool))
    return jax.lax.while_loop(unfinished, improved, start)


def fixed_point(tolerance: float | None = None, max_iterations: int = 50) -> SolverFn:
    """Plain iteration ``z <- G(z)``: one evaluation each, the error shrinks by ``|dG/dz|``.

    Args:
        tolerance: residual at which it stops; by default ``eps^(3/4)`` of the least precise leaf
            (2e-12 in float64, 6e-6 in float32). A tolerance near eps is below the rounding of most
            gradients and is never met.
        max_iterations: evaluations after which it gives up.

    Returns:
        A solver for :func:`vfejax.dynamics.implicit.implicit_midpoint` and its kin.

    >>> solution = fixed_point()(jnp.cos, jnp.array(0.7))
    >>> round(float(solution.value), 4), bool(solution.converged)
    (0.7391, True)
    """

    def solve(update_fn: UpdateFn, guess: PyTree) -> Solution:
        def improve(value: PyTree) -> tuple[PyTree, Array]:
            updated = update_fn(value)
            return updated, residual(value, updated)

        return _iterate(improve, guess, _tolerance(tolerance, guess), max_iterations)

    return solve


def newton_krylov(
    tolerance: float | None = None,
    max_iterations: int = 20,
    *,
    linear_tolerance: float = 1e-3,
    linear_iterations: int = 50,
) -> SolverFn:
    """Newton's method with products of the Jacobian: ``z <- z + (1 - dG/dz)^{-1} (G(z) - z)``.

    It converges where the plain iteration does not, as for steps much longer than the fastest
    motion, and takes fewer iterations. Each costs about four evaluations per iteration of the inner
    solver (BiCGSTAB; two products with the Jacobian).

    Args:
        tolerance: residual at which it stops; by default ``eps^(3/4)`` of the least precise leaf.
        max_iterations: Newton steps after which it gives up.
        linear_tolerance: relative residual of the inner systems; the error shrinks by about this
            factor in every step.
        linear_iterations: most iterations of an inner system.

    Returns:
        A solver for :func:`vfejax.dynamics.implicit.implicit_midpoint` and its kin.

    Source: Knoll and Keyes, J. Comput. Phys. 193 (2004) 357; van der Vorst, SIAM J. Sci. Stat.
    Comput. 13 (1992) 631.

    >>> solution = newton_krylov()(lambda z: 3.0 - z**2, jnp.array(1.0))  # |dG/dz| is 2.6
    >>> round(float(solution.value), 4), bool(solution.converged)
    (1.3028, True)
    """

    def solve(update_fn: UpdateFn, guess: PyTree) -> Solution:
        def improve(value: PyTree) -> tuple[PyTree, Array]:
            updated, push_forward = jax.linearize(update_fn, value)
            defect = jax.tree.map(jnp.subtract, updated, value)
            step, _ = bicgstab(
                lambda z: jax.tree.map(jnp.subtract, z, push_forward(z)),
                defect,
                tol=linear_tolerance,
                maxiter=linear_iterations,
            )
            return jax.tree.map(jnp.add, value, step), residual(value, updated)

        return _iterate(improve, guess, _tolerance(tolerance, guess), max_iterations)

    return solve


def implicit_solution(solver: SolverFn, update_fn: UpdateFn, guess: PyTree) -> Solution:
    """What a solver finds, with the derivative of the exact solution.

    ``dz = (1 - dG/dz)^{-1} dG`` with respect to all that ``update_fn`` depends on, by the implicit
    function theorem. The guess has no derivative.

    Args:
        solver: such as :func:`fixed_point`.
        update_fn: G, a function of a pytree; it may close over traced values.
        guess: where the solver starts.

    Returns:
        The solver's own answer. Forward and reverse mode cost one linear system, solved to the
        default tolerance of :func:`fixed_point`.

    >>> root = lambda a: implicit_solution(newton_krylov(), lambda z: a / z, jnp.array(1.4)).value
    >>> round(float(jax.grad(root)(2.0)), 4)  # d sqrt(a) / da = 1 / (2 sqrt 2)
    0.3536
    """
    guess = jax.lax.stop_gradient(guess)

    def equation(z: PyTree) -> PyTree:
        return jax.tree.map(jnp.subtract, z, update_fn(z))

    def solve(_: UpdateFn, start: PyTree) -> tuple[PyTree, tuple[Array, Array, Array]]:
        # The update itself, not z minus the equation, whose rounding would be that of z.
        value, iterations, size, converged = solver(update_fn, start)
        # As floating numbers: custom_root wants a tangent of everything.
        return value, (iterations.astype(size.dtype), size, converged.astype(size.dtype))

    def linear_solve(linear: UpdateFn, right: PyTree) -> PyTree:
        return bicgstab(linear, right, tol=_tolerance(None, right), maxiter=200)[0]

    def tangent_solve(linear: UpdateFn, right: PyTree) -> PyTree:
        # bicgstab alone cannot be transposed: its first guess counts as linear in the right side.
        return jax.lax.custom_linear_solve(
            linear, right, linear_solve, transpose_solve=linear_solve
        )

    value, (iterations, size, converged) = jax.lax.custom_root(
        equation, guess, solve, tangent_solve, has_aux=True
    )
    return Solution(value, iterations.astype(jnp.int32), size, converged > 0)
