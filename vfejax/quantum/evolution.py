"""Unitary evolution ``rho -> U rho U^dag``, ``U = exp(-i dt H)``, with exact adjoints.

``H = V diag(w) V^dag`` and ``p = exp(-i w dt)``: in the basis V the evolution multiplies entry jk
by ``p_j p_k^*``, so U is never formed. For real symmetric H the change of basis is real and linear,
so it acts on ``Re rho + Im rho``, one real matrix that holds a Hermitian one
(:func:`vfejax.quantum.hermitian.packed`), at half the products.

Adjoint. For a functional ``dL = Re tr(A drho')``, A Hermitian, and its image ``a = U^dag A U`` at
the start, ``dL/dH = int_0^dt U(s) Z U(s)^dag ds`` with ``Z = -i [rho, a]`` (Duhamel). In the basis
V the integral multiplies entry jk by ``Phi_jk = dt exp(-i dt (w_j - w_k) / 2) sinc(dt (w_j - w_k) /
2)``, ``sinc x = sin x / x``: exact at equal eigenvalues, where autodiff through ``eigh`` divides 0
by 0. ``dL/ddt = tr(H Z)``. Beyond the images of rho and A this takes one complex product. The
shortcut ``-i dt [rho, A]`` is only the first order in dt.

One convention holds between the borders: every cotangent is a functional A of the formula above,
and an ``image`` is one taken back to the start, in the eigenbasis. JAX's convention for complex
arrays, ``dL = Re sum(ct * drho)``, is met by a transposition at the border of each rule, ``A =
ct^T``. Only the Hermitian parts of rho and H are read, so that their gradients are Hermitian. They
are exact, reverse mode, first order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import matmul, matvec, sum_to, transpose
from vfejax.quantum._arguments import (
    check_square,
    first_derivatives_only,
    prepare_evolution,
    time_step,
)
from vfejax.quantum.exponential import evolve_taylor
from vfejax.quantum.hermitian import (
    adjoint,
    eigh,
    hermitian_part,
    packed,
    sandwich,
    turned,
    unpacked,
)
from vfejax.types import Array

__all__ = ["evolve", "evolve_spectral", "evolve_stack", "evolve_state"]


SPECTRAL_LIMIT = 64
"""Dimension from which a stack on a CPU is evolved by products alone.

