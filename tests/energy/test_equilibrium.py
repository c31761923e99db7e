"""Equilibrium propagation against implicit differentiation, its order in beta, and what it
refuses.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics.fixed_points import implicit_solution, newton_krylov
from vfejax.energy.equilibrium import (
    backpropagation,
    centred,
    equilibrium_propagation,
    holomorphic,
    one_sided,
)
from vfejax.energy.relaxation import gradient_descent, newton

SIZES = (4, 5, 3)


def energy(params, state, inputs):
    """Polynomial, and strongly convex while the norm of the upper weights is below 1."""
    (lower, upper), (h, y) = params, state
    own = 0.5 * jnp.sum(h**2, -1) + 0.25 * jnp.sum(h**4, -1) + 0.5 * jnp.sum(y**2, -1)
    return own - jnp.sum((inputs @ lower + y @ upper.T) * h, axis=-1)


def cost(state, targets):
    return 0.5 * jnp.sum((state[1] - targets) ** 2, axis=-1)


def problem(dtype=jnp.float64, batch=(2,)):
    rng = np.random.default_rng(3)
    lower, upper = (rng.normal(size=shape) for shape in (SIZES[:2], SIZES[1:]))
    upper *= 0.6 / np.linalg.norm(upper, 2)
    x, y = 0.5 * rng.normal(size=(*batch, SIZES[0])), rng.normal(size=(*batch, SIZES[2]))
    start = tuple(np.zeros((*batch, n)) for n in SIZES[1:])
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), ((lower, upper), x, y, start))


def implicit_gradient(params, inputs, targets, start):
    """Of the mean cost, by the implicit function theorem."""

    def loss(params):
        force = jax.grad(lambda state: jnp.sum(energy(params, state, inputs)))
        update = lambda state: jax.tree.map(jnp.subtract, state, force(state))  # noqa: E731
        solver = newton_krylov(1e-14, linear_tolerance=1e-8)
        return jnp.mean(cost(implicit_solution(solver, update, start).value, targets))

    return jax.value_and_grad(loss)(params)


def relative_error(found, exact):
    found, exact = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (found, exact)
    )
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


ESTIMATORS = {
    "one-sided": (one_sided, 1, 0.1),
    "centred": (centred, 2, 0.1),
    "4 points": (lambda beta: holomorphic(beta, 4), 4, 0.3),
    "8 points": (lambda beta: holomorphic(beta, 8), 8, 0.6),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_error_falls_with_the_stated_power_of_beta(name):
    make, order, margin = ESTIMATORS[name]
    args = problem()
    betas = (0.05, 0.025)

    @jax.jit
    def gradients(args):
        solver = newton(1e-15, 12)
        return [equilibrium_propagation(energy, cost, solver, make(b))(*args)[:2] for b in betas]

    loss, exact = jax.jit(implicit_gradient)(*args)
    found = gradients(args)
    errors = [relative_error(gradient, exact) for _, gradient in found]
    assert abs(np.log2(errors[0] / errors[1]) - order) < margin
    # The free state is the same whatever comes after it.
    np.testing.assert_allclose([value for value, _ in found], loss, rtol=1e-12)


def test_it_is_backpropagation_in_the_limit_and_says_so_in_float32_too(dtype):
    args = problem(dtype)
    solver = gradient_descent(0.2, 300, 0)

    @jax.jit
    def both(args):
        nudged = equilibrium_propagation(energy, cost, solver, holomorphic(0.1, 4))(*args)
        return nudged, backpropagation(energy, cost, solver)(*args)

    (loss, found, info), (reference, exact, past) = both(args)
    assert {x.dtype for x in jax.tree.leaves((loss, found))} == {dtype}
    assert loss == reference
    # beta^4 = 1e-4, of coefficients of order 10, and the rounding of a difference over beta.
    assert relative_error(found, exact) < 2e-3
    assert info.free.converged
    assert past.free.converged
    assert info.nudged.converged.shape == (3,)
    assert past.nudged is None


def test_the_gradient_is_the_mean_of_those_of_the_samples():
    params, inputs, targets, start = problem()
    learn = equilibrium_propagation(energy, cost, gradient_descent(0.2), centred(0.1))

    @jax.jit
    def both(params, inputs, targets, start):
        alone = jax.vmap(learn, (None, 0, 0, 0))(params, inputs, targets, start)
        return learn(params, inputs, targets, start)[:2], alone[:2]

    together, alone = both(params, inputs, targets, start)
    # Relaxations end at a residual of 2e-12, and a difference of them is divided by beta.
    for found, each in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=0, atol=1e-9)


def test_a_relaxation_that_is_too_short_or_meets_a_nan_has_not_converged():
    params, inputs, targets, start = problem(batch=())

    @jax.jit
    def converged(inputs, params):
        learn = equilibrium_propagation(energy, cost, gradient_descent(0.2, 400), centred(0.1))
        info = learn(params, inputs, targets, start)[2]
        return info.free.converged, info.nudged.converged, info.free.iterations

    free, nudged, iterations = converged(inputs, params)
    assert free
    assert nudged.all()
    assert 5 < iterations < 400
    free, nudged, iterations = converged(inputs.at[0].set(jnp.nan), params)
    assert not free
    assert not nudged.any()
    assert iterations < 10
    stiff = jax.tree.map(lambda w: 50.0 * w, params)
    assert not converged(inputs, stiff)[0]


NAN = np.full((2, SIZES[0]), np.nan)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda learn, p, x, y, s: learn(p, x, None, s), "targets must hold what the cost"),
        (lambda learn, p, x, y, s: learn(p, NAN, y, s), "inputs must be finite, got NaN or inf"),
        (lambda learn, p, x, y, s: learn(p, x, y / 0.0, s), "targets must be finite"),
        (
            lambda learn, p, x, y, s: learn(p, x, y, jax.tree.map(lambda a: a.astype(complex), s)),
            "start must hold arrays of one real floating dtype, got complex128",
        ),
        (
            lambda learn, p, x, y, s: learn(p, x, y, (s[0], s[1].astype(jnp.float32))),
            "got float32, float64",
        ),
        (
            lambda learn, p, x, y, s: learn((1, p[1]), x, y, s),
            r"params\[0\] must be real and floating",
        ),
        (
            lambda learn, p, x, y, s: learn(p, x.astype(complex), y, s),
            "inputs must be real, got complex128",
        ),
        (
            lambda learn, p, x, y, s: learn(p, x, y.astype(complex), s),
            "targets must be real, got complex128",
        ),
        (
            lambda *_: equilibrium_propagation(energy, cost, newton(), holomorphic(0.1, 4))(
                *problem(jnp.bfloat16)
            ),
            "float32 or float64 for a holomorphic estimator",
        ),
        (lambda *_: one_sided(0.0), "beta must be above 0 and finite, got 0.0"),
        (lambda *_: centred(-0.1), "beta must be above 0 and finite, got -0.1"),
        (lambda *_: centred(float("nan")), "beta must be above 0 and finite, got nan"),
        (lambda *_: holomorphic(0.1, 5), "num_points must be even and at least 2, got 5"),
        (lambda *_: holomorphic(0.1, 0), "num_points must be even and at least 2, got 0"),
        (lambda *_: gradient_descent(0.0), "a number above 0 and finite, got 0.0"),
        (lambda *_: gradient_descent(jnp.ones(2)), "step_size must be a number above 0 and"),
        (lambda *_: newton(max_iterations=0), "max_iterations must be a whole number"),
        (lambda *_: newton(max_iterations=2.5), "whole number of at least 1, got 2.5"),
        (
            lambda learn, p, x, y, s: learn(p, x[:0], y[:0], jax.tree.map(lambda a: a[:0], s)),
            r"start must hold at least one sample, got energies \(0,\)",
        ),
        (lambda *_: newton(-1.0), "tolerance must be at least 0 and finite, got -1.0"),
        (lambda *_: newton(float("inf")), "tolerance must be at least 0 and finite, got inf"),
        (
            lambda *_: newton(linear_tolerance=1.0),
            "linear_tolerance must be at least 0 and below 1",
        ),
        (lambda *_: newton(linear_iterations=0), "linear_iterations must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    for make in (equilibrium_propagation, backpropagation):
        nudging = (centred(0.1),) if make is equilibrium_propagation else ()
        learn = make(energy, cost, gradient_descent(0.2), *nudging)
        with pytest.raises(ValueError, match=message):
            call(learn, *problem())


def test_an_energy_and_a_cost_of_different_shapes_are_named():
    total = lambda state, targets: jnp.sum(cost(state, targets))  # noqa: E731
    learn = equilibrium_propagation(energy, total, newton(), centred(0.1))
    with pytest.raises(ValueError, match=r"a number for each sample, got \(2,\) and \(\)"):
        learn(*problem())
