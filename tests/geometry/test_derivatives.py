"""Derivatives on grids: exact where they claim to be, of second order elsewhere, and covariant."""

import chex
import jax
import numpy as np
import pytest

from vfejax.geometry import connection, derivatives, grid, irreps
from vfejax.geometry.transport import frames

VECTOR = irreps.so3((1,))
central = jax.jit(derivatives.central_differences)
spectral = jax.jit(lambda fields, base: derivatives.spectral_derivatives(fields, base))


def test_differences_are_exact_for_polynomials_of_degree_two():
    base = grid.plane((5, 4), (2.0, 3.0))
    x, y = np.moveaxis(np.asarray(base.points), -1, 0)
    slope = central(1 + x + 2 * y - 3 * x * y + x**2 - 2 * y**2, base)
    chex.assert_trees_all_close(slope, np.stack([1 - 3 * y + 2 * x, 2 - 3 * x - 4 * y]), rtol=1e-12)


def test_differences_on_a_ring_see_the_sine_of_the_step():
    base = grid.ring(12, 3.0)
    turn = 2 * np.pi / 3.0
    x = np.asarray(base.points[:, 0])
    slope = central({"field": np.sin(turn * x)[:, None]}, base)["field"]
    expected = np.cos(turn * x) * np.sin(turn * 0.25) / 0.25
    chex.assert_trees_all_close(slope[0, :, 0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num", [7, 8])
def test_spectral_derivatives_are_exact_below_half_the_number_of_points(num):
    base = grid.torus((num, 5), (3.0, 2 * np.pi))
    x, y = np.moveaxis(np.asarray(base.points), -1, 0)
    turn = 2 * np.pi / 3.0
    field = np.sin(3 * turn * x) * np.cos(2 * y) + 2.0
    slope = spectral(field, base)
    chex.assert_trees_all_close(
        slope,
        np.stack(
            [
                3 * turn * np.cos(3 * turn * x) * np.cos(2 * y),
                -2 * np.sin(3 * turn * x) * np.sin(2 * y),
            ]
        ),
        rtol=0,
        atol=1e-12,
    )


def test_grids_that_have_no_derivative_are_refused():
    with pytest.raises(ValueError, match=r"at least 3 points along each axis, got a grid \(4, 2\)"):
        derivatives.central_differences(np.zeros((4, 2)), grid.torus((4, 2)))
    with pytest.raises(ValueError, match=r"all periodic, got periods .*inf"):
        derivatives.spectral_derivatives(np.zeros(4), grid.line(4))
    # A period that is traced cannot be refused.
    assert np.all(np.isnan(spectral(np.zeros(4), grid.line(4))))


@jax.jit
def covariant(links, mean, cov, base):
    return derivatives.covariant_differences(links)((mean, cov), base)


@pytest.mark.parametrize("base", [grid.torus((4, 3)), grid.plane((4, 3))], ids=["torus", "plane"])
def test_covariant_differences_turn_along_with_the_gauge(base, rng):
    phi, turn = rng.normal(size=(2, 4, 3, 3)), rng.normal(size=(4, 3, 3))
    mean, cov = rng.normal(size=(4, 3, 3)), rng.normal(size=(4, 3, 3, 3))
    links = jax.jit(connection.exponential_links)(phi, VECTOR)
    turned = jax.jit(connection.gauge_transform)(links, turn, VECTOR, base)
    g = np.asarray(jax.jit(frames)(turn, VECTOR))
    gt = np.swapaxes(g, -1, -2)
    before = covariant(links, mean, cov, base)
    after = covariant(turned, np.einsum("xyij,xyj->xyi", g, mean), g @ cov @ gt, base)
    expected = np.einsum("xyij,dxyj->dxyi", g, before[0]), g @ np.asarray(before[1]) @ gt
    chex.assert_trees_all_close(after, expected, rtol=0, atol=1e-12)
    # With links that are the identity they are central differences.
    nothing = jax.jit(connection.exponential_links)(0 * phi, VECTOR)
    plain = central((mean, cov), base)
    chex.assert_trees_all_close(covariant(nothing, mean, cov, base), plain, rtol=0, atol=1e-13)


def test_covariant_differences_approach_the_covariant_derivative():
    """``D m = dm + A m`` with ``A = 0.7 J_z`` along a ring."""
    base = grid.ring(64)
    x = np.asarray(base.points[:, 0])
    phi = np.zeros((1, 64, 3))
    phi[..., 2] = 0.7 * 2 * np.pi / 64
    links = jax.jit(connection.exponential_links)(phi, VECTOR)
    mean = np.stack([np.sin(x), np.cos(2 * x), x * 0 + 1], axis=-1)
    slope = np.stack([np.cos(x), -2 * np.sin(2 * x), 0 * x], axis=-1)
    exact = slope + 0.7 * np.stack([-mean[:, 1], mean[:, 0], 0 * x], axis=-1)
    found, _ = covariant(links, mean, np.zeros((64, 3, 3)), base)
    # h^2 / 6 times the third covariant derivative, at most 2.7^3.
    np.testing.assert_allclose(found[0], exact, rtol=0, atol=(2 * np.pi / 64) ** 2 / 6 * 2.7**3)
