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
    terms = free_energy_terms(constrain(coordinates), VECTOR, temperature=10.0)
    return terms.total, terms


@pytest.fixture(scope="module")
def start():
    population = oracle.random_population(np.random.default_rng(1), 4, VECTOR)
    # Frames well inside the principal ball, so that no retraction turns them by 2 pi.
    return unconstrain(population._replace(phi=0.5 * population.phi))


def flow_of(step_size, trust_radius, rates):
    return population_flow(energy_fn, VECTOR, step_size, trust_radius, rates, has_aux=True)


# The state does not depend on the parameters; a step has them as arguments, so that one program
# serves all tests.
begin = jax.jit(population_flow(energy_fn, VECTOR, has_aux=True).init)
one_step = jax.jit(lambda state, *parameters: flow_of(*parameters).step(state))


def steps(start, *parameters, num=100):
    """The position after so many steps, and the energy after each."""
    state, energies = begin(start), []
    for _ in range(num):
        state, info = one_step(state, *parameters)
        energies.append(float(info.energy))
    return state.position, np.array(energies)


MOVING = PopulationCoordinates(1.0, 0.0, 1.0)


def test_energy_falls_and_priors_stay(start):
    last, energies = steps(start, 0.02, 0.3, MOVING)
    assert energies[-1] < 0.5 * energy_fn(start)[0]
    assert np.all(np.diff(energies) < 0)
    chex.assert_trees_all_equal(last.prior, start.prior)


def test_a_short_step_is_the_natural_gradient(start):
    first, _ = steps(start, 1e-5, 0.3, MOVING, num=1)
    direction = jax.jit(lambda x, g: natural_direction(x, g, VECTOR))(start, begin(start).gradient)
    expected = jax.tree.map(lambda x, d: np.asarray(x) - 1e-5 * np.asarray(d), start, direction)
    chex.assert_trees_all_close(
        first._replace(prior=None), expected._replace(prior=None), rtol=0, atol=1e-14
    )


def test_a_long_step_ends_at_the_trust_radius(start):
    first, _ = steps(start, 10.0, 0.05, MOVING, num=1)
    change = jax.tree.map(np.subtract, first, start)
    lengths = np.append(
        jax.jit(fisher_length)(start.belief, change.belief), np.linalg.norm(change.phi, axis=-1)
    )
    # The scaled step is what is shortened, agent by agent.
    chex.assert_trees_all_close(lengths, np.full(8, 0.05), rtol=1e-12)


@pytest.mark.parametrize("frozen", PopulationCoordinates._fields)
def test_a_rate_of_zero_freezes_its_group(frozen, start):
    rates = PopulationCoordinates(1.0, 1.0, 1.0)._replace(**{frozen: 0.0})
    last, _ = steps(start, 0.02, 0.3, rates, num=5)
    for name in PopulationCoordinates._fields:
        moved = jax.tree.map(
            lambda x, y: bool(np.any(x != y)), getattr(last, name), getattr(start, name)
        )
        assert jax.tree.reduce(bool.__or__, moved) == (name != frozen)


def test_frames_stay_in_the_chart(start):
    turned = start._replace(phi=np.array([[0.0, 0.0, 3.1]] * 2 + [[0.0, 3.1, 0.0]] * 2))
    last, energies = steps(turned, 0.02, 0.3, MOVING)
    assert np.all(np.linalg.norm(last.phi, axis=-1) <= np.pi * (1 + 1e-15))
    assert energies[-1] < energy_fn(turned)[0]


def test_terms_come_back_besides_the_energy(start):
    state, info = one_step(begin(start), 0.02, 0.3, MOVING)
    np.testing.assert_array_equal(info.energy, info.aux.total)
    expected = energy_fn(state.position)[1]
    # The same sums in another program.
    chex.assert_trees_all_close(info.aux, expected, rtol=1e-13)


def _value_and_slope(function):
    return lambda x: jax.jvp(function, (x,), (1.0,))


def free_energy_at(coordinates, temperature):
    return free_energy(constrain(coordinates), VECTOR, temperature=temperature)


def spring_energy(coordinates, temperature):
    """An energy of one's own that compiles quickly; it leaves the priors alone."""
    squares = jax.tree.map(
        lambda x: jnp.sum(jnp.tanh(x) ** 2), (coordinates.belief, coordinates.phi)
    )
    return 0.05 * temperature * jax.tree.reduce(jnp.add, squares)


@pytest.mark.parametrize(
    ("value_and_slope", "energy_at"),
    [
        pytest.param(_value_and_slope, spring_energy, id="forwards"),
        pytest.param(_value_and_slope, free_energy_at, id="forwards F", marks=pytest.mark.slow),
        pytest.param(jax.value_and_grad, free_energy_at, id="backwards F", marks=pytest.mark.slow),
    ],
)
def test_the_end_of_a_flow_has_an_exact_slope_in_the_temperature(value_and_slope, energy_at, start):
    """Frozen priors take steps of length 0, where a bare root has no derivative."""

    @jax.jit
    @value_and_slope
    def end(temperature):
        flow = population_flow(lambda x: energy_at(x, temperature), VECTOR)
        return rollout(flow, flow.init(start), 2)[1].energy[-1]

    (_, slope), (above, _), (below, _) = (end(10.0 + step) for step in (0.0, 1e-3, -1e-3))
    # Central difference: third derivatives times 1e-6, and rounding over 1e-3.
    difference = (above - below) / 2e-3
    chex.assert_trees_all_close(slope, difference, rtol=1e-5)
