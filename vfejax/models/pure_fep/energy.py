"""The free energy of a layer, term by term.

    F_i = alpha KL(q_i || p_i)                                    self coupling
        + sum_h lambda_h sum_j beta_ij KL(q_i || Omega_ij q_j)    alignment of beliefs, j < i
        + lambda_g sum_j gamma_ij KL(p_i || Omega_ij p_j)         alignment of priors, j < i
        + w sum_d decay^d KL(p_i || h_i^d)                        ancestors in the tower
        + E_q[-log p(y_i | z)]                                    observation, in learning only

Everything stands in the common frame (:mod:`vfejax.models.pure_fep.frames`), where transports are
gone. An agent descends the F_i that it pays, with senders held at the beliefs with which the layer
begins, their priors: so a belief knows of earlier tokens only.

Alignments are the entropic ones, ``-tau log sum_j w_ij exp(-KL_ij / tau) = sum beta KL + tau
KL(beta || w)``. The weights w are a softmax of *links*, learned numbers of each head and distance:
before it compares beliefs, a head may prefer the last token, or the one before it.

Long sequences are read by blocks of receivers (:func:`by_receivers`). Of all pairs only the
attention is kept, where somebody asks for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents import alignment
from vfejax.models.pure_fep.gaussians import IrrepGaussian, Irreps, kl_divergence, pairwise_kl
from vfejax.types import Array

__all__ = [
    "EnergyTerms",
    "alignment_energy",
    "attention",
    "by_receivers",
    "hyperprior_energy",
    "link_weights",
    "pooled_prior",
]


BLOCK = 128
"""Receivers of a block; sequences of up to twice as many are read in one piece."""


class EnergyTerms(NamedTuple):
    """Weighted terms of the free energy, in nats; each a scalar or one number per token."""

    self_coupling: Array
    belief_alignment: Array
    prior_alignment: Array
    hyperprior: Array
    observation: Array

    @property
    def total(self) -> Array:
        """Their sum."""
        return sum(self[1:], self[0])


def link_weights(links: Array, lags: Array) -> Array:
    """Logarithms of what each head makes of distances, before normalisation.

    Args:
        links: ``[h, length]``, for distances 1, 2, ...
        lags: distance of every sender from every receiver, integers ``[n, m]``; below 1 for what
            is not read.

    Returns:
        ``[1, h, n, m]``, ``-inf`` where nothing is read.

    >>> link_weights(jnp.zeros((1, 2)), jnp.asarray([[0, -1], [1, 0]])).tolist()
    [[[[-inf, -inf], [0.0, -inf]]]]
    """
    chosen = links[:, jnp.clip(lags - 1, 0, links.shape[-1] - 1)]
    return jnp.where((lags >= 1)[None], chosen, -jnp.inf)[None]


def by_receivers(
    fn: Callable[[IrrepGaussian, Array], Any], receivers: IrrepGaussian, lags: Array
) -> Any:
    """``fn(receivers, lags)``, by blocks of receivers where there are many of them. Each block is
    made again in the backward pass.

    Args:
        fn: returns arrays ``[b, n, ...]``; no receiver depends on another.
        receivers: means ``[b, n, h, c]``.
        lags: distance of every sender from every receiver, ``[n, m]``.

    >>> q = IrrepGaussian(jnp.ones((2, 300, 1, 3)), jnp.ones((2, 300, 1, 1)))
    >>> far = jnp.ones((300, 4))
    >>> by_receivers(lambda q, lags: q.mean[..., 0] * lags[None, :, :1], q, far).shape
    (2, 300, 1)
    """
    count = lags.shape[0]
    if count <= 2 * BLOCK:
        return fn(receivers, lags)
    num = -(-count // BLOCK)
    spare = num * BLOCK - count

    def apart(x: Array) -> Array:
        # Receivers behind the last one are like it.
        padded = jnp.pad(x, ((0, 0), (0, spare), *((0, 0),) * (x.ndim - 2)), mode="edge")
        return jnp.moveaxis(padded.reshape(x.shape[0], num, BLOCK, *x.shape[2:]), 1, 0)

    blocks = jax.tree.map(apart, receivers), apart(lags[None])[:, 0]
    found = jax.lax.map(lambda block: jax.checkpoint(fn, prevent_cse=False)(*block), blocks)
    return jax.tree.map(
        lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :count], found
    )


def _compared(
    receivers: IrrepGaussian,
    senders: IrrepGaussian,
    log_weight: Array,
    kind: Irreps,
    temperature: float | Array,
) -> tuple[Array, Array]:
    """Divergences in units of the temperature, 0 where nothing is read, ``[b, h, n, m]``, and log
    weights ``[1, h, n, m]``.
    """
    divergence = pairwise_kl(receivers, senders, kind) / temperature
    return jnp.where(log_weight == -jnp.inf, 0.0, divergence), log_weight


def alignment_energy(
    receivers: IrrepGaussian,
    senders: IrrepGaussian,
    log_weight: Array,
    kind: Irreps,
    temperature: float | Array,
) -> Array:
    """What every head of every receiver pays for its disagreement with earlier tokens.

    Args:
        receivers: means ``[b, n, h, c]`` in the common frame.
        senders: means ``[b, m, h, c]`` in the common frame.
        log_weight: see :func:`link_weights`, ``[1, h, n, m]``.
        kind: the irreps of a head.
        temperature: tau in nats.

    Returns:
        ``[b, h, n]`` in nats; 0 for a token without predecessors.
    """
    divergence, log_weight = _compared(receivers, senders, log_weight, kind, temperature)
    # A product with ones, so that the slopes of links are one: for a sum over the batch XLA for a
    # CPU takes, with jaxlib 0.10, 9 ns a number.
    ones = jnp.ones(divergence.shape[:1], log_weight.dtype)
    log_weight = jnp.einsum("b,hnm->bhnm", ones, log_weight[0], precision="highest")
    return alignment.entropic(divergence, log_weight, alignment.rows()) * temperature


def attention(
    receivers: IrrepGaussian,
    senders: IrrepGaussian,
    log_weight: Array,
    kind: Irreps,
    temperature: float | Array,
) -> Array:
    """``beta_ij``, the slope of :func:`alignment_energy` in the divergences.

    Args:
        receivers, senders, log_weight, kind, temperature: as :func:`alignment_energy` takes them.

    Returns:
        ``[b, h, n, m]``; rows sum to 1, or to 0 without predecessors.
    """
    divergence, log_weight = _compared(receivers, senders, log_weight, kind, temperature)
    return alignment.attention(divergence, log_weight, alignment.rows())


def hyperprior_energy(
    prior: IrrepGaussian, ancestors: IrrepGaussian, weights: Array, kind: Irreps
) -> Array:
    """``sum_d weight_d KL(p || h^d)``.

    Args:
        prior: means ``[b, n, h, c]``.
        ancestors: means ``[l, b, n, h, c]``, all in the common frame.
        weights: of the layers, ``[l]``; 0 for one that is no ancestor.
        kind: the irreps of a head.

    Returns:
        ``[b, n]`` in nats.
    """
    return jnp.einsum("l,lbn->bn", weights, kl_divergence(prior, ancestors, kind))


def pooled_prior(
    information: Array, precision: Array, ancestors: IrrepGaussian, weights: Array
) -> tuple[Array, Array]:
    """Natural parameters of the p that minimises ``KL(p || p_0) + sum_d weight_d KL(p || h^d)``.

    It is their weighted mean: a moving average of a prior towards its ancestors.

    Args:
        information: of p_0, ``[b, n, h, c]``.
        precision: of p_0, ``[b, n, h, r]``.
        ancestors: natural parameters ``[l, b, n, h, c]`` in the places of mean and log variance.
        weights: of the layers, ``[l]``.

    Returns:
        Information and precision.
    """
    total = 1.0 + jnp.sum(weights)

    def pooled(own: Array, others: Array) -> Array:
        return (own + jnp.einsum("l,lbnhx->bnhx", weights, others)) / total

    return pooled(information, ancestors.mean), pooled(precision, ancestors.log_variance)
