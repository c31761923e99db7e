"""All-pairs divergences against the oracle that forms every transport, and their streamed energies
against dense rows.

The two halves meet in the feature rows: divergences and their gradients are held against
transports; energies, whose input the rows are, against plain formulas on the n x n product of the
rows. ``test_free_energy.py`` checks both together.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import alignment, pairwise
from vfejax.agents.edges import Edges, edge_divergences
from vfejax.agents.pairwise import PairFeatures
from vfejax.beliefs.gaussian import Gaussian

VECTOR = oracle.ROTATIONS["vector"]
SUM = oracle.ROTATIONS["sum"]
each_energy = pytest.mark.parametrize("alignment_fn", oracle.ENERGIES, ids=lambda f: f.__name__)


streamed_kl = jax.jit(pairwise.pairwise_kl)
naive_kl = jax.jit(oracle.pairwise_kl)


def agents(rng, num, generators=VECTOR, dtype=np.float64):
    population = oracle.random_population(rng, num, generators, dtype=dtype)
    return population.belief, population.phi


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def assert_trees_close(actual, expected, atol):
    """Every leaf within ``atol`` times the largest entry of the whole tree."""
    scale = max(float(np.max(np.abs(x), initial=0.0)) for x in jax.tree.leaves(expected))
    as_double = partial(jax.tree.map, partial(np.asarray, dtype=float))
    chex.assert_trees_all_close(as_double(actual), as_double(expected), rtol=0, atol=atol * scale)


@pytest.mark.parametrize(
    ("generators", "dtype"),
    [
        pytest.param(VECTOR, "float32", id="vector f32"),
        pytest.param(VECTOR, "float64", id="vector f64"),
        pytest.param(SUM, "float32", id="sum f32", marks=pytest.mark.slow),
        # Its value is compared beside its gradient below.
        pytest.param(oracle.GENERAL, "float64", id="general f64", marks=pytest.mark.slow),
    ],
)
def test_pairwise_kl_equals_the_oracle(generators, dtype, rng):
    gaussian, phi = agents(rng, 6, generators, dtype)
    expected = naive_kl(*oracle.to_double((gaussian, phi)), generators)
    actual = streamed_kl(gaussian, phi, generators)
    chex.assert_type(actual, dtype)
    # Feature products are a few times larger than the divergences.
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=50 * eps(dtype) * float(jnp.max(expected))
    )


def test_a_broken_agent_breaks_no_divergence_of_others(rng):
    gaussian, phi = agents(rng, 6, dtype=np.float32)
    expected = np.asarray(streamed_kl(gaussian, phi, VECTOR))
    for bad in (np.nan, np.inf):
        broken = gaussian._replace(mean=gaussian.mean.at[2].set(bad))
        found = np.asarray(streamed_kl(broken, phi, VECTOR))
        whole = np.delete(np.delete(found, 2, 0), 2, 1)
        assert_trees_close(whole, np.delete(np.delete(expected, 2, 0), 2, 1), 50 * eps("float32"))
        assert not np.any(np.isfinite([found[2], found[:, 2]]))


@pytest.mark.parametrize("kind", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_gradients_of_pairwise_kl_equal_the_oracle(kind, rng):
    arguments = agents(rng, 6, oracle.GENERAL)
    cotangent = jnp.asarray(rng.normal(size=(6, 6)))

    def gradient(divergence_fn, arguments):
        divergence, pull_back = jax.vjp(lambda a: divergence_fn(*a, oracle.GENERAL), arguments)
        return divergence, *pull_back(cotangent.astype(divergence.dtype))

    divergence, actual = jax.jit(partial(gradient, pairwise.pairwise_kl))(
        jax.tree.map(lambda x: np.asarray(x, kind), arguments)
    )
    exact, expected = jax.jit(partial(gradient, oracle.pairwise_kl))(arguments)
    # In single precision the gradient carries the relative rounding of the features, a few dozen
    # operations deep.
    tolerance = {"float64": 1e-13, "float32": 100 * eps(jnp.float32)}[kind]
    assert_trees_close(actual, expected, tolerance)
    # Feature products are a few times larger than the divergences.
    np.testing.assert_allclose(divergence, exact, rtol=0, atol=50 * eps(kind) * np.max(exact))
    chol_gradient = np.asarray(actual[0].chol)
    np.testing.assert_array_equal(chol_gradient[:, 0, 1], 0.0)
    assert np.all(chol_gradient[:, [0, 1, 1], [0, 0, 1]] != 0.0)


def rounding_bound(gaussian):
    """``|P_j| (|S_i| + |m_i|^2 + |m_j|^2)`` of unrotated agents, centred and whitened, by NumPy in
    float64.
    """
    mean = np.asarray(gaussian.mean, float)
    factor = np.tril(np.asarray(gaussian.chol, float))
    spread = np.linalg.cholesky(np.mean(factor @ np.swapaxes(factor, -1, -2), axis=0))
    mean = np.linalg.solve(spread, (mean - mean.mean(axis=0)).T).T
    factor = np.linalg.solve(spread, factor)
    cov = factor @ np.swapaxes(factor, -1, -2)
    square = np.sum(mean**2, axis=-1)
    precision = np.linalg.norm(np.linalg.inv(cov), axis=(-2, -1))
    return precision[None] * (
        np.linalg.norm(cov, axis=(-2, -1))[:, None] + square[:, None] + square[None]
    )


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (4096.0, 1.0), (0.0, 1e-3), (0.0, 1e4)])
def test_rounding_stays_within_the_stated_bound(offset, scale, rng, dtype):
    # Zero frames, so that nothing but the pairwise product rounds: a common offset or unit must not
    # cost digits.
    gaussian, phi = agents(rng, 6, dtype=np.float64)
    mean, chol = map(np.asarray, gaussian)
    gaussian = Gaussian((offset + scale * mean).astype(dtype), (scale * chol).astype(dtype))
    phi = np.zeros(phi.shape, dtype)
    expected = np.asarray(naive_kl(*oracle.to_double((gaussian, phi)), VECTOR))
    error = np.abs(np.asarray(streamed_kl(gaussian, phi, VECTOR)) - expected)
    # "About": 11 products in each sum, and factors that were themselves computed with a few
    # roundings.
    assert np.max(error / rounding_bound(gaussian)) < 10 * eps(dtype)


def test_divergence_from_itself_is_zero_and_from_others_is_not(rng):
    gaussian, phi = agents(rng, 6)
    divergence = np.asarray(streamed_kl(gaussian, phi, VECTOR))
    np.testing.assert_allclose(np.diagonal(divergence), 0.0, rtol=0, atol=1e-13)
    assert np.min(divergence + np.eye(6)) > 0.05


def test_feature_rows_have_the_stated_length(rng):
    gaussian, phi = agents(rng, 2, SUM)
    features = jax.eval_shape(
        lambda g, p: pairwise.pair_features(g, pairwise.frame_field(p, SUM)), gaussian, phi
    )
    chex.assert_shape([features.receiver, features.sender], (2, 9 * 10 // 2 + 9 + 2))


# From here on the input is a set of feature rows.


@jax.jit
def features_of(gaussian, phi):
    return pairwise.pair_features(gaussian, pairwise.frame_field(phi, VECTOR))


def arguments_of(rng, num, dtype=np.float64):
    """Feature rows, temperature (nats), coefficients and log weights: all that an energy can be
    differentiated by.
    """
    coefficient, weight = rng.uniform(0.2, 1.0, (2, num))
    features = jax.tree.map(lambda x: np.asarray(x)[:num], features_of(*agents(rng, 64)))
    arguments = (features, np.asarray(2.5), coefficient, np.log(weight))
    return jax.tree.map(lambda x: jnp.asarray(x.astype(dtype)), arguments)


def energy(arguments, **options):
    features, temperature, coefficient, log_weight = arguments
    return pairwise.alignment_energy(
        features, temperature, coefficient=coefficient, log_weight=log_weight, **options
    )


def dense_energy(arguments, neighbours=None, *, alignment_fn):
    features, temperature, coefficient, log_weight = arguments
    return oracle.alignment_energy(
        features.receiver @ features.sender.T,
        temperature,
        coefficient=coefficient,
        weight=jnp.exp(log_weight),
        neighbours=neighbours,
        alignment_fn=alignment_fn,
    )


streamed = jax.jit(
    jax.value_and_grad(energy), static_argnames=("alignment_fn", "block_size", "compute_dtype")
)
dense = jax.jit(jax.value_and_grad(dense_energy), static_argnames="alignment_fn")


@each_energy
def test_streamed_equals_dense(alignment_fn, rng):
    arguments = arguments_of(rng, 7)
    actual = streamed(arguments, alignment_fn=alignment_fn, block_size=3)
    assert_trees_close(actual, dense(arguments, alignment_fn=alignment_fn), 1e-13)


@pytest.mark.parametrize(
    "block_size", [None, *(pytest.param(b, marks=pytest.mark.slow) for b in (1, 4, 100))]
)
def test_block_size_does_not_matter(block_size, rng):
    arguments = arguments_of(rng, 7)
    actual = streamed(arguments, alignment_fn=oracle.mixture, block_size=block_size)
    assert_trees_close(actual, dense(arguments, alignment_fn=oracle.mixture), 1e-13)


def test_streamed_equals_dense_in_single_precision(rng):
    arguments = arguments_of(rng, 7, np.float32)
    actual = streamed(arguments, alignment_fn=oracle.mixture, block_size=3)
    chex.assert_type(jax.tree.leaves(actual), jnp.float32)
    # Products of rows reach about 200, hence an absolute rounding of 200 eps in the exponent,
    # divided by tau = 2.5.
    expected = dense(oracle.to_double(arguments), alignment_fn=oracle.mixture)
    assert_trees_close(actual, expected, 100 * eps(jnp.float32))


@each_energy
def test_two_agents_pay_their_two_divergences(alignment_fn, rng):
    arguments = arguments_of(rng, 2)
    value = jax.jit(partial(energy, alignment_fn=alignment_fn))(arguments)
    features, _, coefficient, _ = jax.tree.map(lambda x: np.asarray(x, float), arguments)
    divergence = features.receiver @ features.sender.T
    expected = coefficient[0] * divergence[0, 1] + coefficient[1] * divergence[1, 0]
    # The saturating energy falls short by e^(KL / tau) in e^limit, and KL is below 5 tau here.
    short = np.exp(5.0 - alignment.SATURATION) if alignment_fn is alignment.saturating else 0.0
    np.testing.assert_allclose(value, expected, rtol=1e-13 + short)


@pytest.mark.parametrize("num", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_lone_agent_pays_and_feels_nothing(num, rng):
    gaussian, phi = agents(rng, num)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def pay(gaussian, phi):
        features = pairwise.pair_features(gaussian, pairwise.frame_field(phi, VECTOR))
        attention = pairwise.attention_weights(gaussian, phi, VECTOR, 1.0)
        return pairwise.alignment_energy(features, 1.0, alignment_fn=oracle.mixture), attention

    nothing = pay(gaussian, phi)
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, nothing))


def root(divergence, log_weight, over):
    """An energy of one's own that grows like a distance: its slope at divergence 0 is infinite."""
    counted = log_weight > -jnp.inf
    return jnp.sqrt(over.sum(jnp.where(counted, divergence, 0.0)))


