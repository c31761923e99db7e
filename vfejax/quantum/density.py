"""Density matrices: states, a validity report, and scalar measures whose gradients stay finite at
the edges.

A state is Hermitian, positive and of trace 1, ``rho [..., d, d]``, real or complex. Functions here
read Hermitian matrices and repair nothing: :func:`validity` says how far an array is from a state.
A measure of an entry that is not finite is not finite either.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import expand_leading, identity_like, matmul, transpose
from vfejax.quantum._arguments import (
    check_array,
    check_square,
    check_width,
    first_derivatives_only,
    real_argument,
)
from vfejax.quantum.hermitian import adjoint, eigh, eigvalsh, real_dtype
from vfejax.types import Array

__all__ = [
    "GOLDEN_RATIO",
    "Validity",
    "coherence",
    "coherence_temperature",
    "free_energy",
    "givens_state",
    "helmholtz",
    "maximally_mixed",
    "mean_energy",
    "mixture",
    "populations",
    "pure_state",
    "purity",
    "validity",
    "von_neumann_entropy",
]

GOLDEN_RATIO = 0.5 * (1.0 + math.sqrt(5.0))
"""The number phi of :func:`coherence_temperature`, a convention of the quantum transformer."""


def pure_state(psi: Array) -> Array:
    """``psi psi^dag [..., d, d]`` of vectors ``psi [..., d]``; a state where psi has norm 1.

    >>> print(pure_state(jnp.array([1.0, -1.0])) / 2)
    [[ 0.5 -0.5]
     [-0.5  0.5]]
    """
    check_array("psi", psi)
    if psi.ndim < 1:
        raise ValueError(f"psi must be vectors [..., d], got shape {psi.shape}")
    return psi[..., :, None] * jnp.conj(psi)[..., None, :]


def maximally_mixed(dimension: int, dtype: jnp.dtype = jnp.float32) -> Array:
    """``I / d``, ``[d, d]``: the state of greatest entropy, log d.

    >>> print(maximally_mixed(2))
    [[0.5 0. ]
     [0.  0.5]]
    """
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
    return jnp.eye(dimension, dtype=dtype) / dimension


def mixture(weights: Array, states: Array) -> Array:
    """``sum_m w_m rho_m``: ``weights [..., m]`` and ``states [..., m, d, d]`` to ``[..., d, d]``; a
    state where the weights are a distribution.

    >>> states = jnp.stack([jnp.diag(jnp.array([1.0, 0.0])), jnp.eye(2) / 2])
    >>> print(mixture(jnp.array([0.5, 0.5]), states))
    [[0.75 0.  ]
     [0.   0.25]]
    """
    check_square("states", states)
    weights = real_argument("weights", weights, real_dtype(states))
    if states.ndim < 3 or weights.ndim < 1 or weights.shape[-1] != states.shape[-3]:
        raise ValueError(
            f"weights [..., m] and states [..., m, d, d] do not fit: got {weights.shape} and "
            f"{states.shape}"
        )
    return jnp.einsum(
        "...m,...mjk->...jk", weights.astype(states.dtype), states, precision="highest"
    )


def givens_state(index: Array, angles: Array) -> Array:
    """Unit vector from basis vector ``index`` by d Givens rotations, on the planes (0, 1), (1, 2),
    ..., (d - 1, 0) in this order.

    Rotation j: ``(x_j, x_{j+1}) <- (cos a_j x_j - sin a_j x_{j+1}, sin a_j x_j + cos a_j
    x_{j+1})``. Each component is final after two rotations (component 0 after the last), so a scan
    that carries one number does all d: O(d) work per state, exact gradient of the angles.

    Args:
        index: integers ``[...]`` in 0 .. d - 1; an index outside gives the zero vector.
        angles: ``[..., d]`` in radians, d >= 2.

    Returns:
        Real ``[..., d]``; the leading axes of both broadcast.

    Raises:
        ValueError: when the index is not integral, the angles are not real, or d < 2.

    >>> print(givens_state(jnp.array(0), jnp.array([jnp.pi / 2, 0.0])).round(4))
    [-0.  1.]
    """
    index = jnp.asarray(index)
    check_array("angles", angles)
    if jnp.iscomplexobj(angles):
        raise ValueError(f"angles must be real, got {angles.dtype}")
    if angles.ndim < 1 or angles.shape[-1] < 2:
        raise ValueError(f"angles must be [..., d] with d >= 2, got {angles.shape}")
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"index must be integers, got {index.dtype}")
    shape = (*jnp.broadcast_shapes(index.shape, angles.shape[:-1]), angles.shape[-1])
    angles = jnp.moveaxis(jnp.broadcast_to(angles, shape), -1, 0)
    start = jax.nn.one_hot(
        jnp.broadcast_to(index, shape[:-1]), shape[-1], dtype=angles.dtype, axis=0
    )
    cos, sin = jnp.cos(angles), jnp.sin(angles)

    def rotate(running: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        c, s, following = inputs
        return s * running + c * following, c * running - s * following

    last, body = jax.lax.scan(rotate, start[0], (cos[:-1], sin[:-1], start[1:]))
    first = sin[-1] * last + cos[-1] * body[0]
    last = cos[-1] * last - sin[-1] * body[0]
    return jnp.moveaxis(jnp.concatenate([first[None], body[1:], last[None]]), 0, -1)


class Validity(NamedTuple):
    """How far an array is from a state.

    Attributes:
        hermitian_error: ``max_jk |rho_jk - rho_kj^*|``, ``[...]``.
        trace_error: ``|tr rho - 1|``, ``[...]``.
        min_eigenvalue: least eigenvalue of the Hermitian part, ``[...]``.
        valid: all three within the tolerance, ``[...]``; False where anything is not finite.
    """

    hermitian_error: Array
    trace_error: Array
    min_eigenvalue: Array
    valid: Array


def validity(rho: Array, tolerance: float | None = None) -> Validity:
    """Report on ``rho [..., d, d]``; nothing is changed. The default tolerance is ``10 d eps``.
    Takes the eigenvalues of every state, see :func:`vfejax.quantum.hermitian.eigvalsh`.

    >>> report = validity(jnp.diag(jnp.array([1.5, -0.5])))
    >>> print(report.valid, report.trace_error, report.min_eigenvalue)
    False 0.0 -0.5
    """
    check_square("rho", rho)
    check_width("rho", rho)
    if tolerance is None:
        tolerance = 10 * rho.shape[-1] * float(jnp.finfo(rho.dtype).eps)
    hermitian_error = jnp.max(jnp.abs(rho - adjoint(rho)), axis=(-2, -1))
    trace_error = jnp.abs(jnp.trace(rho, axis1=-2, axis2=-1) - 1.0)
    # Of a state with a NaN some eigenvalues may be numbers, and these come first.
    least = jnp.min(eigvalsh(rho), axis=-1)
    valid = (hermitian_error <= tolerance) & (trace_error <= tolerance) & (least >= -tolerance)
    return Validity(hermitian_error, trace_error, least, valid)


def populations(rho: Array) -> Array:
    """Born probabilities ``p_k = rho_kk``, real ``[..., d]``.

    >>> print(populations(jnp.diag(jnp.array([0.75, 0.25 + 0j]))))
    [0.75 0.25]
    """
    check_square("rho", rho)
    return jnp.real(jnp.diagonal(rho, axis1=-2, axis2=-1))


def purity(rho: Array) -> Array:
    """``tr rho^2 = sum_jk |rho_jk|^2`` of Hermitian rho, ``[...]``: 1 for pure states, 1 / d for
    the maximally mixed one.

    >>> print(purity(maximally_mixed(4)))
    0.25
    """
    check_square("rho", rho)
    return jnp.sum(jnp.real(rho) ** 2 + jnp.imag(rho) ** 2, axis=(-2, -1))


def coherence(rho: Array) -> Array:
    """l1 coherence ``sum_{j != k} |rho_jk|``, ``[...]``, from 0 to d - 1.

    It has a kink where an entry is 0; the gradient there is the subgradient 0.

    Source: Baumgratz, Cramer, Plenio, Phys. Rev. Lett. 113 (2014) 140401.

    >>> f"{coherence(jnp.full((3, 3), 1 / 3)):.4f}"
    '2.0000'
    """
    check_square("rho", rho)
    square = jnp.real(rho) ** 2 + jnp.imag(rho) ** 2
    # NaN is not <= 0: it is counted.
    left_out = (square <= 0) | (identity_like(square) == 1)
    return jnp.sum(
        jnp.where(left_out, 0.0, jnp.sqrt(jnp.where(left_out, 1.0, square))), axis=(-2, -1)
    )


def _entropy(levels: Array) -> Array:
    # NaN is not <= 0: it is counted.
    empty = levels <= 0
    return -jnp.sum(jnp.where(empty, 0.0, levels * jnp.log(jnp.where(empty, 1.0, levels))), axis=-1)


@jax.custom_jvp
def _von_neumann_entropy(rho: Array) -> Array:
    return _entropy(eigvalsh(rho))


@_von_neumann_entropy.defjvp
def _von_neumann_entropy_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    rho = first_derivatives_only(
        primals[0],
        "von_neumann_entropy has first derivatives only; for others differentiate "
        "-sum(w log w) of w = jnp.linalg.eigvalsh(rho), which needs eigenvalues that differ",
    )
    levels, basis = eigh(rho)
    log = jnp.log(jnp.maximum(levels, jnp.finfo(levels.dtype).eps)) + 1.0
    slope = -matmul(basis * log[..., None, :].astype(basis.dtype), adjoint(basis))
    return _entropy(levels), jnp.sum(jnp.real(transpose(slope) * tangents[0]), axis=(-2, -1))


def von_neumann_entropy(rho: Array) -> Array:
    """``S = -tr(rho log rho)``, in nats, ``[...]``, from 0 (pure) to log d.

    The value is exact: eigenvalues at or below 0 contribute 0. The gradient is the matrix function
    ``-(log rho + 1)``, which needs no difference of eigenvalues; at a singular rho the true one is
    infinite, and the convention is ``log max(x, eps)``, eps the machine epsilon: a pure state gains
    at most ``-log eps - 1`` nats per unit of probability (15 in single, 35 in double precision).

    Args:
        rho: ``[..., d, d]``, Hermitian.

    The value takes eigenvalues alone, which a CPU finds for many states at once; with a derivative
    it is one eigendecomposition per state, one after the other on a CPU (no polynomial form is
    exact at eigenvalue 0). S does not change under unitary evolution, so the entropy of an evolved
    state need not be computed again. First derivatives only, forward and reverse.

    Returns:
        Real ``[...]``; NaN where rho is not finite.

    Raises:
        ValueError: when rho is not square, or in half precision.
        NotImplementedError: for a second derivative.

    >>> f"{von_neumann_entropy(maximally_mixed(2)):.4f}"  # log 2
    '0.6931'
    """
    check_square("rho", rho)
    check_width("rho", rho)
    return _von_neumann_entropy(rho)


def mean_energy(rho: Array, energies: ArrayLike) -> Array:
    """``tr(rho H) = sum_k E_k rho_kk`` for a diagonal Hamiltonian.

    Args:
        rho: ``[..., d, d]``, Hermitian.
        energies: levels E ``[..., d]`` in nats, real; taken to the precision of rho.

    Returns:
        Real ``[...]``, nats.

    Raises:
        ValueError: when the two do not fit.

    >>> print(mean_energy(maximally_mixed(2), jnp.array([0.0, 1.0])))
    0.5
    """
    check_square("rho", rho)
    energies = real_argument("energies", energies, real_dtype(rho))
    if energies.ndim < 1 or energies.shape[-1] != rho.shape[-1] or energies.ndim > rho.ndim - 1:
        raise ValueError(
            f"energies must be [..., d = {rho.shape[-1]}] for rho {rho.shape}, got {energies.shape}"
        )
    energies = jnp.reshape(energies, (1,) * (rho.ndim - 1 - energies.ndim) + energies.shape)
    return jnp.sum(energies * populations(rho), axis=-1)


def helmholtz(rho: Array, energies: ArrayLike, temperature: ArrayLike) -> Array:
    """Helmholtz free energy ``F = sum_k E_k rho_kk - T S``, S the von Neumann entropy.

    Its least value over states is ``-T log sum_k exp(-E_k / T)``, at the Gibbs state.

    Args:
        rho: ``[..., d, d]``, Hermitian.
        energies: levels E ``[..., d]`` in nats, real.
        temperature: T ``[...]``, real, without a unit: entropies and energies are in nats.

    Returns:
        Real ``[...]``, nats.

    Raises:
        ValueError: when the arguments do not fit.

    >>> energies = jnp.array([0.0, 1.0])
    >>> gibbs = jnp.diag(jax.nn.softmax(-energies / 0.5))
    >>> f"{helmholtz(gibbs, energies, 0.5):.4f}"
    '-0.0635'
    """
    energy = mean_energy(rho, energies)
    temperature = real_argument("temperature", temperature, energy.dtype)
    if temperature.ndim > energy.ndim:
        raise ValueError(f"temperature must be a number or {energy.shape}, got {temperature.shape}")
    temperature = expand_leading(temperature, energy.ndim)
    return energy - temperature * von_neumann_entropy(rho)


def coherence_temperature(rho: Array) -> Array:
    """``T = 1 / (1 + phi C)``, phi the golden ratio, C the l1 :func:`coherence`, ``[...]``.

    A coherent state is cold, a diagonal one has T = 1. This is a convention of the quantum
    transformer, not a law.

    >>> print(coherence_temperature(maximally_mixed(2)))
    1.0
    """
    return 1.0 / (1.0 + GOLDEN_RATIO * coherence(rho))


def free_energy(rho: Array, energies: ArrayLike) -> Array:
    """Free energy of the quantum transformer: :func:`helmholtz` at the temperature that
    :func:`coherence_temperature` reads from the state itself.

    Args:
        rho: ``[..., d, d]``, Hermitian.
        energies: levels ``[..., d]`` in nats.

    Returns:
        Real ``[...]``, nats.

    Raises:
        ValueError: when the two do not fit.

    >>> f"{free_energy(maximally_mixed(2), jnp.array([0.0, 1.0])):.4f}"  # 1/2 - log 2
    '-0.1931'
    """
    check_square("rho", rho)
    return helmholtz(rho, energies, coherence_temperature(rho))
