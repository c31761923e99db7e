import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.message_passing.chains import CATEGORICAL_CHAIN, GAUSSIAN_CHAIN

RNG = np.random.default_rng(5)
BLOCKS = RNG.normal(size=(2, 6, 2, 3))
NATURAL = {
    "categorical chain": (RNG.normal(size=(2, 6, 3)), RNG.normal(size=(2, 3, 3))),
    "gaussian chain": (
        RNG.normal(size=(2, 6, 2)),
        # eigenvalues of the blocks of the precision above 3, couplings below 1
        -0.5 * (3 * np.eye(2) + BLOCKS @ np.swapaxes(BLOCKS, -1, -2)),
        0.5 * RNG.normal(size=(2, 2, 2)),
    ),
}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(CATEGORICAL_CHAIN, id="categorical"),
        pytest.param(GAUSSIAN_CHAIN, id="gaussian", marks=pytest.mark.slow),
    ],
)
def test_expected_statistics_are_the_gradient_of_the_log_partition(family):
    """Forward-backward and smoothing are the derivative of the forward sweep."""
    natural = tuple(map(jnp.asarray, NATURAL[family.name]))
    value, gradient = jax.jit(jax.value_and_grad(lambda eta: jnp.sum(family.log_partition(eta))))(
        natural
    )
    statistics, log_partition = jax.jit(family.both)(natural)
    np.testing.assert_allclose(jnp.sum(log_partition), value, rtol=1e-14)
    chex.assert_trees_all_close(statistics, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_chain_of_one_step_is_a_single_gaussian():
    natural = (jnp.ones((1, 2)), -0.5 * jnp.eye(2)[None], jnp.ones((2, 2)))
    (mean, _, _), log_partition = jax.jit(GAUSSIAN_CHAIN.both)(natural)
    np.testing.assert_allclose(mean, np.ones((1, 2)), rtol=1e-15)
    np.testing.assert_allclose(log_partition, 1 + np.log(2 * np.pi), rtol=1e-15)


@pytest.mark.slow
def test_a_precision_that_is_not_positive_definite_gives_nan():
    natural = (jnp.ones((2, 1)), -0.5 * jnp.ones((2, 1, 1)), 2 * jnp.ones((1, 1)))
    assert np.isnan(jax.jit(GAUSSIAN_CHAIN.log_partition)(natural))
