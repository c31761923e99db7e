"""Streams on a torus: equal to the batch form far beyond the ring, in memory that does not grow,
and, with a compressed past, within the bound they state.
"""

import io
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention import latent, streaming, windows
from vfejax.attention.latent import Compression
from vfejax.attention.toroidal import axial_attention, toroidal_attention
from vfejax.geometry.torus import circular_distance, linear_distance

BATCH, HEADS, CHANNELS, RING, WINDOW = 2, 4, 3, 9, 5
SLOPES = np.array([0.5, 3.0])
# 26 tokens on a ring of 9, in chunks longer than the window too.
CHUNKS = (1, 7, 1, 7, 7, 1, 1, 1)
FORMS = {
    "joint": (streaming.toroidal_window, toroidal_attention),
    "axial": (streaming.axial_window, axial_attention),
}


def arrays(rng, n, dtype=np.float64, batch=BATCH):
    """Query, key and value of n tokens; values have more channels than keys."""
    shape = (batch, n, HEADS)
    sizes = (CHANNELS, CHANNELS, CHANNELS + 1)
    return tuple(jnp.asarray(rng.normal(size=(*shape, size)), dtype) for size in sizes)


def window(form, **options):
    return FORMS[form][0](**{"depth": 2, "circumference": RING, "window": WINDOW} | options)


# One stream that most tests share, compiled for chunks of 1 and of 7.
SINKS = 2
STREAM = window("axial", slope=1.0, sinks=SINKS)
STEP = jax.jit(STREAM.step)


def decode(stream, tokens, chunks, step=None):
    """Everything the stream answers, chunk by chunk, and its last state."""
    step = jax.jit(stream.step) if step is None else step
    state, answers, start = stream.init(tokens), [], 0
    for size in chunks:
        state, answer = step(state, tuple(x[:, start : start + size] for x in tokens))
        answers.append(answer)
        start += size
    return jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *answers), state


@pytest.mark.parametrize(
    ("form", "distance_fn", "dtype", "chunks"),
    [
        ("joint", circular_distance, "float32", (7,) * 4),
        pytest.param("joint", circular_distance, "float64", CHUNKS, marks=pytest.mark.slow),
        pytest.param("axial", linear_distance, "float32", CHUNKS, marks=pytest.mark.slow),
        pytest.param("axial", circular_distance, "float64", (26,), marks=pytest.mark.slow),
    ],
)
def test_a_stream_answers_what_the_batch_form_answers(form, distance_fn, dtype, chunks, rng):
    tokens, slope = arrays(rng, sum(chunks), dtype), jnp.asarray(SLOPES)
    stream = window(form, slope=slope, distance_fn=distance_fn)
    answer, state = decode(stream, tokens, chunks)
    batch_form = partial(FORMS[form][1], depth=2, circumference=RING, distance_fn=distance_fn)
    attend = jax.jit(partial(batch_form, slope=slope, causal=True, window=WINDOW))
    assert answer.info is None
    chex.assert_type(answer.values, dtype)
    # Averages of numbers of order 1, joined from two parts.
    eps = float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(answer.values, np.asarray(attend(*tokens)), rtol=0, atol=30 * eps)
    assert state.position.tolist() == [sum(chunks)] * BATCH


def test_pinned_tokens_are_the_mask_of_the_batch_form(rng):
    n = sum(CHUNKS)
    tokens = arrays(rng, n)
    answer, _ = decode(STREAM, tokens, CHUNKS, STEP)
    # The batch form takes no more tokens than the ring has places: the ring is in the distance.
    round_the_ring = lambda offset, _: circular_distance(offset, RING)  # noqa: E731
    batch_form = partial(axial_attention, depth=2, slope=1.0, circumference=n)
    expected = jax.jit(partial(batch_form, distance_fn=round_the_ring))(
        *tokens, mask=windows.window_mask(n, WINDOW, SINKS)
    )
    chex.assert_trees_all_close(answer.values, np.asarray(expected), rtol=0, atol=1e-14)


@pytest.mark.slow  # the mask by default, with axial attention
def test_pinned_tokens_are_read_on_all_platters(rng):
    tokens = arrays(rng, RING)
    answer, _ = decode(window("joint", slope=2.0, sinks=3), tokens, (1, 3, 5))
    batch_form = partial(toroidal_attention, depth=2, slope=2.0, circumference=RING)
    expected = jax.jit(batch_form)(*tokens, mask=windows.window_mask(RING, WINDOW, 3))
    chex.assert_trees_all_close(answer.values, np.asarray(expected), rtol=0, atol=1e-14)


