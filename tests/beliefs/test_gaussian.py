import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfejax.beliefs import gaussian
from vfejax.beliefs.gaussian import Gaussian

single_is_slow = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(np.dtype("float32"), id="float32", marks=pytest.mark.slow),
        pytest.param(np.dtype("float64"), id="float64"),
    ],
)

K = 3
UPPER = np.triu_indices(K, 1)

kl_divergence = jax.jit(gaussian.kl_divergence)
push_forward = jax.jit(gaussian.push_forward)
covariance = jax.jit(gaussian.covariance)
entropy = jax.jit(gaussian.entropy)
fisher_information = jax.jit(gaussian.fisher_information)
natural_parameters = jax.jit(gaussian.natural_parameters)
from_natural = jax.jit(gaussian.from_natural)
from_moments = jax.jit(gaussian.from_moments)
sample = jax.jit(gaussian.sample, static_argnames="shape")


def draw(rng, shape=(6,), dtype=np.float64, k=K):
    """Gaussians with covariance eigenvalues between 1/2 and about 6: condition number about 10."""
    a = rng.normal(size=(*shape, k, k))
    chol = np.linalg.cholesky(a @ np.swapaxes(a, -1, -2) / k + 0.5 * np.eye(k))
    return Gaussian(*(jnp.asarray(x.astype(dtype)) for x in (rng.normal(size=(*shape, k)), chol)))


def moments(q):
    """Mean and covariance in NumPy float64."""
    chol = np.tril(np.asarray(q.chol, np.float64))
    return np.asarray(q.mean, np.float64), chol @ np.swapaxes(chol, -1, -2)


def textbook_kl(q, p):
    """``1/2 (tr P_p S_q + d P_p d - k + log |S_p| / |S_q|)`` with a dense inverse."""
    (mu_q, cov_q), (mu_p, cov_p) = moments(q), moments(p)
    inverse = np.linalg.inv(cov_p)
    step = mu_q - mu_p
    trace = np.einsum("...ij,...ji->...", inverse, cov_q) + np.einsum(
        "...i,...ij,...j->...", step, inverse, step
    )
    return 0.5 * (
        trace - q.mean.shape[-1] + np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov_q)[1]
    )


def tolerance(dtype):
    # a handful of k x k products and solves at condition number 10
    return 200 * jnp.finfo(dtype).eps


def test_kl_is_the_textbook_formula(dtype, rng):
    q, p = draw(rng, dtype=dtype), draw(rng, dtype=dtype)
    actual = kl_divergence(q, p)
    chex.assert_type(actual, dtype)
    np.testing.assert_allclose(
        actual, textbook_kl(q, p), rtol=tolerance(dtype), atol=tolerance(dtype)
    )


def test_kl_in_one_dimension():
    mu_q, mu_p, s_q, s_p = np.array([[0.0, 1.0], [0.5, -1.0], [1.0, 0.2], [2.0, 3.0]])
    q = Gaussian(mu_q[:, None], s_q[:, None, None])
    p = Gaussian(mu_p[:, None], s_p[:, None, None])
    expected = np.log(s_p / s_q) + (s_q**2 + (mu_q - mu_p) ** 2) / (2 * s_p**2) - 0.5
    np.testing.assert_allclose(kl_divergence(q, p), expected, rtol=0, atol=tolerance(np.float64))


def test_kl_vanishes_only_at_equality(dtype, rng):
    q = draw(rng, dtype=dtype)
    np.testing.assert_allclose(kl_divergence(q, q), 0, rtol=0, atol=tolerance(dtype))
    assert np.all(np.asarray(kl_divergence(q, q._replace(mean=q.mean + 0.1))) > 1e-4)
    assert np.all(np.asarray(kl_divergence(q, q._replace(chol=q.chol * 1.1))) > 1e-4)


NUMBER = st.floats(-3, 3)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(NUMBER, min_size=18, max_size=18))
def test_kl_is_never_negative(numbers):
    mean, diagonal, below = np.reshape(numbers, (3, 2, K))
    chol = np.exp(diagonal)[..., None] * np.eye(K)
    chol[:, *np.tril_indices(K, -1)] = below
    q, p = Gaussian(mean[0], chol[0]), Gaussian(mean[1], chol[1])
    value = float(kl_divergence(q, p))
    # factors with entries from exp(-3) to exp(3) have a condition number below 1e6; its square
    # meets rounding in the trace
    assert value >= -1e-10
    assert value == pytest.approx(float(textbook_kl(q, p)), rel=1e-6, abs=1e-6)


