"""One layer: its beliefs go down their own free energy, know distances and no positions, and what
it learns is the slope of its own prediction loss.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.geometry.transport import frames
from vfejax.models.pure_fep import energy
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.frames import from_common, sinusoids, to_common, token_frames
from vfejax.models.pure_fep.gaussians import (
    IrrepGaussian,
    from_natural,
    irreps,
    kl_divergence,
    natural_parameters,
    pairwise_kl,
)
from vfejax.models.pure_fep.layer import (
    Ancestors,
    descend,
    frames_of,
    layer_energy,
    layer_prior,
)
from vfejax.models.pure_fep.learning import Observed, learn_layer, token_loss
from vfejax.models.pure_fep.model import build, surroundings
from vfejax.models.pure_fep.nudges import FARTHEST, natural_direction, nudged
from vfejax.models.pure_fep.parameters import anatomy, draw_parameters
from vfejax.models.pure_fep.trainer import trainer

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, BATCH, LENGTH = 7, 2, 5
TINY = PureFEPConfig(layers=1, max_layers=1, dim=8, spins=(0, 1), hidden=6)
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost


def _jit(function):
    return jax.jit(function, compiler_options=QUICK)


def _drawn(rng, **options):
    """A model, one layer of it with parameters of which none is special, and what it is shown."""
    parts = anatomy(dataclasses.replace(TINY, **options), VOCABULARY, LENGTH, jnp.float64)
    shapes = jax.eval_shape(lambda key: draw_parameters(key, parts), jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.uniform(-0.5, 0.5, x.shape)), shapes)
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, LENGTH)))
    around = surroundings(tokens, jnp.arange(LENGTH)[None])
    layer = jax.tree.map(lambda x: x[0], params.layers)
    return parts, params, layer, around


def _beliefs(rng, parts, *shape):
    irreps, width = parts.rules.kind.member.shape
    heads = parts.config.dim // width
    return IrrepGaussian(
        jnp.asarray(rng.standard_normal((*shape, heads, width))),
        jnp.asarray(rng.uniform(-0.5, 0.5, (*shape, heads, irreps))),
    )


def test_no_descent_raises_the_energy_that_an_agent_pays(rng):
    parts, params, layer, around = _drawn(rng)
    kind = parts.rules.kind

    @_jit
    def paid():
        below = parts.embed_fn(params, around.tokens, around.positions)
        prior = layer_prior(layer, below, around, None, parts.rules)
        place = frames_of(layer, around, parts.rules)
        found, belief = [], prior
        for steps in range(5):
            rules = parts.rules._replace(steps=steps)
            belief = descend(layer, prior, prior, around, rules)[0] if steps else prior
            belief = from_common(belief, place, kind)
            found.append(layer_energy(layer, prior, belief, around, None, rules).total)
        return jnp.stack(found)

    energies = np.asarray(paid())
    rounding = 1e-12 * np.abs(energies).max()
    assert np.all(np.diff(energies, axis=0) <= rounding)
    assert np.all(energies[-1, :, 1:] < energies[0, :, 1:])
    np.testing.assert_allclose(
        energies[:, :, 0], 0.0, rtol=0, atol=1e-12
    )  # nobody to disagree with


@pytest.mark.slow
def test_log_variances_of_priors_keep_within_their_bound(rng):
    parts, params, layer, around = _drawn(rng, log_variance_bound=0.75)
    wild = layer._replace(contract=1e3 * layer.contract)

    free = parts.rules._replace(log_variance_bound=1e6)

    @_jit
    def spread(layer):
        below = parts.embed_fn(params, around.tokens, around.positions)
        both = (layer_prior(layer, below, around, None, rules) for rules in (parts.rules, free))
        return [prior.log_variance for prior in both]

    found = np.abs(spread(wild)[0])
    assert 0.7 < found.max() <= 0.75
    bound, unbound = spread(layer)
    chex.assert_trees_all_close(0.75 * np.tanh(unbound / 0.75), bound, rtol=1e-9)


def test_transports_know_distances_and_no_positions(rng):
    parts, _, layer, around = _drawn(rng)
    place, kind = frames_of(layer, around, parts.rules), parts.rules.kind
    q = _beliefs(rng, parts, BATCH, LENGTH)
    log_weight = energy.link_weights(layer.links, around.lags)

    @_jit
    def attention(place):
        common = to_common(q, place, kind)
        return energy.attention(common, common, log_weight, kind, 1.0)

    shifted = place._replace(positions=place.positions + 1000)
    # Angles of 1000 turns are rounded.
    np.testing.assert_allclose(attention(shifted), attention(place), rtol=1e-9, atol=1e-12)
    still = place._replace(rates=np.zeros_like(place.rates))
    assert not np.allclose(attention(still), attention(place))


@pytest.mark.slow
def test_the_common_frame_is_that_of_explicit_transports(rng):
    """KL(q_i || Omega_ij q_j) with Omega_ij = U_i exp((i - j) w J_z) U_j^{-1}; irreps of one spin
    stand side by side and apart.
    """
    parts, _, layer, around = _drawn(rng, dim=54, spins=(1, 0, 0, 1, 1, 2, 3, 0, 1))
    rules, kind = parts.rules, parts.rules.kind
    place = frames_of(layer, around, rules)
    whole = frames(layer.frames[around.tokens], kind.group)
    q = _beliefs(rng, parts, BATCH, LENGTH)
    common = to_common(q, place, kind)
    back = from_common(common, place, kind)
    np.testing.assert_allclose(back.mean, q.mean, rtol=1e-12, atol=1e-12)
    i, j = 3, 1
    pairs = pairwise_kl(common, common, kind)
    for head, rate in enumerate(rules.rates):
        axis = jnp.asarray([0.0, 0.0, (i - j) * rate])
        turn = frames(axis, kind.group)
        u_i, u_j = whole[0, i, head], whole[0, j, head]
        message = u_i @ turn @ u_j.T @ q.mean[0, j, head]
        receiver = IrrepGaussian(q.mean[0, i, head][None], q.log_variance[0, i, head][None])
        sender = IrrepGaussian(message[None], q.log_variance[0, j, head][None])
        expected = kl_divergence(receiver, sender, kind)
        np.testing.assert_allclose(pairs[0, head, i, j], expected, rtol=1e-11)


def test_blocks_of_receivers_change_nothing(rng, monkeypatch):
    """Blocks that do not divide the length; with the slopes, for which they are made again."""
    parts, params, layer, around = _drawn(rng, prior_weight=0.5)
    below = parts.embed_fn(params, around.tokens, around.positions)

    def found(layer):
        prior = layer_prior(layer, below, around, None, parts.rules)
        belief, weights = descend(layer, prior, prior, around, parts.rules)
        paid = layer_energy(layer, prior, belief, around, None, parts.rules).total
        return jnp.sum(jnp.sin(paid)), (belief, weights, paid)

    whole = _jit(jax.value_and_grad(found, has_aux=True))(layer)
    monkeypatch.setattr(energy, "BLOCK", 2)
    blocks = _jit(jax.value_and_grad(lambda layer: found(layer), has_aux=True))(layer)
    chex.assert_trees_all_close(blocks, whole, rtol=1e-11, atol=1e-12)  # sums in another order


@pytest.mark.slow
def test_a_long_text_is_learned_without_all_pairs_but_for_their_attention():
    """One array of all pairs of 2048 tokens takes 150 MB; in one piece there are ten of them."""
    config = PureFEPConfig(layers=1, max_layers=1, hidden=16)
    model = build(config, VOCABULARY, 2048)
    method = trainer(model, config, lambda step: 1e-3, jax.random.key(1))
    state = jax.eval_shape(method.init, jax.random.key(0))
    windows = jax.ShapeDtypeStruct((1, 2049), jnp.int32)
    program = _jit(method.step).lower(state, windows).compile()
    assert program.memory_analysis().temp_size_in_bytes < 400e6


@pytest.mark.slow
def test_sinusoids_are_distinct():
    waves = np.asarray(sinusoids(jnp.arange(50), 8))
    apart = np.linalg.norm(waves[:, None] - waves[None], axis=-1)
    assert np.min(apart + np.eye(50)) > 0.1


@pytest.mark.slow
def test_a_pooled_prior_is_the_minimum_of_its_terms(rng):
    parts, _, _, _ = _drawn(rng)
    kind = parts.rules.kind
    own, others = _beliefs(rng, parts, 1, 2), _beliefs(rng, parts, 2, 1, 2)
    weights = jnp.asarray([0.7, 0.2])
    natural = natural_parameters(own, kind)
    pooled = energy.pooled_prior(
        natural.mean, natural.log_variance, natural_parameters(others, kind), weights
    )
    prior = from_natural(*pooled, kind)

    def cost(p):
        tower = energy.hyperprior_energy(p, others, weights, kind)
        return jnp.sum(kl_divergence(p, own, kind) + tower)

    for slope in _jit(jax.grad(cost))(prior):
        np.testing.assert_allclose(slope, 0.0, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_terms_are_there_when_their_options_are(rng):
    parts, params, layer, around = _drawn(rng)
    below = parts.embed_fn(params, around.tokens, around.positions)
    beliefs = _beliefs(rng, parts, 2, BATCH, LENGTH)
    above = Ancestors(beliefs, jnp.asarray([0.0, 0.5]))

    def terms(ancestors=None, **changes):
        rules = parts.rules._replace(**changes)
        prior = layer_prior(layer, below, around, ancestors, rules)
        belief = jax.tree.map(lambda x: x[0], beliefs)
        found = layer_energy(layer, prior, belief, around, ancestors, rules)
        return jax.tree.map(jnp.sum, found)

    @_jit
    def variants():
        further = ({"prior_weight": 1.0}, {"belief_weight": 0.0}, {"self_weight": 2.0})
        found = terms(), terms(prior_weight=0.5), terms(above)
        return found, [terms(**changes) for changes in further]

    (plain, coupled, tower), (stronger, alone, double) = variants()
    assert plain.prior_alignment == plain.hyperprior == 0
    assert coupled.prior_alignment > 0
    np.testing.assert_allclose(coupled.prior_alignment * 2, stronger.prior_alignment, rtol=1e-12)
    assert coupled.self_coupling == plain.self_coupling
    assert tower.hyperprior > 0
    assert tower.self_coupling != plain.self_coupling
    np.testing.assert_allclose(alone.belief_alignment, 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(double.self_coupling, 2 * plain.self_coupling, rtol=1e-12)
    total = sum(jax.tree.leaves(tower))
    np.testing.assert_allclose(tower.total, total, rtol=1e-12)


def _lesson(rng, **options):
    """What a layer learns, and the slope of its own loss by autodiff through its descent."""
    parts, params, layer, around = _drawn(rng, **options)
    below = parts.embed_fn(params, around.tokens, around.positions)
    targets = jnp.asarray(rng.integers(0, VOCABULARY, around.tokens.shape))
    counts = jnp.asarray(rng.integers(0, 2, around.tokens.shape), jnp.float64)
    observed = Observed(targets, counts.at[0, 1].set(1.0))

    def loss(layer, below, readout):
        prior = layer_prior(layer, below, around, None, parts.rules)
        common, _ = descend(layer, prior, prior, around, parts.rules)
        belief = from_common(common, frames_of(layer, around, parts.rules), parts.rules.kind)
        nats = token_loss(parts, readout, belief, observed)
        return jnp.sum(nats) / jnp.sum(observed.counts)

    @_jit
    def both():
        lesson = learn_layer(parts, layer, params.readout, below, around, None, observed)
        through = jax.value_and_grad(loss, (0, 1, 2))(layer, below, params.readout)
        return lesson, through

    return both()


def test_what_a_layer_learns_is_the_slope_of_its_own_loss(rng):
    """The limit of small nudges from converged beliefs; autodiff through the descent only here."""
    lesson, (loss, expected) = _lesson(rng, inference_steps=40, nudge=1e-3, nudge_steps=20)
    np.testing.assert_allclose(lesson.terms.observation, loss, rtol=1e-12)
    found = lesson.layer, lesson.below, lesson.readout
    # Nudges of both signs: the error is of the order of their square, 1e-6.
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_few_steps_and_a_plain_nudge_point_the_same_way(rng):
    """The defaults, which cost a fraction."""
    lesson, (_, expected) = _lesson(rng)
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (lesson.layer, expected[0])
    ]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.95


@pytest.mark.slow
def test_a_target_that_is_shown_is_believed_more(rng):
    parts, params, layer, around = _drawn(rng)
    observed = Observed(jnp.zeros_like(around.tokens), jnp.ones(around.tokens.shape))

    @_jit
    def losses():
        below = parts.embed_fn(params, around.tokens, around.positions)
        lesson = learn_layer(parts, layer, params.readout, below, around, None, observed)
        beliefs = lesson.shown, lesson.belief
        return [token_loss(parts, params.readout, belief, observed) for belief in beliefs]

    shown, free = losses()
    assert np.all(shown < free)


def test_a_large_nudge_ends_in_a_ball_and_a_small_one_is_what_it_was(rng):
    """A slope that grows with the belief overshoots more with every step."""
    parts = _drawn(rng, nudge_steps=12)[0]
    free, kind = _beliefs(rng, parts, 1, 3), parts.rules.kind
    one = parts._replace(config=dataclasses.replace(parts.config, nudge_steps=1))
    curvature = np.full((1, 3, 1, 1), 0.1)

    def slope(belief):
        return jax.tree.map(lambda x: x + 1.0, belief)

    @_jit
    def found(free):
        small = nudged(free, slope, slope, curvature, 1e-3, one)
        return small, nudged(free, slope, slope, curvature, 1e3, parts)

    small, large = found(free)
    straight = natural_direction(slope(free), free, kind)
    expected = jax.tree.map(lambda x, d: x - 1e-2 * d, free, straight)
    chex.assert_trees_all_close(small, expected, rtol=1e-12)
    far = jax.tree.map(np.subtract, large, free)
    sizes = kind.member.sum(axis=1)
    square = far.mean**2 @ kind.member.T * np.exp(-free.log_variance)
    square = np.sum(square + 0.5 * sizes * far.log_variance**2, axis=-1)
    np.testing.assert_allclose(np.sqrt(square), FARTHEST, rtol=1e-12)


def test_of_a_large_vocabulary_only_the_frames_that_occur_are_made(rng):
    kind, tokens = _drawn(rng)[0].rules.kind, np.array([[3, 0, 3]])
    phi = rng.standard_normal((1000, 2, 3))
    program = jax.make_jaxpr(lambda phi: token_frames(phi, tokens, kind))(phi)
    # Equal values: decoding reads one token at a time, and is tested to equal reading at once.
    made = [var.aval.size for step in program.eqns for var in step.outvars]
    assert max(made) < phi.size


def test_a_rotation_is_kept_once_for_all_irreps_of_a_spin(rng):
    found = token_frames(
        rng.standard_normal((5, 2, 3)), np.array([[3]]), irreps((0, 0, 1, 1, 1, 2))
    )
    assert {spin: rotation.shape for spin, rotation in found.items()} == {
        1: (1, 1, 2, 3, 3),
        2: (1, 1, 2, 5, 5),
    }


def test_a_token_outside_the_vocabulary_is_not_a_number(rng):
    parts, params, _, _ = _drawn(rng)
    found = parts.embed_fn(params, jnp.asarray([[0, VOCABULARY]]), jnp.arange(2)[None])
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf[0, 0]).all()
        assert np.isnan(leaf[0, 1]).all()
