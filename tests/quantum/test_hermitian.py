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
        np.testing.assert_allclose(rebuilt, stack, rtol=0, atol=1e-14)
        assert (np.diff(levels) >= 0).all()
    np.testing.assert_allclose(levels_alone, levels, rtol=0, atol=1e-14)


@pytest.mark.parametrize("complex_entries", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_sandwich(shared, complex_entries, rng):
    x = rng.normal(size=(2, 3, 4, 4)) + 1j * rng.normal(size=(2, 3, 4, 4))
    basis = rng.normal(size=(4, 4) if shared else (1, 3, 4, 4))
    basis = basis + 1j * rng.normal(size=basis.shape) if complex_entries else basis
    expected = np.conj(np.swapaxes(basis, -1, -2)) @ x @ basis
    np.testing.assert_allclose(jax.jit(sandwich)(x, basis), expected, rtol=0, atol=1e-13)


def test_a_matrix_that_is_not_finite_spoils_its_own_eigenvalues_alone(rng):
    stack = np.stack([qs.random_hermitian(rng, 3) for _ in range(2)])
    bad = np.concatenate([stack, np.full((1, 3, 3), np.nan), np.full((1, 3, 3), np.inf)])
    solve = jax.jit(eigvalsh)
    levels = np.asarray(solve(bad))
    np.testing.assert_array_equal(levels[:2], solve(np.concatenate([stack, stack]))[:2])
    assert np.isnan(levels[2:]).all()


def _special_states(rng, d, dtype, num):
    """Random, pure, diagonal pure, with equal levels, 0, tiny, huge, diagonal, one NaN, one inf."""
    random = np.stack([qs.random_hermitian(rng, d, dtype.kind == "c") for _ in range(num)])
    basis = np.linalg.eigh(random[0])[1]
    equal = (basis * np.repeat([0.25, -0.5], [2, d - 2])) @ basis.conj().T
    pure = np.outer(basis[0], basis[0].conj())
    diagonal = np.diag(np.arange(d) / d)
    corner = np.zeros((d, d))
    corner[0, 0] = 1.0
    special = [pure, corner, equal, 0 * pure, 1e-30 * random[0], 1e30 * random[1], diagonal]
    special += [np.eye(d) / d, np.full((d, d), np.nan), np.full((d, d), np.inf)]
    return np.concatenate([random, np.stack(special)]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.dtype("complex64"), np.dtype("float64")])
def test_eigenvalues_of_many_matrices_side_by_side_are_those_of_lapack(dtype, rng):
    stack = _special_states(rng, 5, dtype, 40)
    levels, batched = jax.jit(lambda x: (eigvalsh(x), jax.vmap(eigvalsh)(x)))(stack)
    np.testing.assert_array_equal(levels, batched)
    assert levels.dtype == np.finfo(dtype).dtype
    assert np.isnan(levels[-2:]).all()
    finite, levels = stack[:-2].astype(np.result_type(dtype, float)), np.asarray(levels)[:-2]
    expected = np.linalg.eigvalsh(finite)
    # Rounding of d reflections, 4 eps each at most, relative to the norm of each matrix.
    error = np.abs(levels - expected) / np.maximum(np.abs(expected).max(-1, keepdims=True), 1e-99)
    assert error.max() < 4 * 5 * np.finfo(dtype).eps
    assert (np.diff(levels) >= 0).all()
    assert (levels[41, :4] <= 0).all(), "a level 0 of a diagonal pure state came out positive"