def test_a_step_costs_the_same_at_every_place(rng):
    tokens = arrays(rng, 3 * RING)
    one_program = STEP.lower(STREAM.init(tokens), tuple(x[:, :1] for x in tokens)).compile()
    _, state = decode(STREAM, tokens, (1,) * (3 * RING), one_program)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, STREAM.init(tokens))
    memory = one_program.memory_analysis()
    held = sum(x.nbytes for x in jax.tree.leaves(state))
    assert memory.output_size_in_bytes < held + 2**10
    # Copies of the window, its logits and its bias.
    assert memory.temp_size_in_bytes < 6 * held


def test_a_stream_saved_and_restored_goes_on_bit_for_bit(rng):
    tokens = arrays(rng, 14)
    first, second = (tuple(x[:, part] for x in tokens) for part in (slice(0, 7), slice(7, 14)))
    state, _ = STEP(STREAM.init(first), first)
    file = io.BytesIO()
    leaves, structure = jax.tree.flatten(state)
    np.savez(file, *leaves)
    file.seek(0)
    restored = jax.tree.unflatten(structure, [jnp.asarray(x) for x in np.load(file).values()])
    chex.assert_trees_all_equal(STEP(restored, second), STEP(state, second))


def test_sequences_at_different_places_share_a_batch(rng):
    tokens = arrays(rng, 22)
    mix = lambda one, other: np.stack([one[0], other[1]])  # noqa: E731
    states, nexts, expected = [], [], []
    for chunks in ((1,), (7, 7, 1)):
        start = sum(chunks)
        states.append(decode(STREAM, tokens, chunks, STEP)[1])
        nexts.append(tuple(x[:, start : start + 7] for x in tokens))
        expected.append(STEP(states[-1], nexts[-1]))
    found = STEP(jax.tree.map(mix, *states), jax.tree.map(mix, *nexts))
    chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), jax.tree.map(mix, *expected))
    assert windows.places(found[0], 2).tolist() == [[8, 9], [22, 23]]


def test_a_nan_leaves_with_its_token_and_harms_no_other_sequence(rng):
    query, key, value = arrays(rng, 14)
    bad = (query, key.at[0, 3].set(jnp.nan), value.at[0, 3].set(jnp.nan))
    found, straight = (
        decode(STREAM, tokens, (1,) * 14, STEP)[0].values for tokens in (bad, (query, key, value))
    )
    is_bad = np.isnan(found[0]).all(axis=(1, 2))
    assert is_bad.nonzero()[0].tolist() == list(range(3, 3 + WINDOW))
    chex.assert_trees_all_equal(found[0, ~is_bad], straight[0, ~is_bad])
    chex.assert_trees_all_equal(found[1], straight[1])


@pytest.mark.slow  # two compilations; sums in single precision are those of the batch form
def test_half_precision_is_summed_in_single(rng):
    half = arrays(rng, 14, jnp.bfloat16)
    answer, state = decode(STREAM, half, (7, 7))
    single, _ = decode(STREAM, tuple(x.astype("float32") for x in half), (7, 7))
    chex.assert_type([answer.values, state.ring[0]], jnp.bfloat16)
    # The weights and the answer are rounded to 8 bits; nothing is lost on the way.
    chex.assert_trees_all_close(answer.values.astype("f"), single.values, rtol=0, atol=2**-6)


def test_a_chunk_may_hold_no_token(rng):
    tokens = arrays(rng, 1)
    state, none = STREAM.init(tokens), tuple(x[:, :0] for x in tokens)
    after, answer = jax.eval_shape(STREAM.step, state, none)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_shape(answer.values, (BATCH, 0, HEADS, CHANNELS + 1))


def bases(rng, group, rank, value_rank=None, value_channels=CHANNELS + 1):
    """Random orthonormal columns."""
    turn = lambda size: np.linalg.qr(rng.normal(size=(group, size, size)))[0]  # noqa: E731
    return (
        jnp.asarray(turn(CHANNELS)[..., :rank]),
        jnp.asarray(turn(value_channels)[..., :value_rank]),
    )


