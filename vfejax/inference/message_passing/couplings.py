"""Nodes that couple latent variables: mixtures, linear maps, and mixtures of counts.

Each sums over its plates by matrix products of statistics. No array has the axes of observations,
components and an event at once.
"""

import math

import jax
import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Natural, Statistics
from vfejax.beliefs.families import CATEGORICAL, DIRICHLET, GAMMA, GAUSSIAN, MULTIVARIATE_GAUSSIAN
from vfejax.beliefs.supports import NON_NEGATIVE
from vfejax.inference.message_passing._plates import weighted_sum
from vfejax.inference.message_passing.chains import CATEGORICAL_CHAIN, GAUSSIAN_CHAIN
from vfejax.inference.message_passing.graph import Node, Parent
from vfejax.inference.message_passing.rows import GAUSSIAN_ROWS
from vfejax.numerics import expand_leading, matmul, matmul_nt, matmul_tn
from vfejax.types import Array

__all__ = ["gain", "mixture", "mixture_of_counts"]

SELECTORS = (CATEGORICAL, CATEGORICAL_CHAIN)
VECTORS = (GAUSSIAN_ROWS, MULTIVARIATE_GAUSSIAN, GAUSSIAN_CHAIN)
COUNTS = CATEGORICAL._replace(name="counts", support=NON_NEGATIVE)
Message = tuple[Natural, Array]


def _flat(x: Array, rank: int) -> Array:
    """``[..., *event]`` as ``[..., p]``."""
    plates = x.shape[: x.ndim - rank]
    return jnp.reshape(x, (*plates, math.prod(x.shape[x.ndim - rank :])))


def mixture(selector: str, component: Node) -> Node:
    """A value whose distribution is one of k, chosen by ``selector``.

    ``log p(x_n) = sum_k z_nk (<eta_k, t(x_n)> - A_k)``. The log densities ``[n, k]`` are one
    product of statistics ``[n, p]`` and natural parameters ``[k, p]``, and so is every message.

    Args:
        selector: name of a categorical node, or chain, with the plates of the mixture and k states.
        component: a node whose parents have the plates ``[k]``, or none where all share them.

    >>> from vfejax.inference.message_passing import nodes
    >>> mixture("label", nodes.gaussian("mean", 1.0)).symmetric
    (0, 1, 2)
    """
    family = component.family

    def components(selector: Statistics, parents: tuple[Statistics, ...]) -> Message:
        num = selector[0].shape[-1]
        eta, normaliser = component.natural(*parents)
        flat = [
            jnp.broadcast_to(
                expand_leading(_flat(x, rank), 1, 1), (num, math.prod(_event(x, rank)))
            )
            for x, rank in zip(eta, family.ranks, strict=True)
        ]
        return tuple(flat), jnp.broadcast_to(normaliser, (num,))

    def natural(selector: Statistics, *parents: Statistics) -> Message:
        eta, _ = component.natural(*parents)
        flat, normaliser = components(selector, parents)
        chosen = tuple(
            jnp.reshape(matmul(selector[0], x), (*selector[0].shape[:-1], *_event(own, rank)))
            for x, own, rank in zip(flat, eta, family.ranks, strict=True)
        )
        return chosen, matmul(selector[0], normaliser[:, None])[..., 0]

    def log_density(
        node: Node, own: Statistics, parents: tuple[Statistics, ...], weights: Array | None
    ) -> Array:
        selector, *rest = parents
        eta, normaliser = components(selector, tuple(rest))
        values = jnp.concatenate(
            [_flat(x, rank) for x, rank in zip(own, family.ranks, strict=True)], axis=-1
        )
        logs = matmul_nt(
            jnp.reshape(values, (-1, values.shape[-1])), jnp.concatenate(eta, axis=-1)
        ) - expand_leading(normaliser, 1, 1)
        logs = jnp.reshape(logs, selector[0].shape)
        return weighted_sum(jnp.sum(selector[0] * logs, axis=-1), weights, logs.shape[:-1])

    slots = (("selector", SELECTORS), *component.slots)
    parents = (selector, *component.parents)
    symmetric = tuple(range(len(parents)))
    return Node(family, parents, slots, natural, None, log_density, symmetric)


def _event(x: Array, rank: int) -> tuple[int, ...]:
    return x.shape[x.ndim - rank :]


def _total(second: Array) -> Array:
    """``sum_n E x_n x_n^T``, ``[k, k]``: of plates, or of a node that has it already."""
    return jnp.sum(second, axis=tuple(range(second.ndim - 2)))


def _each(vectors: Statistics) -> Array:
    """Second moments of every vector, ``[n, k * k]``."""
    first, second = vectors[:2]
    if _shares(vectors):
        spread = second - matmul_tn(first, first)
        second = spread[None] / first.shape[0] + first[:, :, None] * first[:, None, :]
    return jnp.reshape(second, (first.shape[0], -1))


def _shares(vectors: Statistics) -> bool:
    """Whether the vectors have one precision, so that only the total of their squares is known."""
    return vectors[1].ndim == vectors[0].ndim


