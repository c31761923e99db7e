"""Models that grow by a state when the evidence asks for it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference.pomdp import POMDP, growth
from vfejax.inference.pomdp.learning import Counts, counts_of
from vfejax.inference.pomdp.reduction import log_beta


def columns_evidence(prior, events):
    """Log evidence of counted events under Dirichlet priors of columns."""
    total = 0.0
    for a, w in zip(jax.tree.leaves(prior), jax.tree.leaves(events), strict=True):
        total += float(jnp.sum(log_beta(jnp.asarray(a + w)) - log_beta(jnp.asarray(a))))
    return total


def exact_evidence(prior, seen, taken):
    """Log evidence of one window of one factor and modality, over all histories of states."""
    (a,), (b,), (d,) = (tuple(map(np.asarray, x)) for x in (prior.A, prior.B, prior.D))
    terms = []
    for history in itertools.product(range(len(d)), repeat=len(seen)):
        events = [np.zeros_like(x) for x in (a, b, d)]
        events[2][history[0]] = 1
        for t, state in enumerate(history):
            events[0][seen[t], state] += 1
            if t:
                events[1][state, history[t - 1], taken[t - 1]] += 1
        terms.append(columns_evidence([a, b, d], events))
    return np.logaddexp.reduce(terms)


def windows(rng, num, length, dtype=jnp.float64):
    """Data of three states that are seen nearly, and last for five moments: one control."""
    see = 0.1 / 3 * np.ones((4, 3))
    see[[0, 1, 2], [0, 1, 2]] = 0.9
    move = 0.8 * np.eye(3) + 0.2 * np.roll(np.eye(3), 1, axis=0)
    states = np.zeros((num, length), int)
    states[:, 0] = rng.integers(3, size=num)
    for n, t in itertools.product(range(num), range(1, length)):
        states[n, t] = rng.choice(3, p=move[:, states[n, t - 1]])
    seen = np.array([[rng.choice(4, p=see[:, s]) for s in row] for row in states])
    return see, [jnp.asarray(seen)], jnp.zeros((num, length - 1, 1), int)


def flat(num, symbols, controls=1, dtype=jnp.float64):
    """A model of states that are all alike, and flat counts of it."""
    sizes = ((symbols, num), (num, num, controls), (num,))
    arrays = [jnp.ones(size, dtype) for size in sizes]
    model = POMDP([arrays[0] / symbols], [arrays[1] / num], [jnp.zeros(symbols)], [arrays[2] / num])
    return model, Counts(A=(arrays[0],), B=(arrays[1],), D=(arrays[2],))


def test_states_that_are_seen_have_their_exact_evidence(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    model = POMDP([jnp.eye(3)], model.B, [jnp.zeros(3)], model.D)
    prior = counts_of(model, "BD", 3.0)
    seen, taken = rng.integers(3, size=(2, 6)), rng.integers(2, size=(2, 5, 1))
    fit = growth.fit_counts(model, prior, [seen], taken, num_iterations=3)
    moves, first = np.zeros((3, 3, 2)), np.zeros(3)
    for states, controls in zip(seen, taken[..., 0], strict=True):
        np.add.at(moves, (states[1:], states[:-1], controls), 1)
        first[states[0]] += 1
    expected = columns_evidence([prior.B[0], prior.D[0]], [moves, first])
    np.testing.assert_allclose(fit.elbo, expected, rtol=1e-10)
    np.testing.assert_allclose(fit.counts.B[0], prior.B[0] + moves, rtol=1e-10)


def test_the_bound_rises_and_stays_below_the_evidence(rng):
    model, prior = flat(2, 2, controls=2)
    seen, taken = rng.integers(2, size=6), rng.integers(2, size=5)
    start = jax.tree.map(lambda a: a * jnp.asarray(rng.uniform(0.5, 2.0, a.shape)), prior)
    fit = growth.fit_counts(
        model, prior, [seen[None]], taken[None, :, None], start=start, num_iterations=30
    )
    assert np.diff(fit.elbos).min() > -1e-12
    assert fit.elbo <= exact_evidence(prior, seen, taken)


def test_a_state_more_keeps_what_there_was(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    counts = counts_of(model, "ABD", 4.0)
    wider = growth.add_state(model, counts, 2, 0.5)
    assert [x.shape for x in wider.A] == [(4, 2, 3, 3), (3, 3, 3)]
    assert [x.shape for x in wider.B] == [(2, 2, 2), (3, 3, 2, 1), (3, 3, 2)]
    assert [x.shape for x in wider.D] == [(2,), (3,), (3,)]
    np.testing.assert_array_equal(wider.A[1][:, :2], counts.A[1])  # axes: factor 2, then 1
    np.testing.assert_array_equal(wider.B[2][2], jnp.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="B knows factor 1 and needs counts to grow"):
        growth.add_state(model, counts._replace(B=None), 1)
    with pytest.raises(ValueError, match="factor must be 0 to 2, got 3"):
        growth.add_state(model, counts, 3)
    with pytest.raises(ValueError, match="prior must have no counts of C and E"):
        growth.fit_counts(model, counts_of(model, "C"), [], jnp.zeros((1, 0, 3), int))


@pytest.mark.slow
def test_as_many_states_grow_as_the_data_were_drawn_from(rng):
    see, seen, actions = windows(rng, 8, 30)
    model, prior = flat(1, 4)
    found = growth.grow_states(model, prior, seen, actions, jax.random.key(0), num_iterations=25)
    assert found.model.num_states == (3,)
    # One, two, three, and a fourth that is not worth its price.
    assert np.argmax(found.evidence) == 2
    assert len(found.evidence) == 4
    order = np.argmax(np.asarray(found.model.A[0]), axis=0)
    assert sorted(order) == [0, 1, 2]
    # Some 80 observations of each state, and a prior of four: standard errors below 0.035.
    np.testing.assert_allclose(found.model.A[0], see[:, order], rtol=0, atol=0.14)


@pytest.mark.slow
def test_noise_grows_nothing(rng):
    seen = [jnp.asarray(rng.integers(4, size=(10, 40)))]
    model, prior = flat(1, 4)
    actions = jnp.zeros((10, 39, 1), int)
    found = growth.grow_states(model, prior, seen, actions, jax.random.key(0))
    assert found.model.num_states == (1,)
    assert found.evidence[0] - found.evidence[1] > 1.0
