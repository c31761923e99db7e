"""Diagonal of the resolvent of 8 tridiagonal matrices and its gradient, side by side in one run.

    python benchmarks/resolvent.py [--quick] [--sizes 512 8192]

ours     ratios by one scan, exact adjoint by another, jit; float32 in, complex64 out, chains [8, n]
(a)      theta and phi recursions of one chain as Python loops under torch.vmap, complex128,
         autograd. Its determinants overflow near n = 915, so it stops at 512 (it would also take
         minutes)
(b)      LAPACK zgtsv with the n columns of the identity as right-hand sides, value only
(c)      causal attention of width 64 over the same [8, n] tokens, jax.nn.dot_product_attention,
         float32
(d)      the same ratios and adjoint in C (gcc -O3 -march=native -ffast-math), one thread, the 8
         chains as vector lanes, its own layout [n, 8], buffers allocated before
floor    bytes that must be read and written (a, b, c, G; with the gradient also w, da, db, dc) over
         the bandwidth of a large copy

The first table is that of docs/results. The second says how much of a short time is the call: it
has the same work done many times inside one program, less the loop around it, beside the C loop
called once for as many. Below stand floors, compilation and LAPACK. A ratio is theirs / ours (above
1: we are faster). Methods run interleaved; times are per call, the best of up to 25 rounds: calls
of microseconds are lengthened by whatever else the machine does, and never shortened.
PyTorch, SciPy and a C compiler are optional: without one its cells are empty. Before anything is
timed, values and gradients of (a), (b) and (d) are checked against ours.
"""

import argparse
import ctypes
import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from resolvent_rivals import (
    BATCH,
    Z,
    c_library,
    c_method,
    chains,
    from_c,
    lapack,
    lapack_method,
    torch,
    torch_method,
)

from vfejax.spectral import resolvent

clock = time.perf_counter  # or time.process_time, by an option
WIDTH = 64
SIZES = (128, 512, 2048, 8192, 32768, 262144, 1_000_000)
# The largest n each method is asked for: beyond it overflows (a), or takes more than about 10 s or
# 4 GB.
LARGEST = {"torch": 512, "lapack": 2048, "attention": 4096, "inside": 32768}

SHOWN = ("(a) torch.vmap", "(c) attention", "(d) C loop")
HEADER = """\
| n | value | per site | PyTorch loop, complex128 | attention | C loop | with gradient | PyTorch \
loop | attention | C loop | temporaries of both |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""

INSIDE_HEADER = """\
| n | | call | empty call | inside a program | C loop, called | C loop, inside | call | inside |
| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def _compiled(
    run: Callable, arrays: tuple[np.ndarray, ...]
) -> tuple[Callable[[], object], float, float]:
    """The compiled call, its seconds of compilation and its temporary memory in bytes."""
    start = clock()
    compiled = jax.jit(run).lower(*arrays).compile()
    seconds = clock() - start
    inputs = [jnp.asarray(x) for x in arrays]
    return (
        lambda: jax.block_until_ready(compiled(*inputs)),
        seconds,
        compiled.memory_analysis().temp_size_in_bytes,
    )


def _value(a, b, c):
    return resolvent.resolvent_diagonal(a, b, c, Z), None


def _both(a, b, c, w):
    value, pull = jax.vjp(lambda *x: _value(*x)[0], a, b, c)
    return value, pull(w)


def ours(arrays: tuple[np.ndarray, ...], gradient: bool):
    """The library: G, and with ``gradient`` the cotangents of a, b, c for the cotangent w of G."""
    return _compiled(_both, arrays) if gradient else _compiled(_value, arrays[:3])


def nothing(*arrays):
    """Results like those of the library, for next to no work."""
    a, b, c, *w = arrays
    return (w[0], (a, b, c)) if w else (jax.lax.complex(a, a), None)


