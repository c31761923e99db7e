"""Equations ``z = G(z)`` over pytrees, solved by iteration or by Newton's method.

A solver is a function ``(update_fn, guess) -> Solution``. It says how well it did and raises no
error: the caller decides. :func:`implicit_solution` gives what a solver finds the derivative of the
exact solution, in forward and reverse mode, without differentiating the iterations.

The inner linear systems of Newton's method are solved by the stabilised biconjugate gradient method
(BiCGSTAB). It needs products with the Jacobian alone and keeps six vectors. Unlike the GMRES of
``jax.scipy.sparse.linalg`` it calls no LAPACK routine, which must not be batched on a CPU
(:mod:`vfejax.numerics`). It is written out here, on one flat vector: JAX's own wants all leaves in
one dtype, cannot be transposed, and takes longer to trace than everything else in a step.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from vfejax.numerics import common_dtype, safe_norm
from vfejax.numerics.iteration import default_tolerance, iterate, relative_size
from vfejax.types import Array, PyTree

__all__ = ["Solution", "SolverFn", "fixed_point", "implicit_solution", "newton_krylov", "residual"]

UpdateFn = Callable[[PyTree], PyTree]


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
        value: the last iterate.
        iterations: how many times it was improved, an integer.
        residual: of the iterate before it (:func:`vfejax.dynamics.fixed_points.residual`); the last
            one is at least as good where the iteration converges.
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
    """``max |G(z) - z| / (1 + max |z|)`` of each leaf, and the largest of them.

    It is absolute for small numbers and relative for large ones. Leaf by leaf, momenta of 10^4 do
    not hide an error of positions of order 1.

    Args:
        value: z.
        updated: G(z), of the same shapes.

    Returns:
        A scalar in the widest dtype of the leaves; NaN where a number is.

    >>> float(residual({"x": jnp.ones(2), "p": jnp.array(99.0)}, {"x": jnp.ones(2), "p": 100.0}))
    0.009999999776482582
    """
    return relative_size(jax.tree.map(lambda z, g: g - z, value, updated), value)


def _tolerance(tolerance: float | None, guess: PyTree) -> float:
    """The tolerance, by default ``eps^(3/4)`` of the least precise leaf."""
    return default_tolerance(guess) if tolerance is None else tolerance


def _ravel(tree: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """All numbers in one vector of the widest dtype, and the way back."""
    leaves = jax.tree.leaves(tree)
    dtype = common_dtype(*leaves) if leaves else jnp.result_type(float)
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(dtype), tree))
    return flat.astype(dtype), lambda z: jax.tree.map(
        lambda x, like: x.astype(like.dtype), unravel(z), tree
    )


class _Krylov(NamedTuple):
    """State of the stabilised biconjugate gradient method, in van der Vorst's letters."""

    x: Array
    r: Array
    p: Array
    rho: Array
    num_iterations: Array


def _bicgstab(
    linear: Callable[[Array], Array], right: Array, tolerance: float, max_iterations: int
) -> Array:
    """``x [n]`` with ``|linear(x) - right| <= tolerance |right|``, or the last iterate."""
    # The right side has any unit, in which its squares would underflow or overflow.
    length = safe_norm(right)
    scale = jnp.where(length == 0, 1.0, length)
    right = right / scale

    def unfinished(state: _Krylov) -> Array:
        # False for a NaN, which a breakdown leaves, and for a right side of 0.
        bound = jnp.where(length == 0, 0.0, tolerance)
        return (safe_norm(state.r) > bound) & (state.num_iterations < max_iterations)

    def iterate(state: _Krylov) -> _Krylov:
        v = linear(state.p)
        alpha = state.rho / jnp.sum(right * v)
        s = state.r - alpha * v
        t = linear(s)
        square = jnp.sum(t * t)
        # Where s is 0 the answer is exact already.
        omega = jnp.sum(t * s) / jnp.where(square == 0, 1.0, square)
        r = s - omega * t
        rho = jnp.sum(right * r)
        beta = rho / state.rho * alpha / jnp.where(omega == 0, 1.0, omega)
        p = r + beta * (state.p - omega * v)
        return _Krylov(state.x + alpha * state.p + omega * s, r, p, rho, state.num_iterations + 1)

    start = _Krylov(
        jnp.zeros_like(right), right, right, jnp.sum(right * right), jnp.zeros((), jnp.int32)
    )
    return scale * jax.lax.while_loop(unfinished, iterate, start).x


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

        return Solution(*iterate(improve, guess, _tolerance(tolerance, guess), max_iterations))

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
            defect, unravel = _ravel(jax.tree.map(jnp.subtract, updated, value))

            def linear(change: Array) -> Array:
                return change - _ravel(push_forward(unravel(change)))[0]

            step = unravel(_bicgstab(linear, defect, linear_tolerance, linear_iterations))
            return jax.tree.map(jnp.add, value, step), residual(value, updated)

        return Solution(*iterate(improve, guess, _tolerance(tolerance, guess), max_iterations))

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
    converted, closed_over = jax.closure_convert(update_fn, guess)

    @jax.custom_jvp
    def root(start: PyTree, closed_over: list) -> tuple[PyTree, Array, Array, Array]:
        found = solver(lambda z: converted(z, *closed_over), start)
        # As floating numbers, which have tangents.
        dtype = found.residual.dtype
        return (
            found.value,
            found.iterations.astype(dtype),
            found.residual,
            found.converged.astype(dtype),
        )

    @root.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
        found = root(*primals)
        value, *outcome = found
        _, source = jax.jvp(lambda *c: converted(value, *c), tuple(primals[1]), tuple(tangents[1]))
        change = _tangent(lambda z: converted(z, *primals[1]), value, source)
        return found, (change, *map(jnp.zeros_like, outcome))

    value, iterations, size, converged = root(guess, closed_over)
    return Solution(value, iterations.astype(jnp.int32), size, converged > 0)


def _tangent(update_fn: UpdateFn, value: PyTree, source: PyTree) -> PyTree:
    """``(1 - dG/dz)^{-1}`` times a change of G, at a solution."""
    _, push_forward = jax.linearize(update_fn, value)
    right, unravel = _ravel(source)

    def linear(change: Array) -> Array:
        return change - _ravel(push_forward(unravel(change)))[0]

    def solve(linear: Callable[[Array], Array], right: Array) -> Array:
        return _bicgstab(linear, right, default_tolerance(right), 200)

    return unravel(jax.lax.custom_linear_solve(linear, right, solve, transpose_solve=solve))
