"""Hermitian matrices: adjoints, products at full precision, eigendecompositions that never batch
LAPACK on a CPU.

Why not ``jnp.linalg.eigh`` on a stack: see :mod:`vfejax.numerics`. Here a CPU decomposes one matrix
after the other (``jax.lax.map``), under ``vmap``, too; other devices, which have no LAPACK,
decompose the stack at once.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from vfejax.numerics import transpose
from vfejax.types import Array

__all__ = [
    "adjoint",
    "align",
    "check_square",
    "common_shape",
    "eigh",
    "eigvalsh",
    "hermitian_part",
    "matmul",
    "prepare_evolution",
    "real_dtype",
    "reduce_to",
    "sandwich",
    "time_step",
]


def real_dtype(x: Array) -> jnp.dtype:
    """Dtype of the real part of ``x``."""
    return jnp.finfo(x.dtype).dtype


def adjoint(x: Array) -> Array:
    """Conjugate transpose of ``x [..., k, l]``."""
    return jnp.conj(transpose(x))


def hermitian_part(x: Array) -> Array:
    """``(x + x^dag) / 2`` of ``x [..., d, d]``."""
    return 0.5 * (x + adjoint(x))


def matmul(left: Array, right: Array) -> Array:
    """Matrix product at full precision on every device."""
    return jnp.matmul(left, right, precision="highest")


def sandwich(x: Array, basis: Array) -> Array:
    """``B^dag x B`` for complex ``x [..., d, d]`` and ``basis [d, d]`` (shared) or ``[..., d, d]``;
    four real products where B is real.
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


def align(x: Array, rank: int, core: int) -> Array:
    """``x`` with axes of length 1 in front, so that ``rank`` axes precede its last ``core``."""
    return jnp.reshape(x, (1,) * (rank + core - x.ndim) + x.shape)


def reduce_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum of ``x`` over the axes on which ``shape``, of the same rank, has length 1: the transpose
    of broadcasting.
    """
    axes = tuple(
        i for i, (have, want) in enumerate(zip(x.shape, shape, strict=True)) if have != want
    )
    return jnp.sum(x, axis=axes, keepdims=True)


def check_square(name: str, x: Array) -> None:
    """Raise ValueError unless ``x`` is ``[..., d, d]`` of a real or complex floating dtype."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2] or x.shape[-1] == 0:
        raise ValueError(f"{name} must be square matrices [..., d, d], got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(f"{name} must be of a real or complex floating dtype, got {x.dtype}")


def time_step(dt: Array | float, hamiltonian: Array) -> Array:
    """``dt`` as a real array in the precision of ``hamiltonian``; ValueError for anything that is
    not real.
    """
    dt = jnp.asarray(dt)
    if jnp.iscomplexobj(dt) or dt.dtype == bool:
        raise ValueError(f"dt must be real, got {dt.dtype}")
    return dt.astype(real_dtype(hamiltonian))


def common_shape(**leads: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast shape of the named leading shapes; ValueError when they do not fit."""
    try:
        return jnp.broadcast_shapes(*leads.values())
    except ValueError as error:
        text = ", ".join(f"{name} {shape}" for name, shape in leads.items())
        raise ValueError(f"leading axes must broadcast, got {text}") from error


def prepare_evolution(
    state: Array, hamiltonian: Array, dt: Array | float, *, core: int
) -> tuple[Array, Array, Array]:
    """Checked arguments of an evolution: complex state, H as given, real dt; state and dt with all
    leading axes.

    ``core`` is 2 for matrices ``[..., d, d]``, 1 for vectors ``[..., d]``. A Hamiltonian ``[d, d]``
    keeps its two axes: it is shared.
    """
    name = "rho" if core == 2 else "psi"
    check_square("hamiltonian", hamiltonian)
    if core == 2:
        check_square(name, state)
    if state.ndim < core or state.shape[-1] != hamiltonian.shape[-1]:
        raise ValueError(
            f"{name} {state.shape} and hamiltonian {hamiltonian.shape} must have the same dimension d"
        )
    if not jnp.issubdtype(state.dtype, jnp.inexact) or real_dtype(state) != real_dtype(hamiltonian):
        raise ValueError(
            f"{name} and hamiltonian must have one precision, got {state.dtype} and {hamiltonian.dtype}"
        )
    dt = time_step(dt, hamiltonian)
    leads = {name: state.shape[:-core], "hamiltonian": hamiltonian.shape[:-2], "dt": dt.shape}
    rank = len(common_shape(**leads))
    if hamiltonian.ndim > 2:
        hamiltonian = align(hamiltonian, rank, 2)
    state = jax.lax.complex(jnp.real(state), jnp.imag(state))
    return align(state, rank, core), hamiltonian, align(dt, rank, 0)


@sequential_vmap
def _eigh_one(matrix: Array) -> tuple[Array, Array]:
    return tuple(jnp.linalg.eigh(matrix))


@sequential_vmap
def _eigvalsh_one(matrix: Array) -> Array:
    return jnp.linalg.eigvalsh(matrix)


def _decompose(one_fn, stack_fn, matrix: Array):
    if matrix.ndim == 2:
        return one_fn(matrix)

    def in_turn(stack: Array):
        flat = jax.lax.map(one_fn, jnp.reshape(stack, (-1, *stack.shape[-2:])))
        return jax.tree.map(lambda y: jnp.reshape(y, stack.shape[:-2] + y.shape[1:]), flat)

    return jax.lax.platform_dependent(matrix, cpu=in_turn, default=stack_fn)


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues ``w [..., d]``, ascending, and eigenvectors ``V [..., d, d]`` of the Hermitian
    part of ``matrix [..., d, d]``.

    Not to be differentiated: the functions built on it have rules of their own, which divide by no
    difference of eigenvalues.
    """
    return _decompose(_eigh_one, lambda stack: tuple(jnp.linalg.eigh(stack)), matrix)


def eigvalsh(matrix: Array) -> Array:
    """Eigenvalues ``[..., d]``, ascending, of the Hermitian part of ``matrix [..., d, d]``. Not to
    be differentiated, see :func:`eigh`.
    """
    return _decompose(_eigvalsh_one, jnp.linalg.eigvalsh, matrix)
