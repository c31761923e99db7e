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
    rate = jax.jit(warmup_cosine(np.float64(2.0), 4, 13, np.float64(0.1)))
    assert rate(0).dtype == jnp.float32
    traced = jax.jit(lambda peak: warmup_cosine(peak, 4, 13, 0.1)(2))(jnp.float32(2.0))
    np.testing.assert_allclose(traced, rate(2), rtol=1e-6)
    values = np.array([rate(step) for step in range(20)])
    np.testing.assert_allclose(values[:5], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)
    middle = 2.0 * (0.1 + 0.9 * 0.5)
    np.testing.assert_allclose(values[8], middle, rtol=1e-6)
    np.testing.assert_allclose(values[12:], 0.2, rtol=1e-6)
    assert np.all(np.diff(values[4:13]) < 0)


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 10), (10, 10), (20, 5), (0, 0)])
def test_schedule_of_any_length_is_finite_and_positive(warmup, total):
    rate = jax.jit(jax.vmap(warmup_cosine(1.0, warmup, total, 0.0)))
    values = np.asarray(rate(np.arange(max(total, 1))))
    chex.assert_tree_all_finite(values)
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


@jax.jit
def _decayed(params):
    """Updates without any gradient."""
    optimizer = adamw(0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optimizer.update(zeros, optimizer.init(params), params)[0]


class _Weights(NamedTuple):
    kernel: jax.Array
    shift: jax.Array


@pytest.mark.parametrize(
    ("params", "decaying"),
    [
        ([np.ones(3)], [False]),
        ((np.ones(3), {"kernel": np.ones(2)}), (False, {"kernel": True})),
        (_Weights(np.ones(2), np.ones(2)), _Weights(True, False)),
        (np.ones(3), False),
        ({0: np.ones(2)}, {0: False}),
    ],
    ids=["list", "tuple", "NamedTuple", "bare array", "numbered"],
)
def test_weights_may_be_any_pytree(params, decaying):
    assert decays(params) == decaying
    updates = _decayed(params)
    expected = jax.tree.map(lambda p, d: -0.05 * p * d, params, decaying)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_matrices_decay_and_scales_biases_and_physics_do_not():
    params = {
        "embed": {"embedding": np.ones((3, 2))},
        "mix": {"kernel": np.ones((2, 2)), "bias": np.ones(2), "hop": np.ones(4)},
        "experts": {"kernel_in": np.ones((2, 2, 2))},
        "norm": {"scale": np.ones((4, 2))},
    }
    updates = _decayed(params)
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
    params = {"bias": np.zeros(3)}
    slope = {"bias": np.asarray([300.0, -0.004, 400.0])}
    optimizer = adamw(0.1, clip_norm=1.0)
    step = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))
    updates, state = step(slope, params)
    np.testing.assert_allclose(
        updates["bias"], [-0.1, 0.1, -0.1], rtol=2e-3
    )  # epsilon 1e-8 beside 8e-6
    moment = optax.tree.get(state, "mu")["bias"]
    np.testing.assert_allclose(optax.tree.norm(moment), 0.1, rtol=1e-6)
