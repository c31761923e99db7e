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

from vfejax.beliefs.exponential_families import (
    DIRICHLET,
    Family,
    Natural,
    Statistics,
    inner,
    moments,
)
from vfejax.inference.message_passing.graph import (
    Model,
    expected_log_joint,
    named_parents,
    observe,
    parent_statistics,
    weighted_sum,
)
from vfejax.numerics import cast_like, common_dtype, expand_leading
from vfejax.types import Array

__all__ = [
    "BeliefInfo",
    "Beliefs",
    "FitInfo",
    "MessagePassing",
    "check_start",
    "fit",
    "message_passing",
    "prior_belief",
    "with_belief",
]

Weights = Mapping[str, Array]
# A step that is not accepted is halved so often before the node stays where it is.
_HALVINGS = 12


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
    alike = _symmetric(model, latent)
    if schedule is None:
        schedule = tuple((name,) for name in latent if name not in alike)
        schedule += tuple((name,) for name in alike)
    _check_names(model, observed, latent, schedule)
    sizes = dict.fromkeys(latent, 1.0) | dict(step_sizes or {})
    searched = {p for n in model.nodes.values() if not n.conjugate for p in named_parents(n)}

    def elbo(beliefs: Beliefs, data: Weights, weights: Weights | None = None) -> Array:
        everything = _everything(model, beliefs, data, observed, weights)
        total = expected_log_joint(model, everything, weights)
        for name in observed:
            total = total + _log_base(model, name, data[name], weights, total)
        for name in latent:
            natural, statistics = beliefs.natural[name], beliefs.statistics[name]
            log_partition = beliefs.log_partition[name]
            total = total + _entropy(model, name, natural, statistics, log_partition, weights)
        return total

    def update(
        beliefs: Beliefs,
        data: Weights,
        names: tuple[str, ...],
        weights: Weights | None = None,
        step_size: Array | float | None = None,
    ) -> Beliefs:
        statistics = _everything(model, beliefs, data, observed, weights)
        near = tuple(dict.fromkeys(n for name in names for n in (name, *model.children[name])))

        def local(own: dict[str, Statistics]) -> Array:
            return expected_log_joint(model, {**statistics, **own}, weights, near)

        messages = jax.grad(local)({name: statistics[name] for name in names})
        for name in names:
            rho = sizes[name] if step_size is None else step_size
            old = beliefs.natural[name]
            natural = _towards(model, name, old, messages[name], rho, weights)
            if name in searched:
                natural = _not_lower(model, name, local, old, natural, weights)
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
        start = start or {}
        missing = tuple(name for name in alike if name not in start)
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
        return beliefs._replace(elbo=elbo(beliefs, data, weights))

    return MessagePassing(init, update, sweep, elbo, schedule, model)


def _symmetric(model: Model, latent: tuple[str, ...]) -> tuple[str, ...]:
    """Latent nodes whose members must not start alike, in the order of declaration."""
    found = set()
    for node in model.nodes.values():
        exchanged = [node.parents[slot] for slot in node.symmetric]
        hidden = [isinstance(parent, str) and parent in latent for parent in exchanged]
        if any(hidden[:1]) and any(hidden[1:]):
            found.add(exchanged[0])
    return tuple(name for name in latent if name in found)


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
        seen: dict[str, str] = {}
        for name in names:
            for near in (name, *model.children[name]):
                if near in seen:
                    raise ValueError(
                        f"schedule: {seen[near]} and {name} share the density of {near}, so they "
                        "must move one after the other"
                    )
                seen[near] = name


def _everything(
    model: Model,
    beliefs: Beliefs,
    data: Weights,
    observed: tuple[str, ...],
    weights: Weights | None,
) -> dict[str, Statistics]:
    if set(data) != set(observed):
        raise ValueError(f"data must hold {', '.join(observed)}, got {', '.join(data) or 'none'}")
    return {**beliefs.statistics, **observe(model, data, weights)}


