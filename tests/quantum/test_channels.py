"""Channels: complete positivity and trace through Choi matrices, Kraus forms, limits, gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs
from jax.test_util import check_grads

from vfejax.quantum.channels import (
    amplitude_damping,
    apply_kraus,
    choi_matrix,
    dephase,
    depolarize,
    mix,
)
from vfejax.quantum.density import purity, validity, von_neumann_entropy

FIXED = jnp.asarray(qs.random_states(np.random.default_rng(3), 3))


def replace(rho, strength):
    """The channel that :func:`mix` is for a fixed partner of trace ``tr rho``."""
    trace = jnp.trace(rho, axis1=-2, axis2=-1)[..., None, None]
    partner = trace * jnp.reshape(FIXED, (1,) * (rho.ndim - 2) + FIXED.shape).astype(rho.dtype)
    return mix(rho, partner, strength)


# A new channel joins every test below by one line.
CHANNELS = [dephase, amplitude_damping, depolarize, replace]
each_channel = pytest.mark.parametrize("channel", CHANNELS, ids=lambda f: f.__name__)


@each_channel
def test_completely_positive_and_trace_preserving(channel):
    d = 3
    for strength in (0.0, 0.3, 1.0):
        choi = np.asarray(choi_matrix(partial(channel, strength=strength), d, jnp.complex128))
        np.testing.assert_allclose(choi, choi.conj().T, atol=1e-15)
        assert np.linalg.eigvalsh(choi).min() > -1e-14
        np.testing.assert_allclose(
            np.einsum("jaka->jk", choi.reshape(d, d, d, d)), np.eye(d), atol=1e-14
        )


def test_choi_matrix_exposes_a_map_that_is_only_positive():
    """Transposition keeps trace and positivity, but is not completely positive: least Choi
    eigenvalue -1.
    """
    choi = choi_matrix(lambda rho: jnp.swapaxes(rho, -1, -2), 3, jnp.complex128)
    np.testing.assert_allclose(np.linalg.eigvalsh(choi).min(), -1.0, rtol=1e-14)


@each_channel
def test_states_stay_states_and_strength_zero_does_nothing(channel, rng, dtype):
    rho = jnp.asarray(qs.random_states(rng, 3, (2, 4)), qs.complex_dtype(dtype))
    out = channel(rho, jnp.asarray([0.0, 0.2, 0.7, 1.0], dtype))
    assert out.dtype == rho.dtype
    assert validity(out).valid.all()
    np.testing.assert_allclose(out[:, 0], rho[:, 0], atol=2 * float(jnp.finfo(dtype).eps))
    single = jnp.stack([channel(rho[1, i], s) for i, s in enumerate((0.0, 0.2, 0.7, 1.0))])
    np.testing.assert_allclose(out[1], single, atol=4 * float(jnp.finfo(dtype).eps))


@each_channel
def test_broadcasting_one_state_over_strengths(channel, rng):
    rho = jnp.asarray(qs.random_states(rng, 3))
    strengths = jnp.array([0.1, 0.5])
    np.testing.assert_allclose(
        channel(rho, strengths), jnp.stack([channel(rho, 0.1), channel(rho, 0.5)]), atol=1e-15
    )


@each_channel
def test_gradients(channel, rng):
    rho = jnp.asarray(qs.random_states(rng, 3))
    weight = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))

    def loss(real, imag, strength):
        return jnp.sum(
            jnp.real(jnp.asarray(weight) * channel(jax.lax.complex(real, imag), strength))
        )

    check_grads(jax.jit(loss), (rho.real, rho.imag, jnp.asarray(0.4)), order=1)


def test_amplitude_damping_is_its_kraus_form(rng):
    d, gamma = 4, 0.3
    rho = jnp.asarray(qs.random_states(rng, d, (2,)))
    operators = np.zeros((d, d, d), complex)
    operators[0] = np.diag([1.0, *[np.sqrt(1 - gamma)] * (d - 1)])
    for k in range(1, d):
        operators[k, 0, k] = np.sqrt(gamma)
    np.testing.assert_allclose(
        np.einsum("mkj,mkl->jl", operators.conj(), operators), np.eye(d), atol=1e-15
    )
    np.testing.assert_allclose(
        amplitude_damping(rho, gamma), apply_kraus(jnp.asarray(operators), rho), atol=1e-15
    )


def test_amplitude_damping_gradient_at_full_strength(rng):
    """The populations' derivative is finite there, ``tr rho - rho_00`` for the ground state; above
    full strength the result is NaN as before.
    """
    rho = jnp.asarray(qs.random_states(rng, 3))
    slope = jax.jacfwd(lambda g: jnp.real(jnp.diagonal(amplitude_damping(rho, g))))(1.0)
    others = np.diagonal(rho).real[1:]
    np.testing.assert_allclose(slope, [sum(others), *(-x for x in others)], rtol=1e-14)
    whole = jax.grad(lambda g: jnp.sum(jnp.abs(amplitude_damping(rho, g)) ** 2))(1.0)
    assert np.isfinite(whole)
    assert np.isnan(amplitude_damping(rho, 1.1)).any()


@each_channel
def test_one_bad_state_or_strength_harms_no_other(channel, rng):
    states, strengths = qs.random_states(rng, 3, (3,)), np.array([0.2, 0.3, 0.4])
    good = np.asarray(channel(jnp.asarray(states), jnp.asarray(strengths)))
    states[0, 1, 1], strengths[1] = np.nan, np.nan
    out = np.asarray(channel(jnp.asarray(states), jnp.asarray(strengths)))
    assert np.isnan(out[:2]).any((1, 2)).all()
    np.testing.assert_array_equal(out[2], good[2])


def test_full_strength_limits(rng):
    rho = jnp.asarray(qs.random_states(rng, 3))
    np.testing.assert_allclose(dephase(rho, 1.0), np.diag(np.diag(rho)), atol=1e-16)
    np.testing.assert_allclose(depolarize(rho, 1.0), np.eye(3) / 3, atol=1e-15)
    np.testing.assert_allclose(amplitude_damping(rho, 1.0), np.diag([1.0, 0, 0]), atol=1e-15)
    np.testing.assert_allclose(replace(rho, 1.0), FIXED, atol=1e-15)


def test_unital_channels_raise_entropy_and_dephasing_keeps_populations(rng):
    rho = jnp.asarray(qs.random_states(rng, 3))
    for channel in (dephase, depolarize):
        assert von_neumann_entropy(channel(rho, 0.4)) > von_neumann_entropy(rho)
        assert purity(channel(rho, 0.4)) < purity(rho)
    np.testing.assert_array_equal(np.diag(dephase(rho, 0.4)), np.diag(rho))
    np.testing.assert_allclose(dephase(rho, 0.4)[0, 1], 0.6 * rho[0, 1], rtol=1e-15)


def test_real_states_stay_real():
    rho = jnp.array([[0.75, 0.25], [0.25, 0.25]])
    for channel in (dephase, amplitude_damping, depolarize):
        assert channel(rho, 0.5).dtype == jnp.float64


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="rho must be square"):
        dephase(jnp.zeros((2, 3)), 0.1)
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        depolarize(jnp.zeros((2, 3, 3)), jnp.zeros(4))
    with pytest.raises(ValueError, match="one shape and dtype"):
        mix(jnp.eye(3), jnp.eye(2), 0.1)
    with pytest.raises(ValueError, match="operators must be"):
        apply_kraus(jnp.zeros((2, 3, 3)), jnp.eye(2))
