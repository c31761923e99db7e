"""Hamiltonians of vectors: fields, and flows that are symplectic whether or not H separates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics.fixed_points import fixed_point
from vfejax.dynamics.phase_space import (
    Hamiltonian,
    energy,
    flow,
    halves,
    joined,
    path,
    vector_field,
)

pytestmark = pytest.mark.usefixtures("library_promotion")

Z = np.array([0.3, -0.8, 1.1, 0.5])
OMEGA = np.kron([[0.0, 1.0], [-1.0, 0.0]], np.eye(2))
HAMILTONIANS = {
    "separable": Hamiltonian(
        lambda q: jnp.sum(jnp.cos(q)) + q[0] ** 2, lambda q, p: jnp.sum(jnp.cosh(p)), True
    ),
    "general": Hamiltonian(
        lambda q: jnp.sum(q**2), lambda q, p: 0.5 * jnp.sum(p**2) / (1.0 + q[0] ** 2) + p[0] * p[1]
    ),
}


@pytest.mark.parametrize("name", HAMILTONIANS)
def test_flows_are_symplectic_reversible_of_second_order_and_keep_the_energy(name):
    hamiltonian = HAMILTONIANS[name]

    def step(z, dt):
        scheme = flow(hamiltonian, dt, solver=fixed_point(1e-14))
        return joined(scheme.step(scheme.init(z))[0])

    def walk(dt, num):
        scheme = flow(hamiltonian, dt, solver=fixed_point(1e-14))
        return path(scheme, scheme.init(jnp.asarray(Z)), 5, num)

    @jax.jit
    def check(z):
        back = step(step(z, 0.1), -0.1)
        walks = walk(0.1, 4), walk(0.05, 8), walk(0.0125, 32)
        energies = jax.vmap(lambda w: energy(hamiltonian, w))(walks[0])
        slope = jax.grad(lambda z: energy(hamiltonian, z))(z)
        return jax.jacfwd(step)(z, 0.1), back, walks, energies, vector_field(hamiltonian, z), slope

    jacobian, back, walks, energies, velocity, slope = jax.device_get(check(Z))
    # The solver's tolerance, or rounding.
    np.testing.assert_allclose(jacobian.T @ OMEGA @ jacobian, OMEGA, rtol=0, atol=1e-12)
    np.testing.assert_allclose(back, Z, rtol=0, atol=1e-12)
    # Against steps an eighth as long, whose own error shifts the ratio by less than 2 %.
    errors = [np.abs(w - walks[2]).max() for w in walks[:2]]
    assert 1.9 < np.log2(errors[0] / errors[1]) < 2.2
    np.testing.assert_allclose(walks[0][0], Z)
    assert np.ptp(energies) < 0.02 * abs(energies[0])
    np.testing.assert_allclose(velocity, OMEGA @ slope, rtol=1e-14)


def test_a_state_of_integers_moves():
    oscillator = Hamiltonian(
        lambda q: jnp.sum(q**2), lambda q, p: jnp.sum(p**2) / 2, separable=True
    )
    assert vector_field(oscillator, jnp.array([1, 3])).tolist() == [3.0, -2.0]


def test_a_state_of_odd_length_is_refused():
    with pytest.raises(ValueError, match=r"z must hold .* even number in all, got shape \(3,\)"):
        halves(jnp.zeros(3))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        halves(jnp.zeros(()))
