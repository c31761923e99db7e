"""Gradient flow: Euler's method for sgd, learning rates per leaf, retractions, optax's own
optimisers.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.dynamics.gradient_flow import (
    GradientFlowState,
    broadcast_prefix,
    gradient_flow,
    scale_by_tree,
)
from vfejax.dynamics.rollout import rollout

single_is_slow = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(np.dtype("float32"), id="float32", marks=pytest.mark.slow),
        pytest.param(np.dtype("float64"), id="float64"),
    ],
)

STIFFNESS = np.diag([1.0, 4.0]) + 0.5


class Pair(NamedTuple):
    """A position with two groups."""

    fast: dict
    slow: jax.Array


def lenient(optimizer):
    """Optax's Adam mixes a Python float with an int32 count: let it, and hold only our own code to
    strict promotion.
    """

    def update(gradient, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(gradient, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def quadratic(x):
    return 0.5 * jnp.sum(x * jnp.matmul(jnp.asarray(STIFFNESS, x.dtype), x, precision="highest"))


def coupled(position):
    u, v, w = position.fast["u"], position.fast["v"], position.slow
    return jnp.sum(u**2) + jnp.sum(v**4) + jnp.sum(w**2 * (1.0 + jnp.sum(u * v)))


def pair(dtype):
    fast = {"u": np.array([0.5, -1.0], dtype), "v": np.array([0.3, 0.8], dtype)}
    return Pair(fast, np.array([[1.0, -2.0]], dtype))


coupled_gradient = jax.jit(jax.grad(coupled))


def one_step(*flows):
    """``start -> (state, info)`` of each flow, in one program."""
    return jax.jit(lambda start: [flow.step(flow.init(start)) for flow in flows])


def test_broadcast_prefix_gives_every_leaf_the_value_above_it():
    tree = pair(jnp.float32)
    assert broadcast_prefix(2.0, tree) == Pair({"u": 2.0, "v": 2.0}, 2.0)
    assert broadcast_prefix(Pair(2.0, 3.0), tree) == Pair({"u": 2.0, "v": 2.0}, 3.0)
    assert broadcast_prefix(Pair({"u": 1.0, "v": 2.0}, 3.0), tree) == Pair(
        {"u": 1.0, "v": 2.0}, 3.0
    )
    with pytest.raises(ValueError, match="u"):
        broadcast_prefix(Pair({"u": 1.0}, 3.0), tree)


@pytest.mark.parametrize("make", [optax.sgd, scale_by_tree])
def test_sgd_is_eulers_method(make, dtype):
    """``x <- (1 - h A) x``, with the energy and the gradient of the position arrived at."""
    h, num = 0.1, 12
    flow = gradient_flow(quadratic, make(h))
    start = np.array([1.0, -2.0], dtype)
    state, info = jax.jit(lambda x: rollout(flow, flow.init(x), num))(start)
    x, energies, norms = np.array([1.0, -2.0]), [], []
    for _ in range(num):
        x = x - h * STIFFNESS @ x
        energies.append(0.5 * x @ STIFFNESS @ x)
        norms.append(np.linalg.norm(STIFFNESS @ x))
    # Each step rounds about four times, and the iteration contracts, but energy doubles relative
    # errors.
    tolerance = {"rtol": 10 * num * float(jnp.finfo(dtype).eps), "atol": 0}
    got = state.position, state.gradient, info.energy, info.gradient_norm
    expected = x, STIFFNESS @ x, np.stack(energies), np.stack(norms)
    chex.assert_trees_all_close(got, expected, **tolerance)
    assert info.aux is None


@single_is_slow
def test_energy_decreases_below_the_stability_limit_and_grows_above(dtype):
    limit = 2.0 / np.linalg.eigvalsh(STIFFNESS)[-1]

    @jax.jit
    def energies(step_size):
        flow = gradient_flow(quadratic, optax.sgd(step_size))
        return rollout(flow, flow.init(jnp.array([1.0, -2.0], dtype)), 30)[1].energy

    below, above = (
        np.asarray(energies(jnp.asarray(factor * limit, dtype))) for factor in (0.95, 1.05)
    )
    assert np.all(np.diff(below) < 0)
    assert above[-1] > above[0]


@single_is_slow
def test_gradient_norm_is_over_all_leaves(dtype):
    ((state, info),) = one_step(gradient_flow(coupled, optax.sgd(0.01)))(pair(dtype))
    leaves = jax.tree.leaves(coupled_gradient(state.position))
    flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
    np.testing.assert_allclose(
        info.gradient_norm, np.linalg.norm(flat), rtol=10 * float(jnp.finfo(dtype).eps)
    )


@single_is_slow
def test_learning_rate_per_leaf(dtype):
    """One for all, one per group, one per leaf."""
    cases = [
        (0.1, (0.1, 0.1, 0.1)),
        (Pair(0.1, 0.0), (0.1, 0.1, 0.0)),
        (Pair({"u": 0.0, "v": 0.02}, 0.3), (0.0, 0.02, 0.3)),
    ]
    start = pair(dtype)
    gradient = coupled_gradient(start)
    assert all(np.max(np.abs(g)) > 0.1 for g in jax.tree.leaves(gradient))
    flows = [gradient_flow(coupled, scale_by_tree(rates)) for rates, _ in cases]
    for (state, _), (_, full) in zip(one_step(*flows)(start), cases, strict=True):
        rates = jax.tree.unflatten(jax.tree.structure(start), full)
        expected = jax.tree.map(
            lambda x, g, r: x - np.asarray(r * g, dtype), start, gradient, rates
        )
        eps = float(jnp.finfo(dtype).eps)
        chex.assert_trees_all_close(state.position, expected, rtol=0, atol=10 * eps)
        still = jax.tree.map(lambda r, x, moved: x if r else moved, rates, start, state.position)
        chex.assert_trees_all_equal(still, start)


def test_scale_by_tree_chains_behind_a_preconditioner():
    chained = optax.chain(lenient(optax.scale_by_adam()), scale_by_tree(Pair(0.05, 0.05)))
    flows = [gradient_flow(coupled, opt) for opt in (chained, lenient(optax.adam(0.05)))]
    (got, _), (expected, _) = one_step(*flows)(pair(np.float64))
    chex.assert_trees_all_close(
        got.position, expected.position, rtol=10 * float(jnp.finfo(np.float64).eps)
    )


def test_retraction_is_applied_before_the_energy_is_read(dtype):
    """Angles live in [-pi, pi): position, gradient, energy and aux are those of the wrapped
    angle.
    """

    def wrap(x, step):
        return jnp.mod(x + step + jnp.pi, 2.0 * jnp.pi) - jnp.pi

    def energy_fn(x):
        return jnp.sum(-jnp.cos(x) + 0.1 * x), x

    start = np.array([3.0, -3.1, 0.2], dtype)
    flow = gradient_flow(energy_fn, optax.sgd(3.0), has_aux=True, retract=wrap)
    ((state, info),) = one_step(flow)(start)
    free = np.asarray(start) - 3.0 * (np.sin(start) + 0.1)
    assert np.abs(free).max() > np.pi  # so the wrap has something to do
    eps = float(jnp.finfo(dtype).eps)
    x = np.asarray(state.position)
    np.testing.assert_allclose(x, (free + np.pi) % (2 * np.pi) - np.pi, rtol=0, atol=20 * eps)
    np.testing.assert_array_equal(info.aux, x)
    np.testing.assert_allclose(info.energy, np.sum(-np.cos(x) + 0.1 * x), rtol=20 * eps)
    np.testing.assert_allclose(state.gradient, np.sin(x) + 0.1, rtol=0, atol=20 * eps)


def test_adam_matches_a_plain_optax_loop():
    optimizer = lenient(optax.adam(0.05))
    flow = gradient_flow(coupled, optimizer)
    start = pair(np.float64)
    state, info = jax.jit(lambda x: rollout(flow, flow.init(x), 20))(start)

    @jax.jit
    def reference(position, memory):
        updates, memory = optimizer.update(jax.grad(coupled)(position), memory, position)
        return optax.apply_updates(position, updates), memory

    position, memory = start, jax.jit(optimizer.init)(start)
    for _ in range(20):
        position, memory = reference(position, memory)
    # Same arithmetic in two compilations; Adam's division by small second moments amplifies the odd
    # last bit.
    chex.assert_trees_all_close(
        (state.position, state.optimizer_state),
        (position, memory),
        rtol=0,
        atol=500 * float(jnp.finfo(np.float64).eps),
    )
    assert info.energy[-1] < info.energy[0]


def test_optimizer_sees_the_position():
    """Weight decay needs ``params``: with a flat energy it alone shrinks the position."""
    flow = gradient_flow(
        lambda x: 0.0 * jnp.sum(x), optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    )
    ((state, _),) = one_step(flow)(np.array([2.0, -4.0]))
    np.testing.assert_allclose(state.position, [1.9, -3.8], rtol=1e-15)


@single_is_slow
def test_aux_comes_back_and_changes_nothing_else(dtype):
    plain = gradient_flow(quadratic, optax.sgd(0.1))
    with_aux = gradient_flow(lambda x: (quadratic(x), {"x": x}), optax.sgd(0.1), has_aux=True)
    (state, info), (expected, expected_info) = one_step(with_aux, plain)(
        np.array([1.0, -2.0], dtype)
    )
    assert isinstance(state, GradientFlowState)
    chex.assert_trees_all_equal(state, expected)
    chex.assert_trees_all_equal(info[:2], expected_info[:2])
    np.testing.assert_array_equal(info.aux["x"], state.position)


@single_is_slow
def test_a_rate_of_zero_freezes_whatever_the_gradient(dtype):
    rates = {"a": 0.1, "b": np.zeros((), dtype)}
    update, _ = jax.jit(lambda g: scale_by_tree(rates).update(g, optax.EmptyState()))(
        {"a": np.ones(1, dtype), "b": np.array([np.inf, -np.inf, np.nan], dtype)}
    )
    np.testing.assert_array_equal(update["b"], 0.0)
    np.testing.assert_array_equal(update["a"], np.asarray([-0.1], dtype))


def test_a_frozen_leaf_at_the_end_of_its_domain_stays():
    flow = gradient_flow(
        lambda x: jnp.sum(x["a"] ** 2) + jnp.sum(jnp.sqrt(x["b"])),
        scale_by_tree({"a": 0.1, "b": 0.0}),
    )
    ((state, _),) = one_step(flow)({"a": np.ones(1), "b": np.zeros(1)})
    np.testing.assert_array_equal(state.position["b"], 0.0)
    np.testing.assert_allclose(state.position["a"], 0.8, rtol=1e-15)


def test_the_derivative_in_a_rate_is_right_at_rate_zero():
    def end(rate):
        flow = gradient_flow(quadratic, scale_by_tree(rate))
        return jnp.sum(flow.step(flow.init(jnp.ones(2)))[0].position)

    expected = -np.sum(STIFFNESS @ np.ones(2))
    np.testing.assert_allclose(jax.jit(jax.grad(end))(0.0), expected, rtol=1e-14)


def test_a_rate_of_any_dtype_keeps_the_precision_of_the_position():
    rates = [np.float64(0.1), jnp.asarray(0.1, jnp.float64), 0.1]
    flows = [gradient_flow(quadratic, scale_by_tree(rate)) for rate in rates]
    for state, _ in one_step(*flows)(np.ones(2, np.float32)):
        chex.assert_type(state.position, jnp.float32)
        np.testing.assert_allclose(state.position, 1 - 0.1 * STIFFNESS.sum(1), rtol=1e-6)


def test_positions_are_real_numbers():
    flow = gradient_flow(lambda x: jnp.sum(x["a"] ** 2), optax.sgd(0.5))
    ((state, _),) = one_step(flow)({"a": np.array([1, 2])})
    np.testing.assert_array_equal(state.position["a"], 0.0)
    with pytest.raises(ValueError, match=r"position\['a'\] must be real, got complex"):
        flow.init({"a": np.ones(1, complex)})


def test_the_norm_of_a_gradient_has_a_gradient_at_the_minimum():
    flow = gradient_flow(quadratic, optax.sgd(0.1))
    slope = jax.jit(jax.grad(lambda x: flow.step(flow.init(x))[1].gradient_norm))(np.zeros(2))
    np.testing.assert_array_equal(slope, 0.0)
