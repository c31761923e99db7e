"""Helpers on Hermitian matrices: stacks and vmap of the eigensolver, sandwiches in each form, the
transpose of broadcasting.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs

from vfejax.quantum.hermitian import check_square, eigh, eigvalsh, reduce_to, sandwich


@pytest.mark.parametrize("complex_entries", [False, True])
def test_eigendecomposition_of_stacks(complex_entries, rng):
    stack = np.stack([qs.random_hermitian(rng, 4, complex_entries) for _ in range(6)]).reshape(
        2, 3, 4, 4
    )
    stack = jnp.asarray(stack)
    for decompose in (eigh, jax.vmap(eigh), jax.vmap(jax.vmap(eigh))):
        levels, basis = jax.jit(decompose)(stack)
        rebuilt = np.einsum("...ij,...j,...kj->...ik", basis, levels, np.conj(basis))
        np.testing.assert_allclose(rebuilt, stack, atol=1e-14)
        assert (np.diff(levels) >= 0).all()
    np.testing.assert_allclose(jax.jit(jax.vmap(eigvalsh))(stack), levels, atol=1e-14)


@pytest.mark.parametrize("complex_entries", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_sandwich(shared, complex_entries, rng):
    x = rng.normal(size=(2, 3, 4, 4)) + 1j * rng.normal(size=(2, 3, 4, 4))
    basis = rng.normal(size=(4, 4) if shared else (1, 3, 4, 4))
    basis = basis + 1j * rng.normal(size=basis.shape) if complex_entries else basis
    expected = np.conj(np.swapaxes(basis, -1, -2)) @ x @ basis
    np.testing.assert_allclose(sandwich(jnp.asarray(x), jnp.asarray(basis)), expected, atol=1e-13)


def test_reduce_to_is_the_transpose_of_broadcasting(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4)))
    pulled = jax.vjp(lambda y: jnp.broadcast_to(y, (2, 3, 4)), jnp.zeros((1, 3, 1)))[1](x)[0]
    np.testing.assert_allclose(reduce_to(x, (1, 3, 1)), pulled, rtol=1e-14)


def test_check_square_names_the_argument():
    with pytest.raises(ValueError, match=r"state must be square matrices.*\(0, 0\)"):
        check_square("state", jnp.zeros((0, 0)))
