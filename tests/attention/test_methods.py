"""Every way to compute attention on a torus equals the definition: one table of patterns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.blockwise import blockwise
from vfejax.attention.pallas import pallas
from vfejax.attention.toroidal import axial_attention, dense, toroidal_attention
from vfejax.geometry.torus import linear_distance

N, RING, HEADS = 11, 13, 4
_RNG = np.random.default_rng(9)
ROWS = _RNG.uniform(size=(2, HEADS, N, N)) < 0.7
ROWS[:, :, 3] = False
PADDING = np.arange(N) < np.array([[N], [6]])
PLACES = np.stack([_RNG.permutation(RING)[:N] for _ in range(2)])
SLOPE = np.array([0.5, 2.0, 0.0, 9.0])

CASES = {
    "joint": (toroidal_attention, {"depth": 2}),
    "axial": (axial_attention, {"depth": 4}),
    "joint, causal, age": (
        toroidal_attention,
        {"depth": 2, "causal": True, "distance_fn": linear_distance},
    ),
    "axial, window": (axial_attention, {"depth": 2, "window": 2}),
    "joint, causal window": (toroidal_attention, {"depth": 4, "causal": True, "window": 3}),
    "joint, mask with an empty row": (toroidal_attention, {"depth": 2, "mask": ROWS}),
    "axial, no bias, padding": (
        axial_attention,
        {"depth": 2, "slope": None, "mask": PADDING[:, None, None, :]},
    ),
    "joint, places, window": (toroidal_attention, {"depth": 2, "window": 3, "positions": PLACES}),
}


def cases(*kinds):
    """All cases; those that are not of another kind than an earlier one are slow tests."""
    return [name if name in kinds else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def problem(name, rng, dtype):
    """A function of the arrays and a method, and the arrays: query, key, value, slope."""
    attention_fn, options = CASES[name]
    options = {"slope": SLOPE, "circumference": RING, **options}
    slope = options.pop("slope")
    options = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    arrays = [jnp.asarray(rng.normal(size=(2, N, HEADS, c)), dtype) for c in (3, 3, 5)]
    slope = None if slope is None else jnp.asarray(slope, dtype)

    def attend(query, key, value, slope, method):
        return attention_fn(query, key, value, slope=slope, method=method, **options)

    return attend, (*arrays, slope)


@pytest.mark.parametrize(
    "name",
    cases(
        "joint, causal window", "joint, mask with an empty row", "joint, places, window", "axial"
    ),
)
def test_block_by_block_is_the_definition_in_value_and_gradient(name, rng):
    attend, arrays = problem(name, rng, jnp.float64)
    cotangent = jnp.asarray(rng.normal(size=(2, N, HEADS, 5)))

    def both(method):
        answer, pull_back = jax.vjp(lambda *x: attend(*x, method), *arrays)
        return answer, pull_back(cotangent)

    # Blocks of 2 or 4 places and of 3 places: no divisors of the length.
    ours, expected = jax.jit(lambda: (both(blockwise(8, 12)), both(dense)))()
    # Sums of at most 44 terms of order one, each in another order.
    chex.assert_trees_all_close(ours, expected, atol=1e-13, rtol=1e-13)
    if "empty" in name:
        answer, (to_query, *_) = ours
        assert np.all(np.asarray(answer)[:, 3] == 0)
        assert np.all(np.asarray(to_query)[:, 3] == 0)


@pytest.mark.parametrize("name", cases("axial, window", "joint, mask with an empty row"))
def test_the_kernel_is_the_definition(name, rng):
    attend, arrays = problem(name, rng, jnp.float32)
    methods = pallas(16, 16, interpret=True), dense
    ours, expected = jax.jit(lambda: [attend(*arrays, method) for method in methods])()
    # Logits of up to 10 are rounded to 10 eps, and so are the weights.
    chex.assert_trees_all_close(ours, expected, rtol=0, atol=2e-6)
    if "empty" in name:
        assert np.all(np.asarray(ours)[:, 3] == 0)
