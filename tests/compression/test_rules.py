"""The rule that says which leaf is stored how, for every model, and the bytes it counts."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.compression.packing import pack
from vfejax.compression.quantize import Scheme, fake_quantize, quantize
from vfejax.compression.rules import EMBEDDING, Leaf, leaf_bytes, packed_bytes, rounded, rule
from vfejax.models.resnet_bk.model import MIXERS
from vfejax.models.table import MODELS, build

BUILDS = [*MODELS, *(f"resnet-bk:{mixer}" for mixer in MIXERS if mixer != "gate")]
each_model = pytest.mark.parametrize("name", BUILDS)


@cache
def _shapes(name):
    """Shapes of the weights of a model with its default options."""
    name, _, mixer = name.partition(":")
    config = MODELS[name].config()
    config = replace(config, mixer=mixer) if mixer else config
    model = build(name, config, vocab_size=512, length=64)
    return jax.eval_shape(model.init, jax.random.key(0))


def _named(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


@each_model
@pytest.mark.usefixtures("library_promotion")
def test_nearly_all_weights_are_quantised_and_what_decides_is_not(name):
    named, leaves = _named(_shapes(name)), rule(_shapes(name), Scheme())
    assert list(leaves) == list(named)
    quantised = {leaf for leaf, how in leaves.items() if how.scheme is not None}
    sizes = {leaf: x.size for leaf, x in named.items()}
    assert sum(sizes[leaf] for leaf in quantised) > 0.97 * sum(sizes.values())
    assert not [leaf for leaf in quantised if "router" in leaf or "norm" in leaf or "bias" in leaf]
    assert not quantised & {
        leaf
        for constant in MODELS[name.partition(":")[0]].constants
        for leaf in named
        if leaf.endswith(constant)
    }
    tables = [leaf for leaf in quantised if leaf.startswith(("tokens/", "embed/", "table/"))]
    assert tables
    assert all(leaves[leaf].scheme == EMBEDDING for leaf in tables)


@each_model
@pytest.mark.usefixtures("library_promotion")
def test_four_bits_are_a_sixth_of_float32(name):
    shapes = _shapes(name)
    everything = sum(4 * x.size for x in jax.tree.leaves(shapes))
    # Eight bits of what the model knows of its tokens: two fifths of a Pure-FEP, and a seventh of a
    # reversible model, which has two channels where others have one.
    ratio = {"pure-fep": 5.8, "reversible": 6.2}.get(name, 6.5)
    assert packed_bytes(shapes, rule(shapes, Scheme())) < everything / ratio


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_are_those_of_the_packed_arrays(symmetric):
    x, scheme = jnp.ones((2, 5, 7)), Scheme(3, 4, symmetric)
    for axis in (0, 1, -1):
        found = jax.jit(partial(quantize, scheme=scheme, axis=axis))(x)
        codes = [code for code in (found.codes, found.zero) if code is not None]
        packed = sum(pack(np.asarray(code), scheme.bits).nbytes for code in codes)
        assert leaf_bytes(x, Leaf(scheme, axis)) == packed + found.scale.nbytes
    assert leaf_bytes(x, Leaf(None)) == x.nbytes


def test_patterns_and_leaves_too_small_to_gain_stay_exact():
    wide, narrow = jnp.ones((64, 8), jnp.float32), jnp.ones((1, 8), jnp.float32)
    params = {"first": {"kernel": wide}, "last": {"kernel": wide}, "narrow": {"kernel": narrow}}
    leaves = rule(params, Scheme(), exact=["last/*"])
    kept = {name: leaf.scheme is None for name, leaf in leaves.items()}
    assert kept == {"first/kernel": False, "last/kernel": True, "narrow/kernel": True}
    assert packed_bytes(params, leaves) == 64 * 8 // 2 + 8 * 2 + 4 * 64 * 8 + 4 * 8


def test_the_state_of_a_flax_module_is_quantised_like_its_weights():
    """It names the array within each variable: ``kernel/value``."""
    pure = {"mlp": {"kernel": jnp.ones((64, 8), jnp.float32), "bias": jnp.ones(8, jnp.float32)}}
    state = nnx.State(jax.tree.map(nnx.Param, pure))
    schemes = {name: leaf.scheme for name, leaf in rule(state, Scheme()).items()}
    assert list(schemes.values()) == [None, Scheme()]
    assert packed_bytes(state, rule(state, Scheme())) == packed_bytes(pure, rule(pure, Scheme()))


def test_rounded_weights_are_those_of_each_leaf(rng):
    params = {
        "a": {"kernel": rng.standard_normal((8, 3))},
        "b": jnp.asarray(rng.standard_normal(3)),
    }
    leaves = {"a/kernel": Leaf(Scheme(2, 4), -1), "b": Leaf(None)}
    found = jax.jit(partial(rounded, leaves=leaves))(params)
    expected = jax.jit(partial(fake_quantize, scheme=Scheme(2, 4), axis=-1))(params["a"]["kernel"])
    np.testing.assert_array_equal(found["a"]["kernel"], expected, strict=True)
    np.testing.assert_array_equal(found["b"], params["b"], strict=True)


def test_bad_input_is_named():
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="bits must be a whole number between 2 and 8, got 0"):
        rule(params, Scheme(), embedding=Scheme(bits=0))
    for use in (rounded, packed_bytes):
        with pytest.raises(ValueError, match="leaves must name each leaf of params once; only one"):
            use(params, {"kernels": Leaf(None)})
