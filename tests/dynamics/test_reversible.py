"""Chains of kicks and drifts: three gradients that agree, a way back, and memory that does not grow
with depth.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.dynamics.reversible import (
    KickDrift,
    Pair,
    recomputed,
    reconstructed,
    reverse,
    stored,
)

DIM, DEPTH = 6, 12


def _kick(layer, q, mask):
    weights, key = layer
    heard = jnp.tanh(q @ weights["kick"]) * mask
    return jnp.where(jax.random.bernoulli(key, 0.8, q.shape), heard, 0 * heard), heard


def _drift(layer, p, mask):
    weights, _ = layer
    return weights["step"] * jnp.sin(p @ weights["drift"])


def _observe(layer, before, after, heard, mask):
    weights, _ = layer
    return jnp.sum(weights["step"] * heard * after.position * mask - before.momentum**2), after


STEP = KickDrift(_kick, _drift, _observe)


def _start(rng, dtype, depth=DEPTH, rows=5):
    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    weights = {"kick": draw(depth, DIM, DIM), "drift": draw(depth, DIM, DIM)}
    weights = jax.tree.map(lambda x: np.asarray(0.3, dtype) * x, weights) | {"step": draw(depth)}
    keys = jax.random.split(jax.random.key(0), depth)
    mask = np.tile(np.arange(rows)[:, None] % 3 > 0, DIM).astype(dtype)
    return Pair(draw(rows, DIM), draw(rows, DIM)), weights, keys, mask


def _loss(run, pair, weights, mask, keys):
    after, (sums, seen) = run(STEP, pair, (weights, keys), mask)
    return (
        jnp.sum(jnp.cos(after.position) + after.momentum**2)
        + jnp.sum(sums)
        + jnp.sum(seen.momentum**3)
    )


def test_the_three_gradients_agree_with_random_layers_outputs_and_constants(rng, dtype):
    pair, weights, keys, mask = _start(rng, dtype)

    @jax.jit
    def gradients(*arguments):
        return [
            jax.value_and_grad(partial(_loss, run), argnums=(0, 1, 2))(*arguments)
            for run in (stored, recomputed, reconstructed)
        ]

    expected, *others = jax.device_get(gradients(pair, weights, mask, keys))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(expected[1][:2]))
    assert not np.any(expected[1][2])  # constants
    # Roundings of a dozen layers, which double a change of the state now and then.
    tolerance = 100 * np.finfo(dtype).eps
    for found in others:
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            scale = np.max(np.abs(other), initial=0)
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


def test_a_kick_that_is_narrower_than_the_state_has_the_same_gradients():
    half = lambda x: x.astype(jnp.float16)  # noqa: E731
    step = KickDrift(lambda a, q, _: (half(a * q[:1]), None), lambda a, p, _: a)

    @jax.jit
    def slopes(weights):
        def end(run, weights):
            after, _ = run(step, Pair(jnp.ones(2, "f4"), jnp.ones(2, "f4")), weights)
            return jnp.sum(after.position**2)

        return [jax.grad(partial(end, run))(weights) for run in (stored, reconstructed)]

    with jax.numpy_dtype_promotion("standard"):
        expected, found = slopes(jnp.array([0.5, -0.25], jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # short numbers: half loses none


@jax.jit
def _there_and_back(pair, weights, keys, mask):
    after, _ = stored(STEP, pair, (weights, keys), mask)
    return after, reverse(STEP, after, (weights, keys), mask)


def test_the_way_back_errs_by_a_rounding_for_every_layer(rng, dtype):
    """Steps are short, so that a flow of any depth has the same length, and an error does not grow
    by more than a constant on its way.
    """
    for depth in (10, 160):
        pair, weights, keys, mask = _start(rng, dtype, depth)
        weights["step"] /= depth
        weights["kick"] /= depth
        after, found = jax.device_get(_there_and_back(pair, weights, keys, mask))
        assert max(np.max(np.abs(x - y)) for x, y in zip(after, pair, strict=True)) > 0.05
        error = max(np.max(np.abs(x - y)) for x, y in zip(found, pair, strict=True))
        # Four sums a layer, each rounded to half a unit of numbers below 4.
        assert error <= 4 * 2 * depth * np.finfo(dtype).eps


def test_volume_is_kept(rng):
    pair, weights, keys, mask = _start(rng, jnp.float64, rows=1)

    def flat(x):
        q, p = jnp.split(x, 2)
        after, _ = stored(STEP, Pair(q[None], p[None]), (weights, keys), 1 + mask)
        return jnp.concatenate(after, axis=-1)[0]

    jacobian = jax.jit(jax.jacfwd(flat))(np.concatenate(pair, axis=-1)[0])
    # Rounding, times a condition number of some thousands.
    np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, rtol=1e-10)


def _shear(layer, q, _):
    return jnp.tanh(q @ layer), None


def _bytes(run, depth):
    """Of the temporary arrays of a gradient."""
    step = KickDrift(_shear, lambda layer, p, _: jnp.tanh(p @ layer))

    def loss(weights, pair):
        return jnp.sum(jnp.sin(run(step, pair, weights)[0].position))

    state = jax.ShapeDtypeStruct((512, 16), jnp.float32)
    weights = jax.ShapeDtypeStruct((depth, 16, 16), jnp.float32)
    compiled = jax.jit(jax.grad(loss)).lower(weights, Pair(state, state)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_the_reconstructing_gradient_does_not_grow_with_depth():
    state = 4 * 512 * 16
    # The slopes of the weights, and what the compiler keeps of them.
    weights = 3 * 4 * 16 * 16
    assert _bytes(reconstructed, 12) - _bytes(reconstructed, 2) <= 10 * weights
    assert _bytes(stored, 12) - _bytes(stored, 2) >= 10 * 2 * state
