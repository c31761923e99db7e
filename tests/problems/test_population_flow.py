"""The flow of a population: it descends, keeps its trust region and its chart, and freezes what has
no rate.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents.free_energy import free_energy, free_energy_terms
from vfejax.agents.metric import natural_direction
from vfejax.agents.population import PopulationCoordinates, constrain, unconstrain
from vfejax.beliefs.coordinates import fisher_length
from vfejax.dynamics.rollout import rollout
from vfejax.problems.population_flow import population_flow

VECTOR = oracle.ROTATIONS["vector"]


@jax.jit
def energy_fn(coordinates):
    return free_energy(constrain(coordinates), VECTOR, temperature=10.0)


@jax.jit
def direction_at(coordinates):
    return natural_direction(coordinates, jax.grad(energy_fn)(coordinates), VECTOR)


@pytest.fixture(scope="module")
def start():
    population = oracle.random_population(np.random.default_rng(1), 4, VECTOR)
    # Frames well inside the principal ball, so that no retraction turns them by 2 pi.
    return unconstrain(population._replace(phi=0.5 * population.phi))


@jax.jit
def steps(start, step_size, trust_radius, rates):
    flow = population_flow(energy_fn, VECTOR, step_size, trust_radius, rates)
    first, _ = flow.step(flow.init(start))
    last, info = rollout(flow, flow.init(start), 100)
    return first.position, last.position, info.energy


MOVING = PopulationCoordinates(1.0, 0.0, 1.0)


def test_energy_falls_and_priors_stay(start):
    _, last, energies = steps(start, 0.02, 0.3, MOVING)
    assert energies[-1] < 0.5 * energy_fn(start)
    assert np.all(np.diff(energies) < 0)
    chex.assert_trees_all_equal(last.prior, start.prior)


def test_a_short_step_is_the_natural_gradient(start):
    first, *_ = steps(start, 1e-5, 0.3, MOVING)
    expected = jax.tree.map(lambda x, d: x - 1e-5 * d, start, direction_at(start))
    chex.assert_trees_all_close(
        first._replace(prior=None), expected._replace(prior=None), atol=1e-14
    )


def test_a_long_step_ends_at_the_trust_radius(start):
    first, *_ = steps(start, 10.0, 0.05, MOVING)
    change = jax.tree.map(jnp.subtract, first, start)
    lengths = jnp.append(
        fisher_length(start.belief, change.belief), jnp.linalg.norm(change.phi, axis=-1)
    )
    # The scaled step is what is shortened, agent by agent.
    chex.assert_trees_all_close(lengths, jnp.full(8, 0.05), rtol=1e-12)


@pytest.mark.parametrize("frozen", PopulationCoordinates._fields)
def test_a_rate_of_zero_freezes_its_group(frozen, start):
    rates = PopulationCoordinates(1.0, 1.0, 1.0)._replace(**{frozen: 0.0})
    _, last, _ = steps(start, 0.02, 0.3, rates)
    for name in PopulationCoordinates._fields:
        moved = jax.tree.map(
            lambda x, y: bool(jnp.any(x != y)), getattr(last, name), getattr(start, name)
        )
        assert jax.tree.reduce(bool.__or__, moved) == (name != frozen)


def test_frames_stay_in_the_chart(start):
    turned = start._replace(phi=jnp.asarray([[0.0, 0.0, 3.1]] * 2 + [[0.0, 3.1, 0.0]] * 2))
    _, last, energies = steps(turned, 0.02, 0.3, MOVING)
    assert np.all(np.linalg.norm(last.phi, axis=-1) <= np.pi * (1 + 1e-15))
    assert energies[-1] < energy_fn(turned)


def test_terms_come_back_besides_the_energy(start):
    def with_terms(coordinates):
        terms = free_energy_terms(constrain(coordinates), VECTOR, temperature=10.0)
        return terms.total, terms

    flow = population_flow(with_terms, VECTOR, has_aux=True)
    _, info = jax.jit(lambda x: flow.step(flow.init(x)))(start)
    np.testing.assert_array_equal(info.energy, info.aux.total)


def _value_and_slope(function):
    return lambda x: jax.jvp(function, (x,), (1.0,))


@pytest.mark.parametrize(
    "value_and_slope",
    [_value_and_slope, pytest.param(jax.value_and_grad, marks=pytest.mark.slow)],
    ids=["forwards", "backwards"],
)
def test_the_end_of_a_flow_has_an_exact_slope_in_the_temperature(value_and_slope, start):
    """Frozen priors take steps of length 0, where a bare root has no derivative."""

    @jax.jit
    @value_and_slope
    def end(temperature):
        def energy(coordinates):
            return free_energy(constrain(coordinates), VECTOR, temperature=temperature)

        flow = population_flow(energy, VECTOR)
        return rollout(flow, flow.init(start), 2)[1].energy[-1]

    (_, slope), (above, _), (below, _) = (end(10.0 + step) for step in (0.0, 1e-3, -1e-3))
    # Central difference: third derivatives times 1e-6, and rounding over 1e-3.
    difference = (above - below) / 2e-3
    chex.assert_trees_all_close(slope, difference, rtol=1e-5)