def test_kl_is_not_clamped_at_consensus(rng):
    p = draw(rng, ())

    def near(mean):
        return gaussian.kl_divergence(p._replace(mean=mean), p)

    curvature = jax.jit(jax.hessian(near))(p.mean)
    np.testing.assert_allclose(curvature, np.linalg.inv(moments(p)[1]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_kl_is_invariant_under_a_common_transport(seed, dtype):
    rng = np.random.default_rng(seed)
    q, p = draw(rng, dtype=dtype), draw(rng, dtype=dtype)
    # singular values between 1/2 and 2, and a reflection among them: the transport need not be a
    # rotation
    u, _, v = np.linalg.svd(rng.normal(size=(6, K, K)))
    operator = jnp.asarray(u * np.array([0.5, 1.0, 2.0]) @ v, dtype)
    moved = kl_divergence(push_forward(q, operator), push_forward(p, operator))
    # the transport multiplies the condition number by up to 16
    bound = 16 * tolerance(dtype)
    np.testing.assert_allclose(moved, kl_divergence(q, p), rtol=bound, atol=bound)


def test_kl_of_a_batch_is_that_of_its_members(rng):
    q, p = draw(rng, (2, 3)), draw(rng, (2, 3))
    batched = kl_divergence(q, p)
    chex.assert_shape(batched, (2, 3))
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.vmap(gaussian.kl_divergence)))(q, p), batched, rtol=1e-13
    )


def _shapes(mean, chol):
    return Gaussian(np.zeros(mean), np.zeros(chol))


@pytest.mark.parametrize(
    ("q", "p", "message"),
    [
        (_shapes((3,), (2, 2)), _shapes((3,), (3, 3)), "^q: mean .* got \\(3,\\) and \\(2, 2\\)"),
        (_shapes((3,), (3, 3)), _shapes((3,), (3,)), "^p: mean .* got \\(3,\\) and \\(3,\\)"),
        (_shapes((), (3, 3)), _shapes((3,), (3, 3)), "^q: mean .* got \\(\\) and"),
        (
            _shapes((5, 3), (4, 3, 3)),
            _shapes((5, 3), (5, 3, 3)),
            "^q: mean .* got \\(5, 3\\) and \\(4, 3, 3\\)",
        ),
        (_shapes((3,), (3, 3)), _shapes((2,), (2, 2)), "^q and p .* \\(3,\\) and \\(2,\\)"),
        (
            _shapes((5, 3), (5, 3, 3)),
            _shapes((4, 3), (4, 3, 3)),
            "^q and p .* \\(5, 3\\) and \\(4, 3\\)",
        ),
        (
            _shapes((5, 3), (3, 3)),
            _shapes((5, 3), (5, 3, 3)),
            "^q: mean .* got \\(5, 3\\) and \\(3, 3\\)",
        ),
    ],
)
def test_kl_names_the_argument_whose_shape_does_not_fit(q, p, message):
    with pytest.raises(ValueError, match=message):
        gaussian.kl_divergence(q, p)


@single_is_slow
def test_moments_and_natural_parameters_round_trip(dtype, rng):
    q = draw(rng, dtype=dtype)
    mean, cov = moments(q)
    back = from_moments(q.mean, covariance(q))
    np.testing.assert_array_equal(back.mean, q.mean)
    np.testing.assert_allclose(back.chol, q.chol, rtol=0, atol=tolerance(dtype))

    information, precision = natural_parameters(q)
    np.testing.assert_allclose(covariance(q), cov, rtol=0, atol=tolerance(dtype))
    np.testing.assert_allclose(precision, np.linalg.inv(cov), rtol=0, atol=tolerance(dtype))
    np.testing.assert_allclose(
        information,
        np.linalg.solve(cov, mean[..., None])[..., 0],
        rtol=0,
        atol=5 * tolerance(dtype),
    )
    back = from_natural(information, precision)
    # two inversions and two factorisations
    chex.assert_trees_all_close(back, q, rtol=0, atol=10 * tolerance(dtype))


def test_natural_parameters_add_under_the_product_of_densities(rng):
    q, p = draw(rng), draw(rng)
    added = [
        np.asarray(a) + np.asarray(b)
        for a, b in zip(natural_parameters(q), natural_parameters(p), strict=True)
    ]
    product = from_natural(*added)
    (mu_q, cov_q), (mu_p, cov_p) = moments(q), moments(p)
    # Kalman's update of q by a direct observation mu_p with noise cov_p
    gain = cov_q @ np.linalg.inv(cov_q + cov_p)
    updated = mu_q + np.einsum("nij,nj->ni", gain, mu_p - mu_q)
    expected = updated, cov_q - gain @ cov_q
    chex.assert_trees_all_close(moments(product), expected, rtol=0, atol=1e-13)