def each_root(divergence, log_weight, over):
    """The same pair by pair, so that the slope is infinite at a pair that does not count."""
    counted = log_weight > -jnp.inf
    return over.sum(jnp.where(counted, jnp.sqrt(divergence), 0.0))


@pytest.mark.parametrize("alignment_fn", [pytest.param(root, marks=pytest.mark.slow), each_root])
def test_padding_is_invisible_to_an_energy_of_ones_own(alignment_fn, rng):
    arguments = arguments_of(rng, 5)
    expected = streamed(arguments, alignment_fn=alignment_fn, block_size=5)
    chex.assert_tree_all_finite(expected)
    # Two blocks of three: the last holds one copy of the last agent.
    padded = streamed(arguments, alignment_fn=alignment_fn, block_size=3)
    assert_trees_close(padded, expected, 1e-14)


@partial(jax.jit, static_argnames="alignment_fn")
def energy_of(gaussian, phi, alignment_fn):
    return pairwise.alignment_energy(features_of(gaussian, phi), 1.0, alignment_fn=alignment_fn)


# By default test_free_energy.py shows it, for all pairs and for edges.
@pytest.mark.slow
@each_energy
@pytest.mark.parametrize("bad", [np.nan, 1e20])
def test_a_bad_agent_never_lowers_the_energy(alignment_fn, bad, rng):
    gaussian, phi = agents(rng, 5, dtype=np.float32)
    mean = np.array(gaussian.mean)
    mean[1] = bad
    chex.assert_tree_all_finite(energy_of(gaussian, phi, alignment_fn))
    assert not energy_of(gaussian._replace(mean=mean), phi, alignment_fn) < np.inf


