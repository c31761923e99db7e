"""Accuracy of the groups: meta-agents of a simulation against the scenes that agents see, and
against a clustering that needs no meta-agents.
"""

from typing import Any

import jax
import numpy as np

from vfejax.agents.clusters import mean_divergences, two_way
from vfejax.agents.hierarchy import Hierarchy, Scales
from vfejax.agents.pairwise import frame_field
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.simulate.problem import Problem
from vfejax.problems.scenes import adjusted_rand_index, spectral_clustering
from vfejax.types import Array

__all__ = ["partition", "summary"]


def partition(parent: np.ndarray, num_agents: int, scale: int) -> np.ndarray:
    """The meta-agent of each agent at a scale, ``[n]``: the row of its ancestor there, or of the
    highest that it has below.

    Args:
        parent: row of each row's meta-agent ``[N]``, its own for none.
        num_agents: n.
        scale: 1 or above.

    >>> partition(np.array([3, 3, 2, 4, 4]), 3, 1), partition(np.array([3, 3, 2, 4, 4]), 3, 2)
    (array([3, 3, 2]), array([4, 4, 2]))
    """
    labels = np.arange(num_agents)
    for _ in range(scale):
        labels = parent[labels]
    return labels


def _divergences(problem: Problem, hierarchy: Hierarchy, quadrature: Array | None) -> np.ndarray:
    """Divergences of the agents' beliefs, the larger of both ways, ``[n, n]``, in nats."""
    num = problem.population.phi.shape[0]
    belief, phi = jax.tree.map(
        lambda x: x[:num], (hierarchy.population.belief, hierarchy.population.phi)
    )
    chi = np.ones(phi.shape[:-1], phi.dtype) if problem.supports is None else problem.supports

    @compiled_once
    def found(belief: Any, phi: Array, chi: Array) -> Array:
        return two_way(mean_divergences(belief, frame_field(phi, problem.group), chi, quadrature))

    # Rounding makes the smallest ones negative.
    return np.maximum(np.asarray(found(belief, phi, chi), np.float64), 0.0)


def summary(
    problem: Problem, hierarchy: Hierarchy, scales: Scales, quadrature: Array | None
) -> dict[str, dict[str, Any]]:
    """Number of groups and of agents in them for every scale; where the scenes are known, the
    adjusted Rand index of each partition against them, and that of spectral clustering into as
    many groups on the same divergences.

    Args:
        problem: what was computed.
        hierarchy: the last state.
        scales: how its rows are divided.
        quadrature: weight of each point of the base manifold; 1 by default.

    Returns:
        By name of the partition: ``groups``, ``agents`` and, where it can be told,
        ``adjusted_rand_index``.
    """
    parent, active = np.asarray(hierarchy.parent), np.asarray(hierarchy.active)
    rows: dict[str, dict[str, Any]] = {}
    for s, slots in enumerate(scales.slices[1:], 1):
        found = partition(parent, scales.num_agents, s)
        inside = (found >= slots.start) & (found < slots.stop)
        row: dict[str, Any] = {
            "groups": int(active[slots].sum()),
            "agents": int(inside.sum()),
        }
        if problem.scene is not None:
            row["adjusted_rand_index"] = adjusted_rand_index(found, problem.scene)
        if s == 1 or row["groups"]:
            rows[f"this run, scale {s}"] = row
    if problem.scene is None:
        return rows
    num = int(problem.scene.max()) + 1
    divergences = _divergences(problem, hierarchy, quadrature)
    spectral = spectral_clustering(divergences, num, np.random.default_rng(0))
    for name, labels in (
        ("spectral clustering, same divergences", spectral),
        ("truth", problem.scene),
    ):
        rows[name] = {
            "groups": len(np.unique(labels)),
            "agents": len(labels),
            "adjusted_rand_index": adjusted_rand_index(labels, problem.scene),
        }
    return rows
