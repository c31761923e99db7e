"""Resolvents against dense matrices: what each says of itself, computed by inverting T - z."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.written_mixers import compiled

from vfejax.models.resnet_bk.resolvents import LeftFeatures, ResolventFeatures, ResolventOperator
from vfejax.spectral.resolvent import left_resolvent_diagonal

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM, HEADS = 2, 7, 6, 3


@pytest.fixture
def states(rng):
    return jnp.asarray(3.0 * rng.standard_normal((BATCH, LENGTH, DIM)))


@functools.cache
def _mixer(kind):
    mixer = kind(DIM, HEADS, z_floor=0.1, dtype=jnp.float64, rngs=nnx.Rngs(0))
    # Larger than at first, so that every part of the formula matters.
    kernel = mixer.potential.levels.kernel
    kernel[...] = jnp.asarray(30.0 * np.asarray(kernel[...]))
    return mixer


@functools.cache
def _mix(kind):
    return compiled(_mixer(kind))


def _dense(potential, states):
    """T - z of every head, ``[b, heads, n, n]``, entry by entry."""
    diagonal = np.asarray(potential.diagonal(states))
    hopping, z = np.asarray(potential.hopping()), np.asarray(potential.z())
    found = np.zeros((BATCH, HEADS, LENGTH, LENGTH), complex)
    for i in range(LENGTH):
        found[..., i, i] = diagonal[:, i] - z
        if i:
            found[..., i, i - 1] = found[..., i - 1, i] = hopping
    return found


def test_left_features_are_those_of_every_chain_cut_off_after_the_token(states):
    mixer = _mixer(LeftFeatures)
    dense = _dense(mixer.potential, states)
    expected = np.stack(
        [np.linalg.inv(dense[..., : i + 1, : i + 1])[..., -1, -1] for i in range(LENGTH)], -1
    )
    mixed, info = _mix(LeftFeatures)(states)
    gates = np.asarray(mixer.potential.hopping())[:, None] * np.abs(expected)
    np.testing.assert_allclose(info.log_gates, np.log(gates), rtol=1e-12, atol=1e-12)
    features = np.concatenate([expected.real, expected.imag], 1).swapaxes(1, 2)
    np.testing.assert_allclose(mixed, features @ mixer.out.kernel[...], rtol=1e-11, atol=1e-13)


def test_two_sided_features_are_the_diagonal_of_the_inverse_and_see_the_future(states):
    mixer = _mixer(ResolventFeatures)
    mix = _mix(ResolventFeatures)
    mixed, _ = mix(states)
    inverse = np.linalg.inv(_dense(mixer.potential, states))
    diagonal = np.diagonal(inverse, axis1=-2, axis2=-1).swapaxes(1, 2)
    features = np.concatenate([diagonal.real, diagonal.imag], -1)
    np.testing.assert_allclose(mixed, features @ mixer.out.kernel[...], rtol=1e-11, atol=1e-13)
    moved = np.asarray(states).copy()
    moved[:, -1] += 1.0
    changed, _ = mix(moved)
    assert np.all(np.abs(np.asarray(changed) - mixed)[:, 0].max(-1) > 0)
    assert not hasattr(mixer, "decode")


def test_features_are_clamped(states):
    mixer = LeftFeatures(DIM, HEADS, clamp=0.2, dtype=jnp.float64, rngs=nnx.Rngs(0))
    mixer.out.kernel[...] = jnp.eye(2 * HEADS, DIM)
    graphdef, params = nnx.split(mixer)

    @jax.jit
    def both(states):
        mixer = nnx.merge(graphdef, params)
        diagonal = left_resolvent_diagonal(*mixer.potential.tridiagonal(states))
        return mixer(states)[0], diagonal

    features, left = jax.device_get(both(states))
    assert np.all(np.abs(features) <= 0.2)
    expected = np.clip(np.concatenate([left.real, left.imag], 1), -0.2, 0.2).swapaxes(1, 2)
    np.testing.assert_array_equal(features, expected[..., :DIM])


def test_the_operator_solves_every_chain_cut_off_after_the_token(states):
    mixer = _mixer(ResolventOperator)
    dense = _dense(mixer.potential, states)
    u = np.asarray(mixer.values(states)).reshape(BATCH, LENGTH, HEADS, -1).swapaxes(1, 2)
    y = np.stack(
        [
            np.linalg.solve(dense[..., : i + 1, : i + 1], u[..., : i + 1, :])[..., -1, :]
            for i in range(LENGTH)
        ],
        1,
    )
    parts = np.concatenate([y.real, y.imag], -1)
    parts /= np.sqrt(np.mean(parts**2, -1, keepdims=True) + 1e-5)
    gate = np.asarray(jax.nn.silu(mixer.gate(states))).reshape(BATCH, LENGTH, HEADS, -1)
    gated = parts * np.asarray(mixer.scale[...]) * np.concatenate([gate, gate], -1)
    expected = gated.reshape(BATCH, LENGTH, -1) @ np.asarray(mixer.out.kernel[...])
    mixed = _mix(ResolventOperator)(states)[0]
    np.testing.assert_allclose(mixed, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", [LeftFeatures, ResolventOperator])
def test_later_tokens_leave_earlier_outputs_bit_identical(kind, states):
    changed = np.asarray(states).copy()
    changed[:, 4:] += 1.0
    before, after = (np.asarray(_mix(kind)(x)[0]) for x in (states, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before != after, axis=-1)[:, 4:])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim 6 and heads 4"):
        ResolventOperator(6, 4, rngs=nnx.Rngs(0))
