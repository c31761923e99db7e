"""Models whose posterior belongs to the family of the belief: the ELBO is the log evidence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vfejax.inference.message_passing import chains, couplings, graph, nodes
from vfejax.inference.message_passing.coordinate_ascent import message_passing

VALUES = np.array([0.4, -1.0, 2.2, 0.9])
VECTORS = np.array([[0.4, -1.0], [2.2, 0.9], [-0.3, 0.1]])
LABELS = np.eye(3)[[0, 2, 2, 1, 2]]
COUNTS = np.array([3.0, 0.0, 5.0, 2.0])
TRIALS = np.array([[2.0, 1.0, 3.0], [0.0, 4.0, 2.0]])
PRECISION = np.array([[2.0, 0.3], [0.3, 1.0]])


def gaussian_mean():
    model = {"q": nodes.gaussian(0.5, 2.0), "x": nodes.gaussian("q", 3.0, plates=(4,))}
    cov = np.eye(4) / 3 + 0.5
    return model, VALUES, scipy.stats.multivariate_normal(np.full(4, 0.5), cov).logpdf(VALUES)


def gaussian_precision():
    model = {"q": nodes.gamma(2.0, 3.0), "x": nodes.gaussian(0.5, "q", plates=(4,))}
    scale = 3 / 2 * np.eye(4)
    return model, VALUES, scipy.stats.multivariate_t(np.full(4, 0.5), scale, 4).logpdf(VALUES)


def vector_mean():
    model = {
        "q": nodes.multivariate_gaussian(np.ones(2), 0.5 * PRECISION),
        "x": nodes.multivariate_gaussian("q", PRECISION, plates=(3,)),
    }
    cov = np.kron(np.eye(3) + 2 * np.ones((3, 3)), np.linalg.inv(PRECISION))
    normal = scipy.stats.multivariate_normal(np.ones(6), cov)
    return model, VECTORS, normal.logpdf(VECTORS.ravel())


def vector_precision():
    model = {
        "q": nodes.wishart(4.0, PRECISION),
        "x": nodes.multivariate_gaussian(np.ones(2), "q", plates=(3,)),
    }
    deviations = VECTORS - 1
    after = PRECISION + deviations.T @ deviations
    expected = (
        scipy.special.multigammaln(7 / 2, 2)
        - scipy.special.multigammaln(4 / 2, 2)
        + 4 / 2 * np.linalg.slogdet(PRECISION)[1]
        - 7 / 2 * np.linalg.slogdet(after)[1]
        - 3 * np.log(np.pi)
    )
    return model, VECTORS, expected


def relevances():
    model = {"q": nodes.gamma(2.0, 3.0, plates=(2,)), "x": nodes.relevance("q", plates=(3,))}
    t = scipy.stats.multivariate_t(np.zeros(3), 3 / 2 * np.eye(3), 4)
    return model, VECTORS, t.logpdf(VECTORS[:, 0]) + t.logpdf(VECTORS[:, 1])


def dirichlet_evidence(alpha, counts):
    log_gamma = scipy.special.gammaln
    return (
        np.sum(log_gamma(alpha + counts) - log_gamma(alpha))
        + log_gamma(alpha.sum())
        - log_gamma(np.sum(alpha + counts))
    )


def labels():
    alpha = np.array([0.5, 1.0, 2.0])
    model = {"q": nodes.dirichlet(alpha), "x": nodes.categorical("q", plates=(5,))}
    return model, LABELS, dirichlet_evidence(alpha, LABELS.sum(0))


def trials():
    alpha = np.array([0.5, 1.0, 2.0])
    model = {"q": nodes.dirichlet(alpha), "x": nodes.multinomial(6.0, "q", plates=(2,))}
    coefficient = np.sum(scipy.special.gammaln(7.0) - scipy.special.gammaln(TRIALS + 1).sum(1))
    return model, TRIALS, dirichlet_evidence(alpha, TRIALS.sum(0)) + coefficient


def successes():
    model = {"q": nodes.beta(2.0, 3.0), "x": nodes.bernoulli("q", plates=(4,))}
    beta = scipy.special.betaln
    return model, np.array([1.0, 0.0, 0.0, 0.0]), beta(3.0, 6.0) - beta(2.0, 3.0)


def counts():
    model = {"q": nodes.gamma(2.0, 3.0), "x": nodes.poisson("q", plates=(4,))}
    total, log_gamma = COUNTS.sum(), scipy.special.gammaln
    expected = (
        2 * np.log(3) - (2 + total) * np.log(7) + log_gamma(2 + total) - log_gamma(2.0)
    ) - log_gamma(COUNTS + 1).sum()
    return model, COUNTS, expected


def states():
    """A hidden Markov model with known parameters, by enumeration of its 3^4 paths."""
    initial = np.array([0.5, 0.3, 0.2])
    transition = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    means = np.array([-1.0, 0.5, 2.0])
    model = {
        "q": chains.categorical_chain(initial, transition, 4),
        "x": couplings.mixture("q", nodes.gaussian(means, 2.0)),
    }
    total = 0.0
    for path in np.ndindex(3, 3, 3, 3):
        steps = np.prod([transition[i, j] for i, j in itertools.pairwise(path)])
        seen = scipy.stats.norm(means[list(path)], np.sqrt(0.5)).pdf(VALUES)
        total += initial[path[0]] * steps * seen.prod()
    return model, VALUES, np.log(total)


TRANSITION = np.array([[0.9, 0.2], [-0.3, 0.7]])
EMISSION = np.array([[1.0, 0.0], [0.5, -1.0], [0.3, 0.4]])


def vectors():
    """A linear dynamical system with known parameters, by its dense joint covariance."""
    model = {
        "q": chains.gaussian_chain(np.ones(2), PRECISION, TRANSITION, np.array([2.0, 3.0]), 4),
        "x": couplings.gain(EMISSION, "q", 2.0),
    }
    rng = np.random.default_rng(0)
    data = rng.normal(size=(3, 4))
    cov, mean = [np.linalg.inv(PRECISION)], [np.ones(2)]
    for _ in range(3):
        cov.append(TRANSITION @ cov[-1] @ TRANSITION.T + np.diag([1 / 2, 1 / 3]))
        mean.append(TRANSITION @ mean[-1])
    joint = np.zeros((4, 3, 4, 3))
    for s in range(4):
        for t in range(s, 4):
            block = np.linalg.matrix_power(TRANSITION, t - s) @ cov[s]
            joint[t, :, s] = EMISSION @ block @ EMISSION.T
            joint[s, :, t] = joint[t, :, s].T
    joint = joint.reshape(12, 12) + np.eye(12) / 2
    average = (np.array(mean) @ EMISSION.T).ravel()
    expected = scipy.stats.multivariate_normal(average, joint).logpdf(data.T.ravel())
    return model, data, expected


def regression():
    """Linear regression with known precisions."""
    design = np.array([[1.0, 0.5], [0.2, -1.0], [0.0, 2.0], [1.5, 1.0]])
    model = {
        "q": nodes.relevance(np.array([1.0, 2.0]), plates=(1,)),
        "x": couplings.gain(design, "q", 4.0),
    }
    cov = design @ np.diag([1.0, 0.5]) @ design.T + np.eye(4) / 4
    expected = scipy.stats.multivariate_normal(np.zeros(4), cov).logpdf(VALUES)
    return model, VALUES[:, None], expected


MODELS = (
    gaussian_mean,
    gaussian_precision,
    vector_mean,
    vector_precision,
    relevances,
    labels,
    trials,
    successes,
    counts,
    states,
    vectors,
    regression,
)


FAST = (gaussian_precision, counts, vectors)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(build, id=build.__name__, marks=() if build in FAST else pytest.mark.slow)
        for build in MODELS
    ],
)
def test_elbo_is_the_log_evidence_after_one_update(build):
    model, data, expected = build()
    method = message_passing(graph.graph(**model), ("x",))
    _, info = jax.jit(lambda data: method.sweep(method.init(None, data), data))(
        {"x": jnp.asarray(data)}
    )
    # sums of at most 100 numbers below 100
    np.testing.assert_allclose(info.elbo, expected, rtol=0, atol=1e-12)
