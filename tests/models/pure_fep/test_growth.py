"""Layers that come and go: under pressure, when two believe the same, never during the cool-down,
and never beyond the room there is.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models.pure_fep import growth
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.growth import Watch, grow, renewed, watch
from vfejax.models.pure_fep.model import ancestor_weights, build
from vfejax.models.pure_fep.trainer import trainer
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

CONFIG = PureFEPConfig(
    layers=2, max_layers=4, spawn_pressure=1.0, merge_divergence=0.5, cool_down=3
)


@pytest.mark.parametrize(
    ("alive", "pressure", "divergence", "since", "expected", "rested"),
    [
        ([1, 1, 0, 0], 2.0, [0, 9, 0, 0], 4, [1, 1, 1, 0], True),  # presses
        ([1, 1, 0, 0], 2.0, [0, 9, 0, 0], 3, [1, 1, 0, 0], False),  # cools down
        ([1, 1, 0, 0], 0.5, [0, 9, 0, 0], 4, [1, 1, 0, 0], False),  # no pressure
        ([1, 1, 1, 1], 2.0, [0, 9, 9, 9], 4, [1, 1, 1, 1], False),  # no room
        ([1, 0, 0, 1], 2.0, [0, 9, 9, 9], 4, [1, 1, 0, 1], True),  # room in a gap alone
        ([1, 1, 1, 0], 0.5, [0, 0.4, 0.3, 0], 4, [1, 1, 0, 0], True),  # the closest pair merges
        ([1, 1, 1, 0], 2.0, [0, 0.4, 9, 0], 4, [1, 0, 1, 0], True),  # a merger comes first
        ([1, 0, 0, 0], 0.5, [0, 0, 0, 0], 4, [1, 0, 0, 0], False),  # the first layer stays
    ],
)
def test_what_happens_to_layers(alive, pressure, divergence, since, expected, rested):
    seen = Watch(jnp.asarray(pressure), jnp.asarray(divergence, float), jnp.asarray(since))
    happened, after = grow(jnp.asarray(alive, float), seen, CONFIG)
    assert happened.alive.tolist() == expected
    assert after.since == (0 if rested else since)
    change = np.asarray(expected) - np.asarray(alive)
    assert happened.added.tolist() == (change > 0).tolist()
    assert happened.removed.tolist() == (change < 0).tolist()


def test_by_default_no_layer_comes_or_goes():
    seen = Watch(jnp.asarray(1e9), jnp.zeros(3), jnp.asarray(10**6))
    happened, _ = grow(jnp.asarray([1.0, 1.0, 0.0]), seen, PureFEPConfig())
    assert happened.alive.tolist() == [1, 1, 0]


def test_what_is_watched_is_the_last_layer_and_begins_anew_after_an_event():
    alive = jnp.asarray([1.0, 1.0, 0.0])
    pressure, divergence = jnp.asarray([5.0, 2.0, 7.0]), jnp.asarray([0.0, 1.0, 1.0])
    seen = watch(growth.first_watch(3, jnp.float64), pressure, divergence, alive)
    assert (float(seen.pressure), int(seen.since)) == (2.0, 1)
    seen = watch(seen, 2 * pressure, divergence, alive)
    np.testing.assert_allclose(seen.pressure, 0.9 * 2 + 0.1 * 4, rtol=1e-12)
    again = watch(seen._replace(since=jnp.asarray(0)), pressure, divergence, alive)
    assert float(again.pressure) == 2.0


def test_only_what_is_chosen_is_renewed():
    old, new = {"a": jnp.zeros((2, 3))}, {"a": jnp.ones((2, 3))}
    assert renewed(old, new, jnp.asarray([0.0, 1.0]))["a"].sum(axis=1).tolist() == [0, 3]


def test_ancestors_are_the_living_layers_above():
    config = PureFEPConfig(tower_depth=2, tower_weight=1.0, tower_decay=0.5)
    weights = ancestor_weights(jnp.asarray([1.0, 1.0, 0.0, 1.0, 1.0]), config)
    expected = [[0, 1, 0, 0.5, 0], [0, 0, 0, 1, 0.5], [0, 0, 0, 1, 0.5], [0] * 4 + [1], [0] * 5]
    np.testing.assert_array_equal(weights, expected)


@pytest.mark.slow  # the rules have tests above
def test_layers_grow_under_jit_keep_what_was_learned_and_merge(rng):
    options = {"layers": 1, "max_layers": 2, "dim": 8, "spins": (0, 1), "hidden": 8}
    config = PureFEPConfig(**options, spawn_pressure=1e-6, cool_down=5)
    model = build(config, 7, 8, jnp.float64)
    windows = rng.integers(0, 7, (12, 4, 9))
    batches = [Batch(x[:, :-1], np.ones((4, 8), bool), None, x[:, 1:]) for x in windows]
    method = trainer(model, config, lambda step: 1e-3, jax.random.key(1))
    # One program: to compile it is all the time that this takes.
    step, apply = jax.jit(method.step), jax.jit(model.apply)

    def updated(step, state):
        """The states before and after every update, and the number of layers that each counts."""
        states, layers = [state], []
        for batch in batches:
            state, info = step(states[-1], batch)
            states.append(state)
            layers.append(int(info.parts.diagnostics["layers"]))
        return states, layers

    states, layers = updated(step, jax.jit(method.init)(jax.random.key(0)))
    # Cooled down after 5 updates; the sixth adds one, the seventh counts it.
    assert layers == [1] * 6 + [2] * 6
    before, after, learned = states[5:8]
    assert after.params.alive.tolist() == [1, 1]
    hidden = after.params._replace(alive=jnp.asarray([1.0, 0.0]))
    tokens = windows[0, :, :-1]
    with_it, without = (apply(p, tokens, None).logits for p in (after.params, hidden))
    assert 0 < np.abs(with_it - without).max() < 0.5  # it hardly listens yet
    # Its first update is of the size of those of others.
    first_move, other = np.abs(learned.params.layers.contract - after.params.layers.contract)[::-1]
    assert first_move.max() < 3e-3
    assert first_move.mean() < 3 * other.mean()

    # A batch of padding alone tells nothing about layers.
    kept, _ = step(before, batches[0]._replace(mask=np.zeros((4, 8), bool)))
    chex.assert_trees_all_equal(kept.optimizer_state.watched, before.optimizer_state.watched)
    assert kept.params.alive.tolist() == [1, 0]

    merging = dataclasses.replace(config, spawn_pressure=0.0, merge_divergence=1e9, momentum=0.5)
    merge = jax.jit(trainer(model, merging, lambda step: 1e-3, jax.random.key(1)).step)
    merged, layers = updated(merge, states[-1])
    assert layers[-1] == 1
    # What is gone does not move.
    later, _ = merge(merged[-1], batches[0])
    gone = [np.asarray(x.params.layers.contract[1]) for x in (merged[-1], later)]
    np.testing.assert_array_equal(*gone)
