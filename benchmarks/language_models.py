"""Language models at equal tokens, trained side by side in one run: parameters, validation loss,
tokens per second.

    python benchmarks/language_models.py TEXT_FILE [--steps 2000] [--only NAME ...]

Every model reads the same batches (12 windows of 64 characters) with the same optimiser (AdamW,
warm-up 100 steps, cosine to a tenth, decay 0.1, clip 1, beta2 0.99). Learning rates are those with
the smallest validation loss after 500 steps: for the GPT among 1e-3, 2e-3, 4e-3 and 8e-3, for
ResNet-BK (with one expert) among the first three; the quantum transformer takes the GPT's. Chunks
of 50 steps take turns, so that whatever else the machine does slows all alike; tokens per second
come from the median chunk. The loss is over every character of the last tenth of the text. Ratios
of speed are to the first row that is run, a small GPT (4 blocks, width 128, 4 heads); the last rows
are small models for the quantum transformer to be compared with. At d = 48 it takes a while: ask
for it with --only "d = 48".
"""

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vfejax.data import batches, corpus
from vfejax.models.gpt import model as transformer
from vfejax.models.quantum import model as quantum_transformer
from vfejax.models.resnet_bk import model as resnet_bk
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import evaluate, trainer
from vfejax.types import SequenceModel

LENGTH, BATCH, CHUNK = 64, 12, 50


class Entry(NamedTuple):
    """A model and its learning rate."""

    model: SequenceModel
    learning_rate: float


def entries(counts: np.ndarray) -> dict[str, Entry]:
    """The table's rows, for tokens that occur so often in the training text."""
    vocab_size = len(counts)

    def bk(**options) -> SequenceModel:
        return resnet_bk.build(resnet_bk.ResNetBKConfig(**options), vocab_size, LENGTH)

    def quantum(dim: int) -> SequenceModel:
        config = quantum_transformer.QuantumTransformerConfig(dim=dim)
        return quantum_transformer.build(config, vocab_size, LENGTH, counts=counts)

    gpt = transformer.build(transformer.TransformerConfig(), vocab_size, LENGTH)
    small_gpt = transformer.build(transformer.TransformerConfig(2, 76, 4, 304), vocab_size, LENGTH)
    return {
        "GPT": Entry(gpt, 4e-3),
        "ResNet-BK, operator, 1 of 4 experts": Entry(bk(), 2e-3),
        "ResNet-BK, operator, 2 of 4 experts": Entry(bk(top_k=2), 2e-3),
        "ResNet-BK, operator, one expert": Entry(bk(experts=1, hidden=512), 2e-3),
        "ResNet-BK, features, 1 of 4 experts": Entry(
            bk(mixer="features", heads=64, hidden=176), 2e-3
        ),
        "GPT, small": Entry(small_gpt, 4e-3),
        "quantum, d = 16": Entry(quantum(16), 4e-3),
        "quantum, d = 48": Entry(quantum(48), 4e-3),
    }


class Run:
    """One row of the table under way."""

    def __init__(self, entry: Entry, num_steps: int, padding: int):
        optimizer = adamw(warmup_cosine(entry.learning_rate, 100, num_steps, 0.1))
        method = trainer(entry.model, optimizer, jax.random.key(1), padding=padding)
        self.state = jax.jit(method.init)(jax.random.key(0))
        self.num_parameters = sum(x.size for x in jax.tree.leaves(self.state.params))
        self.advance_fn = jax.jit(lambda s, w: jax.lax.scan(method.step, s, w), donate_argnums=0)
        self.evaluate_fn = jax.jit(lambda p, w: evaluate(entry.model, p, w, padding))
        self.times: list[float] = []

    def advance(self, windows: np.ndarray) -> float:
        start = time.perf_counter()
        self.state, infos = self.advance_fn(self.state, windows)
        loss = float(infos.parts.cross_entropy.mean())
        self.times.append(time.perf_counter() - start)
        return loss

    def loss(self, windows: np.ndarray) -> float:
        sums = self.evaluate_fn(self.state.params, windows)
        return float(sums.nats / sums.num_tokens)

    def tokens_per_second(self) -> float:
        return CHUNK * BATCH * LENGTH / statistics.median(self.times[1:])  # the first one compiled


def main() -> None:
    """Train all rows in turns and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument(
        "--steps", type=int, default=2000, help=f"a multiple of {CHUNK}, at least {2 * CHUNK}"
    )
    parser.add_argument("--only", nargs="+", help="rows whose names contain one of these words")
    options = parser.parse_args()
    text = corpus.load_text(options.text, "character", length=LENGTH)
    padding = text.vocabulary.padding_id
    rows = entries(np.bincount(text.train.tokens, minlength=text.vocabulary.size))
    wanted = options.only or [name for name in rows if name != "quantum, d = 48"]
    rows = {name: row for name, row in rows.items() if any(word in name for word in wanted)}
    runs = {name: Run(row, options.steps, padding) for name, row in rows.items()}
    windows = batches.Batches(text.train.tokens, BATCH, LENGTH, seed=0)
    for step in range(0, options.steps, CHUNK):
        chunk = windows.at(step, CHUNK)
        losses = [run.advance(chunk) for run in runs.values()]
        if (step // CHUNK) % 10 == 9:
            print(
                f"step {step + CHUNK:>5}  " + "  ".join(f"{loss:.3f}" for loss in losses),
                flush=True,
            )

    held_out = batches.evaluation_windows(text.valid.tokens, LENGTH, 4 * BATCH, padding)
    print(
        f"\n{'model':<38} {'parameters':>10} {'rate':>6} {'loss':>7} {'tokens/s':>9} {'speed':>6}"
    )
    first = next(iter(runs.values())).tokens_per_second()
    for name, run in runs.items():
        speed = run.tokens_per_second()
        print(
            f"{name:<38} {run.num_parameters:>10,} {rows[name].learning_rate:>6.0e} {run.loss(held_out):>7.4f} {speed:>9,.0f} {speed / first:>5.2f}x"
        )
    print(
        f"{options.steps} steps of {BATCH} x {LENGTH} characters of {options.text.name}; jax {jax.__version__}, python {platform.python_version()}, "
        f"{jax.devices()[0].device_kind}"
    )


if __name__ == "__main__":
    main()
