"""Block-wise attention on a torus, forward and with its gradient, side by side in one run.

    python benchmarks/attention.py [--quick] [--sizes 512 2048]

Batch 2, width 256, 8 heads, float32, no mask. Joint attention over D platters is that of 8 / D
heads over N D tokens; axial attention for any D, and joint attention for D = 1, are one program,
which is named axial.

ours     toroidal_attention or axial_attention with the method blockwise(), on a GPU pallas():
         distance bias around the ring, a slope per head; the gradient is that by query, key, value
         and slopes
(a)      PyTorch scaled_dot_product_attention of as many heads and tokens, without a bias
(b)      the same with the bias stored for all pairs of tokens, and no gradient for it
(c)      jax.nn.dot_product_attention with that bias, jit
floor    the products alone, two forward and seven with the gradient, at the rate of a product of
         two square matrices of 1024 that JAX takes in the same rounds
bare     forward: products, exponentials and sums in JAX by tiles of 256 x 1024, with no bias, no
         mask and no largest value, so what no exact block-wise form in XLA can be faster than

A ratio is theirs / ours (above 1: we are faster). Methods run interleaved; times are the best of up
to 15 rounds. Memory is what XLA sets aside beside arguments and results. For (a) and (b), whose
allocator on a CPU does not tell its peak, it is what they must hold at least: the bias. PyTorch is
optional: without it (a) and (b) are left out; it runs on a GPU where JAX does. Before anything is
timed, (b) and (c) are checked against ours.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.attention.blockwise import blockwise
from vfejax.attention.pallas import pallas
from vfejax.attention.toroidal import axial_attention, toroidal_attention, toroidal_distance

try:
    import torch
except ImportError:
    torch = None

BATCH, WIDTH, HEADS = 2, 256, 8
CHANNELS = WIDTH // HEADS
SIZES, DEPTHS = (128, 512, 1024, 2048), (2, 4)
SQUARE = 1024
BARE = 256, 1024  # queries and keys of a tile, the fastest of those tried
# The most tokens (c) is asked for: its gradient then takes 3 GB.
LARGEST = 4096
METHOD = pallas() if jax.default_backend() == "gpu" else blockwise()
# PyTorch runs where JAX runs.
CUDA = torch is not None and jax.default_backend() == "gpu" and torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def _compiled(run: Callable, arrays: tuple) -> tuple[Callable[[], object], float, float]:
    """The compiled call, its seconds of compilation and its temporary memory in bytes."""
    start = time.perf_counter()
    compiled = jax.jit(run).lower(*arrays).compile()
    seconds = time.perf_counter() - start
    return (
        lambda: jax.block_until_ready(compiled(*arrays)),
        seconds,
        compiled.memory_analysis().temp_size_in_bytes,
    )


def _with_gradient(attend: Callable, gradient: bool) -> Callable:
    """Of arrays and a cotangent: the answer, and with ``gradient`` the cotangents of the arrays."""

    def both(cotangent, *arrays):
        answer, pull_back = jax.vjp(attend, *arrays)
        return answer, pull_back(cotangent)

    return both if gradient else lambda cotangent, *arrays: (attend(*arrays), None)


def ours(arrays: list[np.ndarray], slope: np.ndarray, depth: int | None, gradient: bool):
    """The library, joint over ``depth`` platters, or axial for None."""
    n = arrays[0].shape[1]

    def attend(query, key, value, slope):
        attention_fn = axial_attention if depth is None else toroidal_attention
        return attention_fn(
            query, key, value, depth=depth or 1, slope=slope, circumference=n, method=METHOD
        )

    return _compiled(
        _with_gradient(attend, gradient), tuple(map(jnp.asarray, (arrays[3], *arrays[:3], slope)))
    )


def _tokens(x: np.ndarray, depth: int) -> np.ndarray:
    """``[b, n, D g, c]`` as ``[b, g, n D, c]``: the flattened problem that the others are given."""
    batch, n, heads, channels = x.shape
    x = np.moveaxis(x.reshape(batch, n, depth, heads // depth, channels), 3, 1)
    return np.ascontiguousarray(x.reshape(batch, heads // depth, n * depth, channels))


def torch_method(
    arrays: list[np.ndarray], bias: np.ndarray | None, gradient: bool
) -> Callable[[], tuple]:
    """(a) without a bias and (b) with one."""
    *leaves, cotangent = (torch.tensor(x, device=DEVICE) for x in arrays)
    leaves = [x.requires_grad_(gradient) for x in leaves]
    stored = None if bias is None else torch.tensor(bias, device=DEVICE)

    def run():
        with torch.set_grad_enabled(gradient):
            answer = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=stored)
        gradients = torch.autograd.grad(answer, leaves, cotangent) if gradient else None
        if CUDA:
            torch.cuda.synchronize()
        return answer.detach(), gradients

    return run


def jax_method(arrays: list[np.ndarray], bias: np.ndarray, gradient: bool):
    """(c), with heads on the third axis, as it takes them."""
    *heads_last, cotangent = (jnp.asarray(np.swapaxes(x, 1, 2)) for x in arrays)
    stored = jnp.asarray(bias)

    def attend(query, key, value):
        return jax.nn.dot_product_attention(query, key, value, stored)

    return _compiled(_with_gradient(attend, gradient), (cotangent, *heads_last))


def square_product() -> Callable[[], object]:
    """A product of two square matrices, compiled."""
    x, product = jnp.ones((SQUARE, SQUARE), jnp.float32), jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(x, x))


def bare_method(arrays: list[np.ndarray]) -> Callable[[], object]:
    """The softmax that overflows, block by block, of ``[b, g, m, c]``."""

    def split(x: jax.Array, most: int) -> jax.Array:
        batch, group, tokens, channels = x.shape
        size = min(most, tokens)
        return x.reshape(batch * group, tokens // size, size, channels).swapaxes(0, 1)

    @jax.jit
    def run(query, key, value):
        blocks = split(key, BARE[1]), split(value, BARE[1])

        def row(carry, queries):
            def column(sums, block):
                keys, values = block
                weights = jnp.exp(jnp.einsum("bqc,bkc->bqk", queries, keys))
                answer = sums[0] + jnp.einsum("bqk,bkc->bqc", weights, values)
                return (answer, sums[1] + jnp.sum(weights, axis=-1)), None

            start = jnp.zeros_like(queries), jnp.zeros(queries.shape[:2])
            (answer, total), _ = jax.lax.scan(column, start, blocks)
            return carry, answer / total[..., None]

        return jax.lax.scan(row, None, split(query / CHANNELS**0.5, BARE[0]))[1]

    inputs = [jnp.asarray(x) for x in arrays[:3]]
    return lambda: jax.block_until_ready(run(*inputs))


def _timed(method: Callable[[], object]) -> float:
    start = time.perf_counter()
    method()
    return time.perf_counter() - start


def interleaved(methods: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best seconds per call. Every round runs every method, 15 rounds or 20 s."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods.values():
        method()
    began = time.perf_counter()
    for _ in range(15):
        for name, method in methods.items():
            times[name].append(_timed(method))
        if time.perf_counter() - began > 20:
            break
    return {name: min(values) for name, values in times.items()}


def _host(x: object) -> np.ndarray:
    return x.cpu().numpy() if torch is not None and isinstance(x, torch.Tensor) else np.asarray(x)


def check(name: str, found: tuple, expected: tuple, arrange: Callable) -> None:
    """The method agrees with ours in the answer, and in the gradients by query, key and value."""
    pairs = [(found[0], expected[0])]
    if expected[1] is not None:
        pairs += list(zip(found[1], expected[1][:3], strict=True))
    for got, mine in pairs:
        mine = arrange(np.asarray(mine))
        error = np.linalg.norm(_host(got) - mine) / np.linalg.norm(mine)
        # float32 against float32: sums of up to 8192 terms, each in another order.
        assert error < 1e-5, (name, error)


def case(n: int, depth: int | None, gradient: bool) -> None:
    """Check, time and print one size."""
    platters = depth or 1
    rng = np.random.default_rng(n)
    shape = (BATCH, n, HEADS, CHANNELS)
    arrays = [rng.standard_normal(shape).astype(np.float32) for _ in range(4)]
    slope = np.geomspace(0.5, 8.0, HEADS // platters).astype(np.float32)
    flat, tokens = [_tokens(x, platters) for x in arrays], n * platters
    distance = np.asarray(toroidal_distance(n, platters)).reshape(tokens, tokens)
    bias = (-slope[:, None, None] * distance)[None]
    mine, compile_seconds, memory = ours(arrays, slope, depth, gradient)
    methods, memories, expected = {"ours": mine}, {}, mine()
    if torch is not None:
        for name, stored in (("(a) torch", None), ("(b) torch, bias", bias)):
            methods[name] = torch_method(flat, stored, gradient)
            memories[name] = 0 if stored is None else stored.nbytes
        check("(b)", methods["(b) torch, bias"](), expected, lambda x: _tokens(x, platters))
    if tokens <= LARGEST:
        methods["(c) jax, bias"], _, temporary = jax_method(flat, bias, gradient)
        memories["(c) jax, bias"] = temporary + bias.nbytes
        check(
            "(c)",
            methods["(c) jax, bias"](),
            expected,
            lambda x: np.swapaxes(_tokens(x, platters), 1, 2),
        )
    if not gradient:
        methods["bare"] = bare_method(flat)
    times = interleaved({**methods, "floor": square_product()})
    # Multiplications of all products over those of the square one.
    products = 7 if gradient else 2
    times["floor"] *= products * BATCH * WIDTH * n * tokens / SQUARE**3
    for name in list(times)[1:]:
        mine_ms, theirs_ms = 1e3 * times["ours"], 1e3 * times[name]
        kept = f"{memories[name] / 1e6:.1f}" if name in memories else ""
        mode = "axial" if depth is None else "joint"
        print(
            f"{name:<16} {'gradient' if gradient else 'forward':<9} "
            f"{mode:<6} {n:>5} {depth or '':>2} "
            f"{mine_ms:>9.2f} {theirs_ms:>9.2f} {theirs_ms / mine_ms:>6.2f} "
            f"{memory / 1e6:>8.1f} {kept:>9} {compile_seconds:>8.1f}",
            flush=True,
        )


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="up to N = 512 only")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="these lengths only")
    options = parser.parse_args()
    print(
        f"{'what':<16} {'of':<9} {'mode':<6} {'N':>5} {'D':>2} {'ours ms':>9} {'theirs ms':>9} "
        f"{'ratio':>6} {'ours MB':>8} {'theirs MB':>9} {'compile':>8}"
    )
    for n in options.sizes or (SIZES[:2] if options.quick else SIZES):
        for depth in (None, *DEPTHS):
            for gradient in (False, True):
                case(n, depth, gradient)
                jax.clear_caches()
    versions = (
        f"jax {jax.__version__}, numpy {np.__version__}, torch "
        f"{torch.__version__ if torch else 'absent'}"
    )
    device = f"{jax.devices()[0].device_kind} ({jax.device_count()} device, {os.cpu_count()} cores)"
    print(f"batch {BATCH}, width {WIDTH}, {HEADS} heads")
    print(f"{versions}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()
