"""Moments of rows under a path of the generalised model: at its own time, and later."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.generalized import Smooth
from vfejax.inference.generalized_filtering import Path, observation, rest
from vfejax.inference.generalized_filtering.dynamic_expectation_maximization import LearningState
from vfejax.inference.generalized_filtering.path_beliefs import FilterState, laplace, mode
from vfejax.inference.generalized_filtering.path_predictions import predict
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["Belief", "Moments", "believe", "later", "now"]


class Moments(NamedTuple):
    """Means and variances: of the series without noise ``[o]``, of a new observation ``[o]``, and
    of states and causes ``[n + m]``."""

    signal: Array
    spread: Array
    new: Array
    new_spread: Array
    state: Array
    state_spread: Array


class Belief(NamedTuple):
    """A path, its covariance, and the free energy of the window."""

    path: Path
    covariance: Array
    free_energy: Array


def believe(
    smooth: Smooth, state: LearningState, window: Array, operator: Array, covariance: Array
) -> Belief:
    """The path at a position of a window.

    Args:
        smooth: the model.
        state: its parameters.
        window: consecutive rows ``[order, o]``.
        operator: from the rows to the derivatives at the position.
        covariance: of what they are off, in the embedding.
    """
    model = smooth.model(covariance)
    seen = observation(model, matmul(operator, window))
    path = mode(model, rest(model, window.dtype), seen, *state)
    info = laplace(model, FilterState(path, *state), seen)
    return Belief(path, info.covariance, info.free_energy)


def _noise(smooth: Smooth, state: LearningState) -> Array:
    """Variance of the noise of each series."""
    precision = jnp.exp(state.hyper.output[0])[0] * smooth.fields["output_precision"]
    return jnp.diagonal(jnp.linalg.inv(precision))


def now(smooth: Smooth, state: LearningState, belief: Belief) -> Moments:
    """What the path says of its own time.

    Args:
        smooth: the model.
        state: its parameters.
        belief: the path there.
    """
    emission = smooth.matrices(state.parameters[0])["emission"]
    n, m = len(smooth.fields["drift"]), smooth.fields["gain"].shape[1]
    first = smooth.order * n
    places = np.r_[0:n, first : first + m]
    x = belief.path.states[0][0]
    spread = jnp.einsum("oi,ij,oj->o", emission, belief.covariance[:n, :n], emission)
    signal = emission @ x
    return Moments(
        signal,
        spread,
        signal,
        spread + _noise(smooth, state),
        jnp.concatenate([x, belief.path.causes[0][0]]),
        jnp.diagonal(belief.covariance)[places],
    )


def _autocorrelation(lag: np.ndarray, smoothness: float) -> np.ndarray:
    """``exp(-h^2 / 4 s^2)``."""
    return np.exp(-(lag**2) / (4 * smoothness**2))


def _noise_ahead(
    smooth: Smooth, times: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best linear prediction of noise at ``times`` from that at ``offsets``: its weights
    ``[h, order]``, and the share of the variance that is left, ``[h]``.
    """
    s = smooth.noise_smoothness
    if not s > 0:
        return np.zeros((len(times), len(offsets))), np.ones(len(times))
    rho = _autocorrelation(times[:, None] - offsets, s)
    kernel = _autocorrelation(offsets[:, None] - offsets, s)
    weights = np.linalg.solve(kernel, rho.T).T
    return weights, np.maximum(1.0 - np.sum(weights * rho, axis=1), 0.0)


def later(
    smooth: Smooth, state: LearningState, belief: Belief, window: Array, num_steps: int
) -> Moments:
    """What the path at the last row of a window says of the rows after it, ``[h, ...]``.

    Noise that is smooth goes on: that of a later row is predicted from what the window's rows are
    off the path.

    Args:
        smooth: the model.
        state: its parameters.
        belief: the path at the last row.
        window: consecutive rows ``[order, o]``.
        num_steps: h, the rows after the window.
    """
    order, dt = smooth.order, smooth.dt
    n, m = len(smooth.fields["drift"]), smooth.fields["gain"].shape[1]
    model = smooth.model(np.eye(order))
    emission = smooth.matrices(state.parameters[0])["emission"]
    x, v = belief.path.states[0], belief.path.causes[0][0]
    found = predict(model, x[0], v, *state, dt, num_steps)
    offsets = (np.arange(order) - (order - 1)) * dt
    taylor = jnp.asarray(offsets[:, None] ** np.arange(order) / _factorials(order))
    times = np.arange(1, num_steps + 1) * dt
    noise, (weights, left) = _noise(smooth, state), _noise_ahead(smooth, times, offsets)
    off = window - taylor @ x @ emission.T
    signal = found.mean @ emission.T
    # Derivatives of the prediction by the flat states [h, o, order, n].
    slope = -jnp.einsum("hj,oi->hoji", weights @ taylor, emission)
    slope = slope.at[:, :, 0].add(jnp.einsum("oi,hik->hok", emission, found.transition))
    flat = slope.reshape(num_steps, -1, order * n)
    p = belief.covariance[: order * n, : order * n]
    moved = jnp.einsum("hik,kl,hjl->hij", found.transition, p[:n, :n], found.transition)
    cov = moved + found.noise
    fresh = jnp.einsum("oi,hij,oj->ho", emission, found.noise, emission)
    new_spread = jnp.einsum("hok,kl,hol->ho", flat, p, flat) + fresh + left[:, None] * noise[None]
    fade = _autocorrelation(times, float(smooth.fields["cause_smoothness"]))[:, None]
    prior = jnp.diagonal(jnp.linalg.inv(smooth.fields["cause_precision"]))
    known = jnp.diagonal(belief.covariance)[order * n : order * n + m]
    causes = fade**2 * known[None] + (1.0 - fade**2) * prior[None]
    return Moments(
        signal,
        jnp.einsum("oi,hij,oj->ho", emission, cov, emission),
        signal + weights @ off,
        new_spread,
        jnp.concatenate([found.mean, fade * v[None]], axis=1),
        jnp.concatenate([jnp.diagonal(cov, axis1=1, axis2=2), causes], axis=1),
    )


def _factorials(order: int) -> np.ndarray:
    return np.cumprod(np.maximum(np.arange(order), 1)).astype(float)
