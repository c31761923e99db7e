"""Small batched linear algebra, named broadcasting, and functions whose gradients stay finite where
the textbook formula divides by zero.

Why not LAPACK. jaxlib 0.10.0 to 0.11.0 split a *batched* LAPACK call over XLA's CPU thread pool and
block a pool thread until the parts are done. Two such calls in flight on a machine with two cores
then wait for each other for ever: two independent ``jax.scipy.linalg.expm`` of 512 matrices of size
9 in one program hung jaxlib 0.10.2 in four of four processes, and the same happened with
``solve_triangular``. Open-source builds from jaxlib 0.11.1 on do not have that path: four times
3000 calls ran on 0.12.0 without a hang. So ``expm`` can be handed to
:func:`vfejax.geometry.groups.general`, but it is not the default on a CPU; besides, Taylor's series
compiles two to three times faster and is ten times more accurate in float32.

What it costs. The loops below are plain XLA. For [512, 9, 9] in float32 on two cores the Cholesky
factor takes 0.64 ms where LAPACK takes 0.13 (with its gradient 1.3 against 0.6) and compiles in
0.12 s against 0.05; the triangular inverse is 1.8 times slower. Both are a small part of a step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.stack_product import fits, stack_product
from vfejax.types import Array, PyTree

__all__ = [
    "as_floating",
    "at_least_float32",
    "broadcast_named",
    "cast_like",
    "cholesky",
    "common_dtype",
    "expand_leading",
    "floating_tree",
    "identity_like",
    "log_det_cholesky",
    "matmul",
    "matmul_nt",
    "matmul_tn",
    "matvec",
    "safe_norm",
    "safe_sqrt",
    "sinc_sqrt",
    "sum_to",
    "symmetrize",
    "transpose",
    "tree_dot",
    "tree_norm",
    "triangular_inverse",
    "triangular_solve",
    "triangularize",
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


def cast_like(value: jax.typing.ArrayLike, like: Array) -> Array:
    """A real number or array of any dtype in the dtype of ``like``.

    >>> cast_like(2, jnp.ones(3, jnp.bfloat16)).dtype.name
    'bfloat16'
    """
    return as_floating(value, "value").astype(like.dtype)


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float32 for half precision, else ``dtype`` itself: what sums and weights are kept in.

    >>> at_least_float32(jnp.bfloat16).name
    'float32'
    """
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def common_dtype(*arrays: Array | np.ndarray) -> jnp.dtype:
    """The widest dtype of floating arrays; float32 for two different half precisions.

    >>> common_dtype(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.float32)).name
    'float32'
    """
    dtypes = {jnp.dtype(x.dtype) for x in arrays}
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    return widest if len(dtypes) == 1 else at_least_float32(widest)


def transpose(x: Array) -> Array:
    """Matrix transpose of ``x [..., k, l]``.

    >>> transpose(jnp.ones((5, 2, 3))).shape
    (5, 3, 2)
    """
    return jnp.swapaxes(x, -1, -2)


