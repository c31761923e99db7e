import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfejax.geometry import groups, irreps

SPINS = [(0,), (1,), (2,), (3,), (6,), (0, 1, 2), (1, 1, 1), (2, 0, 4)]
ANGLES = (0.0, 1e-9, 1e-3, 1.0, 3.0, math.pi, 2 * math.pi, 10.0)
EPSILON = np.cross(np.eye(3)[:, None], np.eye(3)[None])
LARGE = irreps.so3_generators((0, 1, 2, 3, 4))
VECTOR = irreps.so3_generators((1,))

general = jax.jit(groups.exponential)
closed_forms = [jax.jit(irreps.so3_exponential(max_spin)) for max_spin in range(5)]
closed_vector, closed_large = closed_forms[1], closed_forms[4]
principal = jax.jit(irreps.principal_rotation)
natural_direction = jax.jit(irreps.so3_natural_direction)
rotation_angle = jax.jit(irreps.rotation_angle)


def rotation_vectors(rng, angles, num=4):
    """``num`` random axes for each angle, ``[len(angles), num, 3]``."""
    axes = rng.normal(size=(len(angles), num, 3))
    return axes / np.linalg.norm(axes, axis=-1, keepdims=True) * np.asarray(angles)[:, None, None]


@pytest.mark.parametrize("spins", SPINS, ids=str)
def test_generators_represent_so3(spins):
    j = irreps.so3_generators(spins)
    size = sum(2 * spin + 1 for spin in spins)
    assert j.shape == (3, size, size)
    assert j.dtype == np.float64
    np.testing.assert_array_equal(j, -np.swapaxes(j, -1, -2))
    products = np.einsum("aij,bjk->abik", j, j)
    commutators = products - np.swapaxes(products, 0, 1)
    np.testing.assert_allclose(
        commutators, np.einsum("abc,cij->abij", EPSILON, j), rtol=0, atol=1e-13
    )
    casimir = np.repeat([-spin * (spin + 1.0) for spin in spins], [2 * spin + 1 for spin in spins])
    np.testing.assert_allclose(np.einsum("aij,ajk->ik", j, j), np.diag(casimir), rtol=0, atol=1e-13)


def test_direct_sum_is_block_diagonal():
    j = irreps.so3_generators((0, 1, 2))
    assert j.shape == (3, 9, 9)
    blocks = [irreps.so3_generators((spin,)) for spin in (0, 1, 2)]
    np.testing.assert_array_equal(j[:, 1:4, 1:4], blocks[1])
    np.testing.assert_array_equal(j[:, 4:, 4:], blocks[2])
    assert np.count_nonzero(j) == sum(np.count_nonzero(block) for block in blocks)


def test_spin_one_is_minus_epsilon_and_turns_x_towards_y():
    np.testing.assert_allclose(VECTOR, -EPSILON, rtol=0, atol=1e-15)
    quarter = closed_vector(jnp.array([0.0, 0.0, math.pi / 2]), VECTOR)
    np.testing.assert_allclose(
        quarter @ jnp.array([1.0, 0.0, 0.0]), [0.0, 1.0, 0.0], rtol=0, atol=1e-15
    )


