"""Linear maps ``y ~ K x`` of lifted observables, from streaming statistics.

All read a :class:`vfejax.koopman.streaming.Factor`, so the data are not needed again. With R = [[C,
D], [0, E]] its blocks, ``K^T = C^-1 D`` is the least-squares map and E its residual.

Noise. Least squares takes measurement noise of variance s^2 on x for signal: E K is ``K (1 + s^2 m
G^-1)^-1`` and eigenvalues shrink towards 0. Total least squares, the forward-backward map and the
corrected one undo that, and cost variance when samples are few.

Derivatives. Those of :func:`ridge` and :func:`mean_squared_error` exist in both modes, those of the
maps from singular values in forward mode alone, and :func:`forward_backward` has none.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.koopman import _compensated, _linear_algebra, _two_floats
from vfejax.koopman._two_floats import TwoFloats
from vfejax.koopman.streaming import Factor
from vfejax.numerics import matmul, matmul_nt, matmul_tn, transpose
from vfejax.types import Array

__all__ = [
    "forward_backward",
    "mean_squared_error",
    "noise_corrected",
    "reduced_rank",
    "ridge",
    "total_least_squares",
]


def _ridge_rows(factor: Factor, ridge: ArrayLike) -> Array:
    """``sqrt(ridge)`` times the identity, which is followed by zeros."""
    if not isinstance(ridge, jax.core.Tracer):
        if not np.all(np.asarray(ridge) >= 0):
            raise ValueError(f"ridge must not be negative, got {ridge}")
        if np.ndim(ridge) == 0 and float(np.asarray(ridge)) == 0.0:
            return jnp.zeros((0, factor.root.shape[0]), factor.now.dtype)
    dim, dtype = factor.now.shape[0], factor.now.dtype
    return jnp.eye(dim, factor.root.shape[0], dtype=dtype) * jnp.sqrt(jnp.asarray(ridge, dtype))


def _fit(factor: Factor, ridge: ArrayLike) -> tuple[Array, Array]:
    """``K^T = C^-1 D`` and D, of the data and the ridge."""
    dim, rows = factor.now.shape[0], _ridge_rows(factor, ridge)
    if factor.low is None:
        root = _linear_algebra.absorb(factor.root, rows) if len(rows) else factor.root
        return _linear_algebra.solve(root[:dim, :dim], root[:dim, dim:]), root[:dim, dim:]
    wide = _compensated.absorb(TwoFloats(factor.root, factor.low), _two_floats.widen(rows))
    now, cross = (
        TwoFloats(*(a[:dim, part] for a in wide)) for part in (slice(dim), slice(dim, None))
    )
    return _compensated.solve(now, cross), cross.high


def _check_rank(rank: int, limit: int) -> None:
    if not 1 <= rank <= limit:
        raise ValueError(f"rank must be in 1 .. {limit}, the dimension, got {rank}")


def _check_square(factor: Factor, name: str) -> None:
    if factor.cross.shape[0] != factor.cross.shape[1]:
        raise ValueError(
            f"{name} needs now and following of one dimension, got {factor.cross.shape[0]} and "
            f"{factor.cross.shape[1]}"
        )


def ridge(factor: Factor, ridge: ArrayLike = 0.0) -> Array:
    """The map that minimises ``sum_i w_i |y_i - K x_i|^2 + ridge |K|^2``.

        K = A (G + ridge I)^-1,    G = X^T W X,  A = Y^T W X

    Args:
        factor: statistics of the data.
        ridge: not negative, in units of G, which grows with the number of samples.

    Returns:
        K ``[e, d]``; not finite, or rounding errors alone, where G + ridge I is singular, which
        :func:`vfejax.koopman.streaming.check` finds.

    Raises:
        ValueError: for a negative ridge, where its value is known.

    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> factor = streaming.update(streaming.init(2), x, x @ jnp.array([[0.5, 0.0], [1.0, 2.0]]))
    >>> ridge(factor).round(4).tolist()
    [[0.5, 1.0], [0.0, 2.0]]
    """
    return transpose(_fit(factor, ridge)[0])


def reduced_rank(factor: Factor, rank: int, ridge: ArrayLike = 0.0) -> Array:
    """The minimiser of :func:`ridge` among the maps of a given rank.

    With C and D the blocks that contain the ridge and V_r the leading right singular vectors of D,
    ``K = V_r V_r^T D^T C^-T``.

    Args:
        factor: statistics of the data.
        rank: r in 1 .. min(d, e).
        ridge: not negative.

    Returns:
        K ``[e, d]``.

    Raises:
        ValueError: for a rank or a ridge out of range.

    Source: Kostic et al., Learning dynamical systems via Koopman operator regression in reproducing
    kernel Hilbert spaces (2022), for finitely many features.

    >>> from vfejax.koopman import streaming
    >>> factor = streaming.update(streaming.init(2), jnp.eye(2), jnp.diag(jnp.array([2.0, 1.0])))
    >>> reduced_rank(factor, 1).round(4).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    _check_rank(rank, min(factor.cross.shape))
    solved, cross = _fit(factor, ridge)
    leading = _linear_algebra.svd(cross)[2][:rank]
    return matmul_tn(leading, matmul_nt(leading, solved))


