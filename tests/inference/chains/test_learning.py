"""Expectation maximisation never lowers the log evidence, and stops where its gradient is 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.chains import hidden_markov as hmm
from vfejax.inference.chains import learning
from vfejax.inference.chains.hidden_markov import HiddenMarkov
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_filter


def gaussian(rng):
    """A constant model with offsets, two series around it with missing entries, and their masks."""
    model = LinearGaussian(
        np.zeros(2),
        np.eye(2),
        np.array([[0.8, 0.3], [-0.3, 0.8]]),
        0.3 * np.eye(2),
        rng.normal(size=(3, 2)),
        0.2 * np.eye(3) + 0.1,
        np.zeros(2),
        np.zeros(3),
    )
    y = np.cumsum(rng.normal(size=(2, 20, 3)), axis=1) * 0.3
    return model, y, rng.random(y.shape) < 0.8


def _em(model, y, mask):
    """20 steps over all series; the log evidence before each."""

    def step(model, _):
        # Statistics of several series add up.
        each = [learning.expect(model, *series) for series in zip(y, mask, strict=True)]
        found = jax.tree.map(lambda *x: sum(x), *each)
        return learning.maximize(model, found), found.log_evidence

    return jax.lax.scan(step, model, None, length=20)


@pytest.mark.slow
@pytest.mark.parametrize("num_series", [1, 2])
def test_evidence_of_a_linear_gaussian_model_never_falls(num_series, rng):
    """Correlated noise, missing entries given the observed ones of the same time."""
    model, y, mask = gaussian(rng)
    model = jax.tree.map(jnp.asarray, model)
    learned, evidence = jax.jit(_em)(model, y[:num_series], mask[:num_series])
    # Rounding of a log density of order 100.
    assert np.all(np.diff(evidence) > -1e-12 * 100)
    assert evidence[-1] > evidence[0] + 1.0
    chex.assert_tree_all_finite(learned)


@pytest.mark.slow
def test_one_step_follows_the_gradient(rng):
    """Fisher's identity: the gradient of the expected log joint is that of the log evidence. So a
    small move towards the maximum of the first raises the second at the same rate.
    """
    model, y, mask = gaussian(rng)
    model = jax.tree.map(jnp.asarray, model)

    @jax.jit
    @jax.value_and_grad
    def evidence(transition, emission):
        changed = model._replace(transition=transition, emission=emission)
        return kalman_filter(changed, y[0], mask[0]).log_evidence

    @jax.jit
    def joint_slope(model):
        s = learning.expect(model, y[0], mask[0])
        residual = s.moved[:, :2] - model.transition @ s.past[:2, :2]
        return jnp.linalg.solve(model.transition_cov, residual)

    _, slope = evidence(model.transition, model.emission)
    np.testing.assert_allclose(joint_slope(model), slope, rtol=1e-9, atol=1e-10)


def test_evidence_of_a_hidden_markov_model_never_falls(rng):
    y = rng.integers(0, 4, 60)
    y[20:40] = y[20:40] // 2
    mask = rng.random(60) < 0.9
    model = HiddenMarkov(
        *(rng.dirichlet(np.ones(k), *n).T for k, n in ((2, ()), (2, (2,)), (4, (2,))))
    )

    @jax.jit
    def em(model):
        def step(model, _):
            rows = hmm.log_likelihoods(model, y, mask)
            found = hmm.hidden_markov_smoother(model, rows)
            found = learning.expect_hidden_markov(model, found, y, mask)
            return learning.maximize_hidden_markov(found), found

        return jax.lax.scan(step, model, None, length=30)

    learned, found = em(jax.tree.map(jnp.asarray, model))
    assert np.all(np.diff(found.log_evidence) > -1e-12 * 100)
    assert found.log_evidence[-1] > found.log_evidence[0] + 1.0
    hmm.check_model(learned)
    np.testing.assert_allclose(found.emission.sum(axis=(1, 2)), mask.sum(), rtol=1e-12)


def test_coordinates_are_inverse_to_each_other(rng):
    model, *_ = gaussian(rng)
    model = jax.tree.map(jnp.asarray, model)
    again = jax.jit(lambda m: learning.constrain(learning.unconstrain(m)))(model)
    chex.assert_trees_all_close(again, model, rtol=1e-14, atol=1e-15)
    hidden = HiddenMarkov(np.array([1.0, 0.0]), np.array([[0.5, 0.1], [0.5, 0.9]]))
    again = jax.jit(
        lambda m: learning.constrain_hidden_markov(learning.unconstrain_hidden_markov(m))
    )(hidden)
    chex.assert_trees_all_close(again, hidden, rtol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": np.ones((19, 2, 2))}, "transition has a time axis"),
        ({"emission_cov": np.ones((20, 3, 3))}, "emission_cov has a time axis"),
        ({"transition_control": np.ones((2, 1))}, "control matrices"),
    ],
)
def test_refuses_what_it_cannot_learn(change, message, rng):
    model, y, _ = gaussian(rng)
    with pytest.raises(ValueError, match=message):
        learning.expect(model._replace(**change), y[0])
