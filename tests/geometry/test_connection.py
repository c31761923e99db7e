"""Links on a grid: gauge covariance, flatness of a pure gauge, small loops, and energies in closed
form.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.geometry import connection, grid, irreps
from vfejax.geometry.connection import Links

VECTOR = irreps.so3((1,))
SHEAR = np.array([[[0.3, 0.0], [0.0, 0.3]], [[0.0, 0.4], [0.4, 0.0]], [[0.0, 0.5], [0.0, 0.0]]])
GROUPS = {"rotations": VECTOR, "general": SHEAR}
SHAPE = (4, 3)
TORUS, PLANE = grid.torus(SHAPE), grid.plane(SHAPE)
AROUND = [(0, 2), (1, 1), (0, -2), (1, -1)]


@jax.jit
def observables(links, base):
    """What a gauge cannot change: traces of plaquettes and of a longer loop, and the action."""
    square = connection.plaquettes(links, base)
    loop = connection.path_transport(links, AROUND, base)
    traces = [jnp.trace(x, axis1=-2, axis2=-1) for x in (square, loop)]
    return *traces, connection.plaquette_energy(links, base), square, loop


links_of = jax.jit(connection.exponential_links)
pure_gauge = jax.jit(connection.pure_gauge)
transformed = jax.jit(connection.gauge_transform)


@pytest.mark.parametrize("generators", GROUPS.values(), ids=GROUPS.keys())
def test_a_local_gauge_change_alters_no_trace(generators, rng):
    links = links_of(rng.normal(size=(2, *SHAPE, 3)), generators)
    turned = transformed(links, rng.normal(size=(*SHAPE, 3)), generators, TORUS)
    before, after = observables(links, TORUS), observables(turned, TORUS)
    # Products of up to 14 matrices whose entries stay below 10.
    chex.assert_trees_all_close(after[:3], before[:3], rtol=1e-11, atol=1e-11)
    assert np.max(np.abs(after[3] - before[3])) > 0.1
    identity = np.broadcast_to(np.eye(links.forward.shape[-1]), links.forward.shape)
    chex.assert_trees_all_close(turned.forward @ turned.backward, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("generators", GROUPS.values(), ids=GROUPS.keys())
def test_a_pure_gauge_has_no_curvature_and_is_a_turned_identity(generators, rng):
    phi = rng.normal(size=(*SHAPE, 3))
    flat = pure_gauge(phi, generators, TORUS)
    *_, action, square, loop = observables(flat, TORUS)
    for product in (square, loop):
        identity = np.broadcast_to(np.eye(product.shape[-1]), product.shape)
        chex.assert_trees_all_close(product, identity, rtol=0, atol=1e-12)
    assert abs(action) < 1e-12
    nothing = links_of(np.zeros((2, *SHAPE, 3)), generators)
    chex.assert_trees_all_close(
        transformed(nothing, phi, generators, TORUS), flat, rtol=0, atol=1e-13
    )


def test_a_path_is_the_product_of_its_links_in_order(rng):
    links = links_of(rng.normal(size=(2, *SHAPE, 3)), VECTOR)
    loop = observables(links, TORUS)[-1]
    v, w = np.asarray(links.forward), np.asarray(links.backward)
    for i, j in np.ndindex(*SHAPE):
        a, b, c = i, (i + 1) % 4, (i + 2) % 4
        up = (j + 1) % 3
        expected = v[0, a, j] @ v[0, b, j] @ v[1, c, j] @ w[0, b, up] @ w[0, a, up] @ w[1, a, j]
        chex.assert_trees_all_close(loop[i, j], expected, rtol=0, atol=1e-13)


def test_open_axes_end_and_what_stands_behind_them_is_not_read(rng):
    links = links_of(rng.normal(size=(2, *SHAPE, 3)), VECTOR)
    broken = Links(*(np.array(x) for x in links))
    for x in broken:
        x[0, -1], x[1, :, -1] = np.nan, np.nan
    *_, action, square, loop = observables(broken, PLANE)
    chex.assert_trees_all_equal(square, observables(links, PLANE)[3])
    np.testing.assert_array_equal(square[0, -1], np.broadcast_to(np.eye(3), (3, 3, 3)))
    chex.assert_trees_all_close(action, np.sum(1 - np.trace(square, axis1=-2, axis2=-1) / 3))
    # A loop of two by one links fits from four of the twelve points.
    fits = np.zeros(SHAPE, bool)
    fits[:2, :2] = True
    np.testing.assert_array_equal(~np.isnan(loop[..., 0, 0]), fits)
    slope = jax.jit(jax.grad(lambda x: connection.plaquette_energy(x, PLANE)))(broken)
    chex.assert_tree_all_finite(slope)


def test_a_uniform_field_turns_by_its_flux():
    """SO(2) links on a torus with m quanta of flux: every plaquette turns by 2 pi m / N."""
    base, m = grid.torus((6, 4)), 2
    angle = 2 * np.pi * m / 24
    i, j = np.meshgrid(np.arange(6), np.arange(4), indexing="ij")
    phi = np.stack([np.where(i == 5, -6 * angle * j, 0.0), angle * i])[..., None]
    links = links_of(phi, irreps.so(2))
    *_, action, square, loop = observables(links, base)
    chex.assert_trees_all_close(square[0, ..., 0, 0], np.full((6, 4), np.cos(angle)), rtol=1e-13)
    chex.assert_trees_all_close(action, 24 * (1 - np.cos(angle)), rtol=1e-12)
    # The holonomy of a flat piece is the flux through it: two plaquettes.
    chex.assert_trees_all_close(loop[..., 1, 0], np.full((6, 4), np.sin(2 * angle)), rtol=1e-12)
    # Of rotations half the squared defect is k times Wilson's density.
    defect = connection.frobenius_defect(square)
    chex.assert_trees_all_close(jnp.sum(defect), 2 * action, rtol=1e-12)


def potential(x):
    """A smooth connection that does not commute with itself, ``[2, 3]``."""
    u, v = x[..., 0], x[..., 1]
    rows = [[jnp.sin(v), 0.4 * u, jnp.cos(u)], [0.3 * u * v, jnp.cos(u + v), 0.5 + 0 * u]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


@jax.jit
def curvature_and_loop(h):
    """F at the origin of a square of side h, and (P - 1) / h^2 in the algebra."""
    point = jnp.asarray([0.3, -0.2])
    base = grid.plane((2, 2))
    corners = point[None, None] + h * base.points
    middles = jnp.stack([corners.at[..., axis].add(h / 2) for axis in (0, 1)])
    phi = h * jnp.stack([potential(middles[axis])[..., axis, :] for axis in (0, 1)])
    square = connection.plaquettes(connection.exponential_links(phi, VECTOR), base)[0, 0, 0]
    return connection.curvature(potential, point, VECTOR), (square - jnp.eye(3)) / h**2


def test_small_loops_have_the_curvature_of_the_smooth_connection():
    errors = []
    for h in (0.02, 0.01):
        exact, found = curvature_and_loop(h)
        expected = np.einsum("a,aij->ij", exact[0, 1], VECTOR.generators)
        errors.append(np.linalg.norm(found - expected))
    # P = 1 + h^2 F + O(h^3): the error halves with h.
    assert errors[1] < 0.03 * np.linalg.norm(expected)
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.1
    chex.assert_trees_all_close(exact, -np.swapaxes(exact, 0, 1), rtol=0, atol=1e-14)
    # By hand: d_0 A_1 - d_1 A_0 + A_0 x A_1, as [J_x, J_y] = J_z.
    (u, v), a = (0.3, -0.2), np.asarray(potential(np.array([0.3, -0.2])))
    change = [0.3 * v - np.cos(v), -np.sin(u + v), 0.0]
    chex.assert_trees_all_close(exact[0, 1], change + np.cross(*a), rtol=1e-12, atol=1e-14)


def test_links_that_do_not_fit_are_refused():
    good, bad = np.zeros((2, 4, 3, 3, 3)), np.zeros((4, 3, 3, 3))
    with pytest.raises(ValueError, match=r"links.backward must be \[2, 4, 3, k, k\] .* \(4, 3, 3"):
        connection.plaquettes(Links(good, bad), TORUS)
    with pytest.raises(ValueError, match="moves must go along axes 0 to 1, got axis 2"):
        connection.path_transport(Links(good, good), [(2, 1)], TORUS)


def test_one_axis_has_no_plaquettes():
    links = Links(*np.zeros((2, 1, 4, 3, 3)))
    shape = jax.eval_shape(lambda x: connection.plaquettes(x, grid.ring(4)), links).shape
    assert shape == (0, 4, 3, 3)
