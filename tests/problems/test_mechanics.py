"""Mechanical systems: their data obey their Hamiltonian, and what mechanics conserves is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics.phase_space import energy, vector_field
from vfejax.problems import mechanics
from vfejax.problems.mechanics import SYSTEMS, sample

pytestmark = pytest.mark.usefixtures("library_promotion")


@pytest.mark.parametrize("name", SYSTEMS)
def test_samples_of_every_system_obey_its_hamiltonian(name):
    system = SYSTEMS[name]._replace(num_times=3, duration=0.2, noise=0.0)

    @jax.jit
    def check():
        data = sample(system, np.random.default_rng(0), 2, num_steps=20)
        energies = jax.vmap(lambda z: energy(system.hamiltonian, z))(data.states)
        derivatives = jax.vmap(lambda z: vector_field(system.hamiltonian, z))(data.states)
        return data, energies.reshape(2, 3), derivatives

    data, energies, derivatives = check()
    assert data.states.shape == (6, system.dim)
    np.testing.assert_allclose(data.derivatives, derivatives, rtol=1e-14)
    # Runge-Kutta's own error at dt = 0.005.
    np.testing.assert_allclose(energies - energies[:, :1], 0, rtol=0, atol=1e-8)
    # The middle state moves as the others around it: central differences over 0.1.
    paths = data.states.reshape(2, 3, -1)
    slopes = (paths[:, 2] - paths[:, 0]) / 0.2
    middle = data.derivatives.reshape(2, 3, -1)[:, 1]
    np.testing.assert_allclose(slopes, middle, rtol=0, atol=0.02 * max(1, np.abs(middle).max()))


@pytest.mark.parametrize(
    ("changes", "counts"),
    [({}, (0, 50)), ({}, (2, 0)), ({"num_times": 1}, (2, 50))],
)
def test_data_of_no_path_step_or_time_are_refused(changes, counts):
    system = SYSTEMS["pendulum"]._replace(**changes)
    with pytest.raises(ValueError, match="num_paths and num_steps must be at least 1"):
        sample(system, np.random.default_rng(0), counts[0], num_steps=counts[1])


def test_noise_is_added_to_states_and_not_to_derivatives():
    system = SYSTEMS["mass-spring"]
    clean = system._replace(noise=0.0)

    @jax.jit
    def both():
        return [sample(s, np.random.default_rng(1), 20, num_steps=5) for s in (clean, system)]

    exact, noisy = both()
    np.testing.assert_array_equal(exact.derivatives, noisy.derivatives)
    # 1200 draws: the deviation of their spread is 2 %.
    assert 0.092 < np.std(noisy.states - exact.states) < 0.108


def test_the_double_pendulum_has_the_inverse_of_its_mass_matrix():
    q, p = np.array([0.4, -0.9]), np.array([0.7, -0.2])
    cosine = np.cos(q[0] - q[1])
    expected = 0.5 * p @ np.linalg.solve([[2.0, cosine], [cosine, 1.0]], p)
    kinetic = SYSTEMS["double pendulum"].hamiltonian.kinetic_fn(jnp.asarray(q), jnp.asarray(p))
    np.testing.assert_allclose(kinetic, expected, rtol=1e-14)


@pytest.mark.parametrize("num_bodies", [2, 3])
def test_bodies_circle_about_their_centre_with_the_speed_that_keeps_them_there(num_bodies):
    draw = mechanics._orbits(num_bodies, 0.8, 0.8, lambda *_: np.ones((1, 1, 1)))
    z = draw(np.random.default_rng(2), 4)
    places, momenta = z.reshape(4, 2, num_bodies, 2).transpose(1, 0, 2, 3)
    for total in (places.sum(axis=1), momenta.sum(axis=1)):
        np.testing.assert_allclose(total, 0, rtol=0, atol=1e-14)
    hamiltonian = SYSTEMS["two-body"].hamiltonian
    pull = jax.jit(jax.vmap(lambda s: vector_field(hamiltonian, s)))(z)[:, 2 * num_bodies :]
    centripetal = -places * np.sum(momenta**2, axis=-1, keepdims=True) / 0.8**2
    np.testing.assert_allclose(pull.reshape(places.shape), centripetal, rtol=1e-12, atol=1e-14)
