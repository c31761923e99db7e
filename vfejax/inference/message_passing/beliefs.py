"""Beliefs about the nodes of a model: how they are stored, and their ELBO.

The ELBO of a factorised belief is the expected log joint density plus the entropy of every factor,
``A(eta) - <eta, m> - E log h``.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Natural, Statistics, inner, moments
from vfejax.inference.message_passing._plates import weighted_sum
from vfejax.inference.message_passing.graph import (
    Model,
    expected_log_joint,
    observe,
    parent_statistics,
)
from vfejax.numerics import cast_like, expand_leading
from vfejax.types import Array

__all__ = [
    "Beliefs",
    "Weights",
    "all_statistics",
    "entropy_of",
    "evidence_bound",
    "prior_belief",
    "weight_of",
    "with_belief",
]

Weights = Mapping[str, Array]
"""By name, how often each member of a node's plates counts."""


class Beliefs(NamedTuple):
    """Beliefs about the nodes that are not observed.

    Attributes:
        natural: natural parameters by name.
        statistics: their expected statistics, which messages are made of.
        log_partition: their log partition functions, ``[plates]``.
        elbo: evidence lower bound in nats, scalar.
    """

    natural: dict[str, Natural]
    statistics: dict[str, Statistics]
    log_partition: dict[str, Array]
    elbo: Array


def prior_belief(
    model: Model, name: str, statistics: Mapping[str, Statistics], like: Array
) -> Natural:
    """Natural parameters of a node from its parents alone, in the dtype of ``like``.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        name: of the node.
        statistics: expected statistics of its parents, by name.
        like: an array of the wanted dtype.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(x=nodes.gaussian(1.0, 4.0, plates=(2,)))
    >>> prior_belief(model, "x", {}, jnp.ones(()))[0].tolist()
    [4.0, 4.0]
    """
    natural, _ = model.nodes[name].natural(*parent_statistics(model.nodes[name], statistics, like))
    return tuple(
        jnp.broadcast_to(expand_leading(x, len(shape)), shape)
        for x, shape in zip(natural, model.shapes[name], strict=True)
    )


def with_belief(model: Model, beliefs: Beliefs, name: str, natural: Natural) -> Beliefs:
    """Beliefs with other natural parameters of one node; the ELBO is left as it is.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        beliefs: of all latent nodes.
        name: of the node.
        natural: its new natural parameters.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(x=nodes.gaussian(0.0, 1.0))
    >>> none = Beliefs({}, {}, {}, jnp.zeros(()))
    >>> moved = with_belief(model, none, "x", (jnp.array(2.0), jnp.array(-0.5)))
    >>> float(moved.statistics["x"][0])
    2.0
    """
    statistics, log_partition = moments(model.nodes[name].family, natural)
    return Beliefs(
        {**beliefs.natural, name: natural},
        {**beliefs.statistics, name: statistics},
        {**beliefs.log_partition, name: log_partition},
        beliefs.elbo,
    )


def weight_of(weights: Weights | None, name: str, like: Array) -> Array | None:
    """Weights of one node in the dtype of ``like``, None where it has none.

    Args:
        weights: by name, or None.
        name: of the node.
        like: an array of the wanted dtype.

    >>> weight_of({"x": jnp.array([0, 1])}, "x", jnp.ones(())).tolist()
    [0.0, 1.0]
    """
    return None if weights is None or name not in weights else cast_like(weights[name], like)


def all_statistics(
    model: Model,
    beliefs: Beliefs,
    data: Mapping[str, Array],
    observed: tuple[str, ...],
    weights: Weights | None = None,
) -> dict[str, Statistics]:
    """Expected statistics of every node, latent or observed, by name.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        beliefs: of the latent nodes.
        data: values of the observed nodes.
        observed: their names.
        weights: see :func:`vfejax.inference.message_passing.graph.expected_log_joint`.

    Raises:
        ValueError: when ``data`` holds other nodes than those observed.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(x=nodes.gaussian(0.0, 1.0))
    >>> none = Beliefs({}, {}, {}, jnp.zeros(()))
    >>> [float(t) for t in all_statistics(model, none, {"x": jnp.array(3.0)}, ("x",))["x"]]
    [3.0, 9.0]
    """
    if set(data) != set(observed):
        raise ValueError(f"data must hold {', '.join(observed)}, got {', '.join(data) or 'none'}")
    return {**beliefs.statistics, **observe(model, data, weights)}


def entropy_of(
    model: Model,
    name: str,
    natural: Natural,
    statistics: Statistics,
    log_partition: Array,
    weights: Weights | None = None,
) -> Array:
    """``sum_n w_n (A(eta_n) - <eta_n, m_n>)``, what the belief about a node adds to the ELBO.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        name: of the node.
        natural: eta.
        statistics: m, the expected statistics at eta.
        log_partition: ``A(eta)``, ``[plates]``.
        weights: see :func:`vfejax.inference.message_passing.graph.expected_log_joint`.

    Returns:
        Scalar: the entropy in nats where the base measure of the family is 1.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(z=nodes.categorical(jnp.array([0.5, 0.5])))
    >>> eta = (jnp.zeros(2),)
    >>> round(float(entropy_of(model, "z", eta, *moments(model.nodes["z"].family, eta))), 4)
    0.6931
    """
    terms = log_partition - inner(model.nodes[name].family, natural, statistics)
    return weighted_sum(terms, weight_of(weights, name, terms), model.plates[name])


def evidence_bound(
    model: Model,
    beliefs: Beliefs,
    data: Mapping[str, Array],
    observed: tuple[str, ...],
    weights: Weights | None = None,
) -> Array:
    """The ELBO of beliefs in nats, scalar, with the base measure of observed nodes.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        beliefs: of the latent nodes.
        data: values of the observed nodes.
        observed: their names.
        weights: see :func:`vfejax.inference.message_passing.graph.expected_log_joint`.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(z=nodes.categorical(jnp.array([0.5, 0.5])))
    >>> none = Beliefs({}, {}, {}, jnp.zeros(()))
    >>> beliefs = with_belief(model, none, "z", (jnp.zeros(2),))
    >>> float(evidence_bound(model, beliefs, {}, ()))
    0.0
    """
    total = expected_log_joint(
        model, all_statistics(model, beliefs, data, observed, weights), weights
    )
    for name in observed:
        total = total + _log_base(model, name, data[name], weights, total)
    for name, natural in beliefs.natural.items():
        statistics, log_partition = beliefs.statistics[name], beliefs.log_partition[name]
        total = total + entropy_of(model, name, natural, statistics, log_partition, weights)
    return total


def _log_base(model: Model, name: str, value: Array, weights: Weights | None, like: Array) -> Array:
    family = model.nodes[name].family
    if family.log_base is None:
        return jnp.zeros_like(like)
    terms = family.log_base(cast_like(value, like))
    return weighted_sum(terms, weight_of(weights, name, like), model.plates[name])
