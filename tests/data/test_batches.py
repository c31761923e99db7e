"""Windows: each batch a function of seed and step, shards that tile it, and an evaluation that asks
for every token once.
"""

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfejax.data.batches import Batches, evaluation_windows

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True, database=None)
TOKENS = np.arange(100, dtype=np.int32)
MASK = 2**64 - 1


def _philox(counter, key):
    """Philox4x64-10 as in the paper: four words for one count."""
    c = [counter >> 64 * i & MASK for i in range(4)]
    k = [key & MASK, key >> 64]
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [second >> 64 ^ c[1] ^ k[0], second & MASK, first >> 64 ^ c[3] ^ k[1], first & MASK]
        k = [k[0] + 0x9E3779B97F4A7C15 & MASK, k[1] + 0xBB67AE8584CAA73B & MASK]
    return c


@pytest.mark.parametrize("seed", [0, 7, 2**128 - 1])
@pytest.mark.parametrize("step", [0, 5, 2**40])
def test_starts_are_those_of_the_published_generator(seed, step):
    # A run resumed with another NumPy must see the same batches. NumPy counts before it draws,
    # hence the 1.
    found = Batches(TOKENS, 6, 9, seed).at(step, 1)[0, :, 0]
    words = [word for i in range(2) for word in _philox(step * 2 + i + 1, seed)]
    np.testing.assert_array_equal(found, [word % 91 for word in words[:6]])


@PROPERTY
@given(
    st.integers(0, 2**128 - 1),
    st.integers(0, 10**12),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 9),
)
def test_a_batch_depends_on_seed_and_step_alone(seed, step, skip, num_steps, batch_size):
    whole = Batches(TOKENS, batch_size, 3, seed).at(step, skip + num_steps)
    part = Batches(TOKENS, batch_size, 3, seed).at(step + skip, num_steps)
    np.testing.assert_array_equal(part, whole[skip:])
    chex.assert_shape(part, (num_steps, batch_size, 4))
    chex.assert_type(part, np.int32)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12])
def test_shards_tile_the_batch(count):
    whole = Batches(TOKENS, 12, 5, 1).at(3, 4)
    shards = [Batches(TOKENS, 12, 5, 1, (i, count)).at(3, 4) for i in range(count)]
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole)


def test_windows_are_consecutive_tokens_at_uniform_starts():
    windows = Batches(TOKENS, 10, 60, 2).at(0, 4000)
    np.testing.assert_array_equal(
        windows - windows[..., :1], np.broadcast_to(np.arange(61), (4000, 10, 61))
    )
    counts = np.bincount(windows[..., 0].reshape(-1), minlength=40)
    assert len(counts) == 40
    # Chi-square with 39 degrees of freedom: mean 39, standard deviation 8.8; this is five of them.
    assert np.sum((counts - 1000) ** 2 / 1000) < 39 + 5 * 8.8


def test_windows_within_a_batch_and_between_steps_and_seeds_differ():
    long = np.arange(10**6, dtype=np.int32)
    starts = np.concatenate(
        [Batches(long, 8, 4, seed).at(0, 8)[..., 0].reshape(-1) for seed in (0, 1)]
    )
    # 128 draws from a million: a repetition has probability 0.008.
    assert len(np.unique(starts)) == 128


def test_the_only_window_of_a_short_text():
    np.testing.assert_array_equal(
        Batches(TOKENS[:5], 3, 4, 0).at(0, 1), np.broadcast_to(np.arange(5), (1, 3, 5))
    )


def test_a_batch_is_a_copy():
    tokens = TOKENS.copy()
    Batches(tokens, 2, 4, 0).at(0, 1)[:] = -1
    np.testing.assert_array_equal(tokens, TOKENS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": TOKENS.astype(np.int64)}, "tokens must be int32"),
        ({"tokens": TOKENS[None]}, "tokens must be int32"),
        (
            {"tokens": TOKENS.tolist()},
            r"tokens must be int32 \[n\], got list of shape .* converts them",
        ),
        ({"length": 100}, "tokens must be longer than length 100, got 100"),
        ({"length": 0}, "length and batch_size must be at least 1"),
        ({"batch_size": 0}, "length and batch_size must be at least 1"),
        ({"seed": -1}, "seed must lie in"),
        ({"seed": 2**128}, "seed must lie in"),
        ({"shard": (2, 2)}, "shard must be"),
        ({"shard": (-1, 2)}, "shard must be"),
        ({"shard": (0, 4)}, "shard must be .* divisor of batch_size 6"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Batches(**{"tokens": TOKENS, "batch_size": 6, "length": 4, "seed": 0, **arguments})


@pytest.mark.parametrize(("step", "num_steps"), [(-1, 1), (0, -1)])
def test_negative_steps_are_refused(step, num_steps):
    with pytest.raises(ValueError, match=r"^step and num_steps must be at least 0"):
        Batches(TOKENS, 6, 4, 0).at(step, num_steps)


SIZES = (st.integers(2, 60), st.integers(1, 20), st.integers(1, 7))


@PROPERTY
@given(*SIZES)
def test_every_token_but_the_first_is_asked_for_once(n, length, batch_size):
    tokens = np.arange(1, n + 1, dtype=np.int32)
    batches = evaluation_windows(tokens, length, batch_size, 0)
    chex.assert_shape(batches, (None, batch_size, length + 1))
    chex.assert_type(batches, np.int32)
    inputs, targets = batches[..., :-1].reshape(-1), batches[..., 1:].reshape(-1)
    counts = targets != 0
    np.testing.assert_array_equal(targets[counts], tokens[1:])
    np.testing.assert_array_equal(inputs[counts], tokens[:-1])
    num_windows = -(-(n - 1) // length)
    assert len(batches) == -(-num_windows // batch_size)


@PROPERTY
@given(*SIZES, st.integers(1, 70))
def test_a_limit_takes_evenly_spaced_windows(n, length, batch_size, limit):
    tokens = np.arange(1, n + 1, dtype=np.int32)
    everything = evaluation_windows(tokens, length, 1, 0)[:, 0]
    chosen = evaluation_windows(tokens, length, batch_size, 0, limit).reshape(-1, length + 1)
    num_windows = min(limit, len(everything))
    assert np.all(chosen[num_windows:] == 0)
    assert len(chosen) - num_windows < batch_size
    places = (chosen[:num_windows, 0] - 1) // length
    np.testing.assert_array_equal(chosen[:num_windows], everything[places])
    gaps = np.diff([*places, len(everything)])
    assert places[0] == 0
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": TOKENS.astype(np.int64)}, "tokens must be int32"),
        ({"tokens": TOKENS[:1]}, "tokens must be at least 2"),
        ({"length": 0}, "length and batch_size must be at least 1"),
        ({"batch_size": 0}, "length and batch_size must be at least 1"),
        ({"limit": 0}, "limit must be at least 1 or None, got 0"),
    ],
)
def test_evaluation_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluation_windows(
            **{"tokens": TOKENS, "length": 4, "batch_size": 6, "padding_id": 0, **arguments}
        )
