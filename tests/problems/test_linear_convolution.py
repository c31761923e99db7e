"""The convolution model and the Lorenz system: published values, and noise as stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.generalized_filtering.hierarchical_models import check_model
from vfejax.problems import linear_convolution as lc
from vfejax.problems import lorenz


def test_parameters_are_the_published_ones():
    expected = [[0.1250, 0.1633], [0.1250, 0.0676], [0.1250, -0.0676], [0.1250, -0.1633]]
    np.testing.assert_allclose(lc.EMISSION, expected, rtol=0, atol=5e-5)
    model, parameters = lc.convolution_model()
    check_model(model)
    level, states = model.levels[0], jnp.array([1.0, 2.0])
    assert level.motion_fn(states, jnp.array([0.5]), parameters[0]).tolist() == [2.25, -1.0]


@pytest.mark.parametrize("smoothness", [0.0, 1.0])
def test_output_noise_has_its_autocorrelation(smoothness):
    paths = lc.convolution_paths(6, smoothness, num_substeps=1)
    data = lc.simulate(np.random.default_rng(1), paths, 5000, smoothness, output_precision=4.0)
    noise = 2.0 * (data.observations - data.states @ lc.EMISSION.T)
    found = np.einsum("nto,nso->ts", noise, noise) / noise.shape[0] / 4
    # 20000 draws: errors of 0.7 percent.
    np.testing.assert_allclose(found, lc.noise_kernel(6, smoothness), rtol=0, atol=0.04)


def test_lorenz_stays_on_its_attractor_and_is_seen_with_noise(rng):
    check_model(lorenz.lorenz_model()[0])
    data = lorenz.simulate(rng, 40, 3, 0.5)
    assert np.abs(data.states).max() < 100
    noise = data.observations[..., 0] - data.states.sum(-1)
    assert 0.5 < noise.std() < 1.5
    # Fixed points of the flow: x = y, z = r - 1.
    side = np.sqrt(4.0 * 45.92)
    rest = jnp.array([side, side, 45.92])
    np.testing.assert_allclose(lorenz.vector_field(rest), 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(lorenz.runge_kutta(rest, 1.0), rest, rtol=1e-12)
    # A time of NumPy's does not widen the states.
    single = jax.ShapeDtypeStruct((3,), jnp.float32)
    found = jax.eval_shape(lambda x: lorenz.runge_kutta(x, np.float64(1.0)), single)
    assert found.dtype == jnp.float32
