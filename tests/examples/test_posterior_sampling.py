"""The log density that the example samples, by hand and by finite differences, and its samples."""

import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "examples" / "posterior_sampling.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_posterior", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lower_of(rows):
    """Factors and coordinates by hand: ``L = stricttril(W) + diag(exp(diag W))``."""
    factor = np.zeros((len(rows), 3, 3))
    factor[:, [0, 1, 1, 2, 2, 2], [0, 0, 1, 0, 1, 2]] = rows[:, 3:]
    chol = factor.copy()
    index = np.arange(3)
    chol[:, index, index] = np.exp(factor[:, index, index])
    return chol


def log_normalised(position, mean, cov):
    """The normalised density of one agent's coordinates without alignment, by hand: mu is normal,
    and ``B = C L`` has normal numbers below a diagonal of chi variables, two degrees of freedom.
    """
    mu, chol = position[:3], lower_of(position[None])[0]
    away = np.linalg.solve(np.linalg.cholesky(cov), mu - mean)
    total = -0.5 * away @ away - 0.5 * np.linalg.slogdet(2 * np.pi * cov)[1]
    precision = np.linalg.inv(cov)
    c = np.linalg.cholesky(precision[::-1, ::-1])[::-1, ::-1].T
    b = c @ chol
    below, diagonal = b[np.tril_indices(3, -1)], np.diag(b)
    total += np.sum(-0.5 * below**2 - 0.5 * np.log(2 * np.pi))
    total += np.sum(np.log(diagonal) - 0.5 * diagonal**2)

    # |dB / dW| by central differences of the lower triangles.
    def lower(w):
        moved = c @ lower_of(np.concatenate([mu, w])[None])[0]
        return moved[np.tril_indices(3)]

    step, w = 1e-6, position[3:]
    columns = [(lower(w + step * e) - lower(w - step * e)) / (2 * step) for e in np.eye(6)]
    return total + np.linalg.slogdet(np.stack(columns, axis=-1))[1]


def test_log_density_is_the_normalised_one_up_to_a_constant(example):
    """So its normalisation is known and finite, and its Jacobian is right."""
    given = example.problem()
    posterior = jax.jit(example.observation.posterior)(given.prior, given.observations)
    mean, chol = map(np.asarray, posterior)
    cov = chol @ np.swapaxes(chol, -1, -2)
    positions = 0.4 * np.random.default_rng(0).normal(size=(6, 18))
    found = np.asarray(jax.jit(jax.vmap(example.log_density(given, 0.0)))(positions))
    expected = [
        sum(log_normalised(row, m, s) for row, m, s in zip(p.reshape(2, 9), mean, cov, strict=True))
        for p in positions
    ]
    constant = found - expected
    # Differences with a step of 1e-6 leave 1e-9 of each Jacobian.
    np.testing.assert_allclose(constant, constant[0], rtol=0, atol=1e-7)
    assert np.ptp(found) > 1.0


def test_vector_and_coordinates_are_inverse_to_each_other(example):
    position = np.arange(18.0)
    belief = example.beliefs(position)
    np.testing.assert_array_equal(example.vector(belief), position)
    np.testing.assert_array_equal(np.triu(belief.factor, 1), 0.0)


def test_without_blackjax_it_says_how_to_install_it(example, monkeypatch):
    monkeypatch.setitem(sys.modules, "blackjax", None)
    with pytest.raises(SystemExit, match=r"vfejax\[sampling\]"):
        example.sample(lambda x: 0.0, np.zeros(1), 1, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("library_promotion")
def test_samples_have_the_variational_mean_and_covariance(example, capsys):
    pytest.importorskip("blackjax")
    rows = example.main(num_warmup=500, num_samples=4000)
    mean, covariance, spread, belief = rows[0.0]
    cov = np.asarray(belief.chol) @ np.swapaxes(belief.chol, -1, -2)
    deviation = np.sqrt(np.diagonal(cov, axis1=-2, axis2=-1))
    # Some 1000 effective draws: 3 % of a standard deviation, 4.5 % of a variance; four of each.
    assert np.max(np.abs(mean - belief.mean) / deviation) < 0.12
    np.testing.assert_allclose(covariance, cov, rtol=0, atol=0.18 * cov.max())
    exact = example.expected_covariance(belief)
    np.testing.assert_allclose(spread, exact, rtol=0, atol=0.1 * exact.max())
    # Aligned, the two posteriors know more, and their means move towards each other.
    aligned = rows[1.0]
    deviation = np.sqrt(np.diagonal(aligned[1], axis1=-2, axis2=-1))
    assert np.max(np.abs(aligned[0] - aligned[3].mean) / deviation) < 0.5
    assert "off the closed form" in capsys.readouterr().out
