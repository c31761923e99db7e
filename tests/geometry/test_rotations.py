import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.precisions import single_by_default
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from vfejax.geometry import irreps, rotations
from vfejax.geometry.transport import frames

ANGLES = (0.0, 1e-9, 1e-3, 1.0, 3.0, math.pi, 2 * math.pi, 10.0)
VECTOR = irreps.so3_generators((1,))
# The closed forms end at spin 2; from spin 3 on another algorithm takes over.
MANY = (1, 2, 3, 4, 6, 8, 10)
SUMS = [(0,), (0, 1), (1, 1, 0, 2), MANY]

closed_vector = jax.jit(lambda phi: rotations.so3_exponential(1)(phi, VECTOR))
closed_tensor = jax.jit(lambda phi: frames(phi, irreps.so3((0, 1, 2))))
principal = jax.jit(rotations.principal_rotation)
natural_direction = jax.jit(rotations.so3_natural_direction)
rotation_angle = jax.jit(rotations.rotation_angle)


def rotation_vectors(rng, angles, num=4):
    """``num`` random axes for each angle, ``[len(angles), num, 3]``."""
    axes = rng.normal(size=(len(angles), num, 3))
    return axes / np.linalg.norm(axes, axis=-1, keepdims=True) * np.asarray(angles)[:, None, None]


def blocks(spins):
    """Slices of the irreps of a direct sum."""
    ends = np.cumsum([2 * spin + 1 for spin in spins])
    return [slice(end - 2 * spin - 1, end) for end, spin in zip(ends, spins, strict=True)]


@pytest.mark.parametrize("spins", SUMS, ids=str)
def test_exponential_is_accurate_at_every_spin(spins, dtype, rng):
    angles = (*ANGLES[:-1], *np.linspace(0.1, 2 * math.pi, 8))
    phi = rotation_vectors(rng, angles, num=2).astype(dtype)
    actual = np.asarray(jax.jit(lambda phi: frames(phi, irreps.so3(spins)))(phi), np.float64)
    # Measured: at most 13 eps in float32; in float64 what remains is SciPy's own error, which grows
    # with the norm of its argument, the angle times the spin.
    tolerance = (20 if dtype == jnp.float32 else 3000) * jnp.finfo(dtype).eps
    for spin, block in zip(spins, blocks(spins), strict=True):
        x = np.tensordot(np.asarray(phi, np.float64), irreps.so3_generators((spin,)), 1)
        here = actual[..., block, block]
        np.testing.assert_allclose(here, expm(x), rtol=0, atol=tolerance, err_msg=f"spin {spin}")
        identity = np.broadcast_to(np.eye(2 * spin + 1), here.shape)
        product = here @ np.swapaxes(here, -1, -2)
        # The block with the largest spin decides how often all of them are squared.
        rounding = 10 * math.pi * max(1, *spins, 0) * jnp.finfo(dtype).eps
        np.testing.assert_allclose(product, identity, rtol=0, atol=rounding)


@single_by_default
def test_trace_is_the_character(dtype):
    phi = np.array([1.5, -1.8, 1.2], dtype)
    angle = np.linalg.norm(np.asarray(phi, np.float64))
    turned = np.asarray(jax.jit(lambda phi: frames(phi, irreps.so3(MANY)))(phi), np.float64)
    for spin, block in zip(MANY, blocks(MANY), strict=True):
        character = 1 + 2 * sum(math.cos(m * angle) for m in range(1, spin + 1))
        # 2 l + 1 diagonal entries with a few roundings each
        tolerance = 10 * (2 * spin + 1) * jnp.finfo(dtype).eps
        np.testing.assert_allclose(
            np.trace(turned[block, block]), character, rtol=0, atol=tolerance
        )


def test_large_angles_lose_only_the_rounding_of_the_angle(dtype, rng):
    phi = rotation_vectors(rng, [30.0, 1000.0, 1e5], num=2).astype(dtype)
    actual = jax.jit(lambda phi: frames(phi, irreps.so3(MANY)))(phi)
    inside = principal(np.asarray(phi, np.float64))
    expected = expm(np.tensordot(np.asarray(inside), irreps.so3_generators(MANY), 1))
    tolerance = 10 * 1e5 * 10 * jnp.finfo(dtype).eps  # spin times angle, a few roundings
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("max_spin", "spins"),
    [
        (0, (1,)),
        (1, (1, 3)),
        (2, (3,)),
        (4, (5,)),
        pytest.param(1, (2,), marks=pytest.mark.slow),
        pytest.param(2, (0, 10), marks=pytest.mark.slow),
    ],
)
def test_other_spins_are_refused(max_spin, spins):
    generators = irreps.so3_generators(spins)
    exponential = rotations.so3_exponential(max_spin)
    with pytest.raises(ValueError, match=f"integer spins up to {max_spin}"):
        exponential(jnp.ones(3), generators)
    phi = np.array([1.7, 0.3, -2.0])
    traced = np.asarray(jax.jit(exponential)(phi, generators))
    right = expm(np.tensordot(phi, generators, 1))
    assert np.isnan(traced).all() or np.abs(traced - right).max() < 1e-12


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_what_is_no_representation_is_refused(scale):
    with pytest.raises(ValueError, match="must represent so"):
        rotations.so3_exponential(2)(jnp.ones(3), scale * VECTOR)
    with pytest.raises(ValueError, match="must represent so"):
        rotations.so3_exponential(1)(jnp.ones(6), irreps.so_generators(4))


