"""Training speed and memory of the language models, side by side in one run.

    python benchmarks/language_model_training.py [--sizes 12x64 32x1024]

Updates by AdamW at a fixed rate on batches of the help topics of Python, ten in one compiled
program. The models are those of ``language_models.py``, with the same number of parameters to half
a percent (but for learned positions, which longer windows need more of). All take turns within one
run, and the median counts. *Speed* is tokens per second relative to the first row, *memory* the
temporary memory of the program, as XLA reports it. Run it on a quiet machine.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from language_models import ARMS, Text, load, model_of

from vfejax.data import batches
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer

STEPS, ROUNDS = 10, 7


def updates(
    arm: str, text: Text, batch: int, length: int
) -> tuple[Callable[[], object], float, int]:
    """A call that makes ten updates from the same start, its seconds of compilation and bytes of
    temporary memory.
    """
    vocabulary, tokens = text.corpus.vocabulary, text.corpus.train.tokens
    model = model_of(arm, text, length)
    method = trainer(model, adamw(1e-3), jax.random.key(1), padding=vocabulary.padding_id)
    state = jax.jit(method.init)(jax.random.key(0))
    windows = jnp.asarray(batches.Batches(tokens, batch, length, seed=0).at(0, STEPS))

    def run(state, windows):
        return jax.lax.scan(method.step, state, windows)[1].loss

    start = time.perf_counter()
    call = jax.jit(run).lower(state, windows).compile()
    seconds = time.perf_counter() - start
    memory = call.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(call(state, windows)), seconds, memory


def compare(arms: list[str], text: Text, batch: int, length: int) -> None:
    """Check, time and print one size."""
    runs = {arm: updates(arm, text, batch, length) for arm in arms}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm, (call, *_) in runs.items():
        assert np.all(np.isfinite(np.asarray(call()))), arm
    for _ in range(ROUNDS):
        for arm, (call, *_) in runs.items():
            start = time.perf_counter()
            call()
            times[arm].append(time.perf_counter() - start)
    first = statistics.median(times[arms[0]])
    print(f"\n| {batch} windows of {length} | tokens/s | speed | memory | compilation |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for arm in arms:
        median, (_, seconds, memory) = statistics.median(times[arm]), runs[arm]
        print(
            f"| {arm} | {STEPS * batch * length / median:,.0f} | {first / median:.2f}x "
            f"| {memory / 2**20:,.0f} MiB | {seconds:.0f} s |",
            flush=True,
        )


def _size(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 12x64")
    return int(batch), int(length)


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arms = ["gpt-modern", "transformer", "gate", "gate, convolution", "tridiagonal, convolution"]
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=arms)
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=[(12, 64)], help="windows x characters"
    )
    options = parser.parse_args()
    text = load("topics")
    for batch, length in options.sizes:
        compare(options.arms, text, batch, length)
    device = jax.devices()[0].device_kind
    print(f"\njax {jax.__version__}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()