LATENT = {
    "joint": (streaming.toroidal_latent, HEADS // 2),
    "axial": (streaming.axial_latent, HEADS),
}


@pytest.mark.slow  # full rank by default below, without chunks and pinned tokens
@pytest.mark.parametrize("form", FORMS)
def test_a_latent_state_of_full_rank_is_exact(form, rng):
    make, group = LATENT[form]
    tokens, chunks = arrays(rng, 20), (10, 10)
    full = Compression(*bases(rng, group, CHANNELS), horizon=3)
    options = {"depth": 2, "slope": 2.0, "circumference": RING, "sinks": 1}
    answer, _ = decode(make(full, window=2, **options), tokens, chunks)
    expected, _ = decode(FORMS[form][0](window=5, **options), tokens, chunks)
    # Keys go through their coefficients and back.
    chex.assert_trees_all_close(answer.values, expected.values, rtol=0, atol=1e-14)
    assert np.max(answer.info.total_variation) < 1e-14
    assert np.max(answer.info.value_error) < 1e-14


def test_a_state_can_be_donated_and_another_compression_is_refused(rng):
    tokens, full = arrays(rng, 1), bases(rng, HEADS, CHANNELS)
    options = {"depth": 2, "slope": None, "circumference": RING, "window": 2}
    state = streaming.axial_latent(Compression(*full, 3), **options).init(tokens)
    leaves = jax.tree.leaves(state)
    pointers = {x.unsafe_buffer_pointer() for x in leaves if x.size}
    assert len(pointers) == sum(x.size > 0 for x in leaves)
    for basis, horizon in ((full[0], 4), (full[0][..., :2], 3)):
        other = streaming.axial_latent(Compression(basis, full[1], horizon), **options)
        with pytest.raises(ValueError, match=r"state must hold a past of .*, got 3 in 3 and 4"):
            other.step(state, tokens)


@pytest.mark.slow  # another compilation; the window forgets by default
def test_a_nan_leaves_a_compressed_past_with_its_token(rng):
    query, key, value = arrays(rng, 12)
    bad = (query, key, value.at[0, 2].set(jnp.nan))
    stream = streaming.axial_latent(
        Compression(*bases(rng, HEADS, CHANNELS), horizon=2),
        depth=2,
        slope=1.0,
        circumference=RING,
        window=3,
    )
    answer, _ = decode(stream, bad, (1,) * 12)
    assert np.isnan(answer.values[0]).any(axis=(1, 2)).nonzero()[0].tolist() == [2, 3, 4, 5, 6]
    assert not np.isnan(answer.values[1]).any()


# 14 tokens on 2 platters, of many sequences.
TORUS = {"depth": 2, "slope": 1.0, "circumference": 14, "distance_fn": linear_distance}
EXACT = jax.jit(partial(toroidal_attention, causal=True, window=11, **TORUS))


@pytest.mark.parametrize("rank", [pytest.param(1, marks=pytest.mark.slow), 2, CHANNELS])
def test_weights_move_by_no_more_than_the_bound(rank, rng):
    seeds, n, depth = 20, TORUS["circumference"], TORUS["depth"]
    query, key, _ = arrays(rng, n, batch=seeds)
    # One channel for each token of the torus, so that an answer is the weights themselves.
    ones = np.eye(n * depth).reshape(n, depth, 1, n * depth).repeat(HEADS // depth, axis=2)
    ones = jnp.asarray(np.broadcast_to(ones.reshape(n, HEADS, -1), (seeds, n, HEADS, n * depth)))
    key_basis, value_basis = bases(rng, HEADS // depth, rank, value_channels=n * depth)
    stream = streaming.toroidal_latent(
        Compression(key_basis, value_basis, horizon=8), window=3, **TORUS
    )
    tokens = (query, key, ones)
    _, (weights, info) = jax.jit(stream.step)(stream.init(tokens), tokens)
    exact = EXACT(*tokens)
    info = jax.tree.map(np.asarray, info)
    moved = 0.5 * np.sum(np.abs(np.asarray(weights) - np.asarray(exact)), axis=-1)
    assert np.all(moved <= info.total_variation + 1e-13)
    assert np.all(info.measured <= info.logit_change + 1e-13)
    if rank == CHANNELS:
        assert np.max(info.total_variation) < 1e-14
        return
    # Exact until a token has left the window; from then on the bound says something.
    assert np.all(info.total_variation[:, :3] == 0)
    assert np.all(info.total_variation[:, 3:] > 0)
    assert np.median(info.total_variation[:, 3:]) < 0.9
    assert np.max(moved) > 0.1
    assert np.max(info.measured) > 0.1


@pytest.mark.slow  # a second compression; the weights' bound is tested by default
def test_answers_move_by_no_more_than_the_bound_in_any_chunks(rng):
    tokens = arrays(rng, 20, batch=8)
    compression = Compression(*bases(rng, HEADS, 2, 2), horizon=5)
    options = {"depth": 1, "slope": 1.0, "circumference": RING}
    stream = streaming.axial_latent(compression, window=3, **options)
    answer, state = decode(stream, tokens, (1,) * 20)
    exact, _ = decode(streaming.axial_window(window=8, **options), tokens, (20,))
    off = np.linalg.norm(answer.values - exact.values, axis=-1)
    largest = np.max(np.linalg.norm(tokens[2], axis=-1))
    bound = 2 * answer.info.total_variation * largest + answer.info.value_error
    assert np.all(off <= bound + 1e-13)
    at_once, state_at_once = decode(stream, tokens, (20,))
    chex.assert_trees_all_close(state_at_once, state, rtol=0, atol=1e-13)
    chex.assert_trees_all_close(at_once.values, answer.values, rtol=0, atol=1e-13)
    chex.assert_trees_all_close(
        at_once.info.logit_change, answer.info.logit_change, rtol=0, atol=1e-13
    )


def test_the_principal_basis_leaves_out_the_smallest_singular_values(rng):
    x = rng.normal(size=(2, 5, 4, 3))
    basis = np.asarray(jax.jit(partial(latent.principal_basis, rank=2, depth=2))(x))
    chex.assert_shape(basis, (2, 3, 2))
    heads = x.reshape(2, 5, 2, 2, 3).transpose(3, 0, 1, 2, 4).reshape(2, -1, 3)
    lost = heads - heads @ basis @ np.swapaxes(basis, 1, 2)
    smallest = np.linalg.svd(heads, compute_uv=False)[:, 2]
    chex.assert_trees_all_close(np.linalg.norm(lost, axis=(1, 2)), smallest, rtol=1e-12)


TOKENS = tuple(np.zeros((1, 2, 4, 3)) for _ in range(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 10}, "window must be 1 to the circumference 9, got 10"),
        ({"window": 0}, "window must be 1 to the circumference 9, got 0"),
        ({"sinks": -1}, "sinks must not be negative, got -1"),
        ({"circumference": 0}, "circumference must be at least 1, got 0"),
        ({"depth": 3}, r"depth must divide the 4 heads \(one of 1, 2, 4\), got 3"),
        ({"slope": jnp.ones(3)}, r"slope must be a number, \[2\] .* got \(3,\)"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        window("axial", **{"slope": None} | options).init(TOKENS)


def test_a_chunk_that_does_not_fit_the_state_is_refused():
    stream = window("joint", slope=None)
    state = stream.init(TOKENS)
    for bad, message in (
        (tuple(np.zeros((2, 1, 4, 3)) for _ in range(3)), r"key must be \[1, n, 4, 3\] float64"),
        (tuple(np.zeros((1, 1, 4, 3), "f") for _ in range(3)), "as in the state, .* float32"),
        ((*TOKENS[:2], np.zeros((1, 2, 4, 5))), r"value must be \[1, n, 4, 3\]"),
        ((*TOKENS[:2], np.zeros((1, 2, 4))), r"value must be \[b, n, h, c\]"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.step(state, bad)
    with pytest.raises(ValueError, match="state must be of a window of 5 with 1 platters"):
        window("axial", slope=None).step(state, TOKENS)
    with pytest.raises(ValueError, match="state must have 2 sinks, got one with 0"):
        window("joint", slope=None, sinks=2).step(state, TOKENS)


@pytest.mark.parametrize(
    ("compression", "message"),
    [
        (Compression(np.eye(3)[None], np.eye(3)[None], 5), "horizon must be 1 to the 4 places"),
        (Compression(np.eye(3)[None], np.eye(3)[None], 2), r"key_basis must be \[4, 3, r\]"),
        (
            Compression(np.ones((4, 3, 1)), np.ones((4, 3, 5)), 2),
            "value_basis must .* r up to 3, got",
        ),
    ],
)
def test_errors_name_what_a_compression_lacks(compression, message):
    with pytest.raises(ValueError, match=message):
        streaming.axial_latent(
            compression, depth=2, slope=None, circumference=RING, window=WINDOW
        ).init(TOKENS)
    with pytest.raises(ValueError, match="rank must be 1 to the 3 channels, got 4"):
        latent.principal_basis(jnp.ones((1, 1, 1, 3)), 4)
