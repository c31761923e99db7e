"""Solvers of an energy's gradient: where they end, and what they say about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.energy.relaxation import alternating_descent, gradient_descent, newton

CURVATURE = np.array([[1.0, -0.3, 0.2], [-0.3, 1.0, 0.4], [0.2, 0.4, 1.0]])
SHIFT = np.array([1.0, -2.0, 0.5])
SOLVERS = {
    "descent": gradient_descent(np.float64(0.8)),  # which does not widen a state of float32
    "alternating": alternating_descent(np.float64(1.0)),
    "newton": newton(),
}


def force(state):
    """Of ``s A s / 2 - b s`` over a tree of two leaves."""
    s = jnp.concatenate(state)
    gradient = jnp.asarray(CURVATURE, s.dtype) @ s - jnp.asarray(SHIFT, s.dtype)
    return gradient[:1], gradient[1:]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_quadratic_energy_relaxes_to_its_minimum(name, dtype):
    start = (jnp.zeros(1, dtype), jnp.zeros(2, dtype))
    found = jax.jit(lambda s: SOLVERS[name](force, s))(start)
    tolerance = float(jnp.finfo(dtype).eps) ** 0.75
    assert found.converged
    assert found.residual <= tolerance
    # The residual bounds the error up to |A^{-1}| < 3 and the size of the numbers, 4.
    np.testing.assert_allclose(
        np.concatenate(found.state), np.linalg.solve(CURVATURE, SHIFT), rtol=0, atol=12 * tolerance
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("start", [4.0, 4, np.float64(4.0)])
def test_a_relaxation_starts_from_a_plain_number(name, start):
    found = SOLVERS[name](lambda s: s - 3.0, start)
    assert found.converged
    np.testing.assert_allclose(found.state, 3.0, rtol=0, atol=1e-11)  # the tolerance times 1 + |s|


def test_newton_finds_complex_states_of_complex_symmetric_curvature():
    turned = CURVATURE * np.exp(0.7j)
    gradient = lambda s: jnp.asarray(turned) @ s + 0.1 * s**3 - SHIFT.astype(complex)  # noqa: E731
    found = jax.jit(lambda s: newton()(gradient, s))(jnp.zeros(3, complex))
    assert found.converged
    np.testing.assert_allclose(gradient(found.state), 0, rtol=0, atol=1e-11)


def test_a_projection_holds_the_state_and_the_residual_counts_what_is_left():
    box = lambda s: jax.tree.map(lambda x: jnp.clip(x, 0.0, 1.0), s)  # noqa: E731
    start = (jnp.zeros(1), jnp.zeros(2))
    both = jax.jit(
        lambda s: [
            make(0.8, 2000, project=box)(force, s)
            for make in (gradient_descent, alternating_descent)
        ]
    )(start)
    for found in both:
        # Only the first unit is free: 1 - s_1 = 0 with the others at 0, where they are pushed.
        assert found.converged
        s, gradient = np.concatenate(found.state), np.concatenate(force(found.state))
        assert ((s >= 0) & (s <= 1)).all()
        np.testing.assert_allclose(
            np.where(s == 0, np.minimum(gradient, 0), gradient), 0, rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("make", [gradient_descent, alternating_descent])
def test_a_step_below_the_rounding_of_the_state_is_no_minimum(make):
    start = (jnp.full(1, 1.0001, "float32"), jnp.full(1, 1.0001, "float32"))
    relax = make(1e-4, 3)
    found = jax.jit(lambda s: relax(lambda s: jax.tree.map(lambda x: x - 1.0, s), s))(start)
    assert not found.converged
    # The slope is 1e-4 to the rounding of the state, over 1 + 1.
    np.testing.assert_allclose(found.residual, 0.5e-4, rtol=0, atol=1e-7)


def test_all_iterations_are_done_and_differentiable_with_tolerance_zero():
    start = (jnp.zeros(1), jnp.zeros(2))

    @jax.jit
    def energy_of(shift):
        found = gradient_descent(0.8, 100, 0)(
            lambda s: jax.tree.map(lambda g: g - shift, force(s)), start
        )
        return jnp.sum(jnp.concatenate(found.state)), found

    (_, found), slope = jax.value_and_grad(energy_of, has_aux=True)(jnp.array(0.0))
    assert found.iterations == 100
    assert found.converged
    # The curvature's least eigenvalue, 0.35, leaves 0.72^100 = 5e-15 of the start.
    np.testing.assert_allclose(slope, np.linalg.solve(CURVATURE, np.ones(3)).sum(), rtol=1e-10)
