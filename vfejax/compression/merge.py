"""Merging of experts: those with similar outputs become one, the mean of their weights.

Hidden units of different experts stand in different order; before weights are averaged, the units
of each are brought to the order in which they fit those of the busiest one. All is decided on the
host, from statistics of activations.

Source: Li et al., Merge, then compress: demystify efficient SMoE with hints from its routing policy
(MC-SMoE, 2024). The router there goes on choosing among all experts; here its columns are averaged
too, so that it shrinks.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Merged", "aligned", "clusters", "merge"]

_RARE = 1e-9  # counted as the frequency of an expert that reads nothing, so that means exist


class Merged(NamedTuple):
    """Experts of one layer after a merger: kernels ``[m, d, f]`` and ``[m, f, d]``, and how the new
    router's columns are made of the old ones, ``[e, m]``.
    """

    kernel_in: np.ndarray
    kernel_out: np.ndarray
    mixing: np.ndarray


def clusters(similarity: np.ndarray, frequency: np.ndarray, count: int) -> np.ndarray:
    """The group of every expert: time and again the two groups that are most similar join.

    Similarity of groups is the mean over pairs, weighted by how often the experts are used.

    Args:
        similarity: of the outputs of two experts, symmetric ``[e, e]``.
        frequency: how often each is used, ``[e]``.
        count: number of groups.

    Returns:
        Integers ``[e]``, from 0 to ``count - 1`` in order of first appearance.

    Raises:
        ValueError: unless ``1 <= count <= e``.

    >>> similarity = np.asarray([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]])
    >>> clusters(similarity, np.ones(3) / 3, 2).tolist()
    [0, 1, 0]
    """
    number = len(frequency)
    if not 1 <= count <= number:
        raise ValueError(f"count must lie between 1 and the {number} experts, got {count}")
    weights = np.maximum(np.asarray(frequency, np.float64), _RARE)
    similarity = np.asarray(similarity, np.float64)
    groups = [[expert] for expert in range(number)]

    def near(one: list[int], other: list[int]) -> float:
        pairs = np.outer(weights[one], weights[other])
        return float(np.sum(pairs * similarity[np.ix_(one, other)]) / np.sum(pairs))

    while len(groups) > count:
        pairs = [(i, j) for j in range(len(groups)) for i in range(j)]
        i, j = max(pairs, key=lambda pair: near(groups[pair[0]], groups[pair[1]]))
        groups[i] += groups.pop(j)
    labels = np.empty(number, np.int64)
    for label, group in enumerate(sorted(groups, key=min)):
        labels[group] = label
    return labels


def aligned(kernel_in: np.ndarray, kernel_out: np.ndarray, like: tuple) -> np.ndarray:
    """The order of an expert's hidden units in which they fit best those of another.

    Units fit by the sum of the cosines of what they read and of what they write; the assignment is
    the best there is.

    Args:
        kernel_in: ``[d, f]``.
        kernel_out: ``[f, d]``.
        like: the two kernels of the other expert.

    Returns:
        Integers ``[f]``: which unit comes at each place.

    >>> first, last = np.asarray([[1.0, 0.0], [0.0, 2.0]]), np.eye(2)
    >>> aligned(first[:, ::-1], last[::-1], (first, last)).tolist()
    [1, 0]
    """

    # Here, because it takes longer to import than the rest of the package's arithmetic.
    from scipy.optimize import linear_sum_assignment

    def unit(rows: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
        return rows / np.where(lengths <= 0, 1.0, lengths)

    fit = unit(like[0].T) @ unit(kernel_in.T).T + unit(like[1]) @ unit(kernel_out).T
    return linear_sum_assignment(fit, maximize=True)[1]


def merge(
    kernel_in: np.ndarray, kernel_out: np.ndarray, frequency: np.ndarray, labels: np.ndarray
) -> Merged:
    """Experts of one layer, each the mean of a group, weighted by how often its members are used.

    Args:
        kernel_in: ``[e, d, f]``.
        kernel_out: ``[e, f, d]``.
        frequency: how often each is used, ``[e]``.
        labels: the group of each, ``[e]``.

    Returns:
        The merged experts, in float64.

    Raises:
        ValueError: for weights that are not finite.

    >>> kernels = np.asarray([[[1.0]], [[3.0]]])
    >>> found = merge(kernels, kernels, np.asarray([0.75, 0.25]), np.zeros(2, int))
    >>> found.kernel_in.tolist(), found.mixing.tolist()
    ([[[1.5]]], [[0.75], [0.25]])
    """
    first, last = np.asarray(kernel_in, np.float64), np.asarray(kernel_out, np.float64)
    for name, kernel in (("kernel_in", first), ("kernel_out", last)):
        if not np.all(np.isfinite(kernel)):
            raise ValueError(f"{name} is not finite, so units of experts cannot be told apart")
    weights = np.maximum(np.asarray(frequency, np.float64), _RARE)
    mixing = np.zeros((len(labels), int(np.max(labels)) + 1))
    mixing[np.arange(len(labels)), labels] = weights
    mixing /= np.sum(mixing, axis=0)
    merged_in, merged_out = [], []
    for group in mixing.T:
        leader = int(np.argmax(group))
        total_in, total_out = np.zeros_like(first[0]), np.zeros_like(last[0])
        for expert in np.flatnonzero(group):
            order = aligned(first[expert], last[expert], (first[leader], last[leader]))
            total_in += group[expert] * first[expert][:, order]
            total_out += group[expert] * last[expert][order]
        merged_in.append(total_in)
        merged_out.append(total_out)
    return Merged(np.stack(merged_in), np.stack(merged_out), mixing)
