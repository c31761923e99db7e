"""A sensor network: rotation synchronisation as free-energy minimisation, with a known answer.

Each of n sensors measures the same landmarks x, several times and with noise, in its own unknown
orientation R_i: ``o = R_i x + noise``. A sensor alone learns the landmarks in its own frame but
nothing about its orientation relative to the others. Aligned, the sensors share one common frame:
alignment recovers the relative rotations ``R_i R_j^T`` and, by pooling, better landmarks.

Everything is defined up to one global rotation, so errors are measured in gauge-invariant form. The
baselines (what a sensor can do alone, what two can do) and the reference (the maximum-likelihood
registration of all measurements) come from NumPy, on the host, and so do the data.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents.observation import Observations, identity_observations

__all__ = [
    "Registration",
    "Truth",
    "landmark_errors",
    "maximum_likelihood",
    "mean_observations",
    "nearest_rotation",
    "pairwise_registration_errors",
    "relative_rotation_errors",
    "simulate",
]


class Truth(NamedTuple):
    """``landmarks [*grid, l, 3]`` in the common frame and ``rotations [n, 3, 3]`` from it to each
    sensor's frame.
    """

    landmarks: np.ndarray
    rotations: np.ndarray


class Registration(NamedTuple):
    """Joint estimate: ``landmarks [l, 3]``, ``rotations [n, 3, 3]`` and the residual sum of
    squares.
    """

    landmarks: np.ndarray
    rotations: np.ndarray
    residual: float


def simulate(
    rng: np.random.Generator,
    num_agents: int,
    *,
    num_landmarks: int = 3,
    num_observations: int = 4,
    noise_std: float = 0.2,
    points: np.ndarray | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Observations, Truth]:
    """Draw a network and its measurements, on the host: nothing here needs compiling.

    Landmarks lie in random directions, 1 to 2 m away. Over a base manifold they also sway with its
    coordinates. Orientations are uniform on SO(3).

    Args:
        rng: NumPy generator.
        num_agents: number of sensors n.
        num_landmarks: l; a belief has k = 3 l components, l copies of spin 1.
        num_observations: measurements m of each sensor, at each point.
        noise_std: standard deviation of the noise of each coordinate, in metres.
        points: coordinates ``[*grid, d]`` of the base manifold in radians; by default a single
            point.
        dtype: precision of the observations.

    Returns:
        Observations with values ``[n, m, *grid, 3 l]``, and the truth.

    Raises:
        ValueError: when there is no sensor, no landmark or no measurement.

    >>> observations, truth = simulate(np.random.default_rng(0), 5, num_landmarks=2)
    >>> observations.values.shape, truth.rotations.shape
    ((5, 4, 6), (5, 3, 3))
    """
    for name, count in (
        ("num_agents", num_agents),
        ("num_landmarks", num_landmarks),
        ("num_observations", num_observations),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    landmarks = rng.standard_normal((num_landmarks, 3))
    landmarks *= rng.uniform(1.0, 2.0, (num_landmarks, 1)) / np.linalg.norm(
        landmarks, axis=-1, keepdims=True
    )
    rotations = nearest_rotation(rng.standard_normal((num_agents, 3, 3)))
    if points is not None and points.shape[-1]:
        sway = 0.5 * rng.standard_normal((points.shape[-1], num_landmarks, 3))
        landmarks = landmarks + np.einsum(
            "...d,dli->...li", np.sin(np.asarray(points, np.float64)), sway
        )
    clean = np.einsum("nij,...lj->n...li", rotations, landmarks)
    clean = clean.reshape(*clean.shape[:-2], 3 * num_landmarks)
    noise = noise_std * rng.standard_normal((num_agents, num_observations, *clean.shape[1:]))
    return identity_observations(
        jax.device_put(np.asarray(clean[:, None] + noise, dtype)), noise_std
    ), Truth(landmarks, rotations)


def mean_observations(observations: Observations) -> np.ndarray:
    """Each sensor's mean measurement as landmarks ``[n, *grid, l, 3]``: the sufficient statistic
    where all measurements are present.

    >>> observations, _ = simulate(np.random.default_rng(0), 5, num_landmarks=2)
    >>> mean_observations(observations).shape
    (5, 2, 3)
    """
    mean = np.asarray(observations.values, np.float64).mean(axis=1)
    return mean.reshape(*mean.shape[:-1], -1, 3)


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """Rotation that maximises ``tr(R^T M)``: the polar factor of M, turned where it reflects.

    >>> nearest_rotation(np.diag([2.0, 3.0, -1.0])).round(3) + 0.0
    array([[1., 0., 0.],
           [0., 1., 0.],
           [0., 0., 1.]])
    """
    u, _, vt = np.linalg.svd(matrix)
    u[..., -1] *= np.sign(np.linalg.det(u @ vt))[..., None]
    return u @ vt


def _registration_rotations(measured: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Rotations R that best map landmarks to measurements, ``min sum_l |y_l - R x_l|^2``
    (Kabsch).
    """
    return nearest_rotation(np.einsum("...li,...lj->...ij", measured, landmarks))


