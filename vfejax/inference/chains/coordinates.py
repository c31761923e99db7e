"""Free coordinates of chains, in which parameters are learned by gradients.

Covariances are log Cholesky factors, probabilities logarithms; everything else is as it is. The log
evidence of a constrained model is a function of free numbers for any optimiser:
:func:`negative_log_evidence` is an energy as :func:`vfejax.dynamics.gradient_flow.gradient_flow`
takes it, with any optax transformation. What should stay as it is enters as a constant.
"""

import jax
import jax.numpy as jnp

from vfejax.beliefs import coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.inference._chain import Passes
from vfejax.inference._logarithms import safe_log
from vfejax.inference.chains.hidden_markov import HiddenMarkov
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_filter
from vfejax.inference.chains.parallel import PLATFORM
from vfejax.numerics import cholesky, matmul_nt
from vfejax.types import Array, PyTree

__all__ = [
    "constrain",
    "constrain_hidden_markov",
    "negative_log_evidence",
    "unconstrain",
    "unconstrain_hidden_markov",
]

_COVARIANCES = ("initial_cov", "transition_cov", "emission_cov")


def unconstrain(model: LinearGaussian) -> PyTree:
    """Free numbers of a model: each covariance as the log Cholesky factor of
    :mod:`vfejax.beliefs.coordinates`, everything else as it is.

    >>> one = jnp.eye(1)
    >>> unconstrain(LinearGaussian(jnp.zeros(1), one, one, one, one, one)).emission_cov.tolist()
    [[0.0]]
    """

    def free(cov: Array) -> Array:
        belief = Gaussian(jnp.zeros(cov.shape[:-1], cov.dtype), cholesky(cov))
        return coordinates.unconstrain(belief).factor

    return model._replace(**{name: free(getattr(model, name)) for name in _COVARIANCES})


def constrain(free: PyTree) -> LinearGaussian:
    """The model of these free numbers, inverse of :func:`unconstrain`.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> constrain(unconstrain(model)).emission_cov.tolist()
    [[1.0]]
    """

    def bound(factor: Array) -> Array:
        mean = jnp.zeros(factor.shape[:-1], factor.dtype)
        chol = coordinates.constrain(GaussianCoordinates(mean, factor)).chol
        return matmul_nt(chol, chol)

    return free._replace(**{name: bound(getattr(free, name)) for name in _COVARIANCES})


def negative_log_evidence(
    free: PyTree,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: Passes = PLATFORM,
) -> Array:
    """``-log p(observations)`` of the model of these free numbers, in nats: what a fit by gradients
    minimises. Arrays that change with time and control matrices are learned as any others.

    Args:
        free: from :func:`unconstrain`.
        observations, mask, controls, passes: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.

    >>> one = jnp.eye(1)
    >>> free = unconstrain(LinearGaussian(jnp.zeros(1), one, one, one, one, one))
    >>> slope = jax.jit(jax.grad(negative_log_evidence))(free, jnp.array([[1.0], [2.0]]))
    >>> round(float(slope.initial_mean[0]), 3)
    -0.8
    """
    model = constrain(free)
    return -kalman_filter(model, observations, mask, controls, passes=passes).log_evidence


def unconstrain_hidden_markov(model: HiddenMarkov) -> PyTree:
    """Free numbers of a hidden Markov model: the logarithms of its probabilities.

    >>> unconstrain_hidden_markov(HiddenMarkov(jnp.ones(1), jnp.eye(1))).initial.tolist()
    [0.0]
    """
    return jax.tree.map(safe_log, model)


def constrain_hidden_markov(free: PyTree) -> HiddenMarkov:
    """The model of these free numbers, by softmax over the columns.

    >>> model = HiddenMarkov(jnp.ones(1), jnp.eye(1))
    >>> constrain_hidden_markov(unconstrain_hidden_markov(model)).transition.tolist()
    [[1.0]]
    """
    emission = None if free.emission is None else jax.nn.softmax(free.emission, axis=-2)
    return HiddenMarkov(
        jax.nn.softmax(free.initial), jax.nn.softmax(free.transition, axis=-2), emission
    )
