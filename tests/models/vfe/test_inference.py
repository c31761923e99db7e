"""Inference against the dense reference, and what descent and gauges promise."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import vfe_oracle as oracle

from vfejax.models.vfe import inference
from vfejax.models.vfe.beliefs import Transport
from vfejax.models.vfe.covariances import COVARIANCES
from vfejax.models.vfe.dynamics import hamiltonian
from vfejax.models.vfe.energy import Places, reader
from vfejax.models.vfe.inference import Rule, Strength, infer
from vfejax.models.vfe.irreps import blocks, phases, so3
from vfejax.numerics import matmul

N, STEPS = 4, 3
LAYOUT = so3((0, 1), heads=2, copies=1)
HERE = Places(np.arange(N), np.arange(N))
STRENGTH = Strength(*map(np.array, ([0.8, 1.3], [1.1, 0.6], 0.2, 0.8)))


def _rule(family="irrep", alignment="entropic", **options):
    return Rule(LAYOUT, COVARIANCES[family], reader(alignment), **options)


def _case(rng, family="irrep", frames=True):
    prior = oracle.random_belief(rng, COVARIANCES[family], LAYOUT, N, frames=frames)
    link = np.eye(LAYOUT.channels) + 0.2 * rng.standard_normal((2, 4, 4))
    return prior, Transport(phases(LAYOUT, jnp.arange(N)[None], jnp.float64), link)


def _symmetric_part(family, cov):
    """The part of a slope ``[n, C, C]`` in the covariance that a family can follow, as the metric
    has it.
    """
    found = jnp.zeros_like(cov)
    for block in blocks(LAYOUT.sizes):
        part, size = cov[:, block, block], block.stop - block.start
        if family == "irrep":
            trace = jnp.trace(part, axis1=-2, axis2=-1)[:, None, None]
            part = trace / size * jnp.eye(size)[None]
        found = found.at[:, block, block].set(part)
    return found


@pytest.mark.parametrize(
    ("family", "alignment"),
    [
        ("irrep", "entropic"),
        pytest.param("irrep", "weighted", marks=pytest.mark.slow),
        pytest.param("full", "entropic", marks=pytest.mark.slow),
        pytest.param("full", "weighted", marks=pytest.mark.slow),
    ],
)
def test_steps_are_those_of_all_pairs_with_a_transport_matrix_each(family, alignment, rng):
    """Step sizes that the trust region shortens for some agents."""
    prior, transport = _case(rng, family)
    rule = _rule(family, alignment, trust_radius=0.2)
    posterior, info, _ = jax.jit(lambda p, t, s: infer(p, t, s, HERE, rule, steps=STEPS))(
        prior, transport, STRENGTH
    )
    shortened = np.isclose(info.length, 0.2)
    assert np.any(shortened)
    assert not np.all(shortened)
    step = jax.jit(
        partial(oracle.step, alignment),
        static_argnames=("project", "radius"),
    )
    project = partial(_symmetric_part, family)
    for head in range(LAYOUT.heads):
        first = oracle.dense(prior, family, LAYOUT, head)
        omega = oracle.transports(
            LAYOUT, head, prior.frame[0, :, head], transport.link[head], range(N)
        )
        own, near = first, np.tri(N, dtype=bool)
        for t in range(STEPS):
            eta = STRENGTH.step_size * STRENGTH.decay**t
            weights = STRENGTH.coupling[head], STRENGTH.temperature[head]
            own = step(own, first, omega, *weights, near, eta, project=project, radius=0.2)
        found = oracle.dense(posterior, family, LAYOUT, head)
        chex.assert_trees_all_close(found, oracle.Dense(*map(np.asarray, own)), rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("alignment", ["entropic", "weighted"])
def test_what_learning_differentiates_is_that_of_all_pairs(alignment, rng):
    """The slope of a function of posterior means in the means of the priors, through two steps."""
    prior, transport = _case(rng)
    rule = _rule(alignment=alignment, trust_radius=0.2)

    @jax.jit
    def found(mean):
        run = partial(infer, transport=transport, strength=STRENGTH, places=HERE, rule=rule)
        return jax.grad(
            lambda mean: jnp.sum(jnp.sin(run(prior._replace(mean=mean), steps=2)[0].mean))
        )(mean)

    def loss(mean, first, omega, coupling, temperature):
        begin = own = first._replace(mean=mean)
        for t in range(2):
            own = oracle.step(
                alignment,
                own,
                begin,
                omega,
                coupling,
                temperature,
                np.tri(N, dtype=bool),
                STRENGTH.step_size * STRENGTH.decay**t,
                project=partial(_symmetric_part, "irrep"),
                radius=0.2,
            )
        return jnp.sum(jnp.sin(own.mean))

    expected = jax.jit(jax.grad(loss))  # of all heads
    slopes = np.asarray(found(prior.mean))[0]
    for head in range(LAYOUT.heads):
        first = oracle.dense(prior, "irrep", LAYOUT, head)
        omega = oracle.transports(
            LAYOUT, head, prior.frame[0, :, head], transport.link[head], range(N)
        )
        weights = STRENGTH.coupling[head], STRENGTH.temperature[head]
        wanted = expected(first.mean, first, omega, *weights)
        np.testing.assert_allclose(slopes[:, head].reshape(N, -1), wanted, rtol=1e-8, atol=1e-10)


@jax.jit
def _learned(prior, transport, strength):
    """A function of posteriors, and its gradient in all that a layer learns."""

    def loss(prior, transport, strength):
        posterior, _, _ = infer(
            prior, transport, strength, HERE, _rule(moves_frame=True), steps=STEPS
        )
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(posterior))

    return jax.value_and_grad(loss, (0, 1, 2))(prior, transport, strength)


@pytest.mark.slow  # without frames: tests/models/test_sequence_models.py
def test_learning_differentiates_through_the_steps(rng):
    """Against finite differences in one direction, frames and positions included."""
    inputs = (*_case(rng), STRENGTH)
    direction = jax.tree.map(lambda x: rng.standard_normal(np.shape(x)), inputs)
    step = 1e-6

    def value(sign):
        return _learned(*jax.tree.map(lambda x, d: x + sign * step * d, inputs, direction))[0]

    products = jax.tree.map(lambda g, d: np.sum(g * d), _learned(*inputs)[1], direction)
    slope = (value(1) - value(-1)) / (2 * step)
    # Central differences: rounding of the value over the step.
    np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=1e-7)


def test_a_global_gauge_commutes_with_inference(rng):
    """Beliefs and frames turn with the gauge; energies, entropies and lengths stay."""
    prior, transport = _case(rng)
    rule = _rule(moves_frame=True)
    phi = rng.standard_normal((LAYOUT.heads, 3))

    @jax.jit
    def both(prior, phi):
        gauge = LAYOUT.group.exponential(phi, LAYOUT.group.generators)[None, None]
        gauge = jnp.broadcast_to(gauge, prior.frame.shape)

        def turned(belief):
            mean, frame = matmul(gauge, belief.mean), matmul(gauge, belief.frame)
            return belief._replace(mean=mean, frame=frame)

        run = partial(infer, transport=transport, strength=STRENGTH, places=HERE, rule=rule)
        before, after = (run(p, steps=STEPS) for p in (prior, turned(prior)))
        return (turned(before[0]), before[1]), after[:2]

    chex.assert_trees_all_close(*both(prior, phi), rtol=1e-10, atol=1e-10)


def test_without_alignment_the_posterior_is_the_prior_bit_for_bit(rng):
    prior, transport = _case(rng)
    strength = STRENGTH._replace(coupling=np.zeros(2))
    found = jax.jit(lambda p: infer(p, transport, strength, HERE, _rule(), steps=STEPS)[0])(prior)
    chex.assert_trees_all_equal(found, prior)


@pytest.mark.parametrize(
    ("family", "alignment"),
    [
        ("irrep", "entropic"),
        pytest.param("full", "weighted", marks=pytest.mark.slow),
        pytest.param("diagonal", "entropic", marks=pytest.mark.slow),
    ],
)
def test_small_steps_lower_what_each_agent_pays_with_its_senders_held(family, alignment, rng):
    prior, transport = _case(rng, family)
    start = oracle.random_belief(rng, COVARIANCES[family], LAYOUT, N)
    rule = _rule(family, alignment, moves_frame=True)
    strength = STRENGTH._replace(step_size=np.array(0.02), decay=np.array(1.0))

    @jax.jit
    def paid(prior, start):
        rows = inference.senders(start, transport, rule)
        _, info, _ = infer(
            prior,
            transport,
            strength,
            HERE,
            rule,
            steps=32,
            start=start,
            exchange=lambda own, memory: (rows, memory),
        )
        return jnp.sum(info.self_coupling + info.alignment, axis=-1)[:, 0]

    energies = np.asarray(paid(prior, start))
    assert np.all(np.diff(energies, axis=0) < 0)


def test_the_full_gradient_of_a_symmetric_population_lowers_its_sum(rng):
    """Where nothing has to be causal every agent may feel what it costs the others."""
    prior, transport = _case(rng)
    start = oracle.random_belief(rng, COVARIANCES["irrep"], LAYOUT, N)._replace(frame=prior.frame)
    rule = _rule()._replace(reader=reader("entropic", lambda offset: offset == offset))

    def total(moving):
        belief = start._replace(mean=moving[0], spread=moving[1])
        rows = inference.senders(belief, transport, rule)
        paid = inference.free_energy(belief, prior, rows, transport, STRENGTH, HERE, rule)
        return jnp.sum(paid.self_coupling + paid.alignment)

    @jax.jit
    def descend(moving):
        def step(moving, _):
            energy, slope = jax.value_and_grad(total)(moving)
            return jax.tree.map(lambda x, g: x - 2e-3 * g, moving, slope), energy

        return jax.lax.scan(step, moving, None, length=40)[1]

    energies = descend((start.mean, start.spread))
    assert np.all(np.diff(energies) < 0)


@pytest.fixture(scope="module")
def falling():
    """Self-coupling and length of every step of one agent alone, which is an oscillator about its
    prior, from a start and with a friction.
    """
    prior, transport = _case(np.random.default_rng(0), frames=False)
    strength = STRENGTH._replace(coupling=np.zeros(2), step_size=np.array(0.1), decay=np.array(1.0))

    @jax.jit
    def found(away, friction):
        rule = _rule(moves_spread=False)._replace(dynamics=hamiltonian(1.0, friction))
        start = prior._replace(mean=prior.mean + away)
        _, info, _ = infer(prior, transport, strength, HERE, rule, steps=126, start=start)
        return info.self_coupling[:, 0, 0, 0], info.length[:, 0, 0, 0]

    return lambda *inputs: jax.device_get(found(*inputs))


def test_hamiltonian_dynamics_oscillate_and_friction_lets_them_settle(falling):
    (free, length), (damped, _) = falling(0.5, 0.0), falling(0.5, 2.0)
    assert np.max(length) < 1  # the trust radius, which has no part in this
    # Two periods of 2 pi are 126 steps of 0.1, and half-way to either turning point nothing is
    # left; the scheme's error is 0.1^2 / 24 of the period.
    np.testing.assert_allclose(free[63], free[0], rtol=1e-2)
    assert free[16] < 0.02 * free[0]
    assert damped[-1] < 1e-6 * damped[0]


def test_from_far_a_velocity_brings_no_more_than_the_trust_region_lets_it_have(falling):
    """It falls from a thousand nats at a speed of 1 / 0.1, whose kinetic energy is 50 nats."""
    nats, length = falling(20.0, 0.0)
    assert nats[0] > 500
    np.testing.assert_allclose(np.max(length), 1.0, rtol=1e-12)
    arrived = int(np.argmin(nats))
    assert 16 < arrived < 126 - 32
    assert 40 < np.max(nats[arrived:]) < 55  # steps of 0.1 of the period's radian
