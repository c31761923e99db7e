"""Hamiltonians: dense ones from free parameters, one scaled by position, and the two-level system
with its exact solution.

Units: hbar = 1, so energies are angular frequencies and ``dt H`` is in radians.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics import sinc_sqrt
from vfejax.quantum.hermitian import check_square
from vfejax.types import Array

__all__ = ["hermitian", "position_scaled", "rabi", "rabi_population", "symmetric"]


def _dimension(count: int, complex_entries: bool) -> int:
    """d with d^2 (complex) or d (d + 1) / 2 (real) parameters."""
    d = math.isqrt(count) if complex_entries else (math.isqrt(8 * count + 1) - 1) // 2
    needed = d * d if complex_entries else d * (d + 1) // 2
    if count == 0 or needed != count:
        kind = "d^2" if complex_entries else "d (d + 1) / 2"
        raise ValueError(f"parameters must be [..., {kind}] for a whole d >= 1, got length {count}")
    return d


def symmetric(parameters: Array) -> Array:
    """Real symmetric ``[..., d, d]`` from its lower triangle row by row, ``parameters [..., d (d +
    1) / 2]``.

    Raises:
        ValueError: when the length is no triangular number.
    """
    d = _dimension(parameters.shape[-1], complex_entries=False)
    row, column = np.indices((d, d))
    low, high = np.minimum(row, column), np.maximum(row, column)
    return parameters[..., high * (high + 1) // 2 + low]


def hermitian(parameters: Array) -> Array:
    """Complex Hermitian ``[..., d, d]`` from ``parameters [..., d^2]``: the real part as in
    :func:`symmetric`, then the imaginary part below the diagonal row by row.

    Raises:
        ValueError: when the length is no square.
    """
    d = _dimension(parameters.shape[-1], complex_entries=True)
    split = d * (d + 1) // 2
    row, column = np.indices((d, d))
    low, high = np.minimum(row, column), np.maximum(row, column)
    slots = np.where(row == column, 0, high * (high - 1) // 2 + low)
    below = jnp.concatenate([parameters[..., split:], jnp.zeros_like(parameters[..., :1])], axis=-1)
    imaginary = below[..., slots]
    return jax.lax.complex(
        symmetric(parameters[..., :split]), jnp.tril(imaginary) - jnp.triu(imaginary)
    )


def position_scaled(hamiltonian: Array, scales: Array) -> Array:
    """``s_i H``, ``[..., d, d]``, of one ``hamiltonian [d, d]`` for ``scales [...]``.

    The evolution under it is that under H with ``dt_i = s_i dt``: ``evolve(rho, hamiltonian, scales
    * dt)`` decomposes H once and never forms this stack.
    """
    check_square("hamiltonian", hamiltonian)
    if hamiltonian.ndim != 2:
        raise ValueError(f"hamiltonian must be [d, d], got {hamiltonian.shape}")
    return jnp.tensordot(scales.astype(hamiltonian.dtype), hamiltonian, axes=0)


def rabi(frequency: Array, detuning: Array) -> Array:
    """Driven two-level Hamiltonian ``1/2 [[-Delta, Omega], [Omega, Delta]]``, ``[..., 2, 2]``, in
    the rotating frame.

    Args:
        frequency: Omega ``[...]``, radians per unit of time.
        detuning: Delta, the same shape.
    """
    rows = jnp.stack(
        [jnp.stack([-detuning, frequency], -1), jnp.stack([frequency, detuning], -1)], -2
    )
    return 0.5 * rows


def rabi_population(frequency: Array, detuning: Array, time: Array) -> Array:
    """Exact population of level 1 after ``time`` from level 0: ``Omega^2 / W^2 sin^2(W t / 2)``,
    ``W^2 = Omega^2 + Delta^2``.

    The three must broadcast; written with ``sinc``, so that it and its derivatives hold at ``W =
    0``.

    Source: Rabi, Phys. Rev. 51 (1937) 652.
    """
    angle = 0.25 * time**2 * (frequency**2 + detuning**2)
    return (0.5 * frequency * time * sinc_sqrt(angle)) ** 2
