"""Grids of discrete variables by enumeration of all assignments."""

import itertools

import numpy as np


def enumerate_grid(nodes, across, along):
    """Marginals ``[h, w, k]`` and the log partition function of a small grid."""
    h, w, k = nodes.shape
    across = np.broadcast_to(across, (h, w - 1, k, k))
    along = np.broadcast_to(along, (h - 1, w, k, k))
    x = np.array(list(itertools.product(range(k), repeat=h * w))).reshape(-1, h, w)
    row, column = np.indices((h, w))
    score = nodes[row, column, x].sum(axis=(1, 2))
    for i, j in np.ndindex(h, w - 1):
        score = score + across[i, j, x[:, i, j], x[:, i, j + 1]]
    for i, j in np.ndindex(h - 1, w):
        score = score + along[i, j, x[:, i, j], x[:, i + 1, j]]
    highest = score.max()
    weight = np.exp(score - highest)
    marginals = np.zeros(nodes.shape)
    for value in range(k):
        marginals[..., value] = np.einsum("s,shw->hw", weight, x == value) / weight.sum()
    return marginals, np.log(weight.sum()) + highest
