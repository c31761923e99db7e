"""Density matrices that evolve under one Hamiltonian, what a benchmark and a claim both time."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.quantum.density import GOLDEN_RATIO


class Problem(NamedTuple):
    """States, Hamiltonian, time steps, and a Hermitian cotangent of the evolved states."""

    rho: np.ndarray
    hamiltonian: np.ndarray
    dt: np.ndarray
    cotangent: np.ndarray


class Method(NamedTuple):
    """Compiled forward pass and forward with gradient, the latter's seconds of compilation and
    bytes of temporary memory.
    """

    forward: Callable[[], object]
    both: Callable[[], object]
    seconds: float
    memory: int


def adjoint(x):
    return x.conj().swapaxes(-1, -2)


def problem(d: int, num: int) -> Problem:
    """Mixed states, and H and dt as the transformer has them at the start of training; complex64
    and float32.
    """
    rng = np.random.default_rng(1000 * d + num)

    def gaussian(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)

    root, w = gaussian(num, d, d), gaussian(num, d, d)
    rho = root @ adjoint(root)
    rho = 0.5 * (rho + adjoint(rho)) / np.trace(rho, axis1=-2, axis2=-1)[:, None, None]
    h = np.tril(rng.standard_normal((d, d)))
    h = h + np.tril(h, -1).T
    dt = GOLDEN_RATIO**-5 * rng.uniform(1.0, GOLDEN_RATIO, num)
    single = np.complex64
    return Problem(
        rho.astype(single),
        h.astype(np.float32),
        dt.astype(np.float32),
        (w + adjoint(w)).astype(single),
    )


def compiled(run: Callable, *arrays) -> tuple[Callable[[], object], float, int]:
    """The compiled call on these arrays, its seconds of compilation and bytes of temporary
    memory.
    """
    start = time.perf_counter()
    call = jax.jit(run).lower(*arrays).compile()
    seconds = time.perf_counter() - start
    inputs = jax.tree.map(jnp.asarray, arrays)
    memory = call.memory_analysis().temp_size_in_bytes
    return (lambda: jax.block_until_ready(call(*inputs))), seconds, memory


def method(evolve_fn: Callable, inputs: Problem) -> Method:
    """An evolution and its gradient."""

    def both(rho, hamiltonian, dt, cotangent):
        value, pull_back = jax.vjp(evolve_fn, rho, hamiltonian, dt)
        return value, pull_back(cotangent)

    forward, _, _ = compiled(evolve_fn, *inputs[:3])
    return Method(forward, *compiled(both, *inputs))
