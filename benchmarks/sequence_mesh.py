"""Sequences and plates that devices share: memory of each device and error against one device.

    python benchmarks/sequence_mesh.py [--quick] [--double]

resolvent    diagonal of the resolvent of 131,072 sites with its gradient (spectral.mesh)
sweep        gL and the causal sweep of 131,072 sites with 8 channels, with the gradient
attention    toroidal attention of 1024 tokens in two platters around a ring of devices, causal,
             with the gradient (attention.ring)
hidden       smoother of a hidden Markov chain of 131,072 observations and 5 states, with the
             gradient (inference.chains.mesh)
roots        square-root filter of 131,072 observations of 2 states, with the gradient
             (inference.chains.mesh)
mixture      a sweep of message passing over a mixture of 131,072 points
             (inference.message_passing.sharding)

The devices are host devices of one process. "one" is the form without a mesh, on one device: for
attention the dense one. Bytes are arguments, results and temporary memory of the compiled program
on each device, as XLA counts them. "message" is the largest array that a device sends at once.
Errors are the largest of all results and gradients, relative to the largest number of each array,
against the form without a mesh in float64, from the same numbers.
"work" is processor time, of all devices together, in units of that of the form without a mesh: both
are called in turns, and the least of several calls counts. It says more than time, since host
devices share the cores of the machine.
"""

import argparse
import os
import platform
import re
import time
from collections.abc import Callable
from typing import Any

COUNTS = (1, 2, 4, 8)
WIDTHS = (8, 12, 8, 9, 10, 7)
os.environ["JAX_NUM_CPU_DEVICES"] = str(COUNTS[-1])
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402 (the number of devices comes first)
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from vfejax.attention.ring import ring  # noqa: E402
from vfejax.attention.toroidal import dense, toroidal_attention  # noqa: E402
from vfejax.inference.chains import mesh as chains_mesh  # noqa: E402
from vfejax.inference.chains.hidden_markov import HiddenMarkov, hidden_markov_smoother  # noqa: E402
from vfejax.inference.chains.linear_gaussian import LinearGaussian  # noqa: E402
from vfejax.inference.chains.square_root import square_root_filter  # noqa: E402
from vfejax.inference.message_passing.sharding import shardings  # noqa: E402
from vfejax.inference.worked_models.mixture import gaussian_mixture  # noqa: E402
from vfejax.spectral.gates import tridiagonal_sweep  # noqa: E402
from vfejax.spectral.mesh import over_mesh  # noqa: E402
from vfejax.spectral.resolvent import resolvent_diagonal  # noqa: E402

AXIS = "sequence"
Run = Callable[..., Any]
Task = Callable[[Mesh | None, int, str], tuple[Run, tuple, Any]]


def with_gradient(function: Run) -> Run:
    """Results, and the gradient of a scalar made of them."""

    def loss(*arrays: jax.Array) -> tuple[jax.Array, Any]:
        found = function(*arrays)
        leaves = jax.tree.leaves(found)
        return sum(jnp.sum(jnp.sin(x.real)) + jnp.sum(jnp.sin(x.imag)) for x in leaves), found

    def run(*arrays: jax.Array) -> Any:
        (_, found), slope = jax.value_and_grad(loss, range(len(arrays)), has_aux=True)(*arrays)
        return found, slope

    return run


