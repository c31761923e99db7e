"""Errors that name the argument, and the guard of second derivatives."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.quantum import channels, density, hamiltonian
from vfejax.quantum._arguments import check_square, first_derivatives_only
from vfejax.quantum.evolution import evolve, evolve_stack, evolve_state
from vfejax.quantum.exponential import evolve_taylor, unitary

EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_square("state", np.zeros((0, 0))), r"state must be square.*\(0, 0\)"),
        (lambda: density.purity([[1.0]]), "rho must be an array, got list"),
        (lambda: density.purity(1.0), "rho must be an array, got float"),
        (lambda: density.purity(np.eye(2, dtype=int)), "rho must be of a real or complex"),
        (lambda: density.pure_state([1.0, 0.0]), "psi must be an array, got list"),
        (lambda: density.pure_state(np.array([1, 0])), "psi must be of a real or complex"),
        (lambda: density.givens_state(0, np.zeros(2, complex)), "angles must be real"),
        (lambda: density.givens_state(0, [0.1, 0.2]), "angles must be an array"),
        (lambda: density.free_energy(EYE, np.zeros(2, complex)), "energies must be real"),
        (lambda: density.helmholtz(EYE, np.zeros(2), np.ones(3)), "temperature must be"),
        (lambda: density.mixture(np.ones(1, complex), EYE[None]), "weights must be real"),
        (lambda: channels.dephase(EYE, 1j), "strength must be real"),
        (lambda: channels.mix(EYE, [[1.0]], 0.5), "other must be an array, got list"),
        (
            lambda: channels.apply_kraus(EYE[None].astype(complex), EYE),
            "operators must have the dtype",
        ),
        (lambda: hamiltonian.symmetric(np.ones(3, complex)), "parameters must be real"),
        (lambda: hamiltonian.symmetric(np.ones(3, int)), "parameters must be of a real"),
        (lambda: hamiltonian.hermitian([1.0]), "parameters must be an array, got list"),
        (lambda: hamiltonian.position_scaled(EYE, 1j), "scales must be real"),
        (lambda: hamiltonian.rabi(np.ones(2), 1.0), "detuning must have the shape"),
        (lambda: hamiltonian.rabi_population(np.ones(2), np.ones(3), 1.0), "must broadcast"),
        (lambda: evolve(EYE, [[1.0]], 0.1), "hamiltonian must be an array, got list"),
        (lambda: evolve(EYE.tolist(), EYE, 0.1), "rho must be an array, got list"),
        (lambda: evolve_state(np.array([1, 0]), EYE, 0.1), "psi must be of a real or complex"),
        (lambda: unitary(EYE, True), "dt must be real, got bool"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)


def test_integers_count_as_numbers():
    @jax.jit
    def results():
        return (
            density.helmholtz(EYE / 2, np.array([0, 1]), 0),
            channels.dephase(np.full((2, 2), 0.5), 1)[0, 1],
            hamiltonian.rabi(2, 0)[0, 1],
            unitary(EYE, 0)[0, 0],
        )

    assert results() == (0.5, 0, 1, 1)


SECOND = {
    "evolve": lambda h: evolve(EYE / 2, h, 0.1),
    "evolve_taylor": lambda h: evolve_taylor(EYE / 2, h, 0.1),
    "evolve_state": lambda h: evolve_state(EYE[0], h, 0.1),
    "evolve_stack": lambda h: evolve_stack(EYE / 2, h[None], 0.1),
    "unitary": lambda h: unitary(h, 0.1),
    "von_neumann_entropy": density.von_neumann_entropy,
}


@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives_say_what_is_missing(name):
    """Forward and reverse over reverse; the first derivative passes."""

    def loss(h):
        return jnp.sum(jnp.abs(SECOND[name](h)) ** 2)

    first = jax.grad(loss)
    jax.eval_shape(first, EYE)
    for second in (jax.jacfwd(first), jax.jacrev(first)):
        with pytest.raises(NotImplementedError, match=f"{name} has first derivatives only"):
            jax.eval_shape(second, EYE)


def test_the_guard_is_the_identity_elsewhere():
    tree = {"a": np.ones(2), "n": np.array(3)}
    kept = jax.jit(jax.vmap(lambda t: first_derivatives_only(t, "no")))(
        jax.tree.map(lambda x: x[None], tree)
    )
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], kept), tree)