@pytest.mark.parametrize("known", [True, False], ids=["constant", "traced"])
def test_any_basis_of_a_representation_is_accepted(known, dtype):
    mixing = np.random.default_rng(0).normal(size=(5, 5)) + 3 * np.eye(5)
    generators = np.linalg.inv(mixing) @ irreps.so3_generators((2,)) @ mixing
    phi, given = np.asarray([0.3, -1.0, 0.7], dtype), generators.astype(dtype)
    run = rotations.so3_exponential(2)
    actual = jax.jit(lambda phi: run(phi, given))(phi) if known else jax.jit(run)(phi, given)
    expected = expm(np.tensordot(np.asarray(phi, np.float64), generators, 1))
    # rounding of the generators times the condition number of the basis
    np.testing.assert_allclose(actual, expected, rtol=0, atol=500 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("max_spin", [-1, 0.5, True])
def test_bad_max_spin_is_refused(max_spin):
    with pytest.raises(ValueError, match="max_spin must be an integer >= 0"):
        rotations.so3_exponential(max_spin)


@jax.jit
def every_form(phi):
    """Frames of spins 1 and 2, which have closed forms, and of spin 3."""
    return [frames(phi, irreps.so3((spin,))) for spin in (1, 2, 3)]


def test_integer_coordinates_are_numbers():
    whole = every_form(np.array([1, 0, 2]))
    chex.assert_trees_all_equal(whole, every_form(np.array([1.0, 0.0, 2.0])))
    for spin in (1, 2, 3):
        with pytest.raises(ValueError, match="phi must be real"):
            frames(np.ones(3, complex), irreps.so3((spin,)))


@single_by_default
def test_nan_stays_with_its_member(dtype):
    phi = np.asarray([[np.nan, 0, 0], [0.1, 0.2, 0.3], [np.inf, 0, 0]], dtype)
    good = np.stack([phi[1]] * 3)
    for turned, expected in zip(
        *(jax.tree.map(np.asarray, every_form(x)) for x in (phi, good)), strict=True
    ):
        assert np.isnan(turned[0]).any()
        assert np.isnan(turned[2]).any()
        np.testing.assert_array_equal(turned[1], expected[1])
        chex.assert_tree_all_finite(turned[1])


def test_closed_form_for_vectors_is_rodrigues_formula(dtype, rng):
    phi = rotation_vectors(rng, ANGLES).astype(dtype)
    theta = np.linalg.norm(np.asarray(phi, np.float64), axis=-1)[..., None, None]
    x = np.tensordot(np.asarray(phi, np.float64), VECTOR, 1)
    expected = (
        np.eye(3) + np.sinc(theta / np.pi) * x + 0.5 * np.sinc(theta / (2 * np.pi)) ** 2 * (x @ x)
    )
    np.testing.assert_allclose(closed_vector(phi), expected, rtol=0, atol=50 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("spin", [1, 2, 3])
def test_exponential_has_its_exact_derivative(spin, rng):
    generators, k = irreps.so3_generators((spin,)), 2 * spin + 1
    phi = rotation_vectors(rng, ANGLES, num=1)[:, 0]
    weight = rng.normal(size=(k, k))
    gradient = jax.jit(
        jax.vmap(jax.grad(lambda p: jnp.sum(weight * frames(p, irreps.so3((spin,))))))
    )(phi)

    # exp([[X, J_a], [0, X]]) holds the derivative of exp(X) along J_a in its upper right block
    # (Higham 2008, theorem 3.6)
    block = np.zeros((len(ANGLES), 3, 2 * k, 2 * k))
    block[..., :k, :k] = block[..., k:, k:] = np.tensordot(phi, generators, 1)[:, None]
    block[..., :k, k:] = generators
    expected = np.einsum("kl,nakl->na", weight, expm(block)[..., :k, k:])
    # several squarings at angle 10: some hundred roundings of numbers up to 100
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "spins", [(0, 1, 2), (3,), pytest.param((0, 1), marks=pytest.mark.slow)], ids=str
)
def test_second_derivative_at_zero_is_the_symmetrised_product(spins):
    generators = irreps.so3_generators(spins)
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(lambda phi: frames(phi, irreps.so3(spins)))))(
        np.zeros(3)
    )
    products = np.einsum("aij,bjk->ikab", generators, generators)
    expected = 0.5 * (products + np.swapaxes(products, -1, -2))
    np.testing.assert_allclose(hessian, expected, rtol=0, atol=2e-14)


