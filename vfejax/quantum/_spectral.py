"""Evolution in the eigenbasis of H, and its adjoint: what ``evolution.py`` is made of.

For a functional ``dL = Re tr(A drho')``, A Hermitian, ``dL/dH = int_0^dt U(s) Z U(s)^dag ds`` with
``Z = -i [rho, a]`` at the start, a the image of A there (Duhamel). In the basis V the integral
multiplies entry jk by ``dt exp(-i dt (w_j - w_k) / 2) sinc(dt (w_j - w_k) / 2)``, ``sinc x = sin x
/ x``: exact at equal eigenvalues, where autodiff through ``eigh`` divides 0 by 0. The phase is an
evolution by half a step. So the commutator is taken of state and functional midway, and only dt and
sinc, which are real, remain. For real H only the real part of Z counts then: two real products.

Matrices have the *form* that fits H: Hermitian ones where it is complex, packed ones
(:func:`vfejax.quantum.hermitian.packed`) where it is real. Packing keeps inner products, ``Re tr(A
B) = sum(packed A * packed B)``, so a functional of packed matrices is the packed functional.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import matmul, matvec, sum_to, transpose
from vfejax.quantum.hermitian import (
    adjoint,
    eigh,
    hermitian_part,
    sandwich,
    turned,
)
from vfejax.types import Array

__all__ = [
    "Spectral",
    "evolved_matrices",
    "evolved_vectors",
    "matrices_before",
    "matrix_cotangents",
    "vector_cotangents",
]

_PARTS = 4  # of the sum over all states that share a Hamiltonian


def _with_axes(levels: Array, dt: Array) -> Array:
    return jnp.reshape(levels, (1,) * (dt.ndim + 1 - levels.ndim) + levels.shape)


class _Phases(NamedTuple):
    """``exp(-i w dt / 2)`` as cosines and sines of ``-w dt / 2``, ``[..., d]``: of half a step,
    because the gradient looks at the state midway. XLA reads two real arrays faster than a complex
    one.
    """

    cos: Array
    sin: Array


def _half_phases(levels: Array, dt: Array) -> _Phases:
    """The product with the identity keeps XLA on a CPU from fusing the sines into the outer
    products below, which would compute each one d times.
    """
    angle = -0.5 * dt[..., None] * _with_axes(levels, dt)
    same = jnp.eye(angle.shape[-1], dtype=angle.dtype)
    return _Phases(matmul(jnp.cos(angle), same), matmul(jnp.sin(angle), same))


def _to_basis(x: Array, basis: Array) -> Array:
    """A form in the eigenbasis V; for real V that of the conjugate."""
    return sandwich(x, basis) if jnp.iscomplexobj(basis) else turned(x, basis)


def _from_basis(x: Array, basis: Array) -> Array:
    """The inverse of :func:`_to_basis`."""
    if jnp.iscomplexobj(basis):
        return sandwich(x, adjoint(basis))
    return turned(x, transpose(basis))


def _factors(half: _Phases, halves: int) -> Array:
    """``exp(-i w dt halves / 2)``, ``[..., d]``, complex, for 1 or 2 halves forth or back."""
    p = jax.lax.complex(*half)
    p = p * p if abs(halves) == 2 else p
    return p if halves > 0 else jnp.conj(p)


def _differences(half: _Phases) -> tuple[Array, Array]:
    """Cosines and sines of ``a_j - a_k``, ``[..., d, d]``, ``a = -w dt / 2``."""
    cos, sin = half
    row, column = (cos[..., :, None], sin[..., :, None]), (cos[..., None, :], sin[..., None, :])
    return row[0] * column[0] + row[1] * column[1], row[1] * column[0] - row[0] * column[1]


def _rotate(x: Array, half: _Phases, halves: int) -> Array:
    """``p_j x_jk p_k^*``, p as in :func:`_factors`: the evolution in the eigenbasis, of either form
    of x.
    """
    if jnp.iscomplexobj(x):
        p = _factors(half, halves)
        return p[..., :, None] * x * jnp.conj(p)[..., None, :]
    even, odd = _differences(half)
    if abs(halves) == 2:
        even, odd = even * even - odd * odd, 2.0 * even * odd
    # The sign comes last: XLA on a CPU takes twice as long with sines that it has to negate.
    return even * x - odd * transpose(x) if halves > 0 else even * x + odd * transpose(x)


def _commutator(x: Array, y: Array) -> Array:
    """``-i [x, y]`` of two Hermitian matrices in the eigenbasis, when the adjoint is added to it.
    Of packed ones that is the real part, in two real products.
    """
    if jnp.iscomplexobj(x):
        return -1j * matmul(x, y)
    return 0.5 * (matmul(y, x) - matmul(x, y))


def _sinc(levels: Array, dt: Array, half: _Phases) -> Array:
    """``sinc(dt (w_j - w_k) / 2)``, ``[..., d, d]``.

    Its Taylor series below 1, else the sine of a difference from the sines and cosines at
    hand: far cheaper than d^2 sines.
    """
    row = _with_axes(levels, dt)
    x = 0.5 * dt[..., None, None] * (row[..., :, None] - row[..., None, :])
    square = x * x
    near = square < 1.0
    series = jnp.ones_like(x)
    for n in range(19 if x.dtype == jnp.float64 else 11, 1, -2):
        series = 1.0 - square / (n * (n - 1)) * series
    _, sine = _differences(half)
    return jnp.where(near, series, -sine / jnp.where(near, 1.0, x))


def _total(x: Array, shape: tuple[int, ...]) -> Array:
    """:func:`vfejax.numerics.sum_to`. One matrix of all is added up in parts: a single sum over the
    stack takes XLA on a CPU three times as long at d = 48.
    """
    num = math.prod(x.shape[:-2])
    if len(shape) > 2 or num % _PARTS:
        return sum_to(x, shape)
    parts = jnp.reshape(x, (_PARTS, num // _PARTS, *shape))
    return jnp.sum(functools.reduce(jnp.add, parts), axis=0)


class Spectral(NamedTuple):
    """One evolution in the eigenbasis of H: all that its gradient reads besides the functional.

    Attributes:
        start: the state before the evolution, in the eigenbasis, ``[..., d, d]``, as
            ``_to_basis`` gives it, or ``[..., d]``.
        half: ``exp(-i w dt / 2)``, ``[..., d]``.
        levels: w, ``[d]`` if shared, else ``[..., d]``.
        basis: V, ``[d, d]`` if shared, else ``[..., d, d]``.
        dt: ``[...]``.
    """

    start: Array
    half: _Phases
    levels: Array
    basis: Array
    dt: Array


def _hamiltonian_cotangents(part: Array, spectral: Spectral) -> tuple[Array, Array]:
    """Cotangents of H and dt from ``Z = part + part^dag`` midway, in the eigenbasis. They are
    summed over what shares a Hamiltonian or a dt.
    """
    levels, basis, dt = spectral.levels, spectral.basis, spectral.dt
    diagonal = 2.0 * jnp.real(jnp.diagonal(part, axis1=-2, axis2=-1))
    ct_dt = sum_to(jnp.sum(diagonal * _with_axes(levels, dt), axis=-1), dt.shape)
    size = dt[..., None, None] * _sinc(levels, dt, spectral.half)
    part = part if jnp.iscomplexobj(basis) else jnp.real(part)
    integral = _total(size.astype(part.dtype) * part, basis.shape)
    integral = 2.0 * hermitian_part(integral)
    if not jnp.iscomplexobj(basis):
        return matmul(matmul(basis, integral), transpose(basis)), ct_dt
    return transpose(matmul(matmul(basis, integral), adjoint(basis))), ct_dt


def _apply(basis: Array, x: Array) -> Array:
    """``B x`` for vectors ``x [..., d]``; one product for the whole stack where B is shared, in
    real arithmetic where B is real.
    """

    def of(y: Array) -> Array:
        return matmul(y, transpose(basis)) if basis.ndim == 2 else matvec(basis, y)

    return of(x) if jnp.iscomplexobj(basis) else jax.lax.complex(of(jnp.real(x)), of(jnp.imag(x)))


def evolved_matrices(rho: Array, hamiltonian: Array, dt: Array) -> tuple[Array, Spectral]:
    """``U rho U^dag``, and what its gradient reads.

    Args:
        rho: ``[..., d, d]``, a form.
        hamiltonian: ``[d, d]`` or ``[..., d, d]``, real or complex.
        dt: ``[...]``.

    >>> rho, pauli_x = jnp.diag(jnp.array([1.0, 0.0])), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(evolved_matrices(rho, pauli_x, jnp.asarray(jnp.pi / 2))[0].round(4).diagonal())
    [0. 1.]
    """
    levels, basis = eigh(hamiltonian)
    start, half = _to_basis(rho, basis), _half_phases(levels, dt)
    evolved = _from_basis(_rotate(start, half, 2), basis)
    return evolved, Spectral(start, half, levels, basis, dt)


def matrices_before(
    evolved: Array, levels: Array, basis: Array, dt: Array
) -> tuple[Array, Spectral]:
    """The matrices that :func:`evolved_matrices` has evolved, and what the gradient reads.

    Args:
        evolved: ``[..., d, d]``, a form.
        levels, basis: eigenvalues and eigenvectors of H.
        dt: ``[...]``.

    >>> rho, pauli_x = jnp.diag(jnp.array([1.0, 0.0])), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> evolved, kept = evolved_matrices(rho, pauli_x, jnp.asarray(0.3))
    >>> before, _ = matrices_before(evolved, kept.levels, kept.basis, kept.dt)
    >>> print(abs(before).round(4).diagonal())
    [1. 0.]
    """
    half = _half_phases(levels, dt)
    start = _rotate(_to_basis(evolved, basis), half, -2)
    return _from_basis(start, basis), Spectral(start, half, levels, basis, dt)


def matrix_cotangents(functional: Array, spectral: Spectral) -> tuple[Array, Array, Array]:
    """Functional A of the start, a form ``[..., d, d]``, and cotangents of H and dt, from that of
    the evolved matrices.

    >>> rho, pauli_x = jnp.diag(jnp.array([1.0, 0.0])), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> evolved, kept = evolved_matrices(rho, pauli_x, jnp.asarray(jnp.pi / 4))
    >>> print(matrix_cotangents(rho, kept)[2].round(4))  # of the population cos^2 t, at pi / 4
    -1.0
    """
    start, half, _, basis, _ = spectral
    final = _to_basis(functional, basis)
    image = sum_to(_rotate(final, half, -2), start.shape)
    part = _commutator(_rotate(start, half, 1), _rotate(final, half, -1))
    return _from_basis(image, basis), *_hamiltonian_cotangents(part, spectral)


def evolved_vectors(psi: Array, hamiltonian: Array, dt: Array) -> tuple[Array, Spectral]:
    """``U psi``, and what its gradient reads.

    Args:
        psi: ``[..., d]``, complex.
        hamiltonian: ``[d, d]`` or ``[..., d, d]``, real or complex.
        dt: ``[...]``.

    >>> psi, pauli_x = jnp.array([1.0 + 0.0j, 0.0]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(abs(evolved_vectors(psi, pauli_x, jnp.asarray(jnp.pi / 2))[0]).round(4))
    [0. 1.]
    """
    levels, basis = eigh(hamiltonian)
    start, half = _apply(adjoint(basis), psi), _half_phases(levels, dt)
    return _apply(basis, _factors(half, 2) * start), Spectral(start, half, levels, basis, dt)


def vector_cotangents(functional: Array, spectral: Spectral) -> tuple[Array, Array, Array]:
    """Functional a of the start, ``dL = Re(a^dag dpsi)``, ``[..., d]``, and cotangents of H and dt,
    from that of the evolved vectors.

    >>> psi, pauli_x = jnp.array([1.0 + 0.0j, 0.0]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> evolved, kept = evolved_vectors(psi, pauli_x, jnp.asarray(jnp.pi / 2))
    >>> print(vector_cotangents(psi, kept)[2].round(4))  # of cos t, at pi / 2
    -1.0
    """
    start, half, _, basis, _ = spectral
    middle = _factors(half, -1) * _apply(adjoint(basis), functional)
    part = -0.5j * (_factors(half, 1) * start)[..., :, None] * jnp.conj(middle)[..., None, :]
    image = sum_to(_factors(half, -1) * middle, start.shape)
    return _apply(basis, image), *_hamiltonian_cotangents(part, spectral)
