"""Unitary evolution: exact solutions, Frechet derivatives at every kind of spectrum, invariants,
stacks, memory, transforms.
"""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import quantum_samples as qs
from helpers.precisions import single_by_default
from jax.test_util import check_grads

from vfejax.quantum.evolution import (
    SPECTRAL_LIMIT,
    evolve,
    evolve_packed,
    evolve_spectral,
    evolve_stack,
    evolve_state,
)
from vfejax.quantum.exponential import evolve_taylor
from vfejax.quantum.hamiltonian import position_scaled, rabi, rabi_population
from vfejax.quantum.hermitian import packed, unpacked

# A new form of the evolution joins the tests below by one line.
METHODS = [evolve_spectral, evolve_taylor]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda f: f.__name__)
each_field = pytest.mark.parametrize(
    "complex_entries", [False, True], ids=["symmetric", "hermitian"]
)
compiled = {method: jax.jit(method) for method in METHODS}


def weighted(method, rho, hamiltonian, dt, weight):
    return jnp.sum(jnp.real(weight * method(rho, hamiltonian, dt)))


gradients = {
    m: jax.jit(jax.grad(lambda *a, m=m: weighted(m, *a), argnums=(0, 1, 2)))
    for m in [*METHODS, evolve_state]
}


def complex_normal(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


@each_field
@each_method
def test_value_and_gradients_are_frechet_derivatives(method, complex_entries, rng):
    """Against ``expm`` and ``expm_frechet``, for a weight that is not Hermitian."""
    d, dt = 5, np.asarray(0.7)
    rho, weight = qs.random_states(rng, d), complex_normal(rng, d, d)
    for name, hamiltonian in qs.hamiltonian_kinds(rng, d, complex_entries).items():
        U = qs.propagator(hamiltonian, dt)
        evolved = U @ rho @ U.conj().T
        arguments = rho, hamiltonian, dt
        ct_rho, ct_hamiltonian, ct_dt = gradients[method](*arguments, weight)
        by_hamiltonian = qs.frechet_gradient(
            hamiltonian,
            dt,
            lambda dU, U=U: np.sum(weight * (dU @ rho @ U.conj().T + U @ rho @ dU.conj().T)).real,
        )
        by_dt = np.sum(weight * (-1j) * (hamiltonian @ evolved - evolved @ hamiltonian)).real
        # Phases are wrong by eps times the angle: |dt H| is 40 to 70 for the strong one.
        tolerance = 1e-12 if name == "strong" else 1e-13
        assert qs.relative_error(compiled[method](*arguments), evolved) < tolerance, name
        assert qs.relative_error(ct_hamiltonian, by_hamiltonian) < tolerance, name
        by_rho = U.T @ (weight + weight.conj().T) @ U.conj() / 2
        assert qs.relative_error(ct_rho, by_rho) < tolerance, name
        scale = np.linalg.norm(weight) * np.linalg.norm(hamiltonian) * np.linalg.norm(rho)
        assert abs(ct_dt - by_dt) <= tolerance * scale, name


def test_packed_states_evolve_as_the_states_they_stand_for(rng):
    """Packing keeps inner products, so cotangents are packed like states."""
    hamiltonian, dt = qs.random_hermitian(rng, 5), rng.normal(size=3)
    rho, weight = qs.random_states(rng, 5, (3,)), packed(complex_normal(rng, 3, 5, 5))
    evolved, pull_back = jax.vjp(jax.jit(evolve_packed), packed(rho), hamiltonian, dt)
    expected, pull_back_states = jax.vjp(jax.jit(evolve_spectral), rho, hamiltonian, dt)
    # Real numbers in another order.
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-13)
    close(evolved, packed(expected))
    ct_rho, *others = pull_back_states(jnp.conj(unpacked(weight)))
    close(pull_back(weight), (packed(jnp.conj(ct_rho)), *others))


