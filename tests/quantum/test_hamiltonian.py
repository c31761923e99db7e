"""Builders of Hamiltonians, and the Rabi formula against SciPy's exponential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs

from vfejax.quantum.hamiltonian import hermitian, position_scaled, rabi, rabi_population, symmetric


def test_symmetric_puts_each_parameter_in_its_place(dtype):
    H = symmetric(jnp.arange(6, dtype=dtype))
    assert H.dtype == dtype
    np.testing.assert_array_equal(H, [[0, 1, 3], [1, 2, 4], [3, 4, 5]])
    # An off-diagonal parameter stands in two entries.
    np.testing.assert_array_equal(
        jax.grad(lambda p: jnp.sum(symmetric(p)))(jnp.zeros(6)), [1, 2, 1, 2, 2, 1]
    )


def test_hermitian_puts_each_parameter_in_its_place(dtype):
    H = hermitian(jnp.arange(9, dtype=dtype))
    assert H.dtype == qs.complex_dtype(dtype)
    np.testing.assert_array_equal(H, np.conj(H.T))
    np.testing.assert_array_equal(np.tril(H.imag), [[0, 0, 0], [6, 0, 0], [7, 8, 0]])
    np.testing.assert_array_equal(H.real, symmetric(jnp.arange(6, dtype=dtype)))


def test_stacks_equal_single_calls(rng):
    for build, count in ((symmetric, 6), (hermitian, 9)):
        parameters = jnp.asarray(rng.normal(size=(2, 4, count)))
        np.testing.assert_array_equal(build(parameters)[1, 2], build(parameters[1, 2]))
    np.testing.assert_array_equal(hermitian(jnp.ones(1)), [[1]])


def test_position_scaled(rng):
    H = jnp.asarray(qs.random_hermitian(rng, 3, True))
    scales = jnp.array([[0.5, 2.0], [0.0, -1.0]])
    np.testing.assert_allclose(position_scaled(H, scales)[1, 1], -H)
    assert position_scaled(H, scales).shape == (2, 2, 3, 3)


def test_rabi_population_is_exact():
    for frequency, detuning in ((1.3, 0.0), (0.8, -1.1), (0.0, 0.5), (0.0, 0.0)):
        H = np.asarray(rabi(jnp.asarray(frequency), jnp.asarray(detuning)))
        for time in (0.0, 0.7, 5.0):
            expected = abs(qs.propagator(H, time)[1, 0]) ** 2
            np.testing.assert_allclose(
                rabi_population(frequency, detuning, jnp.asarray(time)), expected, atol=1e-14
            )
    slope = jax.grad(rabi_population)(0.0, 0.0, 2.0)
    assert slope == 0


@pytest.mark.parametrize(
    ("build", "count"), [(symmetric, 5), (symmetric, 0), (hermitian, 6), (hermitian, 0)]
)
def test_wrong_count_is_refused(build, count):
    with pytest.raises(ValueError, match=f"got length {count}"):
        build(jnp.zeros(count))


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[d, d\]"):
        position_scaled(jnp.zeros((2, 3, 3)), jnp.zeros(2))