def test_from_moments_repairs_nothing():
    cov = np.stack([np.eye(K), np.diag([1.0, -1.0, 1.0]), np.diag([1.0, 1.0, 0.0])] * 2)
    chol = np.asarray(from_moments(np.zeros((6, K)), cov).chol)
    np.testing.assert_array_equal(np.isnan(chol).any(axis=(-1, -2)), [False, True, True] * 2)


@single_is_slow
def test_entropy_and_expected_log_density(dtype, rng):
    q, p = draw(rng, dtype=dtype), draw(rng, dtype=dtype)
    (mu_q, cov_q), (mu_p, cov_p) = moments(q), moments(p)
    expected = 0.5 * (K * math.log(2 * math.pi * math.e) + np.linalg.slogdet(cov_q)[1])
    np.testing.assert_allclose(entropy(q), expected, rtol=0, atol=tolerance(dtype))
    inverse, step = np.linalg.inv(cov_p), mu_q - mu_p
    second_moment = cov_q + step[..., :, None] * step[..., None, :]
    expected = -0.5 * (
        K * math.log(2 * math.pi)
        + np.linalg.slogdet(cov_p)[1]
        + np.einsum("nij,nji->n", inverse, second_moment)
    )
    actual = jax.jit(gaussian.expected_log_density)(q, p)
    np.testing.assert_allclose(actual, expected, rtol=tolerance(dtype), atol=tolerance(dtype))


def test_push_forward_is_the_image_under_a_linear_map(dtype, rng):
    q = draw(rng, dtype=dtype)
    operator = jnp.asarray(np.eye(K) + 0.3 * rng.normal(size=(6, K, K)), dtype)
    image = push_forward(q, operator)
    mean, cov = moments(q)
    omega = np.asarray(operator, np.float64)
    np.testing.assert_allclose(
        image.mean, np.einsum("nij,nj->ni", omega, mean), rtol=0, atol=tolerance(dtype)
    )
    np.testing.assert_allclose(
        moments(image)[1],
        omega @ cov @ np.swapaxes(omega, -1, -2),
        rtol=0,
        atol=2 * tolerance(dtype),
    )
    chol = np.asarray(image.chol)
    assert np.all(chol[:, *UPPER] == 0)
    assert np.all(np.diagonal(chol, axis1=-2, axis2=-1) > 0)
    growth = np.linalg.slogdet(omega)[1]
    np.testing.assert_allclose(
        entropy(image), np.asarray(entropy(q)) + growth, rtol=0, atol=2 * tolerance(dtype)
    )


@single_is_slow
def test_sample_has_the_moments_of_the_gaussian(dtype, rng):
    q = draw(rng, (2,), dtype)
    x = sample(jax.random.key(0), q, shape=(64, 64))
    chex.assert_shape(x, (64, 64, 2, K))
    chex.assert_type(x, dtype)
    mean, cov = moments(q)
    x, num = np.asarray(x, np.float64).reshape(-1, 2, K), 64 * 64
    variance = np.diagonal(cov, axis1=-2, axis2=-1)
    # five standard errors for each of 24 numbers: one false alarm in 70,000 seeds
    assert np.all(np.abs(x.mean(0) - mean) < 5 * np.sqrt(variance / num))
    spread = np.sqrt((variance[:, :, None] * variance[:, None, :] + cov**2) / num)
    centred = x - mean
    assert np.all(np.abs(np.einsum("snk,snl->nkl", centred, centred) / num - cov) < 5 * spread)
    # the two Gaussians are drawn independently
    whitened = np.linalg.solve(np.asarray(q.chol, np.float64), centred[..., None])[..., 0]
    assert np.all(np.abs(whitened[:, 0].T @ whitened[:, 1] / num) < 5 / np.sqrt(num))


def test_sample_depends_on_the_key_alone(rng):
    q = draw(rng, (2,))
    draws = sample(jax.random.key(1), q, shape=(64, 64))
    np.testing.assert_array_equal(draws, sample(jax.random.key(1), q, shape=(64, 64)))
    assert np.all(np.asarray(draws) != np.asarray(sample(jax.random.key(2), q, shape=(64, 64))))
    chex.assert_shape(jax.eval_shape(gaussian.sample, jax.random.key(1), q), (2, K))


