"""Beliefs about the states of a whole window of time, given all its observations.

The structured posterior is a product over factors, each a Markov chain over time:

    q(s_1..s_T) = prod_f q_f(s_f,1) prod_t q_f(s_f,t+1 | s_f,t)

A chain is updated exactly, by forward-backward recursions on the expected logarithms of likelihoods
and transitions under the other chains, one factor after the other: F never rises, and with one
factor the result is exact. Beliefs that are a product over time as well, as in marginal message
passing, can be far from it, since neighbouring states inform each other.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs.categorical import safe_log, xlogy
from vfejax.inference.pomdp.model import POMDP, contract
from vfejax.inference.pomdp.states import StateInfo, log_likelihoods
from vfejax.types import Array

__all__ = ["Smoothed", "marginal_message_passing", "smooth_states"]


class Smoothed(NamedTuple):
    """Beliefs about a window.

    Attributes:
        states: probabilities for each factor, ``[t, s_f]``.
        pairs: of neighbouring states, ``[t - 1, s_f', s_f]``, the later one first.
        info: F after each sweep.
    """

    states: tuple[Array, ...]
    pairs: tuple[Array, ...]
    info: StateInfo


class _Window(NamedTuple):
    """Logarithms along a window, ``[t, ...]`` and ``[t - 1, ...]``."""

    likelihoods: tuple[Array, ...]
    transitions: tuple[Array, ...]  # of the controls that were taken
    start: tuple[Array, ...]


def _window(
    model: POMDP, observations: Sequence[Array], actions: Array, mask: Array | None
) -> _Window:
    seen = tuple(jnp.asarray(o) for o in observations)
    if len(seen) != len(model.A):
        raise ValueError(f"observations must have {len(model.A)} entries, got {len(seen)}")
    steps, actions = seen[0].shape[0], jnp.asarray(actions)
    if steps < 1:
        raise ValueError("observations must have at least 1 moment, got 0")
    if actions.shape != (steps - 1, len(model.B)):
        raise ValueError(
            f"actions must have shape [{steps - 1}, {len(model.B)}], got {list(actions.shape)}"
        )
    there = jnp.ones((steps, len(model.A)), bool) if mask is None else jnp.asarray(mask)
    likelihoods = jax.vmap(lambda o, m: log_likelihoods(model, o, m))(seen, there)
    transitions = tuple(_taken(safe_log(b), actions[:, f]) for f, b in enumerate(model.B))
    return _Window(likelihoods, transitions, tuple(safe_log(d) for d in model.D))


def _taken(table: Array, controls: Array) -> Array:
    """Entries of ``[..., u]`` at controls ``[t]``, ``[t, ...]``; NaN at one that does not exist."""
    found = jnp.moveaxis(jnp.take(table, controls, axis=-1), -1, 0)
    exists = (controls >= 0) & (controls < table.shape[-1])
    return jnp.where(jnp.expand_dims(exists, range(1, found.ndim)), found, jnp.nan)


def _expected_transition(
    model: POMDP, g: int, table: Array, kept: Sequence[int], beliefs: tuple
) -> Array:
    """Expectation of one ``log B_g [s_g', *s_deps]`` under all but the kept factors' states.

    ``beliefs``: pairs of g, the next states of g, and the present states of each factor. Where g is
    kept, so are both of its axes.
    """
    pair, after, before = beliefs
    factors = model.B_dependencies[g]
    weights: dict = {
        axis + 1: before[f] for axis, f in enumerate(factors) if f not in kept and f != g
    }
    if g not in kept:
        if g in factors:
            weights[0, factors.index(g) + 1] = pair
        else:
            weights[0] = after
    return contract(table, weights)


def _said_of(model: POMDP, window: _Window, f: int, states: Sequence[Array]) -> Iterator[Array]:
    """What each modality that depends on factor f says about it, ``[t, s]``, in expectation over
    the other factors.
    """
    for term, factors in zip(window.likelihoods, model.A_dependencies, strict=True):
        if f in factors:
            others: dict[Any, Array] = {a: states[g] for a, g in enumerate(factors) if g != f}
            yield jax.vmap(contract)(term, others)


def _potentials(
    model: POMDP, window: _Window, f: int, states: Sequence[Array], pairs: Sequence[Array]
) -> tuple[Array, Array]:
    """What the other chains say about chain f: ``[t, s]`` and ``[t - 1, s', s]``."""
    unary = jnp.zeros_like(states[f]).at[0].add(window.start[f])
    for said in _said_of(model, window, f, states):
        unary += said
    links = jnp.zeros((len(unary) - 1, *model.B[f].shape[:1], unary.shape[1]), unary.dtype)
    for g, factors in enumerate(model.B_dependencies):
        if g != f and f not in factors:
            continue
        beliefs = (pairs[g], states[g][1:], tuple(x[:-1] for x in states))
        found = jax.vmap(
            lambda table, b: _expected_transition(model, g, table, [f], b)  # noqa: B023
        )(window.transitions[g], beliefs)
        if g != f:
            unary = unary.at[:-1].add(found)
        elif f in factors:
            links += found
        else:
            links += found[:, :, None]
    return unary, links


def _chain(unary: Array, links: Array) -> tuple[Array, Array]:
    """Marginals ``[t, s]`` and pairs ``[t - 1, s', s]`` of the chain with these log potentials."""

    def forward(alpha: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        row, link = xs
        after = jax.nn.log_softmax(row + jax.nn.logsumexp(link + alpha[None], axis=1))
        return after, after

    def backward(beta: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        row, link = xs
        before = jax.nn.logsumexp(link + (row + beta)[:, None], axis=0)
        before = before - jnp.max(before)
        return before, before

    first = jax.nn.log_softmax(unary[0])
    _, alphas = jax.lax.scan(forward, first, (unary[1:], links))
    _, betas = jax.lax.scan(backward, jnp.zeros_like(first), (unary[1:], links), reverse=True)
    alphas = jnp.concatenate([first[None], alphas])
    betas = jnp.concatenate([betas, jnp.zeros_like(first)[None]])
    joint = links + alphas[:-1, None, :] + (unary + betas)[1:, :, None]
    pairs = jax.nn.softmax(joint, axis=(1, 2))
    return jax.nn.softmax(alphas + betas, axis=1), pairs


def _free_energy(
    model: POMDP, window: _Window, states: Sequence[Array], pairs: Sequence[Array]
) -> Array:
    """``E_q log q - E_q log p`` of the window, in nats."""
    total = jnp.zeros((), states[0].dtype)
    for f, (marginals, pair) in enumerate(zip(states, pairs, strict=True)):
        total += jnp.sum(xlogy(pair, pair)) - jnp.sum(xlogy(marginals[1:-1], marginals[1:-1]))
        if len(marginals) == 1:
            total += jnp.sum(xlogy(marginals, marginals))
        total -= jnp.sum(marginals[0] * window.start[f])
        beliefs = (pair, marginals[1:], tuple(x[:-1] for x in states))
        total -= jnp.sum(
            jax.vmap(lambda table, b: _expected_transition(model, f, table, [], b))(  # noqa: B023
                window.transitions[f], beliefs
            )
        )
    for term, factors in zip(window.likelihoods, model.A_dependencies, strict=True):
        total -= jnp.sum(jax.vmap(contract)(term, {a: states[f] for a, f in enumerate(factors)}))
    return total


def smooth_states(
    model: POMDP,
    observations: Sequence[Array],
    actions: Array,
    *,
    mask: Array | None = None,
    num_sweeps: int | None = None,
) -> Smoothed:
    """The structured posterior over a window: a Markov chain for each factor.

    Args:
        model: the model.
        observations: integers ``[t]`` for each modality.
        actions: controls of each factor between the moments, integers ``[t - 1, f]``; one that does
            not exist gives NaN.
        mask: booleans ``[t, m]``, True where there is an observation; None where all are.
        num_sweeps: sweeps over the factors; by default 16, or 1 with one factor, which is exact.

    Returns:
        Beliefs about states and pairs of them, and F, which is at least minus the log evidence and
        equal to it with one factor.

    Raises:
        ValueError: when arguments do not fit the model.

    Source: Saul and Jordan, Exploiting tractable substructures in intractable networks (1995).

    >>> see, stay = jnp.array([[0.9, 0.2], [0.1, 0.8]]), jnp.eye(2)[..., None]
    >>> model = POMDP([see], [stay], [jnp.zeros(2)], [jnp.array([0.5, 0.5])])
    >>> found = smooth_states(model, [jnp.array([0, 0])], jnp.zeros((1, 1), int))
    >>> [round(float(q), 4) for q in found.states[0][:, 0]]
    [0.9529, 0.9529]
    """
    window = _window(model, observations, actions, mask)
    if num_sweeps is None:
        num_sweeps = 1 if len(model.D) == 1 else 16
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps must be at least 1, got {num_sweeps}")
    steps = window.likelihoods[0].shape[0]
    # Every chain begins with what it would do alone, its likelihoods unknown.
    states = [jnp.broadcast_to(d, (steps, d.size)) for d in model.D]
    pairs = [x[1:, :, None] * x[:-1, None, :] for x in states]

    def sweep(carry: tuple, _: None) -> tuple[tuple, Array]:
        states, pairs = (list(part) for part in carry)
        for f in range(len(states)):
            states[f], pairs[f] = _chain(*_potentials(model, window, f, states, pairs))
        return (tuple(states), tuple(pairs)), _free_energy(model, window, states, pairs)

    first = _free_energy(model, window, states, pairs)
    carry, energies = jax.lax.scan(sweep, (tuple(states), tuple(pairs)), None, length=num_sweeps)
    info = StateInfo(energies[-1], jnp.concatenate([first[None], energies]))
    return Smoothed(*carry, info)


def marginal_message_passing(
    model: POMDP,
    observations: Sequence[Array],
    actions: Array,
    *,
    mask: Array | None = None,
    num_sweeps: int = 16,
) -> tuple[Array, ...]:
    """Beliefs that are a product over factors and time, by marginal message passing.

    ``log q_t = E log p(o_t | s) + (log B q_{t-1} + log B^T q_{t+1}) / 2``, with the columns of
    ``B^T`` normalised and D in the place of ``B q`` at first. The last state, after which nothing
    comes, has all of the message from before and not half of it. For comparison with programs that
    infer so; each transition may depend on its own factor alone.

    Args:
        model: the model.
        observations: integers ``[t]`` for each modality.
        actions: controls of each factor between the moments, integers ``[t - 1, f]``; one that does
            not exist gives NaN.
        mask: booleans ``[t, m]``, True where there is an observation; None where all are.
        num_sweeps: sweeps over all factors and times.

    Returns:
        Probabilities for each factor, ``[t, s_f]``.

    Raises:
        ValueError: when a transition depends on another factor, or arguments do not fit.

    Source: Parr, Markovic, Kiebel and Friston, Neuronal message passing using mean-field, Bethe,
    and marginal approximations, Scientific Reports 9 (2019) 1889.

    >>> see, stay = jnp.array([[0.9, 0.2], [0.1, 0.8]]), jnp.eye(2)[..., None]
    >>> model = POMDP([see], [stay], [jnp.zeros(2)], [jnp.array([0.5, 0.5])])
    >>> (q,) = marginal_message_passing(model, [jnp.array([0, 0])], jnp.zeros((1, 1), int))
    >>> q.shape
    (2, 2)
    """
    for f, factors in enumerate(model.B_dependencies):
        if factors != (f,):
            raise ValueError(
                f"marginal message passing needs B_dependencies[{f}] = [{f}], got {list(factors)}"
            )
    window = _window(model, observations, actions, mask)
    steps, actions = window.likelihoods[0].shape[0], jnp.asarray(actions)
    onward = [_taken(b, actions[:, f]) for f, b in enumerate(model.B)]
    back = [jnp.swapaxes(b, 1, 2) for b in onward]
    back = [
        b / jnp.maximum(jnp.sum(b, axis=1, keepdims=True), jnp.finfo(b.dtype).tiny) for b in back
    ]

    def message(matrices: Array, q: Array) -> Array:
        return safe_log(jax.vmap(lambda b, p: contract(b, {1: p}))(matrices, q))

    def sweep(carry: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
        states = list(carry)
        for f, q in enumerate(states):
            past = jnp.concatenate([window.start[f][None], message(onward[f], q[:-1])])
            future = jnp.concatenate([message(back[f], q[1:]), jnp.zeros_like(q[:1])])
            both = (jnp.arange(steps) < steps - 1)[:, None]
            logits = jnp.where(both, (past + future) / 2, past)
            for said in _said_of(model, window, f, states):
                logits += said
            states[f] = jax.nn.softmax(logits, axis=1)
        return tuple(states), None

    start = tuple(jnp.broadcast_to(d, (steps, d.size)) for d in model.D)
    return jax.lax.scan(sweep, start, None, length=num_sweeps)[0]
