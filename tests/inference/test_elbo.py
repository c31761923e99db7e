import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.beliefs import gaussian
from vfejax.beliefs.gaussian import Gaussian
from vfejax.inference import elbo, expectations

# x | z ~ N(C z, I / 4) of 3 numbers, z ~ N(0, diag(1, 2))
EMISSION = np.array([[1.0, 0.3], [-0.5, 1.0], [0.2, 0.1]])
DATA = np.array([0.7, -1.2, 0.4])
PRIOR = np.diag([1.0, 2.0])


def log_likelihood(z):
    error = DATA - jnp.sum(EMISSION * z[None], axis=-1)
    return -2.0 * jnp.sum(error**2) - 1.5 * np.log(2 * np.pi / 4)


def log_prior(z):
    return -0.5 * (z[0] ** 2 + z[1] ** 2 / 2) - np.log(2 * np.pi) - 0.5 * np.log(2.0)


def exact():
    """Log evidence and posterior, by NumPy."""
    cov = EMISSION @ PRIOR @ EMISSION.T + np.eye(3) / 4
    log_det = np.linalg.slogdet(2 * np.pi * cov)[1]
    evidence = -0.5 * (DATA @ np.linalg.solve(cov, DATA) + log_det)
    gain = PRIOR @ EMISSION.T @ np.linalg.inv(cov)
    return evidence, gain @ DATA, PRIOR - gain @ EMISSION @ PRIOR


BELIEF = Gaussian(jnp.array([0.2, -0.4]), jnp.array([[0.7, 0.0], [0.1, 0.5]]))


def forms(expect):
    evidence, mean, cov = exact()
    posterior = gaussian.from_moments(jnp.asarray(mean), jnp.asarray(cov))
    prior = gaussian.from_moments(jnp.zeros(2), jnp.asarray(PRIOR))
    return (
        elbo.entropy_minus_energy(
            lambda z: log_likelihood(z) + log_prior(z), expect, gaussian.entropy(BELIEF)
        ),
        elbo.accuracy_minus_complexity(
            log_likelihood, expect, gaussian.kl_divergence(BELIEF, prior)
        ),
        elbo.evidence_minus_divergence(
            jnp.asarray(evidence), gaussian.kl_divergence(BELIEF, posterior)
        ),
    )


def closed_form(function):
    """Of a quadratic function: its value at the mean and half the trace of its curvature."""
    curvature = jax.hessian(function)(BELIEF.mean)
    return function(BELIEF.mean) + 0.5 * jnp.sum(curvature * gaussian.covariance(BELIEF))


def test_the_three_forms_are_equal():
    values = [b.elbo for b in jax.jit(lambda: forms(expectations.gauss_hermite(BELIEF, 2)))()]
    # sums of numbers below 20
    np.testing.assert_allclose(values, float(values[0]), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_samples_estimate_the_energy_without_bias():
    def log_joint(z):
        return log_likelihood(z) + log_prior(z)

    @jax.jit
    def estimates():
        expect = expectations.sampled(BELIEF, jax.random.key(0), 5000)
        first, second = expect(lambda z: jnp.stack([log_joint(z), log_joint(z) ** 2]))
        return first, second, closed_form(log_joint)

    first, second, expected = estimates()
    error = np.sqrt((second - first**2) / 5000)
    assert abs(float(first - expected)) < 4 * error
    assert error < 0.1


@pytest.mark.slow
def test_the_bound_is_tight_at_the_posterior():
    evidence, mean, cov = exact()

    @jax.jit
    def bound():
        q = gaussian.from_moments(jnp.asarray(mean), jnp.asarray(cov))
        return elbo.entropy_minus_energy(
            lambda z: log_likelihood(z) + log_prior(z),
            expectations.gauss_hermite(q, 2),
            gaussian.entropy(q),
        )

    np.testing.assert_allclose(bound().elbo, evidence, rtol=0, atol=1e-13)


def test_quadrature_takes_one_gaussian():
    with pytest.raises(ValueError, match=r"mean \(3, 2\)"):
        expectations.gauss_hermite(Gaussian(jnp.zeros((3, 2)), jnp.ones((3, 2, 2))), 2)
