"""Adaptive codes: symbol by symbol as they are defined, and never more probability than 1."""

import itertools
import math

import numpy as np
import pytest

from vfejax.data.spelling import adaptive_nats, spelled_nats


@pytest.mark.parametrize("symbols", [[], [0], [0, 0, 0], [2, 0, 1, 0, 2, 2]])
def test_the_code_is_laplaces_rule_symbol_after_symbol(symbols):
    counts, nats = np.zeros(3, int), 0.0
    for symbol in symbols:
        nats -= math.log((counts[symbol] + 1) / (counts.sum() + 3))
        counts[symbol] += 1
    # A few logarithms of Gamma, each right to rounding.
    np.testing.assert_allclose(adaptive_nats(counts), nats, rtol=1e-13, atol=1e-14)


def test_probabilities_of_all_messages_of_a_length_add_up_to_one():
    messages = itertools.product(range(3), repeat=4)
    total = sum(math.exp(-adaptive_nats(np.bincount(m, minlength=3))) for m in messages)
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def test_many_symbols_cost_their_entropy():
    counts = np.array([900_000, 100_000])
    entropy = -np.sum(counts * np.log(counts / counts.sum()))
    # Learning one frequency from a million symbols costs half a logarithm of a million.
    assert 0 < adaptive_nats(counts) - entropy < math.log(1e6)


def test_strings_are_spelled_by_their_bytes_and_ends():
    assert spelled_nats([], ends=True) == spelled_nats([], ends=False) == 0
    np.testing.assert_allclose(spelled_nats(["a"], ends=False), math.log(256), rtol=1e-13)
    np.testing.assert_allclose(spelled_nats(["a"], ends=True), math.log(257 * 258), rtol=1e-13)
    two_bytes = math.log(256 * 257)
    np.testing.assert_allclose(spelled_nats(["\xe9"], ends=False), two_bytes, rtol=1e-13)
