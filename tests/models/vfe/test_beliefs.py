"""Divergences as products of rows, against every pair's own transport matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import vfe_oracle as oracle

from vfejax.models.vfe.beliefs import Belief, Transport, log_det_link
from vfejax.models.vfe.covariances import COVARIANCES
from vfejax.models.vfe.irreps import phases, so, so3
from vfejax.numerics import matmul, matmul_nt, transpose, triangularize

N = 3
LAYOUTS = {"so3": so3((0, 1), heads=2, copies=2), "so": so(5, heads=2, copies=1)}
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}  # condition numbers of links and covariances


def _case(rng, family, layout):
    """Beliefs and a link."""
    belief = oracle.random_belief(rng, COVARIANCES[family], layout, N)
    channels = layout.channels
    link = np.eye(channels) + 0.2 * rng.standard_normal((layout.heads, channels, channels))
    return belief, link


def _transport(layout, link):
    turn = phases(layout, jnp.arange(N)[None], jnp.float64)
    return Transport(turn, link, log_det_link(link))


@pytest.mark.parametrize(
    ("family", "group"),
    [
        ("irrep", "so3"),
        ("full", "so3"),
        *(
            pytest.param(family, group, marks=pytest.mark.slow)
            for family, group in (
                ("irrep", "so"),
                ("full", "so"),
                ("diagonal", "so3"),
                ("diagonal", "so"),
            )
        ),
    ],
)
def test_products_of_rows_are_the_divergences_of_all_pairs(family, group, rng):
    layout = LAYOUTS[group]
    belief, link = _case(rng, family, layout)

    @jax.jit
    def divergences(belief, link):
        transport = _transport(layout, link)
        own = COVARIANCES[family].receivers(belief, transport, layout)
        return jnp.einsum(
            "bnhr,bmhr->hnm", own, COVARIANCES[family].senders(belief, transport, layout)
        )

    found = divergences(belief, link)
    for head in range(layout.heads):
        omega = oracle.transports(layout, head, belief.frame[0, :, head], link[head], range(N))
        dense = oracle.dense(belief, family, layout, head)
        expected = oracle.known_kl(dense, dense, omega)
        np.testing.assert_allclose(found[head], expected, **ROUNDING)


@pytest.mark.slow  # what inference makes of it: test_inference.py
@pytest.mark.parametrize("family", ["irrep", "full"])
def test_a_global_gauge_changes_no_row(family, rng):
    """Turn all beliefs and frames of a head by one group element."""
    layout = LAYOUTS["so3"]
    belief, link = _case(rng, family, layout)
    belief = jax.tree.map(jnp.asarray, belief)
    phi = jnp.asarray(rng.standard_normal((layout.heads, 3)))
    turn = layout.group.exponential(phi, layout.group.generators)[None, None]
    turn = jnp.broadcast_to(turn, belief.frame.shape)
    spread = belief.spread
    if family == "full":
        vectors = jnp.broadcast_to(turn[..., None, 1:, 1:], spread[1].shape)
        factor = matmul(vectors, jnp.tril(spread[1]))
        spread = (spread[0], triangularize(transpose(factor)))
        np.testing.assert_allclose(matmul_nt(factor, factor), matmul_nt(spread[1], spread[1]))
    turned = Belief(matmul(turn, belief.mean), spread, matmul(turn, belief.frame))

    @jax.jit
    def rows(belief):
        found, transport = COVARIANCES[family], _transport(layout, link)
        return [f(belief, transport, layout) for f in (found.receivers, found.senders)]

    for before, after in zip(rows(belief), rows(turned), strict=True):
        np.testing.assert_allclose(after, before, **ROUNDING)


@pytest.mark.parametrize(
    "family",
    [
        family if family == "irrep" else pytest.param(family, marks=pytest.mark.slow)
        for family in COVARIANCES
    ],
)
def test_no_numbers_make_a_standard_normal_belief(family):
    layout, found = LAYOUTS["so3"], COVARIANCES[family]
    raw = jnp.zeros((1, 1, layout.heads, found.num_raw(layout)))
    belief = Belief(jnp.zeros((1, 1, *layout.rates.shape)), found.spread(raw, layout))
    x = jnp.ones_like(belief.mean)
    np.testing.assert_array_equal(found.times(belief.spread, x, layout), x)
    square = found.square(belief.spread, x, None, layout)
    np.testing.assert_allclose(square, jnp.full_like(square, layout.channels))
