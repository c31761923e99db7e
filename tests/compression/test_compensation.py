"""What a kernel wrote, from the inputs that stay."""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.compression.compensation import compensated, inputs
from vfejax.compression.prune import Cut

made_up = jax.jit(compensated)


def test_it_is_the_regression_on_the_inputs_that_stay(rng):
    x, kernel = rng.normal(size=(2, 40, 6)), rng.normal(size=(2, 6, 3))
    x[..., 5] = x[..., 0] + 0.1 * x[..., 5]
    moments = np.swapaxes(x, -1, -2) @ x / 40
    kept = np.asarray([[0, 1, 2], [0, 2, 4]])
    found = np.asarray(made_up(kernel, moments, kept, 1e-12))
    for i in range(2):
        few = x[i][:, kept[i]]
        expected = np.linalg.lstsq(few, x[i] @ kernel[i])[0]
        # The ridge changes a solution of size 1 by 1e-12 times a condition number below 100.
        np.testing.assert_allclose(found[i, kept[i]], expected, rtol=0, atol=1e-9)
    # One kernel, in arrays of NumPy that no transformation has seen.
    alone = jax.eval_shape(lambda: compensated(kernel[0], moments[0], kept[0], 1e-12))
    assert alone.shape == kernel[0].shape


def test_inputs_without_correlation_and_those_without_size_change_nothing(dtype):
    kernel, kept = np.ones((4, 2), dtype), np.asarray([0, 2])
    for moments in (np.eye(4, dtype=dtype), np.zeros((4, 4), dtype)):
        found = made_up(kernel, moments, kept, 1e-3)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, kernel)


def test_experts_may_share_what_they_keep(rng):
    kernel, moments = rng.normal(size=(2, 3, 4, 5)), np.ones((2, 3, 4, 4))
    kept = np.asarray([[0, 1], [2, 3]])
    shared = made_up(kernel, moments, kept, 1e-3)
    apart = made_up(kernel, moments, np.stack([kept] * 3, axis=1), 1e-3)
    np.testing.assert_array_equal(shared, apart)


def test_units_are_found_in_every_copy_and_layer():
    cut, units = Cut("kernel", -2, copies=2, size=2), jnp.asarray([[0, 2], [1, 2]])
    found = jax.jit(lambda units: inputs(cut, 3, units))(units)
    expected = [[0, 1, 4, 5, 6, 7, 10, 11], [2, 3, 4, 5, 8, 9, 10, 11]]
    np.testing.assert_array_equal(found, expected)