def test_fisher_information_is_the_hessian_of_kl(rng):
    q = draw(rng, ())
    mean, cov = moments(q)
    fisher = fisher_information(q)
    rows, columns = np.tril_indices(K)
    # basis of the symmetric matrices, one element per entry of the lower triangle
    basis = np.zeros((rows.size, K, K))
    basis[np.arange(rows.size), rows, columns] = basis[np.arange(rows.size), columns, rows] = 1

    def divergence(step):
        moved = cov + jnp.tensordot(step[K:], jnp.asarray(basis), 1)
        return gaussian.kl_divergence(q, gaussian.from_moments(mean + step[:K], moved))

    hessian = np.asarray(jax.jit(jax.hessian(divergence))(jnp.zeros(K + rows.size)))
    np.testing.assert_allclose(hessian[:K, :K], fisher.mean, rtol=0, atol=1e-13)
    np.testing.assert_allclose(hessian[:K, K:], 0, rtol=0, atol=1e-13)
    form = np.einsum("aij,ijkl,bkl->ab", basis, fisher.cov, basis)
    np.testing.assert_allclose(hessian[K:, K:], form, rtol=0, atol=1e-12)


@single_is_slow
def test_fisher_information_of_a_standard_deviation(dtype):
    s = np.array([0.5, 1.0, 3.0])
    q = Gaussian(jnp.zeros((3, 1), dtype), jnp.asarray(s[:, None, None], dtype))
    fisher = fisher_information(q)
    chex.assert_shape(fisher.cov, (3, 1, 1, 1, 1))
    np.testing.assert_allclose(fisher.mean[:, 0, 0], s**-2, rtol=tolerance(dtype))
    np.testing.assert_allclose(
        fisher.cov[:, 0, 0, 0, 0] * (2 * s.astype(dtype)) ** 2, 2 / s**2, rtol=tolerance(dtype)
    )


def test_fisher_information_has_the_symmetries_of_a_quadratic_form(rng):
    cov = np.asarray(fisher_information(draw(rng)).cov)
    for axes in ((0, 2, 1, 3, 4), (0, 1, 2, 4, 3), (0, 3, 4, 1, 2)):
        np.testing.assert_allclose(cov, np.transpose(cov, axes), rtol=0, atol=1e-15)


FUNCTIONS_OF_ONE = {
    "kl, first argument": lambda q, p: gaussian.kl_divergence(q, p),
    "kl, second argument": lambda q, p: gaussian.kl_divergence(p, q),
    "entropy": lambda q, p: gaussian.entropy(q),
    "expected log density": lambda q, p: gaussian.expected_log_density(q, p),
    "covariance": lambda q, p: gaussian.covariance(q),
    "natural parameters": lambda q, p: gaussian.natural_parameters(q),
    "push forward": lambda q, p: gaussian.push_forward(q, p.chol),
    "sample": lambda q, p: gaussian.sample(jax.random.key(0), q),
    "fisher information": lambda q, p: gaussian.fisher_information(q),
}


def test_the_upper_triangle_is_ignored_and_has_no_gradient(rng):
    q, p = draw(rng, (2,)), draw(rng, (2,))

    @jax.jit
    def values_and_gradients(chol):
        def total(chol, function):
            leaves = jax.tree.leaves(function(q._replace(chol=chol), p))
            return sum(jnp.sum(leaf) for leaf in leaves)

        return {name: jax.value_and_grad(total)(chol, f) for name, f in FUNCTIONS_OF_ONE.items()}

    poisoned = np.array(q.chol)
    poisoned[:, *UPPER] = np.nan
    clean = values_and_gradients(q.chol)
    chex.assert_tree_all_finite(clean)
    chex.assert_trees_all_equal(values_and_gradients(poisoned), clean)
    for name, (_, gradient) in clean.items():
        assert np.all(np.asarray(gradient)[:, *UPPER] == 0), name
        assert np.any(np.asarray(gradient) != 0), name


@pytest.mark.parametrize("small", [1e-2, 1e-4, 1e-6])
def test_push_forward_keeps_the_digits_of_small_variances(small, dtype, rng):
    """A turn leaves the determinant, however thin the belief."""
    turns = np.linalg.qr(rng.normal(size=(6, 3, 3)))[0].astype(dtype)
    thin = np.broadcast_to(np.diag([1.0, 1.0, small]).astype(dtype), turns.shape)
    turned = push_forward(Gaussian(np.zeros((6, 3), dtype), thin), turns)
    diagonal = np.diagonal(turned.chol, axis1=-2, axis2=-1).astype(float)
    # The rounding of the operator itself moves the small direction by eps / small.
    tolerance = 20 * float(jnp.finfo(dtype).eps) * max(1.0, 0.05 / small)
    np.testing.assert_allclose(
        np.log(diagonal).sum(-1),
        np.log(small),
        rtol=0,
        atol=max(tolerance, 1e-5 * (dtype == jnp.float32)),
    )


