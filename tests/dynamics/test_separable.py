"""Stoermer-Verlet of any kinetic energy: against that of quadratic ones, and by what it keeps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics.hamiltonian import velocity_verlet
from vfejax.dynamics.rollout import rollout
from vfejax.dynamics.separable import separable_verlet

pytestmark = pytest.mark.usefixtures("library_promotion")

FRICTION, DT = 0.3, 0.2


def _potential(x):
    return jnp.sum(1.0 - jnp.cos(x["a"])) + x["b"] ** 2, x["b"]


def _quadratic(p):
    return 0.5 * jnp.sum(p["a"] ** 2) + 0.25 * p["b"] ** 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_with_a_quadratic_kinetic_energy_it_is_velocity_verlet(dtype):
    start = {"a": jnp.asarray([0.4, -1.0], dtype), "b": jnp.asarray(0.3, dtype)}
    momentum = jax.tree.map(jnp.ones_like, start)
    mass = {"a": 1.0, "b": 2.0}

    @jax.jit
    def both():
        schemes = (
            separable_verlet(_potential, _quadratic, DT, FRICTION, has_aux=True),
            velocity_verlet(_potential, DT, mass, FRICTION, has_aux=True),
        )
        return [rollout(s, s.init(start, momentum), 20) for s in schemes]

    ours, reference = both()
    chex.assert_trees_all_equal_dtypes(ours[0].position, start)
    tolerance = 100 * float(jnp.finfo(dtype).eps)  # twenty steps of a few roundings
    chex.assert_trees_all_close(ours, reference, rtol=tolerance, atol=tolerance)


def test_with_any_kinetic_energy_the_symplectic_form_decays_by_the_friction_alone():
    def kinetic(p):
        return jnp.sum(jnp.sqrt(1.0 + p**2)) + 0.1 * p[0] * p[1] ** 3

    scheme = separable_verlet(lambda x: jnp.sum(jnp.cos(x)) * x[0], kinetic, DT, FRICTION)

    def step(z):
        state, _ = scheme.step(scheme.init(z[:2], z[2:]))
        return jnp.concatenate([state.position, state.momentum])

    jacobian = jax.jit(jax.jacfwd(step))(jnp.asarray([0.3, -0.8, 1.1, 0.5]))
    omega = np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(2))
    decayed = np.exp(-FRICTION * DT) * omega
    np.testing.assert_allclose(jacobian.T @ omega @ jacobian, decayed, rtol=0, atol=1e-14)
