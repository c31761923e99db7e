"""A population with the inertia of its beliefs: it conserves its energy, moves along geodesics,
stays in its chart, leaves its priors alone, and heats up to the temperature it is given.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle
from scipy.linalg import expm, solve_discrete_lyapunov

from vfejax.agents.free_energy import free_energy, free_energy_terms
from vfejax.agents.inertia import covariance_kinetic_energy, kinetic_energy
from vfejax.agents.mass import mean_mass
from vfejax.agents.population import Population, constrain, unconstrain
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.coordinates import constrain as gaussian_of
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics import langevin
from vfejax.dynamics.hamiltonian import HamiltonianState
from vfejax.dynamics.implicit import generalized_leapfrog, implicit_midpoint, no_potential
from vfejax.dynamics.rollout import rollout
from vfejax.geometry import groups
from vfejax.problems.inertial_flow import inertial_flow, rechart

VECTOR = oracle.ROTATIONS["vector"]
TEMPERATURE = 20.0


def energy_fn(coordinates):
    terms = free_energy_terms(constrain(coordinates), VECTOR, temperature=TEMPERATURE)
    return terms.total, terms


# Without a chart to return to, which would be half of the program.
PLAIN = VECTOR._replace(retract=groups.add)
kinetic_fn = kinetic_energy(VECTOR, temperature=TEMPERATURE, moment_of_inertia=5.0)


@pytest.fixture(scope="module")
def start():
    population = oracle.random_population(np.random.default_rng(1), 3, VECTOR)
    return unconstrain(population._replace(phi=0.3 * population.phi))


def flow_of(step_size, friction):
    """By the midpoint rule, which has fewer gradients to compile."""
    return inertial_flow(
        energy_fn, kinetic_fn, PLAIN, step_size, friction, scheme=implicit_midpoint, has_aux=True
    )


# One program for every step size and friction.
begin = jax.jit(flow_of(0.1, 0.0).init)
run = jax.jit(lambda state, *options: rollout(flow_of(*options), state, 64))


@pytest.mark.slow
def test_energy_is_conserved_to_second_order_and_priors_stay(start):
    """Beliefs and frames move, under masses that depend on them."""
    (_, coarse), (last, fine) = (run(begin(start), dt, 0.0) for dt in (0.02, 0.01))
    first = float(energy_fn(start)[0])
    assert np.all(coarse.converged)
    drifts = [
        np.abs(np.asarray(info.total[:n]) - first).max() for info, n in ((coarse, 32), (fine, 64))
    ]
    assert fine.kinetic.max() > 0.1 * first
    assert 3.5 < drifts[0] / drifts[1] < 4.5
    assert drifts[1] < 1e-3 * fine.kinetic.max()
    chex.assert_trees_all_equal(last.position.prior, start.prior)
    np.testing.assert_array_equal(fine.aux.total, fine.potential)
    still = last.momentum.prior, last.force.prior
    chex.assert_trees_all_equal(still, jax.tree.map(np.zeros_like, still))


@pytest.mark.slow
def test_friction_takes_the_energy_down(start):
    _, info = run(begin(start), 0.02, 2.0)
    assert np.all(np.diff(info.total) < 0)
    assert np.all(info.converged)


@pytest.mark.slow
def test_a_step_that_is_too_long_says_so(start):
    _, info = run(begin(start), 2.0, 0.0)
    assert not np.all(info.converged)


@pytest.mark.slow
def test_energy_is_conserved_across_the_edge_of_the_chart(start):
    """A frame that turns through pi, fast, and comes back on the other side of the ball."""
    flow = inertial_flow(energy_fn, kinetic_fn, VECTOR, 0.005, has_aux=True)
    turned = start._replace(phi=np.array([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [0.1, 0.2, 0.3]]))
    still = jax.tree.map(np.zeros_like, turned)
    push = still._replace(phi=np.array([[0.0, 2.0, 40.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))

    @jax.jit
    def angles(position, momentum):
        def step(state, _):
            state, info = flow.step(state)
            return state, (info.total, state.position.phi[0])

        state = flow.init(position, momentum)
        return jax.lax.scan(step, state, length=40)[1]

    total, phi = map(np.asarray, angles(turned, push))
    assert np.all(np.linalg.norm(phi, axis=-1) <= np.pi)
    assert phi[0, 2] > 0 > phi[-1, 2]
    first = total[0]
    assert np.abs(total - first).max() < 1e-3 * first


def test_frames_return_to_their_chart_with_their_momenta(start, rng):
    """The same rotation, the same velocity of it, and nothing at all inside the ball."""
    phi = np.array([[0.0, 0.0, 3.5], [2.0, -2.0, 2.0], [0.1, 0.2, 0.3]])
    momentum = rng.normal(size=(3, 3))

    @jax.jit
    def both(phi, momentum):
        def turning(phi, momentum):
            return jax.jvp(
                lambda x: VECTOR.exponential(x, VECTOR.generators),
                (phi,),
                (VECTOR.natural_direction(phi, momentum),),
            )

        moved, (pushed,) = rechart(phi, momentum[None], VECTOR)
        return (moved, pushed), turning(phi, momentum), turning(moved, pushed)

    (moved, pushed), before, after = both(phi, momentum)
    # An exponential and its derivative at angles up to 3.5.
    chex.assert_trees_all_close(after, before, rtol=0, atol=1e-12)
    assert np.all(np.linalg.norm(moved, axis=-1) <= np.pi)
    chex.assert_trees_all_equal((moved[2], pushed[2]), (phi[2], momentum[2]))


def test_free_covariances_move_along_geodesics(rng):
    """``Sigma(t) = exp(t Sigma_0 Pi_0) Sigma_0``, to second order of the step."""
    factor = np.tril(0.4 * rng.normal(size=(2, 2)))
    pi = np.array([[0.8, -0.3], [-0.3, 0.5]])
    mean, time = np.zeros(2), 1.0

    @jax.jit
    def end(factor, num_steps):
        def covariance(factor):
            chol = gaussian_of(GaussianCoordinates(mean, factor)).chol
            return chol @ chol.T

        sigma, pull_back = jax.vjp(covariance, factor)
        flow = generalized_leapfrog(
            no_potential,
            lambda w, p: covariance_kinetic_energy(GaussianCoordinates(mean, w), p),
            time / num_steps.astype(factor.dtype),
        )
        state = flow.init(factor, pull_back(pi)[0])
        state = jax.lax.fori_loop(0, num_steps, lambda _, s: flow.step(s)[0], state)
        return sigma, covariance(state.position)

    errors = []
    for num in (20, 40):
        sigma, found = map(np.asarray, end(factor, np.asarray(num)))
        errors.append(np.abs(found - expm(time * sigma @ pi) @ sigma).max())
    assert errors[1] < 1e-3
    assert 3.7 < errors[0] / errors[1] < 4.3


@pytest.mark.slow
def test_langevin_gives_an_agents_mean_its_exact_stationary_variance():
    """BAOAB on the free energy of two agents as a function of their means, with the masses of their
    beliefs: the stationary covariance is ``T`` times the inverse Hessian, at a long step too.
    """
    heat, dt, friction = 0.7, 0.6, 1.3
    belief = Gaussian(np.array([[0.5, 1.0], [0.0, -1.0]]), np.stack([np.eye(2), 0.5 * np.eye(2)]))
    prior = Gaussian(np.zeros((2, 2)), np.stack([np.eye(2), 2.0 * np.eye(2)]))
    population = Population(belief, prior, np.zeros((2, 1)))
    quarter = np.array([[[0.0, -1.0], [1.0, 0.0]]])

    def energy_of(mean):
        moved = population._replace(belief=belief._replace(mean=mean))
        return free_energy(moved, quarter, temperature=1.0)

    # Priors of precision 1 and 1/4; each agent attends to the other alone, precisions 1 and 4.
    mass = np.array([[6.0, 6.0], [5.25, 5.25]])
    hessian = np.kron([[6.0, -5.0], [-5.0, 5.25]], np.eye(2))

    @jax.jit
    def parts():
        flow = langevin.underdamped(energy_of, dt, heat, mass, friction)

        def step(y, key):
            x, p = y
            state, _ = flow.step(HamiltonianState(x, p, -jax.grad(energy_of)(x)), key)
            return jnp.stack([state.position, state.momentum])

        still = jnp.zeros((2, 2, 2))
        keys = jax.random.split(jax.random.key(0), 20_000)
        draws = jax.vmap(lambda key: step(still, key))(keys)
        found = jnp.diagonal(mean_mass(population, quarter), axis1=-2, axis2=-1)
        return jax.jacfwd(step)(still, keys[0]), draws, found

    transition, draws, found = map(np.asarray, parts())
    np.testing.assert_allclose(found, mass, rtol=1e-13)
    noise = np.cov(draws.reshape(len(draws), 8).T)
    covariance = solve_discrete_lyapunov(transition.reshape(8, 8), noise)[:4, :4]
    expected = heat * np.linalg.inv(hessian)
    # The covariance of the noise is estimated from 20,000 draws: 1 % of its largest entry.
    np.testing.assert_allclose(covariance, expected, rtol=0, atol=0.04 * expected.max())
