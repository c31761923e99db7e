"""States and their measures: exact values, gradients at pure and degenerate states, the validity
report, transforms.
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs
from helpers.precisions import single_by_default
from jax.test_util import check_grads

from vfejax.quantum import density
from vfejax.quantum.evolution import evolve

entropy = jax.jit(density.von_neumann_entropy)
free_energy = jax.jit(density.free_energy)
purity = jax.jit(density.purity)
coherence = jax.jit(density.coherence)
populations = jax.jit(density.populations)
pure_state = jax.jit(density.pure_state)
validity = jax.jit(lambda rho: (density.validity(rho), density.validity(rho, tolerance=0.5)))
givens_state = jax.jit(density.givens_state)
entropy_gradient = jax.jit(jax.grad(lambda rho: jnp.sum(density.von_neumann_entropy(rho))))


def random_vector(rng, d):
    psi = rng.normal(size=d) + 1j * rng.normal(size=d)
    return psi / np.linalg.norm(psi)


def pure(rng, d):
    psi = random_vector(rng, d)
    return np.outer(psi, psi.conj())


@single_by_default
def test_entropy_and_purity_of_known_states(rng, dtype):
    d, eps = 5, float(jnp.finfo(dtype).eps)
    mixed = density.maximally_mixed(d, qs.complex_dtype(dtype))
    np.testing.assert_allclose(entropy(mixed), math.log(d), rtol=4 * eps)
    np.testing.assert_allclose(purity(mixed), 1 / d, rtol=4 * eps)
    psi = random_vector(rng, d).astype(qs.complex_dtype(dtype))
    state = pure_state(psi)
    np.testing.assert_allclose(state, np.outer(psi, psi.conj()), rtol=0, atol=4 * eps)
    # An eigenvalue that rounding moved off 0 by eps contributes eps log eps.
    assert 0 <= entropy(state) < 20 * d * eps
    np.testing.assert_allclose(purity(state), 1.0, rtol=10 * eps)
    levels = np.array([0.5, 0.25, 0.25, 0.0, 0.0])
    basis = np.linalg.eigh(qs.random_hermitian(rng, d, True))[1]
    rho = ((basis * levels) @ basis.conj().T).astype(qs.complex_dtype(dtype))
    np.testing.assert_allclose(entropy(rho), 1.5 * math.log(2), rtol=40 * d * eps)


def test_entropy_is_bounded_concave_and_unitarily_invariant(rng):
    states = qs.random_states(rng, 4, (6,))
    values = np.asarray(entropy(states))
    assert (values > 0).all()
    assert (values < math.log(4)).all()
    mean = np.broadcast_to(states.mean(0), states.shape)
    assert entropy(mean)[0] > values.mean() + 1e-3
    evolved = jax.jit(evolve)(states, qs.random_hermitian(rng, 4), np.linspace(0.1, 2.0, 6))
    np.testing.assert_allclose(entropy(evolved), values, rtol=1e-13)


def test_entropy_gradient_is_the_matrix_function(rng):
    """``-(log rho + 1)``, transposed in JAX's convention; at equal eigenvalues ``-(log(1/d) + 1)
    I``; finite at a pure state, as stated.
    """
    d = 4
    rho = qs.random_states(rng, d)
    levels, basis = np.linalg.eigh(rho)
    expected = -((basis * (np.log(levels) + 1.0)) @ basis.conj().T).T
    np.testing.assert_allclose(entropy_gradient(rho), expected, rtol=0, atol=1e-12)
    equal = entropy_gradient(np.eye(d, dtype=complex) / d)
    np.testing.assert_allclose(equal, (math.log(d) - 1.0) * np.eye(d), rtol=0, atol=1e-14)
    state = pure(rng, d)
    slope = entropy_gradient(state)
    limit = -math.log(np.finfo(np.float64).eps) - 1.0
    np.testing.assert_allclose(
        slope, -np.conj(state) + limit * (np.eye(d) - np.conj(state)), rtol=0, atol=1e-9
    )


def test_entropy_derivatives_forward_and_reverse(rng):
    states = qs.random_states(rng, 3, (2,))

    @jax.jit
    def value(real, imag):
        rho = jax.lax.complex(real, imag)
        return density.von_neumann_entropy(0.5 * (rho + jnp.conj(jnp.swapaxes(rho, -1, -2))))

    check_grads(value, (states.real, states.imag), order=1, modes=["fwd", "rev"])


def test_entropy_of_real_states_and_transforms(rng):
    states = qs.random_states(rng, 4, (3,)).real

    @jax.jit
    def run(states):
        vmapped = jax.vmap(jax.value_and_grad(density.von_neumann_entropy))(states)
        single = [density.von_neumann_entropy(rho) for rho in states]
        slopes = jax.grad(lambda rho: jnp.sum(density.von_neumann_entropy(rho)))(states)
        return single, density.von_neumann_entropy(states), slopes, vmapped

    single, stacked, slopes, vmapped = run(states)
    np.testing.assert_allclose(stacked, single, rtol=1e-14)
    np.testing.assert_allclose(vmapped[0], single, rtol=1e-14)
    chex.assert_type(slopes, jnp.float64)
    np.testing.assert_allclose(vmapped[1], slopes, rtol=0, atol=1e-13)


def test_free_energy_of_known_states(rng):
    energies = np.array([0.3, -0.2, 0.9])
    diagonal = np.diag([0.5, 0.3, 0.2])
    expected = 0.5 * 0.3 - 0.3 * 0.2 + 0.2 * 0.9 + sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    np.testing.assert_allclose(free_energy(diagonal, energies), expected, rtol=1e-14)
    rho = qs.random_states(rng, 3)

    @jax.jit
    def run(rho):
        one = density.free_energy(rho, energies)
        several = density.free_energy(jnp.stack([rho, rho]), energies)
        return density.coherence(rho), density.von_neumann_entropy(rho), one, several

    size, disorder, one, several = map(np.asarray, run(rho))
    expected = np.sum(energies * np.diag(rho).real)
    expected -= disorder / (1 + (1 + math.sqrt(5)) / 2 * size)
    np.testing.assert_allclose(one, expected, rtol=1e-14)
    np.testing.assert_allclose(several, [expected, expected], rtol=1e-13)


def test_free_energy_gradients_are_finite_at_the_edges(rng):
    slope = jax.jit(jax.grad(density.free_energy, (0, 1)))
    energies = np.array([0.3, -0.2, 0.9])
    basis_state = np.diag([1.0, 0.0, 0.0]).astype(complex)
    for rho in (basis_state, np.eye(3, dtype=complex) / 3, pure(rng, 3)):
        by_rho, by_energies = slope(rho, energies)
        chex.assert_tree_all_finite(by_rho)
        np.testing.assert_allclose(by_energies, np.diag(rho).real, rtol=0, atol=1e-15)
    state = qs.random_states(rng, 3).real
    check_grads(free_energy, (state, energies), order=1, modes=["rev"])


def test_coherence(rng):
    d = 4
    states = np.stack([np.full((d, d), 1 / d), np.eye(d) / d, *qs.random_states(rng, d, (3,))])
    expected = np.abs(states).sum((-2, -1)) - np.abs(np.diagonal(states, 0, -2, -1)).sum(-1)
    np.testing.assert_allclose(coherence(states), expected, rtol=1e-14)
    np.testing.assert_allclose(expected[:2], [d - 1, 0], rtol=1e-15)
    assert not np.any(jax.jit(jax.grad(density.coherence))(np.eye(d) / d))


def rotations_one_by_one(index, angles):
    d = len(angles)
    x = np.eye(d)[index]
    for j in range(d):
        i, k = j, (j + 1) % d
        c, s = np.cos(angles[j]), np.sin(angles[j])
        x[i], x[k] = c * x[i] - s * x[k], s * x[i] + c * x[k]
    return x


@pytest.mark.parametrize("d", [5, pytest.param(2, marks=pytest.mark.slow)])
def test_givens_state_is_the_product_of_rotations(d, rng):
    angles = rng.normal(size=(d, d))
    got = np.asarray(givens_state(np.arange(d), angles))
    expected = np.stack([rotations_one_by_one(k, angles[k]) for k in range(d)])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(np.sum(got**2, -1), 1.0, rtol=1e-14)
    shared = np.asarray(givens_state(np.arange(d), angles[0]))
    np.testing.assert_allclose(shared @ shared.T, np.eye(d), rtol=0, atol=1e-14)
    check_grads(jax.jit(lambda a: density.givens_state(np.arange(d), a)), (angles,), order=1)


def test_givens_state_dtype_and_zero_angles(dtype):
    psi = givens_state(np.array([2]), np.zeros(4, dtype))
    chex.assert_type(psi, dtype)
    np.testing.assert_array_equal(psi, [[0, 0, 1, 0]])


MEASURES = {
    "entropy": density.von_neumann_entropy,
    "purity": density.purity,
    "coherence": density.coherence,
    "free energy": lambda rho: density.free_energy(rho, jnp.zeros(2, rho.real.dtype)),
    "temperature": density.coherence_temperature,
}


measures = jax.jit(lambda rho: {name: measure(rho) for name, measure in MEASURES.items()})


@single_by_default
def test_what_is_not_finite_is_no_plausible_number(dtype):
    """One entry off the diagonal, or all, in members of a stack; the other keeps its value."""
    good = np.tile(np.array([[0.5, 0.25], [0.25, 0.5]], dtype), (5, 1, 1))
    bad = good.copy()
    bad[1], bad[2, 1, 0], bad[3], bad[4, 1, 0] = np.nan, np.nan, np.inf, np.inf
    before, after = measures(good), measures(bad)
    for name, values in jax.tree.map(np.asarray, after).items():
        np.testing.assert_allclose(values[0], before[name][0], rtol=1e-6, err_msg=name)
        if name == "temperature":  # an infinite coherence has temperature 0
            np.testing.assert_array_equal(values[3:], 0)
            values = values[:3]
        assert not np.isfinite(values[1:]).any(), name


def test_a_population_that_is_not_a_number_is_seen_by_what_reads_the_spectrum():
    rho = np.diag([0.5, np.nan])
    assert np.isnan(measures(np.tile(rho, (5, 1, 1)))["entropy"]).all()
    report, _ = validity(rho)
    assert np.isnan(report.min_eigenvalue)
    assert not report.valid


def test_helmholtz_is_least_at_the_gibbs_state(rng):
    """``-T log Z``, with gradient 0 along the diagonal but for the normalisation."""
    energies, temperature = rng.normal(size=4), 0.7
    boltzmann = np.exp(-energies / temperature)
    gibbs = np.diag(boltzmann / boltzmann.sum())
    least = -temperature * np.log(boltzmann.sum())
    helmholtz = jax.jit(jax.value_and_grad(density.helmholtz))
    value, gradient = helmholtz(gibbs, energies, temperature)
    np.testing.assert_allclose(value, least, rtol=1e-13)
    slope = np.diagonal(gradient)
    np.testing.assert_allclose(slope, slope[0], rtol=1e-12)
    others = qs.random_states(rng, 4, (5,))
    values = jax.jit(density.helmholtz)(others, energies, np.full(5, temperature))
    assert (np.asarray(values) > least).all()


def test_validity_reports_each_fault_and_repairs_nothing(rng):
    good = qs.random_states(rng, 3)
    skew = good.copy()
    skew[0, 1] += 0.1
    heavy = 1.2 * good
    negative = np.diag([1.5, -0.3, -0.2]).astype(complex)
    unknown = np.full_like(good, np.nan)
    states = np.stack([skew, heavy, negative, unknown, good])
    reports, tolerant = validity(states)
    reports = jax.tree.map(np.asarray, reports)
    np.testing.assert_array_equal(reports.valid, [False] * 4 + [True])
    np.testing.assert_allclose(reports.hermitian_error[:3], [0.1, 0, 0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(reports.trace_error[:3], [0, 0.2, 0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(reports.min_eigenvalue[2], -0.3, rtol=1e-14)
    assert tolerant.valid[1]


def test_mixture_and_populations(rng):
    states = qs.random_states(rng, 3, (4,))
    weights = rng.dirichlet(np.ones(4))
    mixed = jax.jit(density.mixture)(weights, states)
    np.testing.assert_allclose(mixed, np.tensordot(weights, states, 1), rtol=0, atol=1e-15)
    np.testing.assert_allclose(populations(mixed), np.diag(mixed).real)


def test_wrong_input_is_refused():
    for function in (
        density.purity,
        density.coherence,
        density.populations,
        density.von_neumann_entropy,
    ):
        with pytest.raises(ValueError, match="rho must be square"):
            function(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="floating"):
        density.purity(np.zeros((3, 3), int))
    for function in (density.von_neumann_entropy, density.validity):
        with pytest.raises(ValueError, match=r"rho must .* single precision, got bfloat16: use"):
            function(np.zeros((4, 4), jnp.bfloat16))
    with pytest.raises(ValueError, match="energies"):
        jax.eval_shape(density.free_energy, np.eye(3) / 3, np.zeros(4))
    with pytest.raises(ValueError, match="d >= 2"):
        density.givens_state(np.array(0), np.zeros(1))
    with pytest.raises(ValueError, match="integers"):
        density.givens_state(np.array(0.0), np.zeros(3))
    with pytest.raises(ValueError, match="weights"):
        density.mixture(np.zeros(3), np.zeros((4, 2, 2)))
    with pytest.raises(ValueError, match="dimension"):
        density.maximally_mixed(0)
    with pytest.raises(ValueError, match="psi"):
        density.pure_state(np.array(1.0))
