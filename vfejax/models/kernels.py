"""Products with kernels whose gradients suit a CPU."""

from typing import Any

import jax

from vfejax.types import Array

__all__ = ["kernel_product"]


Options = tuple[tuple[str, Any], ...]


def _plain(x: Array, kernel: Array, options: Options) -> Array:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), **dict(options))


_product = jax.custom_vjp(_plain, nondiff_argnums=(2,))


def _forward(x: Array, kernel: Array, options: Options) -> tuple[Array, tuple[Array, Array]]:
    # A plain product, which policies of jax.checkpoint know as one.
    return _plain(x, kernel, options), (x, kernel)


def _backward(options: Options, kept: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
    x, kernel = kept
    last, rows = (ct.ndim - 1,), tuple(range(x.ndim - 1))
    return (
        jax.lax.dot_general(ct, kernel, ((last, (1,)), ((), ())), **dict(options)),
        jax.lax.dot_general(x, ct, ((rows, rows), ((), ())), **dict(options)),
    )


_product.defvjp(_forward, _backward)


def kernel_product(x: Array, kernel: Array, dimension_numbers: Any = None, **options: Any) -> Array:
    """``x K``, for ``nnx.Linear(dot_general=kernel_product)`` before an activation; reverse mode.

    XLA on a CPU transposes the left factor of a product that sums over rows, in one loop with all
    that the factor is made of, and such a loop is slow. JAX's gradient of K is ``(ct^T x)^T``, and
    the cotangent of what an activation reads is a long formula: one layer of 256 takes 2 ms for
    768 rows. Here it is ``x^T ct``.

    Args:
        x: ``[..., m]``.
        kernel: ``[m, n]``.
        dimension_numbers: those of a product over m, which is what it does.
        options: others of ``jax.lax.dot_general``.

    Returns:
        ``[..., n]``.

    >>> import jax.numpy as jnp
    >>> kernel_product(jnp.ones((3, 2)), jnp.ones((2, 4))).shape
    (3, 4)
    """
    return _product(x, kernel, tuple(options.items()))
