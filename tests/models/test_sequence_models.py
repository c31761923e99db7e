"""One table for every next-token model: causal bit for bit, decoding equals reading, every weight
learns, no answer leaks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models.gpt import model as transformer
from vfejax.models.quantum import model as quantum_transformer
from vfejax.models.resnet_bk import model as resnet_bk
from vfejax.models.table import MODELS as MODEL_TABLE
from vfejax.training.evaluate import evaluate
from vfejax.training.losses import next_token_loss
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH, BATCH = 11, 12, 3


def _bk(**options):
    small = {"layers": 2, "dim": 16, "heads": 4, "hidden": 16, "experts": 4, "top_k": 2}
    return lambda dtype: resnet_bk.build(
        resnet_bk.ResNetBKConfig(**small | options), VOCABULARY, LENGTH, dtype
    )


def _gpt(**options):
    config = transformer.TransformerConfig(layers=2, dim=16, heads=4, hidden=32, **options)
    return lambda dtype: transformer.build(config, VOCABULARY, LENGTH, dtype)


def _quantum(**options):
    config = quantum_transformer.QuantumTransformerConfig(dim=6, width=16, hidden=32, **options)
    return lambda dtype: quantum_transformer.build(config, VOCABULARY, LENGTH, dtype)


MODELS = {
    "transformer": _gpt(),
    "resnet-bk": _bk(),
    "resnet-bk-features": _bk(mixer="features", experts=1, top_k=1, positions=True, tied=False),
    "resnet-bk-gumbel": _bk(router="gumbel", top_k=1, dropout=0.1),
    "resnet-bk-tridiagonal": _bk(mixer="tridiagonal", convolution=3),
    "gpt-modern": lambda dtype: MODEL_TABLE["gpt-modern"].build(
        MODEL_TABLE["gpt-modern"].tiny, VOCABULARY, LENGTH, dtype
    ),
    "quantum": _quantum(),
}
DTYPES = {"float32": jnp.float32, "float64": jnp.float64, "bfloat16": jnp.bfloat16}


QUICK = {"xla_backend_optimization_level": 0}  # for programs whose compilation is all their cost


class Compiled:
    """A model with its functions compiled once for all tests that share it; in float32 as a user
    compiles it.
    """

    def __init__(self, name, dtype):
        options = QUICK if dtype == jnp.float64 else {}
        self.model = MODELS[name](dtype)
        self.params = jax.jit(self.model.init, compiler_options=QUICK)(jax.random.key(0))
        self.apply = jax.jit(self.model.apply, compiler_options=options)
        self.decode = jax.jit(self.model.decode, compiler_options=QUICK)


@pytest.fixture(scope="module")
def compiled():
    made = {}

    def get(name, dtype="float32"):
        if (name, dtype) not in made:
            made[name, dtype] = Compiled(name, DTYPES[dtype])
        return made[name, dtype]

    return get


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


@pytest.mark.parametrize("name", MODELS)
def test_logits_have_the_precision_that_was_asked_for(name, compiled, tokens):
    for dtype in DTYPES:
        model = MODELS[name](DTYPES[dtype])
        params = jax.eval_shape(model.init, jax.random.key(0))
        logits = jax.eval_shape(model.apply, params, tokens, jax.random.key(0)).logits
        assert logits.shape == (BATCH, LENGTH, VOCABULARY)
        assert logits.dtype == DTYPES[dtype]
        assert {x.dtype for x in jax.tree.leaves(params)} == {
            jnp.dtype("float64" if dtype == "float64" else "float32")
        }


@pytest.mark.parametrize("name", MODELS)
def test_changing_a_token_leaves_every_earlier_output_bit_identical(name, compiled, tokens):
    model = compiled(name)
    before = np.asarray(model.apply(model.params, tokens, None).logits)
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = tokens.copy()
        changed[:, t:] = (changed[:, t:] + 1 + np.arange(LENGTH - t)) % VOCABULARY
        after = np.asarray(model.apply(model.params, changed, None).logits)
        assert np.array_equal(before[:, :t], after[:, :t])
        assert not np.allclose(before[:, t], after[:, t])


@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_a_batch_do_not_see_each_other(name, compiled, tokens):
    model = compiled(name)
    before = np.asarray(model.apply(model.params, tokens, None).logits)
    changed = tokens.copy()
    changed[0] = (changed[0] + 3) % VOCABULARY
    after = np.asarray(model.apply(model.params, changed, None).logits)
    assert np.array_equal(before[1:], after[1:])


@pytest.mark.parametrize("name", MODELS)
def test_every_token_reaches_all_later_outputs(name, compiled, tokens):
    model = compiled(name, "float64")
    changed = tokens.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    difference = (
        model.apply(model.params, tokens, None).logits
        - model.apply(model.params, changed, None).logits
    )
    assert np.all(np.abs(difference).max(axis=(0, 2)) > 0)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_token_by_token_equals_reading_at_once(name, compiled, tokens):
    model = compiled(name, "float64")
    expected = model.apply(model.params, tokens, None).logits
    state = model.model.init_decode(model.params, BATCH)
    sizes = [x.shape for x in jax.tree.leaves(state)]
    for t in range(LENGTH):
        logits, state = model.decode(model.params, state, tokens[:, t])
        # Sums in another order, amplified by norms of small numbers.
        np.testing.assert_allclose(logits, expected[:, t], rtol=1e-9, atol=1e-11)
    assert [x.shape for x in jax.tree.leaves(state)] == sizes


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_finite_gradient_that_is_not_zero(name, compiled, rng):
    model = compiled(name).model
    windows = rng.integers(0, VOCABULARY, (8, LENGTH + 1)).astype(np.int32)
    params = compiled(name).params
    slope_fn = jax.grad(lambda p: next_token_loss(model, p, windows, None, None)[0])
    slopes = jax.jit(slope_fn, compiler_options=QUICK)(params)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.all(np.isfinite(slope)), path
        assert np.any(slope != 0), path


@pytest.mark.parametrize("name", ["transformer", "resnet-bk"])
def test_gradient_is_that_of_finite_differences(name, compiled, rng):
    model, params = compiled(name, "float64").model, compiled(name, "float64").params
    windows = rng.integers(0, VOCABULARY, (2, LENGTH + 1)).astype(np.int32)
    loss_fn = jax.value_and_grad(lambda p: next_token_loss(model, p, windows, None, None)[0])
    value_and_grad = jax.jit(loss_fn, compiler_options=QUICK)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
    step = 1e-6

    def moved(sign):
        return jax.tree.map(lambda x, d: x + sign * step * d, params, direction)

    slope = (value_and_grad(moved(1))[0] - value_and_grad(moved(-1))[0]) / (2 * step)
    gradient = value_and_grad(params)[1]
    exact = sum(
        np.sum(g * d)
        for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    # Central differences: the cube of the step against rounding of the loss over the step.
    np.testing.assert_allclose(slope, exact, rtol=1e-6)


@pytest.mark.parametrize("name", ["transformer", "resnet-bk-gumbel"])
def test_a_key_makes_training_random_and_none_makes_it_not(name, tokens):
    model = {"transformer": _gpt(dropout=0.2), "resnet-bk-gumbel": MODELS["resnet-bk-gumbel"]}[
        name
    ](jnp.float32)
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0))
    apply = jax.jit(model.apply, compiler_options=QUICK)
    one, two, again = (apply(params, tokens, jax.random.key(seed)).logits for seed in (1, 2, 1))
    assert np.array_equal(one, again)
    assert not np.allclose(one, two)
    assert np.array_equal(apply(params, tokens, None).logits, apply(params, tokens, None).logits)


@pytest.mark.parametrize("name", MODELS)
def test_wrong_tokens_are_named(name):
    model = MODELS[name](jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for bad in (
        np.zeros(LENGTH, np.int32),
        np.zeros((1, LENGTH), np.float32),
        np.zeros((1, 0), np.int32),
    ):
        with pytest.raises(ValueError, match="tokens must"):
            jax.eval_shape(model.apply, params, bad, None)
    longer = np.zeros((1, LENGTH + 1), np.int32)
    if model.max_length is None:
        assert jax.eval_shape(model.apply, params, longer, None).logits.shape[1] == LENGTH + 1
    else:
        with pytest.raises(ValueError, match=f"1 to {LENGTH} positions"):
            jax.eval_shape(model.apply, params, longer, None)


@pytest.mark.parametrize("name", MODELS)
def test_random_tokens_never_train_below_the_uniform_loss_and_a_pattern_does(name, rng):
    model = MODELS[name](jnp.float32)
    method = trainer(model, adamw(1e-2, weight_decay=0.0), jax.random.key(1))
    steps, batch = 150, 16

    @jax.jit
    def loss_after_training(windows):
        state, _ = jax.lax.scan(method.step, method.init(jax.random.key(0)), windows[:steps])
        sums = evaluate(model, state.params, windows[steps:])
        return sums.nats / sums.num_tokens

    noise = rng.integers(0, VOCABULARY, (steps + 20, batch, LENGTH + 1)).astype(np.int32)
    # Fresh noise: a leak of the answer would go to 0; 4 sigma of the mean of 3840 independent
    # tokens is 0.01.
    assert loss_after_training(noise) > np.log(VOCABULARY) - 0.01
    pattern = rng.permutation(VOCABULARY)
    phase = rng.integers(0, VOCABULARY, (steps + 20, batch, 1))
    periodic = pattern[(phase + np.arange(LENGTH + 1)) % VOCABULARY].astype(np.int32)
    assert loss_after_training(periodic) < 0.2