def test_nearly_degenerate_against_mpmath(rng):
    """Thirty digits: the derivative by quadrature-free central differences of ``expm`` in mpmath,
    at a splitting of 1e-9.
    """
    d, dt = 5, np.asarray(0.7)
    hamiltonian = qs.hamiltonian_kinds(rng, d, False)["nearly degenerate"]
    rho, weight = qs.random_states(rng, d), complex_normal(rng, d, d)
    direction = qs.random_hermitian(rng, d)
    with mpmath.workdps(60):
        H, E, R, W = (mpmath.matrix(x.tolist()) for x in (hamiltonian, direction, rho, weight))

        def value(h):
            U = mpmath.expm(mpmath.mpc(0, -float(dt)) * (H + h * E))
            out = U * R * U.H
            return sum(mpmath.re(W[j, k] * out[j, k]) for j in range(d) for k in range(d))

        step = mpmath.mpf(10) ** -20
        exact = float((value(step) - value(-step)) / (2 * step))
    for method in METHODS:
        got = gradients[method](rho, hamiltonian, dt, weight)[1]
        assert abs(np.sum(np.asarray(got) * direction) - exact) < 1e-13 * np.linalg.norm(
            direction
        ) * np.linalg.norm(weight)


def test_autodiff_through_eigh_fails_where_ours_holds(rng):
    """The reason for the custom rule: equal levels."""

    def naive(hamiltonian, rho, weight):
        levels, basis = jnp.linalg.eigh(hamiltonian)
        phases = jax.lax.complex(jnp.cos(0.7 * levels), -jnp.sin(0.7 * levels))
        U = (basis.astype(rho.dtype) * phases[None, :]) @ basis.T.astype(rho.dtype)
        return jnp.sum(jnp.real(weight * (U @ rho @ U.conj().T)))

    rho, weight = qs.random_states(rng, 5), complex_normal(rng, 5, 5)
    hamiltonian = 1.3 * np.eye(5)
    assert np.isnan(jax.jit(jax.grad(naive))(hamiltonian, rho, weight)).any()
    ours = gradients[evolve_spectral](rho, hamiltonian, np.asarray(0.7), weight)[1]
    chex.assert_tree_all_finite(ours)
    assert np.linalg.norm(ours) > 0.1


@pytest.mark.slow  # exact derivatives and stacks against single calls stay in the default run
@pytest.mark.parametrize(
    ("method", "complex_entries"), [(evolve_spectral, False), (evolve_taylor, True)]
)
def test_finite_differences_with_broadcasting(method, complex_entries, rng):
    """Reverse mode in every argument at once: states [2, 1], times [3], for a loss that is not
    linear.
    """
    d = 3
    state = qs.random_states(rng, d, (2, 1))
    imaginary = rng.normal(size=(d, d)) if complex_entries else None

    def loss(real, imag, raw, dt):
        hamiltonian = raw if imaginary is None else jax.lax.complex(raw, jnp.asarray(imaginary))
        rho = jax.lax.complex(real, imag)
        rho = 0.5 * (rho + jnp.conj(jnp.swapaxes(rho, -1, -2)))
        out = method(rho, hamiltonian, dt)
        return jnp.sum(jnp.abs(out) ** 4) + jnp.sum(
            jnp.sin(jnp.real(out[..., 0, 1])) * jnp.imag(out[..., 0, 2])
        )

    arguments = (
        jnp.asarray(state.real),
        jnp.asarray(state.imag),
        jnp.asarray(rng.normal(size=(d, d))),
    )
    # Differences of order eps^(1/3): 1e-7 relative.
    check_grads(
        jax.jit(loss),
        (*arguments, jnp.array([0.3, -0.8, 1.9])),
        order=1,
        modes=["rev"],
        atol=1e-6,
        rtol=1e-6,
    )


