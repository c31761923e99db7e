"""Builders of Hamiltonians, and the Rabi formula against SciPy's exponential."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs

from vfejax.quantum.hamiltonian import hermitian, position_scaled, rabi, rabi_population, symmetric

build_symmetric, build_hermitian = jax.jit(symmetric), jax.jit(hermitian)


def test_symmetric_puts_each_parameter_in_its_place(dtype):
    H = build_symmetric(np.arange(6, dtype=dtype))
    chex.assert_type(H, dtype)
    np.testing.assert_array_equal(H, [[0, 1, 3], [1, 2, 4], [3, 4, 5]])
    # An off-diagonal parameter stands in two entries.
    slope = jax.jit(jax.grad(lambda p: jnp.sum(symmetric(p))))(np.zeros(6, dtype))
    np.testing.assert_array_equal(slope, [1, 2, 1, 2, 2, 1])


def test_hermitian_puts_each_parameter_in_its_place(dtype):
    H = build_hermitian(np.arange(9, dtype=dtype))
    chex.assert_type(H, qs.complex_dtype(dtype))
    np.testing.assert_array_equal(H, np.conj(H.T))
    np.testing.assert_array_equal(np.tril(H.imag), [[0, 0, 0], [6, 0, 0], [7, 8, 0]])
    np.testing.assert_array_equal(H.real, build_symmetric(np.arange(6, dtype=dtype)))


def test_stacks_equal_single_calls(rng):
    for build, count in ((build_symmetric, 6), (build_hermitian, 9)):
        parameters = rng.normal(size=(2, 4, count))
        np.testing.assert_array_equal(build(parameters)[1, 2], build(parameters[1, 2]))
    np.testing.assert_array_equal(build_hermitian(np.ones(1)), [[1]])


def test_position_scaled(rng):
    H = qs.random_hermitian(rng, 3, True)
    scales = np.array([[0.5, 2.0], [0.0, -1.0]])
    scaled = jax.jit(position_scaled)(H, scales)
    np.testing.assert_allclose(scaled, scales[..., None, None] * H)
    chex.assert_shape(scaled, (2, 2, 3, 3))


def test_rabi_population_is_exact():
    build, population = jax.jit(rabi), jax.jit(rabi_population)
    for frequency, detuning in ((1.3, 0.0), (0.8, -1.1), (0.0, 0.5), (0.0, 0.0)):
        H = np.asarray(build(frequency, detuning))
        for time in (0.0, 0.7, 5.0):
            expected = abs(qs.propagator(H, time)[1, 0]) ** 2
            np.testing.assert_allclose(
                population(frequency, detuning, time), expected, rtol=0, atol=1e-14
            )
    assert jax.jit(jax.grad(rabi_population))(0.0, 0.0, 2.0) == 0


@pytest.mark.parametrize(
    ("build", "count"), [(symmetric, 5), (symmetric, 0), (hermitian, 6), (hermitian, 0)]
)
def test_wrong_count_is_refused(build, count):
    with pytest.raises(ValueError, match=f"got length {count}"):
        build(np.zeros(count))


def test_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"\[d, d\]"):
        position_scaled(np.zeros((2, 3, 3)), np.zeros(2))