def test_harmonics_are_ordered_as_documented():
    j_z = irreps.so3_generators((3,))[2]
    expected = np.zeros((7, 7))
    for block, m in enumerate((3, 2, 1)):
        expected[2 * block + 1, 2 * block] = m
        expected[2 * block, 2 * block + 1] = -m
    np.testing.assert_allclose(j_z, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("spins", [(), (-1,), (1, 0.5), (1, -2)], ids=str)
def test_bad_spins_are_refused(spins):
    with pytest.raises(ValueError, match="spins must be a non-empty sequence of integers >= 0"):
        irreps.so3_generators(spins)


def test_direct_sum_refuses_different_algebras():
    with pytest.raises(ValueError, match=r"one algebra, got \[3, 6\] generators"):
        irreps.direct_sum(VECTOR, irreps.so_generators(4))


@pytest.mark.parametrize("n", range(2, 6))
def test_so_n_is_closed_and_turns_axis_i_towards_axis_j(n):
    generators = irreps.so_generators(n)
    assert generators.shape == (n * (n - 1) // 2, n, n)
    np.testing.assert_array_equal(generators, -np.swapaxes(generators, -1, -2))
    for generator, (i, j) in zip(generators, itertools.combinations(range(n), 2), strict=True):
        np.testing.assert_array_equal(generator @ np.eye(n)[i], np.eye(n)[j])
        np.testing.assert_array_equal(generator @ np.eye(n)[j], -np.eye(n)[i])
    products = np.einsum("aij,bjk->abik", generators, generators)
    commutators = products - np.swapaxes(products, 0, 1)
    # tr(J_a^T J_b) = 2 delta_ab, so projecting on the span needs no solve
    f = np.einsum("abij,cij->abc", commutators, generators) / 2
    np.testing.assert_array_equal(np.einsum("abc,cij->abij", f, generators), commutators)


def test_so_3_in_terms_of_spin_one():
    j_x, j_y, j_z = VECTOR
    np.testing.assert_allclose(irreps.so_generators(3), [j_z, -j_y, j_x], rtol=0, atol=1e-15)


def test_so_n_needs_a_plane():
    with pytest.raises(ValueError, match="n >= 2, got 1"):
        irreps.so_generators(1)


@pytest.mark.parametrize("max_spin", range(5))
def test_closed_form_is_the_exponential(max_spin, dtype, rng):
    generators = irreps.so3_generators(range(max_spin + 1))
    phi = jnp.asarray(rotation_vectors(rng, ANGLES), dtype)
    actual = closed_forms[max_spin](phi, generators)
    assert actual.dtype == dtype
    expected = general(np.asarray(phi, np.float64), LARGE)[
        ..., : generators.shape[-1], : generators.shape[-1]
    ]
    # powers up to 2 l of matrices of norm 2 l, over factorials, cancel: a factor 20 per two spins
    # in the error, and sin and cos of angles up to 10 round their argument
    tolerance = 50 * 2.5**max_spin * jnp.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def test_one_polynomial_serves_all_smaller_spins(rng):
    phi = jnp.asarray(rotation_vectors(rng, ANGLES))
    vector = closed_vector(phi, VECTOR)
    np.testing.assert_allclose(closed_large(phi, LARGE)[..., 1:4, 1:4], vector, rtol=0, atol=1e-12)


def test_closed_form_for_vectors_is_rodrigues_formula(dtype, rng):
    phi = jnp.asarray(rotation_vectors(rng, ANGLES), dtype)
    theta = np.linalg.norm(np.asarray(phi, np.float64), axis=-1)[..., None, None]
    x = np.tensordot(np.asarray(phi, np.float64), VECTOR, 1)
    expected = (
        np.eye(3) + np.sinc(theta / np.pi) * x + 0.5 * np.sinc(theta / (2 * np.pi)) ** 2 * (x @ x)
    )
    np.testing.assert_allclose(
        closed_vector(phi, VECTOR), expected, rtol=0, atol=50 * jnp.finfo(dtype).eps
    )


def test_closed_form_has_the_derivative_of_the_exponential(rng):
    generators = irreps.so3_generators((2,))
    phi = rotation_vectors(rng, ANGLES, num=1)[:, 0]
    weight = rng.normal(size=(5, 5))
    exponential = irreps.so3_exponential(2)
    gradient = jax.jit(jax.vmap(jax.grad(lambda p: jnp.sum(weight * exponential(p, generators)))))(
        phi
    )

    # exp([[X, J_a], [0, X]]) holds the derivative of exp(X) along J_a in its upper right block
    # (Higham 2008, theorem 3.6)
    block = np.zeros((len(ANGLES), 3, 10, 10))
    block[..., :5, :5] = block[..., 5:, 5:] = np.tensordot(phi, generators, 1)[:, None]
    block[..., :5, 5:] = generators
    derivative = np.asarray(jax.jit(groups.matrix_exponential)(block))[..., :5, 5:]
    expected = np.einsum("kl,nakl->na", weight, derivative)
    # four squarings at angle 10 and a polynomial with coefficients up to 10: some hundred roundings
    # of numbers up to 100
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-11)


def test_closed_form_second_derivative_at_zero_is_the_symmetrised_product():
    exponential = irreps.so3_exponential(2)
    generators = irreps.so3_generators((0, 1, 2))
    hessian = jax.jit(jax.jacfwd(jax.jacfwd(lambda phi: exponential(phi, generators))))(
        jnp.zeros(3)
    )
    products = np.einsum("aij,bjk->ikab", generators, generators)
    np.testing.assert_allclose(
        hessian, 0.5 * (products + np.swapaxes(products, -1, -2)), rtol=0, atol=1e-14
    )


def test_principal_rotation_keeps_the_rotation_within_the_ball(dtype, rng):
    angles = [*ANGLES, *(k * math.pi + d for k in range(1, 9) for d in (-1e-3, 0.0, 1e-3))]
    phi = jnp.asarray(rotation_vectors(rng, angles), dtype)
    inside = principal(phi)
    eps = jnp.finfo(dtype).eps
    assert np.all(
        np.linalg.norm(np.asarray(inside, np.float64), axis=-1) <= math.pi * (1 + 30 * eps)
    )
    # both roundings of phi: the angle, up to 25, times the spin, up to 2
    generators = irreps.so3_generators((0, 1, 2))
    before = closed_forms[2](np.asarray(phi, np.float64), generators)
    after = closed_forms[2](np.asarray(inside, np.float64), generators)
    np.testing.assert_allclose(after, before, rtol=0, atol=400 * eps)


def test_principal_rotation_leaves_the_ball_alone(dtype, rng):
    phi = jnp.asarray(rotation_vectors(rng, [0.0, 1e-12, 1.0, 3.14]), dtype)
    np.testing.assert_array_equal(principal(phi), phi)
    np.testing.assert_array_equal(principal(principal(3 * phi)), principal(3 * phi))


def test_principal_rotation_has_a_finite_derivative_everywhere(rng):
    phi = jnp.asarray(rotation_vectors(rng, [0.0, 1.0, math.pi, 2 * math.pi, 7.0], num=1)[:, 0])
    jacobian = jax.jit(jax.vmap(jax.jacfwd(irreps.principal_rotation)))(phi)
    assert np.isfinite(jacobian).all()
    np.testing.assert_array_equal(jacobian[0], np.eye(3))


COORDINATE = st.floats(-100, 100)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.tuples(COORDINATE, COORDINATE, COORDINATE))
def test_principal_rotation_of_any_vector(vector):
    phi = jnp.asarray(vector)
    inside = principal(phi)
    assert float(jnp.linalg.norm(inside)) <= math.pi * (1 + 1e-13)
    # sine and cosine of an angle up to 173
    np.testing.assert_allclose(
        closed_vector(inside, VECTOR), closed_vector(phi, VECTOR), rtol=0, atol=1e-12
    )


