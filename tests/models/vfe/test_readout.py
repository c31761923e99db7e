"""Outputs by divergences: every family of covariances has the logits of dense Gaussians."""

import jax
import numpy as np
import pytest
from helpers import vfe_oracle as oracle

from vfejax.beliefs.gaussian import Gaussian
from vfejax.models.pure_fep import prior_bank_logits
from vfejax.models.vfe.covariances import COVARIANCES
from vfejax.models.vfe.energy import reader
from vfejax.models.vfe.inference import Rule
from vfejax.models.vfe.irreps import so3
from vfejax.models.vfe.readout import divergence_logits

LAYOUT, TEMPERATURE = so3((0, 1), heads=2, copies=2), 0.7


@pytest.mark.parametrize(
    "family",
    ["irrep", *(pytest.param(x, marks=pytest.mark.slow) for x in COVARIANCES if x != "irrep")],
)
def test_logits_of_a_bank_are_those_of_dense_gaussians(family, rng):
    """Of both models: the dense ones are those of Pure-FEP."""
    rule = Rule(LAYOUT, COVARIANCES[family], reader("entropic"))
    belief, others = (
        oracle.random_belief(rng, COVARIANCES[family], LAYOUT, n, frames=False) for n in (3, 5)
    )
    bank = jax.tree.map(lambda x: x[0], others)

    def dense(belief, head):
        found = oracle.dense(belief, family, LAYOUT, head)
        return Gaussian(found.mean, np.linalg.cholesky(found.cov))

    pairs = [(dense(belief, head), dense(others, head)) for head in range(LAYOUT.heads)]

    @jax.jit
    def logits(belief, bank, pairs):
        expected = sum(prior_bank_logits(*pair, TEMPERATURE) for pair in pairs)
        return divergence_logits(belief, bank, TEMPERATURE, rule)[0], expected

    found, expected = logits(belief, bank, pairs)
    np.testing.assert_allclose(found, expected, rtol=1e-10)  # products of rows cancel
