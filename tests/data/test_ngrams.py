"""Cross-entropy of counting n-grams: against dictionaries, at known sources, in bounded memory."""

import collections

import numpy as np
import pytest

from vfejax.data import ngrams
from vfejax.data.ngrams import ngram_cross_entropy


def _naive(train, valid, size, order):
    together, alone, nats = collections.Counter(), collections.Counter(), []
    for i in range(order - 1, len(train)):
        context = tuple(train[i - order + 1 : i])
        together[context, train[i]] += 1
        alone[context] += 1
    for i in range(order - 1, len(valid)):
        context = tuple(valid[i - order + 1 : i])
        nats.append(-np.log((together[context, valid[i]] + 1) / (alone[context] + size)))
    return np.mean(nats)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 100_000], ids=["table", "sparse"])
def test_ngrams_agree_with_dictionaries(order, size, rng, monkeypatch):
    monkeypatch.setattr(ngrams, "_BLOCK", 64)  # several blocks, the last one not full
    train, valid = (np.minimum(rng.geometric(0.4, n) - 1, 6).astype(np.int32) for n in (300, 80))
    if size > 7:
        train, valid = train * 16_000, valid * 16_000
    # Two sums of 80 logarithms in different orders: a few roundings.
    found = ngram_cross_entropy(train, valid, size, order)
    np.testing.assert_allclose(
        found, _naive(train.tolist(), valid.tolist(), size, order), rtol=1e-13
    )


@pytest.mark.parametrize("dtype", ["int32", "uint64"])
def test_numbers_of_numpy(dtype, rng):
    """50257^2 is beyond 32 bits, and unsigned numbers of 64 bits times signed ones are floating."""
    tokens = rng.integers(0, 50_257, 300).astype(dtype)
    found = ngram_cross_entropy(tokens, tokens, np.int32(50_257), np.int32(2))
    expected = _naive(tokens.tolist(), tokens.tolist(), 50_257, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=0)


def test_ngrams_of_known_sources(rng):
    noise = rng.integers(0, 5, 50_000)
    # Excess over ln 5: five parameters per context, half a nat each, over 40,000 counts; the
    # tokens' own frequencies add 1/sqrt(10,000).
    assert abs(ngram_cross_entropy(noise[:40_000], noise[40_000:], 5, 1) - np.log(5)) < 3e-3
    cycle = np.arange(50_000) % 5
    assert abs(ngram_cross_entropy(cycle[:40_000], cycle[40_000:], 5, 1) - np.log(5)) < 1e-6
    # Only the four never seen successors keep (V - 1) / N(c) = 4 / 8000 of probability.
    assert 0 < ngram_cross_entropy(cycle[:40_000], cycle[40_000:], 5, 2) < 5.1e-4


@pytest.mark.parametrize("size", [7, 100_000], ids=["table", "sparse"])
@pytest.mark.parametrize("order", [1, 2])
def test_counting_ends_between_two_blocks_and_gives_no_figure(size, order, rng, monkeypatch):
    monkeypatch.setattr(ngrams, "_BLOCK", 64)
    train, valid = rng.integers(0, 7, 300), rng.integers(0, 7, 80)
    asked = []

    def stop_fn():
        asked.append(None)
        return len(asked) == 3

    assert np.isnan(ngram_cross_entropy(train, valid, size, order, stop_fn=stop_fn))
    assert len(asked) == 3
    # What fits into one block is there at once.
    short = ngram_cross_entropy(train[:60], valid[:60], size, order, stop_fn=lambda: True)
    assert short == ngram_cross_entropy(train[:60], valid[:60], size, order)


@pytest.mark.parametrize(
    ("train", "valid", "size", "order", "message"),
    [
        ([0, 1], [0, 1], 2, 0, "order must be at least 1"),
        ([0, 1], [0, 1], 2**21, 3, "below 2"),
        ([0, 2], [0, 1], 2, 1, "train must lie between 0 and 1"),
        ([0, 1], [0, -1], 2, 1, "valid must lie between 0 and 1"),
        ([0], [0, 1], 2, 2, "train must be integers"),
        ([0, 1], [[0, 1]], 2, 1, "valid must be integers"),
        ([0, 1], [0.0, 1.0], 2, 1, "valid must be integers"),
    ],
)
def test_ngrams_refuse_what_they_cannot_count(train, valid, size, order, message):
    with pytest.raises(ValueError, match=message):
        ngram_cross_entropy(np.array(train), np.array(valid), size, order)