def gain(rows: Parent, columns: Parent, precision: Parent) -> Node:
    """A matrix of inner products with noise: ``y_mn ~ N(w_m . x_n, 1 / precision)``.

    With complete data and one precision the squares need only the totals ``sum_m E w_m w_m^T`` and
    ``sum_n E x_n x_n^T``; with missing data or several precisions, products of ``[m, k^2]`` and
    ``[n, k^2]``.

    Args:
        rows: vectors w with plates ``[m]``, or a constant matrix ``[m, k]``.
        columns: vectors x with plates ``[n]``, a chain of n steps, or a constant matrix ``[n, k]``.
        precision: a gamma node or positive numbers whose plates broadcast to ``[m, n]``: ``[m, 1]``
            for one precision per row.

    >>> gain("loadings", "factors", "noise").family.name
    'gaussian'
    """

    def natural(rows: Statistics, columns: Statistics, precision: Statistics) -> Message:
        product = matmul_nt(rows[0], columns[0])
        squares = matmul_nt(_each(rows), _each(columns))
        log, value = (jnp.broadcast_to(expand_leading(x, 2), product.shape) for x in precision)
        normaliser = 0.5 * (value * squares - log + math.log(2 * math.pi))
        return (value * product, -0.5 * value), normaliser

    def log_density(
        node: Node, own: Statistics, parents: tuple[Statistics, ...], weights: Array | None
    ) -> Array:
        rows, columns, (log, value) = parents
        plates = own[0].shape
        product = matmul_nt(rows[0], columns[0])
        log, value = expand_leading(log, 2), expand_leading(value, 2)
        if value.size == 1 and (weights is None or weights.size == 1):
            error = jnp.sum(own[1] - 2.0 * own[0] * product)
            error = error + jnp.sum(_total(rows[1]) * _total(columns[1]))
            density = 0.5 * (math.prod(plates) * (jnp.sum(log) - math.log(2 * math.pi)))
            density = density - 0.5 * jnp.sum(value) * error
            return density if weights is None else jnp.sum(weights) * density
        for vectors, parent in zip((rows, columns), node.parents[:2], strict=True):
            if isinstance(parent, str) and _shares(vectors):
                raise ValueError(
                    f"{parent} shares one precision among vectors that meet unequal evidence (data "
                    "are missing, or noise has several precisions): use relevance"
                )
        squares = matmul_nt(_each(rows), _each(columns))
        error = own[1] - 2.0 * own[0] * product + squares
        return weighted_sum(0.5 * (log - math.log(2 * math.pi) - value * error), weights, plates)

    slots = (("rows", VECTORS), ("columns", VECTORS), ("precision", (GAMMA,)))
    return Node(GAUSSIAN, (rows, columns, precision), slots, natural, None, log_density, (1, 0))


def mixture_of_counts(weights: Parent, components: Parent) -> Node:
    """Counts of v kinds in d documents, each counted thing from one of k components.

    ``log p(n_d) = sum_v n_dv log sum_k theta_dk phi_kv``. The components of the counted things are
    not stored: their beliefs ``r_dvk ~ exp(E log theta_dk + E log phi_kv)`` are always optimal, and
    the bound at that optimum is ``sum_dv n_dv log sum_k exp(...)``. Its gradients are the messages
    (envelope theorem), so two products of matrices replace the array ``[d, v, k]``.

    Args:
        weights: Dirichlet node with plates ``[d]``: of every document, over k components.
        components: Dirichlet node with plates ``[k]``: of every component, over v kinds.

    Source: Hoffman, Blei, Wang and Paisley, JMLR 14 (2013) 1303, section 4.1, with the local step
        solved in closed form.

    >>> mixture_of_counts("weights", "topics").family.name
    'counts'
    """

    def natural(weights: Statistics, components: Statistics) -> Message:
        logs = _log_mixture(weights[0], components[0])
        return (logs,), jnp.zeros_like(logs[..., 0])

    def log_density(
        node: Node, own: Statistics, parents: tuple[Statistics, ...], weights: Array | None
    ) -> Array:
        logs = _log_mixture(parents[0][0], parents[1][0])
        terms = jnp.sum(jnp.where(own[0] == 0, 0.0, own[0] * logs), axis=-1)
        return weighted_sum(terms, weights, terms.shape)

    slots = (("weights", (DIRICHLET,)), ("components", (DIRICHLET,)))
    return Node(COUNTS, (weights, components), slots, natural, None, log_density, (1, 0))


def _log_mixture(weights: Array, components: Array) -> Array:
    """``log sum_k exp(weights_dk + components_kv)``, ``[d, v]``."""
    # The shifts are arbitrary, so no gradient flows through their choice.
    left = jax.lax.stop_gradient(jnp.max(weights, axis=-1, keepdims=True))
    right = jax.lax.stop_gradient(jnp.max(components, axis=0, keepdims=True))
    product = matmul(jnp.exp(weights - left), jnp.exp(components - right))
    return jnp.log(product) + left + right
