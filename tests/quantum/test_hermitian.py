"""Helpers on Hermitian matrices: stacks and vmap of the eigensolver, sandwiches in each form."""

import jax
import numpy as np
import pytest
from helpers import quantum_samples as qs

from vfejax.quantum.hermitian import eigh, eigvalsh, sandwich


@pytest.mark.parametrize("complex_entries", [False, True])
def test_eigendecomposition_of_stacks(complex_entries, rng):
    stack = np.stack([qs.random_hermitian(rng, 4, complex_entries) for _ in range(6)]).reshape(
        2, 3, 4, 4
    )
    run = jax.jit(lambda x: ([eigh(x), jax.vmap(jax.vmap(eigh))(x)], jax.vmap(eigvalsh)(x)))
    decompositions, levels_alone = run(stack)
    for levels, basis in decompositions:
        rebuilt = np.einsum("...ij,...j,...kj->...ik", basis, levels, np.conj(basis))
        np.testing.assert_allclose(rebuilt, stack, atol=1e-14)
        assert (np.diff(levels) >= 0).all()
    np.testing.assert_allclose(levels_alone, levels, atol=1e-14)


@pytest.mark.parametrize("complex_entries", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_sandwich(shared, complex_entries, rng):
    x = rng.normal(size=(2, 3, 4, 4)) + 1j * rng.normal(size=(2, 3, 4, 4))
    basis = rng.normal(size=(4, 4) if shared else (1, 3, 4, 4))
    basis = basis + 1j * rng.normal(size=basis.shape) if complex_entries else basis
    expected = np.conj(np.swapaxes(basis, -1, -2)) @ x @ basis
    np.testing.assert_allclose(jax.jit(sandwich)(x, basis), expected, atol=1e-13)


def test_a_matrix_that_is_not_finite_spoils_its_own_eigenvalues_alone(rng):
    stack = np.stack([qs.random_hermitian(rng, 3) for _ in range(2)])
    bad = np.concatenate([stack, np.full((1, 3, 3), np.nan), np.full((1, 3, 3), np.inf)])
    solve = jax.jit(eigvalsh)
    levels = np.asarray(solve(bad))
    np.testing.assert_array_equal(levels[:2], solve(np.concatenate([stack, stack]))[:2])
    assert np.isnan(levels[2:]).all()
