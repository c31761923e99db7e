"""Series with a known spectrum: oscillators that random pushes keep going, seen with noise.

Each oscillator turns and decays by one complex number a step, lambda; two series are sums of them.
The numbers lambda are the eigenvalues of the linear map that forecasts best.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["PERIODS", "Oscillations", "simulate"]

PERIODS = (24.0, 7.3)
"""Rows in which an oscillator turns once."""


class Oscillations(NamedTuple):
    """Two series and what made them.

    Attributes:
        observations: ``[t, 2]``.
        signal: the same without noise ``[t, 2]``.
        eigenvalues: lambda of each oscillator, complex; their conjugates are eigenvalues too.
    """

    observations: np.ndarray
    signal: np.ndarray
    eigenvalues: np.ndarray


def simulate(
    rng: np.random.Generator,
    num_steps: int = 600,
    *,
    periods: tuple[float, ...] = PERIODS,
    decays: tuple[float, ...] = (400.0, 150.0),
    noise_std: float = 0.3,
) -> Oscillations:
    """Oscillators of variance 1, in equilibrium.

        a_{t+1} = lambda a_t + sqrt(1 - |lambda|^2) w,    x_t = Re(c a_t) + noise

    Args:
        rng: the source of all randomness.
        num_steps: t.
        periods: rows in a turn.
        decays: rows in which an oscillation that nothing pushes falls by e.
        noise_std: of the noise on each series, where each oscillation has a variance of 1/2.

    Returns:
        The series.

    Raises:
        ValueError: when periods and decays are not as many.

    >>> found = simulate(np.random.default_rng(0), 5)
    >>> found.observations.shape, np.abs(found.eigenvalues).round(4).tolist()
    ((5, 2), [0.9975, 0.9934])
    """
    if len(periods) != len(decays):
        raise ValueError(
            "periods and decays must be one of each for every oscillator, got "
            f"{len(periods)} and {len(decays)}"
        )
    rate = -1.0 / np.asarray(decays) + 2j * np.pi / np.asarray(periods)
    values = np.exp(rate)
    count = len(values)

    def normal(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2.0)

    pushes = np.sqrt(1.0 - np.abs(values) ** 2) * normal(num_steps, count)
    states = np.empty((num_steps, count), complex)
    state = normal(count)
    for step in range(num_steps):
        states[step] = state
        state = values * state + pushes[step]
    mixing = np.exp(1j * np.arange(2)[None, :] * np.arange(1, count + 1)[:, None])
    signal = np.real(states @ mixing)
    return Oscillations(signal + noise_std * rng.normal(size=signal.shape), signal, values)
