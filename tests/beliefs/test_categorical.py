import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.beliefs import categorical


def test_entropy_and_divergence_are_sums_over_possible_states():
    q, p = np.array([0.7, 0.3, 0.0]), np.array([0.5, 0.25, 0.25])
    expected = 0.7 * np.log(0.7 / 0.5) + 0.3 * np.log(0.3 / 0.25)
    actual = categorical.kl_divergence(jnp.asarray(q), jnp.asarray(p))
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    expected = -0.7 * np.log(0.7) - 0.3 * np.log(0.3)
    np.testing.assert_allclose(categorical.entropy(jnp.asarray(q)), expected, rtol=1e-14)


def test_an_impossible_state_costs_infinity():
    assert categorical.kl_divergence(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])) == jnp.inf


@pytest.mark.parametrize("other", [-0.5, np.nan])
def test_what_is_no_probability_is_nan_also_beside_a_zero(other):
    q, p = jnp.array([0.0, 1.0]), jnp.array([other, 1.0])
    assert np.isnan(categorical.xlogy(q, p)[0])
    assert np.isnan(categorical.kl_divergence(q, p))


def test_gradients_are_finite_at_zero():
    gradient = jax.grad(categorical.entropy)(jnp.array([1.0, 0.0]))
    assert gradient.tolist() == [-1.0, 0.0]
    assert float(jax.grad(categorical.safe_log)(0.0)) == 0.0


def test_safe_log_keeps_nan_and_negative_numbers_visible(dtype):
    tiny = jnp.finfo(dtype).tiny
    actual = categorical.safe_log(jnp.array([0.0, tiny, 1.0, -1.0, jnp.nan], dtype))
    np.testing.assert_allclose(actual[:3], [np.log(tiny), np.log(tiny), 0.0], rtol=1e-6)
    assert np.isnan(actual[3:]).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        categorical.kl_divergence(jnp.ones(2), jnp.ones(3))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0.5, 0.5], [1.5, -0.5]], r"A\[1, 1\] must be a probability, got -0.5"),
        ([[0.5, 0.5], [np.nan, 0.5]], r"A\[1, 0\] must be a probability"),
        ([[0.5, 0.5], [0.5, 0.25]], r"A must sum to 1 over axis -1, got 0.75 at \[1\]"),
    ],
)
def test_check_names_the_entry(value, message):
    with pytest.raises(ValueError, match=message):
        categorical.check_probabilities(jnp.array(value), "A")
