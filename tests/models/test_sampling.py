"""Choosing tokens, and decoding: against distributions computed by hand, and against reading
everything again for every token.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from vfejax.models import sampling
from vfejax.models.gpt import model as transformer
from vfejax.models.resnet_bk import model as resnet_bk
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH = 7, 6


def _share(sampler_fn, logits, draws=4000):
    """How often each token is drawn."""
    keys = jax.random.split(jax.random.key(0), draws)
    tokens = jax.jit(jax.vmap(lambda key: sampler_fn(key, logits)))(keys)
    chex.assert_type(tokens, jnp.int32)
    return np.bincount(np.asarray(tokens)[:, 0], minlength=logits.shape[-1]) / draws


@pytest.fixture
def logits(rng):
    return jnp.log(jnp.asarray([[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]]))


@pytest.mark.parametrize(
    ("options", "kept", "power"),
    [
        ({}, 6, 1.0),
        ({"temperature": 0.5}, 6, 2.0),
        ({"top_k": 2}, 2, 1.0),
        ({"top_k": 10}, 6, 1.0),
        ({"top_p": 0.6}, 2, 1.0),
        ({"top_p": 0.66}, 3, 1.0),
        ({"top_p": 1e-6}, 1, 1.0),
        ({"temperature": 2.0, "top_k": 3}, 3, 0.5),
        ({"top_k": 4, "top_p": 0.7}, 2, 1.0),
    ],
)
def test_share_of_every_token(options, kept, power, logits):
    weights = np.exp(np.asarray(logits)[0]) ** power
    weights[kept:] = 0
    share = _share(sampling.sampler(**options), logits)
    assert np.all(share[kept:] == 0)
    # Four standard deviations of 4000 draws.
    np.testing.assert_allclose(share, weights / weights.sum(), rtol=0, atol=4 * 0.5 / np.sqrt(4000))


def test_temperature_zero_takes_the_most_probable_and_forbidden_tokens_never_appear(logits):
    assert _share(sampling.sampler(0.0), logits, 5)[0] == 1
    assert _share(sampling.sampler(0.0, forbidden=(0, 1)), logits, 5)[2] == 1
    share = _share(sampling.sampler(forbidden=(0,)), logits)
    assert share[0] == 0
    assert np.all(share[1:] > 0)


@pytest.mark.parametrize(
    ("probabilities", "top_p", "kept"),
    [
        ([0.4, 0.2, 0.2, 0.2], 0.5, [0, 1]),
        ([0.2, 0.2, 0.4, 0.2], 0.5, [0, 2]),
        ([0.1] * 10, 0.5, [0, 1, 2, 3, 4]),
        ([0.1] * 10, 1.0, list(range(10))),
        ([0.1, 0.9], 1e-50, [1]),
    ],
)
def test_the_nucleus_is_the_smallest_set_and_of_equal_tokens_the_first(probabilities, top_p, kept):
    share = _share(sampling.sampler(top_p=top_p), np.log(np.asarray([probabilities], np.float32)))
    assert np.flatnonzero(share).tolist() == kept


@pytest.mark.parametrize("temperature", [0.0, 1e-50, 1e-40, 1e-39, 1e-38, 1.2e-38, 1e-37, 1e-3])
@pytest.mark.parametrize("forbidden", [(), (0,)])
def test_the_limit_of_small_temperatures_is_the_most_probable_token(temperature, forbidden):
    logits = jnp.asarray([[9.0 if forbidden else -9.0, 1.0, 3.0, 2.5, -1.0]], jnp.float32)
    draw = sampling.sampler(temperature, forbidden=forbidden)
    assert draw(jax.random.key(0), logits).tolist() == [2]
    assert draw(jax.random.key(0), np.asarray(1e30 * logits)).tolist() == [2]


@pytest.mark.parametrize(
    ("forbidden", "message"),
    [
        ((3,), "forbidden must hold tokens from 0 to 2, got 3"),
        ((-1,), "forbidden must hold tokens from 0 to 2, got -1"),
        ((0, 2, 1), "forbidden must leave a token"),
    ],
)
def test_forbidden_tokens_that_do_not_fit_are_named(forbidden, message):
    with pytest.raises(ValueError, match=message):
        sampling.sampler(forbidden=forbidden)(jax.random.key(0), jnp.zeros((1, 3)))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        sampling.sampler(**options)


@pytest.fixture(scope="module")
def gpt():
    model = transformer.build(
        transformer.TransformerConfig(1, 8, 2, 16), VOCABULARY, LENGTH, jnp.float64
    )
    return Compiled(model, random_weights(model, 2, 0.6))


@pytest.fixture(scope="module")
def unbounded():
    config = resnet_bk.ResNetBKConfig(
        layers=1, dim=8, heads=2, hidden=8, experts=1, top_k=1, mixer="gate"
    )
    model = resnet_bk.build(config, VOCABULARY, LENGTH, jnp.float64)
    return Compiled(model, random_weights(model, 2, 0.6))


class Compiled:
    """A model with what is compiled once for all tests, and weights so large that the most probable
    token depends on the text.
    """

    def __init__(self, model, params):
        self.model, self.params = model, params
        self.apply = jax.jit(model.apply)

        @functools.partial(jax.jit, static_argnames=("num_tokens", "temperature"))
        def generate(prompt, num_tokens, key, temperature=0.0):
            draw = sampling.sampler(temperature)
            return sampling.generate(model, params, prompt, num_tokens, key, draw)

        self.generate = generate


LONGEST = 16


def _read_again(compiled, prompt, num_tokens):
    """The most probable continuation by reading the whole window for every token."""
    model, params, apply = compiled.model, compiled.params, compiled.apply
    text = list(prompt)
    start = 0
    for position in range(len(prompt) + num_tokens - 1):
        if position - start == model.max_length:
            start = position - model.max_length // 2
        if position == len(text) - 1:
            window = np.zeros((1, model.max_length or LONGEST), np.int32)
            window[0, : position + 1 - start] = text[
                start:
            ]  # what follows cannot matter: models are causal
            logits = np.asarray(apply(params, window, None).logits)
            text.append(int(np.argmax(logits[0, position - start])))
    return text[len(prompt) :]


@pytest.mark.parametrize(
    "prompt",
    [
        [3],
        pytest.param([1, 4, 2], marks=pytest.mark.slow),
        [0, 1, 2, 3, 4, 5, 6, 0, 1],
    ],
)
def test_a_full_window_starts_again_from_its_last_half(prompt, gpt):
    expected = _read_again(gpt, prompt, 11)
    assert gpt.generate(np.array([prompt]), 11, jax.random.key(0)).tolist() == [expected]
    assert len(set(expected)) > 1


def test_without_a_bound_everything_is_remembered(unbounded):
    expected = _read_again(unbounded, [5, 1], 12)
    assert unbounded.generate(np.array([[5, 1]]), 12, jax.random.key(0)).tolist() == [expected]
    assert len(set(expected)) > 1


def test_longer_texts_begin_like_shorter_ones_and_rows_are_independent(unbounded):
    prompt = np.array([[1, 2], [3, 4]])

    def write(count, seed):
        return np.asarray(unbounded.generate(prompt, count, jax.random.key(seed), 2.0))

    long = write(9, 0)
    chex.assert_shape(long, (2, 9))
    np.testing.assert_array_equal(long[:, :4], write(4, 0))
    assert not np.array_equal(long, write(9, 1))


@pytest.mark.parametrize("which", ["gpt", "unbounded"])
def test_prompts_of_unequal_length_are_continued_as_each_is_alone(which, request):
    """Left, right and scattered padding; the GPT is full and starts again on the way."""
    compiled = request.getfixturevalue(which)
    texts = [[3], [1, 4, 2, 0, 5], [6, 2, 2]]
    masks = np.array([[0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 1, 1, 0]], bool)
    tokens = np.full(masks.shape, -1)
    tokens[masks] = [token for text in texts for token in text]
    found = compiled.generate(Batch(tokens, masks), 9, jax.random.key(0))
    assert found.tolist() == [_read_again(compiled, text, 9) for text in texts]


def test_no_new_tokens_are_refused(unbounded):
    with pytest.raises(ValueError, match="num_tokens must be at least 1, got 0"):
        unbounded.generate(np.ones((1, 2), np.int32), 0, jax.random.key(0))


@pytest.mark.parametrize(
    "prompt", [np.zeros((1, 0), np.int32), np.zeros(3, np.int32), np.zeros((1, 3))]
)
def test_a_bad_prompt_is_named(prompt, unbounded):
    with pytest.raises(ValueError, match="prompt must"):
        unbounded.generate(prompt, 2, jax.random.key(0))
