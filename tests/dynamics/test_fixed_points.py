"""Solvers of ``z = G(z)``: what they find, when they stop, and what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics.fixed_points import (
    fixed_point,
    implicit_solution,
    newton_krylov,
    residual,
)

SOLVERS = {"iteration": fixed_point, "newton": newton_krylov}
each_solver = pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
COUPLING = np.array([[0.2, -0.4, 0.1], [0.3, 0.1, 0.2], [-0.1, 0.3, 0.25]])
SHIFT = np.array([1.0, -2.0, 0.5])


def linear(z):
    """A contraction that is not symmetric, over a tree of two leaves."""
    both = jnp.concatenate([z["a"], z["b"]])
    both = jnp.asarray(COUPLING, both.dtype) @ both + jnp.asarray(SHIFT, both.dtype)
    return {"a": both[:1], "b": both[1:]}


@each_solver
def test_a_linear_equation_is_solved_to_the_tolerance(make, dtype):
    guess = {"a": np.zeros(1, dtype), "b": np.zeros(2, dtype)}
    found = jax.jit(lambda z: make()(linear, z))(guess)
    expected = np.linalg.solve(np.eye(3) - COUPLING, SHIFT)
    tolerance = float(jnp.finfo(dtype).eps) ** 0.75
    assert found.converged
    assert found.residual <= tolerance
    # The residual bounds the error up to |(1 - A)^{-1}| < 3 and the size of the numbers, 3.
    both = np.concatenate([found.value["a"], found.value["b"]])
    np.testing.assert_allclose(both, expected, rtol=0, atol=10 * tolerance)


@each_solver
def test_iterations_are_counted_and_limited(make):
    guess = {"a": np.zeros(1), "b": np.zeros(2)}
    found = jax.jit(lambda z: make(1e-300, 3)(linear, z))(guess)
    assert found.iterations == 3
    assert not found.converged


@each_solver
def test_a_solution_as_guess_takes_one_iteration(make):
    found = jax.jit(lambda z: make()(lambda z: z, z))(np.ones(3))
    np.testing.assert_array_equal(found.value, 1.0)
    assert (found.iterations, found.residual, found.converged) == (1, 0.0, True)


@each_solver
def test_a_search_starts_from_a_plain_number(make):
    for guess in (2.0, 2):
        found = make()(lambda z: 0.5 * z + 1.0, guess)
        assert (found.value, found.iterations, found.converged) == (2.0, 1, True)
    assert implicit_solution(make(), lambda z: 0.5 * z + 1.0, 2).value == 2.0


@each_solver
def test_a_nan_ends_the_search(make):
    found = jax.jit(lambda z: make()(lambda z: z * jnp.nan, z))(np.ones(2))
    assert found.iterations <= 2
    assert not found.converged


@each_solver
def test_nothing_is_solved_at_once(make):
    found = jax.jit(lambda z: make()(lambda z: z, z))({"a": np.zeros((0, 2))})
    assert found.converged


def test_residual_is_absolute_below_one_and_relative_above():
    value = {"small": np.array([1e-3, 0.0]), "large": np.array([1e4])}
    updated = {"small": np.array([2e-3, 0.0]), "large": np.array([1e4 + 1.0])}
    expected = max(1e-3 / (1 + 1e-3), 1.0 / (1 + 1e4))
    np.testing.assert_allclose(jax.jit(residual)(value, updated), expected, rtol=1e-12)


def test_units_do_not_matter():
    """In float32 the squares of 1e-20 underflow and those of 1e20 overflow."""
    dtype, units = jnp.dtype("float32"), np.array([1e-20, 1.0, 1e20], "float32")
    shift = SHIFT.astype(dtype)

    def gradient(unit):
        def loss(shift):
            update_fn = lambda z: jnp.asarray(COUPLING, dtype) @ z + shift  # noqa: E731
            return unit * jnp.sum(implicit_solution(fixed_point(), update_fn, 0 * shift).value)

        return jax.grad(loss)(shift)

    def solution(unit):
        update_fn = lambda z: jnp.asarray(COUPLING, dtype) @ z + unit * shift  # noqa: E731
        return newton_krylov(linear_tolerance=1e-6)(update_fn, 0 * shift).value

    slopes, solutions = jax.jit(jax.vmap(lambda unit: (gradient(unit), solution(unit))))(units)
    inverse = np.linalg.inv(np.eye(3) - COUPLING)
    expected = np.stack([inverse.sum(axis=0)] * 3), np.stack([inverse @ SHIFT] * 3)
    for actual, wanted in zip((slopes, solutions), expected, strict=True):
        actual = np.asarray(actual, float) / units[:, None]
        # The inner systems are solved to 6e-6, those of Newton's method to 1e-6.
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=3e-5)


def test_a_slope_that_is_nan_stays_nan():
    def root(a):
        return implicit_solution(fixed_point(), lambda z: a * jnp.cos(z), jnp.zeros(())).value

    value, slope = jax.jit(lambda a, da: jax.jvp(root, (a,), (da,)))(0.6, jnp.nan)
    assert np.isfinite(value)
    assert np.isnan(slope)


def test_derivative_is_that_of_the_solution():
    """``z = a cos z + b`` with traced a and b, differentiated to second order."""

    def root(a, b):
        return implicit_solution(
            fixed_point(), lambda z: a * jnp.cos(z) + b, jnp.zeros_like(b)
        ).value

    a, b = np.float64(0.6), np.float64(0.3)
    z, (by_a, by_b), curvature = jax.jit(
        lambda a, b: (
            root(a, b),
            jax.grad(root, (0, 1))(a, b),
            jax.jacfwd(jax.grad(root, 1), 1)(a, b),
        )
    )(a, b)
    slope = 1 + a * np.sin(z)
    # Exact formulas at what was found to 2e-12.
    np.testing.assert_allclose(by_a, np.cos(z) / slope, rtol=1e-10)
    np.testing.assert_allclose(by_b, 1 / slope, rtol=1e-10)
    np.testing.assert_allclose(curvature, -a * np.cos(z) / slope**3, rtol=1e-9)
