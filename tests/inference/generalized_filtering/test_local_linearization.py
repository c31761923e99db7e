"""Ozaki's step against exact solutions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vfejax.inference.generalized_filtering.local_linearization import (
    exponential_minus_one,
    ozaki_step,
)

compiled = jax.jit(exponential_minus_one)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 300.0, 1e7])
def test_exponential_minus_one_equals_scipy(rng, scale):
    x = rng.normal(size=(4, 4))
    x = -scale * (x @ x.T)
    # Rounding grows as |x| eps; digits of small x are kept.
    values, vectors = np.linalg.eigh(x)
    expected = vectors * np.expm1(values) @ vectors.T
    error = np.abs(compiled(x) - expected).max()
    assert error <= 100 * np.finfo(float).eps * max(np.abs(x).max(), np.abs(expected).max())


def test_doublings_that_are_not_needed_are_left_out():
    """A step of a filter took 47 products, most of which a mask threw away."""
    program = str(jax.make_jaxpr(exponential_minus_one)(jnp.eye(4)))
    # Three powers, one in the loop of the series, and one doubling, which is chosen.
    assert (program.count("stack_product["), program.count("cond[")) == (5, 1)


def test_step_is_exact_for_a_linear_flow(rng, dtype):
    matrix = rng.normal(size=(3, 3))
    flow = rng.normal(size=3)
    expected = np.linalg.solve(matrix, (scipy.linalg.expm(matrix * 0.7) - np.eye(3)) @ flow)
    moved = jax.jit(ozaki_step)(matrix.astype(dtype), flow.astype(dtype), 0.7)
    # A condition of about 100.
    chex.assert_trees_all_close(moved, expected.astype(dtype), rtol=200 * jnp.finfo(dtype).eps)


@pytest.mark.slow
def test_step_with_a_force_that_depends_on_time(rng):
    matrix, columns = rng.normal(size=(2, 2)), rng.normal(size=(2, 3))
    moved = ozaki_step(jnp.asarray(matrix), jnp.asarray(columns), 0.5)
    steps = 2000
    h, place = 0.5 / steps, np.zeros(2)

    def slope(place, t):
        return matrix @ place + columns @ np.array([1.0, t, t**2 / 2])

    for k in range(steps):
        t = k * h
        a = slope(place, t)
        b = slope(place + h / 2 * a, t + h / 2)
        c = slope(place + h / 2 * b, t + h / 2)
        d = slope(place + h * c, t + h)
        place = place + h / 6 * (a + 2 * b + 2 * c + d)
    np.testing.assert_allclose(moved, place, rtol=1e-11)


@pytest.mark.slow
def test_a_singular_or_stiff_jacobian_is_no_exception():
    chex.assert_trees_all_close(ozaki_step(jnp.zeros((2, 2)), jnp.ones(2), 2.0), jnp.full(2, 2.0))
    stiff = ozaki_step(jnp.diag(jnp.array([-1e8, -1.0])), jnp.array([1e8, 1.0]), 1.0)
    # Rounding of |J| dt = 1e8.
    np.testing.assert_allclose(stiff, [1.0, 1 - np.exp(-1)], rtol=1e-7)


@pytest.mark.slow
def test_gradients_pass_through_a_step():
    jax.test_util.check_grads(
        lambda a: ozaki_step(a * jnp.array([[-1.0, 2.0], [0.0, -3.0]]), jnp.ones(2), 0.3),
        (jnp.asarray(0.8),),
        1,
        eps=1e-5,
        rtol=1e-6,
    )


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"jacobian must be \[2, 2\] to fit flow"):
        ozaki_step(jnp.eye(3), jnp.ones(2), 1.0)
    with pytest.raises(ValueError, match="x must be square"):
        exponential_minus_one(jnp.ones((2, 3)))
