"""Every model of the table that can be pruned, and every mixer: what is taken out fits, and what
says nothing is not missed.
"""

import dataclasses
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models import pruning, table
from vfejax.models.blocks import OptionError
from vfejax.models.resnet_bk.merging import merged
from vfejax.models.resnet_bk.model import MIXERS
from vfejax.models.table import MODELS

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH = 11, 8


def _tiny(name="resnet-bk", **options):
    return name, dataclasses.replace(MODELS[name].tiny, **options)


FURTHER = {
    "rg-lru": {"positions": True, "tied": False},
    "operator": {"router": "gumbel"},
}
AGENTS = {"frames": "frozen", "output": "linear", "position": "none", "mean_norm": False}
SLOPES = (1.0, 2.0, 3.0, 4.0)
MEMBERS = (
    {name: _tiny(name) for name, entry in MODELS.items() if entry.structure is not None}
    | {"resnet-bk": _tiny(top_k=1)}
    | {f"resnet-bk-{mixer}": _tiny(mixer=mixer, **FURTHER.get(mixer, {})) for mixer in MIXERS}
    | {"toroidal-low-rank": _tiny("toroidal", fusion="low-rank", slopes=SLOPES)}
    | {"vfe-framed": _tiny("vfe", **AGENTS), "vfe-bare": _tiny("vfe", hidden=0, output="kl")}
)
del MEMBERS["resnet-bk-gate"]  # the default mixer
BARE = ("vfe", "vfe-bare")  # "vfe-framed" has all that they have
ALONE = [*BARE, *(name for name in MODELS if name in MEMBERS and name not in BARE)]
QUICK = {"resnet-bk"}
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (3, LENGTH)).astype(np.int32)


def _member(name):
    return pytest.param(*MEMBERS[name], id=name, marks=() if name in QUICK else pytest.mark.slow)


def _build(name, config, dtype=jnp.float64):
    return table.build(name, config, VOCABULARY, LENGTH, dtype)


def _shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def _random(shapes):
    """Arrays of these shapes, of any numbers: cheaper than the first weights of a model, and all of
    them count.
    """
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


@cache
def _reader(name, config):
    """Statistics of activations and logits, compiled once for all tests."""
    model = _build(name, config)

    def read(params, tokens):
        return model.activations(params, tokens), model.apply(params, tokens).logits

    return jax.jit(read)


