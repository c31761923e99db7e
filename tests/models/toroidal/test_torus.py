"""What flax modules ask of a torus: weights that are read, and streams that are the same."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention import windows
from vfejax.attention.rope import rotate
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


def _inputs(rng):
    return [jnp.asarray(rng.standard_normal(SHAPE)) for _ in range(3)]


@pytest.mark.parametrize("name", ["joint", pytest.param("axial", marks=pytest.mark.slow)])
def test_weights_times_values_are_the_answer_to_turned_queries_and_keys(name, rng):
    torus = TORI[name]
    query, key, value = _inputs(rng)
    meet = 2 if torus.mode is JOINT else 1
    encoding, places = torus.encoding(4, 8, meet), jnp.arange(6)

    @jax.jit
    def found(query, key, value):
        expected = torus.mode.attention(
            rotate(query, places, encoding, meet),
            rotate(key, places, encoding, meet),
            value,
            depth=2,
            slope=2.0,
            circumference=8,
            causal=torus.causal,
            window=torus.window,
        )
        weights = read_weights(torus, query, key, 2.0)
        return weights, attend(torus, query, key, value, 2.0), expected

    weights, answer, expected = map(np.asarray, found(query, key, value))
    np.testing.assert_allclose(answer, expected, rtol=1e-13)
    np.testing.assert_allclose(np.sum(weights, axis=(-1, -2)), 1.0, rtol=1e-13)
    platters = np.asarray(value).reshape(2, 6, 2, 2, 4)  # [b, n, D, g, c]
    weights = weights.reshape(2, 6, 2, 2, -1, 6)
    if torus.mode is JOINT:
        product = np.einsum("bikglj,bjlgc->bikgc", weights, platters)
    else:
        product = np.einsum("bikgj,bjkgc->bikgc", weights[..., 0, :], platters)
    np.testing.assert_allclose(answer, product.reshape(SHAPE), rtol=1e-12, atol=1e-14)


@pytest.mark.slow  # the model's decoding is one
def test_a_stream_is_the_causal_attention(rng):
    torus = TORI["axial"]

    @jax.jit
    def both(query, key, value):
        reading = stream(torus, 2.0)
        state = reading.init((query, key, value))
        here = windows.places(state, 6)
        tokens = turned(torus, query, here), turned(torus, key, here), value
        return reading.step(state, tokens)[1].values, attend(torus, query, key, value, 2.0)

    # Sums in another order.
    chex.assert_trees_all_close(*both(*_inputs(rng)), rtol=1e-12)


def test_a_torus_without_an_encoding_turns_nothing():
    query = np.ones(SHAPE)
    assert turned(TORI["joint"]._replace(encoding=None), query, np.arange(6)) is query


def test_a_torus_can_be_hashed_and_compared():
    assert Torus(8, 2) == Torus(8, 2) != Torus(8, 4)
    assert hash(Torus(8, 2)) == hash(Torus(8, 2))
