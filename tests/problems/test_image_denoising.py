"""The denoiser against enumeration on a small picture, and against median filters on a large
one."""

import jax
import numpy as np
import pytest
from helpers.grid_oracle import enumerate_grid

from vfejax.problems import image_denoising as problem

denoise = jax.jit(problem.denoise)


def test_small_picture_is_close_to_enumeration(rng):
    noisy, q, coupling = rng.integers(0, 2, (3, 4)).astype(float), 0.2, 0.2
    seen = np.stack([1 - noisy, noisy], axis=-1)
    nodes = np.log(np.where(seen == 1, 1 - q, q))
    pair = 2 * coupling * np.eye(2)
    marginals, _ = enumerate_grid(nodes, pair, pair)
    found = denoise(noisy, q, coupling)
    # Loops of four at this coupling.
    np.testing.assert_allclose(found.probability, marginals[..., 1], rtol=0, atol=0.02)
    np.testing.assert_array_equal(found.picture, marginals[..., 1] > 0.5)
    assert found.info.converged


def test_beats_the_noise_and_every_median_filter(rng):
    truth = problem.blobs(rng, 96, 128)
    assert 0.05 < truth.mean() < 0.95
    noisy = problem.flip(rng, truth, 0.15)
    found = denoise(noisy.astype("float32"), 0.15)
    medians = [problem.error_rate(problem.median_filter(noisy, n), truth) for n in (3, 5, 7)]
    error = problem.error_rate(found.picture, truth)
    assert abs(problem.error_rate(noisy, truth) - 0.15) < 0.02
    assert error < 0.8 * min(medians)
    assert error < 0.03
    # Its probabilities mean what they say: the expected error is the error.
    expected = np.minimum(found.probability, 1 - found.probability).mean()
    assert abs(expected - error) < 0.01


def test_refuses():
    with pytest.raises(ValueError, match="size must be odd"):
        problem.median_filter(np.zeros((3, 3), int), 2)
    with pytest.raises(ValueError, match=r"noisy must be \[h, w\]"):
        problem.denoise(np.zeros(3), 0.1)
    for outside in (0.0, 1.0, 2):
        with pytest.raises(ValueError, match=f"probability must be above 0 .* got {outside}"):
            problem.denoise(np.zeros((3, 3)), outside)
