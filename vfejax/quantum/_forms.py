"""Hermitian matrices in the *form* that fits a Hamiltonian, and how a form evolves: complex where H
is complex, packed (:func:`vfejax.quantum.hermitian.packed`) where H is real.
"""

import jax
import jax.numpy as jnp

from vfejax.numerics import sum_to
from vfejax.quantum._arguments import first_derivatives_only
from vfejax.quantum._spectral import Spectral, evolved_matrices, matrix_cotangents
from vfejax.quantum.hermitian import hermitian_part, packed, unpacked
from vfejax.types import Array

__all__ = ["FIRST_ONLY", "evolve_form", "from_form", "functional_of", "to_form"]

FIRST_ONLY = (
    "{} has first derivatives only, in reverse mode; for others differentiate "
    "U rho U^dag with U = jax.scipy.linalg.expm(-1j * dt * hamiltonian)"
)
"""What a second derivative is answered, with the name of the function."""


def to_form(x: Array, hamiltonian: Array) -> Array:
    """The Hermitian part of complex x in the form that fits H.

    >>> to_form(jnp.array([[1.0, 1.0j], [-1.0j, 1.0]]), jnp.eye(2)).tolist()
    [[1.0, 1.0], [-1.0, 1.0]]
    """
    return hermitian_part(x) if jnp.iscomplexobj(hamiltonian) else packed(x)


def from_form(x: Array) -> Array:
    """The complex matrices of a form.

    >>> from_form(jnp.array([[1.0, 1.0], [-1.0, 1.0]])).tolist()
    [[(1+0j), 1j], [-1j, (1+0j)]]
    """
    return x if jnp.iscomplexobj(x) else unpacked(x)


def functional_of(ct: Array) -> Array:
    """The functional A of a cotangent of evolved matrices, as a form.

    >>> functional_of(jnp.array([[0.0, 2.0j], [0.0, 0.0]])).tolist()
    [[0j, -1j], [1j, 0j]]
    """
    return hermitian_part(jnp.conj(ct)) if jnp.iscomplexobj(ct) else ct


@jax.custom_vjp
def evolve_form(rho: Array, hamiltonian: Array, dt: Array) -> Array:
    """``U rho U^dag`` as a form.

    Args:
        rho: a form, ``[..., d, d]``.
        hamiltonian: ``[d, d]``, shared by all, or ``[..., d, d]``.
        dt: ``[...]``.

    >>> print(evolve_form(jnp.eye(2), jnp.eye(2), jnp.asarray(0.3)).round(4))
    [[1. 0.]
     [0. 1.]]
    """
    return evolved_matrices(rho, hamiltonian, dt)[0]


def _form_forward(
    rho: Array, hamiltonian: Array, dt: Array
) -> tuple[Array, tuple[Array, Spectral]]:
    arguments = first_derivatives_only((rho, hamiltonian, dt), FIRST_ONLY.format("evolve"))
    evolved, spectral = evolved_matrices(*arguments)
    return evolved, (rho, spectral)


def _form_backward(kept: tuple[Array, Spectral], ct: Array) -> tuple[Array, Array, Array]:
    (rho, spectral), ct = first_derivatives_only((kept, ct), FIRST_ONLY.format("evolve"))
    functional, ct_hamiltonian, ct_dt = matrix_cotangents(functional_of(ct), spectral)
    return sum_to(jnp.conj(functional), rho.shape), ct_hamiltonian, ct_dt


evolve_form.defvjp(_form_forward, _form_backward)
