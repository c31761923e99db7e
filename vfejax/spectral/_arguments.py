"""Checks of the arguments of the spectral functions, with errors that name the argument."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import broadcast_named

__all__ = ["chain_shape", "check_arrays", "complex_dtype"]

_COMPLEX = {
    jnp.dtype(dtype): jnp.dtype(result)
    for result, members in (
        ("complex64", ("float32", "complex64")),
        ("complex128", ("float64", "complex128")),
    )
    for dtype in members
}


def _check_is_array(name: str, x: object, otherwise: str = "") -> None:
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise ValueError(
            f"{name} must be an array{otherwise}, got {type(x).__name__}: convert it by jnp.asarray"
        )


def check_arrays(**arrays: object) -> None:
    """Raise ValueError unless all are arrays of a real or complex floating dtype.

    Args:
        **arrays: each argument under its name.

    >>> check_arrays(gates=jnp.ones(3), inputs=[1.0, 2.0, 3.0])
    Traceback (most recent call last):
    ValueError: inputs must be an array, got list: convert it by jnp.asarray
    """
    for name, x in arrays.items():
        _check_is_array(name, x)
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(f"{name} must be real or complex floating, got {dtype}")


def complex_dtype(**arrays: ArrayLike) -> jnp.dtype:
    """Complex dtype of the common precision of named arrays.

    float32 and complex64 give complex64, float64 and complex128 give complex128. Python numbers
    take any precision.

    Args:
        **arrays: each argument under its name; at least one array.

    Returns:
        complex64 or complex128.

    Raises:
        ValueError: when one is no array, or has another dtype, or two differ in precision.

    >>> complex_dtype(diagonal=jnp.ones(3), z=1j)
    dtype('complex64')
    """
    common, first = None, ""
    for name, x in arrays.items():
        if isinstance(x, int | float | complex):
            continue
        _check_is_array(name, x, " or a number")
        if x.dtype not in _COMPLEX:
            raise ValueError(
                f"{name} must be floating or complex of 32 or 64 bits a part, got {x.dtype}"
            )
        dtype = _COMPLEX[x.dtype]
        if common not in (None, dtype):
            raise ValueError(
                f"{name} must have the precision of {common}, as {first} has, got {x.dtype}"
            )
        common, first = dtype, first or name
    if common is None:
        raise ValueError(f"one of {', '.join(arrays)} must be an array, got numbers only")
    return common


def chain_shape(
    diagonal: ArrayLike, superdiagonal: ArrayLike, subdiagonal: ArrayLike, z: ArrayLike
) -> tuple[int, ...]:
    """Common leading shape of a chain and its spectral parameter.

    Args:
        diagonal: ``[..., n]``, n >= 1.
        superdiagonal: ``[..., n - 1]``.
        subdiagonal: ``[..., n - 1]``.
        z: ``[...]``.

    Returns:
        The broadcast shape of the leading axes.

    Raises:
        ValueError: when the shapes do not fit.

    >>> chain_shape(jnp.ones((4, 3)), jnp.ones(2), jnp.ones(2), 1j)
    (4,)
    """
    shape = jnp.shape(diagonal)
    n = shape[-1] if shape else 0
    if n == 0:
        raise ValueError(f"diagonal must be [..., n] with n >= 1, got {shape}")
    for name, x in (("superdiagonal", superdiagonal), ("subdiagonal", subdiagonal)):
        if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != n - 1:
            raise ValueError(
                f"{name} must be [..., {n - 1}] for a diagonal of {n}, got {jnp.shape(x)}"
            )
    return broadcast_named(
        diagonal=shape[:-1],
        superdiagonal=jnp.shape(superdiagonal)[:-1],
        subdiagonal=jnp.shape(subdiagonal)[:-1],
        z=jnp.shape(z),
    )
