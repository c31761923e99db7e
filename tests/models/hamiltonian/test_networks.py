"""Hamiltonian networks: their flow keeps their energy, they learn one, and they refuse what they
cannot learn from.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.dynamics.phase_space import energy, flow, joined, path
from vfejax.models.blocks import OptionError
from vfejax.models.hamiltonian.learning import derivative_loss, fit
from vfejax.models.hamiltonian.networks import HamiltonianConfig, general, plain, separable
from vfejax.problems.mechanics import SYSTEMS, Samples, sample
from vfejax.training.optimizer import warmup_cosine

pytestmark = pytest.mark.usefixtures("library_promotion")

NETWORKS = {"separable": separable, "general": general, "plain": plain}
SMALL = HamiltonianConfig(hidden=8, layers=1)
STATES = np.random.default_rng(0).normal(size=(6, 4))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, jnp.float64) for name in NETWORKS), ("general", jnp.float32)]
)
def test_a_motion_keeps_the_types_and_the_energy_it_comes_from(name, dtype):
    model = NETWORKS[name](4, SMALL, dtype)
    states = jnp.asarray(STATES, dtype)

    @jax.jit
    def check(key):
        params = model.init(key)
        moved = jax.vmap(lambda z: model.vector_field(params, z))(states)
        if model.hamiltonian is None:
            return params, moved, None
        h = model.hamiltonian(params)
        slopes = jax.vmap(jax.grad(lambda z: energy(h, z)))(states)
        # A separable potential does not know the momenta.
        mixed = jax.hessian(lambda z: energy(h, z))(states[0])[:2, 2:]
        return params, moved, (jnp.sum(slopes * moved, axis=1), mixed)

    params, moved, kept = check(jax.random.key(0))
    assert {moved.dtype, *(x.dtype for x in jax.tree.leaves(params))} == {jnp.dtype(dtype)}
    assert moved.shape == STATES.shape
    if kept is None:
        return
    change, mixed = kept
    # Products of numbers of order 1 that cancel.
    np.testing.assert_allclose(change, 0, rtol=0, atol=20 * float(jnp.finfo(dtype).eps))
    assert np.all(mixed == 0) == (name == "separable")


def test_fitting_is_descent_on_the_loss_over_all_samples_or_a_batch():
    model = general(2, SMALL)
    data = Samples(jnp.asarray(STATES[:, :2], jnp.float32), jnp.asarray(STATES[:, 2:], jnp.float32))

    @jax.jit
    def run(key):
        whole = fit(model, optax.sgd(0.1), data, key, 2, 0)
        batch = fit(model, optax.sgd(0.0), data, key, 20, 4)
        first = fit(model, optax.sgd(0.1), data, key, 0, 0).params
        loss, slope = jax.value_and_grad(lambda p: derivative_loss(model, p, data))(first)
        moved = jax.tree.map(lambda p, g: p - 0.1 * g, first, slope)
        return whole.losses, batch.losses, loss, derivative_loss(model, moved, data)

    whole, batch, first, second = run(jax.random.key(1))
    np.testing.assert_allclose(whole, [first, second], rtol=1e-5)
    assert batch.shape == (20,)
    assert len(np.unique(batch)) > 15  # of the same weights: other samples


@pytest.mark.parametrize("name", NETWORKS)
def test_an_odd_or_empty_phase_space_and_sizes_below_1_are_refused(name):
    for dim in (3, 0):
        with pytest.raises(ValueError, match=f"dim must be even and at least 2: .* got {dim}"):
            NETWORKS[name](dim)
    with pytest.raises(OptionError, match="hidden"):
        NETWORKS[name](2, HamiltonianConfig(hidden=0))
    model = NETWORKS[name](2, SMALL)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for z in (jnp.zeros(3, "f4"), jnp.zeros(4, "f4"), jnp.zeros((5, 2), "f4"), jnp.zeros(2, "f8")):
        with pytest.raises(ValueError, match=r"z must be float32 of shape \(2,\), got float"):
            jax.eval_shape(model.vector_field, params, z)


@pytest.mark.parametrize(
    ("states", "derivatives", "message"),
    [
        (np.zeros((3, 4)), np.zeros((3, 4)), r"states must be \[m, 2\] with m >= 1, got \(3, 4\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), r"m >= 1, got \(0, 2\)"),
        (np.zeros((3, 2)), np.zeros((2, 2)), r"derivatives must have the shape of the states"),
        (np.full((3, 2), np.nan), np.zeros((3, 2)), "states must be finite, got 6"),
        (np.zeros((3, 2)), np.full((3, 2), np.inf), "derivatives must be finite, got 6"),
    ],
)
def test_samples_that_do_not_fit_are_named(states, derivatives, message):
    with pytest.raises(ValueError, match=message):
        fit(plain(2, SMALL), optax.sgd(0.1), Samples(states, derivatives), jax.random.key(0), 1, 0)


def test_arrays_of_numpy_are_learned_from_and_negative_counts_refused():
    samples = Samples(np.zeros((3, 2), np.float32), np.ones((3, 2), np.float32))
    run = partial(fit, plain(2, SMALL), optax.sgd(0.1), samples, jax.random.key(0))
    assert run(1, 2).losses.shape == (1,)
    with pytest.raises(ValueError, match="num_steps must be at least 0, got -1"):
        run(-1, 2)
    with pytest.raises(ValueError, match="batch_size must be at least 0, got -2"):
        run(1, -2)


@pytest.mark.slow
def test_a_mass_on_a_spring_is_learned_and_its_energy_kept_within_the_published_error():
    system, rng = SYSTEMS["mass-spring"], np.random.default_rng(0)
    model = separable(2, HamiltonianConfig(hidden=32))
    optimizer = optax.adam(warmup_cosine(3e-3, 50, 1000, 0.01))
    data = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sample(system, rng, 25))
    starts = jnp.asarray(system.initial_fn(rng, 15), jnp.float32)

    @jax.jit
    def run(key):
        params = fit(model, optimizer, data, key, 1000, 0).params

        def error(z):
            scheme = flow(model.hamiltonian(params), 0.02)
            states = path(scheme, scheme.init(z), 100, 10, joined)
            energies = jax.vmap(lambda s: energy(system.hamiltonian, s))(states)
            return jnp.mean((energies - energies[0]) ** 2)

        return jnp.mean(jax.vmap(error)(starts))

    assert run(jax.random.key(0)) < 3.8e-4