def rounds(
    run: Callable, arrays: tuple[np.ndarray, ...], gradient: bool, times: int
) -> Callable[[], object]:
    """``times`` applications in one program, of inputs that the result before changes."""

    def step(_, carry):
        arrays, shift, _ = carry
        result = run(*(x + shift for x in arrays))
        return arrays, 1e-9 * jnp.real(result[0][0, 0]), result

    def repeated(*arrays):
        result = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(run, *arrays))
        return jax.lax.fori_loop(0, times, step, (arrays, jnp.float32(0), result))[1:]

    return _compiled(repeated, arrays if gradient else arrays[:3])[0]


def attention_method(n: int, gradient: bool) -> Callable[[], object]:
    """(c): one head of width 64."""
    rng = np.random.default_rng(n)
    arrays = tuple(rng.standard_normal((BATCH, n, 1, WIDTH)).astype(np.float32) for _ in range(4))

    def value(query, key, content):
        return jax.nn.dot_product_attention(query, key, content, is_causal=True)

    def both(query, key, content, w):
        result, pull = jax.vjp(value, query, key, content)
        return result, pull(w)

    return _compiled(both, arrays)[0] if gradient else _compiled(value, arrays[:3])[0]


def copy_bandwidth() -> float:
    """Bytes read plus bytes written per second of a pass over 256 MB, best of five."""
    source, negate = jnp.ones(2**26, jnp.float32), jax.jit(jnp.negative)
    jax.block_until_ready(negate(source))
    return (
        2
        * source.nbytes
        / min(_timed(lambda: jax.block_until_ready(negate(source))) for _ in range(5))
    )


def check(
    name: str, found: tuple, value: np.ndarray, gradients: tuple | None, limit: float
) -> None:
    """The method agrees with ours in value, and in each gradient it has."""
    pairs = [(found[0], value)]
    if gradients is not None and found[1] is not None:
        pairs += list(zip(found[1], gradients, strict=True))
    for got, expected in pairs:
        error = np.linalg.norm(got - np.asarray(expected)) / np.linalg.norm(got)
        assert error < limit, (name, error)


def _timed(method: Callable[[], object]) -> float:
    start = clock()
    method()
    return clock() - start


def _best(method: Callable[[], object], first: float) -> float:
    """Best seconds per call of five batches of about 2 ms, after a call that warms caches and
    thread pools.
    """
    count = max(1, int(0.002 / first))
    method()
    return min(_timed(lambda: [method() for _ in range(count)]) for _ in range(5)) / count


