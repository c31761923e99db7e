"""The belief where to look: its bound and its optimum, and iterations that raise it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.allocation import budgets, posteriors
from vfejax.inference.allocation import messages as of_patches
from vfejax.inference.allocation.messages import Messages


def draw(rng, dtype=jnp.float64, size=6):
    rows = jnp.asarray(rng.gamma(2.0, size=(3, size)), dtype)
    prior = jnp.asarray(np.log(rng.dirichlet(np.ones(size))), dtype)
    return Messages(*rows), jnp.asarray([1.0, 0.5, 2.0], dtype), prior


def test_the_posterior_is_the_belief_with_the_largest_bound(rng):
    messages, weights, prior = draw(rng)
    others = np.log(rng.dirichlet(np.ones(6), size=200))

    @jax.jit
    def told(messages, others):
        value = of_patches.score(messages, weights)
        log_pi = posteriors.posterior(value, 0.7, prior)
        bound = lambda q: posteriors.elbo(q, value, 0.7, prior)  # noqa: E731
        return value, log_pi, bound(log_pi), jax.vmap(bound)(others)

    value, log_pi, best, bounds = jax.device_get(told(messages, others))
    messages, prior = jax.device_get((messages, prior))
    np.testing.assert_allclose(value, messages[0] + 0.5 * messages[1] + 2 * messages[2])
    evidence = 0.7 * np.log(np.sum(np.exp(prior + value / 0.7)))
    np.testing.assert_allclose(best, evidence, rtol=1e-13)
    # ELBO = optimum - T KL(pi || pi*), for every belief.
    missing = 0.7 * np.sum(np.exp(others) * (others - log_pi), axis=1)
    np.testing.assert_allclose(bounds, best - missing, rtol=1e-12)


def test_each_iteration_raises_the_bound_to_its_optimum(rng, dtype):
    messages, weights, prior = draw(rng, dtype)

    @jax.jit
    def raised(rate):
        found = posteriors.combine(
            messages, weights, temperature=0.5, log_prior=prior, rate=rate, num_iterations=40
        )
        value = of_patches.score(messages, weights)
        best = posteriors.posterior(value, 0.5, prior)
        return found, best, posteriors.elbo(found.log_pi, value, 0.5, prior)

    for rate in (0.2, 1.0):
        found, best, bound = jax.device_get(raised(rate))
        # Rounding of sums of six numbers up to 50.
        noise = 100 * jnp.finfo(dtype).eps
        assert np.all(np.diff(found.elbo) >= -noise)
        assert found.elbo[0] < found.elbo[1]
        np.testing.assert_allclose(found.elbo[-1], found.optimum, rtol=1e-5)
        assert found.elbo.dtype == found.log_pi.dtype == dtype
    np.testing.assert_allclose(found.log_pi, best, rtol=0, atol=40 * jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.elbo[-1], bound, rtol=1e-5)


def test_patches_that_do_not_count_are_never_looked_at(rng):
    messages, weights, prior = draw(rng)
    prior = prior.at[2].set(-jnp.inf)

    def bound(weights):
        found = posteriors.combine(messages, weights, log_prior=prior)
        return found.elbo[-1], found

    (_, found), slope = jax.jit(jax.value_and_grad(bound, has_aux=True))(weights)
    assert found.log_pi[2] == -jnp.inf
    assert np.all(np.isfinite(found.elbo))
    uniform = np.full(6, np.log(1 / 6))
    assert jax.jit(posteriors.elbo)(uniform, messages[0], 1.0, prior) == -jnp.inf
    assert np.all(np.isfinite(slope))


def test_the_gradient_of_a_loss_of_tokens_reaches_the_weights(rng):
    messages, weights, _ = draw(rng)
    wanted = np.arange(6.0)

    @jax.jit
    def loss(weights):
        log_pi = posteriors.posterior(of_patches.score(messages, weights))
        return jnp.sum((budgets.relaxed_tokens(log_pi, 30, 1, 12) - wanted) ** 2)

    slope = jax.jit(jax.grad(loss))(weights)
    step = 1e-6
    for i in range(3):
        shift = step * np.eye(3)[i]
        difference = (loss(weights + shift) - loss(weights - shift)) / (2 * step)
        np.testing.assert_allclose(slope[i], difference, rtol=1e-6, atol=1e-6)
    assert np.all(slope != 0)


def test_shapes_are_refused():
    with pytest.raises(ValueError, match=r"log_prior must have shape \[5\], got \[4\]"):
        posteriors.posterior(jnp.zeros(5), 1.0, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"log_pi must have shape \[5\], got \[4\]"):
        posteriors.elbo(jnp.zeros(4), jnp.zeros(5))
    with pytest.raises(ValueError, match=r"score must have shape \[p\], not empty, got \[0\]"):
        posteriors.posterior(jnp.zeros(0))
    with pytest.raises(ValueError, match="rate must be above 0 and at most 1, got 0"):
        posteriors.combine(Messages(*jnp.zeros((3, 5))), jnp.ones(3), rate=0)
