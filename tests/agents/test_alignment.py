"""Alignment energies of given divergences: values, slopes, empty neighbourhoods, layouts."""

from functools import partial

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
each_energy = pytest.mark.parametrize("energy_fn", oracle.ENERGIES, ids=lambda f: f.__name__)


@partial(jax.jit, static_argnums=0)
def on_rows(energy_fn, divergence, log_weight):
    return energy_fn(divergence, log_weight, ROWS)


@partial(jax.jit, static_argnums=0)
def with_slopes(energy_fn, divergence, log_weight):
    """Energies, and the derivatives of their sum with respect to divergences and log weights."""
    energy, pull_back = jax.vjp(lambda d, w: energy_fn(d, w, ROWS), divergence, log_weight)
    return energy, *pull_back(jnp.ones_like(energy))


def rows_of(rng, dtype=np.float64):
    """Divergences and log weights ``[6, 5]`` with the diagonal and one whole column without
    weight.
    """
    divergence = rng.uniform(0.0, 4.0, (6, 5))
    weight = rng.uniform(0.1, 1.0, (6, 5))
    weight[np.arange(5), np.arange(5)] = 0.0
    weight[:, 3] = 0.0
    with np.errstate(divide="ignore"):
        return jnp.asarray(divergence, dtype), jnp.asarray(np.log(weight), dtype)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def test_attention_is_a_weighted_softmax(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    beta = attention(divergence, log_weight)
    factors = np.exp(np.asarray(log_weight, float) - np.asarray(divergence, float))
    expected = factors / factors.sum(axis=1, keepdims=True)
    # exp of numbers up to 5: a few roundings of relative size eps.
    np.testing.assert_allclose(beta, expected, rtol=20 * eps(dtype), atol=0)
    np.testing.assert_array_equal(beta[:, 3], 0.0)
    np.testing.assert_allclose(jnp.sum(beta, axis=1), 1.0, rtol=10 * eps(dtype))


def test_weighted_is_attention_times_divergence(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    beta = np.asarray(attention(divergence, log_weight), float)
    energy = on_rows(alignment.weighted, divergence, log_weight)
    np.testing.assert_allclose(
        energy, (beta * np.asarray(divergence)).sum(axis=1), rtol=20 * eps(dtype)
    )


def test_entropic_is_mean_divergence_plus_divergence_of_the_attention(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    beta = np.asarray(attention(divergence, log_weight), float)
    weight = np.exp(np.asarray(log_weight, float))
    weight /= weight.sum(axis=1, keepdims=True)
    ratio = np.where(beta > 0, beta / np.where(weight > 0, weight, 1), 1)
    expected = (beta * np.asarray(divergence) + beta * np.log(ratio)).sum(axis=1)
    energy = on_rows(alignment.entropic, divergence, log_weight)
    # Energies of order 1 are differences of terms of order 4.
    np.testing.assert_allclose(energy, expected, rtol=0, atol=40 * eps(dtype))


def test_slope_of_entropic_is_the_attention(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    _, slope, _ = with_slopes(alignment.entropic, divergence, log_weight)
    beta = attention(divergence, log_weight)
    np.testing.assert_allclose(slope, beta, rtol=10 * eps(dtype), atol=0)


def test_slope_of_weighted_repels_pairs_above_the_mean(rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    _, slope, _ = with_slopes(alignment.weighted, divergence, log_weight)
    beta = attention(divergence, log_weight)
    mean = jnp.sum(beta * divergence, axis=1, keepdims=True)
    # beta (1 - (KL - <KL>)) is a difference of terms of order 4 beta.
    np.testing.assert_allclose(
        slope, beta * (1.0 - (divergence - mean)), rtol=0, atol=20 * eps(dtype)
    )
    far = (divergence > mean + 1.0) & (beta > 0)
    assert jnp.any(far)
    assert jnp.all(jnp.where(far, slope, -1.0) < 0)


@each_energy
def test_slope_in_the_log_weights(energy_fn, rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    _, _, slope = with_slopes(energy_fn, divergence, log_weight)
    beta = np.asarray(attention(divergence, log_weight), float)
    weight = np.exp(np.asarray(log_weight, float))
    mean = (beta * np.asarray(divergence)).sum(axis=1, keepdims=True)
    expected = {
        alignment.weighted: beta * (np.asarray(divergence) - mean),
        alignment.entropic: weight / weight.sum(axis=1, keepdims=True) - beta,
    }
    np.testing.assert_allclose(slope, expected[energy_fn], rtol=0, atol=20 * eps(dtype))


@each_energy
def test_without_neighbours_an_agent_pays_nothing_and_feels_nothing(energy_fn, rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    energy, slope, weight_slope = with_slopes(
        energy_fn, divergence, log_weight.at[2:4].set(-jnp.inf)
    )
    for array in (energy, slope, weight_slope):
        np.testing.assert_array_equal(array[2:4], jnp.zeros_like(array[2:4]))
        assert jnp.all(jnp.isfinite(array))
        assert jnp.all(jnp.any(array[np.array([0, 1, 4, 5])] != 0, axis=-1))


@each_energy
def test_without_edges_nobody_pays(energy_fn, dtype):
    nothing = jnp.zeros((0,), dtype)
    over = alignment.segments(jnp.zeros((0,), jnp.int32), 3)
    np.testing.assert_array_equal(energy_fn(nothing, nothing, over), jnp.zeros(3, dtype))


@each_energy
def test_one_neighbour_costs_its_divergence(energy_fn, dtype):
    divergence = jnp.tile(jnp.asarray([3.5, 7.0, 1.0, 2.0, 3.0], dtype), (6, 1))
    log_weight = jnp.full((6, 5), -jnp.inf, dtype).at[:, 0].set(-2.0)
    energy = on_rows(energy_fn, divergence, log_weight)
    np.testing.assert_allclose(energy, 3.5, rtol=10 * eps(dtype))


@each_energy
@pytest.mark.parametrize("offset", [-1e3, 1e3, 1e6])
def test_common_offset_of_the_divergences_is_added(energy_fn, offset, rng):
    divergence, log_weight = rows_of(rng)
    energy = on_rows(energy_fn, divergence + offset, log_weight)
    # The offset is rounded into the divergences.
    expected = on_rows(energy_fn, divergence, log_weight)
    np.testing.assert_allclose(energy - offset, expected, rtol=0, atol=1e-14 * abs(offset))


@each_energy
def test_common_factor_of_the_weights_cancels(energy_fn, rng):
    divergence, log_weight = rows_of(rng)
    energy = on_rows(energy_fn, divergence, log_weight - 200.0)
    np.testing.assert_allclose(
        energy, on_rows(energy_fn, divergence, log_weight), rtol=0, atol=1e-12
    )


@each_energy
def test_temperature_enters_through_the_units(energy_fn, rng):
    divergence, log_weight = rows_of(rng)
    tau = 0.3
    log_weight = jnp.broadcast_to(log_weight[0], log_weight.shape)
    energy = tau * on_rows(energy_fn, divergence / tau, log_weight)
    expected = jax.jit(oracle.ENERGIES[energy_fn])(
        divergence, tau, jnp.exp(log_weight[0]), jnp.ones((6, 5))
    )
    np.testing.assert_allclose(energy, expected, rtol=1e-13)


@each_energy
def test_edge_list_equals_rows(energy_fn, rng, dtype):
    divergence, log_weight = rows_of(rng, dtype)
    order = rng.permutation(30)
    over = alignment.segments(jnp.asarray(np.repeat(np.arange(6), 5)[order]), 6)
    on_edges = jax.jit(lambda d, w: energy_fn(d, w, over))
    energy = on_edges(divergence.reshape(-1)[order], log_weight.reshape(-1)[order])
    np.testing.assert_allclose(
        energy, on_rows(energy_fn, divergence, log_weight), rtol=0, atol=40 * eps(dtype)
    )
