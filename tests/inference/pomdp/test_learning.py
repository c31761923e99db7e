"""Learning by counts, and what it says about simpler models."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle
from scipy.special import betaln

from vfejax.inference.pomdp import learning, reduction, windows


def test_the_expectation_of_counts_is_the_model(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    counts = learning.counts_of(model, "ABCD", 5.0)
    again = learning.expected_model(model, counts)
    chex.assert_trees_all_close(
        (again.A, again.B, again.D), (model.A, model.B, model.D), rtol=1e-14
    )
    # Preferences are known up to a constant.
    for found, given in zip(again.C, model.C, strict=True):
        chex.assert_trees_all_close(jnp.std(found - given), jnp.zeros(()), rtol=0, atol=1e-14)


def test_events_sum_to_one_and_follow_the_dependencies(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    seen = learning.count_likelihoods(model, [3, 1], model.D, jnp.array([True, False]))
    assert [x.shape for x in seen] == [x.shape for x in model.A]
    np.testing.assert_allclose([x.sum() for x in seen], [1.0, 0.0], rtol=0, atol=1e-15)
    chex.assert_trees_all_close(seen[0][3], jnp.einsum("i,j,k->ijk", *model.D), rtol=0, atol=1e-15)
    after = [jnp.ones(n) / n for n in model.num_states]
    moved = learning.count_transitions(model, [1, 0, 0], model.D, after)
    assert [x.shape for x in moved] == [x.shape for x in model.B]
    chex.assert_trees_all_close(
        moved[1][..., 0],
        jnp.einsum("a,b,c->abc", after[1], model.D[1], model.D[0]),
        rtol=0,
        atol=1e-15,
    )


def test_what_does_not_exist_is_no_event(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    for wrong in (-1, 99):
        moved = learning.count_transitions(model, [wrong], model.D, model.D)
        assert jnp.isnan(moved[0]).all()
        seen = learning.count_likelihoods(model, [0, wrong], model.D)
        assert [bool(jnp.isnan(x).all()) for x in seen] == [False, True]
        missing = learning.count_likelihoods(model, [0, wrong], model.D, jnp.array([True, False]))
        assert float(jnp.sum(missing[1])) == 0.0


def test_an_observation_that_does_not_exist_is_no_event_of_preferences(rng):
    model, seen = pomdp_oracle.one_factor(rng, jnp.float32), [jnp.array(0), jnp.array(99)]
    first, second = learning.count_observations(model, seen)
    assert float(jnp.sum(first)) == 1.0
    assert jnp.isnan(second).all()
    masked = learning.count_observations(model, seen, jnp.array([True, False]))
    assert float(jnp.sum(masked[1])) == 0.0


def test_learning_from_windows_raises_the_evidence(rng):
    """With one factor, point estimates from the counts are the Baum-Welch algorithm."""
    truth = pomdp_oracle.sharpened(pomdp_oracle.one_factor(rng, jnp.float64), 3)
    observations = [rng.integers(3, size=12), rng.integers(2, size=12)]
    actions = rng.integers(2, size=(11, 1))

    @jax.jit
    def step(model):
        found = windows.smooth_states(model, observations, actions)
        counts = learning.count_window(model, observations, actions, found)
        return learning.expected_model(model, counts), counts, found.info.free_energy

    model, energies = truth, []
    for _ in range(6):
        model, counts, energy = step(model)
        energies.append(float(energy))
    assert np.diff(energies).max() < 0
    np.testing.assert_allclose(counts.A[0].sum(), 12, rtol=1e-12)
    np.testing.assert_allclose(counts.B[0].sum(axis=(0, 1)), np.bincount(actions[:, 0]), rtol=1e-12)


def test_weights_that_numpy_counted_do_not_widen(rng):
    model, whole = pomdp_oracle.one_factor(rng, jnp.float32), np.float64(0.5)
    counts = learning.counts_of(model, "ABD", whole)
    again = learning.update_counts(counts, counts, whole, whole, prior=counts)
    assert {x.dtype for x in jax.tree.leaves((counts, again))} == {jnp.dtype(jnp.float32)}
    chex.assert_trees_all_close(again, jax.tree.map(lambda x: 1.5 * x, counts), rtol=1e-6)
    # Whole counts take weights that are not.
    events = learning.Counts(D=(jnp.array([1, 0, 1]),))
    found = learning.update_counts(events, events, whole, whole)
    assert found.D[0].tolist() == [1.0, 0.0, 1.0]


def test_updates_forget_and_leave_what_cannot_happen():
    old = learning.Counts(D=(jnp.array([2.0, 0.0]),), E=jnp.array([1.0, 1.0]))
    events = learning.Counts(D=(jnp.array([1.0, 1.0]),))
    found = learning.update_counts(old, events, rate=0.5, keep=0.75)
    assert found.D[0].tolist() == [2.0, 0.0]
    assert found.E.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="there are events of A but no counts of it"):
        learning.update_counts(old, learning.Counts(A=(jnp.ones(2),)))
    with pytest.raises(ValueError, match=r"events of E must have .* \[\[2\]\], got \[\[3\]\]"):
        learning.update_counts(old, learning.Counts(E=jnp.ones(3)))
    with pytest.raises(ValueError, match=r"rate must be at least 0, got -1\.0"):
        learning.update_counts(old, learning.Counts(E=jnp.ones(2)), -1.0)
    with pytest.raises(ValueError, match=r"keep must be from 0 to 1, got 1\.5"):
        learning.update_counts(old, learning.Counts(E=jnp.ones(2)), 1.0, 1.5)


@pytest.mark.parametrize(
    ("names", "scale", "message"),
    [
        ("AX", 1.0, "names must be letters of ABCDE, got 'X'"),
        ("E", 1.0, "the model has no habits E"),
        ("A", 0.0, "scale must be above 0, got 0.0"),
    ],
)
def test_what_cannot_be_learned_is_named(rng, names, scale, message):
    with pytest.raises(ValueError, match=message):
        learning.counts_of(pomdp_oracle.one_factor(rng, jnp.float64), names, scale)


def test_reduced_evidence_is_the_difference_of_evidences():
    """Two outcomes: the evidence of a sequence under a beta prior is a ratio of beta functions."""
    prior, data, other = np.array([1.0, 2.0]), np.array([7.0, 3.0]), np.array([4.0, 0.5])

    def evidence(a):
        return betaln(*(a + data)) - betaln(*a)

    found = reduction.reduced_evidence(*map(jnp.asarray, (prior, prior + data, other)))
    np.testing.assert_allclose(found, evidence(other) - evidence(prior), rtol=1e-12)


def test_pruning_keeps_what_the_data_need(rng):
    """Columns from which one outcome is absent lose it; others stay as they are."""
    flat = jnp.ones((3, 2))
    without_last = flat.at[2].set(0.0)
    posterior = flat + jnp.array([[20.0, 12.0], [15.0, 11.0], [0.0, 12.0]])
    found = reduction.prune(flat, posterior, [without_last])
    assert found.prior.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
    assert found.posterior[:, 0].tolist() == [21.0, 16.0, 0.0]
    assert float(found.gain[0]) > 1
    assert float(found.gain[1]) == 0
    broken = posterior.at[0, 0].set(jnp.nan)
    assert np.isnan(reduction.prune(flat, broken, [without_last]).gain).tolist() == [True, False]
    excluded = reduction.reduced_evidence(flat, posterior, without_last)
    assert float(excluded[1]) == -np.inf
    with pytest.raises(ValueError, match=r"candidates\[0\] must have shape \[3, 2\], got \[2\]"):
        reduction.prune(flat, posterior, [jnp.ones(2)])
