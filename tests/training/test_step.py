"""Steps of training: against hand-made updates, in parts, resumed, and counted exactly."""

import bisect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from vfejax.models.protocol import as_batch
from vfejax.training.evaluate import evaluate
from vfejax.training.losses import next_token_loss
from vfejax.training.momentum import leapfrog
from vfejax.training.step import trainer
from vfejax.types import Batch, Prediction

pytestmark = pytest.mark.usefixtures("library_promotion")


@pytest.fixture
def windows(rng):
    return rng.integers(1, 5, (6, 8, 4))


def test_a_step_is_one_update_along_the_gradient(bigram, windows):
    model = bigram(5, extra=0.1)
    method = trainer(model, optax.sgd(0.5), jax.random.key(1), padding=0)
    state = method.init(jax.random.key(0))
    loss_fn = jax.value_and_grad(lambda p: next_token_loss(model, p, windows[0], None, 0)[0])

    @jax.jit
    def both(state):
        return loss_fn(state.params), method.step(state, windows[0])

    (loss, slope), (after, info) = jax.device_get(both(state))
    chex.assert_trees_all_close(
        after.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, slope), rtol=1e-14
    )
    np.testing.assert_allclose(info.loss, loss, rtol=1e-15)
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in slope.values()))
    np.testing.assert_allclose(info.gradient_norm, norm, rtol=1e-14)
    assert int(after.step) == 1
    assert int(info.parts.num_tokens) == 24


def _squared_mean(model):
    """The model with the square of the mean of a logit over real tokens as a further term: no sum
    over parts, but a function of such sums. The model's own term, which no sums make, stays.
    """

    def summarize(sums):
        mean = sums["logits"] / sums["tokens"]
        return {"square": mean**2}, {"mean": mean}

    def apply(params, batch, key):
        batch, found = as_batch(batch), model.apply(params, batch, key)
        weight = batch.mask.astype(found.logits.dtype)
        sums = {"logits": jnp.sum(found.logits[..., 1] * weight), "tokens": jnp.sum(weight)}
        losses, diagnostics = summarize(sums)
        return Prediction(
            found.logits, found.losses | losses, found.diagnostics | diagnostics, sums
        )

    return model._replace(apply=apply, summarize=summarize)


@pytest.mark.parametrize(
    ("further", "counts"),
    [(lambda model: model, (1, 2, 8)), (_squared_mean, (1, 4))],
    ids=["means", "functions of sums"],
)
def test_a_batch_in_parts_is_the_same_batch(bigram, windows, further, counts):
    model = further(bigram(5, extra=0.1))
    windows = windows[0] * (np.arange(4) < [[4], [2], [3], [4], [1], [4], [2], [3]])
    methods = {
        count: trainer(model, optax.sgd(0.5), jax.random.key(1), padding=0, accumulation=count)
        for count in counts
    }
    state = methods[1].init(jax.random.key(0))
    together = jax.jit(lambda state: {n: m.step(state, windows) for n, m in methods.items()})
    found = jax.device_get(together(state))
    for count in counts[1:]:
        chex.assert_trees_all_close(found[count], found[1], rtol=1e-12)
        chex.assert_trees_all_equal_dtypes(found[count], found[1])


def test_parts_count_by_their_tokens(bigram):
    """By hand: 6 counted targets; token 1 is followed by 2 and by 3, and the softmax of zeros is
    1/5, so that row 1 of the gradient is ``((p - e_2) + (p - e_3)) / 6``.
    """
    model = bigram(5)
    windows = np.asarray([[1, 2, 3, 4], [1, 3, 0, 0], [2, 4, 0, 0], [4, 1, 0, 0]])
    methods = [
        trainer(model, optax.sgd(1.0), jax.random.key(0), padding=0, accumulation=accumulation)
        for accumulation in (1, 2, 4)
    ]
    zeros = {"kernel": np.zeros((5, 5)), "scale": np.ones(())}
    start = methods[0].init(jax.random.key(1))._replace(params=zeros)
    for after, info in jax.jit(lambda state: [m.step(state, windows) for m in methods])(start):
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


