"""Synthetic streams: what repeats, what cannot be predicted, and their entropy rates."""

import chex
import numpy as np
import pytest

from vfejax.data import synthetic
from vfejax.data.ngrams import ngram_cross_entropy
from vfejax.errors import UserError

STREAMS = {
    "periodic": lambda **k: synthetic.periodic(
        **{"num_tokens": 2000, "num_symbols": 8, "period": 12, "length": 6, **k}
    ),
    "sinusoidal": lambda **k: synthetic.sinusoidal(
        **{"num_tokens": 2000, "num_symbols": 8, "period": 12, "length": 6, **k}
    ),
    "uniform": lambda **k: synthetic.uniform(
        **{"num_tokens": 2000, "num_symbols": 8, "length": 6, **k}
    ),
}


def _stream(corpus):
    return np.concatenate([corpus.train.tokens, corpus.valid.tokens])


@pytest.fixture(params=STREAMS)
def make(request):
    return STREAMS[request.param]


def test_streams_are_functions_of_their_seed(make):
    first = make(seed=3)
    np.testing.assert_array_equal(_stream(make(seed=3)), _stream(first))
    assert np.any(_stream(make(seed=4)) != _stream(first))


def test_splits_and_vocabulary(make):
    corpus = make(valid_fraction=0.2)
    assert (len(corpus.train.tokens), len(corpus.valid.tokens)) == (1600, 400)
    chex.assert_type([corpus.train.tokens, corpus.valid.tokens], np.int32)
    assert (corpus.train.num_bytes, corpus.valid.num_bytes, corpus.test) == (None, None, None)
    assert corpus.vocabulary.size == 10
    stream = _stream(corpus)
    assert 2 <= stream.min() <= stream.max() < corpus.vocabulary.size
    text = corpus.vocabulary.decode(stream[:5])
    assert text == " ".join(str(token - 2) for token in stream[:5])
    np.testing.assert_array_equal(corpus.vocabulary.encode(text), stream[:5])


def test_a_split_shorter_than_one_window_is_refused(make):
    with pytest.raises(
        UserError, match=r"the valid split has 5 tokens, fewer than the 7 of one window"
    ) as caught:
        make(num_tokens=50)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^--valid-fraction 0.1 of .* leaves nothing"):
        make(num_tokens=1)


def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"^num_symbols must be at least 1, got 0$"):
        make(num_symbols=0)


@pytest.mark.parametrize("name", ["periodic", "sinusoidal"])
def test_periods_below_one_are_refused(name):
    with pytest.raises(ValueError, match=r"^period must be at least 1, got 0$"):
        STREAMS[name](period=0)


@pytest.mark.parametrize("noise", [-0.1, 1.1, float("nan")])
def test_noise_is_a_probability(noise):
    with pytest.raises(ValueError, match=r"^noise must lie between 0 and 1"):
        STREAMS["periodic"](noise=noise)


@pytest.mark.parametrize("period", [1, 7, 12])
def test_periodic_repeats(period):
    corpus = STREAMS["periodic"](period=period)
    stream = _stream(corpus)
    np.testing.assert_array_equal(stream[period:], stream[:-period])
    assert corpus.entropy_rate == 0.0


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_entropy_of_noise_is_what_knowing_pattern_and_phase_leaves(noise):
    size, n = 8, 200_000
    clean = _stream(STREAMS["periodic"](num_tokens=n))
    corpus = STREAMS["periodic"](num_tokens=n, noise=noise)
    right = _stream(corpus) == clean
    nats = -np.log(np.where(right, 1 - noise + noise / size, noise / size))
    # Mean of independent terms: four standard errors (and rounding, where all terms are equal).
    assert abs(nats.mean() - corpus.entropy_rate) < 4 * nats.std() / np.sqrt(n) + 1e-12
    # How often a token is replaced, by itself: four standard errors of a proportion.
    wrong = noise * (1 - 1 / size)
    assert abs(np.mean(~right) - wrong) < 4 * np.sqrt(wrong * (1 - wrong) / n)


def test_uniform_is_unpredictable():
    corpus = STREAMS["uniform"](num_tokens=200_000)
    assert corpus.entropy_rate == np.log(8)
    for order in (1, 2):
        found = ngram_cross_entropy(corpus.train.tokens - 2, corpus.valid.tokens - 2, 8, order)
        # 64 pair frequencies from 180,000 tokens cost 64 / (2 * 180,000) nats; the mean of
        # near-equal terms scatters far less than 1e-3.
        assert abs(found - np.log(8)) < 1e-3


def test_one_symbol_is_certain():
    assert (
        STREAMS["uniform"](num_symbols=1).entropy_rate
        == STREAMS["periodic"](num_symbols=1, noise=0.5).entropy_rate
        == 0
    )


def test_sinusoidal_lives_between_its_periods_and_is_smooth():
    size, period = 64, 40
    stream = _stream(
        STREAMS["sinusoidal"](num_tokens=8000, num_symbols=size, period=period)
    ).astype(float)
    power = np.abs(np.fft.rfft((stream - stream.mean()) * np.hanning(8000))) ** 2
    frequencies = np.fft.rfftfreq(8000)
    # The window widens a line by 2/8000; quantisation to 64 steps of a wave of size 64 leaves 1e-3
    # of the power elsewhere.
    band = (frequencies > 1 / period - 3e-4) & (frequencies < 4 / period + 3e-4)
    assert power[band].sum() > 0.99 * power.sum()
    # The slope of the wave is at most 2 pi 4 / period, on a scale where size symbols are two units;
    # one more from rounding down.
    assert np.max(np.abs(np.diff(stream))) <= size / 2 * 2 * np.pi * 4 / period + 1
    assert stream.max() - stream.min() > size / 2