def _half(part):
    return max(part.number // 2, 1) * part.multiple


def _leaf(params, name):
    for key in name.split("/"):
        params = params[key]
    return params


def _with(params, name, change):
    """The tree with one leaf changed."""
    first, _, rest = name.partition("/")
    return params | {first: _with(params[first], rest, change) if rest else change(params[first])}


def _silent(leaf, cut, gone):
    """Zeros in a leaf ``[layers, ...]`` where units are that go, ``gone [layers, number]``."""
    at = np.repeat(np.tile(gone, cut.copies), cut.size, axis=-1)
    shape = [gone.shape[0], *[1] * (leaf.ndim - 1)]
    shape[cut.axis] = at.shape[-1]
    return jnp.where(at.reshape(shape), 0.0, leaf)


def _pruned(name, config, sizes, run):
    """A function of weights and statistics to the pruned weights, and their options, which are no
    arrays.
    """
    options = []

    def shrink(params, found):
        small, new = pruning.pruned(name, config, params, found, sizes)
        options.append(new)
        return small

    return lambda *inputs: (run(shrink)(*inputs), options[0])


def _abstractly(function):
    """The shapes of what it returns, of shapes."""
    return partial(jax.eval_shape, function)


@pytest.mark.parametrize(("name", "config"), [_member(name) for name in ALONE])
def test_every_option_shrinks_alone(name, config):
    model = _build(name, config, jnp.float32)
    params = _shapes(model)
    found = jax.eval_shape(model.activations, params, TOKENS)
    parts = pruning.structure(name, config)
    sizes = {option: _half(part) for option, part in parts.items()}
    for option, size in sizes.items():
        small, new = _pruned(name, config, {option: size}, _abstractly)(params, found)
        assert small == _shapes(_build(name, new, jnp.float32)), option
        assert getattr(new, option) == size


def _without_first(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return leaf.at[0].set(0.0) if re.fullmatch(r"blocks/.*out(/kernel)?", name) else leaf


def _quiet(name, config, params):
    """Weights of a model half of whose units say exactly nothing, others in every layer.

    The stream is a thousand times as large as at first, so that what norms add to their mean
    squares does not count; it has no mean over the channels that stay, which a layer norm would
    take off the others too; and its first channel is the largest for every token, so that a router
    can tell experts that no token reads.
    """
    parts = pruning.structure(name, config)
    stream = parts.get("dim", parts.get("width"))
    if stream is not None:
        gone = np.arange(stream.number) % 2 == 1
        for cut in stream.cuts:
            if cut.axis != -1 or cut.leaf in stream.scored or "taps" in cut.leaf:
                continue

            def write(leaf, name=cut.leaf):
                leaf = jnp.where(gone, 0.0, 1e3 * leaf)
                leaf = leaf.at[..., 0].add(1e3 if name.endswith("embedding") else 0.0)
                return jnp.where(gone, 0.0, leaf - 2 * jnp.mean(leaf, axis=-1, keepdims=True))

            params = _with(params, cut.leaf, write)
    if "layers" in parts:  # the first one writes nothing into the stream
        params = jax.tree_util.tree_map_with_path(_without_first, params)
    for option in {"heads", "hidden"} & parts.keys():
        reader, number = parts[option].reader, parts[option].number
        layers = _leaf(params, reader.leaf).shape[0]
        gone = (np.arange(number) + np.arange(layers)[:, None]) % 2 == 1
        silent = partial(_silent, cut=reader, gone=gone)
        params = _with(params, reader.leaf, silent)
        if name == "toroidal" and option == "heads":
            # Platters read each other's answers, so values are 0 too, the last of three, and what
            # the fusion adds to them.
            columns = partial(_silent, cut=reader._replace(axis=-1), gone=gone)

            def quiet(leaf, columns=columns):
                return leaf.at[..., -config.dim :].set(columns(leaf[..., -config.dim :]))

            params = _with(params, "blocks/block/qkv/kernel", quiet)
            if config.fusion == "low-rank":
                params = _with(params, "blocks/block/torus/fusion/0", silent)
    if "experts" in parts:
        unread = jnp.zeros((config.dim, config.experts)).at[0, 1::2].set(-1e4)
        params = _with(params, "blocks/block/experts/router/kernel", lambda leaf: leaf + unread)
    return params


@pytest.mark.parametrize(
    ("name", "config"), [_member(name) for name in MEMBERS if name not in BARE]
)
def test_units_that_say_nothing_are_found_and_not_missed(name, config):
    # What makes and prunes them is one program each: one by one, operations take longer.
    params = jax.jit(partial(_quiet, name, config))(_random(_shapes(_build(name, config))))
    found, expected = _reader(name, config)(params, TOKENS)
    sizes = {option: _half(part) for option, part in pruning.structure(name, config).items()}
    small, new = _pruned(name, config, sizes, jax.jit)(params, found)
    smaller = _build(name, new)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, _shapes(smaller))
    logits = jax.jit(smaller.apply)(small, TOKENS).logits
    # Norms add 1e-6 to mean squares of about 1e5, and half as many channels have twice that; the
    # rounding of float64 is far below.
    np.testing.assert_allclose(
        logits, expected, rtol=0, atol=1e-9 * float(jnp.max(jnp.abs(expected)))
    )


def test_a_model_without_structure_names_those_that_have_one():
    with pytest.raises(ValueError, match=r"one of resnet-bk, .* got pure-fep; distil into a new"):
        pruning.structure("pure-fep", MODELS["pure-fep"].tiny)


def test_options_and_activations_of_another_model_are_named():
    config = MODELS["transformer"].tiny
    with pytest.raises(ValueError, match="'transformer' takes TransformerConfig, got dict"):
        pruning.pruned("transformer", {}, config, {}, {"hidden": 2})
    with pytest.raises(KeyError, match="no model 'mine'; there are resnet-bk"):
        pruning.structure("mine", config)
    with pytest.raises(ValueError, match=r"activations must be .* which has 'blocks/.*', got one"):
        pruning.pruned("transformer", config, {}, {}, {"hidden": 2})
    with pytest.raises(ValueError, match="config must be a ResNetBKConfig, got dict"):
        merged({}, config, {}, 2)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("transformer", {"experts": 2}, "sizes must name options among layers, .* got experts"),
        ("transformer", {"dim": 10}, r"dim must be 4 \(the width of a head\) times the heads 2"),
        ("transformer", {"dim": 8, "heads": 3}, "dim must be 4 .* times the heads 3, got 8"),
        ("transformer", {"hidden": 33}, "hidden must be between 1 and 32, got 33"),
        ("transformer", {"layers": 0}, "layers must be between 1 and 2, got 0"),
        ("toroidal", {"heads": 1}, "heads must be a multiple of 2 between 2 and 4, got 1"),
        ("vfe", {"dim": 8}, "among layers, hidden, got dim; for a smaller dim, distil into a new"),
        ("resnet-bk", {"experts": 5}, "experts must be between 1 and 4, got 5"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        pruning.pruned(name, MODELS[name].tiny, {}, {}, sizes)


def test_experts_are_scored_by_the_statistic_that_is_asked_for():
    name, config = MEMBERS["resnet-bk"]
    model = _build(name, config, jnp.float32)
    params = _shapes(model)
    found = _random(jax.eval_shape(model.activations, params, TOKENS))
    params = _random(params)

    @jax.jit
    def scored(params, found):
        return {
            score: pruning.importance(name, config, params, found, experts=score)["experts"]
            for score in ("activation", "contribution", "frequency")
        }

    for score, scores in scored(params, found).items():
        np.testing.assert_array_equal(scores, found[f"blocks/block/experts/{score}"])
    with pytest.raises(ValueError, match=r"experts must be one of activation, .* got 'usage'"):
        pruning.importance(name, config, params, found, experts="usage")


def test_equal_experts_are_merged_without_loss():
    name, config = MEMBERS["resnet-bk"]
    params = jax.device_get(_random(_shapes(_build(name, config))))
    first, last, router = (
        f"blocks/block/experts/{leaf}" for leaf in ("kernel_in", "kernel_out", "router/kernel")
    )
    for leaf, axis in ((first, -1), (last, -2)):
        params = _with(
            params,
            leaf,
            lambda x, axis=axis: np.concatenate([x[:, :2], np.flip(x[:, :2], axis)], axis=1),
        )
    # A pair of experts has equal columns, and of two equal ones the first is taken: it has half of
    # what the pair has after the merger, which the scale makes up for.
    params = _with(params, router, lambda x: np.concatenate([x[..., :2]] * 2, axis=-1))

    found, expected = _reader(name, config)(params, TOKENS)
    small, new = merged(config, params, found, 2)
    assert new == dataclasses.replace(config, experts=2)
    logits = jax.jit(_build(name, new).apply)(small, TOKENS).logits
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(OptionError, match="experts must be between 1 and 4, got 5"):
        merged(config, params, found, 5)