def test_weights_are_those_of_an_optimizer_that_looks_ahead_and_fixed_ones_stay(bigram, windows):
    optimizer = leapfrog(0.1, momentum=0.5)
    trained = {"kernel": True, "scale": False}
    method = trainer(bigram(5), optimizer, jax.random.key(1), trained=trained)
    state, _ = jax.jit(method.step)(method.init(jax.random.key(0)), windows[0])
    kernel = state.params["kernel"] - 0.5 * state.optimizer_state.velocity["kernel"]
    np.testing.assert_allclose(method.weights(state)["kernel"], kernel, rtol=1e-14)
    assert method.weights(state)["scale"] == state.params["scale"] == 1
    other = trainer(bigram(5), optimizer, jax.random.key(1), trained={"kernel": True})
    with pytest.raises(ValueError, match=r"a tree like params, but \['scale'\] is in one of them"):
        other.init(jax.random.key(0))


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


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_optimizer_is_told_the_loss(bigram, windows, accumulation):
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    method = trainer(bigram(5), optimizer, jax.random.key(1), accumulation=accumulation)
    state, info = jax.jit(method.step)(method.init(jax.random.key(0)), windows[0])
    # Optax may keep it in single precision.
    np.testing.assert_allclose(state.optimizer_state[1].best_value, info.loss, rtol=1e-6)


def test_training_minimises_to_the_entropy_of_the_source(bigram, rng):
    table = rng.dirichlet(np.ones(4), 4)
    bounds, tokens = np.cumsum(table, axis=1)[:, :-1].tolist(), [0]
    for draw in rng.random(20000).tolist():
        tokens.append(bisect.bisect(bounds[tokens[-1]], draw))
    text = np.asarray(tokens)
    model = bigram(4)
    method = trainer(model, optax.adam(0.05), jax.random.key(1))
    starts = rng.integers(0, len(text) - 9, (300, 32))
    frequency = np.bincount(text[:-1], minlength=4) / (len(text) - 1)
    entropy = -np.sum(frequency[:, None] * table * np.log(table))
    read = text[: 8 * 2500].reshape(1, 2500, 8)

    @jax.jit
    def learned(state, windows):
        state, _ = jax.lax.scan(method.step, state, windows)
        return evaluate(model, state.params, read)

    sums = learned(method.init(jax.random.key(0)), text[starts[..., None] + np.arange(9)])
    # Sampling: 17500 tokens, standard deviation of a token's nats about 1.
    np.testing.assert_allclose(
        sums.nats / sums.num_tokens, entropy, rtol=0, atol=4 / np.sqrt(17500)
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_model_reads_what_weights_fn_makes_of_the_weights_and_the_weights_learn(
    bigram, windows, accumulation
):
    """From update 1 on the table is doubled, so that its slope is twice that at the double."""
    model = bigram(5)

    def doubled(params, step):
        return params | {"kernel": jnp.where(step >= 1, 2.0, 1.0) * params["kernel"]}

    method = trainer(
        model,
        optax.sgd(0.5),
        jax.random.key(1),
        accumulation=accumulation,
        trained={"kernel": True, "scale": False},
        weights_fn=doubled,
    )
    slope_fn = jax.grad(lambda p: next_token_loss(model, p, windows[0], None)[0])

    @jax.jit
    def run(state):
        first, _ = method.step(state, windows[0])
        second, _ = method.step(first, windows[0])
        slopes = [slope_fn(state.params), slope_fn(doubled(first.params, 1))]
        return first.params, second.params, [slope["kernel"] for slope in slopes]

    start = method.init(jax.random.key(0))
    first, second, (plain, twice) = run(start)
    # A sum over tokens in another order.
    expected = start.params["kernel"] - 0.5 * plain
    np.testing.assert_allclose(first["kernel"], expected, rtol=1e-13)
    np.testing.assert_allclose(second["kernel"], expected - 0.5 * 2 * twice, rtol=1e-13)
    assert second["scale"] == start.params["scale"]