Measured on two cores with the gradient: in single precision the two forms tie at d = 48 and
products take half the time at 128; in double they are slower by half at 48 and level at 128, where
LAPACK's own threads make its time erratic. The forward pass alone is faster by products from d =
16.
"""


def _with_axes(levels: Array, dt: Array) -> Array:
    return jnp.reshape(levels, (1,) * (dt.ndim + 1 - levels.ndim) + levels.shape)


class _Phases(NamedTuple):
    """``exp(i a)`` as cosines and sines, ``[..., d]``: XLA reads two real arrays faster than one
    complex one.
    """

    cos: Array
    sin: Array

    @property
    def conj(self) -> "_Phases":
        return _Phases(self.cos, -self.sin)

    @property
    def squared(self) -> "_Phases":
        return _Phases(self.cos * self.cos - self.sin * self.sin, 2.0 * self.sin * self.cos)

    @property
    def complex(self) -> Array:
        return jax.lax.complex(self.cos, self.sin)


def _half_phases(levels: Array, dt: Array) -> _Phases:
    """``exp(-i w dt / 2)``, ``[..., d]``.

    The product with the identity keeps XLA on a CPU from fusing the sines into the outer products
    below, which would compute each one d times.
    """
    angle = -0.5 * dt[..., None] * _with_axes(levels, dt)
    same = jnp.eye(angle.shape[-1], dtype=angle.dtype)
    return _Phases(matmul(jnp.cos(angle), same), matmul(jnp.sin(angle), same))


def _to_basis(x: Array, basis: Array) -> Array:
    """The Hermitian part of x in the eigenbasis V; for real V its conjugate, packed."""
    if jnp.iscomplexobj(basis):
        return sandwich(hermitian_part(x), basis)
    return turned(packed(x), basis)


def _from_basis(x: Array, basis: Array) -> Array:
    """The inverse of :func:`_to_basis`."""
    if jnp.iscomplexobj(basis):
        return sandwich(x, adjoint(basis))
    return unpacked(turned(x, transpose(basis)))


def _rotate(x: Array, phases: _Phases) -> Array:
    """``p_j x_jk p_k^*``: the evolution in the eigenbasis, of either form of x."""
    if jnp.iscomplexobj(x):
        p = phases.complex
        return p[..., :, None] * x * jnp.conj(p)[..., None, :]
    even, odd = _differences(phases)
    return even * x - odd * transpose(x)


def _differences(phases: _Phases) -> tuple[Array, Array]:
    """Cosines and sines of ``a_j - a_k``, ``[..., d, d]``."""
    cos, sin = phases
    row, column = (cos[..., :, None], sin[..., :, None]), (cos[..., None, :], sin[..., None, :])
    return row[0] * column[0] + row[1] * column[1], row[1] * column[0] - row[0] * column[1]


def _commutator(x: Array, y: Array) -> Array:
    """What makes ``-i [x, y]`` of two Hermitian matrices in the eigenbasis when its adjoint is added;
    for packed ones the real part of that, in two real products.
    """
    if jnp.iscomplexobj(x):
        return -1j * matmul(x, y)
    return 0.5 * (matmul(y, x) - matmul(x, y))


def _sinc(levels: Array, dt: Array, half: _Phases) -> Array:
    """``sinc(dt (w_j - w_k) / 2)``, ``[..., d, d]``.

    Its Taylor series below 1, else the sine of a difference from the sines and cosines at hand: far
    cheaper than d^2 sines.
    """
    row = _with_axes(levels, dt)
    x = 0.5 * dt[..., None, None] * (row[..., :, None] - row[..., None, :])
    square = x * x
    near = square < 1.0
    series = jnp.ones_like(x)
    for n in range(19 if x.dtype == jnp.float64 else 11, 1, -2):
        series = 1.0 - square / (n * (n - 1)) * series
    _, sine = _differences(half.conj)
    return jnp.where(near, series, sine / jnp.where(near, 1.0, x))


class _Spectral(NamedTuple):
    """One evolution in the eigenbasis of H: all that its gradient reads besides the functional.

    Attributes:
        start: the state before the evolution, in the eigenbasis, ``[..., d, d]``, as
            :func:`_to_basis` gives it, or ``[..., d]``.
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


_ONCE = (
    "{} has first derivatives only, in reverse mode; for others differentiate "
    "U rho U^dag with U = jax.scipy.linalg.expm(-1j * dt * hamiltonian)"
)


def _hamiltonian_cotangents(part: Array, spectral: _Spectral) -> tuple[Array, Array]:
    """Cotangents of H and dt from ``Z = part + part^dag`` in the eigenbasis, midway, ``[..., d, d]``.

    They are summed over what shares a Hamiltonian or a dt.
    """
    levels, basis, dt = spectral.levels, spectral.basis, spectral.dt
    diagonal = 2.0 * jnp.real(jnp.diagonal(part, axis1=-2, axis2=-1))
    ct_dt = sum_to(jnp.sum(diagonal * _with_axes(levels, dt), axis=-1), dt.shape)
    size = dt[..., None, None] * _sinc(levels, dt, spectral.half)
    integral = sum_to(size.astype(part.dtype) * part, basis.shape)
    integral = integral if jnp.iscomplexobj(basis) else jnp.real(integral)
    integral = 2.0 * hermitian_part(integral)
    if not jnp.iscomplexobj(basis):
        return matmul(matmul(basis, integral), transpose(basis)), ct_dt
    return transpose(matmul(matmul(basis, integral), adjoint(basis))), ct_dt


@jax.custom_vjp
def _evolve_spectral(rho: Array, hamiltonian: Array, dt: Array) -> Array:
    return _evolve_in_basis(rho, hamiltonian, dt)[0]


