"""Random Hamiltonians and states for the tests, and the Frechet oracle of SciPy."""

import numpy as np
import scipy.linalg


def random_hermitian(rng, d, complex_entries=False):
    matrix = rng.normal(size=(d, d)) + (1j * rng.normal(size=(d, d)) if complex_entries else 0.0)
    return 0.5 * (matrix + matrix.conj().T)


def random_states(rng, d, shape=()):
    """Full-rank states ``[*shape, d, d]``."""
    factor = rng.normal(size=(*shape, d, d)) + 1j * rng.normal(size=(*shape, d, d))
    matrix = factor @ np.conj(np.swapaxes(factor, -1, -2))
    return matrix / np.trace(matrix, axis1=-2, axis2=-1)[..., None, None]


def hamiltonian_kinds(rng, d, complex_entries):
    """Named Hamiltonians of one shape and dtype: generic, without levels to divide by, degenerate,
    strong.
    """
    generic = random_hermitian(rng, d, complex_entries)
    basis = np.linalg.eigh(generic)[1]
    levels = np.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0])[:d]
    return {
        "generic": generic,
        "zero": np.zeros_like(generic),
        "identity": 1.3 * np.eye(d, dtype=generic.dtype),
        "degenerate": (basis * levels) @ basis.conj().T,
        "nearly degenerate": (basis * (levels + 1e-9 * np.arange(d))) @ basis.conj().T,
        "strong": 20.0 * generic,
    }


def complex_dtype(dtype):
    """complex64 for float32, complex128 for float64."""
    return np.result_type(dtype, np.complex64)


def propagator(hamiltonian, dt):
    return scipy.linalg.expm(-1j * dt * hamiltonian)


def frechet_gradient(hamiltonian, dt, functional):
    """Gradient by H in JAX's convention, ``dL = Re sum(gradient * dH)``, of L with differential
    ``functional(dU)``.

    One ``expm_frechet`` per direction of the space of symmetric or Hermitian matrices.
    """
    d = hamiltonian.shape[-1]
    gradient = np.zeros((d, d), hamiltonian.dtype)
    for j in range(d):
        for k in range(j + 1):
            for unit in (1.0, 1j) if np.iscomplexobj(hamiltonian) and j != k else (1.0,):
                direction = np.zeros((d, d), np.result_type(hamiltonian, type(unit)))
                direction[j, k] = unit
                direction[k, j] = np.conj(unit)
                change = scipy.linalg.expm_frechet(
                    -1j * dt * hamiltonian,
                    -1j * dt * direction,
                    compute_expm=False,
                    check_finite=False,
                )
                size = functional(change) / np.sum(np.abs(direction) ** 2)
                gradient += size * np.conj(direction)
    return gradient


def relative_error(got, expected):
    return np.linalg.norm(np.asarray(got) - expected) / max(np.linalg.norm(expected), 1e-30)
