"""Channels: complete positivity and trace through Choi matrices, Kraus forms, limits, gradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quantum_samples as qs
from helpers.precisions import single_by_default
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

FIXED = qs.random_states(np.random.default_rng(3), 3)


def replace(rho, strength):
    """The channel that :func:`mix` is for a fixed partner of trace ``tr rho``."""
    trace = jnp.trace(rho, axis1=-2, axis2=-1)[..., None, None]
    partner = trace * jnp.reshape(FIXED, (1,) * (rho.ndim - 2) + FIXED.shape).astype(rho.dtype)
    return mix(rho, partner, strength)


# A new channel joins every test below by one line.
CHANNELS = [dephase, amplitude_damping, depolarize, replace]
each_channel = pytest.mark.parametrize("channel", CHANNELS, ids=lambda f: f.__name__)
compiled = {channel: jax.jit(channel) for channel in CHANNELS}
valid = jax.jit(lambda rho: validity(rho).valid)


@each_channel
def test_completely_positive_and_trace_preserving(channel):
    d = 3
    choi_at = jax.jit(lambda s: choi_matrix(partial(channel, strength=s), d, jnp.complex128))
    for strength in (0.0, 0.3, 1.0):
        choi = np.asarray(choi_at(strength))
        np.testing.assert_allclose(choi, choi.conj().T, rtol=0, atol=1e-15)
        assert np.linalg.eigvalsh(choi).min() > -1e-14
        np.testing.assert_allclose(
            np.einsum("jaka->jk", choi.reshape(d, d, d, d)), np.eye(d), rtol=0, atol=1e-14
        )


def test_choi_matrix_exposes_a_map_that_is_only_positive():
    """Transposition keeps trace and positivity, but is not completely positive: least Choi
    eigenvalue -1.
    """
    choi = jax.jit(lambda: choi_matrix(lambda rho: jnp.swapaxes(rho, -1, -2), 3, jnp.complex128))()
    np.testing.assert_allclose(np.linalg.eigvalsh(choi).min(), -1.0, rtol=1e-14)


@each_channel
@single_by_default
def test_states_stay_states_and_strength_zero_does_nothing(channel, rng, dtype):
    rho = qs.random_states(rng, 3, (2, 4)).astype(qs.complex_dtype(dtype))
    strengths = np.asarray([0.0, 0.2, 0.7, 1.0], dtype)
    out = compiled[channel](rho, strengths)
    chex.assert_trees_all_equal_dtypes(out, rho)
    assert np.all(valid(out))
    out = np.asarray(out)
    np.testing.assert_allclose(out[:, 0], rho[:, 0], rtol=0, atol=2 * float(jnp.finfo(dtype).eps))
    single = np.stack([compiled[channel](rho[1, i], s) for i, s in enumerate(strengths)])
    np.testing.assert_allclose(out[1], single, rtol=0, atol=4 * float(jnp.finfo(dtype).eps))


@each_channel
def test_broadcasting_one_state_over_strengths(channel, rng):
    rho, strengths = qs.random_states(rng, 3), np.array([0.1, 0.5])
    each = np.stack([compiled[channel](rho, s) for s in strengths])
    np.testing.assert_allclose(compiled[channel](rho, strengths), each, rtol=0, atol=1e-15)


def test_gradients(rng):
    """Of every channel, as the entries of one result."""
    rho = qs.random_states(rng, 3)
    weight = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))

    def losses(real, imag, strength):
        rho = jax.lax.complex(real, imag)
        return [jnp.sum(jnp.real(weight * channel(rho, strength))) for channel in CHANNELS]

    check_grads(jax.jit(losses), (rho.real, rho.imag, np.asarray(0.4)), order=1)


def test_amplitude_damping_is_its_kraus_form(rng):
    d, gamma = 4, 0.3
    rho = qs.random_states(rng, d, (2,))
    operators = np.zeros((d, d, d), complex)
    operators[0] = np.diag([1.0, *[np.sqrt(1 - gamma)] * (d - 1)])
    for k in range(1, d):
        operators[k, 0, k] = np.sqrt(gamma)
    np.testing.assert_allclose(
        np.einsum("mkj,mkl->jl", operators.conj(), operators), np.eye(d), rtol=0, atol=1e-15
    )
    np.testing.assert_allclose(
        compiled[amplitude_damping](rho, gamma),
        jax.jit(apply_kraus)(operators, rho),
        rtol=0,
        atol=1e-15,
    )


def test_amplitude_damping_gradient_at_full_strength(rng):
    """The populations' derivative is finite there, ``tr rho - rho_00`` for the ground state; above
    full strength the result is NaN as before.
    """
    rho = qs.random_states(rng, 3)

    @jax.jit
    def derivatives(gamma):
        def populations(g):
            return jnp.real(jnp.diagonal(amplitude_damping(jnp.asarray(rho), g)))

        def size(g):
            return jnp.sum(jnp.abs(amplitude_damping(jnp.asarray(rho), g)) ** 2)

        return jax.jacfwd(populations)(gamma), jax.grad(size)(gamma)

    slope, whole = derivatives(1.0)
    others = np.diagonal(rho).real[1:]
    np.testing.assert_allclose(slope, [sum(others), *(-x for x in others)], rtol=1e-14)
    chex.assert_tree_all_finite(whole)
    assert np.isnan(compiled[amplitude_damping](rho, np.float64(1.1))).any()


@each_channel
def test_one_bad_state_or_strength_harms_no_other(channel, rng):
    states, strengths = qs.random_states(rng, 3, (2, 4)), np.array([0.2, 0.3, 0.4, 0.5])
    good = np.asarray(compiled[channel](states, strengths))
    states[0, 1, 1, 1], strengths[2] = np.nan, np.nan
    out = np.asarray(compiled[channel](states, strengths))
    spoiled = np.array([[False, True, True, False], [False, False, True, False]])
    np.testing.assert_array_equal(np.isnan(out).any((-1, -2)), spoiled)
    np.testing.assert_array_equal(out[~spoiled], good[~spoiled])


def test_full_strength_limits(rng):
    rho = qs.random_states(rng, 3)
    limits = {
        dephase: np.diag(np.diag(rho)),
        depolarize: np.eye(3) / 3,
        amplitude_damping: np.diag([1.0, 0, 0]),
        replace: FIXED,
    }
    for channel, limit in limits.items():
        np.testing.assert_allclose(
            compiled[channel](rho, np.float64(1.0)), limit, rtol=0, atol=1e-15
        )


def test_unital_channels_raise_entropy_and_dephasing_keeps_populations(rng):
    rho = qs.random_states(rng, 3)
    measure = jax.jit(lambda rho: (von_neumann_entropy(rho), purity(rho)))
    before = measure(rho)
    for channel in (dephase, depolarize):
        after = measure(compiled[channel](rho, np.float64(0.4)))
        assert after[0] > before[0]
        assert after[1] < before[1]
    dephased = compiled[dephase](rho, np.float64(0.4))
    np.testing.assert_array_equal(np.diag(dephased), np.diag(rho))
    np.testing.assert_allclose(dephased[0, 1], 0.6 * rho[0, 1], rtol=1e-15)


def test_real_states_stay_real():
    rho = np.array([[0.75, 0.25], [0.25, 0.25]])
    for channel in (dephase, amplitude_damping, depolarize):
        chex.assert_type(jax.eval_shape(channel, rho, 0.5), jnp.float64)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="rho must be square"):
        dephase(np.zeros((2, 3)), 0.1)
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        depolarize(np.zeros((2, 3, 3)), np.zeros(4))
    with pytest.raises(ValueError, match="one shape and dtype"):
        mix(np.eye(3), np.eye(2), 0.1)
    with pytest.raises(ValueError, match="operators must be"):
        apply_kraus(np.zeros((2, 3, 3)), np.eye(2))