def test_rotation_angle_is_accurate_near_zero_and_pi(dtype, rng):
    angles = np.array([0.0, 1e-7, 1e-3, 1.0, 2.0, 3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi])
    rotation = jnp.asarray(closed_vector(rotation_vectors(rng, angles), VECTOR), dtype)
    actual = rotation_angle(rotation)
    expected = np.broadcast_to(angles[:, None], actual.shape)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=10 * jnp.finfo(dtype).eps)
    # an arc cosine would return 0 for 1e-7 in single precision and lose half the digits in double
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-7)


def test_rotation_angle_has_finite_gradients_at_the_identity_and_beyond(rng):
    phi = jnp.asarray(rotation_vectors(rng, [0.0, 1.0], num=1)[:, 0])
    gradient = jax.jit(
        jax.vmap(jax.grad(lambda p: irreps.rotation_angle(irreps.so3_exponential(1)(p, VECTOR))))
    )(phi)
    np.testing.assert_array_equal(gradient[0], 0.0)
    np.testing.assert_allclose(gradient[1], phi[1] / jnp.linalg.norm(phi[1]), rtol=0, atol=1e-14)


@jax.jit
@jax.vmap
def vector_derivative(phi):
    return jax.jacfwd(irreps.so3_exponential(1))(phi, VECTOR)


def test_natural_direction_inverts_the_pullback_of_the_killing_metric(dtype, rng):
    phi = jnp.asarray(rotation_vectors(rng, [0.0, 1e-9, 1.0, 3.0, math.pi], num=1)[:, 0], dtype)
    gradient = jnp.asarray(rng.normal(size=phi.shape), dtype)
    derivative = vector_derivative(np.asarray(phi, np.float64))
    # |dU|_F^2 / 2 is the metric in which the spin-1 generators are orthonormal
    metric = np.einsum("nija,nijb->nab", derivative, derivative) / 2
    expected = np.linalg.solve(metric, np.asarray(gradient, np.float64)[..., None])[..., 0]
    direction = natural_direction(phi, gradient)
    assert direction.dtype == dtype
    np.testing.assert_allclose(direction, expected, rtol=0, atol=50 * jnp.finfo(dtype).eps)
    np.testing.assert_array_equal(direction[0], gradient[0])


def test_natural_direction_is_the_identity_along_the_axis(rng):
    phi = jnp.asarray(rotation_vectors(rng, [0.5, 3.0, 6.0]))
    np.testing.assert_allclose(natural_direction(phi, phi), phi, rtol=1e-12)
    jacobian = jax.jit(jax.jacfwd(irreps.so3_natural_direction))(jnp.zeros(3), jnp.ones(3))
    np.testing.assert_array_equal(jacobian, np.zeros((3, 3)))