def drawn(dtype: str, *shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def resolvent(mesh: Mesh | None, n: int, dtype: str) -> tuple[Run, tuple, Any]:
    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        return resolvent_diagonal(a, b[1:], b[1:], 0.1 + 0.5j)

    def many(a: jax.Array, b: jax.Array) -> jax.Array:
        return over_mesh(mesh, AXIS).resolvent_diagonal(a, b, b, 0.1 + 0.5j)

    return with_gradient(many if mesh else one), tuple(drawn(dtype, (n,), (n,))), P(AXIS)


def sweep(mesh: Mesh | None, n: int, dtype: str) -> tuple[Run, tuple, Any]:
    a, b, c, x = drawn(dtype, (n,), (n,), (n,), (n, 8))
    swept = over_mesh(mesh, AXIS).tridiagonal_sweep if mesh else tridiagonal_sweep
    # Gates that remember some hundred sites.
    b, c = -0.2 * jnp.abs(jnp.tanh(b)), -jnp.exp(-0.01 * jnp.abs(c))
    arrays = 1.0 + jnp.abs(b * c) + 0.01 * jnp.abs(a), b, c, x
    return with_gradient(lambda *arrays: tuple(swept(*arrays))), arrays, P(AXIS)


def attention(mesh: Mesh | None, n: int, dtype: str) -> tuple[Run, tuple, Any]:
    shape, method = (1, n // 128, 4, 16), ring(mesh, AXIS) if mesh else dense

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return toroidal_attention(
            q, k, v, depth=2, slope=1.0, circumference=n // 128, causal=True, method=method
        )

    return with_gradient(attend), tuple(drawn(dtype, shape, shape, shape)), P(None, AXIS)


def hidden(mesh: Mesh | None, n: int, dtype: str) -> tuple[Run, tuple, Any]:
    rows, weights = drawn(dtype, (n, 5), (5, 5))
    transition = jnp.exp(weights) / jnp.sum(jnp.exp(weights), axis=0, keepdims=True)
    model = HiddenMarkov(jnp.full((5,), 0.2, dtype), transition)
    passes = {"passes": chains_mesh.over_mesh(mesh, AXIS).discrete} if mesh else {}

    def smooth(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = hidden_markov_smoother(model, rows, **passes)
        return found.probabilities, found.log_evidence / n

    return with_gradient(smooth), (rows,), P(AXIS)


def roots(mesh: Mesh | None, n: int, dtype: str) -> tuple[Run, tuple, Any]:
    (values,) = drawn(dtype, (n, 1))
    turn = 0.95 * jnp.asarray([[0.8, -0.6], [0.6, 0.8]], dtype)
    eye, one = jnp.eye(2, dtype=dtype), jnp.eye(1, dtype=dtype)
    model = LinearGaussian(eye[0], eye, turn, 0.1 * eye, jnp.ones((1, 2), dtype), one)
    passes = {"passes": chains_mesh.over_mesh(mesh, AXIS).square_root} if mesh else {}

    def run(values: jax.Array) -> tuple[jax.Array, ...]:
        found = square_root_filter(model, values, **passes)
        return found.mean, found.chol, found.log_evidence / n

    return with_gradient(run), (values,), P(AXIS)


def mixture(mesh: Mesh | None, n: int, dtype: str) -> tuple[Run, tuple, Any]:
    method, (points,) = gaussian_mixture(n, 2, 4), drawn(dtype, (n, 2))
    data = {"point": points + 4.0 * jnp.sign(points)}
    inputs = jax.jit(method.init)(jax.random.key(0), data), data
    if mesh is None:
        return method.sweep, inputs, None
    local = ("label", "point")
    return method.sweep, inputs, [shardings(method.model, x, local, mesh, AXIS) for x in inputs]


TASKS: dict[str, Task] = {
    "resolvent": resolvent,
    "sweep": sweep,
    "attention": attention,
    "hidden": hidden,
    "roots": roots,
    "mixture": mixture,
}


def compiled(mesh: Mesh | None, task: Task, n: int, dtype: str) -> tuple[Any, tuple]:
    """The program, and its inputs where they belong."""
    run, inputs, places = task(mesh, n, dtype)
    if mesh is not None:
        places = NamedSharding(mesh, places) if isinstance(places, P) else tuple(places)
        inputs = jax.device_put(inputs, places)
    return jax.jit(run).lower(*inputs).compile(), inputs


def bytes_of(program: Any) -> int:
    found = program.memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def largest_message(program: Any) -> int:
    """Bytes of the largest array that the devices exchange."""
    kinds = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
    sizes = [0]
    for results in re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", program.as_text()):
        for bits, shape in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", results):
            size = np.prod([int(x) for x in shape.split(",") if x])
            sizes.append(int(bits) // 8 * int(size))
    return max(sizes)


def in_double(x: jax.Array) -> jax.Array:
    return x.astype("float64") if jnp.issubdtype(x.dtype, jnp.floating) else x


def error(found: Any, expected: Any) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(x - y)) / np.max(np.abs(y))) for x, y in pairs)


def work(calls: list[tuple[Any, tuple]], rounds: int = 9) -> list[float]:
    """Least processor time of each call in seconds; they take turns."""
    found = [np.inf] * len(calls)
    for _ in range(rounds):
        for i, (program, inputs) in enumerate(calls):
            since = time.process_time()
            jax.block_until_ready(program(*inputs))
            found[i] = min(found[i], time.process_time() - since)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="Small sequences.")
    parser.add_argument("--double", action="store_true", help="float64 in place of float32.")
    parser.add_argument("--task", choices=list(TASKS), help="One of them only.")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    n, dtype = 4096 if options.quick else 131_072, "float64" if options.double else "float32"
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"jax {jax.__version__}, {machine}, {n} sites, {dtype}")
    titles = ("devices", "bytes each", "of one", "message", "error", "work")
    columns = zip(titles, WIDTHS, strict=True)
    print(" " * 12 + "".join(f"{title:>{width}}" for title, width in columns))
    for name, task in TASKS.items():
        if options.task not in (None, name):
            continue
        one, inputs = compiled(None, task, n, dtype)
        exact = jax.tree.map(in_double, inputs)
        expected = jax.device_get(jax.jit(task(None, n, "float64")[0])(*exact))
        whole, own = bytes_of(one), error(jax.device_get(one(*inputs)), expected)
        print(f"{name:12}{'one':>8}{whole:12,}{1:8.3f}{'':9}{own:10.1e}{1:7.2f}", flush=True)
        for count in COUNTS:
            devices = jax.devices()[:count]
            mesh = jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=devices)
            program, placed = compiled(mesh, task, n, dtype)
            found = jax.device_get(program(*placed))
            each, message = bytes_of(program), largest_message(program)
            ours, theirs = work([(program, placed), (one, inputs)])
            line = f"{'':12}{count:8}{each:12,}{each / whole:8.3f}{message:9,}"
            print(f"{line}{error(found, expected):10.1e}{ours / theirs:7.2f}", flush=True)


if __name__ == "__main__":
    main()