def test_agents_that_are_nowhere_cost_no_digits(rng):
    gaussian, phi = agents(rng, 6, dtype=np.float32)
    mean = np.array(gaussian.mean)
    mean[5] = 1e4
    expected = naive_kl(*oracle.to_double((gaussian, phi)), VECTOR)[:5, :5]
    support = np.array([1.0, 0.5, 1e-3, 1.0, 0.7, 0.0], np.float32)

    @jax.jit
    def features(gaussian, phi):
        return pairwise.pair_features(gaussian, pairwise.frame_field(phi, VECTOR), support)

    rows = jax.tree.map(np.asarray, features(gaussian._replace(mean=mean), phi))
    actual = (rows.receiver @ rows.sender.T)[:5, :5]
    assert_trees_close(actual, expected, 100 * eps("float32"))


def test_temperature_may_have_any_dtype(rng):
    features, *_ = arguments_of(rng, 5, np.float32)
    at = jax.jit(pairwise.alignment_energy)
    value = at(features, np.float64(2.5))
    chex.assert_type(value, jnp.float32)
    chex.assert_trees_all_close(value, at(features, 2.5))


def test_defaults_are_unit_weights_and_the_weighted_energy(rng):
    features, temperature, *_ = arguments_of(rng, 7)
    expected, _ = dense(
        (features, temperature, np.ones(7), np.zeros(7)), alignment_fn=alignment.weighted
    )
    actual = jax.jit(pairwise.alignment_energy)(features, temperature)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@each_energy
