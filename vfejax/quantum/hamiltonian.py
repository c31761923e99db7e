"""Hamiltonians: dense ones from free parameters, one scaled by position, and the two-level system
with its exact solution.

Units: hbar = 1, so energies are angular frequencies and ``dt H`` is in radians.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.numerics import as_floating, broadcast_named, sinc_sqrt
from vfejax.quantum._arguments import check_array, check_square, real_argument
from vfejax.quantum.hermitian import real_dtype
from vfejax.types import Array

__all__ = ["hermitian", "position_scaled", "rabi", "rabi_population", "symmetric"]


def _dimension(parameters: Array, complex_entries: bool) -> int:
    """d with d^2 (complex) or d (d + 1) / 2 (real) parameters."""
    check_array("parameters", parameters)
    if jnp.iscomplexobj(parameters):
        raise ValueError(f"parameters must be real, got {parameters.dtype}")
    count = parameters.shape[-1] if parameters.ndim else 0
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
        ValueError: when the length is no triangular number, or the parameters are not real.

    >>> print(symmetric(jnp.array([1.0, 2.0, 3.0])))
    [[1. 2.]
     [2. 3.]]
    """
    d = _dimension(parameters, complex_entries=False)
    row, column = np.indices((d, d))
    low, high = np.minimum(row, column), np.maximum(row, column)
    return parameters[..., high * (high + 1) // 2 + low]


def hermitian(parameters: Array) -> Array:
    """Complex Hermitian ``[..., d, d]`` from ``parameters [..., d^2]``: the lower triangle of the
    real part row by row, then the imaginary part below the diagonal row by row.

    Raises:
        ValueError: when the length is no square, or the parameters are not real.

    >>> print(hermitian(jnp.array([1.0, 2.0, 3.0, 4.0])))
    [[1.+0.j 2.-4.j]
     [2.+4.j 3.+0.j]]
    """
    d = _dimension(parameters, complex_entries=True)
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

    >>> position_scaled(jnp.eye(2), jnp.array([1.0, 2.0, 3.0])).shape
    (3, 2, 2)
    """
    check_square("hamiltonian", hamiltonian)
    if hamiltonian.ndim != 2:
        raise ValueError(f"hamiltonian must be [d, d], got {hamiltonian.shape}")
    scales = real_argument("scales", scales, real_dtype(hamiltonian)).astype(hamiltonian.dtype)
    return jnp.tensordot(scales, hamiltonian, axes=0)


def rabi(frequency: ArrayLike, detuning: ArrayLike) -> Array:
    """Driven two-level Hamiltonian ``1/2 [[-Delta, Omega], [Omega, Delta]]``, ``[..., 2, 2]``, in
    the rotating frame.

    Args:
        frequency: Omega ``[...]``, radians per unit of time.
        detuning: Delta, the same shape.

    Raises:
        ValueError: for another shape, or complex numbers.

    >>> print(rabi(2.0, 1.0))
    [[-0.5  1. ]
     [ 1.   0.5]]
    """
    frequency, detuning = as_floating(frequency, "frequency"), as_floating(detuning, "detuning")
    if frequency.shape != detuning.shape:
        raise ValueError(
            f"detuning must have the shape of frequency {frequency.shape}, got {detuning.shape}"
        )
    rows = jnp.stack(
        [jnp.stack([-detuning, frequency], -1), jnp.stack([frequency, detuning], -1)], -2
    )
    return 0.5 * rows


def rabi_population(frequency: ArrayLike, detuning: ArrayLike, time: ArrayLike) -> Array:
    """Exact population of level 1 after ``time`` from level 0: ``Omega^2 / W^2 sin^2(W t / 2)``,
    ``W^2 = Omega^2 + Delta^2``.

    Written with ``sinc``, so that it and its derivatives hold at ``W = 0``.

    Args:
        frequency: Omega ``[...]``, radians per unit of time.
        detuning: Delta ``[...]``, likewise.
        time: ``[...]``.

    Returns:
        ``[...]``, the three broadcast.

    Raises:
        ValueError: when they do not broadcast, or are complex.

    Source: Rabi, Phys. Rev. 51 (1937) 652.

    >>> f"{rabi_population(1.0, 0.0, jnp.pi):.4f}"
    '1.0000'
    """
    frequency, detuning, time = (
        as_floating(x, name)
        for name, x in (("frequency", frequency), ("detuning", detuning), ("time", time))
    )
    broadcast_named(frequency=frequency.shape, detuning=detuning.shape, time=time.shape)
    angle = 0.25 * time**2 * (frequency**2 + detuning**2)
    return (0.5 * frequency * time * sinc_sqrt(angle)) ** 2
