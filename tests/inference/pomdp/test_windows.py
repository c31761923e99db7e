"""Beliefs about a window against sums over all histories."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference.pomdp import windows


def smoothed(model, *seen, **options):
    """The beliefs from one program: one by one its operations take longer."""
    return jax.jit(lambda m: windows.smooth_states(m, *seen, **options))(model)


def test_one_factor_is_exact(rng, dtype):
    model = pomdp_oracle.one_factor(rng, dtype)
    observations, actions = [np.array([0, 2, 1, 1]), np.array([1, 1, 0, 1])], [[0], [1], [0]]
    there = np.array([[True, True], [False, True], [False, False], [True, True]])
    found = smoothed(model, observations, np.array(actions), mask=there)
    (expected,), log_evidence = pomdp_oracle.window_posterior(model, observations, actions, there)
    # Sums of a few logarithms of size 10.
    tolerance = 64 * jnp.finfo(dtype).eps
    chex.assert_trees_all_close(
        found.states[0], expected.astype(dtype), rtol=0, atol=float(tolerance)
    )
    chex.assert_trees_all_close(
        found.pairs[0].sum(axis=1), found.states[0][:-1], rtol=0, atol=tolerance
    )
    chex.assert_trees_all_close(
        found.pairs[0].sum(axis=2), found.states[0][1:], rtol=0, atol=tolerance
    )
    chex.assert_trees_all_close(
        found.info.free_energy, jnp.asarray(-log_evidence, dtype), rtol=float(tolerance)
    )


def test_free_energy_never_rises_and_bounds_the_evidence(rng):
    observations, actions = [np.array([0, 3, 1]), np.array([2, 0, 1])], np.array([[0, 0, 1]] * 2)
    smooth = jax.jit(lambda m: windows.smooth_states(m, observations, actions, num_sweeps=6))
    for number in range(8):
        model = pomdp_oracle.three_factors(rng, jnp.float64)
        model = pomdp_oracle.sharpened(model, 3)
        found = smooth(model)
        assert np.diff(found.info.free_energies).max() <= 1e-12
        if number < 2:
            _, log_evidence = pomdp_oracle.window_posterior(model, observations, actions)
            assert 0 < float(found.info.free_energy) + log_evidence < 2
        for q, pair in zip(found.states, found.pairs, strict=True):
            chex.assert_trees_all_close(pair.sum(axis=1), q[:-1], rtol=0, atol=1e-13)


def test_structure_over_time_is_worth_having(rng):
    """On sticky chains, beliefs of single moments miss what neighbours say of each other."""
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    sticky = jnp.broadcast_to((0.97 * jnp.eye(3) + 0.01)[..., None], (3, 3, 2))
    model = model.replace(B=[sticky])
    observations, actions = [np.array([0, 0, 1, 0]), np.array([1, 0, 1, 1])], np.zeros((3, 1), int)
    (expected,), _ = pomdp_oracle.window_posterior(model, observations, actions)
    exact = smoothed(model, observations, actions).states[0]
    (product,) = windows.marginal_message_passing(model, observations, actions)
    chex.assert_trees_all_close(product.sum(axis=1), jnp.ones(4), rtol=0, atol=1e-14)
    assert np.abs(exact - expected).max() < 1e-13
    assert np.abs(product - expected).max() > 0.1


def test_a_window_of_one_moment_is_bayes_rule(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    observations = [np.array([2]), np.array([0])]
    found = smoothed(model, observations, np.zeros((0, 1), int))
    (expected,), log_evidence = pomdp_oracle.window_posterior(model, observations, [])
    chex.assert_trees_all_close(found.states[0], expected, rtol=0, atol=1e-14)
    chex.assert_trees_all_close(found.info.free_energy, jnp.asarray(-log_evidence), rtol=1e-14)


@pytest.mark.parametrize("fit", ["smooth_states", "marginal_message_passing"])
def test_a_control_that_does_not_exist_gives_nan(rng, fit):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    observations = [np.array([0, 2, 1]), np.array([1, 1, 0])]
    infer = jax.jit(
        lambda actions: getattr(windows, fit)(model, observations, actions, num_sweeps=2)
    )
    for wrong in (-1, 2):
        found = infer(np.array([[0], [wrong]]))
        states = found[0] if fit == "marginal_message_passing" else found.states[0]
        assert bool(jnp.isnan(states).all())


def test_what_does_not_fit_is_named(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    observations = [np.zeros(2, int)] * 2
    with pytest.raises(ValueError, match=r"actions must have shape \[1, 3\], got \[1, 1\]"):
        windows.smooth_states(model, observations, np.zeros((1, 1), int))
    with pytest.raises(ValueError, match="observations must have at least 1 moment, got 0"):
        windows.smooth_states(model, [np.zeros(0, int)] * 2, np.zeros((0, 3), int))
    with pytest.raises(ValueError, match=r"needs B_dependencies\[1\] = \[1\], got \[1, 0\]"):
        windows.marginal_message_passing(model, observations, np.zeros((1, 3), int))
