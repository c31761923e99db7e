"""Mechanical systems whose Hamiltonian is known: from a mass on a spring to three bodies.

Units are such that masses, lengths and the constant of gravitation are 1.

Source: all of :data:`SYSTEMS` but the double pendulum follow Greydanus, Dzamba and Yosinski,
Hamiltonian neural networks (2019), in energies, spans of time, numbers of paths and noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.dynamics.phase_space import Hamiltonian, path, vector_field
from vfejax.dynamics.runge_kutta import runge_kutta4
from vfejax.types import Array

__all__ = ["SYSTEMS", "Samples", "System", "sample"]


class System(NamedTuple):
    """A Hamiltonian, and how its data are drawn.

    Attributes:
        hamiltonian: of states ``z = (q, p)``.
        dim: length of a state, twice the number of coordinates.
        initial_fn: ``(rng, num) -> [num, dim]``, first states.
        duration: of a path of the data.
        num_times: states per path, evenly spaced in time, the first at its start.
        num_paths: that are usual to learn from.
        noise: standard deviation of what is added to states, not to their derivatives.
    """

    hamiltonian: Hamiltonian
    dim: int
    initial_fn: Callable[[np.random.Generator, int], np.ndarray]
    duration: float
    num_times: int
    num_paths: int
    noise: float = 0.0


class Samples(NamedTuple):
    """States ``[m, d]`` and their derivatives in time ``[m, d]``."""

    states: Array
    derivatives: Array


def sample(
    system: System, rng: np.random.Generator, num_paths: int, *, num_steps: int = 50
) -> Samples:
    """Noisy states along paths, and the derivatives that the states have without the noise.

    Args:
        system: one of :data:`SYSTEMS`, or another.
        rng: a generator of NumPy.
        num_paths: how many.
        num_steps: Runge-Kutta steps from one state of a path to the next.

    Returns:
        ``num_paths * num_times`` samples, float64 where JAX has it.

    Raises:
        ValueError: for no path, no step, or fewer than two times.

    >>> sample(SYSTEMS["pendulum"], np.random.default_rng(0), 2).states.shape
    (90, 2)
    """
    if num_paths < 1 or num_steps < 1 or system.num_times < 2:
        raise ValueError(
            "num_paths and num_steps must be at least 1 and num_times at least 2, got "
            f"{num_paths}, {num_steps} and {system.num_times}"
        )
    first = jnp.asarray(system.initial_fn(rng, num_paths), float)
    dt = system.duration / (system.num_times - 1)

    def vector_field_fn(z: Array) -> Array:
        return vector_field(system.hamiltonian, z)

    scheme = runge_kutta4(vector_field_fn, dt / num_steps)

    def states_of(z: Array) -> Array:
        return path(scheme, z, system.num_times, num_steps, lambda z: z)

    states = jax.vmap(states_of)(first).reshape(-1, system.dim)
    noise = system.noise * rng.standard_normal(states.shape)
    derivatives = jax.vmap(vector_field_fn)(states)
    return Samples(states + jnp.asarray(noise, states.dtype), derivatives)


def _square(q: Array, p: Array) -> Array:
    return jnp.sum(p**2)


def _half_square(q: Array, p: Array) -> Array:
    return 0.5 * jnp.sum(p**2)


def _on_a_ring(least: float, most: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """States of one coordinate whose distance from 0 is uniform between two limits."""

    def draw(rng: np.random.Generator, num: int) -> np.ndarray:
        angle, radius = rng.uniform(0, 2 * np.pi, num), rng.uniform(least, most, num)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)

    return draw


def _at_rest(rng: np.random.Generator, num: int) -> np.ndarray:
    """Two angles within a radian of hanging down, at rest."""
    return np.concatenate([rng.uniform(-1, 1, (num, 2)), np.zeros((num, 2))], axis=-1)


def _double_pendulum_kinetic(q: Array, p: Array) -> Array:
    """Two unit masses on unit rods; angles from the vertical."""
    cosine = jnp.cos(q[0] - q[1])
    quadratic = p[0] ** 2 + 2.0 * p[1] ** 2 - 2.0 * p[0] * p[1] * cosine
    return quadratic / (2.0 * (2.0 - cosine**2))


def _gravitation(q: Array) -> Array:
    """``-sum_{i<j} 1 / |q_i - q_j|`` of bodies in a plane, ``q = (x_1, y_1, x_2, ...)``."""
    places = q.reshape(-1, 2)
    i, j = np.triu_indices(places.shape[0], 1)
    return -jnp.sum(1.0 / jnp.sqrt(jnp.sum((places[i] - places[j]) ** 2, axis=-1)))


def _alike(rng: np.random.Generator, num: int, num_bodies: int) -> np.ndarray:
    """Every speed off by about a twentieth."""
    return 1 + 0.05 * rng.standard_normal((num, num_bodies, 1))


def _scattered(rng: np.random.Generator, num: int, num_bodies: int) -> np.ndarray:
    """Every component of every velocity off by up to a fifth."""
    return rng.uniform(0.8, 1.2, (num, num_bodies, 2))


def _orbits(
    num_bodies: int,
    least: float,
    most: float,
    factor_fn: Callable[[np.random.Generator, int, int], np.ndarray],
) -> Callable[[np.random.Generator, int], np.ndarray]:
    """Bodies at equal angles on a circle about their centre, with the velocity that keeps them
    there times a random factor, and no total momentum.
    """
    inverse = sum(1 / (4 * np.sin(np.pi * k / num_bodies)) for k in range(1, num_bodies))

    def draw(rng: np.random.Generator, num: int) -> np.ndarray:
        radius = rng.uniform(least, most, (num, 1))
        turn = 2 * np.pi * np.arange(num_bodies) / num_bodies
        angle = rng.uniform(0, 2 * np.pi, (num, 1)) + turn
        place = radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        along = np.stack([-np.sin(angle), np.cos(angle)], axis=-1)
        velocity = np.sqrt(inverse / radius)[..., None] * along * factor_fn(rng, num, num_bodies)
        velocity -= velocity.mean(axis=1, keepdims=True)
        return np.concatenate([place, velocity], axis=1).reshape(num, -1)

    return draw


SYSTEMS = {
    "mass-spring": System(
        Hamiltonian(lambda q: jnp.sum(q**2), _square, separable=True),
        dim=2,
        initial_fn=_on_a_ring(0.1, 1.0),
        duration=3.0,
        num_times=30,
        num_paths=25,
        noise=0.1,
    ),
    "pendulum": System(
        Hamiltonian(lambda q: 3.0 * jnp.sum(1.0 - jnp.cos(q)), _square, separable=True),
        dim=2,
        initial_fn=_on_a_ring(1.3, 2.3),
        duration=3.0,
        num_times=45,
        num_paths=25,
        noise=0.1,
    ),
    "double pendulum": System(
        Hamiltonian(
            lambda q: 3.0 - 2.0 * jnp.cos(q[0]) - jnp.cos(q[1]),
            _double_pendulum_kinetic,
            separable=False,
        ),
        dim=4,
        initial_fn=_at_rest,
        duration=10.0,
        num_times=50,
        num_paths=200,
    ),
    "two-body": System(
        Hamiltonian(_gravitation, _half_square, separable=True),
        dim=8,
        initial_fn=_orbits(2, 0.5, 1.5, _alike),
        duration=20.0,
        num_times=50,
        num_paths=900,
    ),
    "three-body": System(
        Hamiltonian(_gravitation, _half_square, separable=True),
        dim=12,
        initial_fn=_orbits(3, 0.9, 1.2, _scattered),
        duration=5.0,
        num_times=20,
        num_paths=4000,
    ),
}
"""The systems by name."""