def symmetrize(x: Array) -> Array:
    """Symmetric part ``(x + x^T) / 2`` of ``x [..., k, k]``.

    >>> symmetrize(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return 0.5 * (x + transpose(x))


def identity_like(x: Array) -> Array:
    """Identity matrices with the shape and dtype of ``x [..., k, k]``.

    >>> identity_like(jnp.zeros((2, 2))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def matmul(left: Array, right: Array) -> Array:
    """Matrix product at full precision on every device.

    Stacks of small matrices are multiplied by :func:`vfejax.stack_product.stack_product`.

    >>> matmul(jnp.eye(2), jnp.ones((2, 1))).tolist()
    [[1.0], [1.0]]
    """
    if fits(left, right):
        return stack_product(left, right)
    return jnp.matmul(left, right, precision="highest")


def matmul_tn(left: Array, right: Array) -> Array:
    """``left^T right`` for matrices ``[..., k, m]`` and ``[..., k, n]``, as :func:`matmul`.

    >>> matmul_tn(jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])).tolist()
    [[3.0], [6.0]]
    """
    if fits(left, right):
        return stack_product(left, right, left_axis=-2)
    return matmul(transpose(left), right)


def matmul_nt(left: Array, right: Array) -> Array:
    """``left right^T`` for matrices ``[..., m, k]`` and ``[..., n, k]``, as :func:`matmul`.

    >>> matmul_nt(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[11.0]]
    """
    if fits(left, right):
        return stack_product(left, right, right_axis=-1)
    return matmul(left, transpose(right))


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

    >>> float(log_det_cholesky(jnp.eye(3)))
    0.0
    """
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), axis=-1)


def _check_square(x: jax.typing.ArrayLike, name: str) -> Array:
    x = as_floating(x, name)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{name} must be square matrices [..., k, k], got shape {x.shape}")
    return x


def triangular_inverse(chol: Array) -> Array:
    """Inverse of lower triangular ``chol [..., k, k]``; entries above the diagonal are ignored.

    Forward substitution, one row at a time over the whole batch; the derivative is ``-X tril(dL)
    X``. O(k^3) each.

    Raises:
        ValueError: when ``chol`` is complex or not square.

    >>> triangular_inverse(jnp.array([[2.0, 0.0], [1.0, 1.0]])).tolist()
    [[0.5, 0.0], [-0.5, 1.0]]
    """
    chol = _check_square(chol, "chol")
    return _triangular_inverse(chol) if chol.size else chol


@jax.custom_jvp
def _triangular_inverse(chol: Array) -> Array:
    chol = jnp.tril(chol)
    identity = identity_like(chol)

    def substitute(i: Array, inverse: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(chol, i, -2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, i, -1)
        unit = jax.lax.dynamic_index_in_dim(identity, i, -2, keepdims=False)
        solved = (unit - matmul(row[..., None, :], inverse)[..., 0, :]) / pivot
        return jax.lax.dynamic_update_index_in_dim(inverse, solved, i, inverse.ndim - 2)

    return jax.lax.fori_loop(0, chol.shape[-1], substitute, jnp.zeros_like(chol))


@_triangular_inverse.defjvp
def _triangular_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _triangular_inverse(primals[0])
    return inverse, -matmul(inverse, matmul(jnp.tril(tangents[0]), inverse))


def triangular_solve(chol: Array, right: Array) -> Array:
    """``L^{-1} right`` for lower triangular ``chol [..., k, k]`` and ``right [..., k, l]``.

    It is the product with :func:`triangular_inverse`. With ``Y = L^{-1} right`` the derivative is
    ``L^{-1} (d right - tril(dL) Y)``: two products, where that of the inverse and of the product
    would be four.

    Raises:
        ValueError: when ``chol`` is complex or not square.

    >>> triangular_solve(jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[2.0], [1.0]])).tolist()
    [[1.0], [0.0]]
    """
    chol = _check_square(chol, "chol")
    return _triangular_solve(chol, right) if chol.size else right


@jax.custom_jvp
def _triangular_solve(chol: Array, right: Array) -> Array:
    return matmul(_triangular_inverse(chol), right)


@_triangular_solve.defjvp
def _triangular_solve_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    inverse = _triangular_inverse(primals[0])
    solved = matmul(inverse, primals[1])
    return solved, matmul(inverse, tangents[1] - matmul(jnp.tril(tangents[0]), solved))


def _half_triangle(x: Array) -> Array:
    """Lower triangle with halved diagonal: ``P`` with ``P + P^T = x`` for symmetric x."""
    return jnp.tril(x) * (1.0 - 0.5 * identity_like(x))


def cholesky(matrix: Array) -> Array:
    """Lower factor L of symmetric positive definite ``matrix [..., k, k] = L L^T``; NaN where it is
    not positive definite.

    Column by column over the whole batch; only the lower triangle is read. The derivative is ``L
    Phi(L^{-1} dA L^{-T})`` with Phi the lower triangle with halved diagonal. Where rows with
    ``matrix = rows^T rows`` are at hand, :func:`triangularize` keeps twice the digits.

    Raises:
        ValueError: when ``matrix`` is complex or not square.

    >>> cholesky(jnp.array([[4, 2], [2, 2]])).tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    matrix = _check_square(matrix, "matrix")
    return _cholesky(matrix) if matrix.size else matrix


