"""Linear-Gaussian observations against closed forms and NumPy's linear algebra."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents.observation import (
    Observations,
    expected_negative_log_likelihood,
    identity_observations,
    posterior,
)
from vfejax.beliefs.gaussian import Gaussian, covariance, kl_divergence

K = 3
NOISE = np.array([[0.8, 0.0], [0.3, 0.6]])

likelihood = jax.jit(expected_negative_log_likelihood)
infer = jax.jit(posterior)


@jax.jit
def slope_of_posterior(prior, observations, cotangent):
    return jax.vjp(posterior, prior, observations)[1](cotangent)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def observations_of(rng, num, grid=(), dtype=np.float64):
    """Four observations of two components per agent; agent 0 made none."""
    present = rng.uniform(size=(num, 4, *grid)) < 0.6
    present[0] = False
    present[1:, 0] = True
    arrays = (rng.normal(size=(num, 4, *grid, 2)), present, rng.normal(size=(2, K)), NOISE)
    return Observations(*(jnp.asarray(x.astype(dtype)) for x in arrays))


def test_closed_form(rng, dtype):
    belief = oracle.random_gaussian(rng, (4,), K, dtype)
    observations = observations_of(rng, 4, dtype=dtype)
    actual = likelihood(belief, observations)
    chex.assert_type(actual, dtype)
    mean, cov = np.asarray(belief.mean, float), np.asarray(covariance(belief), float)
    values, present, matrix, chol = (np.asarray(x, float) for x in observations)
    noise = chol @ chol.T
    for i in range(4):
        expected = 0.0
        for m in range(4):
            residual = values[i, m] - matrix @ mean[i]
            spread = np.trace(np.linalg.solve(noise, matrix @ cov[i] @ matrix.T))
            constant = math.log(np.linalg.det(2 * math.pi * noise))
            expected += (
                present[i, m]
                * 0.5
                * (residual @ np.linalg.solve(noise, residual) + spread + constant)
            )
        # Sums of about 30 squares, each whitened by a noise of condition number 3.
        np.testing.assert_allclose(actual[i], expected, rtol=50 * eps(dtype), atol=0)


def test_it_is_the_expectation_of_the_log_likelihood(rng):
    """Quadrature exact for quadratics: the 2 K sigma points at ``mean +- sqrt(K) L e_a``, equally
    weighted.
    """
    belief = oracle.random_gaussian(rng, (4,), K)
    values, present, matrix, chol = map(np.asarray, observations_of(rng, 4))
    columns = math.sqrt(K) * np.swapaxes(np.tril(belief.chol), -1, -2)
    points = np.asarray(belief.mean)[:, None] + np.concatenate([columns, -columns], axis=1)
    residual = values[:, :, None] - np.einsum("ok,npk->npo", matrix, points)[:, None]
    squares = np.einsum("nmpo,oq,nmpq->nmp", residual, np.linalg.inv(chol @ chol.T), residual)
    density = 0.5 * (squares + math.log(np.linalg.det(2 * math.pi * chol @ chol.T)))
    expected = np.sum(present * density.mean(axis=-1), axis=1)
    actual = likelihood(belief, Observations(*map(jnp.asarray, (values, present, matrix, chol))))
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


def test_missing_observations_contribute_nothing(rng):
    belief = oracle.random_gaussian(rng, (4,), K)
    observations = observations_of(rng, 4)
    gap = np.asarray(observations.present == 0)[..., None]
    other = observations._replace(values=np.where(gap, 1e6, observations.values))

    @jax.jit
    def value_and_slopes(belief, observations):
        return jax.value_and_grad(lambda b, o: jnp.sum(likelihood(b, o)), argnums=(0, 1))(
            belief, observations
        )

    actual, expected = (
        jax.device_get(value_and_slopes(belief, seen)) for seen in (other, observations)
    )
    np.testing.assert_array_equal(actual[0], expected[0])
    chex.assert_trees_all_equal(actual[1][0], expected[1][0])
    unseen = jax.tree.map(lambda x: x[0], actual[1][0])
    chex.assert_trees_all_equal(unseen, jax.tree.map(np.zeros_like, unseen))
    np.testing.assert_array_equal(actual[1][1].values[gap[..., 0]], 0.0)
    np.testing.assert_array_equal(np.asarray(likelihood(belief, other))[0], 0.0)
    chex.assert_trees_all_close(infer(belief, other), infer(belief, observations), rtol=1e-14)


def test_entries_above_the_diagonal_of_the_noise_factor_are_ignored(rng):
    belief = oracle.random_gaussian(rng, (4,), K)
    observations = observations_of(rng, 4)
    other = observations._replace(noise_chol=NOISE + np.array([[0.0, 7.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(likelihood(belief, other), likelihood(belief, observations))


def test_identity_observations(rng, dtype):
    values = jnp.asarray(rng.normal(size=(2, 4, 5, K)), dtype)
    observations = identity_observations(values, 0.3)
    np.testing.assert_array_equal(observations.present, np.ones((2, 4, 5)))
    np.testing.assert_array_equal(observations.matrix, np.eye(K))
    np.testing.assert_allclose(observations.noise_chol, 0.3 * np.eye(K), rtol=eps(dtype))
    chex.assert_type(observations, dtype)


def test_posterior_by_bayes_rule(rng, dtype):
    prior = oracle.random_gaussian(rng, (4,), K, dtype)
    observations = observations_of(rng, 4, dtype=dtype)
    actual = infer(prior, observations)
    chex.assert_type(actual, dtype)
    values, present, matrix, chol = (np.asarray(x, float) for x in observations)
    gain = matrix.T @ np.linalg.inv(chol @ chol.T)
    for i in range(4):
        precision = np.linalg.inv(np.asarray(covariance(prior), float)[i])
        information = precision @ np.asarray(prior.mean, float)[i] + gain @ (present[i] @ values[i])
        precision = precision + np.sum(present[i]) * gain @ matrix
        cov = np.linalg.inv(precision)
        # Two inversions of matrices of condition number below 100.
        np.testing.assert_allclose(
            np.asarray(covariance(actual))[i], cov, rtol=0, atol=200 * eps(dtype)
        )
        np.testing.assert_allclose(
            np.asarray(actual.mean)[i], cov @ information, rtol=0, atol=500 * eps(dtype)
        )


def whitened_error(posterior_, mean, precision):
    """Distance of a mean from the exact one in posterior standard deviations, and the largest
    departure of the whitened covariance from the identity.
    """
    root = np.linalg.cholesky(precision).T
    shift = root @ (np.asarray(posterior_.mean, float) - mean)
    factor = root @ np.asarray(posterior_.chol, float)
    return np.linalg.norm(shift), np.abs(factor @ factor.T - np.eye(len(mean))).max()


@pytest.mark.parametrize("prior_std", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("noise_std", [1e-1, 1e-2, 1e-3])
def test_posterior_is_exact_to_rounding_where_instruments_are_precise(prior_std, noise_std, rng):
    """Two of three coordinates are seen: the precision's condition number is (prior / noise)^2, up
    to 10^10, and that of its root 10^5.
    """
    matrix = np.linalg.qr(rng.normal(size=(K, K)))[0][:2]
    values = 1.0 + noise_std * rng.normal(size=(1, 3, 2))
    single = jax.tree.map(
        lambda x: np.asarray(x, np.float32),
        (
            Gaussian(np.zeros((1, K)), prior_std * np.eye(K)[None]),
            Observations(values, np.ones((1, 3)), matrix, noise_std * np.eye(2)),
        ),
    )
    prior, (values, _, matrix, _) = jax.tree.map(lambda x: np.asarray(x, float), single)
    noise, deviation = (float(x[0, 0]) for x in (single[1].noise_chol, prior.chol[0]))
    precision = np.eye(K) / deviation**2 + 3 * matrix.T @ matrix / noise**2
    mean = np.linalg.solve(precision, matrix.T @ values[0].sum(axis=0) / noise**2)
    actual = jax.tree.map(lambda x: np.asarray(x)[0], infer(*single))
    shift, spread = whitened_error(actual, mean, precision)
    # Data of 1 / noise standard deviations, and rows of condition number prior / noise, are
    # rounded. In float64 the reference itself loses the squared condition number.
    rounding = eps("float32") / noise_std
    assert shift < 10 * rounding
    assert spread < 10 * rounding * max(1.0, prior_std)


@pytest.mark.parametrize("kind", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_posterior_without_observations_is_the_prior(kind, rng):
    prior = oracle.random_gaussian(rng, (4,), K, kind)
    observations = observations_of(rng, 4, dtype=kind)
    nothing = observations._replace(present=np.zeros_like(observations.present))
    lower = prior._replace(chol=np.tril(prior.chol))
    chex.assert_trees_all_close(infer(prior, nothing), lower, rtol=0, atol=20 * eps(kind))
    chex.assert_tree_all_finite(slope_of_posterior(prior, nothing, lower))


def test_presence_may_be_a_mask(rng):
    belief = oracle.random_gaussian(rng, (4,), K)
    observations = observations_of(rng, 4)
    masked = observations._replace(present=np.asarray(observations.present) > 0)
    chex.assert_trees_all_equal(likelihood(belief, masked), likelihood(belief, observations))
    chex.assert_trees_all_equal(infer(belief, masked), infer(belief, observations))


def test_gradient_of_the_posterior(rng):
    """Against central differences."""
    arguments = oracle.random_gaussian(rng, (4,), K), observations_of(rng, 4)
    cotangent, way, _ = (oracle.random_gaussian(rng, (4,), K) for _ in range(3))
    along = (
        way,
        jax.tree.map(np.zeros_like, arguments[1])._replace(
            values=rng.normal(size=arguments[1].values.shape)
        ),
    )

    def product(x, y):
        return sum(np.sum(np.asarray(a) * np.asarray(b)) for a, b in zip(x, y, strict=True))

    def at(step):
        moved = jax.tree.map(lambda x, d: np.asarray(x) + step * np.asarray(d), arguments, along)
        return product(infer(*moved), cotangent)

    slopes = slope_of_posterior(*arguments, cotangent)
    expected = (at(1e-5) - at(-1e-5)) / 2e-5
    # Third derivatives of order 10 times 1e-10, and rounding over 1e-5.
    np.testing.assert_allclose(
        sum(product(*pair) for pair in zip(slopes, along, strict=True)), expected, rtol=1e-7
    )


@pytest.mark.parametrize("fn", [expected_negative_log_likelihood, posterior])
@pytest.mark.parametrize("name", Observations._fields)
@pytest.mark.parametrize("dtype", ["float32", "int64", "complex128"])
def test_dtype_errors_name_the_array(fn, name, dtype, rng):
    observations = observations_of(rng, 4)
    wrong = observations._replace(**{name: np.asarray(getattr(observations, name)).astype(dtype)})
    with pytest.raises(ValueError, match=f"observation {name} must have .* float64, got {dtype}"):
        jax.eval_shape(fn, oracle.random_gaussian(rng, (4,), K), wrong)


def test_integer_measurements_are_refused():
    with pytest.raises(ValueError, match="values must be real floating numbers, got int64"):
        identity_observations(np.ones((2, 3, K), int), 0.3)


def test_posterior_minimises_self_coupling_plus_observation(rng):
    """There the gradient vanishes and the free energy is the surprise ``-log p(o)``, which no other
    belief reaches.
    """
    prior = oracle.random_gaussian(rng, (4,), K)
    observations = observations_of(rng, 4)

    @jax.jit
    def energy_and_slope(belief):
        def energy(belief):
            energies = kl_divergence(belief, prior) + expected_negative_log_likelihood(
                belief, observations
            )
            return jnp.sum(energies), energies

        return jax.grad(energy, has_aux=True)(belief)

    slope, energy = energy_and_slope(infer(prior, observations))
    chex.assert_trees_all_close(slope, jax.tree.map(np.zeros_like, slope), rtol=0, atol=1e-12)
    values, present, matrix, chol = map(np.asarray, observations)
    cov = np.asarray(covariance(prior))
    for i in range(4):
        seen = values[i][present[i] > 0].ravel()
        stack = np.tile(matrix, (int(np.sum(present[i])), 1))
        evidence = stack @ cov[i] @ stack.T + np.kron(
            np.eye(int(np.sum(present[i]))), chol @ chol.T
        )
        residual = seen - stack @ np.asarray(prior.mean)[i]
        surprise = 0.5 * residual @ np.linalg.solve(evidence, residual)
        surprise += 0.5 * np.linalg.slogdet(2 * math.pi * evidence)[1]
        np.testing.assert_allclose(energy[i], surprise, rtol=1e-12, atol=1e-13)
    other = oracle.random_gaussian(rng, (4,), K)
    assert np.all(energy_and_slope(other)[1] > energy)


def test_fields_are_single_points_side_by_side(rng):
    belief = oracle.random_gaussian(rng, (4, 2), K)
    observations = observations_of(rng, 4, (2,))
    actual = likelihood(belief, observations), infer(belief, observations)
    chex.assert_shape(actual[0], (4, 2))
    belief, observations, actual = jax.device_get((belief, observations, actual))
    for c in range(2):
        here = jax.tree.map(lambda x, c=c: x[:, c], belief)
        seen = observations._replace(
            values=observations.values[:, :, c], present=observations.present[:, :, c]
        )
        expected = likelihood(here, seen), infer(here, seen)
        at_point = jax.tree.map(lambda x, c=c: x[:, c], actual)
        chex.assert_trees_all_close(at_point, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("fn", [expected_negative_log_likelihood, posterior])
@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("matrix", (2, 4), r"observation matrix must have shape \[o, 3\], got \(2, 4\)"),
        ("values", (4, 4, 3), r"observation values must have shape .* o = 2, got \(4, 4, 3\)"),
        ("values", (4, 2), r"observation values must have shape .* got \(4, 2\)"),
        (
            "values",
            (3, 4, 2),
            r"observation values must have shape .* \(4,\) and o = 2, got \(3, 4, 2\)",
        ),
        ("present", (4, 3), r"present must have shape \(4, 4\) to fit the values, got \(4, 3\)"),
        (
            "noise_chol",
            (3, 3),
            r"noise_chol must have shape \(2, 2\) to fit the matrix, got \(3, 3\)",
        ),
    ],
)
def test_shape_errors_name_the_array(fn, field, shape, message, rng):
    belief = oracle.random_gaussian(rng, (4,), K)
    observations = observations_of(rng, 4)._replace(**{field: np.ones(shape)})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(fn, belief, observations)
