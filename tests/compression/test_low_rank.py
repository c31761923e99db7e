"""Low-rank factors: the best there are, for the inputs that there are."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.low_rank import (
    factorize,
    product,
    rank_for_bytes,
    rank_for_energy,
    spectrum,
)


@pytest.fixture(params=[(6, 4), (4, 9)], ids=["tall", "wide"])
def kernel(request, rng, dtype):
    return jnp.asarray(rng.normal(size=(2, *request.param)), dtype)


def test_without_moments_they_are_the_truncated_decomposition(kernel, dtype):
    left, values, right = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    expected = (left[..., :2] * values[..., None, :2]) @ right[..., :2, :]
    factors = factorize(kernel, 2)
    assert (factors.left.dtype, factors.right.dtype) == (dtype, dtype)
    # Numbers of size 1 in the kernel's precision; squaring loses half of float64's digits.
    atol = max(10 * float(jnp.finfo(dtype).eps), 1e-9)
    np.testing.assert_allclose(product(factors), expected, rtol=0, atol=atol)
    np.testing.assert_allclose(spectrum(kernel), values**2, rtol=1e-6)
    norms = jnp.linalg.norm(factors.left, axis=-2), jnp.linalg.norm(factors.right, axis=-1)
    np.testing.assert_allclose(*norms, rtol=atol)


@pytest.mark.parametrize("width", [4, 9])
def test_with_moments_the_error_of_the_output_is_what_the_spectrum_leaves_out(width, rng):
    kernel = jnp.asarray(rng.normal(size=(6, width)))
    x = rng.normal(size=(30, 6)) * np.asarray([5.0, 1, 1, 1, 0.1, 0.1])
    moments = jnp.asarray(x.T @ x / 30)
    energies = spectrum(kernel, moments)
    for rank in (1, 2, 3):
        errors = [
            np.mean(np.sum(np.square(x @ (kernel - product(factors))), axis=1))
            for factors in (factorize(kernel, rank, moments), factorize(kernel, rank))
        ]
        np.testing.assert_allclose(errors[0], np.sum(energies[rank:]), rtol=1e-10)
        assert errors[0] < errors[1]


def test_of_a_wide_kernel_no_matrix_of_its_width_is_decomposed(rng, monkeypatch):
    sizes = []
    for name in ("eigh", "eigvalsh"):
        decompose = getattr(np.linalg, name)

        def watched(x, decompose=decompose):
            sizes.append(x.shape)
            return decompose(x)

        monkeypatch.setattr(np.linalg, name, watched)
    wide = jnp.asarray(rng.normal(size=(3, 50)))
    factorize(wide, 2, jnp.eye(3))
    spectrum(wide)
    assert sizes == [(3, 3), (3, 3)]


def test_full_rank_loses_nothing_and_a_kernel_of_zeros_stays(kernel, dtype):
    full = product(factorize(kernel, 4))
    np.testing.assert_allclose(full, kernel, rtol=0, atol=20 * float(jnp.finfo(dtype).eps))
    assert not np.any(product(factorize(jnp.zeros_like(kernel), 1)))


def test_ranks_keep_the_energy_and_the_bytes_that_are_asked_for():
    energies = np.asarray([[8.0, 1.0, 1.0, 0.0], [4.0, 4.0, 2.0, 0.0]])
    assert [rank_for_energy(energies, share) for share in (0.5, 0.9, 1.0)] == [2, 3, 3]
    for ratio in (0.25, 0.5, 1.0):
        rank = rank_for_bytes((3, 10, 30), ratio)
        assert rank * 40 <= ratio * 300 < (rank + 1) * 40


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: factorize(jnp.ones((2, 3)), 3), "rank must lie between 1 and 2, got 3"),
        (lambda: factorize(jnp.ones((2, 3)), 1, jnp.eye(3)), r"moments must be \(2, 2\)"),
        (lambda: factorize(jnp.full((2, 3), jnp.nan), 1), "kernel must be finite, got NaN"),
        (lambda: spectrum(jnp.ones((1, 3)), jnp.full((1, 1), jnp.inf)), "moments must be finite"),
        (lambda: rank_for_energy(np.ones(2), 0.0), "share must lie above 0"),
        (lambda: rank_for_bytes((2, 2), 1.5), "ratio must lie above 0 and be at most 1, got 1.5"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
