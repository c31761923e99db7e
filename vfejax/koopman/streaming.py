"""Streaming statistics of pairs (now, following) as a triangular factor.

    R^T R = [X Y]^T W [X Y],    R = [[now, cross], [0, residual]],

with samples as the rows of X ``[m, d]`` and Y ``[m, e]`` and their weights W. It is all that linear
maps ``Y ~ X K^T``, their spectra and their errors need, in memory that does not grow with m.

Why a factor. Sums of products square the condition number: at a condition of 10^4 a map from ``X^T
X`` in float32 means nothing; one from R is right to 10^-4, and its predictions to 10^-6. The
recursive inverse ``(X^T X)^-1`` grows without bound in directions that forgetting empties; R goes
to zero there, and the ridge of :func:`vfejax.koopman.operators.ridge`, which is no part of R, keeps
its full strength.

Any order. Reflections keep products, so blocks of any size, in any order and from any number of
devices, give the same R up to rounding. Weights of samples are applied as they enter. Rounding R to
float32 after every block loses what is below its last digit: at a condition of 10^4 a map from
samples that came one by one is right to 10^-4. A compensated factor (:func:`init`) keeps in ``low``
what R loses, and gives the same map to 10^-7 in any split, for 2.5 times the time of single samples
and 35 times that of blocks of 100.

Source: Golub and Van Loan, Matrix Computations (2013), section 6.5 (QR updates).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from vfejax.koopman import _compensated, _linear_algebra, _two_floats
from vfejax.koopman._arguments import pairs, weighting
from vfejax.koopman._two_floats import TwoFloats
from vfejax.numerics import matmul_tn
from vfejax.types import Array

__all__ = ["Factor", "Moments", "check", "init", "merge", "merge_axis", "moments", "update"]


class Factor(NamedTuple):
    """Statistics of weighted pairs. Its blocks make one upper triangular matrix ``root``.

    Attributes:
        now: ``[d, d]``, upper triangular: ``now^T now = X^T W X``.
        cross: ``[d, e]``: ``now^T cross = X^T W Y``.
        residual: ``[e, e]``, upper triangular: ``residual^T residual`` is what the best linear map
            leaves of ``Y^T W Y``.
        count: sum of the weights.
        low: None, or of a compensated factor what ``root`` loses by rounding to float32.
    """

    now: Array
    cross: Array
    residual: Array
    count: Array  # type: ignore[assignment]
    low: Array | None = None

    @property
    def root(self) -> Array:
        """R ``[d + e, d + e]``."""
        below = jnp.zeros(self.cross.shape[::-1], self.cross.dtype)
        return jnp.block([[self.now, self.cross], [below, self.residual]])


class Moments(NamedTuple):
    """Sums over weighted pairs.

    Attributes:
        now: ``G = X^T W X``, ``[d, d]``.
        cross: ``A = Y^T W X``, ``[e, d]``.
        following: ``H = Y^T W Y``, ``[e, e]``.
        count: sum of the weights.
    """

    now: Array
    cross: Array
    following: Array
    count: Array  # type: ignore[assignment]


def init(
    dim: int,
    following_dim: int | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    compensated: bool = False,
) -> Factor:
    """Statistics of no pairs.

    Args:
        dim: numbers in a sample of now, d >= 1.
        following_dim: numbers in one of following, e >= 1; by default d.
        dtype: float32 or float64, of all statistics and of the samples.
        compensated: whether R is kept as a sum of two float32, some 45 bits. Then
            :func:`vfejax.koopman.operators.ridge` and ``reduced_rank`` give maps that are right to
            10^-6 up to condition numbers of 10^6, in blocks of any size.

    Returns:
        The factor, all zeros.

    Raises:
        ValueError: for a dimension below 1; for another dtype, in which sums of squares mean
            little; for a compensated factor in float64.

    >>> init(3, 2).root.shape
    (5, 5)
    """
    following_dim = dim if following_dim is None else following_dim
    for name, value in (("dim", dim), ("following_dim", following_dim)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise ValueError(f"dtype must be float32 or float64, got {jnp.dtype(dtype)}")
    if compensated and jnp.dtype(dtype) != jnp.float32:
        raise ValueError(f"compensated needs dtype float32, got {jnp.dtype(dtype)}")
    size = dim + following_dim
    return Factor(
        jnp.zeros((dim, dim), dtype),
        jnp.zeros((dim, following_dim), dtype),
        jnp.zeros((following_dim, following_dim), dtype),
        jnp.zeros((), dtype),
        jnp.zeros((size, size), dtype) if compensated else None,
    )


def _absorbed(factor: Factor, rows: TwoFloats, scales: Array, count: Array) -> Factor:
    """The factor of more rows. The first scale multiplies R and each of the others a row."""
    dim, root, low = factor.now.shape[0], factor.root, factor.low
    if low is None:
        root = _linear_algebra.absorb(scales[0] * root, scales[1:, None] * rows.high)
    else:
        old, new = _two_floats.widen(scales[0]), _two_floats.widen(scales[1:, None])
        root, low = _compensated.absorb(
            _two_floats.multiply(old, TwoFloats(root, low)), _two_floats.multiply(new, rows)
        )
    return Factor(root[:dim, :dim], root[:dim, dim:], root[dim:, dim:], count, low)


def _merged(first: Factor, others: Factor) -> Factor:
    """The factor of the first and of a stack of others."""
    roots = jax.vmap(lambda factor: factor.root)(others)
    roots = TwoFloats(roots, jnp.zeros_like(roots) if others.low is None else others.low)
    rows = TwoFloats(*(x.reshape(-1, x.shape[-1]) for x in roots))
    ones = jnp.ones(1 + len(rows.high), rows.high.dtype)
    return _absorbed(first, rows, ones, first.count + jnp.sum(others.count))


def update(
    factor: Factor,
    now: ArrayLike,
    following: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    forgetting: ArrayLike = 1.0,
) -> Factor:
    """The statistics with a block of pairs more.

        R'^T R' = lam^k R^T R + sum_i lam^(k - 1 - i) w_i [x_i y_i]^T [x_i y_i]

    ``2 k (d + e)^2`` operations. To learn one number, a block of some hundred pairs takes a small
    part of the time of single ones.

    Args:
        factor: statistics so far.
        now: x ``[k, d]`` in the dtype of the factor, for any k >= 0.
        following: y ``[k, e]``.
        weights: w ``[k]``, not negative, such as 0 for padding; by default 1.
        forgetting: lam in (0, 1], by which each pair multiplies the weight of all before it; their
            number is in effect below ``1 / (1 - lam)``.

    Returns:
        The factor. A sample that is not finite makes it NaN for good: see :func:`check`. Its
        derivatives are not finite where the pairs, with what the factor holds, depend on one
        another exactly, such as by a constant in both now and following, or where a weight is 0.

    Raises:
        ValueError: for shapes or dtypes that do not fit, and for weights below 0 or a forgetting
            outside (0, 1] where their values are known.

    Source: Zhang, Rowley, Deem and Cattafesta, Online dynamic mode decomposition (2019), with a
    factor in place of the inverse.

    >>> x = jnp.arange(4.0)[:, None]
    >>> factor = update(init(1), x, 2.0 * x)
    >>> float(factor.count), (factor.cross / factor.now).round(4).tolist()
    (4.0, [[2.0]])
    """
    rows = pairs(now, following, factor.cross.shape, factor.now.dtype)
    scales, counts = weighting(len(rows), rows.dtype, weights, forgetting)
    count = counts[0] * factor.count + jnp.sum(counts[1:])
    return _absorbed(factor, _two_floats.widen(rows), scales, count)


def merge(first: Factor, second: Factor) -> Factor:
    """The statistics of the pairs of both.

    Raises:
        ValueError: for different dimensions or dtypes, and where one of them is compensated.

    >>> pair = update(init(1), jnp.ones((1, 1)), jnp.ones((1, 1)))
    >>> float(merge(pair, pair).count)
    2.0
    """
    for name, *pair in zip(Factor._fields, first, second, strict=True):
        kinds = ["None" if x is None else f"{x.dtype}{list(x.shape)}" for x in pair]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "both factors must have one shape and dtype, and be compensated or not, got "
                f"{name} {kinds[0]} and {kinds[1]}"
            )
    return _merged(first, jax.tree.map(lambda x: x[None], second))


def merge_axis(factor: Factor, axis_name: str) -> Factor:
    """The statistics of all devices along an axis of a mesh, the same on each: for ``shard_map``.

    >>> from jax.sharding import PartitionSpec as P
    >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> def fit(x):
    ...     return merge_axis(update(init(1), x, x), "data")
    >>> fit_all = jax.jit(jax.shard_map(fit, mesh=mesh, in_specs=P("data"), out_specs=P()))
    >>> factor = fit_all(jnp.ones((4, 1)))
    >>> factor.now.tolist()
    [[2.0]]
    """
    num, index = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def gather(x: Array) -> Array:
        # A sum of one term and zeros, because XLA knows that its result is the same everywhere.
        return jax.lax.psum(jnp.zeros((num, *x.shape), x.dtype).at[index].set(x), axis_name)

    factors = jax.tree.map(gather, factor)
    return _merged(jax.tree.map(lambda x: x[0], factors), jax.tree.map(lambda x: x[1:], factors))


def moments(factor: Factor) -> Moments:
    """The sums of products that a factor stands for.

    >>> x = jnp.array([[1.0], [2.0]])
    >>> [m.round(4).tolist() for m in moments(update(init(1), x, 3.0 * x))]
    [[[5.0]], [[15.0]], [[45.0]], 2.0]
    """
    now, cross, residual, count, _ = factor
    following = matmul_tn(cross, cross) + matmul_tn(residual, residual)
    return Moments(matmul_tn(now, now), matmul_tn(cross, now), following, count)


def check(factor: Factor, ridge: float = 0.0) -> None:
    """Raise ValueError unless the factor determines a map: outside ``jit``, where values are known.

    Args:
        factor: statistics of the data.
        ridge: what will be added to the diagonal of ``X^T X``.

    Raises:
        ValueError: for samples that were not finite, and, with a ridge of 0, for fewer samples than
            unknowns and for observables that depend on one another.

    >>> check(update(init(2), jnp.ones((1, 2)), jnp.ones((1, 2))))
    Traceback (most recent call last):
    ValueError: 1 sample cannot determine a map of 2 observables: give more samples or a ridge > 0
    """
    dim = factor.now.shape[0]
    if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(factor)):
        raise ValueError("now and following must be finite, got NaN or infinity in a sample")
    if ridge > 0:
        return
    count = float(factor.count)
    now = np.asarray(factor.now, np.float64)
    # In units of each observable, which may be of any size.
    lengths = np.linalg.norm(now, axis=0)
    values = np.linalg.svd(now / np.where(lengths == 0, 1.0, lengths), compute_uv=False)
    limit = dim * float(jnp.finfo(factor.now.dtype).eps) * values[0]
    rank = int(np.sum(values > limit))
    if rank == dim:
        return
    if count < dim:
        raise ValueError(
            f"{count:.6g} {'sample' if count == 1 else 'samples'} cannot determine a map of {dim} "
            "observables: give more samples or a ridge > 0"
        )
    raise ValueError(
        f"the {dim} observables have rank {rank} in the samples: leave out those that depend on "
        "others, or give a ridge > 0"
    )