@each_method
@single_by_default
def test_trace_spectrum_and_purity_are_kept(method, rng, dtype):
    d = 6
    complex_dtype = qs.complex_dtype(dtype)
    rho = qs.random_states(rng, d, (4,)).astype(complex_dtype)
    evolved = compiled[method](
        rho,
        (3.0 * qs.random_hermitian(rng, d)).astype(dtype),
        np.asarray([0.1, 1.0, 5.0, 30.0], dtype),
    )
    chex.assert_type(evolved, complex_dtype)
    evolved = np.asarray(evolved)
    # U is unitary to eps times the number of reflections in the eigensolver, or for Taylor's series
    # of doublings, each of which doubles what was wrong (109 eps at the longest step; the products
    # of a GPU round more).
    atol = 240 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.trace(evolved, axis1=-2, axis2=-1), 1.0, rtol=0, atol=atol)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(evolved), np.linalg.eigvalsh(rho), rtol=0, atol=atol
    )
    np.testing.assert_allclose(
        np.sum(np.abs(evolved) ** 2, (-2, -1)),
        np.sum(np.abs(rho) ** 2, (-2, -1)),
        rtol=0,
        atol=atol,
    )


@each_method
def test_times_compose_and_have_an_inverse(method, rng):
    rho, hamiltonian = qs.random_states(rng, 5), qs.random_hermitian(rng, 5)
    step = compiled[method]
    times = np.array([1.9, 0.7, 1.2])
    once = step(rho, hamiltonian, times[0])
    twice = step(step(rho, hamiltonian, times[1]), hamiltonian, times[2])
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-15 * 20)
    np.testing.assert_allclose(step(once, hamiltonian, -times[0]), rho, rtol=0, atol=1e-15 * 20)
    assert np.abs(once - rho).max() > 0.05


@each_method
def test_rabi_oscillation(method):
    time, ground = np.linspace(0.0, 12.0, 40), np.array([[1.0, 0.0], [0.0, 0.0]])

    @jax.jit
    def both(frequency, detuning):
        evolved = method(jnp.asarray(ground), rabi(frequency, detuning), jnp.asarray(time))
        return jnp.real(evolved[:, 1, 1]), rabi_population(frequency, detuning, jnp.asarray(time))

    excited, expected = both(1.3, 0.4)
    np.testing.assert_allclose(excited, expected, rtol=0, atol=1e-14)
    assert excited.max() > 0.9


@pytest.mark.parametrize(
    ("dtype", "complex_entries"),
    [(np.float64, True), pytest.param(np.float32, False, marks=pytest.mark.slow)],
)
def test_both_forms_agree_at_every_strength(dtype, complex_entries, rng):
    """From no doubling to ten, in value and gradient."""
    d = 5
    complex_dtype = qs.complex_dtype(dtype)
    rho = qs.random_states(rng, d).astype(complex_dtype)
    weight = complex_normal(rng, d, d).astype(complex_dtype)
    hamiltonian = qs.random_hermitian(rng, d, complex_entries)
    hamiltonian = hamiltonian.astype(complex_dtype if complex_entries else dtype)
    for dt in (0.0, 1e-3, 0.3, 3.0, 100.0):
        time = np.asarray(dt, dtype)
        # Both forms lose eps times the angle, and a gradient adds up d terms.
        tolerance = 50 * max(1.0, 5 * dt) * float(jnp.finfo(dtype).eps)
        values = [compiled[m](rho, hamiltonian, time) for m in METHODS]
        assert qs.relative_error(values[0], np.asarray(values[1])) < tolerance
        spectral, taylor = (gradients[m](rho, hamiltonian, time, weight) for m in METHODS)
        assert qs.relative_error(taylor[0], np.asarray(spectral[0])) < tolerance
        assert qs.relative_error(taylor[1], np.asarray(spectral[1])) < tolerance
        scale = np.linalg.norm(weight) * np.linalg.norm(hamiltonian) * np.linalg.norm(rho)
        assert abs(taylor[2] - spectral[2]) < tolerance * scale


