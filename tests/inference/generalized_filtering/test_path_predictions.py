"""Predictions of paths: the covariance of smooth forces, and the flow of the mean."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.generalized_filtering import Model, zero_hyperparameters
from vfejax.inference.generalized_filtering.path_predictions import predict
from vfejax.problems.linear_convolution import DRIFT, GAIN, convolution_model


def test_a_linear_model_is_predicted_as_its_integrals_say():
    model, parameters = convolution_model(smoothness=0.4, state_precision=4.0, cause_precision=2.0)
    model = model._replace(cause_smoothness=1.2)
    start, cause = np.array([1.0, -0.5]), np.array([0.7])
    hyper = zero_hyperparameters(model)
    found = predict(
        model, jnp.asarray(start), jnp.asarray(cause), parameters, hyper, 1.5, 2, num_substeps=64
    )
    values, vectors = np.linalg.eig(DRIFT)
    inverse = np.linalg.inv(vectors)
    num = 600
    for row, time in enumerate((1.5, 3.0)):
        middle = (np.arange(num) + 0.5) * time / num
        # exp(A (t - u)) at the middles of num pieces.
        lead = np.einsum("ij,uj,jk->uik", vectors, np.exp(np.outer(time - middle, values)), inverse)
        lead = lead.real * time / num
        apart = (middle[:, None] - middle[None, :]) ** 2
        force = lead @ GAIN
        noise = np.einsum("uik,vjk,uv->ij", lead, lead, np.exp(-apart / 0.64) / 4.0, optimize=True)
        noise += np.einsum("ui,vj,uv->ij", *[force[..., 0]] * 2, np.exp(-apart / 5.76) / 2.0)
        whole = (vectors @ np.diag(np.exp(time * values)) @ inverse).real
        mean = whole @ start + np.einsum(
            "ui,u->i", force[..., 0], 0.7 * np.exp(-(middle**2) / 5.76)
        )
        # The rules of trapezia and middles are of second order: a few (1 / 600)^2 and (1.5 / 64)^2.
        np.testing.assert_allclose(found.transition[row], whole, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.mean[row], mean, rtol=0, atol=2e-4)
        np.testing.assert_allclose(found.noise[row], noise, rtol=0, atol=2e-4)


def test_a_hierarchy_of_two_levels_is_refused():
    model, parameters = convolution_model()
    model = Model(model.levels * 2, model.cause_precision, 2, 1, 1.0)
    with pytest.raises(ValueError, match="one level, got 2"):
        predict(model, jnp.ones(2), jnp.ones(1), parameters, zero_hyperparameters(model), 1.0, 1)
