"""What flax modules ask of a torus: weights that are read, and streams that are the same."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention import windows
from vfejax.attention.rope import rotate
from vfejax.attention.toroidal import toroidal_attention
from vfejax.models.toroidal.torus import (
    AXIAL,
    JOINT,
    Torus,
    attend,
    read_weights,
    stream,
    turned,
)

SHAPE = (2, 6, 4, 4)
TORI = {
    "joint": Torus(8, 2, JOINT),
    "axial": Torus(8, 2, AXIAL, causal=True, window=3),
}


@pytest.mark.parametrize("name", TORI)
def test_weights_times_values_are_the_answer_and_rows_sum_to_one(name, rng):
    torus = TORI[name]
    query, key, value = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(3))
    weights, answer = jax.jit(
        lambda *x: (read_weights(torus, *x[:2], 2.0), attend(torus, *x, 2.0))
    )(query, key, value)
    np.testing.assert_allclose(np.sum(weights, axis=(-1, -2)), 1.0, rtol=1e-13)
    platters = np.asarray(value).reshape(2, 6, 2, 2, 4)  # [b, n, D, g, c]
    weights = np.asarray(weights).reshape(2, 6, 2, 2, -1, 6)
    if torus.mode is JOINT:
        expected = np.einsum("bikglj,bjlgc->bikgc", weights, platters)
    else:
        expected = np.einsum("bikgj,bjkgc->bikgc", weights[..., 0, :], platters)
    np.testing.assert_allclose(answer, expected.reshape(SHAPE), rtol=1e-12, atol=1e-14)


def test_attention_is_that_of_turned_queries_and_keys(rng):
    torus = TORI["joint"]
    query, key, value = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(3))
    encoding, places = torus.encoding(4, 8, 2), jnp.arange(6)
    expected = toroidal_attention(
        rotate(query, places, encoding, 2),
        rotate(key, places, encoding, 2),
        value,
        depth=2,
        slope=2.0,
        circumference=8,
    )
    chex.assert_trees_all_close(attend(torus, query, key, value, 2.0), expected, rtol=1e-13)
    assert turned(torus._replace(encoding=None), query, places) is query


def test_a_stream_is_the_causal_attention(rng):
    torus = TORI["axial"]
    query, key, value = (jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(3))

    @jax.jit
    def streamed(query, key, value):
        reading = stream(torus, 2.0)
        state = reading.init((query, key, value))
        here = windows.places(state, 6)
        return reading.step(state, (turned(torus, query, here), turned(torus, key, here), value))

    # Sums in another order.
    chex.assert_trees_all_close(
        streamed(query, key, value)[1].values, attend(torus, query, key, value, 2.0), rtol=1e-12
    )


def test_a_torus_can_be_hashed_and_compared():
    assert Torus(8, 2) == Torus(8, 2) != Torus(8, 4)
    assert hash(Torus(8, 2)) == hash(Torus(8, 2))
