"""The moving target: its noise, its gaps, and the best that can be said about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.chains import kalman_smoother
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.problems import moving_target


@jax.jit
def _smoothed(model, y, mask):
    found = kalman_smoother(model, y, mask, passes=SEQUENTIAL)
    return found.mean[:, ::2], jnp.diagonal(found.cov, axis1=1, axis2=2)[:, ::2]


def _accuracy(target, model):
    mask = ~np.isnan(target.observations)
    mean, variance = map(np.asarray, _smoothed(model, np.nan_to_num(target.observations), mask))
    width = 1.96 * np.sqrt(variance)
    return moving_target.accuracy(target, mean, mean - width, mean + width)


def test_fixes_have_the_noise_and_the_gaps_that_were_asked_for(rng):
    target = moving_target.simulate(rng, 2000, noise_std=5.0, missing=0.2, gap=50)
    off = target.observations - target.truth
    lost = np.isnan(off[:, 0])
    np.testing.assert_array_equal(lost, np.isnan(off[:, 1]))
    assert lost[975:1025].all()
    assert not lost[[0, -1]].any()
    # 390 of 1950 with a standard deviation of 18.
    assert 330 < lost.sum() - 50 < 450
    np.testing.assert_allclose(np.nanstd(off), 5.0, rtol=0.1)
    np.testing.assert_allclose(moving_target.raw_accuracy(target).seen, 5.0 * 2**0.5, rtol=0.1)


def test_the_exact_posterior_covers_the_truth_and_beats_fixes_and_wrong_scales():
    found = []
    for seed in range(30):
        target = moving_target.simulate(np.random.default_rng(seed), 60, gap=8)
        truth = moving_target.true_model(target)
        wrong = truth._replace(transition_cov=100.0 * truth.transition_cov)
        best, other = _accuracy(target, truth), _accuracy(target, wrong)
        found.append((best, other, moving_target.raw_accuracy(target)))
    coverage = np.mean([best.coverage for best, _, _ in found])
    # 30 paths whose coverage has a standard deviation of 0.06.
    assert abs(coverage - 0.95) < 0.033
    best, other, raw = np.array([[x.seen, y.seen, z.seen] for x, y, z in found]).T
    assert best.mean() < other.mean() < raw.mean()
    assert np.mean([x.unseen for x, _, _ in found]) > best.mean()


def test_a_path_shorter_than_its_gap_is_refused(rng):
    with pytest.raises(ValueError, match="num_steps must be at least gap"):
        moving_target.simulate(rng, 10, gap=8)
