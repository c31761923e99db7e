"""Kinetic energies of beliefs and frames: their textbook forms, invariances, and where nothing
moves.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import inertia
from vfejax.agents.mass import mean_mass
from vfejax.agents.population import PopulationCoordinates, constrain, unconstrain
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.coordinates import constrain as gaussian_of
from vfejax.geometry import groups, irreps

VECTOR = oracle.ROTATIONS["vector"]
NUM, POINTS = 3, 2
SUPPORTS = np.array([[1.0, 0.6], [0.5, 0.0], [0.8, 1.0]])
QUADRATURE = np.array([0.4, 1.7])


def triangular(rng, shape, scale=0.4):
    return np.tril(scale * rng.normal(size=(*shape, 3, 3)))


@pytest.fixture(scope="module")
def here():
    """A population of fields inside the principal ball, and a momentum."""
    rng = np.random.default_rng(8)
    population = oracle.random_population(rng, NUM, VECTOR, (POINTS,))
    coordinates = unconstrain(population._replace(phi=0.5 * population.phi))
    momentum = jax.tree.map(lambda x: rng.normal(size=x.shape), coordinates)
    return jax.tree.map(np.asarray, (coordinates, momentum))


OPTIONS = {"supports": SUPPORTS, "quadrature": QUADRATURE, "temperature": 2.0}
kinetic_fn = inertia.kinetic_energy(VECTOR, moment_of_inertia=7.0, **OPTIONS)
value_and_slopes = jax.jit(jax.value_and_grad(kinetic_fn, argnums=(0, 1)))


def test_covariance_energy_is_that_of_its_symmetric_momentum(rng):
    """``tr(Pi Sigma Pi Sigma) / 2`` with the momentum of the coordinates by the chain rule."""
    factor, pi = triangular(rng, (5,)), rng.normal(size=(5, 3, 3))
    pi = pi + np.swapaxes(pi, -1, -2)
    coordinates = GaussianCoordinates(np.zeros((5, 3)), factor)

    @jax.jit
    def both(coordinates):
        def covariance(factor):
            chol = gaussian_of(coordinates._replace(factor=factor)).chol
            return chol @ jnp.swapaxes(chol, -1, -2)

        sigma, pull_back = jax.vjp(covariance, coordinates.factor)
        return sigma, inertia.covariance_kinetic_energy(coordinates, pull_back(pi)[0])

    sigma, energy = both(coordinates)
    expected = 0.5 * np.einsum("nij,njk,nkl,nli->n", pi, sigma, pi, sigma)
    np.testing.assert_allclose(energy, expected, rtol=1e-12)


def test_covariance_energy_is_half_the_velocity_in_twice_the_fisher_metric(rng):
    """Legendre's transform: ``T = p . v / 2``, and ``|v|^2`` in the Fisher metric."""
    coordinates = GaussianCoordinates(np.zeros(3), triangular(rng, ()))
    momentum = triangular(rng, ())

    @jax.jit
    def check(momentum):
        energy, velocity = jax.value_and_grad(inertia.covariance_kinetic_energy, 1)(
            coordinates, momentum
        )
        chol = gaussian_of(coordinates).chol
        _, change = jax.jvp(
            lambda w: gaussian_of(coordinates._replace(factor=w)).chol,
            (coordinates.factor,),
            (velocity,),
        )
        return energy, velocity, chol, change

    energy, velocity, chol, change = map(np.asarray, check(momentum))
    body = np.linalg.solve(chol, change)
    sigma_change = chol @ (body + body.T) @ chol.T
    precision = np.linalg.inv(chol @ chol.T)
    squared = 0.5 * np.trace(precision @ sigma_change @ precision @ sigma_change)
    np.testing.assert_allclose([0.5 * np.sum(momentum * velocity), squared], energy, rtol=1e-12)


@pytest.mark.parametrize(
    "group",
    [
        irreps.so3((1,)),
        pytest.param(groups.general(irreps.so_generators(3)), marks=pytest.mark.slow),
    ],
    ids=["so3", "general"],
)
def test_frame_energy_is_that_of_the_body_velocity(group, rng):
    phi, momentum = rng.uniform(-1.5, 1.5, (4, 3)), rng.normal(size=(4, 3))

    @jax.jit
    def check(phi, momentum):
        def energy(momentum):
            return inertia.frame_kinetic_energy(phi, momentum, group, 3.0)

        velocity = jax.grad(lambda p: jnp.sum(energy(p)))(momentum)
        frame, turning = jax.jvp(
            lambda phi: group.exponential(phi, group.generators), (phi,), (velocity,)
        )
        return energy(momentum), jnp.swapaxes(frame, -1, -2) @ turning

    energy, body = map(np.asarray, check(phi, momentum))
    omega = np.stack([body[:, 2, 1], body[:, 0, 2], body[:, 1, 0]], axis=-1)
    np.testing.assert_allclose(energy, 0.5 * 3.0 * np.sum(omega**2, axis=-1), rtol=1e-11)


def test_frame_energy_of_integers_takes_a_moment_of_inertia_that_is_not_whole():
    turn = jnp.array([1, 0, 0])
    assert float(inertia.frame_kinetic_energy(turn, turn, VECTOR, 0.5)) == 1.0


