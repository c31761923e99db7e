"""Coarse graining: coherence, and moments against the mixture's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle
from helpers import hierarchy_oracle as oracle

from vfejax.agents import coarse_graining
from vfejax.agents.clusters import Clusters
from vfejax.agents.pairwise import frame_field
from vfejax.beliefs.gaussian import Gaussian

GROUP = oracle.VECTOR


def test_coherence_is_the_mean_agreement_with_the_others(rng):
    divergence = rng.uniform(size=(5, 5))
    clusters = Clusters(jnp.asarray([0, 1, 0, 0, 1]), jnp.asarray([True, False, True, True, False]))
    expected = np.ones(5)
    for i in (0, 2, 3):
        others = [j for j in (0, 2, 3) if j != i]
        expected[i] = np.exp(-np.mean([(divergence[i, j] + divergence[j, i]) / 2 for j in others]))
    chex.assert_trees_all_close(
        coarse_graining.coherence(jnp.asarray(divergence), clusters), expected
    )


def test_relative_coherence_has_the_same_shares_and_outlives_any_distance(rng):
    clusters = Clusters(jnp.asarray([0, 0, 0, 3]), jnp.asarray([True, True, True, False]))
    divergence = jnp.asarray(rng.uniform(size=(4, 4)))
    plain, relative = (
        np.asarray(fn(divergence, clusters))
        for fn in (coarse_graining.coherence, coarse_graining.relative_coherence)
    )
    chex.assert_trees_all_close(relative[:3], plain[:3] / plain[:3].max(), rtol=1e-14)
    assert relative[3] == 1
    for far in (1e5, np.inf):
        found = coarse_graining.relative_coherence(far + divergence, clusters)
        assert np.max(found[:3]) == 1


@jax.jit
def matched(gaussian, phi, weights, labels, frame):
    return coarse_graining.moment_match(
        gaussian, frame_field(phi, GROUP), weights, labels, frame_field(frame, GROUP)
    )


LABELS = np.array([1, 0, 3, 1, 0, 1])


@pytest.fixture(scope="module")
def members():
    rng = np.random.default_rng(5)
    population = agents_oracle.random_population(rng, 6, GROUP)
    weights = np.array([0.5, 0.3, 1.0, 0.0, 0.2, 1.5])
    return population.belief, population.phi, weights, 0.5 * rng.normal(size=(3, 3))


def test_moments_are_those_of_the_mixture(members):
    gaussian, phi, weights, frame = members
    broken = gaussian._replace(mean=gaussian.mean.at[3].set(jnp.nan))
    found = matched(broken, phi, weights, LABELS, frame)
    for label in (0, 1):
        rows = [i for i in range(6) if LABELS[i] == label and weights[i] > 0]
        share = weights[rows] / np.sum(weights[rows])
        seen = [oracle.transported(gaussian, phi, i, frame[label]) for i in rows]
        mean = sum(w * m for w, (m, _) in zip(share, seen, strict=True))
        cov = sum(
            w * (c + np.outer(m - mean, m - mean)) for w, (m, c) in zip(share, seen, strict=True)
        )
        # Members of condition number below 100, by way of one of them.
        chex.assert_trees_all_close(oracle.moments(found, label), (mean, cov), rtol=1e-12)
    chex.assert_trees_all_equal((found.mean[2], found.chol[2]), (np.zeros(3), np.eye(3)))


def test_the_moment_match_minimises_the_weighted_divergence(members, rng):
    gaussian, phi, weights, frame = members
    found = matched(gaussian, phi, weights, LABELS, frame)

    def cost(mean, chol):
        q = Gaussian(mean[None], chol[None])
        return sum(
            weights[i]
            * oracle.kl(oracle.transported(gaussian, phi, i, frame[1]), oracle.moments(q, 0))
            for i in (0, 5)
        )

    least = cost(found.mean[1], found.chol[1])
    for _ in range(10):
        step = 1e-3 * rng.normal(size=3), 1e-3 * np.tril(rng.normal(size=(3, 3)))
        up, down = (
            cost(found.mean[1] + sign * step[0], found.chol[1] + sign * step[1]) for sign in (1, -1)
        )
        assert min(up, down) > least
        # Stationary: the slope is a rounding error, not of first order in the step.
        assert abs(up - down) < 1e-2 * (up + down - 2 * least)


def test_digits_survive_far_away_and_elongated():
    scales = jnp.asarray(np.diag([1e-4, 1.0, 1e3]), jnp.float32)
    mean = jnp.full((2, 3), 1e3, jnp.float32)
    pair = Gaussian(mean.at[1, 0].add(2e-4), jnp.stack([scales] * 2))
    zero = jnp.zeros((2, 3), jnp.float32)
    found = jax.jit(
        lambda q: coarse_graining.moment_match(
            q,
            frame_field(zero, GROUP),
            jnp.ones(2, jnp.float32),
            jnp.zeros(2, jnp.int32),
            frame_field(zero[:1], GROUP),
        )
    )(pair)
    # The means differ by what float32 makes of 2e-4 at 1e3.
    shift = float(pair.mean[1, 0] - pair.mean[0, 0])
    expected = [np.sqrt(1e-8 + shift**2 / 4), 1.0, 1e3]
    chex.assert_trees_all_close(np.diag(found.chol[0]), np.float32(expected), rtol=1e-6)
