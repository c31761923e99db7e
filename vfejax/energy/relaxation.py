"""Relaxation: stationary states of an energy, found from its gradient.

A solver is a function ``(gradient_fn, start) -> Relaxation``. It says how well it did and raises no
error: the caller decides. States are pytrees, real, or complex where the gradient is holomorphic.
The residual is the largest entry of the gradient of a leaf over ``1 + max |s|`` of that leaf, for
the worst leaf.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from vfejax.numerics import as_floating
from vfejax.numerics.iteration import default_tolerance, iterate, relative_size
from vfejax.types import Array, PyTree

__all__ = ["RelaxFn", "Relaxation", "alternating_descent", "gradient_descent", "newton"]

GradientFn = Callable[[PyTree], PyTree]
ProjectFn = Callable[[PyTree], PyTree]


class Relaxation(NamedTuple):
    """Where a solver ended.

    Attributes:
        state: the last iterate.
        iterations: how many times it was improved, an integer.
        residual: of the iterate before it, a real scalar; NaN where a number is.
        converged: whether the residual is at most the tolerance; False where it is NaN.
    """

    state: PyTree
    iterations: Array
    residual: Array
    converged: Array


class RelaxFn(Protocol):
    """A method for ``dE/ds = 0``: ``(gradient_fn, start) -> Relaxation``."""

    def __call__(self, gradient_fn: GradientFn, start: PyTree, /) -> Relaxation: ...


def _inexact(x: jax.typing.ArrayLike) -> Array:
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else as_floating(x, "start")


def _iterate(
    improve: Callable[[PyTree], tuple[PyTree, Array]],
    start: PyTree,
    tolerance: float | None,
    max_iterations: int,
) -> Relaxation:
    """Improve a state until its residual is small, is NaN, or the iterations are used up; with a
    tolerance of 0, ``max_iterations`` times, in a loop that can be differentiated.
    """
    start = jax.tree.map(_inexact, start)
    if tolerance != 0:
        bound = default_tolerance(start) if tolerance is None else tolerance
        return Relaxation(*iterate(improve, start, bound, max_iterations))
    # Sizes are carried, not stacked: memory does not depend on the number of iterations.
    unknown = jnp.full_like(relative_size(start, start), jnp.inf)
    state, size = jax.lax.scan(
        lambda found, _: (improve(found[0]), None), (start, unknown), length=max_iterations
    )[0]
    iterations = jnp.full((), max_iterations, jnp.int32)
    return Relaxation(state, iterations, size, size <= default_tolerance(start))


def _checked(step_size: float, max_iterations: int, tolerance: float | None) -> float:
    """The step size as a number of Python's: NumPy's own would widen a state."""
    if jnp.ndim(step_size) or not 0 < step_size < float("inf"):
        raise ValueError(f"step_size must be a number above 0 and finite, got {step_size}")
    _check_ends(max_iterations, tolerance)
    return float(step_size)


def _check_ends(max_iterations: int, tolerance: float | None) -> None:
    if not max_iterations >= 1 or max_iterations % 1:
        raise ValueError(
            f"max_iterations must be a whole number of at least 1, got {max_iterations}"
        )
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be at least 0 and finite, got {tolerance}")


def _descend(
    state: PyTree, gradient: PyTree, step_size: float, project: ProjectFn
) -> tuple[PyTree, PyTree]:
    """The next state, and the projected gradient that leads to it."""
    after = project(jax.tree.map(lambda s, g: s - step_size * g, state, gradient))
    if project is _unchanged:
        # Not by the difference of two states: a step below their rounding is no slope of 0.
        return after, gradient
    return after, jax.tree.map(lambda s, t: (s - t) / step_size, state, after)


def _unchanged(state: PyTree) -> PyTree:
    return state


def gradient_descent(
    step_size: float,
    max_iterations: int = 1000,
    tolerance: float | None = None,
    *,
    project: ProjectFn = _unchanged,
) -> RelaxFn:
    """Descent along the gradient, back into the allowed set after every step: ``s <- P(s - step
    dE/ds)``.

    The residual is that of the projected gradient ``(s - P(s - step dE/ds)) / step``, which is 0 at
    a minimum on the border too, and where a step is below the rounding of the state. Without a
    projection it is the gradient itself.

    Args:
        step_size: below ``2 / max curvature``, or it diverges.
        max_iterations: gradients after which it gives up.
        tolerance: residual at which it stops; by default ``eps^(3/4)`` of the least precise leaf
            (2e-12 in float64, 6e-6 in float32). 0 does all iterations, in a loop that reverse mode
            can differentiate; converged is then by the default.
        project: P, from a state to the nearest allowed one; none by default.

    Returns:
        A solver for :func:`vfejax.energy.equilibrium.equilibrium_propagation`.

    Raises:
        ValueError: for a step size that is not above 0, no iteration or a negative tolerance.

    >>> found = gradient_descent(0.5)(lambda s: s - 3.0, jnp.zeros(2))
    >>> [round(float(s), 3) for s in found.state], bool(found.converged)
    ([3.0, 3.0], True)
    """
    step_size = _checked(step_size, max_iterations, tolerance)

    def relax(gradient_fn: GradientFn, start: PyTree) -> Relaxation:
        def improve(state: PyTree) -> tuple[PyTree, Array]:
            after, slope = _descend(state, gradient_fn(state), step_size, project)
            return after, relative_size(slope, state)

        return _iterate(improve, start, tolerance, max_iterations)

    return relax


def alternating_descent(
    step_size: float = 1.0,
    max_iterations: int = 1000,
    tolerance: float | None = None,
    *,
    project: ProjectFn = _unchanged,
) -> RelaxFn:
    """Projected descent on every second leaf, then on the others: for layers that meet only their
    neighbours.

    Such layers do not meet within either half. Where the curvature of a layer for itself is 1, as
    in a Hopfield energy, a step of 1 minimises over half of the layers exactly. The energy never
    rises, whatever the couplings; a step of all layers at once may oscillate for ever.

    Args:
        step_size: below 2 over the curvature of a layer for itself, or it diverges.
        max_iterations: sweeps after which it gives up; one costs two halves of a gradient.
        tolerance: as for :func:`gradient_descent`: by default ``eps^(3/4)``; 0 does all iterations.
        project: from a state to the nearest allowed one; must act on each leaf alone.

    Returns:
        A solver for :func:`vfejax.energy.equilibrium.equilibrium_propagation`.

    Raises:
        ValueError: for a step size that is not above 0, no iteration or a negative tolerance.

    >>> coupled = lambda s: (s[0] - 2.0 * s[1] - 1.0, s[1] - 0.4 * s[0])
    >>> found = alternating_descent()(coupled, (jnp.zeros(()), jnp.zeros(())))
    >>> [round(float(x), 3) for x in found.state]
    [5.0, 2.0]
    """
    step_size = _checked(step_size, max_iterations, tolerance)

    def relax(gradient_fn: GradientFn, start: PyTree) -> Relaxation:
        def every_second(ours: PyTree, others: PyTree, parity: int) -> PyTree:
            leaves, shape = jax.tree.flatten(ours)
            pairs = enumerate(zip(leaves, jax.tree.leaves(others), strict=True))
            return jax.tree.unflatten(shape, [x if i % 2 == parity else y for i, (x, y) in pairs])

        def improve(state: PyTree) -> tuple[PyTree, Array]:
            after, slope = _descend(state, gradient_fn(state), step_size, project)
            between = every_second(after, state, 0)
            after, later = _descend(between, gradient_fn(between), step_size, project)
            slope = every_second(slope, later, 0)
            return every_second(after, between, 1), relative_size(slope, state)

        return _iterate(improve, start, tolerance, max_iterations)

    return relax


def newton(
    tolerance: float | None = None,
    max_iterations: int = 20,
    *,
    linear_tolerance: float = 1e-6,
    linear_iterations: int = 200,
) -> RelaxFn:
    """Newton's method: ``s <- s - (d2E/ds2)^{-1} dE/ds``, by conjugate gradients.

    For small states near a minimum, and for complex ones. Hessians are symmetric, in complex states
    too, where the products of conjugate gradients are taken without conjugation. No matrix is
    formed. It finds any stationary state, so that it should start near the one that is meant.

    Args:
        tolerance: residual at which it stops; by default ``eps^(3/4)`` of the least precise leaf. 0
            does all iterations.
        max_iterations: Newton steps after which it gives up.
        linear_tolerance: relative residual of the inner systems; the error shrinks by about this
            factor in every step.
        linear_iterations: most iterations of an inner system, each one product with the Hessian.

    Returns:
        A solver for :func:`vfejax.energy.equilibrium.equilibrium_propagation`.

    Raises:
        ValueError: for no iterations, a negative tolerance, or a linear tolerance that is not below
            1, which no step would be taken for.

    Source: Knoll and Keyes, J. Comput. Phys. 193 (2004) 357; van der Vorst and Melissen, IEEE
    Trans. Magn. 26 (1990) 706 (conjugate gradients for complex symmetric matrices).

    >>> found = newton()(lambda s: s + s**3 - 2.0, jnp.zeros(1))
    >>> round(float(found.state[0]), 4), bool(found.converged)
    (1.0, True)
    """
    _check_ends(max_iterations, tolerance)
    if not 0 <= linear_tolerance < 1:
        raise ValueError(f"linear_tolerance must be at least 0 and below 1, got {linear_tolerance}")
    if linear_iterations < 1:
        raise ValueError(f"linear_iterations must be at least 1, got {linear_iterations}")

    def relax(gradient_fn: GradientFn, start: PyTree) -> Relaxation:
        def improve(state: PyTree) -> tuple[PyTree, Array]:
            gradient, product = jax.linearize(gradient_fn, state)
            right, unravel = ravel_pytree(gradient)
            step = _conjugate_gradients(
                lambda v: ravel_pytree(product(unravel(v)))[0],
                right,
                linear_tolerance,
                linear_iterations,
            )
            after = jax.tree.map(jnp.subtract, state, unravel(step))
            return after, relative_size(gradient, state)

        return _iterate(improve, start, tolerance, max_iterations)

    return relax


class _Krylov(NamedTuple):
    """State of conjugate gradients."""

    x: Array
    r: Array
    p: Array
    rho: Array
    num_iterations: Array


def _conjugate_gradients(
    linear: Callable[[Array], Array], right: Array, tolerance: float, max_iterations: int
) -> Array:
    """``x [n]`` with ``|linear(x) - right| <= tolerance |right|``, or the last iterate, for a
    symmetric (not Hermitian) operator.
    """
    size = jnp.max(jnp.abs(right), initial=0.0)
    # Near the solution squares of the right side would underflow. One that is 0 is solved by 0.
    scale = jnp.where(size == 0, 1.0, size).astype(right.dtype)
    unit = right / scale

    def unfinished(state: _Krylov) -> Array:
        # False for a NaN, which a breakdown leaves, and for a right side of 0.
        length = jnp.max(jnp.abs(state.r), initial=0.0)
        return (length > jnp.where(size == 0, 0.0, tolerance)) & (
            state.num_iterations < max_iterations
        )

    def iterate(state: _Krylov) -> _Krylov:
        v = linear(state.p)
        alpha = state.rho / jnp.sum(state.p * v)
        r = state.r - alpha * v
        rho = jnp.sum(r * r)
        p = r + rho / state.rho * state.p
        return _Krylov(state.x + alpha * state.p, r, p, rho, state.num_iterations + 1)

    start = _Krylov(
        jnp.zeros_like(unit), unit, unit, jnp.sum(unit * unit), jnp.zeros((), jnp.int32)
    )
    return scale * jax.lax.while_loop(unfinished, iterate, start).x
