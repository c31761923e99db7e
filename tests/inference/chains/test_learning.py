"""Expectation maximisation never lowers the log evidence, and stops where its gradient is 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.chains import coordinates, hidden_markov_learning, learning
from vfejax.inference.chains import hidden_markov as hmm
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.inference.chains.hidden_markov import HiddenMarkov
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_filter, kalman_smoother


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


def varying(rng, noise):
    """A model with controls; the emission, an offset, and with ``noise`` R too change with time."""
    model, y, _ = gaussian(rng)
    u = rng.normal(size=(20, 1))
    model = model._replace(
        transition_control=rng.normal(size=(2, 1)),
        emission=rng.normal(size=(20, 3, 2)),
        transition_offset=0.1 * rng.normal(size=(19, 2)),
    )
    if noise:
        scales = 1.0 + rng.random((20, 1, 1))
        cov, offset = model.emission_cov * scales, np.zeros((20, 3))
        return model._replace(emission_cov=cov, emission_offset=offset), y[0], u
    return model._replace(emission_control=np.ones((3, 1))), y[0], u


def _expected_log_joint(model, smoothed, y, u):
    """``E log p(x, y)`` under a posterior, without the first state and constants."""
    mean, cov, cross = smoothed.mean, smoothed.cov, smoothed.cross_cov
    c = jnp.broadcast_to(model.emission, (len(y), 3, 2))
    push = mean[:-1] @ model.transition.T + u[:-1] @ model.transition_control.T
    moved = mean[1:] - push - model.transition_offset
    pulled = cross @ model.transition.T
    spread = model.transition @ cov[:-1] @ model.transition.T + cov[1:]
    spread = spread - pulled - pulled.swapaxes(1, 2) + moved[:, :, None] * moved[:, None]
    error = y - jnp.einsum("toi,ti->to", c, mean) - u @ model.emission_control.T
    error = error - model.emission_offset[None]
    seen = c @ cov @ c.swapaxes(1, 2) + error[:, :, None] * error[:, None]

    def score(noise, squares):
        whitened = jnp.linalg.solve(noise, squares.sum(0))
        return -0.5 * (jnp.trace(whitened) + len(squares) * jnp.linalg.slogdet(noise)[1])

    return score(model.transition_cov, spread) + score(model.emission_cov, seen)


@pytest.mark.slow
def test_a_step_ends_where_the_expected_log_joint_is_stationary(rng):
    """In every array that is learned, with controls beside what is known."""
    model, y, u = varying(rng, noise=False)
    model = jax.tree.map(jnp.asarray, model)

    @jax.jit
    def slope(model):
        found = learning.expect(model, y, None, u, passes=SEQUENTIAL)
        smoothed = kalman_smoother(model, y, None, u, passes=SEQUENTIAL)
        learned = learning.maximize(model, found)
        return jax.grad(_expected_log_joint)(learned, smoothed, y, u)

    found = slope(model)._asdict()
    for name in (
        "transition",
        "transition_control",
        "transition_cov",
        "emission_control",
        "emission_offset",
        "emission_cov",
    ):
        # Sums of 20 numbers of order 10, divided by variances of 0.1.
        np.testing.assert_allclose(found[name], 0.0, rtol=0, atol=1e-10, err_msg=name)
    assert np.abs(found["emission"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True])
def test_evidence_never_falls_with_controls_and_what_is_known(noise, rng):
    model, y, u = varying(rng, noise)
    mask = rng.random(y.shape) < 0.8

    @jax.jit
    def em(model):
        def step(model, _):
            found = learning.expect(model, y, mask, u, passes=SEQUENTIAL)
            return learning.maximize(model, found), found.log_evidence

        return jax.lax.scan(step, model, None, length=20)

    learned, evidence = em(jax.tree.map(jnp.asarray, model))
    assert np.all(np.diff(evidence) > -1e-12 * 100)
    assert evidence[-1] > evidence[0] + 1.0
    chex.assert_tree_all_finite(learned)
    same = {"emission", "transition_offset"} | (
        {"emission_cov", "emission_offset"} if noise else set()
    )
    for name, value in learned._asdict().items():
        if value is not None:
            unchanged = bool(np.array_equal(value, getattr(model, name)))
            assert unchanged == (name in same), name


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
            found = hidden_markov_learning.expect_hidden_markov(model, found, y, mask)
            return hidden_markov_learning.maximize_hidden_markov(model, found), found

        return jax.lax.scan(step, model, None, length=30)

    learned, found = em(jax.tree.map(jnp.asarray, model))
    assert np.all(np.diff(found.log_evidence) > -1e-12 * 100)
    assert found.log_evidence[-1] > found.log_evidence[0] + 1.0
    hmm.check_model(learned)
    np.testing.assert_allclose(found.emission.sum(axis=(1, 2)), mask.sum(), rtol=1e-12)


def test_a_transition_that_changes_is_known():
    transition = np.stack([np.eye(2), np.full((2, 2), 0.5)])
    model = HiddenMarkov(np.array([0.5, 0.5]), transition, np.eye(2))
    counts = hidden_markov_learning.HiddenMarkovStatistics(
        jnp.array([1.0, 3.0]), jnp.ones((2, 2)), jnp.array([[1.0, 1.0], [4.0, 1.0]]), 0.0
    )
    learned = hidden_markov_learning.maximize_hidden_markov(model, counts)
    np.testing.assert_array_equal(learned.transition, transition)
    np.testing.assert_array_equal(learned.initial, [0.25, 0.75])
    np.testing.assert_array_equal(learned.emission, [[0.2, 0.5], [0.8, 0.5]])


def test_coordinates_are_inverse_to_each_other(rng):
    model, *_ = gaussian(rng)
    model = jax.tree.map(jnp.asarray, model)
    again = jax.jit(lambda m: coordinates.constrain(coordinates.unconstrain(m)))(model)
    chex.assert_trees_all_close(again, model, rtol=1e-14, atol=1e-15)
    hidden = HiddenMarkov(np.array([1.0, 0.0]), np.array([[0.5, 0.1], [0.5, 0.9]]))
    again = jax.jit(
        lambda m: coordinates.constrain_hidden_markov(coordinates.unconstrain_hidden_markov(m))
    )(hidden)
    chex.assert_trees_all_close(again, hidden, rtol=1e-15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"transition_cov": np.ones((19, 2, 2))},
            "transition_cov has a time axis, so transition is not learned",
        ),
        (
            {"emission_cov": np.ones((20, 3, 3)), "emission": np.ones((20, 3, 2))},
            "emission_cov has a time axis, so emission_offset is not learned",
        ),
        ({"transition_control": np.ones((2, 1))}, "controls .* are missing"),
    ],
)
def test_refuses_what_it_cannot_learn(change, message, rng):
    model, y, _ = gaussian(rng)
    with pytest.raises(ValueError, match=message):
        learning.expect(model._replace(**change), y[0])