def _evolve_in_basis(rho: Array, hamiltonian: Array, dt: Array) -> tuple[Array, _Spectral]:
    levels, basis = eigh(hamiltonian)
    start, half = _to_basis(rho, basis), _half_phases(levels, dt)
    evolved = _from_basis(_rotate(start, half.squared), basis)
    return evolved, _Spectral(start, half, levels, basis, dt)


def _evolve_spectral_forward(
    rho: Array, hamiltonian: Array, dt: Array
) -> tuple[Array, tuple[Array, _Spectral]]:
    rho, hamiltonian, dt = first_derivatives_only((rho, hamiltonian, dt), _ONCE.format("evolve"))
    evolved, spectral = _evolve_in_basis(rho, hamiltonian, dt)
    return evolved, (rho, spectral)


def _evolve_spectral_backward(
    kept: tuple[Array, _Spectral], ct: Array
) -> tuple[Array, Array, Array]:
    (rho, spectral), ct = first_derivatives_only((kept, ct), _ONCE.format("evolve"))
    start, half, _, basis, _ = spectral
    final = _to_basis(jnp.conj(ct), basis)
    image = sum_to(_rotate(final, half.conj.squared), start.shape)
    part = _commutator(_rotate(start, half), _rotate(final, half.conj))
    ct_rho = jnp.conj(_from_basis(image, basis))
    return sum_to(ct_rho, rho.shape), *_hamiltonian_cotangents(part, spectral)


_evolve_spectral.defvjp(_evolve_spectral_forward, _evolve_spectral_backward)


def evolve_spectral(rho: Array, hamiltonian: Array, dt: ArrayLike) -> Array:
    """``U rho U^dag`` through one eigendecomposition per Hamiltonian.

    For real H four real products per state; backward seven, and two per Hamiltonian.

    Args:
        rho: ``[..., d, d]``, Hermitian; real or complex; only its Hermitian part is read.
        hamiltonian: ``[d, d]``, shared by all states, or ``[..., d, d]``; real symmetric or complex
            Hermitian; only its Hermitian part is read.
        dt: time step(s), ``[...]``, in inverse units of H (hbar = 1).

    Returns:
        Complex ``[..., d, d]``; the leading axes of all three broadcast. Reverse mode, first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    >>> pauli_x, rho = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.diag(jnp.array([1.0, 0.0]))
    >>> print(jnp.abs(evolve_spectral(rho, pauli_x, jnp.pi / 2)).round(4).diagonal())
    [0. 1.]
    """
    return _evolve_spectral(*prepare_evolution(rho, hamiltonian, dt, core=2))


def evolve(rho: Array, hamiltonian: Array, dt: ArrayLike) -> Array:
    """Evolved state ``U rho U^dag``, ``U = exp(-i dt H)``.

    Args:
        rho: ``[..., d, d]``, Hermitian; real or complex; only its Hermitian part is read.
        hamiltonian: ``[d, d]``, shared by all states, or ``[..., d, d]``; real symmetric or complex
            Hermitian; only its Hermitian part is read.
        dt: time step(s), ``[...]``, in inverse units of H (hbar = 1). A Hamiltonian scaled by
            position, ``s_i H``, is ``dt_i = s_i dt``.

    Returns:
        Complex ``[..., d, d]``; the leading axes of all three broadcast. A state, a Hamiltonian or
        a time that is not finite makes NaN of what depends on it, and harms no other. Reverse mode,
        first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    A shared Hamiltonian takes :func:`evolve_spectral`: one eigendecomposition for any number of
    states and times. A stack of them takes it on a CPU while ``d < SPECTRAL_LIMIT``, one
    decomposition after the other, and :func:`vfejax.quantum.exponential.evolve_taylor` otherwise.
    ``vmap`` over H of shape ``[d, d]`` decomposes in turn on every device: hand a stack over as a
    stack.

    >>> pauli_x, rho = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.diag(jnp.array([1.0, 0.0]))
    >>> times = jnp.array([0.0, jnp.pi / 4, jnp.pi / 2])
    >>> print(evolve(rho, pauli_x, times)[:, 1, 1].real.round(4))  # population of level 1
    [0.  0.5 1. ]
    """
    check_square("hamiltonian", hamiltonian)
    if hamiltonian.ndim == 2:
        return evolve_spectral(rho, hamiltonian, dt)
    if hamiltonian.shape[-1] >= SPECTRAL_LIMIT:
        return evolve_taylor(rho, hamiltonian, dt)
    dt = time_step(dt, hamiltonian)
    return jax.lax.platform_dependent(
        rho, hamiltonian, dt, cpu=evolve_spectral, default=evolve_taylor
    )


