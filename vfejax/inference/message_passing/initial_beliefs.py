"""Initial beliefs: the priors, but different for components that could be exchanged.

Components that start alike receive equal messages and stay alike for ever. So one belief of every
group that an exchange maps to itself starts elsewhere: moved at random, or where the caller says.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Family, Natural
from vfejax.beliefs.families import DIRICHLET
from vfejax.inference.message_passing.beliefs import (
    Beliefs,
    Weights,
    evidence_bound,
    prior_belief,
    with_belief,
)
from vfejax.inference.message_passing.graph import Model, observe
from vfejax.numerics import cast_like, common_dtype
from vfejax.types import Array

__all__ = ["exchangeable", "initial_beliefs"]


def exchangeable(model: Model, latent: tuple[str, ...]) -> tuple[str, ...]:
    """Latent nodes whose members must not start alike, in the order of declaration.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        latent: names of the nodes that are not observed.

    >>> from vfejax.inference.message_passing import couplings, graph, nodes
    >>> model = graph.graph(
    ...     mean=nodes.gaussian(0.0, 1.0, plates=(2,)),
    ...     label=nodes.categorical(jnp.array([0.5, 0.5]), plates=(9,)),
    ...     x=couplings.mixture("label", nodes.gaussian("mean", 1.0)),
    ... )
    >>> exchangeable(model, ("mean", "label"))
    ('label',)
    """
    found = set()
    for node in model.nodes.values():
        exchanged = [node.parents[slot] for slot in node.symmetric]
        hidden = [isinstance(parent, str) and parent in latent for parent in exchanged]
        if any(hidden[:1]) and any(hidden[1:]):
            found.add(exchanged[0])
    return tuple(name for name in latent if name in found)


def initial_beliefs(
    model: Model,
    observed: tuple[str, ...],
    key: Array | None,
    data: Mapping[str, Array],
    weights: Weights | None = None,
    start: Mapping[str, Natural] | None = None,
) -> Beliefs:
    """Every belief at its prior, but those that must not start alike.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        observed: names of the nodes whose values are data.
        key: moves those that must not start alike; None where ``start`` holds them.
        data: values of the observed nodes.
        weights: see :func:`vfejax.inference.message_passing.graph.expected_log_joint`.
        start: natural parameters by name.

    Raises:
        ValueError: when components would start alike, or for a start of the wrong shape.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(x=nodes.gaussian(2.0, 1.0))
    >>> float(initial_beliefs(model, (), None, {}).statistics["x"][0])
    2.0
    """
    start = start or {}
    latent = tuple(name for name in model.nodes if name not in observed)
    missing = tuple(name for name in exchangeable(model, latent) if name not in start)
    if key is None and missing:
        raise ValueError(
            f"{' and '.join(missing)} cannot start at a uniform belief: components that start "
            "alike receive equal messages and stay alike for ever. Give a key, or natural "
            "parameters in start"
        )
    statistics = observe(model, data, weights)
    dtype = common_dtype(*jax.tree.leaves(statistics)) if statistics else None
    beliefs = Beliefs({}, {}, {}, jnp.zeros((), dtype))
    for name in latent:
        natural = prior_belief(model, name, {**statistics, **beliefs.statistics}, beliefs.elbo)
        if name in start:
            natural = _started(name, start[name], natural)
        elif key is not None and name in missing:
            key, own_key = jax.random.split(key)
            natural = _moved(model.nodes[name].family, natural, own_key)
        beliefs = with_belief(model, beliefs, name, natural)
    return beliefs._replace(elbo=evidence_bound(model, beliefs, data, observed, weights))


def _started(name: str, given: Natural, like: Natural) -> Natural:
    if tuple(jnp.shape(x) for x in given) != tuple(x.shape for x in like):
        raise ValueError(
            f"start[{name!r}] must have shapes {[x.shape for x in like]}, got "
            f"{[jnp.shape(x) for x in given]}"
        )
    return tuple(cast_like(x, y) for x, y in zip(given, like, strict=True))


def _moved(family: Family, natural: Natural, key: Array) -> Natural:
    """A standard normal number added to the first natural parameter, positive for a Dirichlet."""
    noise = jax.random.normal(key, natural[0].shape, natural[0].dtype)
    noise = jnp.abs(noise) if family.name == DIRICHLET.name else noise
    return (natural[0] + noise, *natural[1:])