def test_senders_without_weight_are_absent(alignment_fn, rng):
    absent = np.array([1, 4])
    features, temperature, coefficient, log_weight = arguments_of(rng, 7)
    log_weight = np.array(log_weight)
    log_weight[absent] = -np.inf
    arguments = (features, temperature, coefficient, log_weight)
    value, gradient = streamed(arguments, alignment_fn=alignment_fn, block_size=3)
    assert_trees_close((value, gradient), dense(arguments, alignment_fn=alignment_fn), 1e-13)
    np.testing.assert_array_equal(np.asarray(gradient[0].sender)[absent], 0.0)
    np.testing.assert_array_equal(np.asarray(gradient[3])[absent], 0.0)


@each_energy
def test_receivers_without_any_sender_pay_nothing(alignment_fn, rng):
    features, temperature, coefficient, log_weight = arguments_of(rng, 7)
    arguments = (features, temperature, coefficient, np.full(log_weight.shape, -np.inf))
    nothing = streamed(arguments, alignment_fn=alignment_fn, block_size=3)
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, nothing))


@each_energy
def test_slopes_in_the_divergences(alignment_fn, rng):
    """Closed forms: beta for the entropic energy, its share that goes to neighbours for the
    saturating one, beta (1 - (KL - <KL>) / tau) for the weighted one.
    """
    arguments = arguments_of(rng, 7)
    _, gradient = streamed(arguments, alignment_fn=alignment_fn, block_size=3)
    features, tau, coefficient, log_weight = jax.tree.map(np.asarray, arguments)
    divergence = features.receiver @ features.sender.T
    factors = np.exp(log_weight - divergence / tau) * (1 - np.eye(7))
    beta = factors / factors.sum(axis=1, keepdims=True)
    mean = (beta * divergence).sum(axis=1, keepdims=True)
    weight = np.exp(log_weight) * (1 - np.eye(7))
    somebody = factors.sum(axis=1, keepdims=True) / weight.sum(axis=1, keepdims=True)
    nobody = np.exp(-alignment.SATURATION)
    slopes = {
        alignment.entropic: beta,
        alignment.saturating: beta / (1 + nobody / ((1 - nobody) * somebody)),
        alignment.weighted: beta * (1 - (divergence - mean) / tau),
    }
    slope = coefficient[:, None] * slopes[alignment_fn]
    assert_trees_close(
        gradient[0], PairFeatures(slope @ features.sender, slope.T @ features.receiver), 1e-13
    )


