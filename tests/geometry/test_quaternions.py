import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.geometry import quaternions

to_quaternion = jax.jit(quaternions.from_rotation_vector)
to_vector = jax.jit(quaternions.to_rotation_vector)
from_matrix = jax.jit(quaternions.from_matrix)
product = jax.jit(quaternions.product)

ANGLES = (0.0, 1e-9, 1e-3, 0.28, 0.29, 1.0, 3.0, np.pi - 1e-3)


def vectors(rng, dtype=np.float64):
    """Rotation vectors of every angle, about random axes and about each coordinate axis."""
    axes = np.concatenate([rng.normal(size=(3, 3)), np.eye(3)])
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    return np.concatenate([angle * axes for angle in ANGLES]).astype(dtype)


def matrices(phi):
    """Rodrigues' formula in float64."""
    phi = np.asarray(phi, np.float64)
    angle = np.linalg.norm(phi, axis=-1)[:, None, None]
    axis = np.divide(phi, angle[:, 0], where=angle[:, 0] > 0, out=np.zeros_like(phi))
    cross = np.cross(axis[:, None], np.eye(3)[None]).swapaxes(-1, -2)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def test_vectors_come_back_from_quaternions_at_every_angle(dtype, rng):
    phi = vectors(rng, dtype)
    quaternion = to_quaternion(phi)
    chex.assert_type(quaternion, dtype)
    # A few roundings of the angle.
    chex.assert_trees_all_close(to_vector(quaternion), phi, rtol=0, atol=10 * jnp.finfo(dtype).eps)
    # The other sign is the same rotation.
    chex.assert_trees_all_equal(to_vector(-quaternion), to_vector(quaternion))


def test_vectors_come_back_from_matrices_at_every_angle(dtype, rng):
    phi = vectors(rng, dtype)
    found = to_vector(from_matrix(matrices(phi).astype(dtype)))
    chex.assert_trees_all_close(found, phi, rtol=0, atol=10 * jnp.finfo(dtype).eps)


@pytest.mark.parametrize("axis", range(3))
def test_half_a_turn_has_one_of_two_opposite_vectors(axis):
    half = 2.0 * np.outer(np.eye(3)[axis], np.eye(3)[axis]) - np.eye(3)
    np.testing.assert_allclose(np.abs(to_vector(from_matrix(half))), np.pi * np.eye(3)[axis])


def test_the_product_is_that_of_the_matrices(rng):
    left, right = vectors(rng), rng.permutation(vectors(rng))
    found = to_vector(product(to_quaternion(left), to_quaternion(right)))
    chex.assert_trees_all_close(
        matrices(found), matrices(left) @ matrices(right), rtol=0, atol=1e-14
    )


def test_derivatives_of_both_orders_through_the_quaternion_are_those_of_the_identity():
    @jax.jit
    @jax.vmap
    def through(phi):
        def there_and_back(phi):
            return quaternions.to_rotation_vector(quaternions.from_rotation_vector(phi))

        def slope(phi):
            first = jax.jacfwd(there_and_back)(phi)
            return first, first

        second, first = jax.jacfwd(slope, has_aux=True)(phi)
        return first, second

    # At 0, on both sides of the end of the series, and near pi.
    phi = np.array(ANGLES)[:, None] * np.array([[0.6, 0.0, 0.8]])
    first, second = through(phi)
    eye = np.broadcast_to(np.eye(3), first.shape)
    chex.assert_trees_all_close(first, eye, rtol=0, atol=1e-13)
    # Divided by the sine once more, where the series ends.
    chex.assert_trees_all_close(second, np.zeros_like(second), rtol=0, atol=1e-11)


def test_nan_stays_with_its_rotation(rng):
    phi = vectors(rng)
    phi[3, 0] = np.nan
    found = np.asarray(to_vector(from_matrix(matrices(phi))))
    np.testing.assert_array_equal(np.isnan(found).any(-1), np.isnan(phi).any(-1))


def test_what_is_no_rotation_matrix_is_refused():
    with pytest.raises(ValueError, match="rotation must have shape"):
        quaternions.from_matrix(jnp.eye(4))
