"""Rounding alone: grids of few bits beside one another, and products of integers.

    python benchmarks/quantisation.py [--run RUN] [--quick]

unused code   levels -(2^(b-1) - 1) to 2^(b-1) - 1, with the scale that reaches the largest number
reaching      -2^(b-1) to 2^(b-1) - 1, turned by the sign of the scale to where the largest number
              is, which it reaches
signed        the same with a scale that is searched: vfejax.compression.quantize
odd multiples levels at odd multiples of half a step, searched in the same way
asymmetric    searched, with a zero for each group: vfejax.compression.quantize

Printed are the squared error over the power of 2,000 groups of 64 normal numbers; for --run, a
directory of ``vfejax train`` on its default text, the change of the validation loss in 160 windows
when the kernels of its model are rounded to each grid, and its other leaves as the rule says; and
the times of ``int8_matmul`` beside float32, least of twenty, codes of the activations included.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vfejax import runs
from vfejax.compression.integer_products import int8_matmul
from vfejax.compression.quantize import Scheme, dequantize, fake_quantize, quantize
from vfejax.compression.rules import EMBEDDING, rule
from vfejax.data import corpus
from vfejax.training.evaluate import evaluate

BITS = (2, 3, 4, 5, 6, 8)
SIZES = ((1, 128, 512), (1, 1024, 4096), (768, 128, 512), (768, 512, 512), (768, 1024, 4096))
REACHING, SEARCHED = np.ones(1), np.geomspace(1.0, 0.35, 9)
WINDOWS, ROUNDS = 160, 20

Grid = Callable[[np.ndarray, int, int], np.ndarray]  # last axis, bits, group


def ours(x: np.ndarray, bits: int, group: int, symmetric: bool) -> np.ndarray:
    """Rounded by the library."""
    return np.asarray(fake_quantize(jnp.asarray(x), Scheme(bits, group, symmetric), -1))


def to_levels(
    x: np.ndarray,
    bits: int,
    group: int,
    levels: Callable[[int], np.ndarray],
    shares: np.ndarray,
) -> np.ndarray:
    """Rounded to ``levels(bits)`` steps, the first of which is at the largest number or a share of
    it, whichever share leaves the least squared error.
    """
    places, length = levels(bits), x.shape[-1]
    size = min(group or length, length)
    groups = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -length % size)]).astype(np.float64)
    groups = groups.reshape(*x.shape[:-1], -1, size)
    at = np.argmax(np.abs(groups), axis=-1, keepdims=True)
    largest = np.take_along_axis(groups, at, axis=-1)
    least, found = np.full(largest.shape, np.inf), np.zeros_like(groups)
    for share in shares:
        step = np.float64(np.float16(largest * share / places[0]))
        nearest = np.searchsorted((places[1:] + places[:-1]) / 2, groups / np.where(step, step, 1))
        rounded = places[nearest] * step
        error = np.sum((rounded - groups) ** 2, axis=-1, keepdims=True)
        found = np.where(error < least, rounded, found)
        least = np.minimum(error, least)
    return found.reshape(*x.shape[:-1], -1)[..., :length].astype(x.dtype)


def integers(bits: int) -> np.ndarray:
    """All codes, one more below zero than above."""
    return np.arange(-(2.0 ** (bits - 1)), 2 ** (bits - 1))


GRIDS: dict[str, Grid] = {
    "unused code": partial(to_levels, levels=lambda b: integers(b)[1:], shares=REACHING),
    "reaching": partial(to_levels, levels=integers, shares=REACHING),
    "signed": partial(ours, symmetric=True),
    "odd multiples": partial(to_levels, levels=lambda b: integers(b) + 0.5, shares=SEARCHED),
    "asymmetric": partial(ours, symmetric=False),
}


def print_row(first: object, cells: list[str]) -> None:
    """One row of a Markdown table."""
    print("| " + " | ".join([str(first), *cells]) + " |", flush=True)


def print_header(first: str, columns: list[str]) -> None:
    print()
    print_row(first, columns)
    print("|" + " --- |" * (len(columns) + 1))


def normal_errors() -> None:
    """Squared error over power of normal numbers."""
    x = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    print_header("bits", list(GRIDS))
    for bits in BITS:
        errors = [np.mean((grid(x, bits, 64) - x) ** 2) / np.mean(x**2) for grid in GRIDS.values()]
        print_row(bits, [f"{error:.3g}" for error in errors])


def model_losses(path: Path) -> None:
    """Change of the validation loss of a run."""
    run = runs.load(path)
    text = corpus.load_text(
        None, run.config["vocabulary"], length=run.config["length"], tokenizer=run.vocabulary
    )
    tokens, length = np.asarray(text.valid.tokens), run.config["length"]
    starts = np.linspace(0, tokens.size - length - 1, WINDOWS).astype(int)
    windows = np.stack([tokens[start : start + length + 1] for start in starts])
    windows = jnp.asarray(windows.reshape(-1, 20, length + 1), jnp.int32)

    @jax.jit
    def loss(params: dict) -> jax.Array:
        sums = evaluate(run.model, params, windows)
        return sums.nats / sums.num_tokens

    def rounded(grid: Grid, bits: int, group: int) -> dict:
        leaves = rule(run.params, Scheme(bits, group))

        def read(place: tuple, x: jax.Array) -> jax.Array:
            scheme, axis = leaves[jax.tree_util.keystr(place, simple=True, separator="/")]
            if scheme is None:
                return x
            last = np.moveaxis(np.asarray(x), axis, -1)
            if scheme is EMBEDDING:
                return jnp.asarray(np.moveaxis(ours(last, *EMBEDDING), -1, axis))
            return jnp.asarray(np.moveaxis(grid(last, bits, group), -1, axis))

        return jax.tree_util.tree_map_with_path(read, run.params)

    base = float(loss(run.params))
    print(f"\n{path.name}: {base:.4f} nats")
    print_header("bits, group", list(GRIDS))
    for group in (64, 0):
        for bits in BITS:
            found = [float(loss(rounded(grid, bits, group))) for grid in GRIDS.values()]
            print_row(
                f"{bits}, {group or 'column'}", [f"{100 * (x / base - 1):+.2f} %" for x in found]
            )


def seconds(function: Callable, *arguments: object) -> float:
    """The least of several calls."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - begin)
    return min(times)


def products(sizes: tuple) -> None:
    """Times of int8 products beside float32."""
    print_header("rows, inputs, outputs", ["float32", "int8", "read back to float32"])
    scheme, rng = Scheme(8, 0), np.random.default_rng(0)
    for rows, inputs, outputs in sizes:
        x = jnp.asarray(rng.standard_normal((rows, inputs)), jnp.float32)
        kernel = jnp.asarray(rng.standard_normal((inputs, outputs)), jnp.float32)
        found = quantize(kernel, scheme)
        times = [
            seconds(jnp.matmul, x, kernel),
            seconds(lambda x, q: int8_matmul(x, q, scheme), x, found),
            seconds(lambda x, q: x @ dequantize(q, scheme), x, found),
        ]
        print_row(f"{rows}, {inputs}, {outputs}", [f"{1e3 * each:.3g} ms" for each in times])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="directory of vfejax train, on its default text")
    parser.add_argument("--quick", action="store_true", help="leave out the largest product")
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    normal_errors()
    if options.run is not None:
        model_losses(options.run)
    products(SIZES[:-1] if options.quick else SIZES)


if __name__ == "__main__":
    main()
