"""Tiny random Phi checkpoints and what PyTorch transformers computes with them.

Not run by the tests: it needs torch and transformers (made with torch 2.14 and transformers 5.24).

    python tests/helpers/phi_reference.py make tests/models/phi/checkpoints
    python tests/helpers/phi_reference.py check DIRECTORY EXPECTED.npz

``make`` writes a directory for each variant: ``config.json``, safetensors and ``expected.npz``. The
weights are random and large, so that every part of a layer shows in the logits. ``check`` loads a
directory that vfejax saved, and prints the largest difference of its logits from the expected ones
and what transformers says of its tensors.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import PhiConfig, PhiForCausalLM

SHARED = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attn_implementation": "eager",
}
# What differs from a plain model; "flat" rewrites the configuration as older versions wrote it.
VARIANTS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "dtype": torch.bfloat16, "shard": "2KB"},
    "qk_norm": {"qk_layernorm": True, "rope_theta": 500.0, "dtype": torch.bfloat16, "flat": True},
    "partial": {
        "num_attention_heads": 2,
        "partial_rotary_factor": 0.3,
        "tie_word_embeddings": True,
        "dtype": torch.bfloat16,
    },
}
LENGTHS = np.array([8, 5])  # real tokens of two rows
NEW = 6


def _model(options):
    torch.manual_seed(0)
    rope = {
        "rope_type": "default",
        "rope_theta": options.get("rope_theta", 10_000.0),
        "partial_rotary_factor": options.get("partial_rotary_factor", 0.5),
    }
    known = {k: v for k, v in options.items() if k not in ("dtype", "shard", "flat", *rope)}
    model = PhiForCausalLM(PhiConfig(**{**SHARED, **known}, rope_parameters=rope)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            is_scale = "layernorm.weight" in name
            weight.copy_(1 + 0.3 * noise if is_scale else 0.5 * noise)
    return model.to(options.get("dtype", torch.float32))


def _positions(mask):
    return torch.clamp(torch.cumsum(mask, 1) - 1, min=0)


def _expected(model):
    """Logits under padding on either side, and greedy continuations, in float32 arithmetic."""
    rng = np.random.default_rng(0)
    width = int(LENGTHS.max())
    texts = [rng.integers(0, SHARED["vocab_size"], n) for n in LENGTHS]
    found = {}
    for side in ("left", "right"):
        tokens, mask = np.zeros((2, len(texts), width), np.int64)
        for row, text in enumerate(texts):
            place = slice(width - len(text), None) if side == "left" else slice(len(text))
            tokens[row, place], mask[row, place] = text, 1
        ids, seen = torch.tensor(tokens), torch.tensor(mask)
        with torch.no_grad():
            logits = model(ids, attention_mask=seen, position_ids=_positions(seen)).logits
        found |= {f"{side}_tokens": tokens.astype(np.int32), f"{side}_mask": mask.astype(bool)}
        found[f"{side}_logits"] = logits.numpy()
        if side == "left":
            text = model.generate(ids, attention_mask=seen, max_new_tokens=NEW, do_sample=False)
            found["greedy"] = text[:, width:].numpy().astype(np.int32)
    return found


def _flatten(path):
    """The configuration in the style of transformers 4."""
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor")}
    path.write_text(json.dumps(config | {"rope_scaling": None}, indent=2) + "\n")


def make(folder):
    for name, options in VARIANTS.items():
        place, model = Path(folder) / name, _model(options)
        model.save_pretrained(place, max_shard_size=options.get("shard", "5GB"))
        (place / "generation_config.json").unlink(missing_ok=True)
        if options.get("flat"):
            _flatten(place / "config.json")
        np.savez_compressed(place / "expected.npz", **_expected(model.float()))


def check(folder, expected):
    model, said = PhiForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    arrays = np.load(expected)
    for side in ("left", "right"):
        mask = torch.tensor(arrays[f"{side}_mask"].astype(np.int64))
        ids = torch.tensor(arrays[f"{side}_tokens"].astype(np.int64))
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, position_ids=_positions(mask)).logits.numpy()
        real = arrays[f"{side}_mask"]
        print(side, np.abs(logits - arrays[f"{side}_logits"])[real].max())
    print(said)


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](*sys.argv[2:])
