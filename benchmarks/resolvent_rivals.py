"""Tridiagonal chains, and methods (a), (b) and (d) of ``resolvent.py``: the diagonal of their
resolvent by PyTorch, LAPACK and C.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    import torch
except ImportError:
    torch = None

try:
    from scipy.linalg import lapack
except ImportError:
    lapack = None

BATCH = 8
Z = 0.3 + 0.5j


def chains(n: int) -> tuple[np.ndarray, ...]:
    """Random a, b, c (with b c > 0) and a cotangent w, float32 and complex64, ``[8, n]`` or ``[8, n
    - 1]``.
    """
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((BATCH, n)), rng.uniform(0.5, 1.5, (BATCH, n - 1))
    c = b * rng.uniform(0.8, 1.2, b.shape)
    w = rng.standard_normal((BATCH, n)) + 1j * rng.standard_normal((BATCH, n))
    return *(x.astype(np.float32) for x in (a, b, c)), w.astype(np.complex64)


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


def c_library(folder: str) -> ctypes.CDLL | None:
    """(d) compiled, or None without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    source, library = Path(__file__).with_name("resolvent.c"), Path(folder, "resolvent.so")
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


def from_c(result: tuple, gradient: bool) -> tuple:
    g, gradients = result
    return (g[:, 0] + 1j * g[:, 1]).T, tuple(x.T for x in gradients) if gradient else None
