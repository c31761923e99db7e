"""Hermitian matrices: adjoints, sandwiches, eigendecompositions that never batch LAPACK on a CPU.

Why not ``jnp.linalg.eigh`` on a stack: see :mod:`vfejax.numerics`. Here a CPU decomposes one matrix
after the other (``jax.lax.map``), under ``vmap``, too; other devices, which have no LAPACK,
decompose the stack at once. On a mesh each device decomposes its own. Eigenvalues alone of many
small matrices need no LAPACK and are found side by side, in half the time or less.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap

from vfejax.devices import by_device
from vfejax.numerics import matmul, transpose
from vfejax.quantum._eigenvalues import side_by_side
from vfejax.types import Array

__all__ = [
    "adjoint",
    "eigh",
    "eigvalsh",
    "hermitian_part",
    "packed",
    "real_dtype",
    "sandwich",
    "turned",
    "unpacked",
]

# Eigenvalues alone: the sizes and the least number of matrices that are faster side by side than
# one after the other, and how many stand side by side at least.
_MAX_LANES_SIZE = 64
_MIN_LANES = 32
_LANES, _LANE_ENTRIES = 64, 2**15


def real_dtype(x: Array) -> jnp.dtype:
    """Dtype of the real part of ``x``.

    >>> real_dtype(jnp.eye(2) + 0j)
    dtype('float32')
    """
    return jnp.finfo(x.dtype).dtype


def adjoint(x: Array) -> Array:
    """Conjugate transpose of ``x [..., k, l]``.

    >>> print(adjoint(jnp.array([[0.0, 1j], [2.0, 0.0]])).round())
    [[0.-0.j 2.-0.j]
     [0.-1.j 0.-0.j]]
    """
    return jnp.conj(transpose(x))


def hermitian_part(x: Array) -> Array:
    """``(x + x^dag) / 2`` of ``x [..., d, d]``.

    >>> print(hermitian_part(jnp.array([[0.0, 2.0], [0.0, 0.0]])))
    [[0. 1.]
     [1. 0.]]
    """
    return 0.5 * (x + adjoint(x))


def packed(x: Array) -> Array:
    """``Re h + Im h``, real, h the Hermitian part of complex ``x [..., d, d]``.

    The first is symmetric, the other antisymmetric, so that nothing is lost.
    Real linear maps of Hermitian matrices are half the work on it. Its transpose is that of the
    conjugate.

    >>> print(packed(jnp.array([[1.0, 2.0 + 3.0j], [2.0 - 3.0j, 4.0]])))
    [[ 1.  5.]
     [-1.  4.]]
    """
    real, imag = jnp.real(x), jnp.imag(x)
    return 0.5 * (real + imag + transpose(real - imag))


def unpacked(x: Array) -> Array:
    """The Hermitian matrices of :func:`packed` ones.

    >>> print(unpacked(jnp.array([[1.0, 5.0], [-1.0, 4.0]])))
    [[1.+0.j 2.+3.j]
     [2.-3.j 4.+0.j]]
    """
    flipped = transpose(x)
    return jax.lax.complex(0.5 * (x + flipped), 0.5 * (x - flipped))


def turned(x: Array, basis: Array) -> Array:
    """``(B^T x B)^T`` for real ``x [..., d, d]`` and ``basis [d, d]`` (shared) or ``[..., d, d]``:
    two tall products and one transposition where B is shared.

    >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(turned(jnp.array([[1.0, 2.0], [3.0, 4.0]]), swap))
    [[4. 2.]
     [3. 1.]]
    """

    def times(y: Array) -> Array:
        if basis.ndim > 2:
            return matmul(y, basis)
        return jnp.einsum("...ij,jk->...ik", y, basis, precision="highest")

    return times(transpose(times(x)))


def sandwich(x: Array, basis: Array) -> Array:
    """``B^dag x B`` for complex ``x [..., d, d]`` and ``basis [d, d]`` (shared) or ``[..., d, d]``;
    four real products where B is real.

    >>> swap = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(sandwich(jnp.diag(jnp.array([1.0, 2.0])) + 0j, swap).real)
    [[2. 0.]
     [0. 1.]]
    """
    if jnp.iscomplexobj(basis):
        return matmul(adjoint(basis), matmul(x, basis))

    def real_sandwich(part: Array) -> Array:
        if basis.ndim > 2:
            return matmul(transpose(basis), matmul(part, basis))
        for _ in range(2):  # x -> x^T B, twice: each is one tall product over the whole stack
            part = jnp.einsum("...ij,ik->...jk", part, basis, precision="highest")
        return part

    return jax.lax.complex(real_sandwich(jnp.real(x)), real_sandwich(jnp.imag(x)))


@sequential_vmap
def _eigh_one(matrix: Array) -> tuple[Array, Array]:
    return _eigh_stack(matrix)


def _eigh_stack(matrix: Array) -> tuple[Array, Array]:
    levels, basis = jnp.linalg.eigh(matrix)
    return levels, basis


def _nan_unless_finite(levels: Array, matrix: Array) -> Array:
    """Eigenvalues, or NaN for a matrix that is not finite: LAPACK gives NaN, cuSOLVER a number."""
    finite = jnp.all(jnp.isfinite(matrix), axis=(-2, -1))
    return jnp.where(finite[..., None], levels, jnp.nan)


def _in_turn(one_fn: Callable[[Array], Any], stack: Array) -> Any:
    flat = jax.lax.map(one_fn, jnp.reshape(stack, (-1, *stack.shape[-2:])))
    return jax.tree.map(lambda y: jnp.reshape(y, stack.shape[:-2] + y.shape[1:]), flat)


def _on_cpu(
    cpu_fn: Callable[[Array], Any], default_fn: Callable[[Array], Any], stack: Array
) -> Any:
    def of_stack(stack: Array) -> Any:
        return jax.lax.platform_dependent(stack, cpu=cpu_fn, default=default_fn)

    return by_device(of_stack, stack.shape[0])(stack)


def _eigvalsh_lanes(stack: Array) -> Array:
    """Blocks of matrices side by side, in turn, such that a block stays in a core's cache."""
    *leading, d, _ = stack.shape
    num = math.prod(leading)
    is_complex = jnp.iscomplexobj(stack)
    num_blocks = max(1, num // max(_LANES, _LANE_ENTRIES // d**2))
    lanes = -(-num // num_blocks)
    lanes += -lanes % 16
    flat = jnp.reshape(packed(stack) if is_complex else hermitian_part(stack), (num, d, d))
    padded = jnp.pad(flat, ((0, num_blocks * lanes - num), (0, 0), (0, 0)))

    def of_block(block: Array) -> Array:
        return side_by_side(jnp.moveaxis(block, 0, -1), is_complex).T

    levels = jax.lax.map(of_block, jnp.reshape(padded, (num_blocks, lanes, d, d)))
    return jnp.reshape(jnp.reshape(levels, (-1, d))[:num], (*leading, d))


@jax.custom_batching.custom_vmap
def _eigvalsh(matrix: Array) -> Array:
    if matrix.ndim == 2:
        return jnp.linalg.eigvalsh(matrix)
    few = math.prod(matrix.shape[:-2]) < _MIN_LANES
    if few or not 1 <= matrix.shape[-1] <= _MAX_LANES_SIZE:
        return _on_cpu(partial(_in_turn, jnp.linalg.eigvalsh), jnp.linalg.eigvalsh, matrix)
    return _on_cpu(_eigvalsh_lanes, jnp.linalg.eigvalsh, matrix)


@_eigvalsh.def_vmap
def _eigvalsh_of_more(axis_size: int, batched: list[bool], matrix: Array) -> tuple[Array, bool]:
    return _eigvalsh(matrix), True


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues ``w [..., d]``, ascending, and eigenvectors ``V [..., d, d]`` of the Hermitian
    part of ``matrix [..., d, d]``.

    Not to be differentiated: the functions built on it have rules of their own, which divide by no
    difference of eigenvalues. A matrix that is not finite has NaN for its own eigenvalues alone.
    Policies of ``jax.checkpoint`` know both by the name "eigh".

    >>> levels, basis = eigh(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    >>> print(levels.round(4))
    [-1.  1.]
    """
    if matrix.ndim == 2:
        levels, basis = _eigh_one(matrix)
    else:
        levels, basis = _on_cpu(partial(_in_turn, _eigh_one), _eigh_stack, matrix)
    levels = _nan_unless_finite(levels, matrix)
    return checkpoint_name(levels, "eigh"), checkpoint_name(basis, "eigh")


def eigvalsh(matrix: Array) -> Array:
    """Eigenvalues ``[..., d]``, ascending, of the Hermitian part of ``matrix [..., d, d]``. Not to
    be differentiated, see :func:`eigh`.

    >>> print(eigvalsh(jnp.array([[0.0, 1.0], [1.0, 0.0]])).round(4))
    [-1.  1.]
    """
    return _nan_unless_finite(_eigvalsh(matrix), matrix)
