"""Unitary propagators ``exp(-i dt H)`` from matrix products alone, with their exact adjoint.

``exp(-iX) = cos X - i sin X``: Taylor polynomials of ``X = dt H / 2^s`` with ``|X| <= 2``, then s
doublings. For real symmetric H both parts are real symmetric, so every product is real. There are
no eigenvectors: a stack of different Hamiltonians is a stack of products, which suits accelerators.

Adjoint. The derivative of s squarings is the product over k < s of (multiply by ``U_k = exp(-i 2^k
X)`` from the left plus from the right). These maps are functions of multiplication by H, so they
commute, and the backward pass applies them in ascending order while it doubles U again: nothing is
stored per doubling. It ends with the transpose of the polynomials, by ``jax.vjp``.

Source: the scaling bound from the norm of a power follows Al-Mohy and Higham, SIAM J. Matrix Anal.
Appl. 31 (2010) 970; their Frechet derivative (ibid. 30 (2009) 1639) runs through the doublings in
the other order and stores them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import (
    broadcast_named,
    expand_leading,
    identity_like,
    matmul,
    sum_to,
    transpose,
)
from vfejax.quantum._arguments import (
    check_square,
    first_derivatives_only,
    prepare_evolution,
    time_step,
)
from vfejax.quantum.hermitian import adjoint, hermitian_part
from vfejax.types import Array

__all__ = ["evolve_taylor", "unitary"]

RADIUS = 2.0
"""Bound on the norm of the scaled exponent: the first omitted terms are below 1e-18 (double) and
1e-10 (single precision).
"""

MAX_DOUBLINGS = 60
"""Bound on s, so that an infinite entry ends in NaN and not in a loop without end; no phase is
known long before it binds.
"""


@jax.custom_vjp
def _product(left: Array, right: Array) -> Array:
    """Product of two Hermitian functions of one matrix. They commute, so for a Hermitian cotangent
    g of the product those of the factors may be taken Hermitian, too: half the products of a
    square, and no transposed operands.
    """
    return matmul(left, right)


def _product_backward(factors: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
    left, right = factors
    return hermitian_part(matmul(jnp.conj(right), ct)), hermitian_part(matmul(jnp.conj(left), ct))


_product.defvjp(lambda left, right: (matmul(left, right), (left, right)), _product_backward)


def _polynomial(powers: list[Array], coefficients: list[float]) -> Array:
    """``sum_n c_n Y^n`` for ``powers = [I, Y, Y^2, Y^3, Y^4]`` and 4 m + 1 coefficients: blocks of
    four, joined by Horner in ``Y^4``.
    """
    *blocks, last = [coefficients[i : i + 4] for i in range(0, len(coefficients), 4)]
    # The last block is one number times I: its product with Y^4 is no matrix product.
    total = last[0] * powers[4] + _combined(blocks[-1], powers)
    for block in reversed(blocks[:-1]):
        total = _product(powers[4], total) + _combined(block, powers)
    return total


def _combined(coefficients: list[float], powers: list[Array]) -> Array:
    return sum(
        (c * y for c, y in zip(coefficients[1:], powers[1:], strict=False)),
        start=coefficients[0] * powers[0],
    )


def _versine_and_sine(x: Array, square: Array) -> tuple[Array, Array]:
    """``1 - cos X`` and ``sin X`` for Hermitian ``x [..., d, d]`` and its square.

    ``1 - cos`` keeps small angles accurate through the doublings, where ``cos`` itself would lose
    them to rounding.
    """
    terms = range(13 if jnp.finfo(x.dtype).bits == 64 else 9)
    fourth = _product(square, square)
    powers = [identity_like(x), square, fourth, _product(fourth, square), _product(fourth, fourth)]
    versine = _polynomial(powers, [(-1.0) ** n / math.factorial(2 * n + 2) for n in terms])
    sine = _polynomial(powers, [(-1.0) ** n / math.factorial(2 * n + 1) for n in terms])
    return _product(square, versine), _product(x, sine)


def _double(versine: Array, sine: Array) -> tuple[Array, Array]:
    """``1 - cos 2X = 2 sin^2 X`` and ``sin 2X = 2 (sin X - sin X (1 - cos X))``."""
    return 2.0 * matmul(sine, sine), 2.0 * (sine - matmul(sine, versine))


def _propagator(versine: Array, sine: Array) -> Array:
    """``cos X - i sin X`` as one complex array."""
    cosine = identity_like(sine) - versine
    return cosine - 1j * sine if jnp.iscomplexobj(sine) else jax.lax.complex(cosine, -sine)


def _exponent(hamiltonian: Array, dt: Array) -> Array:
    return dt.astype(hamiltonian.dtype)[..., None, None] * hermitian_part(hamiltonian)


def _forward(hamiltonian: Array, dt: Array) -> tuple[Array, Array]:
    """U and the number of doublings: one for the whole stack, the least with ``|X^2|_1 <= 4^s
    RADIUS^2`` for all members that are finite. A member that is not is NaN, and alone in that.
    """
    exponent = _exponent(hamiltonian, dt)
    square = matmul(exponent, exponent)
    norms = jnp.sqrt(jnp.max(jnp.sum(jnp.abs(square), axis=-1), axis=-1))
    finite = jnp.isfinite(norms)
    norm = jnp.max(jnp.where(finite, norms, 0.0), initial=0.0)
    doublings = jnp.minimum(
        jnp.ceil(jnp.log2(jnp.maximum(norm / RADIUS, 1.0))), MAX_DOUBLINGS
    ).astype(jnp.int32)
    scale = jnp.ldexp(jnp.ones_like(norm), -doublings)
    scale = jnp.where(finite, scale, jnp.nan).astype(exponent.dtype)[..., None, None]
    parts = _versine_and_sine(exponent * scale, square * scale**2)
    return _propagator(*jax.lax.fori_loop(0, doublings, lambda _, p: _double(*p), parts)), doublings


def _propagator_cotangents(
    hamiltonian: Array, dt: Array, doublings: Array, weight: Array
) -> tuple[Array, Array]:
    """Cotangents of H and dt for the functional ``Re tr(W dU)``, ``weight [..., d, d]``; only
    commuting maps act on W.
    """
    exponent = _exponent(hamiltonian, dt)
    scale = jnp.ldexp(jnp.ones((), dt.dtype), -doublings).astype(exponent.dtype)
    real = not jnp.iscomplexobj(hamiltonian)
    parts, pull_back = jax.vjp(lambda x: _versine_and_sine(x, _product(x, x)), exponent * scale)

    def ascend(
        _: Array, carry: tuple[tuple[Array, Array], Array]
    ) -> tuple[tuple[Array, Array], Array]:
        (versine, sine), weight = carry
        propagator = _propagator(versine, sine)
        left = matmul(propagator, weight)
        right = transpose(left) if real else matmul(weight, propagator)
        return _double(versine, sine), left + right

    # For real H, U is symmetric: only the symmetric part of W counts, and it stays symmetric.
    weight = 0.5 * (weight + transpose(weight)) if real else weight
    _, weight = jax.lax.fori_loop(0, doublings, ascend, (parts, weight))
    parts = (-weight, -1j * weight)
    (change,) = pull_back(
        tuple(jnp.real(p) if real else hermitian_part(transpose(p)) for p in parts)
    )
    change = scale * change
    ct_dt = jnp.sum(jnp.real(change * hermitian_part(hamiltonian)), axis=(-2, -1))
    ct_hamiltonian = hermitian_part(dt.astype(change.dtype)[..., None, None] * change)
    return sum_to(ct_hamiltonian, hamiltonian.shape), sum_to(ct_dt, dt.shape)


class _Propagation(NamedTuple):
    """What the gradient of a propagator reads."""

    hamiltonian: Array
    dt: Array
    doublings: Array


_ONCE = (
    "{} has first derivatives only, in reverse mode; for others differentiate "
    "jax.scipy.linalg.expm(-1j * dt * hamiltonian)"
)


@jax.custom_vjp
def _unitary(hamiltonian: Array, dt: Array) -> Array:
    return _forward(hamiltonian, dt)[0]


def _unitary_forward(hamiltonian: Array, dt: Array) -> tuple[Array, _Propagation]:
    hamiltonian, dt = first_derivatives_only((hamiltonian, dt), _ONCE.format("unitary"))
    propagator, doublings = _forward(hamiltonian, dt)
    return propagator, _Propagation(hamiltonian, dt, doublings)


def _unitary_backward(kept: _Propagation, ct: Array) -> tuple[Array, Array]:
    kept, ct = first_derivatives_only((kept, ct), _ONCE.format("unitary"))
    # Re sum(ct * dU) = Re tr(ct^T dU).
    return _propagator_cotangents(*kept, transpose(ct))


_unitary.defvjp(_unitary_forward, _unitary_backward)


def unitary(hamiltonian: Array, dt: ArrayLike) -> Array:
    """Propagator ``U = exp(-i dt H)``, by matrix products alone.

    In double precision 10 + 2 s real products for real H, with s doublings, ``2^s`` about ``|dt H|
    / 2``; the gradient 27 + 6 s more. The error is a few ``max(1, |dt H|) eps``. U is unitary to
    that error only: at ``|dt H| = 1e6`` in single precision it is off by 1e-2.

    Args:
        hamiltonian: ``[..., d, d]``, real symmetric or complex Hermitian; only its Hermitian part
            is read.
        dt: time step(s), ``[...]``, in inverse units of H (hbar = 1).

    Returns:
        Complex ``[..., d, d]`` with the broadcast leading axes of both. A member of a stack that is
        not finite is NaN, and harms no other. Reverse mode, first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    >>> pauli_x = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(jnp.abs(unitary(pauli_x, jnp.pi / 4)).round(4))
    [[0.7071 0.7071]
     [0.7071 0.7071]]
    """
    check_square("hamiltonian", hamiltonian)
    dt = time_step(dt, hamiltonian)
    rank = len(broadcast_named(hamiltonian=hamiltonian.shape[:-2], dt=dt.shape))
    return _unitary(expand_leading(hamiltonian, rank, 2), expand_leading(dt, rank))


@jax.custom_vjp
def _evolve_taylor(rho: Array, hamiltonian: Array, dt: Array) -> Array:
    return _evolve_forward(rho, hamiltonian, dt)[0]


class _Evolution(NamedTuple):
    """What the gradient of an evolution by the propagator reads."""

    rho: Array
    propagator: Array
    propagation: _Propagation


def _evolve_forward(rho: Array, hamiltonian: Array, dt: Array) -> tuple[Array, _Evolution]:
    rho, hamiltonian, dt = first_derivatives_only(
        (rho, hamiltonian, dt), _ONCE.format("evolve_taylor")
    )
    propagator, doublings = _forward(hamiltonian, dt)
    rho = hermitian_part(rho)
    evolved = matmul(matmul(propagator, rho), adjoint(propagator))
    return evolved, _Evolution(rho, propagator, _Propagation(hamiltonian, dt, doublings))


def _evolve_backward(kept: _Evolution, ct: Array) -> tuple[Array, Array, Array]:
    """With the functional ``dL = Re tr(A drho')``, A the Hermitian part of ``ct^T``: that of rho is
    ``U^dag A U``, and that of U is ``2 rho U^dag A``.
    """
    kept, ct = first_derivatives_only((kept, ct), _ONCE.format("evolve_taylor"))
    rho, propagator, propagation = kept
    half = matmul(adjoint(propagator), hermitian_part(transpose(ct)))
    ct_rho = transpose(matmul(half, propagator))
    weight = sum_to(2.0 * matmul(rho, half), propagator.shape)
    return sum_to(ct_rho, rho.shape), *_propagator_cotangents(*propagation, weight)


_evolve_taylor.defvjp(_evolve_forward, _evolve_backward)


def evolve_taylor(rho: Array, hamiltonian: Array, dt: ArrayLike) -> Array:
    """``U rho U^dag`` with :func:`unitary`.

    Eight real products per state besides the exponential, backward twelve. States under one ``(H,
    dt)`` share the exponential; times under one H do not. Trace and spectrum are kept to the error
    of U, see :func:`unitary`.

    Args:
        rho: ``[..., d, d]``, Hermitian; real or complex; only its Hermitian part is read.
        hamiltonian: ``[..., d, d]``, real symmetric or complex Hermitian; only its Hermitian part
            is read.
        dt: time step(s), ``[...]``, in inverse units of H (hbar = 1).

    Returns:
        Complex ``[..., d, d]``; the leading axes of all three broadcast. A member of a stack that
        is not finite is NaN, and harms no other. Reverse mode, first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    >>> pauli_x, rho = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.diag(jnp.array([1.0, 0.0]))
    >>> print(evolve_taylor(rho, pauli_x, jnp.pi / 2).real.round(4).diagonal())
    [0. 1.]
    """
    rho, hamiltonian, dt = prepare_evolution(rho, hamiltonian, dt, core=2)
    return _evolve_taylor(rho, expand_leading(hamiltonian, dt.ndim, 2), dt)
