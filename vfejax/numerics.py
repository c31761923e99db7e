"""Small batched linear algebra and functions whose gradients stay finite where the textbook formula
divides by zero.

Why not LAPACK: jaxlib 0.10 splits a *batched* LAPACK call over XLA's CPU thread pool and blocks a
pool thread until the parts are done. Two such calls in flight on a machine with two cores then wait
for each other for ever (seen with ``solve_triangular`` and ``expm`` on 512 matrices of size 9). The
loops below are plain XLA: as fast for the small matrices of agents, quicker to compile, and safe.
"""

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = [
    "as_floating",
    "at_least_float32",
    "broadcast_named",
    "cholesky",
    "expand_leading",
    "identity_like",
    "log_det_cholesky",
    "matmul",
    "matvec",
    "safe_norm",
    "sinc_sqrt",
    "sum_to",
    "symmetrize",
    "transpose",
    "triangular_inverse",
]


def as_floating(x: jax.typing.ArrayLike, name: str) -> Array:
    """``x`` as a real floating array: integers and booleans become the default float.

    Raises:
        ValueError: for complex numbers, naming the argument.

    >>> as_floating(jnp.array([1, 2]), "phi").dtype.kind
    'f'
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{name} must be real, got {x.dtype}")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float32 for half precision, else ``dtype`` itself: what sums and weights are kept in."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def transpose(x: Array) -> Array:
    """Matrix transpose of ``x [..., k, l]``."""
    return jnp.swapaxes(x, -1, -2)


def symmetrize(x: Array) -> Array:
    """Symmetric part ``(x + x^T) / 2`` of ``x [..., k, k]``."""
    return 0.5 * (x + transpose(x))


def identity_like(x: Array) -> Array:
    """Identity matrices with the shape and dtype of ``x [..., k, k]``."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def matmul(left: Array, right: Array) -> Array:
    """Matrix product at full precision on every device.

    >>> matmul(jnp.eye(2), jnp.ones((2, 1))).tolist()
    [[1.0], [1.0]]
    """
    return jnp.matmul(left, right, precision="highest")


def matvec(matrix: Array, vector: Array) -> Array:
    """``matrix [..., l, k]`` times ``vector [..., k]``, at full precision on every device.

    >>> matvec(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones(2)).tolist()
    [3.0, 7.0]
    """
    return matmul(matrix, vector[..., None])[..., 0]


def broadcast_named(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast shape of named shapes.

    Args:
        **shapes: the shape of each argument, under the name an error should call it by.

    Returns:
        The common shape.

    Raises:
        ValueError: when they do not broadcast, listing names and shapes.

    >>> broadcast_named(rho=(3, 1), dt=(4,))
    (3, 4)
    """
    try:
        return jnp.broadcast_shapes(*shapes.values())
    except ValueError as error:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"leading axes must broadcast, got {listed}") from error


def expand_leading(x: Array, rank: int, core: int = 0) -> Array:
    """``x`` with axes of length 1 in front, so that ``rank`` axes precede its last ``core``.

    Args:
        x: an array with at most ``rank + core`` axes.
        rank: number of leading axes wanted.
        core: number of trailing axes that belong to one item.

    Returns:
        ``x`` with ``rank + core`` axes.

    >>> expand_leading(jnp.ones((5, 2, 2)), 3, core=2).shape
    (1, 1, 5, 2, 2)
    """
    return jnp.reshape(x, (1,) * (rank + core - x.ndim) + x.shape)


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum of ``x`` to ``shape``: the transpose of broadcasting from ``shape`` to ``x.shape``.

    >>> sum_to(jnp.ones((4, 3, 2)), (1, 2)).tolist()
    [[12.0, 12.0]]
    """
    extra = x.ndim - len(shape)
    x = jnp.sum(x, axis=tuple(range(extra)))
    axes = tuple(i for i, want in enumerate(shape) if x.shape[i] != want)
    return jnp.sum(x, axis=axes, keepdims=True)


def log_det_cholesky(chol: Array) -> Array:
    """``log det(L L^T) = 2 sum_i log L_ii`` for ``chol [..., k, k]``; NaN where a diagonal entry is
    negative.
    """
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), axis=-1)


