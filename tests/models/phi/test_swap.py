"""Attention on a torus swapped into Phi models: what it leaves as it was, and what learns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.encodings import ENCODINGS
from vfejax.data.tensors import read_tensors
from vfejax.models import phi
from vfejax.models.phi.attention import toroidal
from vfejax.models.phi.config import Toroidal, from_json
from vfejax.models.phi.model import build
from vfejax.training.frozen_weights import split
from vfejax.training.step import trainer
from vfejax.types import Batch, TrainState

pytestmark = pytest.mark.usefixtures("library_promotion")

LEAVES_IT = [
    {},
    {"depth": 2, "fusion": "low-rank"},
    {"depth": 4, "fusion": "none", "circumference": 40, "window": 32},
]
SMALL = {
    "model_type": "phi",
    "vocab_size": 11,
    "hidden_size": 32,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "partial_rotary_factor": 1.0,
}


@pytest.mark.parametrize(
    "options", [*LEAVES_IT[:2], *(pytest.param(o, marks=pytest.mark.slow) for o in LEAVES_IT[2:])]
)
def test_the_logits_stay_where_the_torus_is_the_ordinary_attention(options, checkpoint):
    held = checkpoint("plain")
    model, params = phi.swap_attention(held.model, held.params, [1], **options)
    batch = Batch(*(jnp.asarray(held.expected[f"left_{name}"]) for name in ("tokens", "mask")))
    logits = np.asarray(jax.jit(model.apply)(params, batch).logits)
    difference = np.abs(logits - held.expected["left_logits"])[held.expected["left_mask"]]
    assert difference.max() < 1e-5  # of 1e-4; the logits are of the order of 6


def test_joint_attention_decodes_in_chunks_what_it_reads_at_once(rng):
    model = build(from_json(SMALL))
    # From NumPy: drawing them would be another program to compile.
    first = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), first)
    options = Toroidal(2, "joint", "geometric", "mean", slope=2.0, window=5)
    model, params = phi.swap_attention(model, params, [0, 1], options)
    tokens = jnp.asarray(rng.integers(0, 11, (2, 10)), jnp.int32)
    at_once = jax.jit(lambda p, t: model.apply(p, t).logits)(params, tokens)
    state, read = model.init_decode(params, 2), jax.jit(model.read)
    for start in (0, 5):
        logits, state = read(params, state, tokens[:, start : start + 5])
        # Sums of float32 in another order, through two layers.
        chex.assert_trees_all_close(logits, at_once[:, start + 4], rtol=0, atol=2e-5)


def test_the_bias_is_read_in_the_precision_of_the_arithmetic(rng):
    mixer = toroidal(from_json(SMALL), Toroidal(2, slope=0.3, circumference=12))
    query, key, value = jnp.asarray(rng.normal(size=(3, 1, 6, 4, 8)))

    @jax.jit
    def both(query, key, value):
        return mixer.attend(query, key, value), mixer.read(query, key, value, jnp.asarray(0))

    at_once, read = both(query, key, value)
    chex.assert_type(read, jnp.float64)
    chex.assert_trees_all_close(read, at_once, rtol=0, atol=1e-14)  # 1e-9 with a float32 bias


def swapped(held, **options):
    return phi.swap_attention(held.model, held.params, [1], fusion="low-rank", depth=2, **options)


def parts(model, params):
    """Leaves that learn and leaves that stay."""
    mask = phi.trainable(model, params)
    pairs = list(zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True))
    return [x for learns, x in pairs if learns], [x for learns, x in pairs if not learns]


def test_only_the_swapped_layer_learns_and_every_other_bit_stays(checkpoint, rng):
    held = checkpoint("grouped")
    model, params = swapped(held)
    mask = phi.trainable(model, params)
    optimizer = optax.adam(0.1)
    method = trainer(model, optimizer, jax.random.key(0), trained=mask)
    moments = optimizer.init(split(params, mask)[0])
    state = TrainState(jnp.zeros((), jnp.int32), params, moments)
    windows, step = jnp.asarray(rng.integers(0, 19, (2, 6)), jnp.int32), jax.jit(method.step)
    after, first = step(state, windows)
    after, second = step(after, windows)
    assert second.loss < first.loss
    (learned, kept), (before, fixed) = parts(model, after.params), parts(model, params)
    chex.assert_type(learned, jnp.float32)
    chex.assert_type(kept, jnp.bfloat16)
    for new, old in zip(kept, fixed, strict=True):
        assert np.asarray(new).tobytes() == np.asarray(old).tobytes()
    changed = [bool(jnp.any(new != old)) for new, old in zip(learned, before, strict=True)]
    assert sum(changed) >= len(changed) - 1  # a bias of keys shifts all logits of a query alike
    assert (
        len(jax.tree.leaves(moments)) == 2 * len(learned) + 1
    )  # nothing is kept for what does not learn


@pytest.mark.slow
def test_partition_of_optax_makes_the_same_step(checkpoint, rng):
    model, params = swapped(checkpoint("plain"))
    mask = phi.trainable(model, params)
    windows = jnp.asarray(rng.integers(0, 19, (2, 6)), jnp.int32)
    labels = jax.tree.map(lambda learns: "learns" if learns else "stays", mask)
    optimizer = optax.partition({"learns": optax.sgd(0.1), "stays": optax.set_to_zero()}, labels)
    states = []
    for method in (
        trainer(model, optax.sgd(0.1), jax.random.key(0), trained=mask),
        trainer(model, optimizer, jax.random.key(0)),
    ):
        state = method.init(jax.random.key(0))._replace(params=params)
        states.append(jax.jit(method.step)(state, windows)[0].params)
    chex.assert_trees_all_close(*states, rtol=0, atol=1e-6)
    chex.assert_trees_all_equal(parts(model, states[1])[1], parts(model, params)[1])


def test_a_swapped_model_is_saved_and_read_back_with_its_torus(checkpoint, tmp_path):
    held = checkpoint("grouped")
    model, params = swapped(held, slope=0.5, window=7, encoding="snapped", distance="linear")
    phi.save(tmp_path, model, params)
    again, read = phi.load(tmp_path)
    assert again.config == model.config
    chex.assert_trees_all_equal(read, params)
    assert phi.load(tmp_path, length=8)[0].config.swapped == model.config.swapped  # the same ring
    before, after = read_tensors(held.directory), read_tensors(tmp_path)
    further = {f"model.layers.1.self_attn.fusion.{i}" for i in (0, 1)}
    assert after.keys() - before.keys() == further
    for name, array in before.items():  # transformers finds the values that it wrote
        np.testing.assert_array_equal(after[name], array.astype(after[name].dtype))


def test_a_ring_has_room_for_as_many_tokens_as_places(checkpoint):
    held = checkpoint("plain")
    model, params = phi.swap_attention(held.model, held.params, [0], circumference=16)
    assert model.max_length == 16
    back, _ = phi.swap_attention(model, params, [0])
    assert back.config.swapped[0].circumference == 16


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ([2], {}, "layers must be numbers from 0 to 1, got 2"),
        ([], {}, "layers must be numbers from 0 to 1, got none"),
        ([0], {"depth": 3}, "depth must be a divisor of the 4 heads: 1, 2, 4, got 3"),
        (
            [0],
            {"depth": 4, "attention": "joint"},
            "depth must be a divisor of the 2 heads of keys: 1, 2, got 4",
        ),
        ([0], {"window": 33}, "window must be 1 to the circumference 32, got 33"),
        ([0], {"circumference": 0}, "circumference must be an integer from 1 to 536870911, got 0"),
        ([0], {"circumference": 2**29}, "circumference must be an integer from 1 to 536870911"),
        ([0], {"slope": -1.0}, "slope must be at least 0 and finite, got -1.0"),
        ([0], {"rank": 0}, "rank must be an integer of at least 1, got 0"),
        (
            [0],
            {"fusion": "sum"},
            "fusion must be one of none, low-rank, attention, mean, got 'sum'",
        ),
        (
            [0],
            {"depth": 2, "attention": "joint"},
            "channels must be even and at least 4 for depth 2, got 2",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(layers, options, message, checkpoint):
    held = checkpoint("grouped")
    with pytest.raises(ValueError, match=message):
        phi.swap_attention(held.model, held.params, layers, **options)


def test_every_encoding_and_fusion_of_the_tables_can_be_chosen():
    choices = Toroidal.__dataclass_fields__
    assert set(choices["encoding"].type.__args__) == set(ENCODINGS)
    assert set(choices["fusion"].type.__args__) == set(FUSIONS)