def maximum_likelihood(
    measured: np.ndarray, *, num_starts: int = 8, num_iterations: int = 500
) -> Registration:
    """Maximum-likelihood landmarks and rotations: minimise ``sum_i,l |y_il - R_i x_l|^2`` over all
    of them.

    It minimises exactly over landmarks and over rotations in turns. Several sensors' own
    measurements serve as starts, and the best end is returned.

    Args:
        measured: mean measurements ``[n, l, 3]``, equally often measured by every sensor.
        num_starts: number of different starts; at most n are used.
        num_iterations: sweeps of each start; it stops when the residual no longer falls.

    Returns:
        Landmarks, rotations and the residual.

    >>> observations, truth = simulate(np.random.default_rng(0), 5, noise_std=1e-6)
    >>> fit = maximum_likelihood(mean_observations(observations))
    >>> bool(relative_rotation_errors(fit.rotations, truth.rotations).max() < 1e-5)
    True

    Source: Gower, Psychometrika 40 (1975) 33 (generalised Procrustes analysis), without translation
    and scale.
    """
    best = Registration(measured[0], np.broadcast_to(np.eye(3), (len(measured), 3, 3)), np.inf)
    starts = np.linspace(0, len(measured) - 1, min(num_starts, len(measured))).astype(int)
    for start in measured[starts]:
        found = _in_turns(measured, start, num_iterations)
        if found.residual < best.residual:
            best = found
    return best


def _in_turns(measured: np.ndarray, landmarks: np.ndarray, num_iterations: int) -> Registration:
    """Rotations at given landmarks, and landmarks at given rotations, until the residual stays."""
    previous = np.inf
    for _ in range(num_iterations):
        rotations = _registration_rotations(measured, landmarks[None])
        landmarks = np.einsum("nij,nli->lj", rotations, measured) / len(measured)
        residual = float(np.sum((measured - np.einsum("nij,lj->nli", rotations, landmarks)) ** 2))
        if residual >= previous * (1 - 1e-14):
            break
        previous = residual
    return Registration(landmarks, rotations, residual)


def _angles(rotations: np.ndarray) -> np.ndarray:
    skew = rotations - np.swapaxes(rotations, -1, -2)
    sine = 0.5 * np.sqrt(skew[..., 2, 1] ** 2 + skew[..., 0, 2] ** 2 + skew[..., 1, 0] ** 2)
    return np.arctan2(sine, 0.5 * (np.trace(rotations, axis1=-2, axis2=-1) - 1.0))


def relative_rotation_errors(rotations: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angle between estimated and true ``R_i R_j^T`` for every pair i < j, in radians; free of the
    global gauge.

    Args:
        rotations: estimates ``[n, 3, 3]``.
        truth: ``[n, 3, 3]``.

    Returns:
        ``[n (n - 1) / 2]``, empty for a single sensor.

    >>> rotations = nearest_rotation(np.random.default_rng(0).standard_normal((4, 3, 3)))
    >>> bool(relative_rotation_errors(rotations, rotations).max() < 1e-12)
    True
    """
    defect = np.einsum(
        "nji,njk->nik", np.asarray(truth, np.float64), np.asarray(rotations, np.float64)
    )
    i, j = np.triu_indices(len(defect), 1)
    return _angles(np.einsum("pij,pkj->pik", defect[i], defect[j]))


def pairwise_registration_errors(measured: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Relative-rotation errors of the baseline in which each pair registers its own two
    measurements alone, in radians ``[n (n - 1) / 2]``.

    >>> observations, truth = simulate(np.random.default_rng(0), 4, noise_std=1e-6)
    >>> measured = mean_observations(observations)
    >>> bool(pairwise_registration_errors(measured, truth.rotations).max() < 1e-5)
    True
    """
    i, j = np.triu_indices(len(measured), 1)
    estimate = _registration_rotations(measured[i], measured[j])
    truth = np.asarray(truth, np.float64)
    target = np.einsum("pij,pkj->pik", truth[i], truth[j])
    return _angles(np.einsum("pij,pkj->pik", estimate, target))


def landmark_errors(landmarks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root-mean-square distance of landmarks from the truth after the best rotation, in metres.

    Args:
        landmarks: estimates ``[..., l, 3]``, each in any orientation.
        truth: ``[l, 3]``, or one per estimate.

    Returns:
        ``[...]``.

    >>> landmarks = np.eye(3)
    >>> bool(landmark_errors(landmarks[:, ::-1] * [1, 1, -1], landmarks) < 1e-12)  # only turned
    True
    """
    truth = np.broadcast_to(np.asarray(truth, np.float64), np.shape(landmarks))
    landmarks = np.asarray(landmarks, np.float64)
    rotations = _registration_rotations(landmarks, truth)
    residual = landmarks - np.einsum("...ij,...lj->...li", rotations, truth)
    return np.sqrt(np.mean(np.sum(residual**2, axis=-1), axis=-1))
