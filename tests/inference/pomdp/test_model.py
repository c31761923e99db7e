"""Discrete models: what is accepted, and what is refused by name."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference.pomdp import POMDP, check_model, pymdp_arrays

SEE, MOVE = jnp.eye(2), jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)
EVEN, FLAT = jnp.array([0.5, 0.5]), jnp.zeros(2)


def test_a_model_is_a_pytree_that_keeps_its_dependencies(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    leaves, structure = jax.tree.flatten(model)
    again = jax.tree.unflatten(structure, leaves)
    assert again.A_dependencies == ((0, 1, 2), (2, 1))
    assert again.B_dependencies == ((0,), (1, 0), (2,))
    chex.assert_trees_all_equal(again, model)
    assert (model.num_states, model.num_controls, model.num_observations) == (
        (2, 3, 2),
        (2, 1, 2),
        (4, 3),
    )
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), model)
    assert jax.vmap(lambda m: m.A[0].sum())(batch).shape == (2,)


def test_arrays_take_the_widest_precision():
    model = POMDP([SEE.astype(jnp.float32)], [MOVE], [FLAT], [EVEN])
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"A": SEE}, "A must be a list of arrays, got one array"),
        ({"C": None}, "C must be a list of arrays, got None"),
        ({"A": [jnp.ones((2, 3))]}, "A[0] must have shape [o, 2], got [2, 3]"),
        ({"B": [jnp.ones((2, 2))]}, "B[0] must have shape [2, 2, u], got [2, 2]"),
        ({"C": [jnp.zeros(3)]}, "C[0] must have shape [2] or [t, 2], got [3]"),
        ({"C": []}, "A and C need one array per modality"),
        ({"B": [MOVE, MOVE]}, "B and D need one array per factor, got 2, 1"),
        ({"D": [jnp.zeros((2, 1))]}, "D[0] must have shape [s], not empty, got [2, 1]"),
        ({"E": jnp.zeros((1, 2))}, "E must have shape [p], got [1, 2]"),
        ({"A_dependencies": [[1]]}, "A_dependencies[0] must name different factors of 0 to 0"),
        ({"A_dependencies": [0]}, "A_dependencies must be a list of lists of factors, got [0]"),
        ({"B_dependencies": [[0], [0]]}, "B_dependencies must have 1 entries, got 2"),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    given = {"A": [SEE], "B": [MOVE], "C": [FLAT], "D": [EVEN]} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        POMDP(**given)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"A": [jnp.array([[0.5, 0.5], [0.4, 0.5]])]}, r"A\[0\] must sum to 1 over axis 0"),
        ({"B": [MOVE.at[0, 1, 1].set(-1.0)]}, r"B\[0\]\[0, 1, 1\] must be a probability, got -1"),
        ({"D": [jnp.array([np.nan, 1.0])]}, r"D\[0\]\[0\] must be a probability, got nan"),
        ({"C": [jnp.array([0.0, np.nan])]}, r"C\[0\]\[1\] must be a log preference, got nan"),
        ({"E": jnp.array([0.5, 0.4])}, "E must sum to 1"),
    ],
)
def test_numbers_that_cannot_be_are_named(arrays, message):
    model = POMDP([SEE], [MOVE], [FLAT], [EVEN])
    check_model(model)
    with pytest.raises(ValueError, match=message):
        check_model(model.replace(**arrays))


def test_only_its_own_arrays_are_replaced():
    with pytest.raises(ValueError, match="a POMDP has A, B, C, D and E, got 'F'"):
        POMDP([SEE], [MOVE], [FLAT], [EVEN]).replace(F=1)


def test_arrays_of_pymdp_make_the_same_model(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    given = pymdp_arrays.to_pymdp(model)
    chex.assert_trees_all_equal(pymdp_arrays.from_pymdp(**given), model)
    batch = {name: [np.stack([x, x]) for x in given[name]] for name in "ABCD"}
    chex.assert_trees_all_equal(pymdp_arrays.from_pymdp(**(given | batch), batched=True), model)
    objects = np.empty(2, object)
    objects[:] = [np.asarray(a) for a in given["A"]]
    chex.assert_trees_all_equal(pymdp_arrays.from_pymdp(**(given | {"A": objects})), model)