def _eigensolver_shapes(executable):
    """Shapes that LAPACK's Hermitian eigensolvers get in a compiled program."""
    text = executable.as_text()
    calls = [
        line
        for line in text.splitlines()
        if re.search(r'custom_call_target="lapack_\w*(syevd|heevd)', line)
    ]
    return [re.search(r"= \(\w+\[([\d,]*)\]", line).group(1) for line in calls]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="LAPACK is called on a CPU only")
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(evolve, id="stack"),
        pytest.param(jax.vmap(evolve), id="vmap"),
        pytest.param(evolve_spectral, id="spectral", marks=pytest.mark.slow),
    ],
)
def test_stacks_and_vmap_call_lapack_on_one_matrix_at_a_time(function, rng):
    rho = qs.random_states(rng, 5, (3,))
    stack = np.stack([qs.random_hermitian(rng, 5) for _ in range(3)])
    time = np.asarray([0.2, 0.9, -1.4])
    single = np.stack(
        [compiled[evolve_spectral](*each) for each in zip(rho, stack, time, strict=True)]
    )
    executable = jax.jit(function).lower(rho, stack, time).compile()
    assert _eigensolver_shapes(executable) == ["5,5"]
    np.testing.assert_allclose(executable(rho, stack, time), single, rtol=0, atol=1e-14)


def test_gradients_by_a_stack_are_those_by_its_members(rng):
    rho = qs.random_states(rng, 5, (3,))
    stack = np.stack([qs.random_hermitian(rng, 5) for _ in range(3)])
    time = np.asarray([0.2, 0.9, -1.4])
    weight = complex_normal(rng, 3, 5, 5)
    each = [
        gradients[evolve_spectral](*each) for each in zip(rho, stack, time, weight, strict=True)
    ]
    got = jax.jit(jax.grad(lambda *a: weighted(evolve, *a), argnums=(0, 1, 2)))(
        rho, stack, time, weight
    )
    expected = tuple(np.stack(parts) for parts in zip(*each, strict=True))
    chex.assert_trees_all_close(got, expected, rtol=1e-7, atol=1e-13)


def test_large_stacks_need_no_eigensolver(rng):
    d = SPECTRAL_LIMIT
    rho = qs.random_states(rng, d, (2,)).astype(np.complex64)
    stack = np.stack([qs.random_hermitian(rng, d) for _ in range(2)]).astype(np.float32)
    assert _eigensolver_shapes(jax.jit(evolve).lower(rho, stack, 0.1).compile()) == []


