"""Beyond the training length: loss by position at 16 times that length, and decoding speed and
memory by length of the context.

    python benchmarks/language_model_decoding.py --text shakespeare=FILE --weights FOLDER

The weights are those that ``language_models.py --weights FOLDER`` kept. Every model reads the
validation text in windows of 16 times the length that it was trained at; a column is the mean loss
of the characters at those positions over the seeds, which all models see with the same context. A
model with learned positions reads no more than it was trained at. Speed is that of decoding one
sequence token by token after a context of that length (attention over the whole cache, however
little of it is filled); all models take turns within one run, and the median counts. *State* is
what decoding remembers. Run it on a quiet machine; without --weights the losses are left out.

``--apart`` prints one more table: decoding from stacked weights beside that from those of
``SequenceModel.prepare``, after a context of the training length; processor time, the smallest of
measurements that take turns, and that of compilation.
"""

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from language_models import ARMS, LENGTH, Text, load, model_of, weights_file

from vfejax.data import batches
from vfejax.training.losses import token_nats
from vfejax.types import PyTree, SequenceModel

LONG = 16 * LENGTH
EDGES = (0, LENGTH // 2, LENGTH, 2 * LENGTH, 4 * LENGTH, 8 * LENGTH, LONG)
CONTEXTS = (LENGTH, LONG, 16 * LONG)
TOKENS, ROUNDS = 32, 7


def read_weights(path: Path) -> PyTree:
    """The nested dict of arrays that ``language_models.py`` wrote."""
    params: dict = {}
    with np.load(path) as arrays:
        for name, array in arrays.items():
            *folders, last = name.split("/")
            place = params
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = jnp.asarray(array)
    return params


def losses_by_position(arm: str, text: Text, params: PyTree) -> np.ndarray:
    """Mean loss of every bucket of positions; NaN where the model cannot read so far."""
    length = LENGTH if "positions" in params else LONG  # learned ones end there
    model, padding = model_of(arm, text, length), text.corpus.vocabulary.padding_id
    windows = batches.evaluation_windows(text.corpus.valid.tokens, LONG, 4, padding)

    @jax.jit
    def nats(params: PyTree, window: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, window[:, :length], None).logits
        return token_nats(logits, window[:, 1 : length + 1], padding)

    total, count = np.zeros(length), np.zeros(length)
    for window in windows:
        loss, counted = nats(params, window)
        total, count = total + np.sum(loss, axis=0), count + np.sum(counted, axis=0)
    parts = [slice(*edge) for edge in itertools.pairwise(EDGES)]
    return np.asarray(
        [total[p].sum() / count[p].sum() if p.stop <= length else np.nan for p in parts]
    )


def extrapolation_table(
    text: Text, arms: list[str], folder: Path, seeds: int, steps: int
) -> Iterator[str]:
    """Loss by position, the mean of seeds, Markdown."""
    buckets = [f"{a}-{b - 1}" for a, b in itertools.pairwise(EDGES)]
    yield f"| {text.name}, positions | " + " | ".join(buckets) + " |"
    yield "| --- |" + " ---: |" * len(buckets)
    for arm in arms:
        files = [weights_file(folder, text.name, arm, seed, steps) for seed in range(seeds)]
        losses = np.mean([losses_by_position(arm, text, read_weights(f)) for f in files], axis=0)
        cells = ["" if np.isnan(loss) else f"{loss:.4f}" for loss in losses]
        yield f"| {arm} | " + " | ".join(cells) + " |"


def _decoding(model: SequenceModel) -> Any:
    """Logits of tokens ``[n, b]`` read one after the other from a state."""

    @jax.jit
    def run(params: PyTree, state: PyTree, tokens: jax.Array) -> jax.Array:
        def step(state: PyTree, token: jax.Array) -> tuple[PyTree, jax.Array]:
            logits, state = model.decode(params, state, token)
            return state, logits

        return jax.lax.scan(step, state, tokens)[1]

    return run


def decoder(arm: str, text: Text, context: int) -> tuple[Callable[[], None], int]:
    """A call that decodes a few tokens, compiled, and the bytes that decoding remembers."""
    model = model_of(arm, text, context)
    params = jax.jit(model.init)(jax.random.key(0))
    state = model.init_decode(params, 1)
    tokens = jnp.zeros((TOKENS, 1), jnp.int32)

    run = _decoding(model)
    jax.block_until_ready(run(params, state, tokens))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return lambda: jax.block_until_ready(run(params, state, tokens)), size


def decoding_table(text: Text, arms: list[str]) -> Iterator[str]:
    """Tokens per second, ratios to the first row, and bytes of the state, Markdown."""
    yield (
        "| decoding, context | "
        + " | ".join(f"{n:,}: tokens/s | ratio | state" for n in CONTEXTS)
        + " |"
    )
    yield "| --- |" + " ---: | ---: | ---: |" * len(CONTEXTS)
    cells: dict[str, list[str]] = {arm: [] for arm in arms}
    for context in CONTEXTS:
        runs = {arm: decoder(arm, text, context) for arm in arms}
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for _ in range(ROUNDS):
            for arm, (run, _) in runs.items():
                start = time.perf_counter()
                run()
                times[arm].append(time.perf_counter() - start)
        first = statistics.median(times[arms[0]])
        for arm in arms:
            median, size = statistics.median(times[arm]), runs[arm][1]
            cells[arm].append(f"{TOKENS / median:,.0f} | {first / median:.2f}x | {_bytes(size)}")
    for arm in arms:
        yield f"| {arm} | " + " | ".join(cells[arm]) + " |"


def apart_table(text: Text, arms: list[str]) -> Iterator[str]:
    """Processor time of a token and of compilation, with blocks stacked and on their own,
    Markdown.
    """
    yield "| model | stacked, us/token | apart | ratio | stacked, compilation, s | apart |"
    yield "| --- |" + " ---: |" * 5
    for arm in arms:
        model = model_of(arm, text, LENGTH)
        if model.prepare is None:
            continue
        params = jax.jit(model.init)(jax.random.key(0))
        state, tokens = model.init_decode(params, 1), jnp.zeros((2 * TOKENS, 1), jnp.int32)
        runs, compiling = [], []
        for weights in (params, jax.jit(model.prepare)(params)):
            began = time.process_time()
            compiled = _decoding(model).lower(weights, state, tokens).compile()
            compiling.append(time.process_time() - began)
            runs.append(partial(compiled, weights, state, tokens))
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS + 2):
            for run, found in zip(runs, times, strict=True):
                began = time.process_time()
                jax.block_until_ready(run())
                found.append((time.process_time() - began) / len(tokens))
        before, after = (1e6 * min(found) for found in times)
        yield (
            f"| {arm} | {before:.0f} | {after:.0f} | {before / after:.2f}x | "
            f"{compiling[0]:.1f} | {compiling[1]:.1f} |"
        )


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text",
        default="topics",
        help="NAME=FILE, or a bare name for the help topics of Python",
    )
    parser.add_argument("--weights", type=Path, help="folder that language_models.py filled")
    parser.add_argument("--seeds", type=int, default=3, help="seeds whose weights are read")
    parser.add_argument("--steps", type=int, default=2000, help="steps that they were trained for")
    parser.add_argument("--no-speed", action="store_true", help="losses alone")
    parser.add_argument("--apart", action="store_true", help="the table of blocks on their own")
    arms = ["gpt-modern", "transformer", "gate, convolution"]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    options = parser.parse_args()
    text = load(options.text)
    if options.weights:
        chosen = options.weights, options.seeds, options.steps
        rows = extrapolation_table(text, options.arms, *chosen)
        print("\n".join([*rows, ""]))
    if not options.no_speed:
        print("\n".join(decoding_table(text, options.arms)))
    if options.apart:
        print("\n".join(["", *apart_table(text, options.arms)]))
    device = jax.devices()[0].device_kind
    print(f"\njax {jax.__version__}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()