def test_push_forward_to_fewer_dimensions():
    q = Gaussian(np.zeros(3), np.eye(3))
    seen = jax.eval_shape(gaussian.push_forward, q, np.zeros((2, 3)))
    chex.assert_shape([seen.mean, seen.chol], [(2,), (2, 2)])
    with pytest.raises(ValueError, match=r"operator must be \[..., l, 3\]"):
        gaussian.push_forward(q, np.eye(2))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_from_natural_is_as_good_as_its_precision(scale, rng):
    """In float32 the factor has the digits that the precision's condition number leaves: forming
    and factoring the covariance would ask for its square.
    """
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    factor = turn @ np.diag([1.0, 1.0, scale])
    matrix = np.asarray(np.linalg.inv(factor @ factor.T), np.float32)
    q = from_natural(np.ones(3, np.float32), matrix)
    exact = np.linalg.cholesky(np.linalg.inv(matrix.astype(float)))
    assert np.all(np.diagonal(q.chol) > 0)
    error = np.abs(np.linalg.solve(exact, np.asarray(q.chol, float)) - np.eye(3)).max()
    assert error <= 10 * np.finfo(np.float32).eps / scale**2


def test_integers_are_numbers():
    integers = Gaussian(np.array([1, 2]), np.array([[2, 0], [1, 3]]))
    standard = Gaussian(np.zeros(2), np.eye(2))

    def results(q):
        return {
            "both moments": gaussian.from_moments(q.mean, gaussian.covariance(q)),
            "mean": gaussian.from_moments(q.mean, np.array([[4, 2], [2, 10]])),
            "covariance": gaussian.covariance(q),
            "precision": gaussian.precision(q),
            "natural parameters": gaussian.natural_parameters(q),
            "entropy": gaussian.entropy(q),
            "first argument": gaussian.kl_divergence(q, standard),
            "second argument": gaussian.kl_divergence(standard, q),
            "push forward": gaussian.push_forward(q, np.array([[1, 0], [1, 1]])),
            "sample": gaussian.sample(jax.random.key(0), q, (2,)),
            "fisher information": gaussian.fisher_information(q),
        }

    floating = jax.tree.map(lambda x: x.astype(float), integers)
    found, expected = jax.jit(lambda *both: [results(q) for q in both])(integers, floating)
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_equal(found, expected)
    # The divergence from the standard normal, by hand.
    by_hand = 0.5 * (2**2 + 1**2 + 3**2 + 1**2 + 2**2 - 2) - np.log(6)
    np.testing.assert_allclose(found["first argument"], by_hand, rtol=1e-14)


def test_precisions_mix_to_the_wider_one():
    q = Gaussian(np.zeros(2, np.float32), np.eye(2, dtype=np.float32))
    p = Gaussian(np.ones(2), np.eye(2))
    found = kl_divergence(q, p)
    chex.assert_type(found, jnp.float64)
    np.testing.assert_allclose(found, 1.0, rtol=1e-15)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: gaussian.from_moments(np.zeros(1), np.eye(1, dtype=complex)), "cov"),
        (lambda: gaussian.from_moments(np.zeros(1, complex), np.eye(1)), "mean"),
        (
            lambda: gaussian.from_natural(np.zeros(1), np.eye(1, dtype=complex)),
            "precision_matrix",
        ),
        (
            lambda: gaussian.kl_divergence(
                Gaussian(np.zeros(1), np.eye(1)),
                Gaussian(np.zeros(1), np.eye(1, dtype=complex)),
            ),
            "p.chol",
        ),
    ],
)
def test_complex_arguments_are_refused_by_name(function, name):
    with pytest.raises(ValueError, match=f"^{name} must be real, got complex"):
        function()


def test_nan_stays_with_its_member(rng):
    q = Gaussian(rng.normal(size=(3, 2)), np.stack([np.eye(2)] * 3))
    bad = Gaussian(q.mean.copy(), q.chol.copy())
    bad.mean[1], bad.chol[1] = np.nan, np.nan
    both = jax.jit(lambda x: (gaussian.kl_divergence(x, q), gaussian.entropy(x)))
    for found, expected in zip(both(bad), both(q), strict=True):
        assert np.isnan(found[1])
        chex.assert_trees_all_equal(found[::2], expected[::2])