@pytest.mark.parametrize(
    "mode", ["forward over reverse", pytest.param("reverse over reverse", marks=pytest.mark.slow)]
)
def test_every_mode_and_the_second_order_equal_dense(mode, rng):
    arguments = arguments_of(rng, 5)
    tangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), arguments)
    ours = partial(energy, alignment_fn=oracle.mixture, block_size=2)
    dense_mixture = partial(dense_energy, alignment_fn=oracle.mixture)

    def forward_over_reverse(fn):
        return jax.jvp(jax.value_and_grad(fn), (arguments,), (tangent,))[1]

    def reverse_over_reverse(fn):
        def slope(arguments):
            products = jax.tree.map(lambda g, t: jnp.sum(g * t), jax.grad(fn)(arguments), tangent)
            return jax.tree.reduce(jnp.add, products)

        return jax.value_and_grad(slope)(arguments)

    differentiate = {
        "forward over reverse": forward_over_reverse,
        "reverse over reverse": reverse_over_reverse,
    }[mode]
    slope, product = jax.jit(lambda: forward_over_reverse(dense_mixture))()
    our_slope, our_product = jax.jit(lambda: differentiate(ours))()
    np.testing.assert_allclose(our_slope, slope, rtol=1e-12)
    assert_trees_close(our_product, product, 1e-12)


def test_jit_and_vmap_change_nothing(rng):
    batch = [arguments_of(rng, 7) for _ in range(3)]
    options = {"alignment_fn": alignment.weighted, "block_size": 3}
    stacked = jax.tree.map(lambda *x: np.stack(x), *batch)
    singles = [streamed(arguments, **options) for arguments in batch]
    together = jax.vmap(lambda a: streamed(a, **options))(stacked)
    assert_trees_close(together, jax.tree.map(lambda *x: np.stack(x), *singles), 1e-13)
    np.testing.assert_allclose(energy(batch[0], **options), singles[0][0], rtol=1e-14)


