"""Attention on a torus in flax models of others: in place of ``nnx.MultiHeadAttention``, and in it
as ``attention_fn``.
"""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from vfejax.attention import depth_fusion
from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.toroidal import dense
from vfejax.geometry.torus import linear_distance
from vfejax.models.toroidal.attention import ToroidalAttention
from vfejax.models.toroidal.function import attention_fn
from vfejax.models.toroidal.torus import AXIAL, JOINT, Torus

pytestmark = pytest.mark.usefixtures("library_promotion")

HEADS, DIM, LENGTH = 4, 16, 8
RING = Torus(LENGTH, depth=2)
BARE = Torus(LENGTH, encoding=None)
MAKE = {"dtype": jnp.float64, "param_dtype": jnp.float64, "decode": False}


class Layer(nnx.Module):
    """A block as a user writes it, with flax alone."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(DIM, param_dtype=jnp.float64, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, DIM, **MAKE, rngs=rngs)
        self.out = nnx.Linear(DIM, DIM, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x, mask=None):
        x = x + self.attention(self.norm(x), mask=mask)
        return x + nnx.gelu(self.out(x))


@pytest.fixture
def inputs(rng):
    return jnp.asarray(rng.standard_normal((2, LENGTH, DIM)))


def _swapped(layer, torus, **options):
    """The same block, with its weights, on a torus."""
    swapped = nnx.clone(layer)
    new = ToroidalAttention(HEADS, DIM, torus=torus, **MAKE, rngs=nnx.Rngs(1), **options)
    nnx.update(new, nnx.state(swapped.attention, nnx.Param))
    swapped.attention = new
    return swapped


call = nnx.jit(lambda module, *arguments: module(*arguments))


def test_one_platter_without_bias_and_turns_is_flax_in_a_model_that_is_not_ours(inputs):
    layer = Layer(nnx.Rngs(0))
    causal = nnx.make_causal_mask(inputs[..., 0])  # numbers, as flax makes them
    expected = call(layer, inputs, causal)
    found = call(_swapped(layer, BARE), inputs, causal)
    # flax takes its softmax in float32 even here: a few of its roundings.
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_swapped_module_and_flax_s_own_with_our_function_follow_every_roll(inputs):
    layer = Layer(nnx.Rngs(0))
    swapped = _swapped(layer, RING, slopes=(4.0,))
    layer.attention.attention_fn = attention_fn(RING, slope=4.0)
    answer, rolled = call(swapped, inputs), call(swapped, jnp.roll(inputs, 3, axis=1))
    chex.assert_equal_shape([answer, inputs])
    # Rounding.
    chex.assert_trees_all_close(rolled, jnp.roll(answer, 3, axis=1), rtol=1e-10, atol=1e-12)
    chex.assert_trees_all_close(call(layer, inputs), answer, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_a_swapped_model_trains(inputs):
    options = {"slopes": (4.0, 1.0), "fusion": FUSIONS["low-rank"], "rank": 2}
    torus = _swapped(Layer(nnx.Rngs(0)), RING, **options)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda m: jnp.mean((m(inputs) - 1.0) ** 2))(model)
        optimizer.update(model, gradient)
        return loss

    optimizer = nnx.Optimizer(torus, optax.sgd(0.1), wrt=nnx.Param)
    losses = [step(torus, optimizer) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    slopes = torus.attention.torus_weights.slope()
    assert np.all(slopes > 0)
    assert np.all(slopes != np.asarray([4.0, 1.0]))


@pytest.mark.slow
def test_attention_fn_in_flax_s_own_module_is_the_module_with_all_options(inputs):
    """With leading axes, a mask without some of them, and fewer heads of keys than of queries."""
    torus = Torus(LENGTH, 2, AXIAL, distance_fn=linear_distance, causal=True, window=5)
    shared = {"num_kv_heads": 2, "normalize_qk": True} | MAKE
    fuse_fn = partial(depth_fusion.mean, depth=2)
    ours = ToroidalAttention(
        *(HEADS, DIM),
        torus=torus,
        slopes=(2.0,),
        learn_slopes=False,
        fusion=FUSIONS["mean"],
        **shared,
        rngs=nnx.Rngs(0),
    )
    flax = nnx.MultiHeadAttention(
        *(HEADS, DIM),
        attention_fn=attention_fn(torus, slope=2.0, fuse_fn=fuse_fn),
        **shared,
        rngs=nnx.Rngs(0),
    )
    mask = jnp.arange(LENGTH)[None, None] != 3
    both = nnx.jit(lambda a, b, x: (a(x, mask=mask), b(x, mask=mask[None])))
    first, second = both(ours, flax, inputs[:, None])
    chex.assert_trees_all_close(first, second, rtol=1e-13)
    chex.assert_shape(first, (2, 1, LENGTH, DIM))
    changed, _ = both(ours, flax, inputs[:, None].at[:, :, 3].set(0.0))
    # Nobody reads token 3, and its own answer does not depend on its key.
    others = np.arange(LENGTH) != 3
    chex.assert_trees_all_close(changed[:, :, others], first[:, :, others], rtol=1e-12)


@pytest.mark.slow
def test_empty_rows_are_zero_and_is_causal_reads_the_past(inputs):
    query = inputs.reshape(2, LENGTH, HEADS, 4)
    mask = jnp.zeros((LENGTH, LENGTH), bool).at[1:].set(True)

    @jax.jit
    def both(x):
        apply = attention_fn(RING, slope=1.0)
        return apply(x, x, x, mask=mask), apply(x, x, x, is_causal=True)

    masked, causal = both(query)
    assert np.all(masked[:, 0] == 0)
    assert np.all(np.any(masked[:, 1:] != 0, axis=(2, 3)))
    later = both(query.at[:, 5:].add(1.0))[1]
    np.testing.assert_array_equal(later[:, :5], causal[:, :5])


@pytest.mark.slow
def test_dropout_and_sown_weights_are_those_of_flax(inputs):
    def made(kind, **options):
        return kind(HEADS, DIM, dropout_rate=0.5, **MAKE, **options, rngs=nnx.Rngs(0, dropout=7))

    flax, ours = made(nnx.MultiHeadAttention), made(ToroidalAttention, torus=BARE)

    @nnx.jit
    def dropped(module, x):
        read = partial(module, deterministic=False, sow_weights=True)
        return nnx.capture(lambda module, x: read(x), nnx.Intermediate)(module, x)

    for shared in (True, False):
        flax.broadcast_dropout = ours.broadcast_dropout = shared
        # Sums in another order. With its weights asked for, flax's softmax is in float64.
        first, second = (dropped(module, inputs) for module in (flax, ours))
        chex.assert_trees_all_close(first[0], second[0], rtol=1e-11, atol=1e-13)
        (first,), (second,) = jax.tree.leaves(first[1]), jax.tree.leaves(second[1])
        chex.assert_trees_all_close(first, second, rtol=1e-12)


@pytest.mark.slow  # the model decodes by the same streams
@pytest.mark.parametrize("mode", [JOINT, AXIAL])
def test_decoding_reads_the_last_window_far_beyond_the_ring(mode, rng):
    torus = Torus(LENGTH, 2, mode, distance_fn=linear_distance, causal=True, window=5)
    layer = ToroidalAttention(
        *(HEADS, DIM),
        torus=torus,
        slopes=(2.0, 1.0),
        fusion=FUSIONS["attention"],
        num_kv_heads=2,
        **MAKE,
        rngs=nnx.Rngs(0),
    )
    x = jnp.asarray(rng.standard_normal((2, 3 * LENGTH, DIM)))
    expected = call(layer, x)
    layer.init_cache(x.shape, jnp.float64)
    step = nnx.jit(lambda m, token: m(token, decode=True))
    found = jnp.concatenate([step(layer, x[:, t : t + 1]) for t in range(x.shape[1])], axis=1)
    # Sums in another order.
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)
    chex.assert_axis_dimension(layer.cached_key[...], 2, 5)


def _layer(torus=RING, **options):
    return ToroidalAttention(HEADS, DIM, torus=torus, rngs=nnx.Rngs(0), **options)


def _other(query, key, value, pattern):
    return dense(query, key, value, pattern)


def _decoded(batch, **options):
    layer = _layer()
    layer.init_cache((2, 1, DIM))
    return layer(jnp.ones((batch, 1, DIM), jnp.float32), decode=True, **options)


X, TOKEN = np.ones((1, LENGTH, HEADS, 4)), np.ones((1, 1, DIM))
DROP = {"dropout_rate": 0.1, "dropout_rng": None}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _layer(Torus(8, depth=3)), "depth must divide the 4 heads.* 1, 2, 4.* got 3"),
        (lambda: _layer(Torus(8, window=9)), "window must be 0 to the circumference 8, got 9"),
        (lambda: _layer(Torus(2)), "circumference"),
        (lambda: _layer(slopes=(1.0,) * 3), "slope must be a number"),
        (lambda: _layer(slopes=(0.0,)), r"slopes must be positive to be learned, got \(0.0,\)"),
        (lambda: _layer(slopes=(-1.0,), learn_slopes=False), r"not be negative, .* got \(-1.0,\)"),
        (lambda: _layer(slopes=(math.inf,)), r"slopes must .* finite, got \(inf,\)"),
        (lambda: _decoded(3), r"inputs_q must hold the 2 sequences of the cache, got \(3,\)"),
        (lambda: _layer(attention_fn=print), "attention_fn must not be given"),
        (lambda: _layer()(TOKEN, decode=True), "made by init_cache"),
        (lambda: _layer()(TOKEN, decode=True, mask=X > 0), "mask must be None where it decodes"),
        (lambda: attention_fn(RING)(X, X, X, bias=X), "bias must be None"),
        (lambda: attention_fn(RING)(X, X[:, :3], X[:, :3]), "of one sequence.* take Toro"),
        (lambda: attention_fn(RING)(X, X[:, :, :3], X[:, :, :3]), "heads must divide the 4"),
        (lambda: attention_fn(RING)(X, X, X, **DROP), "dropout_rng must"),
        (
            lambda: attention_fn(RING._replace(method=_other))(X, X, X, **DROP),
            "dropout_rate must be 0 for a method other than dense, got 0.1",
        ),
    ],
)
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_misspelt_option_is_refused_where_it_decodes_too():
    with pytest.raises(TypeError, match="dterministic"):
        _decoded(2, dterministic=True)
