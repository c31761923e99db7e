"""Partitions of agents into groups: spectral clustering, and how well two partitions agree.

Both are NumPy's, on the host.
"""

import numpy as np

__all__ = ["adjusted_rand_index", "spectral_clustering"]


def adjusted_rand_index(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two partitions: 1 when they are the same, 0 on average for random ones of their
    sizes.

        ARI = (sum_ij C(n_ij, 2) - E) / ((sum_i C(a_i, 2) + sum_j C(b_j, 2)) / 2 - E)

    with the contingency table n_ij, its margins a_i and b_j, and ``E = sum_i C(a_i, 2) sum_j
    C(b_j, 2) / C(n, 2)``.

    Args:
        a: labels ``[n]`` of any kind; equal labels are one group.
        b: labels ``[n]``.

    Returns:
        At most 1. Two partitions that are both one group, or both n groups, agree: 1.

    Raises:
        ValueError: when the labels are not two arrays of one shape ``[n]``, n at least 1.

    Source: Hubert and Arabie, Journal of Classification 2 (1985) 193, eq. (5).

    >>> adjusted_rand_index([0, 0, 1, 1], [5, 5, 3, 3]), adjusted_rand_index([0, 0, 1, 1], [0] * 4)
    (1.0, 0.0)
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise ValueError(f"labels must be two arrays of one shape [n], got {a.shape} and {b.shape}")
    rows, columns = (np.unique(x, return_inverse=True)[1] for x in (a, b))
    table = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(table, (rows, columns), 1.0)

    def pairs(counts: np.ndarray) -> float:
        return float(np.sum(counts * (counts - 1.0) / 2))

    together = pairs(table)
    first, second = pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    chance = first * second / max(a.size * (a.size - 1) / 2, 1.0)
    largest = (first + second) / 2
    return 1.0 if largest == chance else (together - chance) / (largest - chance)


def spectral_clustering(
    divergences: np.ndarray,
    num_clusters: int,
    rng: np.random.Generator,
    *,
    scale: float | None = None,
    num_starts: int = 10,
) -> np.ndarray:
    """Partition by the leading eigenvectors of the normalised Laplacian of ``exp(-D / scale)``.

    With affinities ``A_ij = exp(-D_ij / scale)`` and degrees d the rows of the leading eigenvectors
    of ``d^-1/2 A d^-1/2``, normalised, are grouped by k-means: the best of several starts, each
    seeded by k-means++.

    Args:
        divergences: ``[n, n]``, not negative; the larger of both directions counts. Infinite for a
            pair that cannot be compared. The diagonal is not read.
        num_clusters: how many groups, from 1 to n.
        rng: NumPy generator of the starts.
        scale: divergence at which the affinity is 1/e. By default the median of all divergences
            that are finite and positive.
        num_starts: number of starts of k-means, at least 1.

    Returns:
        Labels ``[n]`` from 0 to at most ``num_clusters - 1``, numbered by first appearance.

    Raises:
        ValueError: when the divergences are not square, or contain NaN or negative numbers; for a
            number of clusters outside [1, n]; for a scale that is not positive, or no start.

    Source: Ng, Jordan and Weiss, Advances in Neural Information Processing Systems 14 (2001);
    Arthur and Vassilvitskii, Symposium on Discrete Algorithms (2007) 1027, on the starts.

    >>> apart = np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1], [9, 9, 1, 0]])
    >>> spectral_clustering(apart, 2, np.random.default_rng(0)).tolist()
    [0, 0, 1, 1]
    """
    distance = _symmetric_divergences(divergences)
    num = len(distance)
    if not 1 <= num_clusters <= num:
        raise ValueError(f"num_clusters must be from 1 to {num}, got {num_clusters}")
    if num_starts < 1:
        raise ValueError(f"num_starts must be at least 1, got {num_starts}")
    if scale is None:
        apart = distance[np.isfinite(distance) & (distance > 0)]
        scale = float(np.median(apart)) if apart.size else 1.0
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    affinity = np.exp(-distance / scale)
    root = np.sqrt(affinity.sum(axis=1))
    _, vectors = np.linalg.eigh(affinity / (root[:, None] * root))
    rows = vectors[:, -num_clusters:]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(length == 0, 1.0, length)
    best, labels = np.inf, np.zeros(num, int)
    for _ in range(num_starts):
        spread, found = _k_means(rows, num_clusters, rng)
        if spread < best:
            best, labels = spread, found
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _symmetric_divergences(divergences: np.ndarray) -> np.ndarray:
    """The larger of both directions, with 0 on the diagonal."""
    distance = np.array(divergences, np.float64)
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1] or not distance.size:
        raise ValueError(f"divergences must have shape [n, n], not empty, got {distance.shape}")
    np.fill_diagonal(distance, 0.0)
    distance = np.maximum(distance, distance.T)
    if not np.all(distance >= 0):
        raise ValueError(f"divergences must be at least 0, got {np.min(distance)}")
    return distance


def _k_means(
    rows: np.ndarray, num_clusters: int, rng: np.random.Generator, num_iterations: int = 100
) -> tuple[float, np.ndarray]:
    """Lloyd's iteration from centres drawn by k-means++: sum of squares, and labels."""

    def squares(centres: np.ndarray) -> np.ndarray:
        return np.sum((rows[:, None] - centres[None]) ** 2, axis=-1)

    centres = rows[rng.integers(len(rows))][None]
    while len(centres) < num_clusters:
        nearest = squares(centres).min(axis=1)
        total = nearest.sum()
        chances = nearest / total if total > 0 else None
        centres = np.concatenate([centres, rows[rng.choice(len(rows), p=chances)][None]])
    labels = squares(centres).argmin(axis=1)
    for _ in range(num_iterations):
        for cluster in np.unique(labels):  # a cluster that nobody chose keeps its centre
            centres[cluster] = rows[labels == cluster].mean(axis=0)
        previous, labels = labels, squares(centres).argmin(axis=1)
        if np.array_equal(previous, labels):
            break
    return float(squares(centres).min(axis=1).sum()), labels