def _weight(weights: Weights | None, name: str, like: Array) -> Array | None:
    return None if weights is None or name not in weights else cast_like(weights[name], like)


def _log_base(model: Model, name: str, value: Array, weights: Weights | None, like: Array) -> Array:
    family = model.nodes[name].family
    if family.log_base is None:
        return jnp.zeros_like(like)
    terms = family.log_base(cast_like(value, like))
    return weighted_sum(terms, _weight(weights, name, like), model.plates[name])


def _entropy(
    model: Model,
    name: str,
    natural: Natural,
    statistics: Statistics,
    log_partition: Array,
    weights: Weights | None,
) -> Array:
    terms = log_partition - inner(model.nodes[name].family, natural, statistics)
    return weighted_sum(terms, _weight(weights, name, terms), model.plates[name])


def with_belief(model: Model, beliefs: Beliefs, name: str, natural: Natural) -> Beliefs:
    """Beliefs with other natural parameters of one node; the ELBO is left as it is.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        beliefs: of all latent nodes.
        name: of the node.
        natural: its new natural parameters.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(x=nodes.gaussian(0.0, 1.0))
    >>> beliefs = message_passing(model, ()).init(None, {})
    >>> moved = with_belief(model, beliefs, "x", (jnp.array(2.0), jnp.array(-0.5)))
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


def _towards(
    model: Model,
    name: str,
    old: Natural,
    messages: Natural,
    step_size: Array | float,
    weights: Weights | None,
) -> Natural:
    """``eta + rho (eta* - eta)``, with eta* the messages to one copy of a member; members of weight
    0 stay.
    """
    weight, plates = _weight(weights, name, old[0]), len(model.plates[name])
    rate = cast_like(step_size, old[0])
    copies = jnp.ones_like(rate)
    if weight is not None:
        copies = jnp.where(weight == 0, 1.0, weight)
        rate = jnp.where(weight == 0, 0.0, rate)

    def towards(eta: Array, total: Array) -> Array:
        event = (1,) * (eta.ndim - plates)
        one = total / jnp.reshape(expand_leading(copies, plates), (*_full(copies, plates), *event))
        full = jnp.reshape(expand_leading(rate, plates), (*_full(rate, plates), *event))
        # At a full step the old belief leaves no rounding behind.
        return jnp.where(full == 1.0, one, eta + full * (one - eta))

    return tuple(towards(eta, total) for eta, total in zip(old, messages, strict=True))


def _full(x: Array, rank: int) -> tuple[int, ...]:
    return (1,) * (rank - x.ndim) + x.shape


def _not_lower(
    model: Model,
    name: str,
    local: Callable[[dict[str, Statistics]], Array],
    old: Natural,
    new: Natural,
    weights: Weights | None,
) -> Natural:
    """The first of the steps 1, 1/2, 1/4, ... from old to new that does not lower the ELBO."""

    def value(natural: Natural) -> Array:
        own = moments(model.nodes[name].family, natural)
        return local({name: own[0]}) + _entropy(model, name, natural, *own, weights)

    def halfway(natural: Natural) -> Natural:
        return jax.tree.map(lambda x, y: 0.5 * (x + y), old, natural)

    def lower(carry: tuple[Array, Natural, Array]) -> Array:
        num, _, reached = carry
        return (num < _HALVINGS) & ~(reached >= before)

    def halve(carry: tuple[Array, Natural, Array]) -> tuple[Array, Natural, Array]:
        num, natural, _ = carry
        natural = halfway(natural)
        return num + 1, natural, value(natural)

    before = value(old)
    _, natural, reached = jax.lax.while_loop(lower, halve, (jnp.zeros((), int), new, value(new)))
    return jax.tree.map(lambda x, y: jnp.where(reached >= before, y, x), old, natural)


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
    for name in _symmetric(method.model, tuple(beliefs.natural)):
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