@jax.custom_jvp
def _cholesky(matrix: Array) -> Array:
    rows = jnp.arange(matrix.shape[-1])

    def eliminate(j: Array, chol: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(chol, j, -2)
        column = jax.lax.dynamic_index_in_dim(matrix, j, -1, keepdims=False)
        column = column - jnp.sum(chol * row, axis=-1)
        pivot = jnp.sqrt(jax.lax.dynamic_index_in_dim(column, j, -1))
        below = jnp.broadcast_to(rows >= j, column.shape)
        return jax.lax.dynamic_update_index_in_dim(
            chol, jnp.where(below, column / pivot, 0.0), j, chol.ndim - 1
        )

    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, jnp.zeros_like(matrix))


@_cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    chol = _cholesky(primals[0])
    inverse = _triangular_inverse(chol)
    lower = jnp.tril(tangents[0])
    change = lower + transpose(jnp.tril(lower, -1))
    return chol, matmul(chol, _half_triangle(matmul_nt(matmul(inverse, change), inverse)))


def triangularize(rows: Array) -> Array:
    """Lower factor L with ``L L^T = rows^T rows`` and a diagonal >= 0, without forming the product.

    Householder reflections, one column at a time over the whole batch: the square-root form of a
    covariance or an information matrix. Its rounding error is relative to ``|rows|``, while
    ``cholesky(rows^T rows)`` loses half the digits of small directions. O(m k^2).

    The derivative is ``L Phi(C + C^T)`` with ``C = Q^T d(rows) L^{-T}``, for rows of full rank.

    Args:
        rows: ``[..., m, k]``, real, for any m >= 0. Where the rank is below k the factor is right
            and its derivative is not finite.

    Returns:
        ``[..., k, k]``, lower triangular.

    Raises:
        ValueError: when ``rows`` is complex or has fewer than two axes.

    Source: Golub and Van Loan, Matrix Computations (2013), section 5.2.

    >>> round(float(triangularize(jnp.array([[3.0], [4.0]]))[0, 0]), 4)
    5.0
    """
    rows = as_floating(rows, "rows")
    if rows.ndim < 2:
        raise ValueError(f"rows must be [..., m, k], got shape {rows.shape}")
    if rows.shape[-1] == 0:
        return jnp.zeros((*rows.shape[:-2], 0, 0), rows.dtype)
    short = rows.shape[-1] - rows.shape[-2]
    if short > 0:
        rows = jnp.concatenate(
            [rows, jnp.zeros((*rows.shape[:-2], short, rows.shape[-1]), rows.dtype)], axis=-2
        )
    return _orthogonalize(rows)[1]


