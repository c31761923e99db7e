"""The evidence lower bound in its three forms, for any log joint density and any belief.

    ELBO = E_q log p(x, z) + H(q)                    minus energy, plus entropy
         = E_q log p(x | z) - KL(q || p(z))          accuracy minus complexity
         = log p(x) - KL(q || p(z | x))              evidence minus divergence

The free energy is ``F = -ELBO``. An expectation is an argument: a closed form, Gauss-Hermite
quadrature or samples (:mod:`vfejax.inference.expectations`). The forms agree up to the error of the
expectations; the last needs none, but the exact posterior.

Source: Jordan, Ghahramani, Jaakkola and Saul, Machine Learning 37 (1999) 183.
"""

from collections.abc import Callable
from typing import NamedTuple

from vfejax.inference.expectations import Expectation
from vfejax.types import Array

__all__ = [
    "AccuracyComplexity",
    "EnergyEntropy",
    "EvidenceDivergence",
    "accuracy_minus_complexity",
    "entropy_minus_energy",
    "evidence_minus_divergence",
]


class EnergyEntropy(NamedTuple):
    """``elbo = entropy - energy``, with ``energy = -E_q log p(x, z)``; scalars in nats."""

    elbo: Array
    energy: Array
    entropy: Array


class AccuracyComplexity(NamedTuple):
    """``elbo = accuracy - complexity``; scalars in nats."""

    elbo: Array
    accuracy: Array
    complexity: Array


class EvidenceDivergence(NamedTuple):
    """``elbo = log_evidence - divergence``; scalars in nats."""

    elbo: Array
    log_evidence: Array
    divergence: Array


def entropy_minus_energy(
    log_joint_fn: Callable[[Array], Array], expect: Expectation, entropy: Array
) -> EnergyEntropy:
    """``H(q) + E_q log p(x, z)``.

    Args:
        log_joint_fn: ``log_joint_fn(z) -> log p(x, z)``, the data being fixed.
        expect: expectation under q.
        entropy: of q; where it has no closed form, ``expect(lambda z: -log_q(z))``.

    >>> import jax.numpy as jnp
    >>> from vfejax.beliefs.gaussian import Gaussian, entropy
    >>> from vfejax.inference.expectations import gauss_hermite
    >>> q = Gaussian(jnp.zeros(1), jnp.eye(1))
    >>> bound = entropy_minus_energy(lambda z: -0.5 * z[0] ** 2, gauss_hermite(q, 2), entropy(q))
    >>> round(float(bound.elbo), 4)  # log of the integral, sqrt(2 pi)
    0.9189
    """
    energy = -expect(log_joint_fn)
    return EnergyEntropy(entropy - energy, energy, entropy)


def accuracy_minus_complexity(
    log_likelihood_fn: Callable[[Array], Array], expect: Expectation, complexity: Array
) -> AccuracyComplexity:
    """``E_q log p(x | z) - KL(q || p(z))``.

    Args:
        log_likelihood_fn: ``log_likelihood_fn(z) -> log p(x | z)``, the data being fixed.
        expect: expectation under q.
        complexity: ``KL(q || p(z))``, of q from the prior.

    >>> import jax.numpy as jnp
    >>> bound = accuracy_minus_complexity(lambda z: -z, lambda f: f(jnp.array(2.0)), jnp.array(1.0))
    >>> float(bound.elbo)
    -3.0
    """
    accuracy = expect(log_likelihood_fn)
    return AccuracyComplexity(accuracy - complexity, accuracy, complexity)


def evidence_minus_divergence(log_evidence: Array, divergence: Array) -> EvidenceDivergence:
    """``log p(x) - KL(q || p(z | x))``.

    >>> import jax.numpy as jnp
    >>> float(evidence_minus_divergence(jnp.array(-1.0), jnp.array(0.5)).elbo)
    -1.5
    """
    return EvidenceDivergence(log_evidence - divergence, log_evidence, divergence)
