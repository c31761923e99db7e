"""Predictive coding against linear Gaussian models and against differentiation of the whole."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference import predictive_coding as pc


def _linear(weight, x):
    return jnp.matmul(weight, x)


def _curved(weight, x):
    return jnp.tanh(jnp.matmul(weight, x))


SIZES = (3, 4, 3, 2)


def _problem(rng, dtype=jnp.float64):
    weights = tuple(
        jnp.asarray(rng.normal(size=(b, a)) / np.sqrt(a), dtype)
        for a, b in itertools.pairwise(SIZES)
    )
    return weights, jnp.asarray(rng.normal(size=3), dtype), jnp.asarray(rng.normal(size=2), dtype)


@pytest.mark.slow
def test_linear_hierarchy_reaches_the_log_evidence(rng):
    weights, stimulus, target = _problem(rng)
    network = pc.Network((_linear,) * 3, (2.0, 0.5, 4.0))
    hidden, info = pc.perceive(network, weights, stimulus, target, step_size=0.2, num_steps=1000)
    first, second, third = map(np.asarray, weights)
    cov = third @ (second @ second.T / 2.0 + np.eye(3) / 0.5) @ third.T + np.eye(2) / 4.0
    error = target - third @ second @ first @ stimulus
    expected = 0.5 * error @ np.linalg.solve(cov, error)
    # Gradient descent has converged to rounding.
    np.testing.assert_allclose(info.energy, expected, rtol=1e-12)
    assert info.gradient_norm < 1e-12
    assert info.energy < info.initial_energy
    assert [h.shape for h in hidden] == [(4,), (3,)]


@pytest.mark.parametrize("layer", [pytest.param(_linear, marks=pytest.mark.slow), _curved])
def test_local_gradient_is_the_whole_gradient_of_the_least_energy(rng, layer):
    weights, stimulus, target = _problem(rng)
    network = pc.Network((layer, layer, _linear), (1.0, 2.0, 1.0))
    options = {"step_size": 0.2, "num_steps": 600}

    @jax.jit
    def both(weights):
        def least(w):
            hidden, info = pc.perceive(network, w, stimulus, target, **options)
            return info.energy, hidden

        whole, hidden = jax.grad(least, has_aux=True)(weights)
        return whole, pc.learning_gradient(network, weights, stimulus, hidden, target)

    whole, local = both(weights)
    # The activities have converged to rounding.
    chex.assert_trees_all_close(whole, local, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_errors_read_only_their_neighbours(rng):
    weights, stimulus, target = _problem(rng)
    network = pc.Network((_curved, _curved, _linear), (1.0, 1.0, 1.0))
    hidden = pc.forward(network, weights, stimulus)[:-1]

    def learn(w):
        return pc.learning_gradient(network, w, stimulus, hidden, target)

    before = learn(weights)
    after = learn((weights[0], weights[1], 2.0 * weights[2]))
    chex.assert_trees_all_equal(before[:2], after[:2])


@pytest.mark.slow
def test_small_errors_learn_as_backpropagation_does(rng):
    weights, stimulus, _ = _problem(rng)
    network = pc.Network((_curved, _curved, _linear), (1.0, 1.0, 1e-6))
    target = jnp.array([0.3, -0.2])
    hidden, _ = pc.perceive(network, weights, stimulus, target, step_size=0.2, num_steps=300)
    local = pc.learning_gradient(network, weights, stimulus, hidden, target)

    def loss(w):
        return 0.5e-6 * jnp.sum((target - pc.forward(network, w, stimulus)[-1]) ** 2)

    # Activities move by 1e-6 of the errors.
    chex.assert_trees_all_close(local, jax.grad(loss)(weights), rtol=1e-4, atol=1e-12)


@pytest.mark.slow
def test_both_precisions(rng, dtype):
    weights, stimulus, target = _problem(rng, dtype)
    network = pc.Network((_curved, _curved, _linear), (1.0, 1.0, 1.0))
    _, info = pc.perceive(network, weights, stimulus, target, step_size=0.1, num_steps=3)
    assert info.energy.dtype == dtype
    assert info.energy < info.initial_energy


def test_shapes_must_fit(rng):
    weights, stimulus, target = _problem(rng)
    network = pc.Network((_linear,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match="one activity fewer than the 3 layers, got 0"):
        pc.energy(network, weights, stimulus, (), target)
    hidden = pc.forward(network, weights, stimulus)[:-1]
    with pytest.raises(ValueError, match=r"target must be \(2,\), got \(3,\)"):
        pc.energy(network, weights, stimulus, hidden, jnp.zeros(3))
    single = pc.Network((_linear,), (1.0,))
    with pytest.raises(ValueError, match=r"network must have at least two layers .* got 1"):
        pc.perceive(single, weights[:1], stimulus, target, step_size=0.1, num_steps=1)
