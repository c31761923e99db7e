"""Sweeps over temperature: order parameters in closed form, and a transition against its theory."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.agents import alignment
from vfejax.agents.free_energy import free_energy
from vfejax.agents.population import Population, PopulationCoordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry import groups
from vfejax.problems import phase_sweep as sweeps

STILL = groups.general(np.zeros((1, 1, 1)))


def line_of(places, priors=None):
    """Agents of unit variance at places on a line, whose frames turn nothing."""
    places = np.asarray(places, float)[:, None]
    chol = np.ones((len(places), 1, 1))
    prior = places if priors is None else np.asarray(priors, float)[:, None]
    return Population(Gaussian(places, chol), Gaussian(prior, chol), np.zeros((len(places), 1)))


order_of = jax.jit(lambda agents, tau: sweeps.order_of(agents, STILL, tau, 0.6))


def test_three_agents_have_the_entropy_of_two_choices():
    """KL of unit Gaussians is half the squared distance; each agent chooses between two others."""
    places = np.array([0.0, 1.0, 3.0])
    for tau in (0.3, 2.0, 50.0):
        entropies, heats = [], []
        for i in range(3):
            first, second = (0.5 * (places[i] - places[j]) ** 2 for j in range(3) if j != i)
            p = 1 / (1 + np.exp((first - second) / tau))
            entropies.append(-p * np.log(p) - (1 - p) * np.log(1 - p))
            heats.append(p * (1 - p) * (first - second) ** 2 / tau**2)
        order = order_of(line_of(places), tau)
        np.testing.assert_allclose(order.attention_entropy, np.mean(entropies), rtol=1e-10)
        np.testing.assert_allclose(order.susceptibility, np.mean(heats), rtol=1e-10)
        # 0 and 1 are 1/2 nats apart.
        assert int(order.num_clusters) == 2
        np.testing.assert_allclose(order.largest_cluster, 2 / 3)


def test_an_agent_too_far_to_be_squared_has_no_say():
    """Divergences in units of the temperature are 10^25 nats, and their squares infinite."""
    agents = jax.tree.map(jnp.float32, line_of([0.0, 0.5, 3.0, 1e3]))
    assert order_of(agents, np.float32(1e-19)).susceptibility == 0


def test_the_susceptibility_is_the_slope_of_the_entropy(rng):
    agents = line_of(2 * rng.normal(size=3))
    slope = jax.jit(jax.grad(lambda s: sweeps.order_of(agents, STILL, jnp.exp(s), 0.6)[0]))
    for tau in (0.2, 1.0, 5.0):
        np.testing.assert_allclose(
            slope(np.log(tau)), order_of(agents, tau).susceptibility, rtol=1e-9
        )


WEIGHT, DISTANCE = 2.0, 4.0
TEMPERATURES = np.array([0.3, 0.9, 1.2, 3.0])


@jax.jit
def sweep(agents):
    return sweeps.phase_sweep(
        agents,
        STILL,
        TEMPERATURES,
        num_steps=200,
        threshold=1.0,
        energy_fn=partial(free_energy, weights=(1, WEIGHT, 0, 0), alignment_fn=alignment.entropic),
        step_size=0.1,
        rates=PopulationCoordinates(GaussianCoordinates(1.0, 0.0), 0.0, 0.0),
    )


def stationary(tau, half):
    """All solutions of ``d (1 + 4 lambda beta(d)) = D`` by bisection, ascending."""

    def force(d):
        other = half * np.exp(-(d**2) / (2 * tau))
        return d * (1 + 4 * WEIGHT * other / (half - 1 + other)) - DISTANCE

    d = np.linspace(0, DISTANCE, 4001)
    roots = []
    for low, high in itertools.pairwise(d):
        if np.sign(force(low)) != np.sign(force(high)):
            for _ in range(60):
                middle = (low + high) / 2
                same = np.sign(force(middle)) == np.sign(force(low))
                low, high = (middle, high) if same else (low, middle)
            roots.append(high)
    return roots


def test_two_camps_settle_where_theory_has_a_stable_state():
    """One solution at the ends, and two stable ones between: which, depends on the start."""
    half = 2
    side = np.repeat([-0.5, 0.5], half)
    for start, end in ((DISTANCE, -1), (0.01, 0)):
        curves = sweep(line_of(start * side, DISTANCE * side))
        chex.assert_tree_all_finite(curves)
        found = np.ptp(curves.population.belief.mean[..., 0], axis=1)
        expected = [stationary(tau, half)[end] for tau in TEMPERATURES]
        # Contraction by at least 0.9 a step; close to the jump it is slower.
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(curves.order.num_clusters, np.where(found**2 / 2 > 1, 2, 1))
        assert np.max(np.abs(curves.last_change)) < 1e-8
    assert [len(stationary(tau, half)) for tau in TEMPERATURES] == [1, 3, 3, 1]


def test_temperatures_are_a_list():
    with pytest.raises(ValueError, match=r"temperatures must be \[t\], got shape \(\)"):
        sweeps.phase_sweep(line_of([0, 1]), STILL, jnp.asarray(1.0), num_steps=0, threshold=1.0)
