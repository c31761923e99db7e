import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vfejax.beliefs import families, gaussian
from vfejax.beliefs.exponential_families import entropy, inner, kl_divergence, moments

RATE = np.array([[2.0, 0.3], [0.3, 1.0]])
OTHER = np.array([[1.0, -0.2], [-0.2, 0.5]])
PROBABILITIES = np.array([0.2, 0.5, 0.3])
# Name: two sets of standard parameters, a value, and its log density under the first.
CASES = {
    "gaussian": ((0.3, 4.0), (-1.0, 0.5), 1.2, scipy.stats.norm(0.3, 0.5).logpdf(1.2)),
    "multivariate gaussian": (
        (np.array([0.5, -1.0]), RATE),
        (np.zeros(2), OTHER),
        np.array([0.1, 0.2]),
        scipy.stats.multivariate_normal([0.5, -1.0], np.linalg.inv(RATE)).logpdf([0.1, 0.2]),
    ),
    "gamma": ((2.5, 3.0), (0.7, 1.0), 0.8, scipy.stats.gamma(2.5, scale=1 / 3).logpdf(0.8)),
    "wishart": (
        (4.0, RATE),
        (6.0, OTHER),
        OTHER,
        scipy.stats.wishart(4, np.linalg.inv(RATE)).logpdf(OTHER),
    ),
    "dirichlet": (
        (np.array([0.5, 2.0, 3.0]),),
        (np.ones(3),),
        PROBABILITIES,
        scipy.stats.dirichlet([0.5, 2.0, 3.0]).logpdf(PROBABILITIES),
    ),
    "beta": ((2.0, 0.7), (1.0, 1.0), 0.3, scipy.stats.beta(2.0, 0.7).logpdf(0.3)),
    "categorical": (
        (PROBABILITIES,),
        (np.array([0.1, 0.1, 0.8]),),
        np.array([0.0, 1.0, 0.0]),
        np.log(0.5),
    ),
    "bernoulli": ((0.3,), (0.6,), 1.0, np.log(0.3)),
    "poisson": ((2.5,), (1.0,), 3.0, scipy.stats.poisson(2.5).logpmf(3)),
}
FAST = ("gamma", "wishart", "categorical")
every_family = pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, id=f.name, marks=() if f.name in FAST else pytest.mark.slow)
        for f in families.FAMILIES
    ],
)


def natural_of(family, standard):
    return family.natural(*(jnp.asarray(x) for x in standard))


@every_family
def test_family_is_that_of_scipy_and_keeps_its_identities(family):
    first, other, value, expected = CASES[family.name]

    @jax.jit
    def run(first, other, value):
        q, p = family.natural(*first), family.natural(*other)
        log_partition, gradient = jax.value_and_grad(family.log_partition)(q)
        density = inner(family, q, family.statistics(value)) - log_partition
        if family.log_base is not None:
            density = density + family.log_base(value)
        both = jax.tree.map(lambda *x: jnp.stack(x), q, p)
        statistics, partitions = moments(family, both)
        divergences = [kl_divergence(family, q, p) for p in (q, p)]
        return (
            density,
            gradient,
            log_partition,
            statistics,
            partitions,
            family.standard(q),
            divergences,
        )

    arrays = jax.tree.map(jnp.asarray, (first, other, value))
    density, gradient, log_partition, statistics, partitions, standard, divergences = run(*arrays)
    # sums of a few numbers below 20, and one factorisation of condition number 3
    np.testing.assert_allclose(density, expected, rtol=0, atol=1e-13)
    chex.assert_trees_all_close(tuple(t[0] for t in statistics), gradient, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(partitions[0], log_partition, rtol=1e-14)
    chex.assert_trees_all_close(standard, arrays[0], rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(divergences[0], 0, rtol=0, atol=1e-13)
    assert divergences[1] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "frozen"),
    [
        (families.GAUSSIAN, scipy.stats.norm(0.3, 0.5)),
        (families.GAMMA, scipy.stats.gamma(2.5, scale=1 / 3)),
        (families.BETA, scipy.stats.beta(2.0, 0.7)),
        (families.DIRICHLET, scipy.stats.dirichlet([0.5, 2.0, 3.0])),
        (families.WISHART, scipy.stats.wishart(4, np.linalg.inv(RATE))),
        (families.BERNOULLI, scipy.stats.bernoulli(0.3)),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_entropy_is_that_of_scipy(family, frozen):
    actual = entropy(family, natural_of(family, CASES[family.name][0]))
    # scipy's own digamma series
    np.testing.assert_allclose(actual, frozen.entropy(), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_gaussian_family_agrees_with_gaussian_beliefs():
    (q_mean, q_matrix), (p_mean, p_matrix) = CASES["multivariate gaussian"][:2]
    q, p = (
        gaussian.from_moments(jnp.asarray(mean), jnp.linalg.inv(matrix))
        for mean, matrix in ((q_mean, q_matrix), (p_mean, p_matrix))
    )
    family = families.MULTIVARIATE_GAUSSIAN
    actual = kl_divergence(
        family, natural_of(family, (q_mean, q_matrix)), natural_of(family, (p_mean, p_matrix))
    )
    np.testing.assert_allclose(actual, gaussian.kl_divergence(q, p), rtol=1e-13)


def test_poisson_has_no_closed_entropy():
    with pytest.raises(ValueError, match="poisson"):
        entropy(families.POISSON, (jnp.zeros(()),))


def test_a_state_of_probability_zero_counts_as_zero():
    family = families.CATEGORICAL
    q, p = (family.natural(np.array(x)) for x in ([0.25, 0.75, 0.0], [0.5, 0.5, 0.0]))
    wide = family.natural(np.array([0.5, 0.25, 0.25]))

    @jax.jit
    def both(q, p):
        return entropy(family, q), kl_divergence(family, q, p), kl_divergence(family, p, q)

    for other, shares in ((p, [0.5, 0.5]), (wide, [0.5, 0.25])):
        h, forward, _ = both(q, other)
        ratio = np.array([0.25, 0.75]) / shares
        assert float(h) == pytest.approx(scipy.stats.entropy([0.25, 0.75]), rel=1e-14)
        assert float(forward) == pytest.approx([0.25, 0.75] @ np.log(ratio), rel=1e-13)
    assert both(q, wide)[2] == np.inf
    # What a message says of the state is that it cannot be, whatever its statistic is.
    slope = jax.grad(lambda t: inner(family, q, (t,)))(np.array([1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(slope, q[0])
    assert np.isnan(inner(family, (np.array([np.nan, 0.0]),), (np.zeros(2),)))


@pytest.mark.slow
def test_multinomial_is_that_of_scipy():
    family = families.multinomial(6.0)
    counts = jnp.array([1.0, 2.0, 3.0])
    eta = family.natural(jnp.asarray(PROBABILITIES))
    actual = inner(family, eta, family.statistics(counts)) + family.log_base(counts)
    actual = actual - family.log_partition(eta)
    expected = scipy.stats.multinomial(6, PROBABILITIES).logpmf([1, 2, 3])
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@pytest.mark.slow
def test_a_precision_that_is_not_positive_definite_gives_nan():
    eta = (jnp.zeros(2), jnp.diag(jnp.array([-0.5, 0.5])))
    assert np.isnan(families.MULTIVARIATE_GAUSSIAN.log_partition(eta))
