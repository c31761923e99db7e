"""Directories of Phi models: what is written is read back, and what does not fit is named."""

import itertools
import json
import shutil
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.data.tensors import read_tensors, write_tensors
from vfejax.errors import UserError
from vfejax.models import phi
from vfejax.models.phi.config import from_json

pytestmark = pytest.mark.usefixtures("library_promotion")


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of a checkpoint that a test may spoil."""

    def copy(name="plain"):
        return shutil.copytree(checkpoint(name).directory, tmp_path / name)

    return copy


def rewritten(directory, change):
    """The directory, with its tensors as ``change`` leaves them."""
    tensors = read_tensors(directory)
    change(tensors)
    write_tensors(directory / "model.safetensors", tensors)
    return directory


def reconfigured(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def test_what_is_saved_holds_the_very_bytes_that_were_read(each, tmp_path):
    phi.save(tmp_path / "new", each.model, each.params)
    before, after = read_tensors(each.directory), read_tensors(tmp_path / "new")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert (after[name].dtype, after[name].shape) == (array.dtype, array.shape)
        assert after[name].tobytes() == array.tobytes()
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config == json.loads((each.directory / "config.json").read_text())
    _, params = phi.load(tmp_path / "new")
    chex.assert_trees_all_equal(params, each.params)


def test_a_saved_file_has_the_header_that_every_reader_of_safetensors_knows(checkpoint, tmp_path):
    held = checkpoint("grouped")
    phi.save(tmp_path, held.model, held.params)
    content = (tmp_path / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}  # transformers refuses a file without it
    assert header["lm_head.weight"]["dtype"] == "BF16"
    assert header["model.layers.1.self_attn.k_proj.weight"]["shape"] == [8, 16]
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert (ends[0][0], ends[-1][1]) == (0, len(content) - 8 - size)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(ends))
    start, stop = header["lm_head.bias"]["data_offsets"]
    bias = np.frombuffer(content[8 + size + start : 8 + size + stop], jnp.bfloat16)
    np.testing.assert_array_equal(bias, held.params["head"]["bias"])


def test_weights_of_another_model_are_not_saved(checkpoint, tmp_path):
    held = checkpoint("plain")
    for params, message in (
        ({**held.params, "head": {}}, "params lack what makes lm_head.bias"),
        (
            jax.tree.map(lambda x: x[..., :4], held.params),
            r"embed_tokens.weight of shape \[19, 16\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            phi.save(tmp_path / "new", held.model, params)
    assert not (tmp_path / "new").exists()


def test_flat_and_nested_options_are_the_same_options(checkpoint):
    nested = json.loads((checkpoint("plain").directory / "config.json").read_text())
    flat = {key: value for key, value in nested.items() if key != "rope_parameters"}
    flat |= {"rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rope_scaling": None}
    assert from_json(nested) == from_json(flat)


def _drop(tensors):
    del tensors["model.layers.1.mlp.fc1.bias"], tensors["lm_head.weight"]


def _add(tensors):
    tensors["model.layers.2.mlp.fc1.bias"] = tensors["model.layers.1.mlp.fc1.bias"]


def _reshape(tensors):
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((16, 8), np.float32)


def _integers(tensors):
    tensors["lm_head.bias"] = np.zeros(19, np.int32)


def _spoil(tensors):
    tensors["model.final_layernorm.bias"] = np.full(16, np.nan, np.float32)


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        (_drop, ["the checkpoint lacks", "model.layers.1.mlp.fc1.bias", "lm_head.weight"]),
        (_add, ["no place for: model.layers.2.mlp.fc1.bias;"]),
        (_reshape, ["0.self_attn.q_proj.weight [16, 8] in place of [16, 16]"]),
        (_integers, ["no floating numbers: lm_head.bias"]),
        (_spoil, ["NaN or infinite numbers in model.final_layernorm.bias"]),
    ],
)
def test_tensors_that_do_not_fit_are_named(copied, change, pieces):
    directory = rewritten(copied(), change)
    with pytest.raises(UserError) as refused:
        phi.load(directory)
    for piece in (str(directory), *pieces):
        assert piece in str(refused.value)


def test_a_head_beside_tied_weights_must_be_the_embedding(copied, checkpoint):
    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].astype(np.float32)

    def another(tensors):  # with which PyTorch transformers computes
        tensors["lm_head.weight"][3, 5] += 1

    directory = rewritten(copied("partial"), repeat)
    chex.assert_trees_all_equal(phi.load(directory)[1], checkpoint("partial").params)
    rewritten(directory, another)
    with pytest.raises(UserError, match=r"to the embedding, and has another lm_head\.weight;"):
        phi.load(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'phi', got 'llama'"),
        ({"hidden_size": "16"}, "hidden_size must be an integer of at least 1, got '16'"),
        ({"hidden_size": 18}, "hidden_size must be a multiple of num_attention_heads 4, got 18"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of"),
        ({"hidden_act": "relu"}, "hidden_act must be gelu_new or gelu_pytorch_tanh, got 'relu'"),
        ({"head_dim": 8}, "head_dim must be hidden_size / num_attention_heads = 4, got 8"),
        ({"qk_layernorm": "no"}, "qk_layernorm must be true or false, got 'no'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be a positive number, got 0"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps must be a positive number, got inf"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta must be a positive number"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "rope_type must be 'default', the positions as they are, got 'linear'",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.75}},
            "partial_rotary_factor must be a share of the 4 channels",
        ),
        # transformers lets this key decide where a file has both.
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type must be 'default'"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
        (
            {"vfejax_swapped_attention": {"0": {"encoding": "geometric", "circumference": 1}}},
            "circumference must be a whole number from 2 to",
        ),
        ({"vfejax_swapped_attention": {"0": {"depth": True}}}, "depth must be a divisor"),
    ],
)
def test_options_that_do_not_fit_are_named(copied, changes, message):
    directory = reconfigured(copied(), **changes)
    with pytest.raises(UserError, match=message) as refused:
        phi.load(directory)
    assert str(directory) in str(refused.value)


def test_damaged_and_missing_files_are_named(copied):
    directory = copied("grouped")
    shard = directory / "model-00002-of-00004.safetensors"
    whole = shard.read_bytes()
    for content in (whole[:-7], whole[:6], b"", b"\xff" * 64, whole.replace(b'"BF16"', b'"XF16"')):
        shard.write_bytes(content)
        with pytest.raises(UserError, match=f"{shard.name} is damaged, incomplete or no safetens"):
            phi.load(directory)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} does not exist"):
        phi.load(directory)
    index = directory / "model.safetensors.index.json"
    for content, message in (
        ("{", "is no JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "'weight_map' must say"),
        ('{"weight_map": {"lm_head.bias": "../x.safetensors"}}', "'weight_map' must say"),
        ('{"weight_map": {"x": ""}}', "'weight_map' must say"),
        ('{"weight_map": {"x": ".."}}', "'weight_map' must say"),
        ('{"weight_map": {"x": "model-00001-of-00004.safetensors"}}', "names x, which"),
    ):
        index.write_text(content)
        with pytest.raises(UserError, match=message):
            phi.load(directory)
    index.unlink()
    with pytest.raises(
        UserError, match=r"has no model\.safetensors and no model\.safetensors\.index"
    ):
        phi.load(directory)
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        phi.load(directory)


def test_numbers_of_a_type_that_numpy_does_not_have_are_no_damage(copied):
    header = b'{"head": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}'
    content = struct.pack("<Q", len(header)) + header + b"ab"
    directory = copied()
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"holds head in a type of numbers .*; convert the check"):
        phi.load(directory)


def test_every_tensor_comes_from_the_file_that_the_index_says(copied, checkpoint):
    directory = copied("grouped")
    places = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    name, place = next(iter(places.items()))
    other = next(directory / file for file in places.values() if file != place)
    held = read_tensors(checkpoint("grouped").directory)
    own = {tensor: held[tensor] for tensor, file in places.items() if file == other.name}
    write_tensors(other, own | {name: 0 * held[name]})
    _, params = phi.load(directory)
    chex.assert_trees_all_equal(params, checkpoint("grouped").params)
    places[name] = other.name
    write_tensors(other, own)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match=f"names {name}, which {other.name} does not hold"):
        phi.load(directory)


def test_a_place_that_cannot_be_written_or_read_is_named(checkpoint, tmp_path):
    (tmp_path / "file").touch()
    plain = checkpoint("plain")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        phi.save(tmp_path / "file", plain.model, plain.params)
    with pytest.raises(UserError, match=r"cannot read .*file"):
        read_tensors(tmp_path / "file")


def test_memories_can_be_donated(checkpoint):
    plain = checkpoint("plain")
    memory = jax.tree.leaves(plain.model.init_decode(plain.params, 1))
    assert len({x.unsafe_buffer_pointer() for x in memory}) == len(memory)


def test_a_length_beyond_the_options_is_refused(checkpoint):
    directory = checkpoint("plain").directory
    assert phi.load(directory, length=8)[0].max_length == 8
    assert phi.load(directory)[0].max_length == 32
    for length in (0, 33):
        with pytest.raises(UserError, match=f"the model reads 1 to 32 tokens, not {length}"):
            phi.load(directory, length=length)


def test_rates_that_older_files_hold_are_left_out(copied, checkpoint):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)

    _, params = phi.load(rewritten(copied(), add))
    chex.assert_trees_all_equal(params, checkpoint("plain").params)
