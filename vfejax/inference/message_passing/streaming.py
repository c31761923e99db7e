"""Stochastic variational inference: plates too large for memory, one batch at a time.

A model is declared for a batch of B out of N members of a plate, and every member counts ``N / B``
times. Beliefs about the batch alone (its local nodes) are found anew; beliefs about what all
batches share take a natural-gradient step towards what the batch, so weighted, asks for:

    eta <- eta + rho_t (eta*(batch) - eta),      rho_t = (t + delay)^-forgetting.

With rates whose sum diverges and whose squares have a finite sum the shared beliefs converge to a
stationary point of the ELBO of all data.

Source: Hoffman, Blei, Wang and Paisley, JMLR 14 (2013) 1303.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.inference.message_passing.beliefs import Beliefs, prior_belief, with_belief
from vfejax.inference.message_passing.coordinate_ascent import BeliefInfo, MessagePassing
from vfejax.inference.message_passing.graph import observe
from vfejax.types import Array

__all__ = ["Stream", "StreamState", "robbins_monro", "stream"]


class StreamState(NamedTuple):
    """Beliefs after the last batch, and the number of batches so far, scalar."""

    beliefs: Beliefs
    step: Array


class Stream(NamedTuple):
    """Inference over batches as two pure functions.

    Attributes:
        init: ``init(key, batch, start=None) -> StreamState``.
        step: ``step(state, batch) -> (StreamState, BeliefInfo)``; the ELBO of the info is that of
            all data, as the batch estimates it after the step.
    """

    init: Callable[..., StreamState]
    step: Callable[[StreamState, Mapping[str, Array]], tuple[StreamState, BeliefInfo]]


def robbins_monro(delay: float = 1.0, forgetting: float = 0.7) -> Callable[[Array], Array]:
    """Step sizes ``(t + delay)^-forgetting`` of batch t = 0, 1, ...

    Args:
        delay: at least 1: first batches count less with a larger one.
        forgetting: above 0.5 and at most 1.

    >>> float(robbins_monro(delay=4.0, forgetting=1.0)(jnp.array(0.0)))
    0.25
    """
    return lambda step: (step + delay) ** -forgetting


def stream(
    method: MessagePassing,
    local: tuple[str, ...],
    fraction: float,
    step_size_fn: Callable[[Array], Array] | None = None,
    num_local: int = 1,
) -> Stream:
    """Stochastic variational inference with a model of one batch.

    Args:
        method: :func:`vfejax.inference.message_passing.coordinate_ascent.message_passing` of the
            model of a batch.
        local: names of the nodes, observed ones too, that every batch has for itself.
        fraction: B / N, the part of the data that a batch is.
        step_size_fn: ``step_size_fn(t) -> rho_t``; None for :func:`robbins_monro`.
        num_local: rounds of updates of the local nodes of a batch.

    Raises:
        ValueError: for a local name that is no node, or a fraction outside (0, 1].

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> from vfejax.inference.message_passing.coordinate_ascent import message_passing
    >>> batch_model = graph.graph(
    ...     mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 1.0, plates=(2,))
    ... )
    >>> online = stream(message_passing(batch_model, ("x",)), ("x",), fraction=0.5)
    >>> state = online.init(None, {"x": jnp.ones(2)})
    >>> state, info = online.step(state, {"x": jnp.ones(2)})
    >>> round(float(state.beliefs.statistics["mean"][0]), 4)
    0.8
    """
    model = method.model
    for name in local:
        if name not in model.nodes:
            raise ValueError(f"local: no node {name!r}, there are {', '.join(model.nodes)}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    rate_fn = step_size_fn or robbins_monro()
    local_groups = [names for names in method.schedule if not set(local).isdisjoint(names)]
    shared_groups = [names for names in method.schedule if set(local).isdisjoint(names)]
    latent = {name for names in local_groups for name in names}

    def weights(like: Array) -> dict[str, Array]:
        return dict.fromkeys(local, jnp.asarray(1.0 / fraction, like.dtype))

    def init(
        key: Array | None, batch: Mapping[str, Array], start: Mapping | None = None
    ) -> StreamState:
        beliefs = method.init(key, batch, None, start)
        for names in shared_groups:
            beliefs = method.update(beliefs, batch, names, weights(beliefs.elbo))
        return StreamState(beliefs, jnp.zeros((), beliefs.elbo.dtype))

    def forget(beliefs: Beliefs, batch: Mapping[str, Array]) -> Beliefs:
        """Beliefs about the batch at their priors again, parents before children."""
        for name in (name for name in model.nodes if name in latent):
            known = {**beliefs.statistics, **observe(model, batch)}
            prior = prior_belief(model, name, known, beliefs.elbo)
            beliefs = with_belief(model, beliefs, name, prior)
        return beliefs

    def step(state: StreamState, batch: Mapping[str, Array]) -> tuple[StreamState, BeliefInfo]:
        before = state.beliefs.elbo
        weight = weights(before)
        beliefs = forget(state.beliefs, batch)
        for _ in range(num_local):
            for names in local_groups:
                beliefs = method.update(beliefs, batch, names, weight)
        rho = rate_fn(state.step)
        for names in shared_groups:
            beliefs = method.update(beliefs, batch, names, weight, rho)
        elbo = method.elbo(beliefs, batch, weight)
        state = StreamState(beliefs._replace(elbo=elbo), state.step + 1)
        return state, BeliefInfo(elbo, elbo - before)

    return Stream(init, step)
