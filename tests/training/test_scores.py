"""Figures of an evaluation: right values, at the edges too."""

import math

import numpy as np
import pytest

from vfejax.training.scores import Measured, bits_per_byte, perplexity, scores


@pytest.mark.parametrize(
    ("nats", "expected"),
    [(0.0, 1.0), (math.log(50), 50.0), (1000.0, math.inf), (math.inf, math.inf)],
)
def test_perplexity(nats, expected):
    np.testing.assert_allclose(perplexity(nats), expected, rtol=1e-14)


def test_perplexity_of_nan_is_nan():
    assert math.isnan(perplexity(math.nan))


@pytest.mark.parametrize(
    ("nats", "num_tokens", "num_bytes", "spelling", "expected"),
    [
        (8 * math.log(2), 100, 100, 0.0, 8.0),  # bytes, each of 256 equally probable
        (8 * math.log(2), 50, 100, 0.0, 4.0),  # a token stands for two bytes
        (0.0, 10, 100, 800 * math.log(2), 8.0),  # all unknown, every byte spelled
        (math.log(2), 100, 100, 100 * math.log(2), 2.0),
        (math.nan, 1, 1, 0.0, math.nan),
    ],
)
def test_bits_per_byte(nats, num_tokens, num_bytes, spelling, expected):
    found = bits_per_byte(nats, num_tokens, num_bytes, spelling)
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_scores_of_a_text_of_a_text_with_unknown_symbols_and_of_no_text():
    measured = Measured(math.log(2), 99)
    always = {"loss_nats_per_token": math.log(2), "perplexity": 2.0, "tokens_predicted": 99}
    text = scores(measured, num_tokens=100, num_bytes=200, num_unknown=25)
    assert text == pytest.approx(always | {"unknown_tokens": 0.25, "bits_per_byte": 0.5})
    assert scores(measured, num_tokens=100) == pytest.approx(always)
    # What a code for the text costs is not known, so no figure pretends to.
    unknown = scores(measured, num_tokens=100, num_bytes=200, spelling_nats=None)
    assert unknown == pytest.approx(always)


def test_scores_of_a_diverged_model():
    found = scores(Measured(1000.0, 10), num_tokens=10, num_bytes=10)
    assert found["perplexity"] == math.inf
    np.testing.assert_allclose(found["bits_per_byte"], 1000 / math.log(2), rtol=1e-14)
