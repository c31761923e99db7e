"""Errors of a simulation against the truth, and the smallest that alignment can reach."""

import math
from typing import NamedTuple

import numpy as np

from vfejax.agents.population import Population
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.simulate.problem import Problem
from vfejax.errors import UserError
from vfejax.geometry import irreps
from vfejax.geometry.transport import frames
from vfejax.problems import sensor_network
from vfejax.problems.sensor_network import Truth
from vfejax.types import Array

__all__ = ["References", "achieved", "errors", "references", "rms", "rotation_matrices"]

# Errors against the truth are taken at no more points of the base manifold than this, evenly
# spread.
_MOST_POINTS = 64


class _Point(NamedTuple):
    """One scene at one point of the base manifold: who sees it there, what they measured, and the
    true landmarks.
    """

    place: int
    agents: np.ndarray
    measured: np.ndarray
    landmarks: np.ndarray


class References(NamedTuple):
    """What is possible without alignment, and at best: ``(landmark error in m, rotation errors in
    rad)`` pooled over points and scenes.
    """

    alone: tuple[float, np.ndarray]
    pairs: tuple[float, np.ndarray]
    best: tuple[float, np.ndarray]


def rms(values: np.ndarray) -> float:
    """Root of the mean square over all entries; NaN where there is none."""
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else math.nan


@compiled_once
def rotation_matrices(phi: Array) -> Array:
    """Rotations ``[..., 3, 3]`` of frames ``phi [..., 3]``, whatever irreps the beliefs have."""
    return frames(phi, irreps.so3((1,)))


def _truth(problem: Problem) -> Truth:
    if problem.truth is None:
        raise ValueError("errors need a problem whose truth is known")
    return problem.truth


def _points(problem: Problem) -> list[_Point]:
    """Points with at least two agents that see the same scene, at most ``_MOST_POINTS`` of each
    scene.
    """
    if problem.observations is None:
        raise ValueError("errors need a problem with observations")
    measured = sensor_network.mean_observations(problem.observations)
    measured = measured.reshape(measured.shape[0], -1, *measured.shape[-2:])
    num_agents, num_points = measured.shape[:2]
    scene = np.zeros(num_agents, int) if problem.scene is None else problem.scene
    landmarks = _truth(problem).landmarks.reshape(-1, num_points, *measured.shape[-2:])
    present = np.ones((num_agents, num_points), bool)
    if problem.supports is not None:
        present = np.asarray(problem.supports).reshape(num_agents, -1) > 0
    found = []
    for number, truth in enumerate(landmarks):
        here = present & (scene == number)[:, None]
        crowded = np.flatnonzero(here.sum(axis=0) >= 2)
        chosen = np.linspace(0, len(crowded) - 1, min(len(crowded), _MOST_POINTS)).astype(int)
        found += [
            _Point(int(c), here[:, c], measured[here[:, c], c], truth[c])
            for c in crowded[np.unique(chosen)]
        ]
    return found


def references(problem: Problem) -> References | None:
    """Errors of an agent alone, of two agents, and of the maximum-likelihood registration; None
    when the truth is unknown.
    """
    if problem.truth is None:
        return None
    truth = problem.truth.rotations
    points = _points(problem)
    if not points:
        raise UserError(
            "no two agents overlap anywhere on the base manifold; give a larger --support-radius"
        )
    turned = [truth[p.agents] for p in points]
    fits = [sensor_network.maximum_likelihood(p.measured) for p in points]
    of_each = list(zip(points, fits, turned, strict=True))
    relative = sensor_network.relative_rotation_errors
    alone = [relative(np.broadcast_to(np.eye(3), true.shape), true) for true in turned]
    pairs = [
        sensor_network.pairwise_registration_errors(p.measured, true) for p, _, true in of_each
    ]
    together = [relative(fit.rotations, true) for _, fit, true in of_each]
    own = [sensor_network.landmark_errors(p.measured, p.landmarks) for p in points]
    fitted = [sensor_network.landmark_errors(fit.landmarks, p.landmarks) for p, fit, _ in of_each]
    unaligned = rms(np.concatenate(own))
    return References(
        alone=(unaligned, np.concatenate(alone)),
        pairs=(unaligned, np.concatenate(pairs)),
        best=(rms(np.array(fitted)), np.concatenate(together)),
    )


def achieved(problem: Problem, population: Population) -> tuple[float, np.ndarray]:
    """Landmark error (m) and rotation errors (rad) of a population, pooled over points."""
    truth = _truth(problem).rotations
    num_agents = len(truth)
    rotations = np.asarray(rotation_matrices(population.phi)).reshape(num_agents, -1, 3, 3)
    means = np.asarray(population.belief.mean)
    means = means.reshape(num_agents, -1, means.shape[-1] // 3, 3)
    points = _points(problem)
    turns = [
        sensor_network.relative_rotation_errors(rotations[p.agents, p.place], truth[p.agents])
        for p in points
    ]
    places = [sensor_network.landmark_errors(means[p.agents, p.place], p.landmarks) for p in points]
    return rms(np.concatenate(places)), np.concatenate(turns)


def errors(problem: Problem, population: Population) -> dict[str, float]:
    """Columns of the metrics that compare with the truth: none when it is unknown."""
    if problem.truth is None:
        return {}
    place, turns = achieved(problem, population)
    return {"landmark_error_m": place, "rotation_error_deg": math.degrees(rms(turns))}