def _apply(basis: Array, x: Array) -> Array:
    """``B x`` for vectors ``x [..., d]``; one product for the whole stack where B is shared, in
    real arithmetic where B is real.
    """

    def apply(y: Array) -> Array:
        return matmul(y, transpose(basis)) if basis.ndim == 2 else matvec(basis, y)

    return (
        apply(x)
        if jnp.iscomplexobj(basis)
        else jax.lax.complex(apply(jnp.real(x)), apply(jnp.imag(x)))
    )


@jax.custom_vjp
def _evolve_state(psi: Array, hamiltonian: Array, dt: Array) -> Array:
    return _state_in_basis(psi, hamiltonian, dt)[0]


def _state_in_basis(psi: Array, hamiltonian: Array, dt: Array) -> tuple[Array, _Spectral]:
    levels, basis = eigh(hamiltonian)
    start, half = _apply(adjoint(basis), psi), _half_phases(levels, dt)
    return _apply(basis, half.squared.complex * start), _Spectral(start, half, levels, basis, dt)


def _state_forward(
    psi: Array, hamiltonian: Array, dt: Array
) -> tuple[Array, tuple[Array, _Spectral]]:
    psi, hamiltonian, dt = first_derivatives_only(
        (psi, hamiltonian, dt), _ONCE.format("evolve_state")
    )
    evolved, spectral = _state_in_basis(psi, hamiltonian, dt)
    return evolved, (psi, spectral)


def _state_backward(kept: tuple[Array, _Spectral], ct: Array) -> tuple[Array, Array, Array]:
    """The functional of a vector is ``dL = Re(a^dag dpsi)``, ``a = ct^*``."""
    (psi, spectral), ct = first_derivatives_only((kept, ct), _ONCE.format("evolve_state"))
    start, half, _, basis, _ = spectral
    middle = half.conj.complex * _apply(adjoint(basis), jnp.conj(ct))
    part = -0.5j * (half.complex * start)[..., :, None] * jnp.conj(middle)[..., None, :]
    functional = _apply(basis, sum_to(half.conj.complex * middle, start.shape))
    return sum_to(jnp.conj(functional), psi.shape), *_hamiltonian_cotangents(part, spectral)


_evolve_state.defvjp(_state_forward, _state_backward)


def evolve_state(psi: Array, hamiltonian: Array, dt: ArrayLike) -> Array:
    """Evolved vector ``exp(-i dt H) psi``, ``[..., d]``; O(d^2) per state after one
    eigendecomposition per Hamiltonian.

    Args:
        psi: ``[..., d]``, real or complex; any norm.
        hamiltonian: ``[d, d]``, shared by all states, or ``[..., d, d]``; real symmetric or complex
            Hermitian; only its Hermitian part is read.
        dt: time step(s), ``[...]``, in inverse units of H (hbar = 1).

    Returns:
        Complex ``[..., d]``; the leading axes of all three broadcast. Reverse mode, first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    >>> pauli_x = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> print(jnp.abs(evolve_state(jnp.array([1.0, 0.0]), pauli_x, jnp.pi / 4)).round(4))
    [0.7071 0.7071]
    """
    return _evolve_state(*prepare_evolution(psi, hamiltonian, dt, core=1))


class _Stack(NamedTuple):
    """What the gradient of a stack reads: the last state, and all layers' levels and bases."""

    final: Array
    levels: Array
    basis: Array
    dts: Array


@jax.custom_vjp
def _evolve_stack(rho: Array, hamiltonians: Array, dts: Array) -> Array:
    return _stack_in_bases(rho, hamiltonians, dts)[0]


