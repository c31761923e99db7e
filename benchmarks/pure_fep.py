"""What each part of the Pure-FEP transformer is worth: one option changed at a time, on the
characters of a text, beside bigrams and a GPT of the same size.

    python benchmarks/pure_fep.py --text FILE [--steps 300] [--seeds 0 1] [--arms NAME ...]

Every arm reads the same batches of 12 windows of 64 characters. Losses are nats per character on
windows spread over the validation text (its last tenth), after the last update.
"""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vfejax.data.batches import Batches
from vfejax.data.corpus import Corpus, load_text
from vfejax.data.ngrams import ngram_cross_entropy
from vfejax.models.gpt_modern.config import ModernGPTConfig
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.table import MODELS
from vfejax.training.evaluate import evaluate
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer

LENGTH, BATCH, WINDOWS = 64, 12, 192
BASE = PureFEPConfig(layers=2, max_layers=2, dim=48, hidden=192)
RATE = 4e-3
ARMS: dict[str, tuple[dict, float]] = {
    "as it is": ({}, RATE),
    "bank as embedding": ({"embedding": "bank"}, RATE),
    "one-phase averages of token Gaussians": ({"prior_update": "average"}, RATE),
    "no alignment of beliefs": ({"belief_weight": 0.0}, RATE),
    "tower of priors": ({"tower_depth": 1}, RATE),
    "alignment of priors 0.1": ({"prior_weight": 0.1}, RATE),
    "embedding: bank and offset": ({"embedding": "hybrid"}, RATE),
    "linear output": ({"output": "linear"}, RATE),
    "linear and KL output": ({"output": "both"}, RATE),
    "no positions": ({"position": "none"}, RATE),
    "sinusoidal positions": ({"position": "sinusoidal"}, RATE),
    "momentum 0.9": ({"momentum": 0.9}, RATE),
    "full nudge": ({"nudge": 1.0}, RATE),
    "one layer": ({"layers": 1, "max_layers": 1}, RATE),
    "three layers": ({"layers": 3, "max_layers": 3}, RATE),
    "grown from one layer": ({"layers": 1, "spawn_pressure": 0.1, "cool_down": 100}, RATE),
    "one step of inference": ({"inference_steps": 1}, RATE),
    "over the Fisher information": ({"scaling": "fisher"}, 0.1),
    "plain slopes": ({"scaling": "plain"}, 0.3),
}
GPT = ModernGPTConfig(layers=2, dim=48, heads=4, hidden=72)


def _windows(data: Corpus) -> np.ndarray:
    tokens = data.valid.tokens
    starts = np.linspace(0, len(tokens) - LENGTH - 2, WINDOWS).astype(int)
    rows = np.stack([tokens[i : i + LENGTH + 1] for i in starts])
    return rows.reshape(-1, 24, LENGTH + 1)


def measure(arm: str, data: Corpus, steps: int, seed: int) -> tuple[int, float]:
    """Parameters, and nats per character after ``steps`` updates."""
    vocab, key = data.vocabulary.size, jax.random.key(seed + 1)
    changes, rate = ARMS.get(arm, ({}, RATE))
    rate_fn = warmup_cosine(rate, min(100, steps // 4), steps, 0.1)
    if arm == "gpt-modern":
        model = MODELS[arm].build(GPT, vocab, LENGTH)
        method = trainer(model, adamw(rate_fn), key)
    else:
        entry, config = MODELS["pure-fep"], dataclasses.replace(BASE, **changes)
        model = entry.build(config, vocab, LENGTH)
        assert entry.trainer is not None
        method = entry.trainer(model, config, rate_fn, key)
    state = jax.jit(method.init)(jax.random.key(seed))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    batches = Batches(data.train.tokens, BATCH, LENGTH, seed).at(0, steps)
    state, _ = jax.jit(partial(jax.lax.scan, method.step))(state, batches)
    sums = jax.jit(partial(evaluate, model))(state.params, _windows(data))
    return count, float(sums.nats) / int(sums.num_tokens)


def main() -> None:
    """Print a row per arm."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=["gpt-modern", *ARMS])
    given = parser.parse_args()
    data = load_text(given.text, "character", length=LENGTH, max_words=1, valid_fraction=0.1)
    tokens, vocab = (data.train.tokens, data.valid.tokens), data.vocabulary.size
    bigrams = ngram_cross_entropy(*tokens, vocab, 2)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}; bigrams {bigrams:.4f}")
    print("| arm | parameters | loss |\n| --- | ---: | ---: |")
    for arm in given.arms:
        start = time.perf_counter()
        found = [measure(arm, data, given.steps, seed) for seed in given.seeds]
        losses = ", ".join(f"{loss:.4f}" for _, loss in found)
        seconds = time.perf_counter() - start
        print(f"| {arm} | {found[0][0]:,} | {losses} | ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
