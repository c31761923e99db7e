"""Unitary evolution ``rho -> U rho U^dag``, ``U = exp(-i dt H)``, with exact adjoints.

``H = V diag(w) V^dag`` and ``p = exp(-i w dt)``: in the basis V the evolution multiplies entry jk
by ``p_j p_k^*``, so U is never formed. For real symmetric H the change of basis is real and linear,
so it acts on ``Re rho + Im rho``, one real matrix that holds a Hermitian one
(:func:`vfejax.quantum.hermitian.packed`), at half the products.

Adjoint. For a functional ``dL = Re tr(A drho')``, A Hermitian, ``dL/dH`` is the integral of ``Z =
-i [rho, a]`` over the step, exact at equal eigenvalues (``_spectral.py``), and ``dL/ddt = tr(H
Z)``. The shortcut ``-i dt [rho, A]`` is only the first order in dt.

One convention holds between the borders: every cotangent is a functional A of the formula above,
and an ``image`` is one taken back to the start, in the eigenbasis. JAX's convention for complex
arrays, ``dL = Re sum(ct * drho)``, is met by a conjugation at the border of each rule: ``ct^*`` has
the Hermitian part of ``ct^T``. Only the Hermitian parts of rho and H are read, so that their
gradients are Hermitian. They are exact, reverse mode, first order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import sum_to
from vfejax.quantum._arguments import (
    check_square,
    first_derivatives_only,
    fit_evolution,
    prepare_evolution,
    time_step,
)
from vfejax.quantum._forms import FIRST_ONLY, evolve_form, from_form, functional_of, to_form
from vfejax.quantum._spectral import (
    Spectral,
    evolved_matrices,
    evolved_vectors,
    matrices_before,
    matrix_cotangents,
    vector_cotangents,
)
from vfejax.quantum.exponential import evolve_taylor
from vfejax.types import Array

__all__ = ["evolve", "evolve_packed", "evolve_spectral", "evolve_stack", "evolve_state"]


SPECTRAL_LIMIT = 64
"""Dimension from which a stack on a CPU is evolved by products alone.

Measured on two cores with the gradient: in single precision the two forms tie at d = 48 and
products take half the time at 128; in double they are slower by half at 48 and level at 128, where
LAPACK's own threads make its time erratic. The forward pass alone is faster by products from d =
16.
"""


def evolve_spectral(rho: Array, hamiltonian: Array, dt: ArrayLike) -> Array:
    """``U rho U^dag`` through one eigendecomposition per Hamiltonian.

    For real H four real products per state; backward six, and two per Hamiltonian.

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
    rho, hamiltonian, dt = prepare_evolution(rho, hamiltonian, dt, core=2)
    return from_form(evolve_form(to_form(rho, hamiltonian), hamiltonian, dt))


def evolve_packed(packed: Array, hamiltonian: Array, dt: ArrayLike) -> Array:
    """Evolved states ``U rho U^dag`` under real H, where ``Re rho + Im rho`` stands for rho.

    Mixtures, dephasing and populations act on this real matrix as they do on rho. So a chain of
    them and of evolutions takes half the memory, between :func:`vfejax.quantum.hermitian.packed`
    and :func:`vfejax.quantum.hermitian.unpacked`.

    Args:
        packed: ``[..., d, d]``, real.
        hamiltonian: ``[d, d]``, shared by all states, or ``[..., d, d]``; real symmetric.
        dt: time step(s), ``[...]``, in inverse units of H (hbar = 1).

    Returns:
        Real ``[..., d, d]``; the leading axes of all three broadcast. Reverse mode, first order.

    Raises:
        ValueError: when shapes or dtypes do not fit.
        NotImplementedError: for a second derivative.

    >>> pauli_x, rho = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.diag(jnp.array([1.0, 0.0]))
    >>> print(evolve_packed(rho, pauli_x, jnp.pi / 4).round(4))  # Im rho_01 = 1/2
    [[ 0.5  0.5]
     [-0.5  0.5]]
    """
    for name, x, remedy in (
        ("packed", packed, "hermitian.packed makes packed states"),
        ("hamiltonian", hamiltonian, "evolve takes complex ones"),
    ):
        check_square(name, x)
        if jnp.iscomplexobj(x):
            raise ValueError(f"{name} must be real, got {x.dtype}: {remedy}")
    return evolve_form(*fit_evolution("packed", packed, hamiltonian, dt, core=2))


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


@jax.custom_vjp
def _evolve_state(psi: Array, hamiltonian: Array, dt: Array) -> Array:
    return evolved_vectors(psi, hamiltonian, dt)[0]


def _state_forward(
    psi: Array, hamiltonian: Array, dt: Array
) -> tuple[Array, tuple[Array, Spectral]]:
    psi, hamiltonian, dt = first_derivatives_only(
        (psi, hamiltonian, dt), FIRST_ONLY.format("evolve_state")
    )
    evolved, spectral = evolved_vectors(psi, hamiltonian, dt)
    return evolved, (psi, spectral)


def _state_backward(kept: tuple[Array, Spectral], ct: Array) -> tuple[Array, Array, Array]:
    (psi, spectral), ct = first_derivatives_only((kept, ct), FIRST_ONLY.format("evolve_state"))
    functional, ct_hamiltonian, ct_dt = vector_cotangents(jnp.conj(ct), spectral)
    return sum_to(jnp.conj(functional), psi.shape), ct_hamiltonian, ct_dt


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
        evolved, spectral = evolved_matrices(rho, *inputs)
        return evolved, (spectral.levels, spectral.basis)

    final, (levels, basis) = jax.lax.scan(layer, rho, (hamiltonians, dts))
    return final, _Stack(final, levels, basis, dts)


def _stack_forward(rho: Array, hamiltonians: Array, dts: Array) -> tuple[Array, _Stack]:
    arguments = first_derivatives_only((rho, hamiltonians, dts), FIRST_ONLY.format("evolve_stack"))
    return _stack_in_bases(*arguments)


def _stack_backward(kept: _Stack, ct: Array) -> tuple[Array, Array, Array]:
    kept, ct = first_derivatives_only((kept, ct), FIRST_ONLY.format("evolve_stack"))

    def layer(
        carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        before, spectral = matrices_before(carry[0], *inputs)
        functional, ct_hamiltonian, ct_dt = matrix_cotangents(carry[1], spectral)
        return (before, functional), (ct_hamiltonian, ct_dt)

    (_, functional), (ct_hamiltonians, ct_dts) = jax.lax.scan(
        layer,
        (kept.final, functional_of(ct)),
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
        Complex ``[..., d, d]``. For real H backward ten real products per state and layer against 4
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
    if hamiltonians.ndim != 3 or not hamiltonians.shape[0]:
        raise ValueError(
            f"hamiltonians must be [depth, d, d] of at least one layer, got {hamiltonians.shape}"
        )
    dt = time_step(dt, hamiltonians)
    dt = jnp.broadcast_to(dt, hamiltonians.shape[:1]) if dt.ndim == 0 else dt
    if dt.shape[0] != hamiltonians.shape[0]:
        raise ValueError(
            f"dt must be a scalar or [depth = {hamiltonians.shape[0]}, ...], got {dt.shape}"
        )
    rho, _, first = prepare_evolution(rho, hamiltonians[0], dt[0], core=2)
    lead = jnp.broadcast_shapes(rho.shape[:-2], first.shape)
    dts = jnp.reshape(dt, (dt.shape[0], *first.shape))
    rho = jnp.broadcast_to(to_form(rho, hamiltonians), (*lead, *rho.shape[-2:]))
    return from_form(_evolve_stack(rho, hamiltonians, dts))
