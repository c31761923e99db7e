"""Low-rank factorisation: a kernel as a product of two narrow ones.

The best factors of rank r of a kernel W ``[n, m]`` that reads inputs x with second moments C are

    min E |x (W - A B)|^2,    B = V_r^T,  A = W V_r,

with the r leading eigenvectors V_r of ``W^T C W``; with C = 1 this is the truncated singular value
decomposition. All is computed on the host, in float64: batched decompositions in a compiled program
for a CPU can hang (docs/design/README.md).

Source: Eckart and Young, The approximation of one matrix by another of lower rank (1936); with
moments, Wang et al., SVD-LLM (2024), without the inverse of the moments that they need.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["Factors", "factorize", "product", "rank_for_bytes", "rank_for_energy", "spectrum"]


class Factors(NamedTuple):
    """``left [..., n, r]`` and ``right [..., r, m]`` of a kernel ``[..., n, m]``; a column of the
    one and the row of the other that it is multiplied with are equally long.
    """

    left: Array
    right: Array


def product(factors: Factors) -> Array:
    """The kernel of the factors, ``[..., n, m]``.

    >>> product(Factors(jnp.ones((2, 1)), jnp.ones((1, 3)))).shape
    (2, 3)
    """
    return matmul(factors.left, factors.right)


def _squares(
    kernel: np.ndarray, moments: Array | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """``W^T C W``, in float64, and None. Of a kernel with fewer rows than columns the same in an
    orthonormal basis of its rows, a smaller matrix, and that basis ``[..., m, n]``.
    """
    for name, x in (("kernel", kernel), ("moments", moments)):
        if x is not None and not np.all(np.isfinite(x)):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    needed = (*kernel.shape[:-1], kernel.shape[-2])
    if moments is not None and moments.shape != needed:
        raise ValueError(f"moments must be {needed} to fit the kernel, got {moments.shape}")
    basis, rows = None, np.swapaxes(kernel, -1, -2)
    if kernel.shape[-2] < kernel.shape[-1]:
        basis, rows = np.linalg.qr(rows)
    weighed = rows if moments is None else rows @ np.asarray(moments, np.float64)
    return weighed @ np.swapaxes(rows, -1, -2), basis


def spectrum(kernel: Array, moments: Array | None = None) -> np.ndarray:
    """Energies of the directions of a kernel's output, ``E |x W v_i|^2``, falling; with unit
    moments, the squares of its singular values.

    Args:
        kernel: W, ``[..., n, m]``.
        moments: C, ``[..., n, n]``; None for the unit matrix.

    Returns:
        float64 ``[..., min(n, m)]``.

    Raises:
        ValueError: for moments that do not fit, and for numbers that are not finite.

    >>> spectrum(jnp.diag(jnp.asarray([1.0, 3.0]))).round(6).tolist()
    [9.0, 1.0]
    """
    wide = np.asarray(kernel, np.float64)
    energies = np.linalg.eigvalsh(_squares(wide, moments)[0])[..., ::-1]
    # What rounding leaves of an eigenvalue 0 may be negative.
    energies = np.where(energies < 0, 0.0, energies)
    return energies[..., : min(wide.shape[-2:])]


def factorize(kernel: Array, rank: int, moments: Array | None = None) -> Factors:
    """The best factors of a rank.

    Args:
        kernel: W, ``[..., n, m]``.
        rank: r, at most the smaller of n and m.
        moments: second moments C of what it reads, ``[..., n, n]``; None for the unit matrix.

    Returns:
        The factors, of the dtype of the kernel.

    Raises:
        ValueError: for a rank or for moments that do not fit, and for numbers that are not finite.

    >>> kernel = jnp.asarray([[1.0, 2.0], [2.0, 4.0]])
    >>> bool(jnp.allclose(product(factorize(kernel, 1)), kernel, atol=1e-6))
    True
    """
    if not 1 <= rank <= min(kernel.shape[-2:]):
        raise ValueError(f"rank must lie between 1 and {min(kernel.shape[-2:])}, got {rank}")
    wide = np.asarray(kernel, np.float64)
    squares, basis = _squares(wide, moments)
    vectors = np.linalg.eigh(squares)[1][..., ::-1][..., :rank]
    vectors = vectors if basis is None else basis @ vectors
    left = wide @ vectors
    lengths = np.linalg.norm(left, axis=-2, keepdims=True)
    # Each factor takes the root of what both amount to, so that neither has the larger numbers.
    roots = np.sqrt(np.where(lengths <= 0, 1.0, lengths))
    right = np.swapaxes(vectors * roots, -1, -2)
    return Factors(jnp.asarray(left / roots, kernel.dtype), jnp.asarray(right, kernel.dtype))


def rank_for_energy(energies: np.ndarray, share: float) -> int:
    """The smallest rank that keeps this share of the energy of every kernel.

    Args:
        energies: of :func:`spectrum`, ``[..., k]``.
        share: above 0 and at most 1.

    Raises:
        ValueError: for a share beyond.

    >>> rank_for_energy(np.asarray([9.0, 1.0]), 0.9), rank_for_energy(np.asarray([9.0, 1.0]), 0.91)
    (1, 2)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and be at most 1, got {share}")
    sums = np.cumsum(energies, axis=-1)
    enough = sums >= share * sums[..., -1:]
    return int(np.max(np.argmax(enough, axis=-1))) + 1


def rank_for_bytes(shape: tuple[int, ...], ratio: float) -> int:
    """The largest rank whose factors take at most this share of the kernel's bytes; 0 when there is
    none.

    Args:
        shape: of the kernel, ``[..., n, m]``.
        ratio: at most 1.

    Raises:
        ValueError: for a ratio beyond.

    >>> rank_for_bytes((128, 128), 0.5)
    32
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie above 0 and be at most 1, got {ratio}")
    n, m = shape[-2:]
    return int(ratio * n * m / (n + m))
