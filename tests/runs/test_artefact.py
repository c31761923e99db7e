"""The file of a compressed model: what it holds comes back bit for bit, and nothing else is taken
for it.
"""

import dataclasses
import json
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression import storage
from vfejax.compression.quantize import Scheme
from vfejax.compression.rules import rule
from vfejax.compression.storage import Form
from vfejax.data import tensors, tokenizers
from vfejax.errors import UserError
from vfejax.models import table
from vfejax.runs import artefact, inputs, load

LETTERS = tokenizers.build("character", "the cat sat on the mat\n")
TINY = table.MODELS["resnet-bk"].tiny


def _content(forms, options=TINY, **changes):
    config = {"model": "resnet-bk", "length": 8, "compute": "float32"}
    config["resnet_bk"] = dataclasses.asdict(options)
    content = artefact.Content(config, LETTERS, forms, "ab" * 32, step=7, valid_loss=1.25)
    return content._replace(**changes)


def _model(options=TINY):
    return table.build("resnet-bk", options, LETTERS.size, 8)


def _forms(params, scheme=Scheme(4, 8), **more):  # noqa: B008
    leaves = rule(params, scheme, embedding=Scheme(8, 8))
    return {name: Form(*leaf, **more) for name, leaf in leaves.items() if leaf.scheme}


def _write(path, params, content):
    return artefact.write(path, artefact.encode(params, content.forms), content)


def _as_stored(params, forms):
    return jax.jit(lambda p: storage.as_stored(p, forms))(params)


@pytest.fixture(scope="module")
def params():
    return jax.jit(_model().init)(jax.random.key(0))


@pytest.fixture(scope="module")
def written(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "small.safetensors"
    size = _write(path, params, _content(_forms(params)))
    assert size == path.stat().st_size
    return path


def test_what_a_model_reads_is_the_same_before_and_after(written, params, library_promotion):
    run = load(written)
    expected = _as_stored(params, _forms(params))
    chex.assert_trees_all_equal(run.params, expected)
    assert (run.step, run.valid_loss, run.path) == (7, 1.25, written)
    assert run.vocabulary == LETTERS
    apply = jax.jit(run.model.apply)
    tokens = np.ones((1, 8), np.int32)
    logits, before = (apply(p, tokens, None).logits for p in (run.params, expected))
    np.testing.assert_array_equal(logits, before)
    assert not np.array_equal(logits, apply(params, tokens, None).logits)


def test_the_same_weights_make_the_same_bytes(written, params, tmp_path):
    again = tmp_path / "again.safetensors"
    _write(again, params, _content(_forms(params)))
    assert again.read_bytes() == written.read_bytes()


def test_a_leaf_in_two_factors_is_read_as_their_product(params, tmp_path):
    place = params["blocks"]["block"]["mixer"]
    left, right = place["out"]["kernel"][..., :3], place["out"]["kernel"][..., :3, :]
    halves = {"left": left, "right": right}
    mixer = place | {"out": {"kernel": halves}}
    tree = params | {"blocks": {"block": params["blocks"]["block"] | {"mixer": mixer}}}
    forms = {"blocks/block/mixer/out/kernel/left": Form(Scheme(8, 4))}
    content = _content(forms, ranks={"blocks/block/mixer/out/kernel": 3})
    _write(tmp_path / "file.safetensors", tree, content)
    found = load(tmp_path / "file.safetensors").params["blocks"]["block"]["mixer"]["out"]["kernel"]
    kept = _as_stored({"left": left}, {"left": Form(Scheme(8, 4))})["left"]
    np.testing.assert_allclose(found, np.asarray(kept) @ np.asarray(right), rtol=1e-5, atol=1e-7)


def test_the_header_takes_four_kilobytes_at_most(tmp_path):
    options = table.MODELS["resnet-bk"].config()
    params = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(_model(options).init, jax.random.key(0)),
    )
    forms = _forms(params, Scheme(4, 64))
    data = {"inputs": {"text": {"path": "/a/b/c", "files": {"": {"size": 1, "sha256": "c" * 64}}}}}
    size = _write(tmp_path / "f.safetensors", params, _content(forms, options, **data))
    counted = storage.num_bytes(params, forms)
    assert counted < size <= 1.02 * counted + 4096
    # Where little is counted nothing hides behind the two per cent.
    assert size - counted < 4096


def _refused(path, *pieces):
    with pytest.raises(UserError) as refusal:
        load(path)
    said = str(refusal.value)
    assert "\n" not in said
    for piece in (str(path), *pieces):
        assert piece in said, said


