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
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.spectral import resolvent

try:
    import torch
except ImportError:
    torch = None

try:
    from scipy.linalg import lapack
except ImportError:
    lapack = None

clock = time.perf_counter  # or time.process_time, by an option
BATCH = 8
WIDTH = 64
Z = 0.3 + 0.5j
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

C_SOURCE = """
#include <stddef.h>
enum { B = 8 };
typedef float lanes[B];
typedef lanes complex_lanes[2];

static inline void ratio(const float *a, const float *k, lanes *g, float zr, float zi, lanes *out) {
    for (int l = 0; l < B; l++) {
        float wr = a[l] - zr - k[l] * g[0][l], wi = -zi - k[l] * g[1][l];
        float s = 1.0f / (wr * wr + wi * wi);
        out[0][l] = wr * s;
        out[1][l] = -wi * s;
    }
}

void forward(ptrdiff_t n, const lanes *a, const lanes *b, const lanes *c, float zr, float zi,
             lanes *k, complex_lanes *left, complex_lanes *right, complex_lanes *g) {
    for (int l = 0; l < B; l++) k[0][l] = k[n][l] = 0;  /* k[i] couples i - 1 and i */
    for (ptrdiff_t i = 1; i < n; i++)
        for (int l = 0; l < B; l++) k[i][l] = b[i - 1][l] * c[i - 1][l];
    complex_lanes u = {{0}}, v = {{0}};
    for (ptrdiff_t i = 0; i < n; i++) {
        ptrdiff_t j = n - 1 - i;
        ratio(a[i], k[i], u, zr, zi, u);
        ratio(a[j], k[j + 1], v, zr, zi, v);
        for (int p = 0; p < 2; p++)
            for (int l = 0; l < B; l++) left[i][p][l] = u[p][l], right[j][p][l] = v[p][l];
    }
    for (ptrdiff_t i = 0; i < n; i++)
        for (int l = 0; l < B; l++) {
            float wr = a[i][l] - zr, wi = -zi;
            if (i) wr -= k[i][l] * left[i - 1][0][l], wi -= k[i][l] * left[i - 1][1][l];
            if (i < n - 1) {
                wr -= k[i + 1][l] * right[i + 1][0][l];
                wi -= k[i + 1][l] * right[i + 1][1][l];
            }
            float s = 1.0f / (wr * wr + wi * wi);
            g[i][0][l] = wr * s;
            g[i][1][l] = -wi * s;
        }
}

static inline void adjoint(lanes *w, lanes *g, const float *k, lanes *r, lanes *s) {
    for (int l = 0; l < B; l++) {
        float gr = g[0][l] * g[0][l] - g[1][l] * g[1][l], gi = 2 * g[0][l] * g[1][l];
        float hr = k[l] * (r[0][l] * r[0][l] - r[1][l] * r[1][l]);
        float hi = k[l] * 2 * r[0][l] * r[1][l];
        float sr = w[0][l] * gr - w[1][l] * gi + hr * s[0][l] - hi * s[1][l];
        s[1][l] = w[0][l] * gi + w[1][l] * gr + hr * s[1][l] + hi * s[0][l];
        s[0][l] = sr;
    }
}

void backward(ptrdiff_t n, const lanes *b, const lanes *c, const lanes *k, complex_lanes *left,
              complex_lanes *right, complex_lanes *g, complex_lanes *w, complex_lanes *sl,
              complex_lanes *sr, lanes *da, lanes *db, lanes *dc) {
    complex_lanes u = {{0}}, v = {{0}};
    for (ptrdiff_t i = 0; i < n; i++) {
        ptrdiff_t j = n - 1 - i;
        adjoint(w[i], g[i], k[i], right[i], u);
        adjoint(w[j], g[j], k[j + 1], left[j], v);
        for (int p = 0; p < 2; p++)
            for (int l = 0; l < B; l++) sl[i][p][l] = u[p][l], sr[j][p][l] = v[p][l];
    }
    for (ptrdiff_t i = 0; i < n; i++)
        for (int l = 0; l < B; l++) {
            float gr = g[i][0][l] * g[i][0][l] - g[i][1][l] * g[i][1][l];
            float gi = 2 * g[i][0][l] * g[i][1][l];
            da[i][l] = w[i][0][l] * gr - w[i][1][l] * gi - sl[i][0][l] - sr[i][0][l];
        }
    for (ptrdiff_t i = 0; i < n - 1; i++)
        for (int l = 0; l < B; l++) {
            float dk = right[i + 1][0][l] * sl[i][0][l] - right[i + 1][1][l] * sl[i][1][l]
                     + left[i][0][l] * sr[i + 1][0][l] - left[i][1][l] * sr[i + 1][1][l];
            db[i][l] = c[i][l] * dk;
            dc[i][l] = b[i][l] * dk;
        }
}

void run(int times, int gradient, ptrdiff_t n, const lanes *a, const lanes *b, const lanes *c,
         float zr, float zi, lanes *k, complex_lanes *left, complex_lanes *right, complex_lanes *g,
         complex_lanes *w, complex_lanes *sl, complex_lanes *sr, lanes *da, lanes *db, lanes *dc) {
    for (; times > 0; times--) {
        forward(n, a, b, c, zr, zi, k, left, right, g);
        if (gradient) backward(n, b, c, k, left, right, g, w, sl, sr, da, db, dc);
    }
}
"""