@pytest.mark.parametrize(
    "compute_dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_low_precision_products_err_by_their_own_epsilon(compute_dtype, rng):
    arguments = arguments_of(rng, 64, np.float32)
    options = {"alignment_fn": alignment.entropic}
    exact = dense(oracle.to_double(arguments), **options)
    actual = streamed(arguments, compute_dtype=compute_dtype, **options)
    chex.assert_type(jax.tree.leaves(actual), jnp.float32)
    # Both operands are rounded by a relative eps / 2, so a divergence errs by at most eps sum_f
    # |a_if b_jf| (and a little at second order), and the entropic energy of i moves by no more than
    # the largest error in row i.
    features, _, coefficient, _ = jax.device_get(oracle.to_double(arguments))
    magnitude = np.abs(features.receiver) @ np.abs(features.sender).T
    bound = (
        1.1
        * eps(compute_dtype)
        * float(np.sum(np.asarray(coefficient) * np.max(magnitude, axis=1)))
    )
    error = abs(float(actual[0]) - float(exact[0]))
    assert 0.0 < error < bound
    # A gradient entry is a mean of rounded features under an attention that errs by the same errors
    # over tau. Errors of 64 agents' pairs mostly cancel: 0.2 eps was measured in either format.
    gradient, expected = (
        np.concatenate([np.ravel(x) for x in y[1][0]]).astype(float) for y in (actual, exact)
    )
    assert np.linalg.norm(gradient - expected) < eps(compute_dtype) * np.linalg.norm(expected)


def test_integers_count_as_floating_numbers():
    """Traces of generators are no whole numbers: taken as such they leave the volume of a frame."""
    whole = Gaussian(jnp.array([[1, 0], [2, 3], [0, 1]]), jnp.array(3 * [[[2, 0], [1, 1]]]))
    phi, generators = jnp.array([[1], [2], [0]]), np.diag([0.5, 0.25])[None]
    floating, turns = jax.tree.map(lambda x: x.astype(float), (whole, phi))
    actual = pairwise.pairwise_kl(whole, phi, generators)
    expected = pairwise.pairwise_kl(floating, turns, generators)
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=0)
    naive = naive_kl(floating, turns, generators)
    chex.assert_trees_all_close(actual, naive, rtol=0, atol=1e-13 * float(naive.max()))
    ends = Edges(np.array([0, 1]), np.array([1, 2]))
    field = pairwise.frame_field(phi, generators)
    along = edge_divergences(whole, field, ends)
    expected = jnp.stack([naive[0, 1], naive[1, 2]])
    chex.assert_trees_all_close(along, expected, rtol=0, atol=1e-13 * float(naive.max()))


@pytest.mark.parametrize("kind", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_attention_weights(rng, kind):
    dtype = np.dtype(kind)
    gaussian, phi = agents(rng, 6, dtype=dtype)
    weight = np.array([0.3, 1.0, 0.6, 0.0, 0.8, 0.5], dtype)

    @jax.jit
    def attention(gaussian, phi, weight):
        log_weight = jnp.log(weight)
        return pairwise.attention_weights(gaussian, phi, VECTOR, 2.5, log_weight=log_weight)

    beta = np.asarray(attention(gaussian, phi, weight))
    divergence = naive_kl(*oracle.to_double((gaussian, phi)), VECTOR)
    expected = jax.jit(oracle.attention)(divergence, 2.5, weight.astype(float), 1.0 - np.eye(6))
    # An exponent of up to 100 / tau, rounded.
    np.testing.assert_allclose(beta, expected, rtol=0, atol=100 * eps(dtype))
    np.testing.assert_allclose(np.sum(beta, axis=1), 1.0, rtol=10 * eps(dtype))
    np.testing.assert_array_equal(np.diagonal(beta), 0.0)


def test_memory_does_not_grow_with_the_number_of_pairs():
    def temporary_bytes(num):
        rows = jax.ShapeDtypeStruct((num, 11), jnp.float32)
        step = jax.jit(jax.grad(partial(pairwise.alignment_energy, temperature=1.0)))
        compiled = step.lower(PairFeatures(rows, rows)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(2048), temporary_bytes(4096)
    # Pairs alone, as one float32 array, would take 64 MB; arrays of agents double and blocks of
    # pairs keep their size.
    assert large < 4096**2 * 4
    assert large < 2.6 * small


def test_block_size_must_be_positive():
    features = PairFeatures(jnp.ones((3, 4)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        pairwise.alignment_energy(features, 1.0, block_size=0)
