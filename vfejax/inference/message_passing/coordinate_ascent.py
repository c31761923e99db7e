"""Inference by message passing: beliefs move one node at a time to where the ELBO is largest.

The sum of the messages to a node is the gradient of the expected log joint in its expected
statistics, ``eta* = dL/dm``. For a conjugate node it is the exact maximum, so the ELBO never falls.
A step of size rho, ``eta <- eta + rho (eta* - eta)``, is damping, and at the same time a natural
gradient step of length rho. A node with a child that is not conjugate takes the longest step of
rho, rho/2, rho/4, ... that does not lower the ELBO.

Source: Hoffman, Blei, Wang and Paisley, JMLR 14 (2013) 1303, section 2.3; Khan and Lin, AISTATS
(2017), for nodes that are not conjugate.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.exponential_families import Natural, Statistics
from vfejax.inference.message_passing.beliefs import (
    Beliefs,
    Weights,
    all_statistics,
    evidence_bound,
    with_belief,
)
from vfejax.inference.message_passing.graph import Model, expected_log_joint, named_parents
from vfejax.inference.message_passing.initial_beliefs import exchangeable, initial_beliefs
from vfejax.inference.message_passing.steps import not_lower, towards
from vfejax.types import Array

__all__ = [
    "BeliefInfo",
    "FitInfo",
    "MessagePassing",
    "check_start",
    "fit",
    "message_passing",
]


class BeliefInfo(NamedTuple):
    """After a sweep: the ELBO, and by how much it rose, in nats."""

    elbo: Array
    change: Array


class FitInfo(NamedTuple):
    """What a fit did.

    Attributes:
        elbo: after every sweep ``[num_sweeps]``, NaN for those that were not needed.
        num_sweeps: how many were made.
        converged: whether the last one raised the ELBO by less than the tolerance.
    """

    elbo: Array
    num_sweeps: Array
    converged: Array


class MessagePassing(NamedTuple):
    """Inference in one model as pure functions.

    ``weights`` are those of :func:`vfejax.inference.message_passing.graph.expected_log_joint`.

    Attributes:
        init: ``init(key, data, weights=None, start=None) -> Beliefs``: every belief at its prior,
            and those that must not start alike moved at random, or at the natural parameters that
            ``start`` holds by name.
        update: ``update(beliefs, data, names, weights=None, step_size=1.0) -> Beliefs`` of nodes
            that share no density.
        sweep: ``sweep(beliefs, data, weights=None) -> (Beliefs, BeliefInfo)``, the whole schedule.
        elbo: ``elbo(beliefs, data, weights=None) -> scalar``.
        schedule: groups of names in the order of their updates.
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
    """

    init: Callable[..., Beliefs]
    update: Callable[..., Beliefs]
    sweep: Callable[..., tuple[Beliefs, BeliefInfo]]
    elbo: Callable[..., Array]
    schedule: tuple[tuple[str, ...], ...]
    model: Model


def message_passing(
    model: Model,
    observed: tuple[str, ...],
    schedule: tuple[tuple[str, ...], ...] | None = None,
    step_sizes: Mapping[str, float] | None = None,
) -> MessagePassing:
    """Variational message passing in a model.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        observed: names of the nodes whose values are data.
        schedule: groups of names; a group moves at once, and no two of its members may share a
            density. None for one node at a time in the order of declaration, those that must not
            start alike last.
        step_sizes: by name, between 0 and 1, for nodes that should move less than to the maximum.

    Returns:
        ``init``, ``update``, ``sweep`` and ``elbo``, to be compiled by the caller.

    Raises:
        ValueError: for unknown names, a group whose members share a density, or a latent node whose
            schedule is missing.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(
    ...     mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 1.0, plates=(3,))
    ... )
    >>> method, data = message_passing(model, ("x",)), {"x": jnp.ones(3)}
    >>> beliefs, info = method.sweep(method.init(None, data), data)
    >>> beliefs.statistics["mean"][0].tolist()
    0.75
    """
    latent = tuple(name for name in model.nodes if name not in observed)
    schedule = _one_by_one(model, latent) if schedule is None else schedule
    _check_names(model, observed, latent, schedule)
    sizes = dict.fromkeys(latent, 1.0) | dict(step_sizes or {})
    searched = {p for n in model.nodes.values() if not n.conjugate for p in named_parents(n)}

    def elbo(beliefs: Beliefs, data: Weights, weights: Weights | None = None) -> Array:
        return evidence_bound(model, beliefs, data, observed, weights)

    def update(
        beliefs: Beliefs,
        data: Weights,
        names: tuple[str, ...],
        weights: Weights | None = None,
        step_size: Array | float | None = None,
    ) -> Beliefs:
        statistics = all_statistics(model, beliefs, data, observed, weights)
        near = tuple(dict.fromkeys(n for name in names for n in (name, *model.children[name])))

        def local(own: dict[str, Statistics]) -> Array:
            return expected_log_joint(model, {**statistics, **own}, weights, near)

        messages = jax.grad(local)({name: statistics[name] for name in names})
        for name in names:
            rho = sizes[name] if step_size is None else step_size
            old = beliefs.natural[name]
            natural = towards(model, name, old, messages[name], rho, weights)
            if name in searched:
                natural = not_lower(model, name, local, old, natural, weights)
            beliefs = with_belief(model, beliefs, name, natural)
        return beliefs

    def sweep(
        beliefs: Beliefs, data: Weights, weights: Weights | None = None
    ) -> tuple[Beliefs, BeliefInfo]:
        before = beliefs.elbo
        for names in schedule:
            beliefs = update(beliefs, data, names, weights)
        beliefs = beliefs._replace(elbo=elbo(beliefs, data, weights))
        return beliefs, BeliefInfo(beliefs.elbo, beliefs.elbo - before)

    def init(
        key: Array | None,
        data: Weights,
        weights: Weights | None = None,
        start: Mapping[str, Natural] | None = None,
    ) -> Beliefs:
        return initial_beliefs(model, observed, key, data, weights, start)

    return MessagePassing(init, update, sweep, elbo, schedule, model)


def _one_by_one(model: Model, latent: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """One node at a time, those that must not start alike last."""
    alike = exchangeable(model, latent)
    first = tuple(name for name in latent if name not in alike)
    return tuple((name,) for name in (*first, *alike))


def _check_names(
    model: Model,
    observed: tuple[str, ...],
    latent: tuple[str, ...],
    schedule: tuple[tuple[str, ...], ...],
) -> None:
    for name in observed:
        if name not in model.nodes:
            raise ValueError(f"observed: no node {name!r}, there are {', '.join(model.nodes)}")
    scheduled = {name for names in schedule for name in names}
    if scheduled != set(latent):
        raise ValueError(
            f"schedule must name every latent node ({', '.join(latent)}) and no other, got "
            f"{', '.join(sorted(scheduled))}"
        )
    for names in schedule:
        _check_apart(model, names)


def _check_apart(model: Model, names: tuple[str, ...]) -> None:
    """Refuse a group of which two members stand in one density."""
    seen: dict[str, str] = {}
    for name in names:
        for near in (name, *model.children[name]):
            if near in seen:
                raise ValueError(
                    f"schedule: {seen[near]} and {name} share the density of {near}, so they must "
                    "move one after the other"
                )
            seen[near] = name


def check_start(method: MessagePassing, beliefs: Beliefs) -> None:
    """Refuse concrete beliefs at which components that the model could exchange are alike.

    Args:
        method: from :func:`message_passing`.
        beliefs: where a fit would start.

    Raises:
        ValueError: naming the node all of whose members have the same belief.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(x=nodes.gaussian(0.0, 1.0))
    >>> method = message_passing(model, ())
    >>> check_start(method, method.init(None, {}))
    """
    for name in exchangeable(method.model, tuple(beliefs.natural)):
        first = np.asarray(beliefs.statistics[name][0])
        if np.all(first == first[:1]):
            raise ValueError(
                f"every member of {name} starts with the same belief {first[0]}: components then "
                "receive equal messages and stay alike for ever"
            )


def fit(
    method: MessagePassing,
    beliefs: Beliefs,
    data: Mapping[str, Array],
    num_sweeps: int,
    tolerance: Array | float = 0.0,
    weights: Weights | None = None,
) -> tuple[Beliefs, FitInfo]:
    """Sweeps until the ELBO rises by no more than ``tolerance``, at most ``num_sweeps`` of them.

    Args:
        method: from :func:`message_passing`.
        beliefs: from ``method.init``.
        data: values of the observed nodes.
        num_sweeps: the largest number of sweeps.
        tolerance: in nats. At 0 the fit goes on until rounding stops it.
        weights: see :class:`MessagePassing`.

    Returns:
        Beliefs, and an Info with the ELBO after every sweep and whether the fit converged.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(
    ...     mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 1.0, plates=(3,))
    ... )
    >>> method, data = message_passing(model, ("x",)), {"x": jnp.ones(3)}
    >>> beliefs, info = fit(method, method.init(None, data), data, 10, tolerance=1e-4)
    >>> int(info.num_sweeps), bool(info.converged)
    (2, True)
    """
    dtype = beliefs.elbo.dtype

    def goes_on(carry: tuple) -> Array:
        num, _, _, change = carry
        return (num < num_sweeps) & ~(change <= jnp.asarray(tolerance, dtype))

    def once(carry: tuple) -> tuple:
        num, beliefs, trace, _ = carry
        beliefs, info = method.sweep(beliefs, data, weights)
        return num + 1, beliefs, trace.at[num].set(info.elbo), info.change

    trace = jnp.full((num_sweeps,), jnp.nan, dtype)
    start = (jnp.zeros((), int), beliefs, trace, jnp.full((), jnp.inf, dtype))
    num, beliefs, trace, change = jax.lax.while_loop(goes_on, once, start)
    return beliefs, FitInfo(trace, num, change <= jnp.asarray(tolerance, dtype))
