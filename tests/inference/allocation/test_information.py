"""Mutual information against its definitions, for tables and for Gaussian variables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.allocation import information

mutual_information = jax.jit(information.mutual_information)
specific_information = jax.jit(information.specific_information)
gaussian_information = jax.jit(information.gaussian_information)

EPS = {"float32": 2e-6, "float64": 1e-14}


def test_information_of_a_table_is_its_divergence_from_independence(rng, dtype):
    joint = rng.dirichlet(np.ones(12), size=5).reshape(5, 3, 4)
    joint[0, 1, 2] = 0
    joint[0] /= joint[0].sum()
    apart = joint.sum(axis=2)[:, :, None] * joint.sum(axis=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint == 0, 0, joint * np.log(joint / apart))
    found = mutual_information(joint.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, terms.sum(axis=(1, 2)), rtol=0, atol=EPS[dtype.name])
    single = np.asarray(specific_information(joint.astype(dtype)))
    assert single.min() >= -EPS[dtype.name]
    np.testing.assert_allclose(
        np.sum(joint.sum(axis=1) * single, axis=1),
        terms.sum(axis=(1, 2)),
        rtol=0,
        atol=EPS[dtype.name],
    )


def test_independence_tells_nothing_and_an_outcome_that_never_comes_is_0():
    joint = np.outer([0.25, 0.75], [0.5, 0.5, 0.0])

    @jax.jit
    def told(joint):
        specific, pull = jax.vjp(information.specific_information, joint)
        return information.mutual_information(joint), specific, *pull(jnp.ones_like(specific))

    mutual, specific, slope = told(joint)
    np.testing.assert_allclose(mutual, 0.0, rtol=0, atol=1e-15)
    np.testing.assert_allclose(specific, 0.0, rtol=0, atol=1e-15)
    assert np.all(np.isfinite(slope))


def test_gaussian_information_is_a_difference_of_entropies(rng, dtype):
    root, query, noise = (
        rng.normal(size=(3, 4, 4)),
        rng.normal(size=(2, 4)),
        rng.normal(size=(2, 2)),
    )
    moment, noise = root @ root.swapaxes(1, 2), noise @ noise.T + np.eye(2)
    heard = query @ moment @ query.T + noise
    expected = 0.5 * (np.linalg.slogdet(heard)[1] - np.linalg.slogdet(noise)[1])
    found = np.asarray(gaussian_information(*(x.astype(dtype) for x in (moment, query, noise))))
    # Signal over noise of up to 100.
    np.testing.assert_allclose(found, expected, rtol=100 * jnp.finfo(dtype).eps)
    # The same by the joint covariance of the asked and the contents.
    joint = np.block([[heard[0], query @ moment[0]], [moment[0] @ query.T, moment[0]]])
    by_joint = np.linalg.slogdet(heard[0])[1] + np.linalg.slogdet(moment[0])[1]
    by_joint = 0.5 * (by_joint - np.linalg.slogdet(joint)[1])
    np.testing.assert_allclose(found[0], by_joint, rtol=1e4 * jnp.finfo(dtype).eps)


def test_nan_stays_nan():
    unknown = np.full((2, 2), np.nan)
    assert np.isnan(mutual_information(unknown))
    assert np.all(np.isnan(specific_information(unknown)))
    assert np.isnan(gaussian_information(np.eye(2), np.eye(2), -np.eye(2)))


def test_shapes_are_refused():
    with pytest.raises(ValueError, match=r"joint must have shape \[..., q, c\], got \[3\]"):
        information.mutual_information(jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"shapes \[..., d, d\], \[m, d\] and \[m, m\], got \[3, 3"
    ):
        information.gaussian_information(jnp.eye(3), jnp.ones((1, 2)), jnp.eye(1))
