"""The schedule's corners, what decays, and one step of AdamW written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.training.optimizer import adamw, decays, warmup_cosine

pytestmark = pytest.mark.usefixtures("library_promotion")


def test_schedule_rises_linearly_falls_along_a_cosine_and_stays():
    rate = jax.jit(warmup_cosine(2.0, 4, 13, 0.1))
    values = np.array([rate(step) for step in range(20)])
    np.testing.assert_allclose(values[:5], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)
    middle = 2.0 * (0.1 + 0.9 * 0.5)
    np.testing.assert_allclose(values[8], middle, rtol=1e-6)
    np.testing.assert_allclose(values[12:], 0.2, rtol=1e-6)
    assert np.all(np.diff(values[4:13]) < 0)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 10), (10, 10), (20, 5), (0, 0)])
def test_schedule_of_any_length_is_finite_and_positive(warmup, total):
    rate = warmup_cosine(1.0, warmup, total, 0.0)
    values = np.array([rate(step) for step in range(max(total, 1))])
    assert np.all(np.isfinite(values))
    assert np.all(values >= 0)
    assert values[0] > 0


def test_matrices_decay_and_scales_biases_and_physics_do_not():
    params = {
        "embed": {"embedding": jnp.ones((3, 2))},
        "mix": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "hop": jnp.ones(4)},
        "experts": {"kernel_in": jnp.ones((2, 2, 2))},
        "norm": {"scale": jnp.ones((4, 2))},
    }
    optimizer = adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    moved = jax.tree.map(lambda u: bool(np.all(u < 0)), updates)
    assert moved == decays(params)
    assert moved == {
        "embed": {"embedding": True},
        "mix": {"kernel": True, "bias": False, "hop": False},
        "experts": {"kernel_in": True},
        "norm": {"scale": False},
    }
    np.testing.assert_allclose(updates["mix"]["kernel"], -0.1 * 0.5)


def test_first_step_is_the_clipped_sign_of_the_gradient():
    params = {"bias": jnp.zeros(3)}
    slope = {"bias": jnp.asarray([300.0, -0.004, 400.0])}
    optimizer = adamw(0.1, clip_norm=1.0)
    updates, state = optimizer.update(slope, optimizer.init(params), params)
    np.testing.assert_allclose(
        updates["bias"], [-0.1, 0.1, -0.1], rtol=2e-3
    )  # epsilon 1e-8 beside 8e-6
    moment = optax.tree.get(state, "mu")["bias"]
    np.testing.assert_allclose(optax.tree.norm(moment), 0.1, rtol=1e-6)
