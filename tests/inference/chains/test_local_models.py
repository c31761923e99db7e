"""Local level and local trend: how they move, what is learned, what is guessed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.chains import kalman_smoother
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.inference.chains.local_models import (
    LocalModel,
    learned,
    linear_gaussian,
    moment_scales,
    transition,
)


def _drawn(rng, order, steps, drift_std, noise_std):
    transitions, spreads, _ = map(np.asarray, transition(order, jnp.asarray(steps)))
    state, levels = np.zeros(order), [0.0]
    for a, factor in zip(transitions, np.linalg.cholesky(spreads), strict=True):
        state = a @ state + drift_std * factor @ rng.normal(size=order)
        levels.append(state[0])
    return (np.array(levels) + noise_std * rng.normal(size=len(levels)))[:, None]


@pytest.mark.parametrize("order", [1, 2])
def test_two_short_moves_are_one_long_move(order):
    (a1, q1, _), (a2, q2, _), (a, q, inverse) = (
        transition(order, jnp.asarray(h)) for h in (0.7, 1.9, 2.6)
    )
    # Sums of a few numbers of order 1 to 10.
    chex.assert_trees_all_close(a, a2 @ a1, rtol=1e-14)
    chex.assert_trees_all_close(q, a2 @ q1 @ a2.T + q2, rtol=1e-14)
    chex.assert_trees_all_close(q @ inverse, jnp.eye(order), rtol=0, atol=1e-13)


def test_other_orders_and_shapes_are_refused():
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        transition(3, jnp.asarray(1.0))
    one = jnp.ones(1)
    with pytest.raises(ValueError, match="drift_std and noise_std must be"):
        linear_gaussian(LocalModel(one, one, jnp.zeros(3), jnp.eye(3)), one)


@jax.jit
def _step(model, steps, y, mask):
    found = kalman_smoother(linear_gaussian(model, steps), y, mask, passes=SEQUENTIAL)
    return learned(model, steps, y, mask, found), found.log_evidence


@pytest.mark.slow
def test_learning_never_lowers_the_evidence_and_reads_no_missing_entry(rng):
    steps = rng.exponential(1.0, 39) + 0.2
    y = _drawn(rng, 2, steps, 0.5, 1.0)
    mask = rng.random(y.shape) > 0.1
    start = LocalModel(jnp.full(1, 5.0), jnp.full(1, 0.2), jnp.zeros(2), 10.0 * jnp.eye(2))
    arguments = jnp.asarray(steps), jnp.asarray(y), jnp.asarray(mask)
    model, values = start, []
    for _ in range(60):
        model, value = _step(model, *arguments)
        values.append(float(value))
    # Rounding of sums of 40 terms.
    assert np.all(np.diff(values) > -1e-9)
    assert values[-1] > values[0] + 10
    # What is not observed is not read.
    hidden = jnp.where(arguments[2], arguments[1], jnp.nan)
    again, _ = _step(model, arguments[0], hidden, arguments[2])
    chex.assert_trees_all_close(again, _step(model, *arguments)[0])


@pytest.mark.slow
def test_a_fixed_point_of_learning_has_no_slope(rng):
    steps = rng.exponential(1.0, 39) + 0.2
    y = jnp.asarray(_drawn(rng, 2, steps, 1.0, 1.0))
    mask = jnp.ones(y.shape, bool)
    model = LocalModel(jnp.ones(1), jnp.ones(1), jnp.zeros(2), 10.0 * jnp.eye(2))
    for _ in range(400):
        model, _ = _step(model, jnp.asarray(steps), y, mask)
    for name in ("drift_std", "noise_std"):
        ends = [
            _step(model._replace(**{name: getattr(model, name) + h}), jnp.asarray(steps), y, mask)
            for h in (1e-4, -1e-4)
        ]
        # Nats per unit; at the start it is of order 10.
        assert abs(float(ends[0][1] - ends[1][1])) / 2e-4 < 1e-3


@pytest.mark.parametrize("order", [1, 2])
def test_first_guesses_are_near_the_scales(order, rng):
    steps = rng.exponential(1.0, 799) + 0.5
    y = _drawn(rng, order, steps, 0.4, 1.5)
    y[rng.random(800) < 0.1] = np.nan
    drift, noise = moment_scales(order, steps, y)
    # Standard errors of moments of 800 values that depend on each other: 10 and 30 per cent.
    np.testing.assert_allclose(noise, 1.5, rtol=0.2)
    np.testing.assert_allclose(drift, 0.4, rtol=0.5)


def test_guesses_from_what_does_not_move_or_is_too_short_are_nan():
    assert np.all(np.isnan(moment_scales(1, np.ones(3), np.ones((4, 1)))))
    assert np.all(np.isnan(moment_scales(2, np.ones(1), np.array([[1.0], [2.0]]))))


def test_pure_noise_is_not_guessed_to_stand_still(rng):
    drift, noise = moment_scales(1, np.ones(99), rng.normal(size=(100, 1)))
    assert drift[0] >= 0.99 * noise[0] / np.sqrt(99)