def _stack_in_bases(rho: Array, hamiltonians: Array, dts: Array) -> tuple[Array, _Stack]:
    def layer(rho: Array, inputs: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        evolved, spectral = _evolve_in_basis(rho, *inputs)
        return evolved, (spectral.levels, spectral.basis)

    final, (levels, basis) = jax.lax.scan(layer, rho, (hamiltonians, dts))
    return final, _Stack(final, levels, basis, dts)


def _stack_forward(rho: Array, hamiltonians: Array, dts: Array) -> tuple[Array, _Stack]:
    arguments = first_derivatives_only((rho, hamiltonians, dts), _ONCE.format("evolve_stack"))
    return _stack_in_bases(*arguments)


def _stack_backward(kept: _Stack, ct: Array) -> tuple[Array, Array, Array]:
    kept, ct = first_derivatives_only((kept, ct), _ONCE.format("evolve_stack"))

    def layer(
        carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        levels, basis, dt = inputs
        half = _half_phases(levels, dt)
        ends = _to_basis(jnp.stack(carry), basis)
        back = _Phases(*(x[None] for x in half.conj))
        rho, functional = _rotate(ends, back)
        spectral = _Spectral(rho, half, levels, basis, dt)
        cotangents = _hamiltonian_cotangents(_commutator(rho, functional), spectral)
        before, functional = _from_basis(_rotate(ends, back.squared), basis)
        return (before, functional), cotangents

    (_, functional), (ct_hamiltonians, ct_dts) = jax.lax.scan(
        layer,
        (kept.final, jnp.conj(ct)),
        (kept.levels, kept.basis, kept.dts),
        reverse=True,
    )
    return jnp.conj(functional), ct_hamiltonians, ct_dts


_evolve_stack.defvjp(_stack_forward, _stack_backward)


def evolve_stack(rho: Array, hamiltonians: Array, dt: ArrayLike) -> Array:
    """State after a stack of evolutions ``rho <- U_l rho U_l^dag``, l = 0 .. depth - 1, in memory
    independent of the depth.

    A unitary step has an inverse, so the backward pass recomputes each state from the last one
    instead of storing it; only the eigendecompositions, as large as the Hamiltonians themselves,
    are kept. Relative error of the reconstructed start, measured at d = 5 to 48: 6e-6 after 10
    layers and 7e-5 after 1000 in single precision, 1e-14 and 1e-13 in double, on a CPU; ten times
    that after 1000 on a GPU. It grows like the root of the depth. Channels that lose information
    have no inverse: they belong between stacks.

    Args:
        rho: ``[..., d, d]``, Hermitian; only its Hermitian part is read.
        hamiltonians: ``[depth, d, d]``.
        dt: ``[depth, ...]`` or a scalar.

    Returns:
        Complex ``[..., d, d]``. For real H backward 11 real products per state and layer against 4
        forward. Reverse mode, first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    >>> pauli_x, rho = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.diag(jnp.array([1.0, 0.0]))
    >>> turned = evolve_stack(rho, jnp.stack([pauli_x] * 4), jnp.pi / 8)
    >>> jnp.abs(turned.diagonal()).round(4).tolist()
    [0.0, 1.0]
    """
    check_square("hamiltonians", hamiltonians)
    if hamiltonians.ndim != 3:
        raise ValueError(f"hamiltonians must be [depth, d, d], got {hamiltonians.shape}")
    dt = time_step(dt, hamiltonians)
    dt = jnp.broadcast_to(dt, hamiltonians.shape[:1]) if dt.ndim == 0 else dt
    if dt.shape[0] != hamiltonians.shape[0]:
        raise ValueError(
            f"dt must be a scalar or [depth = {hamiltonians.shape[0]}, ...], got {dt.shape}"
        )
    rho, _, first = prepare_evolution(rho, hamiltonians[0], dt[0], core=2)
    lead = jnp.broadcast_shapes(rho.shape[:-2], first.shape)
    dts = jnp.reshape(dt, (dt.shape[0], *first.shape))
    return _evolve_stack(jnp.broadcast_to(rho, (*lead, *rho.shape[-2:])), hamiltonians, dts)
