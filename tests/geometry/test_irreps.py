import itertools
import math

import chex
import numpy as np
import pytest
from scipy.linalg import expm

from vfejax.geometry import irreps

SPINS = [(0,), (1,), (2,), (3,), (6,), (0, 1, 2), (1, 1, 1), (2, 0, 4)]
EPSILON = np.cross(np.eye(3)[:, None], np.eye(3)[None])
VECTOR = irreps.so3_generators((1,))


@pytest.mark.parametrize("spins", SPINS, ids=str)
def test_generators_represent_so3(spins):
    j = irreps.so3_generators(spins)
    size = sum(2 * spin + 1 for spin in spins)
    chex.assert_shape(j, (3, size, size))
    chex.assert_type(j, np.float64)
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
    chex.assert_shape(j, (3, 9, 9))
    blocks = [irreps.so3_generators((spin,)) for spin in (0, 1, 2)]
    np.testing.assert_array_equal(j[:, 1:4, 1:4], blocks[1])
    np.testing.assert_array_equal(j[:, 4:, 4:], blocks[2])
    assert np.count_nonzero(j) == sum(np.count_nonzero(block) for block in blocks)


def test_spin_one_is_minus_epsilon_and_turns_x_towards_y():
    np.testing.assert_allclose(VECTOR, -EPSILON, rtol=0, atol=1e-15)
    quarter = np.asarray(expm(math.pi / 2 * VECTOR[2]))
    np.testing.assert_allclose(
        quarter @ np.array([1.0, 0.0, 0.0]), [0.0, 1.0, 0.0], rtol=0, atol=1e-15
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
    chex.assert_shape(generators, (n * (n - 1) // 2, n, n))
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
