"""Channels of heads: widths, and positions as turns about one axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vfejax.models.blocks import OptionError
from vfejax.models.vfe.irreps import (
    num_copies,
    over_irreps,
    phases,
    so,
    so3,
    turn_back,
    turn_matrices,
    widen,
)


def test_positions_of_so3_turn_every_spin_about_z(rng):
    layout = so3((2, 0, 1), heads=2, copies=3)
    x = rng.standard_normal((1, 4, *layout.rates.shape))
    positions = np.array([[0, 1, 5, 900]])
    turned = jax.jit(lambda x, p: turn_back(x, layout, phases(layout, p, jnp.float64)))(
        x, positions
    )
    about_z = np.asarray(layout.group.generators)[2]
    for i, position in enumerate(positions[0]):
        for head, copy in ((0, 0), (1, 2)):
            angle = layout.rates[head, -2, copy]  # of spin 1
            turn = scipy.linalg.expm(-position * angle * about_z)
            # Rounding of angles of up to 1800 radians.
            np.testing.assert_allclose(
                turned[0, i, head, :, copy], turn @ x[0, i, head, :, copy], rtol=0, atol=1e-11
            )


def test_positions_of_so_n_turn_commuting_planes_at_rates_of_their_own():
    layout = so(5, heads=1, copies=2, base=16.0)
    np.testing.assert_allclose(layout.rates[0, :, 0], [1, 1, 0.25, 0.25, 0])
    np.testing.assert_allclose(layout.rates[0, :, 1], [0.5, 0.5, 0.125, 0.125, 0])


def test_rates_are_those_of_rotary_positions_with_heads_between_them():
    rates = so(2, heads=2, copies=4, base=100.0).rates[:, 0]
    np.testing.assert_allclose(rates[0], 100.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(rates[1], 100.0 ** (-(np.arange(4) + 0.5) / 4))


def test_only_a_share_of_the_copies_turns():
    for layout in (so3((1,), heads=2, copies=4, share=0.5), so(3, heads=2, copies=4, share=0.5)):
        assert np.all(layout.rates[:, :2, :2] > 0)
        np.testing.assert_array_equal(layout.rates[:, :, 2:], 0.0)


@pytest.mark.slow
def test_a_link_that_is_a_turn_looks_so_many_tokens_back(rng):
    layout, back, place = so3((0, 1), heads=2, copies=3), np.array([1, 4]), 9
    links = turn_matrices(layout, jnp.asarray(back), jnp.float64)
    x = rng.standard_normal((1, 1, *layout.rates.shape))
    linked = jnp.einsum("hrs,bnhs->bnhr", links, x.reshape(1, 1, 2, -1)).reshape(x.shape)
    here = turn_back(linked, layout, phases(layout, jnp.asarray([[place]]), jnp.float64))
    for head, tokens in enumerate(back):
        there = phases(layout, jnp.asarray([[place - tokens]]), jnp.float64)
        expected = turn_back(jnp.asarray(x), layout, there)[:, :, head]
        np.testing.assert_allclose(here[:, :, head], expected, rtol=0, atol=1e-13)


def test_sums_over_irreps_and_back(rng):
    x = jnp.asarray(rng.standard_normal((2, 4, 3)))
    sums = over_irreps(x, (3, 1))
    np.testing.assert_allclose(sums[:, 0], np.sum(x[:, :3], axis=1), rtol=1e-14)
    np.testing.assert_array_equal(widen(sums, (3, 1))[:, 2], sums[:, 0])
    np.testing.assert_array_equal(widen(sums, (3, 1))[:, 3], x[:, 3])


@pytest.mark.parametrize(
    ("dim", "near"), [(100, "such as 96 or 112"), (7, "such as 16"), (17, "such as 16 or 32")]
)
def test_a_width_that_the_irreps_cannot_give_is_answered_by_those_next_to_it(dim, near):
    with pytest.raises(OptionError, match=near) as caught:
        num_copies(dim, heads=4, components=4)
    assert caught.value.name == "dim"
