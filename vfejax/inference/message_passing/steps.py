"""Steps of one belief towards the messages that it receives, shortened where the ELBO would fall.

The messages to a node add up to the natural parameters eta* at which the ELBO is largest. A step of
size rho is ``eta <- eta + rho (eta* - eta)``: damping, and a natural-gradient step of length rho.
Where the ELBO is not linear in the statistics of the node, the step is halved until it does not
lower the ELBO.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Natural, Statistics, moments
from vfejax.inference.message_passing.beliefs import Weights, entropy_of, weight_of
from vfejax.inference.message_passing.graph import Model
from vfejax.numerics import cast_like, expand_leading
from vfejax.types import Array

__all__ = ["not_lower", "towards"]

# A step that is not accepted is halved so often before the node stays where it is.
_HALVINGS = 12


def towards(
    model: Model,
    name: str,
    old: Natural,
    messages: Natural,
    step_size: Array | float,
    weights: Weights | None = None,
) -> Natural:
    """``eta + rho (eta* - eta)``, with eta* the messages to one copy of a member; members of weight
    0 stay.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        name: of the node.
        old: eta.
        messages: ``dL/dm``, the sum over all copies that a weight counts.
        step_size: rho, broadcastable to the plates.
        weights: see :func:`vfejax.inference.message_passing.graph.expected_log_joint`.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(z=nodes.categorical(jnp.array([0.5, 0.5])))
    >>> towards(model, "z", (jnp.zeros(2),), (jnp.array([0.0, 4.0]),), 0.5)[0].tolist()
    [0.0, 2.0]
    """
    weight, plates = weight_of(weights, name, old[0]), len(model.plates[name])
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


def not_lower(
    model: Model,
    name: str,
    local: Callable[[dict[str, Statistics]], Array],
    old: Natural,
    new: Natural,
    weights: Weights | None = None,
) -> Natural:
    """The first of the steps 1, 1/2, 1/4, ... from old to new that does not lower the ELBO.

    Args:
        model: from :func:`vfejax.inference.message_passing.graph.graph`.
        name: of the node.
        local: ``local({name: statistics})``, the expected log joint density as a function of this
            belief.
        old: natural parameters before the step.
        new: natural parameters after the full step.
        weights: see :func:`vfejax.inference.message_passing.graph.expected_log_joint`.

    Returns:
        Natural parameters; the old ones where no step of 2^-12 or longer is accepted.

    >>> from vfejax.inference.message_passing import graph, nodes
    >>> model = graph.graph(z=nodes.categorical(jnp.array([0.5, 0.5])))
    >>> even = lambda own: jnp.zeros(())
    >>> not_lower(model, "z", even, (jnp.zeros(2),), (jnp.array([0.0, 4.0]),))[0].tolist()
    [0.0, 0.0]
    """

    def value(natural: Natural) -> Array:
        own = moments(model.nodes[name].family, natural)
        return local({name: own[0]}) + entropy_of(model, name, natural, *own, weights)

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