def total_least_squares(factor: Factor, rank: int | None = None) -> Array:
    """The map that minimises the errors of x and of y together: unbiased under equal white noise on
    both.

    The data are projected on the r leading singular vectors of ``[X Y]``, then fitted: with V_r^T =
    [V_x V_y] those of R, ``K^T = V_x^+ V_y``.

    Args:
        factor: statistics of the data; weights and forgetting included.
        rank: r in 1 .. d, the dimension of the signal; by default d.

    Returns:
        K ``[e, d]``.

    Raises:
        ValueError: for a rank out of range.

    Source: Hemati, Rowley, Deem and Cattafesta, De-biasing the dynamic mode decomposition (2017).

    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0], [2.0]])
    >>> total_least_squares(streaming.update(streaming.init(1), x, 3.0 * x)).round(4).tolist()
    [[3.0]]
    """
    dim = factor.now.shape[0]
    rank = dim if rank is None else rank
    _check_rank(rank, dim)
    leading = _linear_algebra.svd(factor.root)[2][:rank]
    return transpose(_linear_algebra.divide(leading[:, :dim], leading[:, dim:]))


def forward_backward(factor: Factor) -> Array:
    """The geometric mean of the map forwards and the inverse of the one backwards, whose shrinking
    by noise cancels: outside ``jit``, as it takes eigenvectors.

        K = (F B^-1)^(1/2),    F = A G^-1,  B = A^T H^-1

    Of the square roots of each eigenvalue, the one that is nearer to F is taken. The cancellation
    is exact only where now and following have equal covariances.

    Args:
        factor: statistics of the data, with d = e.

    Returns:
        K ``[d, d]``; NaN where G or H is singular, as H is for a system that forgets a direction.

    Raises:
        ValueError: for d other than e.

    Source: Dawson, Hemati, Williams and Rowley, Characterizing and correcting for the effect of
    sensor noise in the dynamic mode decomposition (2016), section 3.3.

    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0], [2.0]])
    >>> forward_backward(streaming.update(streaming.init(1), x, -3.0 * x)).round(4).tolist()
    [[-3.0]]
    """
    _check_square(factor, "forward_backward")
    dim, root = factor.now.shape[0], factor.root
    swapped = jnp.concatenate([root[:, dim:], root[:, :dim]], axis=1)
    swapped = _linear_algebra.absorb(jnp.zeros_like(root), swapped)
    forward = np.asarray(_linear_algebra.solve(factor.now, factor.cross)).T
    backward = np.asarray(_linear_algebra.solve(swapped[:dim, :dim], swapped[:dim, dim:])).T
    if not (np.isfinite(forward).all() and np.isfinite(backward).all()):
        return jnp.full((dim, dim), jnp.nan, factor.now.dtype)
    values, vectors = np.linalg.eig(np.linalg.solve(backward.T, forward.T).T)
    roots = np.sqrt(values.astype(np.result_type(values, np.complex64)))
    left = np.linalg.inv(vectors)
    near = np.diagonal(left @ forward @ vectors)
    roots = np.where(np.abs(roots - near) > np.abs(roots + near), -roots, roots)
    return jnp.asarray(np.real((vectors * roots) @ left).astype(forward.dtype))


def noise_corrected(factor: Factor, variance: ArrayLike) -> Array:
    """The least-squares map without the share of a known noise in G: ``K = A (G - m s^2 I)^-1``.

    With ``C = U S V^T`` it is ``D^T U (S - m s^2 S^-1)^-1 V^T``, which never forms G.

    Args:
        factor: statistics of the data; m is their ``count``.
        variance: s^2 of white measurement noise on each component of now, independent of that on
            following. Delay coordinates share noise between the two and need another correction.

    Returns:
        K ``[e, d]``; NaN where the noise is as strong as the weakest direction of the data.

    Raises:
        ValueError: for a negative variance, where its value is known.

    Source: Dawson, Hemati, Williams and Rowley (2016), section 3.1.

    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0], [2.0]])
    >>> noise_corrected(streaming.update(streaming.init(1), x, x), 0.5).round(4).tolist()
    [[1.25]]
    """
    if not isinstance(variance, jax.core.Tracer) and not np.all(np.asarray(variance) >= 0):
        raise ValueError(f"variance must not be negative, got {variance}")
    left, values, right = _linear_algebra.svd(factor.now)
    noise = jnp.sqrt(factor.count * jnp.asarray(variance, factor.now.dtype))
    # Not the difference of their squares, which overflow or vanish long before.
    signal = values - noise * (noise / values)
    gain = jnp.where(signal <= 0, jnp.nan, 1.0 / signal)
    return matmul(matmul_tn(factor.cross, left) * gain[None, :], right)


def mean_squared_error(factor: Factor, operator: Array) -> Array:
    """``sum_i w_i |y_i - K x_i|^2 / sum_i w_i`` of any map on the data of a factor, training or
    held out.

    It is ``(|D - C K^T|^2 + |E|^2) / m``: no differences of large sums.

    Args:
        factor: statistics of the data.
        operator: K ``[e, d]``.

    Returns:
        A number, summed over the components of y.

    Raises:
        ValueError: for a map of another shape.

    >>> from vfejax.koopman import streaming
    >>> x = jnp.array([[1.0], [2.0]])
    >>> round(float(mean_squared_error(streaming.update(streaming.init(1), x, x), jnp.eye(1))), 4)
    0.0
    """
    if operator.shape != factor.cross.shape[::-1]:
        raise ValueError(
            f"operator must be [e, d] = {factor.cross.shape[::-1]}, got shape {operator.shape}"
        )
    left = factor.cross - matmul_nt(factor.now, operator)
    return (jnp.sum(left**2) + jnp.sum(factor.residual**2)) / factor.count
