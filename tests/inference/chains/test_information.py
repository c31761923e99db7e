"""The information form against the joint Gaussian, and a start that knows nothing."""

import jax
import numpy as np
import pytest
from helpers.chain_oracle import joint_gaussian

from vfejax.inference.chains import information
from vfejax.inference.chains.linear_gaussian import LinearGaussian

N, O, T = 2, 1, 5


@jax.jit
def run(model, y, mask, precision):
    found = information.information_messages(model, y, mask, initial_precision=precision)
    return found, information.information_moments(found)


def draw(rng):
    model = LinearGaussian(
        rng.normal(size=N),
        np.eye(N) + 0.5,
        rng.normal(size=(T - 1, N, N)),
        0.5 * np.eye(N) + 0.2,
        rng.normal(size=(O, N)),
        np.eye(O),
        transition_offset=rng.normal(size=N),
    )
    mask = np.ones((T, O), bool)
    mask[2] = False
    return model, rng.normal(size=(T, O)), mask


@pytest.mark.slow
def test_equals_the_joint_gaussian(rng):
    model, y, mask = draw(rng)
    found, (mean, cov) = run(model, y, mask, np.linalg.inv(model.initial_cov))
    exact = joint_gaussian(model, y, mask)
    # Inverses of matrices with a condition below 1000.
    np.testing.assert_allclose(mean, exact.mean, rtol=0, atol=1e-11)
    np.testing.assert_allclose(cov, exact.cov, rtol=0, atol=1e-11)
    upto = joint_gaussian(model, y, mask, upto=4)
    precision = np.asarray(found.forward_precision[3])
    np.testing.assert_allclose(np.linalg.inv(precision), upto.cov[3], rtol=0, atol=1e-10)


@pytest.mark.slow
def test_a_start_that_knows_nothing_is_the_limit_of_vague_ones(rng):
    model, y, mask = draw(rng)
    found, (mean, _) = run(model, y, mask, np.zeros((N, N)))
    assert np.linalg.matrix_rank(np.asarray(found.forward_precision[0])) == 1
    vague = joint_gaussian(model._replace(initial_cov=1e7 * np.eye(N)), y, mask)
    # One over the variance of the vague start, 1e-7, times the square of what the transitions grow.
    np.testing.assert_allclose(mean, vague.mean, rtol=0, atol=1e-4)


def test_refuses(rng):
    model, y, mask = draw(rng)
    with pytest.raises(ValueError, match=r"initial_precision must be \[2, 2\]"):
        information.information_messages(model, y, mask, initial_precision=np.eye(3))
