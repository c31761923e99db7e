"""Gaussians in a plane: projections of beliefs, outlines of their ellipses, and limits that hold
them.
"""

import numpy as np
from numpy.typing import ArrayLike

from vfejax.figures.style import as_array

__all__ = ["axis_labels", "check_axes", "ellipses", "limits", "project", "project_truth"]

TURN = np.linspace(0.0, 2 * np.pi, 49)
CIRCLE = np.stack([np.cos(TURN), np.sin(TURN)])[:, :-1]


def check_axes(axes: tuple[int, int], block: int) -> None:
    """Refuse axes that are not two different coordinates of a block.

    Raises:
        ValueError: naming the axes.
    """
    if len(set(axes)) != 2 or not all(0 <= axis < block for axis in axes):
        raise ValueError(
            f"axes must be two different coordinates below block = {block}, got {tuple(axes)}"
        )


def axis_labels(axes: tuple[int, int], block: int, unit: str) -> list[str]:
    """Names of the two coordinates that are drawn.

    Args:
        axes: the coordinates.
        block: components per block; up to three are called x, y and z.
        unit: unit of the components; "" for none.
    """
    return [
        f"{'xyz'[a] if block <= 3 else f'component {a}'}{f' ({unit})' if unit else ''}"
        for a in axes
    ]


def ellipses(centres: np.ndarray, covs: np.ndarray, radius: float) -> np.ndarray:
    """Outlines ``(x - mu)^T Sigma^-1 (x - mu) = radius^2``, ``[n, 48, 2]``.

    Args:
        centres: means ``[n, 2]``.
        covs: covariances ``[n, 2, 2]``.
        radius: in standard deviations.
    """
    # Rounding may turn a vanishing variance negative; it is drawn as the line it is.
    variances, axes = np.linalg.eigh(covs)
    return centres[:, None] + radius * np.einsum(
        "nij,nj,jt->nti", axes, np.sqrt(np.maximum(variances, 0.0)), CIRCLE
    )


def limits(
    centres: np.ndarray, covs: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a square that holds every mean, every true point and the typical 2 sigma ellipse
    around them.

    Args:
        centres: means ``[n, 2]``.
        covs: covariances ``[n, 2, 2]``.
        truth: true points ``[m, 2]``.
    """
    points = np.concatenate([centres, truth])
    points = points[np.all(np.isfinite(points), axis=1)]
    if not len(points):
        return -np.ones(2), np.ones(2)
    variances = covs[..., (0, 1), (0, 1)]
    variances = variances[np.isfinite(variances) & (variances >= 0)]
    reach = 2.0 * np.sqrt(np.median(variances)) if variances.size else 0.0
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    half = np.max(points.max(axis=0) - points.min(axis=0)) / 2 + reach
    half = 1.05 * half if half > 0 else 1.0
    return middle - half, middle + half


def project(
    name: str, means: ArrayLike, covs: ArrayLike, axes: tuple[int, int], block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Marginals in the plane, of the agents whose belief is finite.

    Args:
        name: what to call the arguments in an error.
        means: ``[n, k]``.
        covs: covariances ``[n, k, k]``.
        axes: the two coordinates of each block.
        block: components per block, a divisor of k.

    Returns:
        Means ``[n, blocks, 2]`` and covariances ``[n, blocks, 2, 2]``.

    Raises:
        ValueError: when a shape does not fit, naming the argument.
    """
    mean = as_array(f"{name} means", means, "n", "k")
    n, k = mean.shape
    if k % block:
        raise ValueError(f"{name} means must have k a multiple of block = {block}, got k = {k}")
    cov = as_array(f"{name} covariances", covs, n, k, k)
    known = np.all(np.isfinite(mean), axis=1) & np.all(np.isfinite(cov), axis=(1, 2))
    which = np.arange(0, k, block)[:, None] + np.array(axes)
    return mean[known][:, which], cov[known][:, which[:, :, None], which[:, None, :]]


def project_truth(truth: ArrayLike | None, axes: tuple[int, int], block: int) -> np.ndarray:
    """True points in the plane, ``[m, 2]``; m = 0 without truth.

    Args:
        truth: points ``[m, block]``, already projected ones ``[m, 2]``, or None.
        axes: the two coordinates of each block.
        block: components per block.

    Raises:
        ValueError: when the shape does not fit.
    """
    if truth is None:
        return np.empty((0, 2))
    points = as_array("truth", truth, "m", "coordinates")
    if points.shape[1] == block:
        return points[:, list(axes)]
    if points.shape[1] != 2:
        raise ValueError(f"truth must have shape [m, {block}] or [m, 2], got {points.shape}")
    return points
