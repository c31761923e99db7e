"""Steps of training: against hand-made updates, in parts, resumed, and counted exactly."""

import chex
import jax
import numpy as np
import optax
import pytest

from vfejax.training.evaluate import evaluate
from vfejax.training.losses import next_token_loss
from vfejax.training.step import trainer
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")


@pytest.fixture
def windows(rng):
    return rng.integers(1, 5, (6, 8, 4))


def test_a_step_is_one_update_along_the_gradient(bigram, windows):
    model = bigram(5, extra=0.1)
    method = trainer(model, optax.sgd(0.5), jax.random.key(1), padding=0)
    state = method.init(jax.random.key(0))
    loss_fn = jax.value_and_grad(lambda p: next_token_loss(model, p, windows[0], None, 0)[0])
    loss, slope = jax.jit(loss_fn)(state.params)
    after, info = jax.jit(method.step)(state, windows[0])
    chex.assert_trees_all_close(
        after.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, slope), rtol=1e-14
    )
    np.testing.assert_allclose(info.loss, loss, rtol=1e-15)
    np.testing.assert_allclose(info.gradient_norm, optax.tree.norm(slope), rtol=1e-14)
    assert int(after.step) == 1
    assert int(info.parts.num_tokens) == 24


@pytest.mark.parametrize("accumulation", [2, 8])
def test_a_batch_in_parts_is_the_same_batch(bigram, windows, accumulation):
    model = bigram(5, extra=0.1)
    whole = trainer(model, optax.sgd(0.5), jax.random.key(1), padding=0)
    parts = trainer(model, optax.sgd(0.5), jax.random.key(1), padding=0, accumulation=accumulation)
    state = whole.init(jax.random.key(0))
    expected, found = (jax.jit(m.step)(state, windows[0]) for m in (whole, parts))
    chex.assert_trees_all_close(found, expected, rtol=1e-12)
    chex.assert_trees_all_equal_dtypes(found, expected)


def test_parts_count_by_their_tokens(bigram):
    """By hand: 6 counted targets; token 1 is followed by 2 and by 3, and the softmax of zeros is
    1/5, so that row 1 of the gradient is ``((p - e_2) + (p - e_3)) / 6``.
    """
    model = bigram(5)
    windows = np.asarray([[1, 2, 3, 4], [1, 3, 0, 0], [2, 4, 0, 0], [4, 1, 0, 0]])
    for accumulation in (1, 2, 4):
        method = trainer(
            model, optax.sgd(1.0), jax.random.key(0), padding=0, accumulation=accumulation
        )
        state = method.init(jax.random.key(1))
        zeros = {"kernel": np.zeros((5, 5)), "scale": np.ones(())}
        after, info = jax.jit(method.step)(state._replace(params=zeros), windows)
        row = np.array([-0.4, -0.4, 0.6, 0.6, -0.4]) / 6
        np.testing.assert_allclose(after.params["kernel"][1], row, rtol=1e-14)
        np.testing.assert_allclose(info.loss, np.log(5), rtol=1e-14)
        assert int(info.parts.num_tokens) == 6


def test_a_batch_with_targets_is_as_good_as_windows(bigram, windows):
    method = trainer(bigram(5), optax.sgd(0.5), jax.random.key(1))
    state = method.init(jax.random.key(0))
    batch = Batch(windows[0, :, :-1], targets=windows[0, :, 1:])
    step = jax.jit(method.step)
    chex.assert_trees_all_equal(step(state, batch), step(state, windows[0]))
    with pytest.raises(ValueError, match="batch must have targets"):
        step(state, batch._replace(targets=None))


def test_parts_that_do_not_fit_are_named(bigram, windows):
    method = trainer(bigram(5), optax.sgd(0.5), jax.random.key(1), accumulation=3)
    state = method.init(jax.random.key(0))
    with pytest.raises(ValueError, match="multiple of accumulation 3, got 8"):
        jax.eval_shape(method.step, state, windows[0])


def test_randomness_depends_on_the_step_alone_so_a_run_goes_on_bit_for_bit(bigram, windows):
    method = trainer(bigram(5, noise=1.0), optax.adam(0.1), jax.random.key(1))
    run = jax.jit(lambda state, windows: jax.lax.scan(method.step, state, windows))
    start = method.init(jax.random.key(0))
    whole, infos = run(start, windows)
    half, _ = run(start, windows[:3])
    resumed, later = run(half, windows[3:])
    chex.assert_trees_all_equal(resumed, whole)
    chex.assert_trees_all_equal(later, jax.tree.map(lambda x: x[3:], infos))
    same = run(start, np.stack([windows[0]] * 6))[1]
    assert len(np.unique(same.loss)) == 6


def test_step_is_traced_once_over_changing_values(bigram, windows):
    method = trainer(bigram(5), optax.adam(0.1), jax.random.key(1))
    step = jax.jit(chex.assert_max_traces(method.step, n=1))
    state = method.init(jax.random.key(0))
    for batch in windows:
        state, _ = step(state, batch)
    assert int(state.step) == 6


def test_training_minimises_to_the_entropy_of_the_source(bigram, rng):
    table = rng.dirichlet(np.ones(4), 4)
    tokens = [0]
    for _ in range(20000):
        tokens.append(rng.choice(4, p=table[tokens[-1]]))
    text = np.asarray(tokens)
    model = bigram(4)
    method = trainer(model, optax.adam(0.05), jax.random.key(1))
    starts = rng.integers(0, len(text) - 9, (300, 32))
    state, _ = jax.jit(lambda s, w: jax.lax.scan(method.step, s, w))(
        method.init(jax.random.key(0)), text[starts[..., None] + np.arange(9)]
    )
    frequency = np.bincount(text[:-1], minlength=4) / (len(text) - 1)
    entropy = -np.sum(frequency[:, None] * table * np.log(table))
    read = text[: 8 * 2500].reshape(1, 2500, 8)
    sums = jax.jit(lambda p: evaluate(model, p, read))(state.params)
    # Sampling: 17500 tokens, standard deviation of a token's nats about 1.
    np.testing.assert_allclose(sums.nats / sums.num_tokens, entropy, atol=4 / np.sqrt(17500))
