"""Loopy belief propagation: exact on rows and columns, close on weakly coupled grids,
stationary."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.grid_oracle import enumerate_grid

from vfejax.inference import loopy

K = 3


def _run(nodes, across, along, damping=0.3):
    return loopy.belief_propagation(
        nodes, across, along, damping=damping, tolerance=1e-12, max_steps=400
    )


run = jax.jit(_run, static_argnames="damping")


@pytest.mark.parametrize("shape", [(1, 5), pytest.param((5, 1), marks=pytest.mark.slow)])
def test_rows_and_columns_are_exact(shape, rng):
    h, w = shape
    nodes = rng.normal(size=(h, w, K))
    across, along = rng.normal(size=(h, w - 1, K, K)), rng.normal(size=(h - 1, w, K, K))
    nodes[0, 0, 1] = -np.inf
    beliefs, info = run(nodes, across, along)
    marginals, log_partition = enumerate_grid(nodes, across, along)
    # Messages within 1e-12 of the fixed point.
    np.testing.assert_allclose(beliefs, marginals, rtol=0, atol=1e-11)
    np.testing.assert_allclose(info.bethe_free_energy, -log_partition, rtol=1e-11)
    assert info.converged
    assert info.residual <= 1e-12


def test_weak_coupling_is_close_and_order_of_axes_is_right(rng):
    """Loops of four change beliefs by the fourth power of the coupling."""
    nodes, across, along = rng.normal(size=(3, 3, 2)), *rng.normal(size=(2, 2, 2)) * 0.5
    errors = []
    for scale in (1.0, 0.5):
        beliefs, info = run(nodes, scale * across, scale * along)
        marginals, log_partition = enumerate_grid(nodes, scale * across, scale * along)
        errors.append(np.abs(beliefs - marginals).max())
        assert abs(info.bethe_free_energy + log_partition) < 0.05
    assert errors[0] < 0.02
    assert errors[1] < errors[0] / 8


def test_what_does_not_settle_is_reported(rng):
    nodes, pair = rng.normal(size=(3, 3, 2)), 0.5 * np.eye(2)
    beliefs, info = jax.jit(
        lambda x: loopy.belief_propagation(x, pair, pair, max_steps=3, tolerance=1e-9)
    )(nodes)
    assert (int(info.num_steps), bool(info.converged)) == (3, False)
    assert info.residual > 1e-9
    chex.assert_tree_all_finite(beliefs)
    nodes[1, 1, 0] = np.nan
    beliefs, info = run(nodes, pair, pair)
    assert not info.converged
    assert np.isnan(beliefs).all()  # also those that it has not reached in the one flood


@pytest.mark.slow
def test_a_million_variables(rng):
    """The mean field of a large uniform grid: every belief by symmetry one half."""
    nodes = jnp.zeros((1000, 1000, 2), "float32")
    pair = loopy.potts(jnp.float32(0.5), 2)
    beliefs, info = jax.jit(lambda x: loopy.belief_propagation(x, pair, pair))(nodes)
    assert info.converged
    chex.assert_type(beliefs, "float32")
    np.testing.assert_allclose(beliefs, 0.5, rtol=0, atol=1e-6)
    edges = 2 * 1000 * 999
    expected = -(1000**2) * np.log(2) - edges * np.log((np.exp(0.5) + 1) / 2)
    np.testing.assert_allclose(info.bethe_free_energy, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "across", "options", "message"),
    [
        ((3, 2), (2, 2), {}, r"log_nodes must be \[h, w, k\]"),
        ((3, 4, 2), (3, 4, 2, 2), {}, r"log_horizontal must be \[2, 2\] or \[3, 3, 2, 2\]"),
        ((3, 4, 2), (2, 2), {"damping": 1.0}, "damping must be from 0"),
    ],
)
def test_refuses(nodes, across, options, message):
    with pytest.raises(ValueError, match=message):
        loopy.belief_propagation(np.zeros(nodes), np.zeros(across), np.zeros((2, 2)), **options)


def test_many_values_take_no_table_of_all_pairs(rng):
    """A row of 6 variables of 40 values, by sums over one variable after the other."""
    k, w = 40, 6
    nodes, pair = rng.normal(size=(w, k)), rng.normal(size=(k, k))
    program = jax.jit(_run, static_argnames="damping")
    compiled = program.lower(nodes[None], pair, pair, damping=0.0).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < w * k * k * 8
    beliefs, info = compiled(nodes[None], pair, pair)
    left, right = [np.ones(k)], [np.ones(k)]
    for i in range(w - 1):
        left.append((left[-1] * np.exp(nodes[i])) @ np.exp(pair))
        right.append(np.exp(pair) @ (right[-1] * np.exp(nodes[-1 - i])))
    joint = np.array(left) * np.array(right[::-1]) * np.exp(nodes)
    np.testing.assert_allclose(beliefs[0], joint / joint.sum(1)[:, None], rtol=0, atol=1e-13)
    np.testing.assert_allclose(info.bethe_free_energy, -np.log(joint[0].sum()), rtol=1e-13)
    assert info.converged
