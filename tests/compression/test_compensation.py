"""What a kernel wrote, from the inputs that stay."""

import jax.numpy as jnp
import numpy as np

from vfejax.compression.compensation import compensated, inputs
from vfejax.compression.prune import Cut


def test_it_is_the_regression_on_the_inputs_that_stay(rng):
    x, kernel = rng.normal(size=(2, 40, 6)), rng.normal(size=(2, 6, 3))
    x[..., 5] = x[..., 0] + 0.1 * x[..., 5]
    moments = np.swapaxes(x, -1, -2) @ x / 40
    kept = np.asarray([[0, 1, 2], [0, 2, 4]])
    found = compensated(*map(jnp.asarray, (kernel, moments, kept)), ridge=1e-12)
    for i in range(2):
        few = x[i][:, kept[i]]
        expected = np.linalg.lstsq(few, x[i] @ kernel[i])[0]
        # The ridge changes a solution of size 1 by 1e-12 times a condition number below 100.
        np.testing.assert_allclose(found[i, kept[i]], expected, rtol=0, atol=1e-9)


def test_inputs_without_correlation_and_those_without_size_change_nothing(dtype):
    kernel, kept = jnp.ones((4, 2), dtype), jnp.asarray([0, 2])
    for moments in (jnp.eye(4, dtype=dtype), jnp.zeros((4, 4), dtype)):
        found = compensated(kernel, moments, kept, ridge=1e-3)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, kernel)


def test_experts_may_share_what_they_keep(rng):
    kernel, moments = jnp.asarray(rng.normal(size=(2, 3, 4, 5))), jnp.ones((2, 3, 4, 4))
    kept = jnp.asarray([[0, 1], [2, 3]])
    shared = compensated(kernel, moments, kept, ridge=1e-3)
    apart = compensated(kernel, moments, jnp.stack([kept] * 3, axis=1), ridge=1e-3)
    np.testing.assert_array_equal(shared, apart)


def test_units_are_found_in_every_copy_and_layer():
    found = inputs(Cut("kernel", -2, copies=2, size=2), 3, jnp.asarray([[0, 2], [1, 2]]))
    expected = [[0, 1, 4, 5, 6, 7, 10, 11], [2, 3, 4, 5, 8, 9, 10, 11]]
    np.testing.assert_array_equal(found, expected)
