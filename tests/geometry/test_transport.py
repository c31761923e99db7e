import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.precisions import single_by_default

from vfejax.geometry import groups, irreps, transport

MIXING = np.random.default_rng(3).normal(size=(4, 4)) / 4
GROUPS = {
    "so(3)": irreps.so3_generators((0, 1, 2)),
    "gl(2)": MIXING.reshape(4, 2, 2),
}
EVERY_GROUP = pytest.mark.parametrize("generators", GROUPS.values(), ids=GROUPS.keys())

frames = jax.jit(transport.frames)
transport_operator = jax.jit(transport.transport_operator)
holonomy = jax.jit(transport.holonomy)
closed_form = irreps.so3((0, 1, 2))


def coordinates(rng, generators, num, dtype):
    return rng.normal(size=(num, 5, len(generators))).astype(dtype)


def tolerance(dtype):
    # 20 products of up to 9 x 9 matrices whose entries stay below about 10
    return 2000 * jnp.finfo(dtype).eps


@EVERY_GROUP
@single_by_default
def test_frames_are_exponentials(generators, dtype, rng):
    phi = coordinates(rng, generators, 1, dtype)[0]
    u = frames(phi, generators)
    chex.assert_type(u, dtype)
    chex.assert_shape(u, (5, *generators.shape[1:]))
    np.testing.assert_array_equal(u, jax.jit(groups.exponential)(phi, generators))


@EVERY_GROUP
def test_transport_composes(generators, dtype, rng):
    i, j, k = coordinates(rng, generators, 3, dtype)
    omega_ij, omega_jk, omega_ik = (
        np.asarray(transport_operator(*p, generators)) for p in ((i, j), (j, k), (i, k))
    )
    np.testing.assert_allclose(omega_ij @ omega_jk, omega_ik, rtol=0, atol=tolerance(dtype))


@EVERY_GROUP
@single_by_default
def test_transport_is_the_quotient_of_the_frames(generators, dtype, rng):
    i, j = coordinates(rng, generators, 2, dtype)
    omega = np.asarray(transport_operator(i, j, generators))
    u_i, u_j = np.asarray(frames(i, generators)), np.asarray(frames(j, generators))
    np.testing.assert_allclose(omega @ u_j, u_i, rtol=0, atol=tolerance(dtype))
    back = np.asarray(transport_operator(j, i, generators))
    identity = np.broadcast_to(np.eye(omega.shape[-1]), omega.shape)
    np.testing.assert_allclose(omega @ back, identity, rtol=0, atol=tolerance(dtype))
    np.testing.assert_allclose(
        transport_operator(i, i, generators), identity, rtol=0, atol=tolerance(dtype)
    )


@EVERY_GROUP
@single_by_default
def test_holonomy_of_every_loop_is_the_identity(generators, dtype, rng):
    phi = coordinates(rng, generators, 4, dtype)
    loop = [
        transport_operator(phi[a], phi[b], generators) for a, b in ((0, 1), (1, 2), (2, 3), (3, 0))
    ]
    around = np.asarray(holonomy(loop))
    identity = np.broadcast_to(np.eye(around.shape[-1]), around.shape)
    np.testing.assert_allclose(around, identity, rtol=0, atol=tolerance(dtype))

    curved = np.asarray(holonomy([np.asarray(loop[0]) * 1.01, *loop[1:]]))
    assert np.all(np.abs(curved - identity).max((-1, -2)) > 5e-3)


def test_holonomy_multiplies_in_the_order_given(rng):
    a, b, c = rng.normal(size=(3, 2, 3, 3))
    np.testing.assert_allclose(holonomy([a, b, c]), a @ b @ c, rtol=0, atol=1e-13)


@single_by_default
def test_closed_form_transport_is_the_general_one(dtype, rng):
    generators = GROUPS["so(3)"]
    i, j = coordinates(rng, generators, 2, dtype)
    closed = transport_operator(i, j, closed_form)
    np.testing.assert_allclose(
        closed, transport_operator(i, j, generators), rtol=0, atol=tolerance(dtype)
    )


@single_by_default
def test_rotations_transport_by_the_transpose(dtype, rng):
    generators = GROUPS["so(3)"]
    i, j = coordinates(rng, generators, 2, dtype)
    forth = np.asarray(transport_operator(i, j, closed_form))
    back = transport_operator(j, i, closed_form)
    np.testing.assert_allclose(back, np.swapaxes(forth, -1, -2), rtol=0, atol=tolerance(dtype))
