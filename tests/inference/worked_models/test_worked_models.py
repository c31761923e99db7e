"""Worked models find what their data were drawn from, or agree with BayesPy 0.6.6.

Clusters, hidden paths and topics are found by `examples/message_passing.py`, see its test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vfejax.inference.message_passing.coordinate_ascent import fit
from vfejax.inference.worked_models import (
    factors,
    mixture,
    regression,
    state_space,
    topics,
)

pytestmark = pytest.mark.slow

# Bounds of BayesPy after each of five updates of all nodes, from the start and on the data below.
BAYESPY = {
    "mixture": [
        -185.11619945252693,
        -182.51742020843534,
        -182.10130931998884,
        -181.68492669804408,
        -180.9909900322379,
    ],
    "pca": [
        -189.06313507990615,
        -168.04439857119587,
        -156.87323615597185,
        -145.89257509474203,
        -137.47500438431018,
    ],
}


def fitted(method, data, num_sweeps=100, tolerance=1e-6, key=None, start=None, weights=None):
    """Beliefs and info of a compiled fit."""
    data = {name: jnp.asarray(value) for name, value in data.items()}

    def run(data, key, start, weights):
        beliefs = method.init(key, data, weights, start)
        return fit(method, beliefs, data, num_sweeps, tolerance, weights)

    return jax.jit(run)(data, key, start, weights)


def waves(*shape):
    """Numbers that every program draws alike."""
    return np.sin(1.3 * np.arange(1, np.prod(shape) + 1) ** 1.5).reshape(shape)


def test_mixture_has_the_bounds_of_bayespy():
    points, labels = 2 * waves(40, 2), np.arange(40) % 3
    start = {"label": (jnp.asarray(np.where(np.eye(3)[labels] > 0, 0.0, -1e3)),)}
    method = mixture.gaussian_mixture(40, 2, 3)
    _, info = fitted(method, {"point": points}, 5, -1.0, start=start)
    np.testing.assert_allclose(info.elbo, BAYESPY["mixture"], rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "precision"),
    [
        pytest.param(factors.principal_components, np.eye(2), id="one precision for all"),
        pytest.param(
            factors.incomplete_principal_components, np.tile(np.eye(2), (30, 1, 1)), id="one each"
        ),
    ],
)
def test_principal_components_have_the_bounds_of_bayespy(build, precision):
    start = {"factors": (jnp.asarray(waves(30, 2)), -0.5 * jnp.asarray(precision))}
    data = {"data": waves(5, 2) @ waves(30, 2).T + 0.3 * waves(5, 30)}
    _, info = fitted(build(5, 30, 2), data, 5, -1.0, start=start)
    np.testing.assert_allclose(info.elbo, BAYESPY["pca"], rtol=1e-12)


def test_relevance_tells_which_inputs_help(rng):
    design = rng.normal(size=(80, 6))
    truth = np.array([1.0, -2.0, 0.0, 0.0, 0.5, 0.0])
    response = design @ truth + 0.3 * rng.normal(size=80)
    method = regression.linear_regression(jnp.asarray(design))
    beliefs, info = fitted(method, {"response": response[:, None]}, 500)
    assert bool(info.converged)
    relevance = np.array(beliefs.statistics["relevance"][1])
    assert relevance[truth == 0].min() > 10 * relevance[truth != 0].max()
    weights = np.array(beliefs.statistics["weights"][0][0])
    # standard deviation 0.3 / sqrt(80) = 0.034
    np.testing.assert_allclose(weights, truth, rtol=0, atol=0.13)
    # At a maximum the noise and relevances satisfy MacKay's equation, gamma_k = alpha_k E w_k^2,
    # and the belief is the ridge regression that they define.
    noise = float(beliefs.statistics["noise"][1])
    cov = np.linalg.inv(np.diag(relevance) + noise * design.T @ design)
    np.testing.assert_allclose(weights, noise * cov @ design.T @ response, rtol=1e-4, atol=1e-5)


def test_logistic_regression_is_the_posterior_by_quadrature(rng):
    design = rng.normal(size=(30, 1))
    response = (rng.uniform(size=30) < 1 / (1 + np.exp(-1.5 * design[:, 0]))) + 0.0
    beliefs, info = fitted(
        regression.logistic_regression(jnp.asarray(design)), {"response": response}, 50, 1e-10
    )
    grid = np.linspace(-6, 8, 4001)
    logits = design * grid
    logs = response @ logits - np.logaddexp(0, logits).sum(0) + scipy.stats.norm.logpdf(grid)
    mass = np.exp(logs - logs.max())
    mean = np.sum(mass * grid) / mass.sum()
    spread = np.sqrt(np.sum(mass * grid**2) / mass.sum() - mean**2)
    evidence = np.log(np.sum(mass) * (grid[1] - grid[0])) + logs.max()
    elbo = float(info.elbo[int(info.num_sweeps) - 1])
    # The posterior is nearly Gaussian: the bound is close, and below.
    assert evidence - 0.05 < elbo < evidence
    first, second = (float(np.ravel(x)[0]) for x in beliefs.statistics["weights"])
    assert abs(first - mean) < 0.1 * spread
    assert abs(np.sqrt(second - first**2) / spread - 1) < 0.1


def test_state_space_learns_a_rotation_and_fills_gaps(rng):
    angle, length = 0.4, 150
    turn = 0.99 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    states = np.zeros((length, 2))
    for t in range(1, length):
        states[t] = turn @ states[t - 1] + rng.normal(size=2)
    clean = rng.normal(size=(5, 2)) @ states.T
    data = clean + 0.5 * rng.normal(size=clean.shape)
    mask = rng.uniform(size=data.shape) < 0.8
    method = state_space.linear_state_space(5, 3, length)
    beliefs, _ = fitted(
        method,
        {"data": np.where(mask, data, np.nan)},
        100,
        key=jax.random.key(1),
        weights={"data": jnp.asarray(mask, float)},
    )
    size = np.array(beliefs.statistics["output_relevance"][1])
    assert np.sort(size)[-1] > 20 * np.sort(size)[1]
    values = np.linalg.eigvals(np.array(beliefs.statistics["dynamics"][0]))
    frequency = np.abs(np.angle(values[np.argsort(-np.abs(values))[:2]]))
    # ten periods of a damped oscillation
    np.testing.assert_allclose(frequency, angle, rtol=0, atol=0.05)
    outputs, found = (np.array(beliefs.statistics[n][0]) for n in ("outputs", "states"))
    error = (outputs @ found.T - clean)[~mask]
    # Four other outputs with noise 0.5, and the steps before and after, tell where it is.
    assert np.sqrt(np.mean(error**2)) < 0.7 < 0.25 * np.std(clean)


def test_one_word_has_the_evidence_of_enumeration():
    """A document of one word and known topics: its bound is below the exact evidence, by little."""
    method = topics.latent_dirichlet_allocation(1, 2, 2, 1.0, 50.0)
    beliefs, info = fitted(method, {"counts": np.array([[1.0, 0.0]])}, key=jax.random.key(0))
    elbo = float(info.elbo[int(info.num_sweeps) - 1])
    # By symmetry the word has probability 1/2, whichever topic it is of.
    assert np.log(0.5) - 0.5 < elbo < np.log(0.5)
    assert np.isfinite(np.array(beliefs.natural["topics"][0])).all()