def interleaved(methods: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best seconds per call. Every round runs every method, 25 rounds or 8 s; what takes above 0.1
    s runs once a round, above 2 s once.
    """
    times = {name: [_timed(method)] for name, method in methods.items()}
    began = time.perf_counter()
    for _ in range(25):
        for name, method in methods.items():
            first = times[name][0]
            if first <= 2:
                times[name].append(_timed(method) if first > 0.1 else _best(method, first))
        if time.perf_counter() - began > 8:
            break
    return {name: min(values) for name, values in times.items()}


class Case(NamedTuple):
    """Best seconds of each method, seconds of compilation and temporary bytes of ours, and how many
    applications are measured inside one program.
    """

    times: dict[str, float]
    compilation: float
    memory: int
    rounds: int


def case(n: int, gradient: bool, library: ctypes.CDLL | None) -> Case:
    """Check and time one size."""
    arrays = chains(n)
    mine, compile_seconds, memory = ours(arrays, gradient)
    value, gradients = mine()
    methods = {"ours": mine}
    if torch is not None and n <= LARGEST["torch"]:
        methods["(a) torch.vmap"] = torch_method(arrays, gradient)
        check("(a)", methods["(a) torch.vmap"](), value, gradients, 5e-6)
    if lapack is not None and not gradient and n <= LARGEST["lapack"]:
        methods["(b) zgtsv"] = lapack_method(arrays)
        check("(b)", methods["(b) zgtsv"](), value, gradients, 5e-6)
    if n <= LARGEST["attention"]:
        methods["(c) attention"] = attention_method(n, gradient)
        methods["(c) attention"]()
    if library is not None:
        methods["(d) C loop"] = c_method(library, arrays, gradient)
        # Both are float32: twice the error of one.
        check("(d)", from_c(methods["(d) C loop"](), gradient), value, gradients, 1e-5)
    times = max(4, 2**15 // n)
    if n <= LARGEST["inside"]:
        run = _both if gradient else _value
        methods["rounds"] = rounds(run, arrays, gradient, times)
        methods["empty rounds"] = rounds(nothing, arrays, gradient, times)
        methods["empty call"] = rounds(nothing, arrays, gradient, 2)
        if library is not None:
            methods["C rounds"] = c_method(library, arrays, gradient, times)
    return Case(interleaved(methods), compile_seconds, memory, times)


def _three(x: float, power: int) -> str:
    """``x 10^power`` to two or three digits."""
    scaled = x * 10**power
    return f"{scaled:.3g}" if scaled < 100 else f"{scaled:.0f}"


def _ratio(times: dict[str, float], method: str, n: int) -> str:
    """Theirs over ours, or why there is none."""
    if method in times:
        return f"{_three(times[method] / times['ours'], 0)}x"
    largest, reason = {
        "(a) torch.vmap": ("torch", "overflows"),
        "(c) attention": ("attention", "too slow"),
    }.get(method, ("", ""))
    return f"({reason})" if n > LARGEST.get(largest, n) else "(absent)"


def table_row(n: int, value: Case, gradient: Case) -> str:
    """The row of one size, as docs/results has it."""
    cells = [str(n)]
    for result, per_site in ((value, True), (gradient, False)):
        ours = result.times["ours"]
        cells += [f"{_three(ours, 3)} ms", *([f"{1e9 * ours / n:.0f} ns"] if per_site else [])]
        cells += [_ratio(result.times, name, n) for name in SHOWN]
    cells.append(f"{_three(value.memory, -6)}, {_three(gradient.memory, -6)} MB")
    return f"| {' | '.join(cells)} |"


def inside_row(n: int, name: str, result: Case) -> str:
    """What of a call is the call: a row of the second table."""
    times = result.times
    inside = (times["rounds"] - times["empty rounds"]) / result.rounds
    seconds = [times["ours"], times["empty call"], inside]
    ratios = ["(absent)"] * 2
    if "C rounds" in times:
        seconds += [times["(d) C loop"], times["C rounds"] / result.rounds]
        ratios = [
            f"{_three(c / s, 0)}x" for c, s in ((seconds[3], seconds[0]), (seconds[4], inside))
        ]
    cells = [f"{_three(s, 6)} us" for s in seconds] + ["(absent)"] * (5 - len(seconds))
    return f"| {' | '.join([str(n), name, *cells, *ratios])} |"


def main() -> None:
    """Run both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="up to n = 2048 only")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help="these lengths only")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processor time of all threads: for a machine with other work on it",
    )
    options = parser.parse_args()
    if options.processor_time:
        global clock
        clock = time.process_time
    bandwidth, insides, details = copy_bandwidth(), [INSIDE_HEADER], []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        library = c_library(folder)
        for n in options.sizes or (SIZES[:3] if options.quick else SIZES):
            value, gradient = (case(n, both, library) for both in (False, True))
            print(table_row(n, value, gradient), flush=True)
            if n <= LARGEST["inside"]:
                named = {"value": value, "with gradient": gradient}
                insides += [inside_row(n, name, result) for name, result in named.items()]
            floors = (20 * BATCH * n / bandwidth, 40 * BATCH * n / bandwidth)
            solves = value.times.get("(b) zgtsv")
            details.append(
                f"{n}: floor {floors[0] / value.times['ours']:.2f}x and "
                f"{floors[1] / gradient.times['ours']:.2f}x, compilation "
                f"{value.compilation:.1f} and {gradient.compilation:.1f} s"
                + (f", LAPACK {solves / value.times['ours']:.0f}x" if solves else "")
            )
    versions = (
        f"jax {jax.__version__}, numpy {np.__version__}, torch "
        f"{torch.__version__ if torch else 'absent'}"
    )
    device = f"{jax.devices()[0].device_kind} ({jax.device_count()} device, {os.cpu_count()} cores)"
    print(
        "",
        *insides,
        "",
        *details,
        f"batch {BATCH}, copy bandwidth {bandwidth / 1e9:.1f} GB/s",
        sep="\n",
    )
    print(f"{versions}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()
