"""Which sensors see the same scene? Grouping by free-energy minimisation, with a known answer.

Each of n sensors looks at one of several scenes, which are sets of landmarks, from its own unknown
orientation R_i: ``o = R_i x_s(i) + noise``. Nobody says who belongs together. Sensors of one scene
can find frames in which their beliefs agree; those of different scenes cannot, whatever they turn
to. Attention at a finite temperature does both at once: a sensor aligns with whomever it attends
to, and attends to those with whom it agrees.

Temperature. Divergences start at some thousands of nats, since nothing is aligned. At a low
temperature a sensor then attends to the one that happens to look nearest, and stays wrong. At a
high one all sensors align with all, by what the scenes have in common, and their beliefs widen
until the scenes differ by a nat or less. That state is stable at any temperature above this. So
cool: :func:`cooling` from 1000 to 0.3 nats, with the attractive alignment energy
(:func:`vfejax.agents.alignment.entropic`) at ten times the weight of the observations. With the
defaults of :func:`simulate` and 400 steps of :func:`vfejax.problems.population_flow`,
divergences within a scene mostly end below 0.1 nats, and between scenes above 6. On twenty seeds
that were not used to choose these numbers the groups of agents within 0.5 nats were the scenes in
13. In five a sensor got stuck in a wrong orientation and stayed apart, and in five two scenes that
are nearly alike merged (both happened in three). Spectral clustering of the divergences was right
in 15, and that of the registration distances below in all 20.

Two measurements that differ by a rotation alone look different until the sensors have aligned, so
divergences say who belongs together at the end of the flow and not at its start. The reference that
needs no flow is :func:`registration_distances`: the best rotation of every pair by itself. Groups
are compared with the truth by :func:`vfejax.problems.partitions.adjusted_rand_index`, and with
those that ``spectral_clustering`` of the same module finds in the same divergences. Data, baselines
and scores are NumPy's, on the host.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.agents.observation import Observations, identity_observations
from vfejax.numerics import as_floating
from vfejax.problems.partitions import adjusted_rand_index, spectral_clustering
from vfejax.problems.sensor_network import nearest_rotation
from vfejax.types import Array

__all__ = [
    "SceneTruth",
    "adjusted_rand_index",
    "cooling",
    "registration_distances",
    "simulate",
    "spectral_clustering",
]


class SceneTruth(NamedTuple):
    """What the sensors do not know.

    Attributes:
        labels: the scene of each sensor, ``[n]``.
        landmarks: ``[scenes, l, 3]`` in the common frame, in metres.
        rotations: from the common frame to each sensor's, ``[n, 3, 3]``.
    """

    labels: np.ndarray
    landmarks: np.ndarray
    rotations: np.ndarray


def simulate(
    rng: np.random.Generator,
    num_agents: int = 32,
    num_scenes: int = 4,
    *,
    num_landmarks: int = 3,
    num_observations: int = 4,
    noise_std: float = 0.2,
    contrast: float = 0.5,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[Observations, SceneTruth]:
    """Draw scenes, sensors and their measurements, on the host: nothing here needs compiling.

    The scenes are variations of one layout, whose landmarks lie in random directions, 1 to 2 m
    away. In every scene each coordinate of a landmark is moved by a normal number of standard
    deviation ``contrast``. Each scene has as many sensors as the others, or one more. Orientations
    are uniform on SO(3).

    Args:
        rng: NumPy generator.
        num_agents: number of sensors n.
        num_scenes: number of scenes, at most n.
        num_landmarks: l; a belief has k = 3 l components, l copies of spin 1.
        num_observations: measurements m of each sensor.
        noise_std: standard deviation of the noise of each coordinate, in metres.
        contrast: how far the scenes differ, in metres. What two sensors can tell apart is about
            ``noise_std sqrt(2 / m)`` per coordinate.
        dtype: precision of the observations.

    Returns:
        Observations with values ``[n, m, 3 l]``, and the truth.

    Raises:
        ValueError: for a count below 1, or fewer sensors than scenes.

    >>> observations, truth = simulate(np.random.default_rng(0), 7, 2)
    >>> observations.values.shape, np.bincount(truth.labels).tolist()
    ((7, 4, 9), [4, 3])
    """
    for name, count in (
        ("num_agents", num_agents),
        ("num_scenes", num_scenes),
        ("num_landmarks", num_landmarks),
        ("num_observations", num_observations),
    ):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
    if num_agents < num_scenes:
        raise ValueError(
            f"num_agents must be at least num_scenes = {num_scenes}, got {num_agents}: a scene "
            "that nobody sees is in no data"
        )
    layout = rng.standard_normal((num_landmarks, 3))
    layout *= rng.uniform(1.0, 2.0, (num_landmarks, 1)) / np.linalg.norm(
        layout, axis=-1, keepdims=True
    )
    landmarks = layout + contrast * rng.standard_normal((num_scenes, num_landmarks, 3))
    labels = rng.permutation(np.arange(num_agents) % num_scenes)
    rotations = nearest_rotation(rng.standard_normal((num_agents, 3, 3)))
    clean = np.einsum("nij,nlj->nli", rotations, landmarks[labels])
    clean = clean.reshape(num_agents, 1, 3 * num_landmarks)
    noise = noise_std * rng.standard_normal((num_agents, num_observations, 3 * num_landmarks))
    observations = identity_observations(jnp.asarray(clean + noise, dtype), noise_std)
    return observations, SceneTruth(labels, landmarks, rotations)


def cooling(
    progress: float | Array, start: float | Array = 1000.0, end: float | Array = 0.3
) -> Array:
    """Temperature that falls geometrically, ``start (end / start)^progress``, in nats.

    Args:
        progress: share of the steps that are done, in [0, 1].
        start: temperature of the first step, positive.
        end: temperature of the last step, positive.

    Returns:
        With the shape of ``progress``.

    >>> cooling(jnp.array([0.0, 0.5, 1.0]), 16.0, 1.0).round(3).tolist()
    [16.0, 4.0, 1.0]
    """
    progress = as_floating(progress, "progress")
    ratio = jnp.asarray(end, progress.dtype) / jnp.asarray(start, progress.dtype)
    return jnp.asarray(start, progress.dtype) * ratio**progress


def registration_distances(measured: np.ndarray) -> np.ndarray:
    """Root-mean-square distance of each pair of measurements after the best rotation: what two
    sensors can say about each other alone.

    Args:
        measured: mean measurements ``[n, l, 3]``
            (:func:`vfejax.problems.sensor_network.mean_observations`).

    Returns:
        ``[n, n]`` in metres, symmetric, 0 on the diagonal up to rounding.

    >>> measured = np.eye(3) * [[[1.0]], [[2.0]]]
    >>> registration_distances(measured).round(3).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    measured = np.asarray(measured, np.float64)
    here, there = measured[:, None], measured[None, :]
    rotation = nearest_rotation(np.einsum("nmli,nmlj->nmij", *np.broadcast_arrays(here, there)))
    rest = here - np.einsum("nmij,mlj->nmli", rotation, measured)
    return np.sqrt(np.mean(np.sum(rest**2, axis=-1), axis=-1))