def test_frame_energy_has_its_curvature_at_the_identity(rng):
    """The limit of ``phi = 0``, where the axis of a rotation is not defined."""
    momentum = rng.normal(size=3)
    hessian = jax.jit(
        jax.vmap(jax.hessian(lambda phi: inertia.frame_kinetic_energy(phi, momentum, VECTOR)))
    )
    at, near = hessian(np.stack([np.zeros(3), np.full(3, 1e-4)]))
    # |phi x p|^2 / 24, and a next order of phi^2.
    expected = (np.sum(momentum**2) * np.eye(3) - np.outer(momentum, momentum)) / 12
    np.testing.assert_allclose(at, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(near, expected, rtol=0, atol=1e-6)


def test_energy_of_a_field_is_the_sum_of_its_parts(here):
    """Momenta are densities times the measure: the energy divides once by it."""
    coordinates, momentum = here

    @jax.jit
    def parts(coordinates, momentum):
        return (
            mean_mass(constrain(coordinates), VECTOR, **OPTIONS),
            inertia.covariance_kinetic_energy(coordinates.belief, momentum.belief.factor),
            inertia.frame_kinetic_energy(coordinates.phi, momentum.phi, VECTOR, 7.0),
        )

    mass, of_covariances, of_frames = map(np.asarray, parts(coordinates, momentum))
    present = SUPPORTS > 0
    pi = momentum.belief.mean[present]
    expected = 0.5 * np.sum(pi * np.linalg.solve(mass[present], pi[..., None])[..., 0])
    measure = (SUPPORTS * QUADRATURE)[present]
    expected += np.sum((of_covariances + of_frames)[present] / measure)
    energy, _ = value_and_slopes(coordinates, momentum)
    np.testing.assert_allclose(energy, expected, rtol=1e-12)


def test_nothing_moves_without_support_and_priors_feel_no_force(here):
    _, (force, velocity) = value_and_slopes(*here)
    still = jax.tree.map(lambda x: np.asarray(x)[1, 1], (velocity.belief, velocity.phi))
    chex.assert_trees_all_equal(still, jax.tree.map(np.zeros_like, still))
    of_priors = force.prior, velocity.prior
    chex.assert_trees_all_equal(of_priors, jax.tree.map(np.zeros_like, of_priors))
    chex.assert_tree_all_finite((force, velocity))
    assert np.all(np.asarray(velocity.phi)[SUPPORTS > 0] != 0)


def test_slopes_are_those_of_the_energy(here):
    """Along a random direction, by central differences."""
    coordinates, momentum = here
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), coordinates)
    # Priors are held, so their slope is not that of the energy.
    direction = direction._replace(prior=jax.tree.map(np.zeros_like, direction.prior))
    _, (force, _) = value_and_slopes(coordinates, momentum)
    step = 1e-5
    above, below = (
        value_and_slopes(
            jax.tree.map(lambda x, d, s=s: x + s * d, coordinates, direction), momentum
        )
        for s in (step, -step)
    )
    difference = (above[0] - below[0]) / (2 * step)
    slope = sum(
        np.sum(f * d) for f, d in zip(*map(jax.tree.leaves, (force, direction)), strict=True)
    )
    # Third derivatives times step^2, and rounding over the step.
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_energy_of_the_means_does_not_depend_on_the_gauge(rng):
    """Means, covariances and frames turned by one matrix, momenta by its inverse transpose: also
    for a matrix that is not orthogonal.
    """
    population = oracle.random_population(rng, 4, oracle.GENERAL)
    momentum = rng.normal(size=(4, 2))
    phi = np.zeros((4, 3)) + np.array([0.3, -0.2, 0.5])
    turn = np.asarray(jax.jit(groups.exponential)(phi[0], oracle.GENERAL))
    spread = np.linalg.cholesky
    chol = np.tril(population.belief.chol)
    flat = population._replace(phi=np.zeros((4, 3)))
    turned = flat._replace(
        belief=flat.belief._replace(
            mean=flat.belief.mean @ turn.T,
            chol=spread(turn @ chol @ np.swapaxes(chol, -1, -2) @ turn.T),
        ),
        phi=phi,
    )

    @jax.jit
    def energy(population, momentum):
        mass = mean_mass(population, oracle.GENERAL, weights=(0.0, 1.0, 0.0, 0.0), temperature=3.0)
        return inertia.mean_kinetic_energy(mass, momentum)

    expected = energy(flat, momentum)
    np.testing.assert_allclose(
        energy(turned, np.linalg.solve(turn.T, momentum.T).T), expected, rtol=1e-10
    )


@pytest.mark.slow
def test_single_precision_is_double_precision_rounded(here):
    rounded = jax.tree.map(lambda x: x.astype(np.float32), here)
    options = {name: np.asarray(x, np.float32) for name, x in OPTIONS.items()}
    low = jax.jit(inertia.kinetic_energy(VECTOR, moment_of_inertia=7.0, **options))
    high, _ = value_and_slopes(*here)
    found = low(*rounded)
    chex.assert_type(found, np.float32)
    np.testing.assert_allclose(found, high, rtol=1e-5)


def test_held_groups_feel_no_force():
    one = GaussianCoordinates(np.ones((1, 1)), np.ones((1, 1, 1)))
    here = PopulationCoordinates(one, one, np.ones((1, 1)))
    squares = partial(jax.tree.reduce, jnp.add)

    def energy(x):
        return jnp.sum(squares(jax.tree.map(lambda y: jnp.sum(y**2), x)))

    slope = jax.jit(jax.grad(lambda x: energy(inertia.hold(x, "prior", "phi"))))(here)
    assert slope.belief.mean == 2.0
    chex.assert_trees_all_equal(
        (slope.prior, slope.phi), jax.tree.map(np.zeros_like, (here.prior, here.phi))
    )
