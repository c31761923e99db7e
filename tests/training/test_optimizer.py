"""The schedule's corners, what decays, and one step of AdamW written out."""

from typing import NamedTuple

import chex
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


@pytest.mark.parametrize(
    ("warmup", "total", "last"), [(100, 101, 0.1), (100, 50, 0.1), (100, 200, 0.1), (0, 2, 0.1)]
)
def test_every_schedule_reaches_its_peak_and_ends_at_the_final_rate(warmup, total, last):
    rate = jax.jit(jax.vmap(warmup_cosine(1.0, warmup, total, last)))
    values = np.asarray(rate(jnp.arange(total + 3)))
    np.testing.assert_allclose(values.max(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(values[total - 1 :], last, rtol=1e-6)


class _Weights(NamedTuple):
    kernel: jax.Array
    shift: jax.Array


@pytest.mark.parametrize(
    ("params", "decaying"),
    [
        ([jnp.ones(3)], [False]),
        ((jnp.ones(3), {"kernel": jnp.ones(2)}), (False, {"kernel": True})),
        (_Weights(jnp.ones(2), jnp.ones(2)), _Weights(True, False)),
        (jnp.ones(3), False),
        ({0: jnp.ones(2)}, {0: False}),
    ],
    ids=["list", "tuple", "NamedTuple", "bare array", "numbered"],
)
def test_weights_may_be_any_pytree(params, decaying):
    assert decays(params) == decaying
    optimizer = adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    expected = jax.tree.map(lambda p, d: -0.05 * p * d, params, decaying)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


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