def test_a_file_that_was_cut_short_or_changed_is_refused(written, tmp_path):
    whole = written.read_bytes()
    copy = tmp_path / "copy.safetensors"
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        copy.write_bytes(whole[:length])
        _refused(copy, "damaged")
    copy.write_bytes(whole + b"\0")
    _refused(copy, "damaged")
    for place in [*range(0, 400, 7), *range(400, len(whole), len(whole) // 40), len(whole) - 1]:
        changed = bytearray(whole)
        changed[place] ^= 1
        copy.write_bytes(changed)
        _refused(copy)
    copy.write_bytes((2**63).to_bytes(8, "little") + whole[8:])
    _refused(copy, "damaged")
    huge = json.dumps({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}})
    copy.write_bytes(len(huge).to_bytes(8, "little") + huge.encode() + b"\0" * 4)
    _refused(copy, "damaged")


def test_a_file_of_another_kind_is_refused(tmp_path):
    _refused(tmp_path / "absent.safetensors", "does not exist")
    tensors.write_tensors(tmp_path / "weights.safetensors", {"x": np.ones(2)})
    _refused(tmp_path / "weights.safetensors", "no compressed model")
    (tmp_path / "folder.safetensors").mkdir()
    _refused(tmp_path / "folder.safetensors", "holds no run")
    os.mkfifo(tmp_path / "pipe.safetensors")
    _refused(tmp_path / "pipe.safetensors", "no regular file")
    (tmp_path / "text").write_text("once upon a time")
    _refused(tmp_path / "text", "damaged")


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        ({"version": 2}, ["version 2", "reads version 1"]),
        ({"format": "another"}, ["no compressed model"]),
        ({"leaves": [[{"bits": 9, "group": 8, "axis": -2, "symmetric": True}, ["x"]]]}, ["bits"]),
        ({"leaves": [[{"bits": True, "group": 8, "axis": -2, "symmetric": True}, []]]}, ["bits"]),
        ({"leaves": [[{"bits": 4, "group": -8, "axis": -2, "symmetric": True}, []]]}, ["group"]),
        ({"leaves": [[{"sparse": 1}, []]]}, ["sparse"]),
        ({"leaves": [["half"]]}, ["written by this vfejax"]),
        ({"leaves": 3}, ["written by this vfejax"]),
        ({"vocabulary": {"kind": "runes"}}, ["kind must be one of"]),
        ({"step": "seven"}, ["'step'"]),
        ({"config": {"model": "lstm"}}, ["'lstm' is not known"]),
        ({"config": {}}, ["None is not known"]),
        ({"ranks": {"tokens/embedding": 10**9}}, ["tokens/embedding/left"]),
        ({"ranks": {"tokens/embedding": 0}}, ["rank of 'tokens/embedding'", "at least 1"]),
        ({"ranks": {"final_norm/scale": 1}}, ["no kernel 'final_norm/scale'"]),
        ({"leaves": []}, ["does not fit its own model", "values must be"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_the_document_says_wrong_is_named(written, tmp_path, change, pieces):
    metadata, arrays = tensors.read_file(written)
    document = json.loads(metadata["vfejax"]) | change
    del document["sha256"]
    document["sha256"] = artefact._digest(artefact._text(document).encode(), arrays)
    path = tmp_path / "changed.safetensors"
    tensors.write_tensors(path, arrays, {"vfejax": artefact._text(document)})
    _refused(path, *pieces)


@pytest.mark.parametrize("found", [3, {"text": 3}, {"text": {"files": {"": 0}}}], ids=str)
def test_a_record_of_inputs_that_is_none_is_named(params, tmp_path, found):
    _write(tmp_path / "small.safetensors", params, _content({}, inputs=found))
    with pytest.raises(UserError, match=r"small.safetensors is damaged"):
        inputs.recorded(tmp_path / "small.safetensors")


def test_weights_of_another_model_are_refused(params, tmp_path):
    path = tmp_path / "file.safetensors"
    _write(path, params, _content({}, dataclasses.replace(TINY, dim=24)))
    _refused(path, "does not fit its own model", "must be float32")
    _write(path, params | {"more": np.ones(1, np.float32)}, _content({}))
    _refused(path, "holds 'more'", "no such leaf")
    _write(path, {k: v for k, v in params.items() if k != "norm"}, _content({}))
    _refused(path, "norm/scale", "got nothing")
    with pytest.raises(ValueError, match="forms name 'none'"):
        _write(path, params, _content({"none": Form()}))


def test_the_file_of_a_model_of_ones_own_is_read_by_its_shapes(tmp_path):
    # Names with points, as PyTorch gives them.
    own = {
        "layers.0.weight": np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4),
        "layers.0.bias": np.linspace(0, 1, 4, dtype=np.float32),
    }
    forms, path = {"layers.0.weight": Form(Scheme(8, 8))}, tmp_path / "own.safetensors"
    _write(path, own, _content(forms, config={"model": "own"}))
    found = artefact.weights(path, *artefact.read(path), jax.eval_shape(lambda: own))
    chex.assert_trees_all_equal(found, _as_stored(own, forms))
    with pytest.raises(UserError, match=r"'own' is not known.*runs\.artefact\.weights reads"):
        load(path)


def test_float64_is_kept(tmp_path):
    options = table.MODELS["transformer"].tiny
    model = table.build("transformer", options, LETTERS.size, 8, jnp.float64)
    params = jax.jit(model.init)(jax.random.key(0))
    config = {"model": "transformer", "length": 8, "compute": "float64"}
    config["transformer"] = dataclasses.asdict(options)
    forms = _forms(params)
    content = _content(forms)._replace(config=config)
    path = tmp_path / "file.safetensors"
    _write(path, params, content)
    chex.assert_trees_all_equal(load(path).params, _as_stored(params, forms))


def test_the_checksum_is_that_of_numbers_names_and_types(params):
    known = artefact.checksum(params)
    assert known == artefact.checksum(jax.tree.map(np.asarray, params))
    for other in (
        params | {"norm": {"scale": params["norm"]["scale"] + 1}},
        params | {"norm": {"shift": params["norm"]["scale"]}},
        params | {"norm": {"scale": params["norm"]["scale"].astype(jnp.float64)}},
        params | {"norm": {"scale": params["norm"]["scale"][None]}},
    ):
        assert artefact.checksum(other) != known
