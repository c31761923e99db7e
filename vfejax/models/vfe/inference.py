"""Inference of a layer: every agent descends its own free energy.

At every step all agents read what their neighbours believe now, and move by

    mean  <- mean - eta_t Sigma dF/dmean,
    Sigma <- along the geodesic of the direction -2 eta_t Sigma sym(dF/dSigma) Sigma,
    A     <- A exp(xi . J),  xi_a = -eta_t <dF/dA, A J_a>,    eta_t = eta_0 decay^t,

the natural gradients of the family of covariances, and of the group in its left-invariant metric.
What is longer than the trust radius, as a Fisher length of one agent in one head (frames in
radians), is shortened to it. The gradient is ``jax.grad`` of ``sum_i F_i`` with the senders held. A
sender's half of the gradient would let later tokens act on earlier ones, so a causal model cannot
have it: each agent descends what it pays itself. Learning differentiates through all of it, senders
included.

Means may move with a velocity instead (:mod:`vfejax.models.vfe.dynamics`). A step that is shortened
shortens the velocity with it: what an agent carries on is what it did.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vfejax.models.vfe import energy
from vfejax.models.vfe.beliefs import Belief, Family, Transport
from vfejax.models.vfe.dynamics import Dynamics, gradient_flow
from vfejax.models.vfe.energy import Places, Reader
from vfejax.models.vfe.irreps import Layout
from vfejax.numerics import expand_leading, matmul, matmul_tn
from vfejax.types import Array, PyTree

__all__ = ["Exchange", "Info", "Paid", "Rule", "Strength", "free_energy", "infer", "senders"]


class Rule(NamedTuple):
    """What is the same for all layers.

    Attributes:
        layout: channels of the heads.
        family: of covariances.
        reader: energy and neighbours.
        dynamics: of means (:mod:`vfejax.models.vfe.dynamics`).
        moves_spread: whether covariances move.
        moves_frame: whether frames move.
        trust_radius: longest step.
    """

    layout: Layout
    family: Family
    reader: Reader
    dynamics: Dynamics = gradient_flow()
    moves_spread: bool = True
    moves_frame: bool = False
    trust_radius: float = 1.0


class Strength(NamedTuple):
    """What a layer learns about its inference.

    Attributes:
        coupling: lambda, weight of the alignment energy of each head, ``[heads]``.
        temperature: tau of each head in nats, ``[heads]``.
        step_size: eta_0, a scalar.
        decay: factor of the step size from one step to the next, a scalar.
    """

    coupling: Array
    temperature: Array
    step_size: Array
    decay: Array


class Info(NamedTuple):
    """About one step, before it is made: energies in nats and entropy of the attention in nats,
    ``[b, n, heads]``; and the Fisher length of the step, ``[b, n, heads]``.
    """

    self_coupling: Array
    alignment: Array
    entropy: Array
    length: Array


class Exchange(Protocol):
    """``(own rows [b, n, heads, r], memory) -> (rows of all senders [b, m, heads, r], memory)``:
    what agents know of each other at one step of inference.
    """

    def __call__(self, own: Array, memory: PyTree, /) -> tuple[Array, PyTree]: ...


def senders(belief: Belief, transport: Transport, rule: Rule) -> Array:
    """Rows of all agents as senders.

    Args:
        belief: of the agents, ``[b, n, heads, ...]``.
        transport: with their positions.
        rule: what is the same for all layers.

    Returns:
        ``[b, n, heads, r]``.
    """
    return rule.family.senders(belief, transport, rule.layout)


class Paid(NamedTuple):
    """What agents pay in nats, and the entropy of their attention in nats, ``[b, n, heads]``."""

    self_coupling: Array
    alignment: Array
    entropy: Array


def free_energy(
    belief: Belief,
    prior: Belief,
    rows: Array,
    transport: Transport,
    strength: Strength,
    places: Places,
    rule: Rule,
) -> Paid:
    """What each agent pays in each head, in nats.

    Args:
        belief: of the receivers, ``[b, n, heads, ...]``.
        prior: theirs.
        rows: of the senders, ``[b, m, heads, r]``.
        transport: of the receivers.
        strength: weights and temperatures.
        places: of receivers and senders.
        rule: what is the same for all layers.

    Returns:
        ``self_coupling``, ``alignment`` (weighted by lambda) and the ``entropy`` of the attention,
        ``[b, n, heads]``.
    """
    own = rule.family.receivers(belief, transport, rule.layout)
    paid = energy.align(rule.reader, own, rows, strength.temperature, places)
    coupling = expand_leading(strength.coupling, paid.energy.ndim)
    self_coupling = rule.family.divergence(belief, prior, rule.layout)
    return Paid(self_coupling, coupling * paid.energy, paid.entropy)


def _free(belief: Belief, rule: Rule) -> Belief:
    """What inference moves; None in place of the rest."""
    return Belief(
        belief.mean,
        belief.spread if rule.moves_spread else None,
        belief.frame if rule.moves_frame else None,
    )


def _merged(free: Belief, belief: Belief, rule: Rule) -> Belief:
    return Belief(
        free.mean,
        free.spread if rule.moves_spread else belief.spread,
        free.frame if rule.moves_frame else belief.frame,
    )


def _wide(x: Array, like: Array) -> Array:
    """A number per head against an array of each head."""
    return x.reshape(*x.shape, *(1,) * (like.ndim - x.ndim))


def _moved(
    belief: Belief, ascent: Belief, memory: PyTree, eta: Array, rule: Rule
) -> tuple[Belief, PyTree, Array]:
    """The belief after a step along the gradient, the memory of the dynamics, and the Fisher length
    of the step; what has no gradient stays. What is too long is shortened, and the memory with it.
    """
    family, layout = rule.family, rule.layout
    natural = family.times(belief.spread, ascent.mean, layout)
    change, memory = rule.dynamics.step(memory, natural, eta)
    direction = turn = None
    if ascent.spread is not None:
        steepest = family.natural(belief.spread, ascent.spread, layout)
        direction = jax.tree.map(lambda x: -eta * x, steepest)
    square = family.square(belief.spread, change, direction, layout)
    if belief.frame is not None and ascent.frame is not None:
        generators = jnp.asarray(layout.group.generators, eta.dtype)
        slope = matmul_tn(belief.frame, ascent.frame)
        turn = -eta * jnp.einsum("...kl,akl->...a", slope, generators, precision="highest")
        square = square + jnp.sum(turn * turn, axis=-1)
    # In the square: at 0 the root has no derivative.
    share = jax.lax.rsqrt(jnp.maximum(square / rule.trust_radius**2, 1.0))
    change, direction, turn, memory = jax.tree.map(
        lambda x: _wide(share, x) * x, (change, direction, turn, memory)
    )
    length = share * jnp.sqrt(jax.lax.stop_gradient(square))
    return _stepped(belief, change, direction, turn, rule), memory, length


def _stepped(
    belief: Belief, change: Array, direction: PyTree, turn: Array | None, rule: Rule
) -> Belief:
    """The belief after a step that is short enough."""
    layout, radius = rule.layout, rule.trust_radius
    spread, frame, group = belief.spread, belief.frame, layout.group
    if direction is not None:
        spread = rule.family.moved(spread, direction, radius, layout)
    if frame is not None and turn is not None:
        frame = matmul(frame, group.exponential(turn, group.generators))
    return Belief(belief.mean + change, spread, frame)


def infer(
    prior: Belief,
    transport: Transport,
    strength: Strength,
    places: Places,
    rule: Rule,
    *,
    steps: int,
    start: Belief | None = None,
    exchange: Exchange = lambda own, memory: (own, memory),
    memory: PyTree = None,
    potential: Callable[[Array], Array] | None = None,
) -> tuple[Belief, Info, PyTree]:
    """The posterior of every agent.

    Args:
        prior: of every agent, ``[b, n, heads, ...]``.
        transport: positions and link.
        strength: what the layer learned.
        places: of receivers and senders.
        rule: what is the same for all layers.
        steps: how many steps, 0 or more.
        start: where inference begins; by default at the prior.
        exchange: rows of all senders from those of the receivers; by default they are the same.
        memory: of ``exchange``, stacked by step, ``[steps, ...]``.
        potential: a further energy of each agent, ``mean [b, n, heads, K, copies] -> [b, n]`` in
            nats.

    Returns:
        The posterior, the info of every step ``[steps, ...]``, and the memory after it.

    >>> from vfejax.models.vfe.covariances import COVARIANCES
    >>> from vfejax.models.vfe.irreps import so3
    >>> layout = so3((0,), heads=1, copies=1)
    >>> rule = Rule(layout, COVARIANCES["irrep"], energy.reader("entropic"))
    >>> mean = jnp.array([0.0, 1.0]).reshape(1, 2, 1, 1, 1)
    >>> prior = Belief(mean, jnp.zeros((1, 2, 1, 1, 1)))
    >>> one, half = jnp.ones(1), jnp.asarray(0.5)
    >>> places = Places(jnp.arange(2), jnp.arange(2))
    >>> found = infer(prior, Transport(), Strength(one, one, half, half), places, rule, steps=8)
    >>> found[0].mean.ravel().round(3).tolist()  # the second agent comes nearer to the first
    [0.0, 0.7510000467300415]
    """

    def paid(free: Belief, belief: Belief, rows: Array) -> tuple[Array, Paid]:
        whole = _merged(free, belief, rule)
        found = free_energy(whole, prior, rows, transport, strength, places, rule)
        value = jnp.sum(found.self_coupling + found.alignment)
        if potential is not None:
            value = value + jnp.sum(potential(whole.mean))
        return value, found

    def step(state: tuple[Belief, PyTree], inputs: tuple[Array, PyTree]) -> tuple[Any, Any]:
        (belief, velocity), (number, memory) = state, inputs
        rows, memory = exchange(senders(belief, transport, rule), memory)
        ascent, found = jax.grad(paid, has_aux=True)(_free(belief, rule), belief, rows)
        eta = strength.step_size * strength.decay**number
        belief, velocity, length = _moved(belief, ascent, velocity, eta, rule)
        info = jax.lax.stop_gradient(
            Info(found.self_coupling, found.alignment, found.entropy, length)
        )
        return (belief, velocity), (info, memory)

    if prior.mean.shape[1] > 2 * rule.reader.block:
        step = jax.checkpoint(step, prevent_cse=False)  # long sequences: beliefs alone are kept
    begin = prior if start is None else start
    numbers = jnp.arange(steps, dtype=strength.decay.dtype)
    state = begin, rule.dynamics.init(begin.mean)
    (belief, _), (info, memory) = jax.lax.scan(step, state, (numbers, memory))
    return belief, info, memory
