"""Methods (a) to (c) of ``agents.py``: the alignment energy of a population in NumPy, and in
PyTorch by its pairs and in the common frame.
"""

from collections.abc import Callable

import jax
import numpy as np

from vfejax.geometry import irreps

try:
    import torch
except ImportError:
    torch = None

TEMPERATURE = 10.0
# PyTorch runs where JAX runs.
CUDA = torch is not None and jax.default_backend() == "gpu" and torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
SPINS = {3: (1,), 9: (1, 1, 1)}
# The largest n each method is asked for: beyond it takes more than 8 GB or about 20 s.
LARGEST = {"numpy": {3: 2048, 9: 512}, "batched": {3: 512, 9: 512}, "common": {3: 8192, 9: 8192}}


def _numpy_frames(phi: np.ndarray, k: int) -> np.ndarray:
    x = np.einsum("na,akl->nkl", phi, irreps.so3_generators(SPINS[k]))
    angle = np.linalg.norm(phi, axis=-1)[:, None, None]
    return np.eye(k) + np.sin(angle) / angle * x + (1 - np.cos(angle)) / angle**2 * (x @ x)


def numpy_pairs(arrays: tuple[np.ndarray, ...], k: int) -> Callable[[], tuple]:
    """(a): every transported covariance formed, the energy only."""
    mean, chol, phi = arrays

    def energy():
        u = _numpy_frames(phi, k).astype(np.float32)
        omega = u[:, None] @ np.swapaxes(u, -1, -2)[None]
        cov = chol @ np.swapaxes(chol, -1, -2)
        moved = omega @ cov[None] @ np.swapaxes(omega, -1, -2)
        inverse = np.linalg.inv(moved)
        delta = np.einsum("ijkl,jl->ijk", omega, mean) - mean[:, None]
        log_det = 2 * np.log(np.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
        kl = np.einsum("ijkl,ilk->ij", inverse, cov) + np.einsum(
            "ijk,ijkl,ijl->ij", delta, inverse, delta
        )
        kl = 0.5 * (kl - k + log_det[None] - log_det[:, None])
        logits = -kl / TEMPERATURE
        np.fill_diagonal(logits, -np.inf)
        beta = np.exp(logits - logits.max(1, keepdims=True))
        return float((beta * kl).sum(1) @ (1 / beta.sum(1))), None

    return energy


def _torch_frames(phi, generators):
    return torch.linalg.matrix_exp(torch.einsum("na,akl->nkl", phi, generators))


def _torch_alignment(kl):
    diagonal = torch.eye(len(kl), dtype=torch.bool, device=DEVICE)
    logits = (-kl / TEMPERATURE).masked_fill(diagonal, -torch.inf)
    return (torch.softmax(logits, 1) * kl).sum()


def _torch_method(kl_fn, arrays: tuple[np.ndarray, ...], k: int) -> Callable[[], tuple]:
    leaves = [torch.tensor(x, requires_grad=True, device=DEVICE) for x in arrays]
    generators = torch.tensor(irreps.so3_generators(SPINS[k]), dtype=torch.float32, device=DEVICE)

    def value_and_grad():
        energy = _torch_alignment(kl_fn(*leaves, generators))
        gradient = torch.autograd.grad(energy, leaves)
        if CUDA:
            torch.cuda.synchronize()
        return energy.item(), gradient

    return value_and_grad


def batched_kl(mean, chol, phi, generators):
    """(b): the textbook form, one transported Gaussian per pair."""
    u = _torch_frames(phi, generators)
    omega = u[:, None] @ u.mT[None]
    factor = torch.linalg.cholesky(omega @ (chol @ chol.mT)[None] @ omega.mT)
    delta = torch.einsum("ijkl,jl->ijk", omega, mean) - mean[:, None]
    columns = torch.cat([chol[:, None].expand_as(factor), delta[..., None]], -1)
    whitened = torch.linalg.solve_triangular(factor, columns, upper=False)
    log_det = 2 * torch.diagonal(chol, dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (
        whitened.square().sum((-2, -1)) - mean.shape[-1] + log_det[None] - log_det[:, None]
    )


def common_kl(mean, chol, phi, generators):
    """(c): every belief rotated once into the common frame, then one product of features."""
    k = mean.shape[-1]
    u = _torch_frames(phi, generators)
    m = (u.mT @ mean[..., None])[..., 0]
    m = m - m.mean(0, keepdim=True).detach()
    factor = u.mT @ chol
    inverse = torch.linalg.solve_triangular(chol, u, upper=False)
    precision = inverse.mT @ inverse
    second = factor @ factor.mT + m[..., :, None] * m[..., None, :]
    information = (precision @ m[..., None])[..., 0]
    log_det = 2 * torch.diagonal(chol, dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
    rows, columns = torch.tril_indices(k, k, device=DEVICE)
    double = 2.0 - (rows == columns).float()
    one = torch.ones_like(log_det)
    left = torch.cat([second[:, rows, columns] * double, -2 * m, one, -log_det - k], -1)
    right = torch.cat(
        [
            precision[:, rows, columns],
            information,
            (m * information).sum(-1, keepdim=True) + log_det,
            one,
        ],
        -1,
    )
    return 0.5 * left @ right.T


def rivals(num: int, k: int, arrays: tuple[np.ndarray, ...]) -> dict[str, Callable[[], tuple]]:
    """The methods that fit at this size, each returning its energy and gradient."""
    found = {}
    if num <= LARGEST["numpy"][k]:
        found["(a) numpy, value"] = numpy_pairs(arrays, k)
    if torch is not None and num <= LARGEST["batched"][k]:
        found["(b) torch, pairs"] = _torch_method(batched_kl, arrays, k)
    if torch is not None and num <= LARGEST["common"][k]:
        found["(c) torch, common"] = _torch_method(common_kl, arrays, k)
    return found