@jax.custom_jvp
def _orthogonalize(rows: Array) -> tuple[Array, Array]:
    """``(Q [..., m, k], L [..., k, k])`` with ``rows = Q L^T``, ``Q^T Q = 1``, for m >= k."""
    num, k = rows.shape[-2:]

    def reflect(rest: Array, j: Array) -> tuple[Array, Array]:
        column = jax.lax.dynamic_index_in_dim(rest, j, -1, keepdims=False)
        below = jnp.broadcast_to(jnp.arange(num) >= j, column.shape)
        column = jnp.where(below, column, 0.0)
        pivot = jax.lax.dynamic_index_in_dim(column, j, -1)
        length = safe_norm(column, keepdims=True)
        here = jnp.broadcast_to(jnp.arange(num) == j, column.shape)
        normal = column + jnp.where(here, jnp.where(pivot < 0, -length, length), 0.0)
        size = safe_norm(normal, keepdims=True)
        normal = normal / jnp.where(size == 0, 1.0, size)
        return _mirror(rest, normal), normal

    rest, normals = jax.lax.scan(reflect, rows, jnp.arange(k))
    eye = jnp.broadcast_to(jnp.eye(num, k, dtype=bool), rows.shape)
    # Under shard_map it varies as the rows do.
    eye = jnp.where(eye, jnp.ones_like(rows), jnp.zeros_like(rows))
    basis, _ = jax.lax.scan(lambda q, v: (_mirror(q, v), None), eye, normals, reverse=True)
    factor = jnp.tril(transpose(rest[..., :k, :]))
    sign = jnp.where(jnp.diagonal(factor, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[..., None, :]
    sign = sign.astype(rows.dtype)
    return basis * sign, factor * sign


def _mirror(x: Array, normal: Array) -> Array:
    """``(1 - 2 v v^T) x`` for unit vectors v."""
    normal = normal[..., :, None]
    return x - 2.0 * normal * jnp.sum(normal * x, axis=-2, keepdims=True)


@_orthogonalize.defjvp
def _orthogonalize_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple, tuple]:
    basis, factor = _orthogonalize(primals[0])
    change = matmul_nt(tangents[0], _triangular_inverse(factor))
    inner = matmul_tn(basis, change)
    body = _half_triangle(inner + transpose(inner))
    return (basis, factor), (change - matmul_nt(basis, body), matmul(factor, body))


def safe_sqrt(x: Array) -> Array:
    """Square root whose gradient at 0 is 0 instead of infinite; NaN below 0 and at NaN.

    >>> float(jax.grad(safe_sqrt)(0.0))
    0.0
    """
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def safe_norm(x: Array, *, axis: int = -1, keepdims: bool = False) -> Array:
    """Euclidean norm whose gradient at ``x = 0`` is 0 instead of NaN.

    Numbers are scaled by the largest one, so that no square overflows or vanishes.

    Args:
        x: real, any shape.
        axis: the axis to sum over.
        keepdims: whether that axis stays, with length 1.

    Returns:
        ``x`` without ``axis``; NaN where a number is.

    >>> round(float(safe_norm(jnp.array([3e30, 4e30])) / 1e30), 4)
    5.0
    >>> jax.grad(safe_norm)(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    x = as_floating(x, "x")
    # The scale is arbitrary, so no gradient flows through its choice.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0))
    scale = jnp.where((scale == 0) | jnp.isinf(scale), 1.0, scale)
    length = scale * safe_sqrt(jnp.sum((x / scale) ** 2, axis=axis, keepdims=True))
    return length if keepdims else jnp.squeeze(length, axis)


def tree_norm(tree: PyTree) -> Array:
    """Euclidean norm of all numbers of a pytree together, in the widest of its dtypes; gradient 0
    at 0.

    >>> float(tree_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
    5.0
    """
    lengths = [safe_norm(jnp.ravel(leaf)) for leaf in jax.tree.leaves(tree)]
    return safe_norm(_stack(lengths))


def tree_dot(left: PyTree, right: PyTree) -> Array:
    """Sum over all leaves of ``sum(left * right)``, in the widest of their dtypes.

    >>> float(tree_dot((jnp.ones(2), jnp.ones(1)), (jnp.ones(2), jnp.full(1, 3.0))))
    5.0
    """
    return jnp.sum(_stack(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), left, right))))


def _stack(numbers: list[Array]) -> Array:
    if not numbers:
        return jnp.zeros((0,))
    dtype = common_dtype(*numbers)
    return jnp.stack([x.astype(dtype) for x in numbers])


def floating_tree(tree: PyTree, name: str) -> PyTree:
    """``tree`` with every leaf a real floating array; integers become the default float.

    Raises:
        ValueError: for a complex leaf, naming it by ``name`` and its place in the tree.

    >>> floating_tree({"a": 1}, "position")["a"].dtype.kind
    'f'
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: as_floating(x, name + jax.tree_util.keystr(path)), tree
    )


def sinc_sqrt(s: Array) -> Array:
    """``sin(sqrt s) / sqrt s`` for ``s >= 0``: analytic in s, so derivatives are right at 0.

    Rotations depend on the angle only through its square; written in the square, nothing divides by
    an angle. Below ``s = 0.1`` this is the Taylor series to ``s^6``, exact to float64 rounding (the
    next term is 8e-20 there); its derivatives are right up to the sixth.

    >>> round(float(sinc_sqrt(jnp.array(jnp.pi**2 / 4))), 4)  # 2 / pi
    0.6366
    """
    small = s < 0.1
    root = jnp.sqrt(jnp.where(small, 1.0, s))
    series = jnp.ones_like(s)
    for n in (13, 11, 9, 7, 5, 3):
        series = 1.0 - s / (n * (n - 1)) * series
    return jnp.where(small, series, jnp.sin(root) / root)
