"""Alignment energies of given divergences: values, slopes, empty neighbourhoods, bad values,
layouts.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import alignment

ROWS = alignment.rows()
attention = jax.jit(
    lambda divergence, log_weight: alignment.attention(divergence, log_weight, ROWS)
)
each_energy = pytest.mark.parametrize(
    "energy_fn", alignment.ALIGNMENTS.values(), ids=alignment.ALIGNMENTS
)


def _with_slopes(energy_fn, divergence, log_weight):
    """Energies, and the derivatives of their sum with respect to divergences and log weights."""
    energy, pull_back = jax.vjp(lambda d, w: energy_fn(d, w, ROWS), divergence, log_weight)
    return energy, *pull_back(jnp.ones_like(energy))


with_slopes = jax.jit(_with_slopes, static_argnums=0)


def on_rows(energy_fn, divergence, log_weight):
    return with_slopes(energy_fn, divergence, log_weight)[0]


@jax.jit
def saturating_with_slopes(divergence, log_weight, limit):
    return _with_slopes(partial(alignment.saturating, limit=limit), divergence, log_weight)


def rows_of(rng, dtype=np.float64):
    """Divergences and log weights ``[6, 5]`` with the diagonal and one whole column without
    weight.
    """
    divergence = rng.uniform(0.0, 4.0, (6, 5))
    weight = rng.uniform(0.1, 1.0, (6, 5))
    weight[np.arange(5), np.arange(5)] = 0.0
    weight[:, 3] = 0.0
    with np.errstate(divide="ignore"):
        return divergence.astype(dtype), np.log(weight).astype(dtype)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def test_attention_is_a_weighted_softmax(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    beta = attention(divergence, log_weight)
    factors = np.exp(np.asarray(log_weight, float) - np.asarray(divergence, float))
    expected = factors / factors.sum(axis=1, keepdims=True)
    # exp of numbers up to 5: a few roundings of relative size eps.
    chex.assert_trees_all_close(np.asarray(beta, float), expected, rtol=20 * eps(dtype), atol=0)
    np.testing.assert_array_equal(beta[:, 3], 0.0)


def test_weighted_energy_and_its_slopes(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    beta = np.asarray(attention(divergence, log_weight), float)
    exact = np.asarray(divergence, float)
    mean = (beta * exact).sum(axis=1, keepdims=True)
    energy, slope, weight_slope = with_slopes(alignment.weighted, divergence, log_weight)
    # beta (1 - (KL - <KL>)) is a difference of terms of order 4 beta: pairs far above the mean
    # repel.
    chex.assert_trees_all_close(
        jax.tree.map(partial(np.asarray, dtype=float), (energy, slope, weight_slope)),
        (mean[:, 0], beta * (1.0 - (exact - mean)), beta * (exact - mean)),
        rtol=0,
        atol=20 * eps(dtype),
    )
    far = (exact > mean + 1.0) & (beta > 0)
    assert np.any(far)
    assert np.all(np.asarray(slope)[far] < 0)


def test_entropic_energy_and_its_slopes(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    beta = np.asarray(attention(divergence, log_weight), float)
    weight = np.exp(np.asarray(log_weight, float))
    weight /= weight.sum(axis=1, keepdims=True)
    ratio = np.where(beta > 0, beta / np.where(weight > 0, weight, 1), 1)
    expected = (beta * np.asarray(divergence, float) + beta * np.log(ratio)).sum(axis=1)
    # Mean divergence plus the divergence of the attention; the envelope theorem. Energies of order
    # 1 are differences of terms of order 4.
    chex.assert_trees_all_close(
        jax.tree.map(
            partial(np.asarray, dtype=float),
            with_slopes(alignment.entropic, divergence, log_weight),
        ),
        (expected, beta, weight - beta),
        rtol=0,
        atol=40 * eps(dtype),
    )


def test_saturating_energy_and_its_slopes(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    limit = 2.0
    beta = np.asarray(attention(divergence, log_weight), float)
    weight = np.exp(np.asarray(log_weight, float))
    weight /= weight.sum(axis=1, keepdims=True)
    somebody = (1 - np.exp(-limit)) * (weight * np.exp(-np.asarray(divergence, float))).sum(axis=1)
    expected = -np.log(somebody + np.exp(-limit))
    heard = (somebody / (somebody + np.exp(-limit)))[:, None]
    assert np.all((heard > 0.1) & (heard < 0.9))
    # Slopes are the attention to neighbours where nobody competes for it; as for the entropic one.
    chex.assert_trees_all_close(
        jax.tree.map(
            partial(np.asarray, dtype=float),
            saturating_with_slopes(divergence, log_weight, limit),
        ),
        (expected, beta * heard, (weight - beta) * heard),
        rtol=0,
        atol=40 * eps(dtype),
    )


def test_saturating_energy_is_between_its_limits(rng, dtype):
    """Without a limit it is the entropic energy, bit for bit; far away it is the limit, flat."""
    divergence, log_weight = rows_of(rng, dtype)
    unlimited = saturating_with_slopes(divergence, log_weight, np.inf)
    entropic = with_slopes(alignment.entropic, divergence, log_weight)
    chex.assert_trees_all_equal(unlimited[0], entropic[0])
    # The slopes are multiplied by 1, as the exponential of a difference of 0.
    chex.assert_trees_all_close(unlimited, entropic, rtol=4 * eps(dtype), atol=0)
    near, far, infinite = (
        saturating_with_slopes(divergence + dtype.type(away), log_weight, 2.0)
        for away in (0, 1e3, np.inf)
    )
    assert np.all(near[0] < 2.0)
    assert np.all(near[0] < entropic[0])
    for energy, slope, weight_slope in (far, infinite):
        np.testing.assert_array_equal(energy, dtype.type(2.0))
        np.testing.assert_array_equal(slope, 0.0)
        np.testing.assert_array_equal(weight_slope, 0.0)


@each_energy
def test_without_neighbours_an_agent_pays_nothing_and_feels_nothing(energy_fn, rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    log_weight[2:4] = -np.inf
    results = jax.device_get(with_slopes(energy_fn, divergence, log_weight))
    chex.assert_tree_all_finite(results)
    for array in results:
        np.testing.assert_array_equal(array[2:4], np.zeros_like(array[2:4]))
        assert np.all(np.any(array[[0, 1, 4, 5]] != 0, axis=-1))


@each_energy
def test_without_edges_no_one_pays(energy_fn, dtype):
    nothing = np.zeros((0,), dtype)
    over = alignment.segments(np.zeros((0,), np.int32), 3)
    energy = jax.jit(lambda d, w: energy_fn(d, w, over))(nothing, nothing)
    np.testing.assert_array_equal(energy, np.zeros(3, dtype))


@pytest.mark.parametrize("energy_fn", [alignment.weighted, alignment.entropic])
@pytest.mark.parametrize("offset", [0.0, -1e3, 1e6])
def test_common_offsets(energy_fn, offset, rng):
    """A common offset of the divergences is added, a common factor of the weights cancels."""
    divergence, log_weight = rows_of(rng)
    expected = on_rows(energy_fn, divergence, log_weight)
    # The offset is rounded into the divergences, and 1000 into the log weights.
    energy = on_rows(energy_fn, divergence + offset, log_weight - 1000.0) - offset
    chex.assert_trees_all_close(energy, expected, rtol=0, atol=1e-14 * max(100, abs(offset)))


@each_energy
def test_weights_below_the_smallest_number_still_cancel(energy_fn, rng):
    divergence, log_weight = rows_of(rng, np.float32)
    expected = on_rows(energy_fn, divergence, log_weight)
    # exp(-200) is 0 in single precision; -200 rounds the logits to 200 eps.
    energy = on_rows(energy_fn, divergence, log_weight - 200.0)
    chex.assert_trees_all_close(energy, expected, rtol=0, atol=400 * eps("float32"))


@each_energy
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_divergence_never_lowers_an_energy(energy_fn, bad, rng):
    divergence, log_weight = rows_of(rng)
    expected = on_rows(energy_fn, divergence, log_weight)
    # Row 0 is bad altogether, row 1 in the pairs that do not count, the others not at all.
    worse = divergence.copy()
    worse[0] = 1e300
    largest = on_rows(energy_fn, worse, log_weight)[0]
    worse[0] = bad
    energy = np.asarray(on_rows(energy_fn, worse, log_weight))
    assert not energy[0] < largest
    assert not energy[0] < jnp.inf or energy_fn is alignment.saturating
    chex.assert_trees_all_close(energy[1:], np.asarray(expected)[1:], rtol=1e-14)
    beta = np.asarray(attention(worse, log_weight))
    assert np.all(np.isnan(beta[0]))
    chex.assert_tree_all_finite(beta[1:])


@each_energy
def test_one_infinite_neighbour_is_never_a_gain(energy_fn, rng):
    divergence, log_weight = rows_of(rng)
    lower = on_rows(alignment.entropic, divergence.copy(), log_weight)[0]
    divergence[0, 1] = np.inf
    # The soft minimum goes over the others; the weighted mean is 0 times infinity.
    assert not on_rows(energy_fn, divergence, log_weight)[0] < lower


@each_energy
def test_temperature_enters_through_the_units(energy_fn, rng):
    divergence, log_weight = rows_of(rng)
    tau = 0.3
    log_weight = np.broadcast_to(log_weight[0], log_weight.shape)
    energy = tau * on_rows(energy_fn, divergence / tau, log_weight)
    expected = jax.jit(oracle.ENERGIES[energy_fn])(
        divergence, tau, np.exp(log_weight[0]), np.ones((6, 5))
    )
    chex.assert_trees_all_close(energy, expected, rtol=1e-13)


@each_energy
def test_edge_list_equals_rows(energy_fn, rng):
    divergence, log_weight = rows_of(rng)
    order = rng.permutation(30)
    over = alignment.segments(np.repeat(np.arange(6), 5)[order], 6)
    on_edges = jax.jit(lambda d, w: energy_fn(d, w, over))
    energy = on_edges(divergence.reshape(-1)[order], log_weight.reshape(-1)[order])
    chex.assert_trees_all_close(
        energy, on_rows(energy_fn, divergence, log_weight), rtol=0, atol=1e-14
    )
    divergence[1, 2] = np.nan
    bad = divergence.reshape(-1)[order]
    assert list(np.isnan(on_edges(bad, log_weight.reshape(-1)[order]))) == [
        row == 1 for row in range(6)
    ]
