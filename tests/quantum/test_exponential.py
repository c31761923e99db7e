"""The matmul-only propagator: accuracy and unitarity over all strengths, its exact adjoint, and the
count of products that it claims.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs

from vfejax.quantum.exponential import evolve_taylor, unitary

step = jax.jit(unitary)
each_field = pytest.mark.parametrize(
    "complex_entries", [False, True], ids=["symmetric", "hermitian"]
)
gradient = jax.jit(jax.grad(lambda h, t, weight: jnp.sum(jnp.real(weight * unitary(h, t))), (0, 1)))


@each_field
def test_propagator_is_accurate_and_unitary_at_every_strength(complex_entries, rng, dtype):
    d = 7
    hamiltonian = qs.random_hermitian(rng, d, complex_entries)
    entries = qs.complex_dtype(dtype) if complex_entries else dtype
    stored = hamiltonian.astype(entries)
    eps = float(jnp.finfo(dtype).eps)
    norm = np.linalg.norm(hamiltonian, 2)
    for dt in (0.0, 1e-6, 0.01, 0.5, 2.0, 40.0, -3.0):
        got = np.asarray(step(stored, np.asarray(dt, dtype)))
        chex.assert_type(got, qs.complex_dtype(dtype))
        exact = qs.propagator(np.asarray(stored, np.complex128), float(np.asarray(dt, dtype)))
        # A phase is known to eps times itself; the doublings add it up that often.
        bound = 8 * eps * max(1.0, abs(dt) * norm)
        assert np.abs(got - exact).max() < bound, dt
        assert np.abs(got @ got.conj().T - np.eye(d)).max() < 2 * bound, dt


def test_small_angles_keep_their_relative_accuracy(rng):
    """``U - I`` at an angle of 1e-9 inside a stack whose strongest member needs eight doublings."""
    hamiltonian = qs.random_hermitian(rng, 4)
    got = np.asarray(step(hamiltonian, np.array([1e-9, 200.0])))
    assert qs.relative_error(got[0].imag, -1e-9 * hamiltonian) < 1e-14


@each_field
def test_gradients_are_frechet_derivatives(complex_entries, rng):
    d, dt = 5, np.asarray(0.7)
    weight = rng.normal(size=(d, d)) + 1j * rng.normal(size=(d, d))
    for name, hamiltonian in qs.hamiltonian_kinds(rng, d, complex_entries).items():
        by_hamiltonian, by_dt = gradient(hamiltonian, dt, weight)
        expected = qs.frechet_gradient(hamiltonian, dt, lambda dU: np.sum(weight * dU).real)
        slope = np.sum(weight * (-1j) * (hamiltonian @ qs.propagator(hamiltonian, dt))).real
        tolerance = 1e-12 if name == "strong" else 1e-13  # eps times an angle of 40 to 70
        assert qs.relative_error(by_hamiltonian, expected) < tolerance, name
        assert abs(by_dt - slope) <= tolerance * np.linalg.norm(weight) * np.linalg.norm(
            hamiltonian
        ), name


def test_gradient_by_a_stack_that_shares_a_time_and_times_that_share_a_hamiltonian(rng):
    stack = np.stack([qs.random_hermitian(rng, 5) for _ in range(2)])
    times = np.array([0.3, 1.7])
    weight = rng.normal(size=(2, 5, 5)) + 1j * rng.normal(size=(2, 5, 5))

    def slopes(h, t, w):
        return [np.asarray(part) for part in gradient(h, np.asarray(t), w)]

    single = [[slopes(h, t, w) for t in times] for h, w in zip(stack, weight, strict=True)]
    by_stack, by_time = slopes(stack, times[0], weight)
    np.testing.assert_allclose(
        by_stack, np.stack([single[0][0][0], single[1][0][0]]), rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(by_time, single[0][0][1] + single[1][0][1], rtol=0, atol=1e-14)
    by_shared, by_times = slopes(stack[0], times, np.stack([weight[0]] * 2))
    np.testing.assert_allclose(by_shared, single[0][0][0] + single[0][1][0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        by_times, np.stack([single[0][0][1], single[0][1][1]]), rtol=0, atol=1e-14
    )


def test_only_the_hermitian_part_is_read(rng):
    raw, time = rng.normal(size=(5, 5)), np.asarray(0.8)
    got, expected = (step(h, time) for h in (raw, 0.5 * (raw + raw.T)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-15)
    weight = rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5))
    ct = np.asarray(gradient(raw, time, weight)[0])
    np.testing.assert_allclose(ct, ct.T, rtol=0, atol=1e-15)


def _count_products(jaxpr):
    """Matrix products in a jaxpr, weighted by 4 where complex; bodies of loops count once."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "stack_product"):
            total += 4 if np.issubdtype(equation.outvars[0].aval.dtype, np.complexfloating) else 1
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                if hasattr(inner, "jaxpr"):
                    total += _count_products(inner.jaxpr)
    return total


def test_no_eigensolver_and_a_bounded_number_of_products():
    """The docstring's count: 10 real products, and 2 in the body of the loop of doublings."""
    hamiltonian = jax.ShapeDtypeStruct((5, 5), jnp.float64)
    jaxpr = jax.make_jaxpr(lambda h: unitary(h, 0.3))(hamiltonian)
    assert "eigh" not in str(jaxpr)
    assert _count_products(jaxpr.jaxpr) == 10 + 2


def test_what_is_not_finite_ends_in_nan():
    for bad in (np.inf, np.nan, 1e200):
        assert np.isnan(step(np.full((5, 5), bad), np.asarray(0.8))).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200, 1e8])
def test_one_bad_hamiltonian_harms_no_other(bad, rng):
    """Neither its value nor its gradient, whatever stands in the neighbour."""
    stack = np.stack([10 * qs.random_hermitian(rng, 4) for _ in range(3)])
    weight = rng.normal(size=(3, 4, 4)) + 1j * rng.normal(size=(3, 4, 4))
    clean = np.asarray(step(stack, np.asarray(1.0)))
    slope = np.asarray(gradient(stack, np.ones(3), weight)[0])
    stack[1, 0, 0] = bad
    out = np.asarray(step(stack, np.asarray(1.0)))
    spoiled = np.asarray(gradient(stack, np.ones(3), weight)[0])
    if bad != 1e8:
        assert np.isnan(out[1]).all()
    # |dt H| is about 60, and a strong neighbour adds some twenty doublings.
    others = [x[[0, 2]] for x in (out, spoiled, clean, slope)]
    chex.assert_trees_all_close(others[:2], others[2:], rtol=1e-7, atol=1e-12)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="hamiltonian must be square"):
        unitary(np.zeros((3, 4)), 0.1)
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        unitary(np.zeros((2, 4, 4)), np.zeros(3))
    with pytest.raises(ValueError, match="same dimension"):
        evolve_taylor(np.zeros((3, 3)), np.zeros((4, 4)), 0.1)
