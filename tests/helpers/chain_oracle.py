"""Chains solved without recursions: the joint Gaussian of all states, and all paths of states."""

import itertools
from typing import NamedTuple

import numpy as np


class Exact(NamedTuple):
    mean: np.ndarray
    cov: np.ndarray
    cross_cov: np.ndarray
    log_evidence: float


def _at(x, core, i):
    x = np.asarray(x, np.float64)
    return x if x.ndim == core else x[i]


def joint_gaussian(model, observations, mask=None, controls=None, upto=None):
    """Posterior of all states from the joint density of states and observed entries, in float64;
    with ``upto`` only observations before that time count.
    """
    y = np.asarray(observations, np.float64)
    t, o = y.shape
    n = len(model.initial_mean)
    u = np.zeros((t, 1)) if controls is None else np.asarray(controls, np.float64)
    push = np.zeros((n, u.shape[1])) if controls is None else model.transition_control
    seen = np.zeros((o, u.shape[1])) if controls is None else model.emission_control
    drift = np.zeros(n) if model.transition_offset is None else model.transition_offset
    shift = np.zeros(o) if model.emission_offset is None else model.emission_offset
    mean, cov = np.zeros((t, n)), np.zeros((t, n, t, n))
    mean[0], cov[0, :, 0] = model.initial_mean, model.initial_cov
    for i in range(t - 1):
        a = _at(model.transition, 2, i)
        mean[i + 1] = a @ mean[i] + _at(drift, 1, i) + push @ u[i]
        for j in range(i + 1):
            cov[i + 1, :, j] = a @ cov[i, :, j]
            cov[j, :, i + 1] = cov[i + 1, :, j].T
        cov[i + 1, :, i + 1] = a @ cov[i, :, i] @ a.T + _at(model.transition_cov, 2, i)
    emission, noise, error = np.zeros((t, o, t, n)), np.zeros((t, o, t, o)), np.zeros((t, o))
    for i in range(t):
        emission[i, :, i] = _at(model.emission, 2, i)
        noise[i, :, i] = _at(model.emission_cov, 2, i)
        expected = emission[i, :, i] @ mean[i] + _at(shift, 1, i) + seen @ u[i]
        error[i] = y[i] - expected
    observed = np.ones((t, o), bool) if mask is None else np.asarray(mask).copy()
    observed[t if upto is None else upto :] = False
    keep = observed.reshape(-1)
    prior = cov.reshape(t * n, t * n)
    c = emission.reshape(t * o, t * n)[keep]
    r = noise.reshape(t * o, t * o)[np.ix_(keep, keep)]
    e = error.reshape(-1)[keep]
    s = c @ prior @ c.T + r
    gain = np.linalg.solve(s, c @ prior).T
    posterior = (prior - gain @ c @ prior).reshape(t, n, t, n)
    log_density = -0.5 * (
        e @ np.linalg.solve(s, e) + np.linalg.slogdet(s)[1] + len(e) * np.log(2 * np.pi)
    )
    return Exact(
        mean + (gain @ e).reshape(t, n),
        np.stack([posterior[i, :, i] for i in range(t)]),
        np.stack([posterior[i + 1, :, i] for i in range(t - 1)]) if t > 1 else np.zeros((0, n, n)),
        float(log_density),
    )


def all_paths(initial, transition, log_likelihood):
    """Every path of a discrete chain ``[paths, t]`` and its log probability with the
    observations.
    """
    t, k = log_likelihood.shape
    paths = np.array(list(itertools.product(range(k), repeat=t)))
    with np.errstate(divide="ignore"):
        score = np.log(np.asarray(initial, np.float64))[paths[:, 0]]
        for i in range(t):
            score = score + log_likelihood[i, paths[:, i]]
            if i + 1 < t:
                score = score + np.log(_at(transition, 2, i))[paths[:, i + 1], paths[:, i]]
    return paths, score
