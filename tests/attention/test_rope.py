"""Rotary positions: rotations, products that depend on distances alone, and the torus."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.encodings import ENCODINGS, geometric, standard
from vfejax.attention.rope import rotary, rotate, standard_angles, turn

N, HEADS, CHANNELS = 5, 2, 6
RING, DEPTH = 12, 2


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
        jax.eval_shape(rotary, *(jax.ShapeDtypeStruct(x, float) for x in (shape, positions)))


def test_rotary_is_the_turn_by_the_standard_encoding_bit_for_bit(rng):
    x = jnp.asarray(rng.standard_normal((N, HEADS, CHANNELS)), jnp.float32)
    positions = jnp.asarray([0, 7, 1000, 3, 3])

    @jax.jit
    def both(x, positions):
        angles = standard_angles(positions, CHANNELS, dtype=x.dtype)
        rotated = rotate(x[None], positions, standard(CHANNELS))[0]
        return rotary(x, positions), turn(x, angles[:, None]), rotated

    turned, *others = both(x, positions)
    for other in others:
        np.testing.assert_array_equal(other, turned)


def encodings(depth):
    return {name: make(8, RING, depth) for name, make in ENCODINGS.items()}


def test_platters_own_groups_of_heads_and_turn_by_both_rates(rng):
    x, positions = rng.standard_normal((2, RING, 4, 8)), rng.integers(0, RING, (2, RING))
    table = encodings(DEPTH)

    @jax.jit
    def rotated(x, positions):
        return {name: rotate(x, positions, rates, DEPTH) for name, rates in table.items()}

    platter = np.arange(4) // 2
    for name, turned in rotated(jnp.asarray(x), jnp.asarray(positions)).items():
        turned, rates = np.asarray(turned), table[name]
        angles = positions[..., None, None] * rates.sequence + platter[:, None] * rates.depth
        expected = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
        # The angles below 12 pi of the oracle are rounded.
        np.testing.assert_allclose(
            turned[..., :4] + 1j * turned[..., 4:], expected, rtol=0, atol=100 * np.finfo(float).eps
        )


@functools.partial(jax.jit, static_argnums=0)
def all_angles(dtype, offset):
    """Angles ``[N, D, pairs]`` of every encoding for every depth, from a token of the ring on."""
    places, platters = offset + jnp.arange(RING), jnp.arange(DEPTH)
    return {
        name: [encodings(depth)[name].angles(places, platters, dtype) for depth in (1, DEPTH)]
        for name in ENCODINGS
    }


@jax.jit
def roll_errors(query, key, angles):
    """Relative error of equivariance under each roll: of all scores ``[N, D, N, D]`` of rolled
    tokens against the rolled scores.
    """

    def scores(roll):
        turned = [turn(jnp.roll(x, roll, axis=0), angles) for x in (query, key)]
        return jnp.einsum("ikc,jlc->ikjl", *turned, precision="highest")

    still = scores(0)

    def error(roll):
        difference = scores(roll) - jnp.roll(still, (roll, roll), axis=(0, 2))
        return jnp.linalg.norm(difference.ravel()) / jnp.linalg.norm(still.ravel())

    return jax.vmap(error)(jnp.arange(RING))


@pytest.mark.parametrize("name", ENCODINGS)
def test_scores_are_equivariant_under_every_roll_and_the_standard_ones_are_not(name, rng, dtype):
    query, key = (jnp.asarray(rng.standard_normal((RING, DEPTH, 8)), dtype) for _ in range(2))
    for angles in all_angles(dtype, 0)[name]:
        errors = np.asarray(roll_errors(query, key, angles))
        assert errors.shape == (RING,)
        if name == "standard":
            assert np.all(errors[1:] > 0.1)
        else:
            assert errors.max() <= {"float32": 1e-5, "float64": 1e-12}[dtype.name]


@pytest.mark.parametrize("offset", [RING, -RING, RING * 10**8])
def test_once_around_the_ring_is_the_same_place_to_the_last_bit(offset, dtype):
    here, there = all_angles(dtype, 0), all_angles(dtype, offset)
    assert not np.array_equal(here.pop("standard")[0], there.pop("standard")[0])
    jax.tree.map(np.testing.assert_array_equal, here, there)


@pytest.mark.parametrize(
    ("circumference", "kind"),
    [
        *((100, "int16"), (2**15 - 1, "int64"), (2**16 + 2, "uint32")),
        *((10**6 + 3, "int64"), (2**29 - 1, "int64"), (2**29 - 1, "int16")),
    ],
)
def test_turns_are_exact_on_large_rings_and_far_out(circumference, kind):
    limits = np.iinfo(kind)
    positions = np.array([limits.min, -1 if limits.min else 1, 0, 5, limits.max], kind)
    rates = geometric(12, circumference)
    turns = [round(rate * circumference / (2 * np.pi)) for rate in rates.sequence]
    expected = [[n * int(i) % circumference for n in turns] for i in positions]
    angles = rates.angles(jnp.asarray(positions), jnp.arange(1), jnp.float64)
    found = np.asarray(angles)[:, 0] * circumference / (2 * np.pi)
    # Residues below 2^29 times 2 pi / N and back.
    np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(float).eps)


def test_angles_come_in_the_default_float_and_for_any_leading_axes():
    angles_fn = geometric(8, RING, DEPTH).angles
    angles = jax.eval_shape(angles_fn, jnp.ones((2, 3, 5), int), jnp.zeros(4, int))
    chex.assert_shape(angles, (2, 3, 5, 4, 4))
    chex.assert_type(angles, jnp.float64)


@pytest.mark.parametrize(
    ("shape", "positions", "depth", "channels", "message"),
    [
        ((1, 4, 6, 8), (4,), 4, 8, r"depth must divide the 6 heads \(one of 1, 2, 3, 6\), got 4"),
        ((1, 4, 6, 8), (4,), 0, 8, "depth must divide the 6 heads"),
        ((4, 6, 8), (4,), 1, 8, r"x must be floating \[b, n, h, c\], got float64 \(4, 6, 8\)"),
        ((1, 4, 6, 8), (5,), 1, 8, r"positions must be \[4\] or \[1, 4\], got \[5\]"),
        ((1, 4, 6, 8), (4,), 1, 6, "encoding must be for the 8 channels of x, got one for 6"),
    ],
)
def test_rotate_names_what_does_not_fit(shape, positions, depth, channels, message):
    with pytest.raises(ValueError, match=message):
        rotate(jnp.zeros(shape), jnp.zeros(positions, int), geometric(channels, RING), depth)


def test_positions_and_angles_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="positions must be integers, got float64"):
        rotate(jnp.zeros((1, 4, 1, 8)), jnp.zeros(4), geometric(8, RING))
    with pytest.raises(ValueError, match=r"angles must broadcast to \(3, 4\), got \(4,\)"):
        turn(jnp.zeros((3, 8)), jnp.zeros(4))
