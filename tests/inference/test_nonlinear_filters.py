"""Extended and unscented filters against the joint Gaussian of a linear model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vfejax.inference import nonlinear_filters as nf

NUM = 6


def _problem(rng, dtype=jnp.float64):
    """A linear model and its oracle: all states and observations as one Gaussian."""
    transition = 0.9 * np.linalg.qr(rng.normal(size=(2, 2)))[0]
    emission = rng.normal(size=(3, 2))

    def square(k):
        half = rng.normal(size=(k, k))
        return half @ half.T + np.eye(k)

    first, noise, seen = square(2), square(2), square(3)
    start, controls = rng.normal(size=2), rng.normal(size=(NUM, 2))
    mean, cov = [start], {(0, 0): first}
    for t in range(NUM - 1):
        mean.append(transition @ mean[-1] + controls[t])
        for s in range(t + 1):
            cov[s, t + 1] = cov[s, t] @ transition.T
            cov[t + 1, s] = cov[s, t + 1].T
        cov[t + 1, t + 1] = transition @ cov[t, t] @ transition.T + noise
    joint = np.block([[cov[s, t] for t in range(NUM)] for s in range(NUM)])
    observations = rng.normal(size=(NUM, 3))

    def cast(x):
        return jnp.asarray(x, dtype)

    model = nf.NonlinearGaussian(
        cast(start),
        cast(first),
        lambda x, u: jnp.matmul(cast(transition), x) + u,
        cast(noise),
        lambda x, u: jnp.matmul(cast(emission), x),
        cast(seen),
    )
    images = np.kron(np.eye(NUM), emission)
    errors = np.kron(np.eye(NUM), seen)
    oracle = np.concatenate(mean), joint, images, errors
    return model, cast(observations), cast(controls), oracle


def _posterior(oracle, observations, until):
    mean, cov, images, errors = oracle
    rows = slice(0, 3 * until)
    gain = cov @ images[rows].T
    total = images[rows] @ gain + errors[rows, rows]
    weights = np.linalg.solve(total, gain.T).T
    away = observations.ravel()[rows] - images[rows] @ mean
    return (mean + weights @ away).reshape(NUM, 2), cov - weights @ gain.T, total


@pytest.mark.parametrize(
    "filter_fn",
    [nf.extended_kalman_filter, pytest.param(nf.unscented_kalman_filter, marks=pytest.mark.slow)],
)
def test_filters_of_a_linear_model_are_exact(rng, filter_fn):
    model, observations, controls, oracle = _problem(rng)
    result = jax.jit(lambda y, u: filter_fn(model, y, u))(observations, controls)
    for t in range(NUM):
        mean, cov, _ = _posterior(oracle, observations, t + 1)
        np.testing.assert_allclose(result.mean[t], mean[t], rtol=1e-11, atol=1e-11)
        block = cov[2 * t : 2 * t + 2, 2 * t : 2 * t + 2]
        np.testing.assert_allclose(result.cov[t], block, rtol=1e-11, atol=1e-11)
    total = _posterior(oracle, observations, NUM)[2]
    evidence = scipy.stats.multivariate_normal(oracle[2] @ oracle[0], total).logpdf
    np.testing.assert_allclose(result.log_evidence, evidence(observations.ravel()), rtol=1e-12)


@pytest.mark.slow
def test_smoother_of_a_linear_model_is_exact(rng, dtype):
    model, observations, controls, oracle = _problem(rng, dtype)
    result = nf.extended_kalman_smoother(model, observations, controls)
    mean, cov, _ = _posterior(oracle, np.asarray(observations, float), NUM)
    # A few hundred operations on numbers of order 10.
    tolerance = 2000 * jnp.finfo(dtype).eps
    chex.assert_trees_all_close(result.mean, mean.astype(dtype), rtol=0, atol=tolerance)
    blocks = np.stack([cov[2 * t : 2 * t + 2, 2 * t : 2 * t + 2] for t in range(NUM)])
    chex.assert_trees_all_close(result.cov, blocks.astype(dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("infer", [nf.extended_kalman_smoother, nf.unscented_kalman_filter])
def test_states_that_are_known_exactly_stay_known(rng, infer):
    """A model whose covariances have a direction of no variance is one of fewer states."""
    turn, seen = rng.normal(size=(3, 3)), rng.normal(size=(5, 1))
    turn[:, 2] = [0.3, -0.2, 1.0]
    turn[2, :2] = 0.0
    row = rng.normal(size=3)

    def inferred(first, noise):
        """The third state is 2 at first, and stays there where it has no noise."""
        model = nf.NonlinearGaussian(
            jnp.array([0.5, 1.0, 2.0]),
            jnp.diag(jnp.asarray(first)),
            lambda x, u: jnp.matmul(jnp.asarray(turn), x),
            jnp.diag(jnp.asarray(noise)),
            lambda x, u: jnp.matmul(jnp.asarray(row)[None], x),
            jnp.eye(1),
        )
        found = infer(model, jnp.asarray(seen))
        return found.mean, found.cov, found.log_evidence

    both = jax.jit(inferred)
    known = both(np.array([1.0, 0.5, 0.0]), np.array([0.2, 0.1, 0.0]))
    nearly = both(np.array([1.0, 0.5, 1e-10]), np.array([0.2, 0.1, 1e-10]))
    chex.assert_trees_all_close(known, nearly, rtol=0, atol=1e-7)
    np.testing.assert_allclose(known[0][:, 2], 2.0, rtol=0, atol=1e-13)
    np.testing.assert_allclose(known[1][:, 2], 0.0, rtol=0, atol=1e-13)
    slope = jax.jit(jax.grad(lambda scale: inferred(scale * np.array([1.0, 0.5, 0.0]), noise)[2]))
    noise, step = np.array([0.2, 0.1, 0.0]), 1e-5
    above, below = (both((1.0 + s) * np.array([1.0, 0.5, 0.0]), noise)[2] for s in (step, -step))
    np.testing.assert_allclose(slope(1.0), (above - below) / (2 * step), rtol=0, atol=1e-8)


def test_a_spread_that_leaves_no_points_is_refused(rng):
    model, observations, _, _ = _problem(rng)
    for spread in (-2.0, -3, float("nan")):
        with pytest.raises(ValueError, match=r"spread must be above -2, got"):
            nf.unscented_kalman_filter(model, observations, jnp.zeros((NUM, 2)), spread=spread)


def test_unscented_moments_of_a_square_are_exact():
    push = nf._unscented(2.0)
    image = push(lambda x: x**2, jnp.array([1.0]), jnp.array([[0.25]]))
    # E x^2 = m^2 + v, and with kappa = 3 - n the variance 4 m^2 v + 2 v^2.
    chex.assert_trees_all_close(image.mean, jnp.array([1.25]), rtol=1e-14)
    chex.assert_trees_all_close(image.cov, jnp.array([[1.125]]), rtol=1e-14)
    chex.assert_trees_all_close(image.cross, jnp.array([[0.5]]), rtol=1e-14)


@pytest.mark.slow
def test_a_covariance_that_is_not_positive_definite_gives_nan(rng):
    model, observations, controls, _ = _problem(rng)
    bad = model._replace(emission_cov=-100.0 * jnp.eye(3))
    assert jnp.isnan(nf.extended_kalman_filter(bad, observations, controls).log_evidence)
    # Every innovation has a positive variance for all that.
    for name in ("initial_cov", "transition_cov"):
        bad = model._replace(**{name: jnp.diag(jnp.array([1.0, -0.01]))})
        found = nf.extended_kalman_filter(bad, observations, controls)
        assert jnp.isnan(found.log_evidence)
        assert jnp.isnan(found.mean[1:]).all()


def test_shapes_must_fit(rng):
    model, observations, controls, _ = _problem(rng)
    with pytest.raises(ValueError, match=r"emission_cov must be \[3, 3\], got \(2, 2\)"):
        nf.extended_kalman_filter(model._replace(emission_cov=jnp.eye(2)), observations)
    with pytest.raises(ValueError, match=r"observations must be \[t, o\]"):
        nf.extended_kalman_filter(model, observations[0])
    with pytest.raises(ValueError, match=r"controls must be \[6, u\]"):
        nf.extended_kalman_filter(model, observations, controls[:2])