def test_principal_rotation_keeps_the_rotation_within_the_ball(dtype, rng):
    angles = [*ANGLES, *(k * math.pi + d for k in range(1, 9) for d in (-1e-3, 0.0, 1e-3))]
    phi = rotation_vectors(rng, angles).astype(dtype)
    inside = principal(phi)
    eps = jnp.finfo(dtype).eps
    assert np.all(
        np.linalg.norm(np.asarray(inside, np.float64), axis=-1) <= math.pi * (1 + 30 * eps)
    )
    # both roundings of phi: the angle, up to 25, times the spin, up to 2
    before = closed_tensor(np.asarray(phi, np.float64))
    after = closed_tensor(np.asarray(inside, np.float64))
    np.testing.assert_allclose(after, before, rtol=0, atol=400 * eps)


def test_principal_rotation_leaves_the_ball_alone(dtype, rng):
    phi = rotation_vectors(rng, [0.0, 1e-12, 1.0, 3.14]).astype(dtype)
    np.testing.assert_array_equal(principal(phi), phi)
    np.testing.assert_array_equal(principal(principal(3 * phi)), principal(3 * phi))


def test_principal_rotation_has_a_finite_derivative_everywhere(rng):
    phi = rotation_vectors(rng, [0.0, 1.0, math.pi, 2 * math.pi, 7.0], num=1)[:, 0]
    jacobian = jax.jit(jax.vmap(jax.jacfwd(rotations.principal_rotation)))(phi)
    chex.assert_tree_all_finite(jacobian)
    np.testing.assert_array_equal(np.asarray(jacobian)[0], np.eye(3))


COORDINATE = st.floats(-100, 100)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.tuples(COORDINATE, COORDINATE, COORDINATE))
def test_principal_rotation_of_any_vector(vector):
    phi = np.asarray(vector)
    inside = np.asarray(principal(phi))
    assert np.linalg.norm(inside) <= math.pi * (1 + 1e-13)
    # sine and cosine of an angle up to 173
    np.testing.assert_allclose(closed_vector(inside), closed_vector(phi), rtol=0, atol=1e-12)


def test_rotation_angle_is_accurate_near_zero_and_pi(dtype, rng):
    angles = np.array([0.0, 1e-7, 1e-3, 1.0, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi])
    rotation = np.asarray(closed_vector(rotation_vectors(rng, angles))).astype(dtype)
    actual = np.asarray(rotation_angle(rotation))
    expected = np.broadcast_to(angles[:, None], actual.shape)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=10 * jnp.finfo(dtype).eps)
    # an arc cosine would return 0 for 1e-7 in single precision and lose half the digits in double
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-7)


def test_rotation_angle_has_finite_gradients_at_the_identity_and_beyond(rng):
    phi = rotation_vectors(rng, [0.0, 1.0], num=1)[:, 0]
    gradient = jax.jit(
        jax.vmap(
            jax.grad(lambda p: rotations.rotation_angle(rotations.so3_exponential(1)(p, VECTOR)))
        )
    )(phi)
    gradient = np.asarray(gradient)
    np.testing.assert_array_equal(gradient[0], 0.0)
    np.testing.assert_allclose(gradient[1], phi[1] / np.linalg.norm(phi[1]), rtol=0, atol=1e-14)


@jax.jit
@jax.vmap
def vector_derivative(phi):
    return jax.jacfwd(rotations.so3_exponential(1))(phi, VECTOR)


def test_natural_direction_inverts_the_pullback_of_the_killing_metric(dtype, rng):
    phi = rotation_vectors(rng, [0.0, 1e-9, 1.0, 3.0, math.pi], num=1)[:, 0].astype(dtype)
    gradient = rng.normal(size=phi.shape).astype(dtype)
    derivative = vector_derivative(np.asarray(phi, np.float64))
    # |dU|_F^2 / 2 is the metric in which the spin-1 generators are orthonormal
    metric = np.einsum("nija,nijb->nab", derivative, derivative) / 2
    expected = np.linalg.solve(metric, np.asarray(gradient, np.float64)[..., None])[..., 0]
    direction = natural_direction(phi, gradient)
    chex.assert_type(direction, dtype)
    np.testing.assert_allclose(direction, expected, rtol=0, atol=50 * jnp.finfo(dtype).eps)
    np.testing.assert_array_equal(np.asarray(direction)[0], gradient[0])


def test_natural_direction_is_the_identity_along_the_axis(rng):
    phi = rotation_vectors(rng, [0.5, 3.0, 6.0])
    np.testing.assert_allclose(natural_direction(phi, phi), phi, rtol=1e-12)
    jacobian = jax.jit(jax.jacfwd(rotations.so3_natural_direction))(np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(jacobian, np.zeros((3, 3)))


def test_integer_vectors_have_directions_and_principal_balls():
    phi, covector = np.array([1, 0, 4]), np.array([0, 1, 2])
    whole = principal(phi), natural_direction(phi, covector)
    phi, covector = phi.astype(float), covector.astype(float)
    expected = principal(phi), natural_direction(phi, covector)
    np.testing.assert_array_equal(whole, expected)