def test_position_scaled_hamiltonian_shares_one_decomposition(rng):
    rho = qs.random_states(rng, 4, (2, 5))
    hamiltonian, scales = qs.random_hermitian(rng, 4), np.linspace(0.2, 2.0, 5)
    shared, explicit = jax.jit(
        lambda r, h, s: (evolve(r, h, 0.3 * s), evolve_taylor(r, position_scaled(h, s), 0.3))
    )(rho, hamiltonian, scales)
    np.testing.assert_allclose(shared, explicit, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "method",
    [evolve_taylor, evolve_state, pytest.param(evolve_spectral, marks=pytest.mark.slow)],
    ids=lambda f: f.__name__,
)
def test_one_state_under_a_stack_of_hamiltonians_collects_every_gradient(method, rng):
    start = complex_normal(rng, 5) if method is evolve_state else qs.random_states(rng, 5)
    hamiltonians = np.stack([qs.random_hermitian(rng, 5) for _ in range(2)])
    weights, dt = complex_normal(rng, 2, *start.shape), np.asarray(0.7)
    ct_start, ct_hamiltonians, ct_dt = gradients[method](start, hamiltonians, dt, weights)
    single = [
        jax.tree.map(np.asarray, gradients[method](start, h, dt, w))
        for h, w in zip(hamiltonians, weights, strict=True)
    ]
    np.testing.assert_allclose(ct_start, single[0][0] + single[1][0], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        ct_hamiltonians, np.stack([g[1] for g in single]), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(ct_dt, single[0][2] + single[1][2], rtol=1e-12, atol=1e-13)


@each_field
def test_state_vector_agrees_with_its_density_matrix_and_frechet(complex_entries, rng):
    d, dt = 5, np.asarray(0.7)
    psi, weight = complex_normal(rng, d), complex_normal(rng, d)
    step = jax.jit(evolve_state)
    for name, hamiltonian in qs.hamiltonian_kinds(rng, d, complex_entries).items():
        U = qs.propagator(hamiltonian, dt)
        arguments = psi, hamiltonian, dt
        ct_psi, ct_hamiltonian, ct_dt = gradients[evolve_state](*arguments, weight)
        expected = qs.frechet_gradient(hamiltonian, dt, lambda dU: np.sum(weight * (dU @ psi)).real)
        tolerance = 1e-12 if name == "strong" else 1e-13  # eps times the angle, as above
        assert qs.relative_error(step(*arguments), U @ psi) < tolerance, name
        assert qs.relative_error(ct_psi, U.T @ weight) < tolerance, name
        assert qs.relative_error(ct_hamiltonian, expected) < tolerance, name
        scale = np.linalg.norm(weight) * np.linalg.norm(hamiltonian) * np.linalg.norm(psi)
        assert (
            abs(ct_dt - np.sum(weight * (-1j) * (hamiltonian @ U @ psi)).real) <= tolerance * scale
        ), name
        evolved = np.asarray(compiled[evolve_spectral](np.outer(psi, psi.conj()), *arguments[1:]))
        np.testing.assert_allclose(evolved, np.outer(U @ psi, (U @ psi).conj()), rtol=0, atol=1e-12)


def test_state_vectors_in_a_batch(rng):
    psi = complex_normal(rng, 2, 3, 4)
    hamiltonians = np.stack([qs.random_hermitian(rng, 4) for _ in range(3)])
    time = np.array([0.1, 0.5, 2.0])
    for hamiltonian in (hamiltonians[0], hamiltonians):
        got = jax.jit(evolve_state)(psi, hamiltonian, time)
        each = np.broadcast_to(hamiltonian, (3, 4, 4))
        expected = [
            [qs.propagator(each[j], time[j]) @ psi[i, j] for j in range(3)] for i in range(2)
        ]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", [evolve, evolve_taylor], ids=lambda f: f.__name__)
def test_one_bad_member_harms_no_other(method, rng):
    """A NaN in a state, in a Hamiltonian, in a time: each spoils its own member of the batch."""
    states = qs.random_states(rng, 3, (4,))
    stack = np.stack([qs.random_hermitian(rng, 3) for _ in range(4)])
    times = rng.uniform(0.1, 1.0, 4)
    step = jax.jit(method)
    clean = np.asarray(step(states, stack, times))
    states[0, 0, 1], stack[1, 2, 0], times[2] = np.nan, np.nan, np.nan
    out = np.asarray(step(states, stack, times))
    assert np.isnan(out[:3]).any((1, 2)).all()
    np.testing.assert_allclose(out[3], clean[3], rtol=0, atol=1e-14)


def _one_by_one(rho, hamiltonians, dt):
    return jax.lax.scan(lambda r, x: (evolve_spectral(r, *x), None), rho, (hamiltonians, dt))[0]


@pytest.mark.parametrize(
    "complex_entries",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["symmetric", "hermitian"],
)
def test_stack_equals_steps_in_value_and_gradient(complex_entries, rng):
    depth, d = 6, 4
    rho, weight = qs.random_states(rng, d, (3,)), complex_normal(rng, 3, d, d)
    hamiltonians = np.stack([qs.random_hermitian(rng, d, complex_entries) for _ in range(depth)])
    times = rng.uniform(0.1, 2.0, size=(depth, 3))
    pair = (
        jax.jit(jax.value_and_grad(lambda *a, f=f: weighted(f, *a), (0, 1, 2)))
        for f in (evolve_stack, _one_by_one)
    )
    (value, grads), (expected, expected_grads) = (f(rho, hamiltonians, times, weight) for f in pair)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    for got, want in zip(grads, expected_grads, strict=True):
        assert qs.relative_error(got, np.asarray(want)) < 1e-13


def test_stack_memory_does_not_grow_with_depth(rng):
    """One stored state would take 64 d^2 16 bytes per layer; a Hamiltonian with its decomposition
    takes a few d^2 8.
    """
    d, num = 6, 64
    rho = qs.random_states(rng, d, (num,))

    def temporary(function, depth):
        hamiltonians = np.zeros((depth, d, d))
        loss = jax.grad(lambda *a: jnp.sum(jnp.abs(function(*a)) ** 4), (0, 1))
        return (
            jax.jit(loss)
            .lower(rho, hamiltonians, np.zeros(depth))
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    per_layer = (temporary(evolve_stack, 40) - temporary(evolve_stack, 8)) / 32
    assert per_layer < 8 * d * d * 8
    assert temporary(_one_by_one, 40) > 40 * num * d * d * 8


def test_inversion_error_of_a_deep_stack(rng, dtype):
    """There and back through 1000 layers: the docstring's 1e-13 in double and 7e-5 in single
    precision, ten times that on a GPU, with a margin of three.
    """
    depth, d = 1000, 5
    complex_dtype = qs.complex_dtype(dtype)
    rho = qs.random_states(rng, d).astype(complex_dtype)
    hamiltonians = np.stack([qs.random_hermitian(rng, d) for _ in range(depth)]).astype(dtype)
    stack = jax.jit(evolve_stack)
    end = np.asarray(stack(rho, hamiltonians, 0.5))
    back = stack(end, hamiltonians[::-1], -0.5)
    assert np.abs(end - rho).max() > 0.05
    bound = {"float32": 2.1e-4, "float64": 3e-13}[dtype.name]
    assert qs.relative_error(back, rho) < bound * (1 if jax.default_backend() == "cpu" else 10)


@pytest.mark.parametrize(
    ("rho", "hamiltonian", "dt", "message"),
    [
        ((3, 4), (4, 4), (), "rho must be square"),
        ((4,), (4, 4), (), "rho must be square"),
        ((3, 3), (4, 4), (), "same dimension"),
        ((4, 4), (4, 3), (), "hamiltonian must be square"),
        ((2, 4, 4), (4, 4), (3,), "leading axes must broadcast"),
        ((2, 4, 4), (3, 4, 4), (), "leading axes must broadcast"),
    ],
)
def test_wrong_shapes_are_refused(rho, hamiltonian, dt, message):
    for method in (evolve, *METHODS):
        with pytest.raises(ValueError, match=message):
            method(np.zeros(rho), np.zeros(hamiltonian), np.zeros(dt))


def test_wrong_dtypes_and_stacks_are_refused():
    rho, hamiltonian = np.zeros((4, 4)), np.zeros((4, 4))
    with pytest.raises(ValueError, match="one precision"):
        evolve(rho, hamiltonian.astype(np.float32), 0.1)
    with pytest.raises(ValueError, match="floating"):
        evolve(rho, np.zeros((4, 4), int), 0.1)
    half = np.zeros((4, 4), jnp.bfloat16)
    for method in (evolve, evolve_packed, *METHODS):
        with pytest.raises(ValueError, match="hamiltonian must be at least in single"):
            method(half, half, 0.1)
    with pytest.raises(ValueError, match="dt must be real"):
        evolve(rho, hamiltonian, 0.1j)
    with pytest.raises(ValueError, match=r"packed must be real, got complex128: .* packed"):
        evolve_packed(rho + 0j, hamiltonian, 0.1)
    with pytest.raises(ValueError, match="hamiltonian must be real, got complex128: evolve"):
        evolve_packed(rho, hamiltonian + 0j, 0.1)
    with pytest.raises(ValueError, match="same dimension"):
        evolve_state(np.zeros(3), hamiltonian, 0.1)
    with pytest.raises(ValueError, match=r"\[depth, d, d\]"):
        evolve_stack(rho, hamiltonian, 0.1)
    with pytest.raises(ValueError, match="at least one layer"):
        evolve_stack(rho, np.zeros((0, 4, 4)), 0.1)
    with pytest.raises(ValueError, match="depth = 3"):
        evolve_stack(rho, np.zeros((3, 4, 4)), np.zeros(2))
