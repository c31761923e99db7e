"""Checks of the arguments of the quantum functions, with errors that name the argument."""

from typing import NoReturn, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.devices import alike
from vfejax.numerics import broadcast_named, expand_leading
from vfejax.quantum.hermitian import real_dtype
from vfejax.types import Array

__all__ = [
    "check_array",
    "check_square",
    "check_width",
    "first_derivatives_only",
    "fit_evolution",
    "prepare_evolution",
    "real_argument",
    "time_step",
]

Tree = TypeVar("Tree")


def check_array(name: str, x: object) -> None:
    """Raise ValueError unless ``x`` is an array of a real or complex floating dtype.

    >>> check_array("psi", [1.0, 0.0])
    Traceback (most recent call last):
    ValueError: psi must be an array, got list: convert it by jnp.asarray
    """
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise ValueError(
            f"{name} must be an array, got {type(x).__name__}: convert it by jnp.asarray"
        )
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(f"{name} must be of a real or complex floating dtype, got {x.dtype}")


def check_square(name: str, x: Array) -> None:
    """Raise ValueError unless ``x`` is ``[..., d, d]`` of a real or complex floating dtype.

    >>> check_square("rho", jnp.ones((2, 3)))
    Traceback (most recent call last):
    ValueError: rho must be square matrices [..., d, d], got shape (2, 3)
    """
    check_array(name, x)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2] or x.shape[-1] == 0:
        raise ValueError(f"{name} must be square matrices [..., d, d], got shape {x.shape}")


def check_width(name: str, x: Array) -> None:
    """Raise ValueError for half precision, of which there are no complex numbers and no
    eigenvalues.

    >>> check_width("rho", jnp.eye(2, dtype="bfloat16"))
    Traceback (most recent call last):
    ValueError: rho must be at least in single precision, got bfloat16: use .astype(jnp.float32)
    """
    if jnp.finfo(x.dtype).bits < 32:
        raise ValueError(
            f"{name} must be at least in single precision, got {x.dtype}: use .astype(jnp.float32)"
        )


def real_argument(name: str, x: ArrayLike, dtype: jnp.dtype) -> Array:
    """``x``, real numbers or integers, as an array of a real ``dtype``.

    Args:
        name: the argument's name.
        x: numbers.
        dtype: real floating dtype.

    Returns:
        The array.

    Raises:
        ValueError: for complex numbers and booleans.

    >>> real_argument("dt", 2, jnp.dtype("float32")).dtype
    dtype('float32')
    """
    x = jnp.asarray(x)
    if jnp.iscomplexobj(x) or x.dtype == bool:
        raise ValueError(f"{name} must be real, got {x.dtype}")
    return x.astype(dtype)


def time_step(dt: ArrayLike, hamiltonian: Array) -> Array:
    """``dt`` as a real array in the precision of ``hamiltonian``; ValueError for anything that is
    not real, and for a Hamiltonian in half precision.

    >>> time_step(1, jnp.eye(2)).dtype
    dtype('float32')
    """
    check_width("hamiltonian", hamiltonian)
    return real_argument("dt", dt, real_dtype(hamiltonian))


def fit_evolution(
    name: str, state: Array, hamiltonian: Array, dt: ArrayLike, *, core: int
) -> tuple[Array, Array, Array]:
    """Checked arguments of an evolution: state and H as given, real dt.

    Args:
        name: that of the argument ``state``.
        state: ``[..., d, d]`` or ``[..., d]``.
        hamiltonian: ``[..., d, d]``. One of shape ``[d, d]`` keeps its two axes: it is shared.
        dt: ``[...]``.
        core: 2 for matrices, 1 for vectors.

    Returns:
        The three; state and dt with all leading axes.

    Raises:
        ValueError: when shapes or dtypes do not fit.

    >>> rho, _, dt = fit_evolution("rho", jnp.eye(2), jnp.eye(2), jnp.ones(3), core=2)
    >>> rho.shape, dt.shape
    ((1, 2, 2), (3,))
    """
    check_square("hamiltonian", hamiltonian)
    if core == 2:
        check_square(name, state)
    check_array(name, state)
    if state.ndim < core or state.shape[-1] != hamiltonian.shape[-1]:
        raise ValueError(
            f"{name} {state.shape} and hamiltonian {hamiltonian.shape} must have the same "
            "dimension d"
        )
    if real_dtype(state) != real_dtype(hamiltonian):
        raise ValueError(
            f"{name} and hamiltonian must have one precision, got {state.dtype} and "
            f"{hamiltonian.dtype}"
        )
    dt = time_step(dt, hamiltonian)
    leads = {name: state.shape[:-core], "hamiltonian": hamiltonian.shape[:-2], "dt": dt.shape}
    rank = len(broadcast_named(**leads))
    if hamiltonian.ndim > 2:
        hamiltonian = expand_leading(hamiltonian, rank, 2)
    state, dt = expand_leading(state, rank, core), expand_leading(dt, rank)
    state, hamiltonian, dt = alike(state, hamiltonian, dt)
    return state, hamiltonian, dt


def prepare_evolution(
    state: Array, hamiltonian: Array, dt: ArrayLike, *, core: int
) -> tuple[Array, Array, Array]:
    """:func:`fit_evolution` of rho or psi, complex.

    Args:
        state: ``[..., d, d]`` or ``[..., d]``.
        hamiltonian, dt: likewise.
        core: 2 for matrices, 1 for vectors.

    >>> prepare_evolution(jnp.eye(2), jnp.eye(2), 1.0, core=2)[0].dtype
    dtype('complex64')
    """
    name = "rho" if core == 2 else "psi"
    state, hamiltonian, dt = fit_evolution(name, state, hamiltonian, dt, core=core)
    if not jnp.iscomplexobj(state):
        state = jax.lax.complex(state, jnp.zeros_like(state))
    return state, hamiltonian, dt


def first_derivatives_only(tree: Tree, message: str) -> Tree:
    """``tree``, whose derivative raises ``NotImplementedError(message)``.

    A hand-written derivative puts what it reads through this function. A second derivative then
    says why it cannot be had, instead of failing inside an eigensolver.

    >>> try:
    ...     jax.grad(lambda x: first_derivatives_only(x, "f has no derivative"))(1.0)
    ... except NotImplementedError as error:
    ...     print(error)
    f has no derivative
    """

    @jax.custom_jvp
    def guarded(tree: Tree) -> Tree:
        return tree

    @guarded.defjvp
    def _(primals: object, tangents: object) -> NoReturn:
        raise NotImplementedError(message)

    return guarded(tree)
