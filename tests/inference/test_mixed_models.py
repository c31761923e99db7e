"""Discrete outcomes above continuous causes, against the evidence of linear Gaussian models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vfejax.inference import mixed_models
from vfejax.inference.generalized_filtering import hierarchical_models as hm
from vfejax.inference.generalized_filtering import path_beliefs
from vfejax.problems.closed_loop import noise_paths


def _log_evidence(y, emission, noise, mean, precision):
    cov = emission @ np.linalg.inv(precision) @ emission.T + noise
    return scipy.stats.multivariate_normal(emission @ mean, cov).logpdf(y)


def test_reduction_is_the_evidence_of_another_prior(rng):
    emission, y, eta = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=3)
    values = [rng.normal(size=(3, 2)), rng.normal(size=(2, 1))]
    precision = np.diag([2.0, 0.7, 1.5])
    precision[0, 1] = precision[1, 0] = 0.4
    noise = np.diag([0.5, 1.0, 0.3, 0.8])

    level = hm.Level(
        lambda x, v, theta: x,
        lambda x, v, theta: (theta @ v[:, None])[:, 0],
        np.linalg.inv(noise)[None],
        np.zeros((1, 0, 0)),
    )
    model = hm.Model((level,), precision, 1, 1, 1.0)
    seen = hm.observation(model, jnp.asarray(y)[None], jnp.asarray(eta)[None])
    state = path_beliefs.FilterState(
        hm.rest(model), (jnp.asarray(emission),), hm.zero_hyperparameters(model)
    )

    @jax.jit
    def infer(state, seen):
        path = path_beliefs.mode(model, state.path, seen, state.parameters, state.hyper)
        info = path_beliefs.laplace(model, state._replace(path=path), seen)
        return mixed_models.cause_belief(path, info.covariance)

    belief = infer(state, seen)
    found = mixed_models.reduced_log_evidence(
        belief, jnp.asarray(eta), jnp.asarray(precision), [jnp.asarray(v) for v in values]
    )
    start = 0
    for table, weights in zip(values, found, strict=True):
        for row, weight in zip(table, weights, strict=True):
            other = eta.copy()
            other[start : start + len(row)] = row
            exact = _log_evidence(y, emission, noise, other, precision)
            exact -= _log_evidence(y, emission, noise, eta, precision)
            np.testing.assert_allclose(weight, exact, rtol=1e-11, atol=1e-12)
        start += table.shape[1]


def test_smooth_noise_is_worth_one_observation_per_correlation_time(rng):
    smoothness, dt, num = 0.4, 0.1, 400
    noise = noise_paths(rng, num, dt, 1, smoothness, 1)[:, 0, 0]
    values, precision, y = np.array([[0.0], [0.2]]), 1e9, 0.1 + noise
    # A sharp prior: the reduction is the likelihood ratio of two known causes.
    beliefs = mixed_models.CauseBelief(
        jnp.asarray((precision * 0.0 + y) / (precision + 1))[:, None],
        jnp.full((num, 1, 1), 1 / (precision + 1)),
    )
    each = jax.vmap(
        lambda belief: mixed_models.reduced_log_evidence(
            belief, jnp.zeros(1), jnp.full((1, 1), precision), [jnp.asarray(values)]
        )
    )(beliefs)
    weights = mixed_models.outcome_weights(each, dt, smoothness)[0]
    times = dt * np.arange(num)
    kernel = np.exp(-((times[:, None] - times) ** 2) / (4 * smoothness**2)) + 1e-6 * np.eye(num)
    ratio = 0.2 * np.linalg.solve(kernel, np.ones(num)) @ (y - 0.1)
    # 28 correlation times: their ends are worth one more. 1 / P of rounding.
    found = np.log(weights[1] / weights[0])
    scale = 0.2**2 * num * dt / (2 * np.sqrt(np.pi) * smoothness)  # its variance
    assert abs(found - ratio) < 0.3 * np.sqrt(scale)


def test_what_was_expected_is_no_evidence_by_itself():
    precision = jnp.diag(jnp.array([2.0, 5.0]))
    unseen = mixed_models.CauseBelief(jnp.array([0.3, -1.0]), jnp.diag(1 / jnp.diagonal(precision)))
    values = [jnp.array([[0.3, -1.0], [4.0, 2.0]])]
    found = mixed_models.reduced_log_evidence(unseen, unseen.mean, precision, values)
    np.testing.assert_allclose(found[0], 0.0, rtol=0, atol=1e-14)


def test_expected_causes_mix_the_values_of_outcomes():
    outcomes = [jnp.array([0.5, 0.5, 0.0]), jnp.array([0.1, 0.9])]
    values = [jnp.array([[0.0, 0.0], [2.0, 4.0], [9.0, 9.0]]), jnp.array([[1.0], [2.0]])]
    found = mixed_models.expected_causes(outcomes, values)
    np.testing.assert_allclose(found, [1.0, 2.0, 1.9], rtol=1e-12)


def test_bad_arguments_are_named():
    path = hm.Path((jnp.zeros((3, 1)),), (jnp.zeros((3, 1)),))
    with pytest.raises(ValueError, match="causes must have at most 2 derivatives, got 3"):
        mixed_models.cause_belief(path, jnp.eye(6))
    with pytest.raises(ValueError, match="values must have 1 tables, one per modality, got 2"):
        mixed_models.expected_causes([jnp.ones(2)], [jnp.ones((2, 1)), jnp.ones((2, 1))])
    with pytest.raises(ValueError, match=r"outcomes\[0\] must be \[2\], got shape \[3\]"):
        mixed_models.expected_causes([jnp.ones(3)], [jnp.ones((2, 1))])
    belief = mixed_models.CauseBelief(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ValueError, match="values must have 2 columns, one for each cause, got 1"):
        mixed_models.reduced_log_evidence(belief, jnp.zeros(2), jnp.eye(2), [jnp.ones((3, 1))])
    with pytest.raises(ValueError, match=r"values\[0\] must be \[o, c\], got shape \[3\]"):
        mixed_models.reduced_log_evidence(belief, jnp.zeros(2), jnp.eye(2), [jnp.ones(3)])
