"""Ways to evolve density matrices and to differentiate it, beside ``evolve``: the reference in
double precision, and the methods (a) to (f) of ``quantum.py``.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from claim_rows.density_matrices import Problem, adjoint, compiled

from vfejax.quantum.evolution import evolve

try:
    import pennylane
except ImportError:
    pennylane = None

try:
    import dynamiqs
except ImportError:
    dynamiqs = None

try:
    import qutip
except ImportError:
    qutip = None


def reference(inputs: Problem) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Evolved states and cotangents of rho, H and dt in double precision, one state after the
    other.
    """
    rho, h, dt, cotangent = (x.astype(np.result_type(x.dtype, np.float64)) for x in inputs)
    w, v = np.linalg.eigh(h)
    gap = w[:, None] - w
    value, ct_rho, ct_dt, integral = (
        np.empty_like(rho),
        np.empty_like(rho),
        np.empty_like(dt),
        np.zeros_like(h),
    )
    for i, t in enumerate(dt):
        p, a = np.exp(-1j * t * w), cotangent[i].T
        u = (v * p) @ v.T
        value[i] = u @ rho[i] @ adjoint(u)
        ct_rho[i] = (adjoint(u) @ a @ u).T
        # dL = 2 Re tr(A dU rho U^dag), and dU = V (D o V^T dH V) V^T with D the divided differences
        # of exp(-i t w).
        m = v.T @ (rho[i] @ adjoint(u) @ a) @ v
        divided = np.where(
            gap == 0, -1j * t * p[:, None], (p[:, None] - p) / np.where(gap == 0, 1.0, gap)
        )
        integral += 2 * (m.T * divided).real
        ct_dt[i] = 2 * (np.diagonal(m) @ (-1j * w * p)).real
    ct_h = v @ integral @ v.T
    return value, (ct_rho, 0.5 * (ct_h + ct_h.T), ct_dt)


def errors(found: tuple, expected: tuple) -> list[float]:
    """Relative errors of rho', and of the cotangents of rho, H (its symmetric part) and dt;
    absolute where the reference is 0.
    """
    value, (ct_rho, ct_h, ct_dt) = jax.tree.map(np.asarray, found)
    pairs = zip(
        (value, ct_rho, 0.5 * (ct_h + ct_h.T), ct_dt), (expected[0], *expected[1]), strict=True
    )
    return [
        float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0)) for got, want in pairs
    ]


def eigh_evolve(rho, hamiltonian, dt):
    """(a)."""
    levels, basis = jnp.linalg.eigh(hamiltonian)
    u = (basis * jnp.exp(-1j * dt[:, None] * levels)[:, None, :]) @ basis.T
    return u @ rho @ adjoint(u)


def expm_evolve(rho, hamiltonian, dt):
    """(b)."""
    u = jax.lax.map(lambda t: jax.scipy.linalg.expm(-1j * t * hamiltonian), dt)
    return u @ rho @ adjoint(u)


def shifts(inputs: Problem) -> tuple[Callable[[], object], int]:
    """(c): cotangents of H and dt, and the number of evaluations it takes; one evaluation after the
    other.
    """
    d = inputs.hamiltonian.shape[0]
    # Steps at which truncation (their square) and rounding (their inverse) are both below 1e-3 of
    # the gradient.
    step_h, step_dt = 0.1, 0.01
    rows, columns = np.tril_indices(d)
    units = np.zeros((len(rows), d, d), np.float32)
    units[np.arange(len(rows)), rows, columns] = units[np.arange(len(rows)), columns, rows] = step_h

    def run(rho, hamiltonian, dt, cotangent):
        def values(hamiltonian, dt):
            return jnp.sum(jnp.real(cotangent * evolve(rho, hamiltonian, dt)), axis=(-2, -1))

        def entry(unit):
            return jnp.sum(values(hamiltonian + unit, dt) - values(hamiltonian - unit, dt)) / (
                2 * step_h
            )

        slopes = jax.lax.map(entry, units)
        # An entry off the diagonal moves two entries of H together.
        half = jnp.zeros_like(hamiltonian).at[rows, columns].set(0.5 * slopes)
        ct_dt = (values(hamiltonian, dt + step_dt) - values(hamiltonian, dt - step_dt)) / (
            2 * step_dt
        )
        return half + half.T, ct_dt

    return compiled(run, *inputs)[0], 2 * (len(rows) + 1)


def real_strings(num_qubits: int) -> tuple[list[str], np.ndarray]:
    """Pauli words with an even number of Y, a basis of the real symmetric matrices, and their
    matrices.
    """
    pauli = {
        "I": np.eye(2),
        "X": np.array([[0, 1], [1, 0]]),
        "Y": np.array([[0, -1j], [1j, 0]]),
        "Z": np.diag([1, -1]),
    }
    words = [
        "".join(w) for w in itertools.product("IXYZ", repeat=num_qubits) if w.count("Y") % 2 == 0
    ]
    return words, np.stack(
        [functools.reduce(np.kron, [pauli[c] for c in word]) for word in words]
    ).real


def pennylane_method(psi: np.ndarray, inputs: Problem, words: list[str], strings: np.ndarray):
    """(d): forward pass, and gradient by the coefficients of the strings in H, at any time
    steps.
    """
    wires = range(len(words[0]))
    observables = inputs.cotangent.swapaxes(-1, -2).astype(np.complex128)
    coefficients = np.einsum("wjk,jk->w", strings, inputs.hamiltonian) / len(strings[0])
    device = pennylane.device("default.qubit", wires=len(wires))

    @pennylane.qnode(device, diff_method="adjoint")
    def energy(angles, psi, observable):
        pennylane.StatePrep(psi, wires=wires)
        for angle, word in zip(angles, words, strict=True):
            pennylane.PauliRot(angle, word, wires=wires)
        return pennylane.expval(pennylane.Hermitian(observable, wires=wires))

    slope = pennylane.grad(energy, argnums=0)

    def sweep(call: Callable, dt: np.ndarray, requires_grad: bool) -> list:
        # With angles to be trained PennyLane computes the gradient along with the value.
        angles = functools.partial(pennylane.numpy.array, requires_grad=requires_grad)
        return [
            call(angles(2 * t * coefficients), *x)
            for t, *x in zip(dt.astype(np.float64), psi, observables, strict=True)
        ]

    def gradient(dt: np.ndarray) -> np.ndarray:
        return np.einsum("tw,t->w", np.stack(sweep(slope, dt, True)), 2.0 * dt)

    return (lambda: sweep(energy, inputs.dt, False)), gradient


def dynamiqs_evolve(rho, hamiltonian, dt):
    """(e)."""
    times = jnp.stack([jnp.zeros_like(dt), dt])
    solution = dynamiqs.sepropagator(hamiltonian, times, progress_meter=False)
    u = solution.propagators.to_jax()[-1]
    return u @ rho @ adjoint(u)


def qutip_method(inputs: Problem) -> Callable[[], np.ndarray]:
    """(f), from objects that are made before the clock starts."""
    hamiltonian = qutip.Qobj(inputs.hamiltonian.astype(np.float64))
    states, dt = [qutip.Qobj(x.astype(np.complex128)) for x in inputs.rho], float(inputs.dt)

    def run() -> np.ndarray:
        u = (-1j * dt * hamiltonian).expm()
        adjoint = u.dag()
        return np.stack([(u @ x @ adjoint).full() for x in states])

    return run
