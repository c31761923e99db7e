"""Rotary positions: rotations, and products that depend on distances alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.rope import rotary

N, HEADS, CHANNELS = 5, 2, 6


def test_it_is_the_rotation_of_every_plane(rng):
    x = rng.standard_normal((2, N, HEADS, CHANNELS))
    positions = rng.integers(0, 100, (2, N))
    turned = np.asarray(jax.jit(lambda *arrays: rotary(*arrays, base=50.0))(x, positions))
    half = CHANNELS // 2
    for j in range(half):
        plane = x[..., j] + 1j * x[..., j + half]
        expected = plane * np.exp(1j * positions / 50.0 ** (2 * j / CHANNELS))[..., None]
        np.testing.assert_allclose(
            turned[..., j] + 1j * turned[..., j + half], expected, rtol=1e-13
        )


def test_products_depend_on_the_distance_alone_and_norms_are_kept(rng, dtype):
    vectors = rng.standard_normal((2, N, HEADS, CHANNELS)).astype(dtype)
    turn = jax.jit(rotary)
    positions = np.tile(np.arange(N), (2, 1))
    near, far = (np.asarray(turn(vectors, positions + shift)) for shift in (0, 1000))
    products = [np.einsum("nhc,mhc->hnm", *pair) for pair in (near, far)]
    # An angle of 1000 radians is rounded by half a unit of its last digit.
    chex.assert_trees_all_close(*products, rtol=0, atol=1e4 * float(jnp.finfo(dtype).eps))
    chex.assert_type(near, dtype)
    for x, turned in zip(vectors, near, strict=True):
        norms = [np.sum(y * y, axis=-1) for y in (x, turned)]
        chex.assert_trees_all_close(*norms, rtol=10 * float(jnp.finfo(dtype).eps))
        np.testing.assert_array_equal(turned[0], x[0])


def test_half_precision_takes_its_angles_in_single(rng):
    x, positions = rng.standard_normal((1, 1, CHANNELS)).astype(jnp.bfloat16), np.array([1001])
    turn = jax.jit(rotary)
    turned = turn(x, positions)
    exact = np.asarray(turn(x.astype("float32"), positions)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(turned, exact)
    chex.assert_type(turned, jnp.bfloat16)


@pytest.mark.parametrize(
    ("shape", "positions", "message"),
    [
        ((N, HEADS, 3), (N,), "even number of channels"),
        ((HEADS, 4), (N,), "without heads and channels"),
        ((N, HEADS, 4), (N, 1), "without heads and channels"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shape, positions, message):
    with pytest.raises(ValueError, match=message):
        rotary(jnp.zeros(shape), jnp.zeros(positions, jnp.int32))