def chains(n: int) -> tuple[np.ndarray, ...]:
    """Random a, b, c (with b c > 0) and a cotangent w, float32 and complex64, ``[8, n]`` or ``[8, n
    - 1]``.
    """
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((BATCH, n)), rng.uniform(0.5, 1.5, (BATCH, n - 1))
    c = b * rng.uniform(0.8, 1.2, b.shape)
    w = rng.standard_normal((BATCH, n)) + 1j * rng.standard_normal((BATCH, n))
    return *(x.astype(np.float32) for x in (a, b, c)), w.astype(np.complex64)


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


def theta_phi(a, b, c):
    """(a): one chain, ``G_ii = theta_i phi_i / theta_n``, site by site."""
    d, k, n = a - Z, b * c, a.shape[0]
    theta, phi = [torch.ones_like(d[0]), d[0]], [torch.ones_like(d[0]), d[n - 1]]
    for i in range(1, n):
        theta.append(d[i] * theta[-1] - k[i - 1] * theta[-2])
    for i in range(n - 2, -1, -1):
        phi.append(d[i] * phi[-1] - k[i] * phi[-2])
    return torch.stack(theta[:-1]) * torch.stack(phi[:-1]).flip(0) / theta[-1]


def torch_method(arrays: tuple[np.ndarray, ...], gradient: bool) -> Callable[[], tuple]:
    """(a), with autograd for the gradient."""
    a, b, c = (torch.tensor(x, dtype=torch.complex128, requires_grad=gradient) for x in arrays[:3])
    # PyTorch's cotangent is the conjugate of JAX's.
    w = torch.tensor(arrays[3].conj(), dtype=torch.complex128)

    def run():
        with torch.set_grad_enabled(gradient):
            value = torch.vmap(theta_phi)(a, b, c)
        gradients = torch.autograd.grad(value, (a, b, c), w) if gradient else None
        return value.detach().numpy(), gradients and tuple(x.numpy().real for x in gradients)

    return run


def lapack_method(arrays: tuple[np.ndarray, ...]) -> Callable[[], tuple]:
    """(b): the whole inverse, column by column, for its diagonal."""
    a, b, c = (x.astype(np.complex128) for x in arrays[:3])
    identity = np.eye(a.shape[-1], dtype=np.complex128, order="F")

    def run():
        return np.stack(
            [np.diagonal(lapack.zgtsv(c[i], a[i] - Z, b[i], identity)[3]) for i in range(BATCH)]
        ), None

    return run


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


def c_library(folder: str) -> ctypes.CDLL | None:
    """(d) compiled, or None without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, library = Path(folder, "resolvent.c"), Path(folder, "resolvent.so")
    source.write_text(C_SOURCE)
    flags = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def _pointer(array: np.ndarray):
    """A pointer that keeps its array alive."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def c_method(
    library: ctypes.CDLL, arrays: tuple[np.ndarray, ...], gradient: bool, times: int = 1
) -> Callable[[], tuple]:
    """(d), ``times`` times: inputs laid out for it before the clock starts, outputs turned back
    only where they are checked.
    """
    n = arrays[0].shape[-1]
    a, b, c = (np.ascontiguousarray(x.T) for x in arrays[:3])
    w = np.ascontiguousarray(np.stack([arrays[3].T.real, arrays[3].T.imag], 1))
    k, da, db, dc = np.zeros((n + 1, BATCH), np.float32), *(np.zeros_like(x) for x in (a, b, c))
    left, right, g, sl, sr = (np.zeros((n, 2, BATCH), np.float32) for _ in range(5))

    shift = ctypes.c_float(Z.real), ctypes.c_float(Z.imag)
    buffers = map(_pointer, (k, left, right, g, w, sl, sr, da, db, dc))
    inputs = ctypes.c_ssize_t(n), *map(_pointer, (a, b, c)), *shift
    arguments = ctypes.c_int(times), ctypes.c_int(gradient), *inputs, *buffers

    def run():
        library.run(*arguments)
        return g, (da, db, dc)

    return run


def _from_c(result: tuple, gradient: bool) -> tuple:
    g, gradients = result
    return (g[:, 0] + 1j * g[:, 1]).T, tuple(x.T for x in gradients) if gradient else None


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
        check("(d)", _from_c(methods["(d) C loop"](), gradient), value, gradients, 1e-5)
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