@jax.custom_jvp
def triangular_inverse(chol: Array) -> Array:
    """Inverse of lower triangular ``chol [..., k, k]``; entries above the diagonal are ignored.

    Forward substitution, one row at a time over the whole batch; the derivative is ``-X tril(dL)
    X``. O(k^3) each.
    """
    chol = jnp.tril(chol)
    identity = identity_like(chol)

    def substitute(i, inverse):
        row = jax.lax.dynamic_index_in_dim(chol, i, -2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, i, -1)
        unit = jax.lax.dynamic_index_in_dim(identity, i, -2, keepdims=False)
        solved = (unit - jnp.sum(row[..., :, None] * inverse, axis=-2)) / pivot
        return jax.lax.dynamic_update_index_in_dim(inverse, solved, i, inverse.ndim - 2)

    return jax.lax.fori_loop(0, chol.shape[-1], substitute, jnp.zeros_like(chol))


@triangular_inverse.defjvp
def _triangular_inverse_jvp(primals, tangents):
    inverse = triangular_inverse(primals[0])
    change = jnp.matmul(jnp.tril(tangents[0]), inverse, precision="highest")
    return inverse, -jnp.matmul(inverse, change, precision="highest")


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    """Lower factor L of symmetric positive definite ``matrix [..., k, k] = L L^T``; NaN where it is
    not positive definite.

    Column by column over the whole batch; only the lower triangle is read. The derivative is ``L
    Phi(L^{-1} dA L^{-T})`` with Phi the lower triangle with halved diagonal.
    """
    rows = jnp.arange(matrix.shape[-1])

    def eliminate(j, chol):
        row = jax.lax.dynamic_index_in_dim(chol, j, -2)
        column = jax.lax.dynamic_index_in_dim(matrix, j, -1, keepdims=False) - jnp.sum(
            chol * row, axis=-1
        )
        pivot = jnp.sqrt(jax.lax.dynamic_index_in_dim(column, j, -1))
        below = jnp.broadcast_to(rows >= j, column.shape)
        return jax.lax.dynamic_update_index_in_dim(
            chol, jnp.where(below, column / pivot, 0.0), j, chol.ndim - 1
        )

    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, jnp.zeros_like(matrix))


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    chol = cholesky(primals[0])
    inverse = triangular_inverse(chol)
    lower = jnp.tril(tangents[0])
    change = lower + transpose(jnp.tril(lower, -1))
    body = jnp.matmul(
        jnp.matmul(inverse, change, precision="highest"), transpose(inverse), precision="highest"
    )
    half = jnp.tril(body) * (1.0 - 0.5 * identity_like(body))
    return chol, jnp.matmul(chol, half, precision="highest")


def safe_norm(x: Array, *, axis: int = -1, keepdims: bool = False) -> Array:
    """Euclidean norm whose gradient at ``x = 0`` is 0 instead of NaN."""
    square = jnp.sum(x * x, axis=axis, keepdims=keepdims)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def sinc_sqrt(s: Array) -> Array:
    """``sin(sqrt s) / sqrt s`` for ``s >= 0``: analytic in s, so derivatives of every order are
    right at 0.

    Rotations depend on the angle only through its square; written in the square, nothing divides by
    an angle. Below ``s = 0.1`` the Taylor series to ``s^6`` is exact to float64 rounding (next term
    1e-20).
    """
    small = s < 0.1
    root = jnp.sqrt(jnp.where(small, 1.0, s))
    series = jnp.ones_like(s)
    for n in (13, 11, 9, 7, 5, 3):
        series = 1.0 - s / (n * (n - 1)) * series
    return jnp.where(small, series, jnp.sin(root) / root)
