"""Loopy belief propagation on grids of discrete variables, a million of them in one call.

``p(x) = exp(sum f_v(x_v) + sum g_e(x_a, x_b)) / Z`` with pairs of horizontal and vertical
neighbours. All messages are renewed at once from the old ones (flooding), and mixed with them
(damping). On a single row or column the result is exact; on a grid it is a stationary point of the
Bethe free energy, an approximation. The values of a variable are the first axis inside, so that
every operation runs along the grid.

Source: Yedidia, Freeman and Weiss, Constructing free-energy approximations and generalized belief
propagation algorithms (2005), sections 3 and 4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import as_floating, common_dtype
from vfejax.types import Array

__all__ = ["LoopyInfo", "belief_propagation", "potts"]

# Loops over the values of a variable that are no longer are written out.
_MAX_WRITTEN_OUT = 3


class LoopyInfo(NamedTuple):
    """How the messages settled.

    Attributes:
        num_steps: floods done.
        residual: the largest change of a log message in the last flood, before damping; nats.
        converged: whether it is at most the tolerance; False where anything is NaN, or no
            assignment is possible.
        bethe_free_energy: of the beliefs returned, in nats: ``-log Z`` on a row or column.
    """

    num_steps: Array
    residual: Array
    converged: Array
    bethe_free_energy: Array


class _Messages(NamedTuple):
    """Log messages that arrive at each variable ``[k, h, w]``, by where they come from."""

    left: Array
    right: Array
    up: Array
    down: Array


def potts(coupling: Array, num_values: int) -> Array:
    """Log potential of a pair that gains ``coupling`` nats where both are equal, ``[k, k]``.

    For Ising spins with energy ``-J s s'`` the coupling is 2 J.

    >>> potts(0.5, 2).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    coupling = as_floating(coupling, "coupling")
    return coupling * jnp.eye(num_values, dtype=coupling.dtype)


def _over_values(combine: Callable, of: Callable, xs: Any, first: Array) -> Array:
    """``of(x)`` of each item ``x`` of the first axis of ``xs``, combined from ``first`` on.

    XLA reduces a first axis by strides on a CPU: 20 times as slow for a million variables.
    """

    def step(total: Array, x: Any) -> tuple[Array, None]:
        return combine(total, of(x)), None

    num = jax.tree.leaves(xs)[0].shape[0]
    return jax.lax.scan(step, first, xs, unroll=num if num <= _MAX_WRITTEN_OUT else 1)[0]


def _highest(of: Callable, xs: Any, like: Array) -> Array:
    """The largest ``of(x)``; 0 where all are -inf."""
    highest = _over_values(jnp.maximum, of, xs, jnp.full_like(like, -jnp.inf))
    return jnp.where(highest == -jnp.inf, 0.0, highest)


def _log_sum(of: Callable, xs: Any, like: Array) -> Array:
    """``log sum exp of(x)`` over the items ``x`` of the first axis of ``xs``."""
    highest = _highest(of, xs, like)
    total = _over_values(jnp.add, lambda x: jnp.exp(of(x) - highest), xs, jnp.zeros_like(like))
    return jnp.log(total) + highest


def _itself(x: Array) -> Array:
    return x


def _normalised(x: Array) -> Array:
    """Log messages with maximum 0."""
    return x - _highest(_itself, x, x[0])[None]


def _arrange(nodes: Array, across: Array, along: Array) -> tuple[Array, ...]:
    """Potentials with their values in front: ``[k, h, w]``, and ``[k, k, *grid]`` twice."""
    nodes, across, along = (
        as_floating(x, name)
        for x, name in (
            (nodes, "log_nodes"),
            (across, "log_horizontal"),
            (along, "log_vertical"),
        )
    )
    if nodes.ndim != 3 or not nodes.size:
        raise ValueError(f"log_nodes must be [h, w, k] and not empty, got {list(nodes.shape)}")
    h, w, k = nodes.shape
    pairs = (("log_horizontal", across, (h, w - 1)), ("log_vertical", along, (h - 1, w)))
    for name, x, grid in pairs:
        if x.shape not in ((k, k), (*grid, k, k)):
            raise ValueError(
                f"{name} must be {[k, k]} or {[*grid, k, k]}, got shape {list(x.shape)}"
            )
    dtype = common_dtype(nodes, across, along)
    placed = [
        x.reshape(1, 1, k, k).transpose(2, 3, 0, 1)
        if x.ndim == 2
        else jnp.moveaxis(x, (0, 1), (2, 3))
        for x in (across, along)
    ]
    return jnp.moveaxis(nodes, -1, 0).astype(dtype), *(x.astype(dtype) for x in placed)


def _cavities(nodes: Array, m: _Messages) -> _Messages:
    """What each variable knows without one of its neighbours: sums, no differences."""
    rows, columns = nodes + m.up + m.down, nodes + m.left + m.right
    return _Messages(rows + m.right, rows + m.left, columns + m.down, columns + m.up)


def _send(pairs: Array, cavity: Array, axis: int) -> Array:
    """``log sum_a exp(g(a, b) + cavity(a))`` for each b, summed over ``axis`` of the pairs."""

    def term(x: tuple[Array, Array]) -> Array:
        return jnp.broadcast_to(x[0], cavity.shape) + x[1][None]

    return _normalised(_log_sum(term, (jnp.moveaxis(pairs, axis, 0), cavity), cavity))


def _flood(nodes: Array, across: Array, along: Array, messages: _Messages) -> _Messages:
    cavity = _cavities(nodes, messages)
    edge = (0, 0)
    to_right = _send(across, cavity.right[:, :, :-1], 0)
    to_left = _send(across, cavity.left[:, :, 1:], 1)
    to_below = _send(along, cavity.down[:, :-1], 0)
    to_above = _send(along, cavity.up[:, 1:], 1)
    return _Messages(
        jnp.pad(to_right, (edge, edge, (1, 0))),
        jnp.pad(to_left, (edge, edge, (0, 1))),
        jnp.pad(to_below, (edge, (1, 0), edge)),
        jnp.pad(to_above, (edge, (0, 1), edge)),
    )


def _mix(old: Array, new: Array, damping: Array) -> Array:
    return jnp.where(new == -jnp.inf, new, damping * old + (1.0 - damping) * new)


def _change(old: _Messages, new: _Messages) -> Array:
    """Largest change; what is and stays impossible does not change."""
    changes = [
        jnp.max(jnp.where(a == b, 0.0, jnp.abs(a - b)), initial=0.0)
        for a, b in zip(old, new, strict=True)
    ]
    return jnp.max(jnp.stack(changes))


def _beliefs(log_beliefs: Array) -> Array:
    return log_beliefs - _log_sum(_itself, log_beliefs, log_beliefs[0])[None]


def _pair_energy(pairs: Array, first: Array, second: Array, own: Array, other: Array) -> Array:
    """``sum b (log b - log b_1 - log b_2 - g)`` over all pairs of one direction."""

    def joint(x: tuple[Array, ...]) -> Array:
        return jnp.broadcast_to(x[0], second.shape) + x[1][None] + second

    by_second = _log_sum(joint, (pairs, first), second)
    total = _log_sum(_itself, by_second, by_second[0])

    def energy(x: tuple[Array, ...]) -> Array:
        log_b = joint(x) - total[None]
        possible = log_b != -jnp.inf
        rest = log_b - jnp.broadcast_to(x[0], log_b.shape) - x[2][None] - other
        return jnp.where(possible, jnp.exp(log_b) * jnp.where(possible, rest, 0.0), 0.0)

    return jnp.sum(_over_values(jnp.add, energy, (pairs, first, own), jnp.zeros_like(second)))


def _bethe(nodes: Array, across: Array, along: Array, messages: _Messages) -> Array:
    cavity = _cavities(nodes, messages)
    log_b = _beliefs(cavity.left + messages.left)
    possible = log_b != -jnp.inf
    single = jnp.where(possible, jnp.exp(log_b) * jnp.where(possible, log_b - nodes, 0.0), 0.0)
    horizontal = _pair_energy(
        across, cavity.right[:, :, :-1], cavity.left[:, :, 1:], log_b[:, :, :-1], log_b[:, :, 1:]
    )
    vertical = _pair_energy(
        along, cavity.down[:, :-1], cavity.up[:, 1:], log_b[:, :-1], log_b[:, 1:]
    )
    return jnp.sum(single) + horizontal + vertical


def belief_propagation(
    log_nodes: Array,
    log_horizontal: Array,
    log_vertical: Array,
    *,
    damping: float = 0.5,
    tolerance: float = 1e-4,
    max_steps: int = 200,
) -> tuple[Array, LoopyInfo]:
    """Beliefs of the variables of a grid by flooding with damping. O(h w k^2) a flood.

    Args:
        log_nodes: f, ``[h, w, k]``, in nats; -inf for what is impossible.
        log_horizontal: g of a variable (first axis) and its right neighbour, ``[k, k]`` or ``[h, w
            - 1, k, k]``.
        log_vertical: of a variable and the one below it, ``[k, k]`` or ``[h - 1, w, k, k]``.
        damping: the part of an old log message that stays, from 0 to below 1.
        tolerance: floods end when no log message changes by more, in nats.
        max_steps: the most floods.

    Returns:
        Probabilities ``[h, w, k]``, and how the messages settled. All are NaN where a potential is.
        Not differentiable in reverse mode: the number of floods depends on the values.

    Raises:
        ValueError: when an argument does not fit.

    >>> nodes = jnp.zeros((1, 3, 2)).at[0, 0, 1].set(-2.0)
    >>> beliefs, info = belief_propagation(nodes, potts(1.0, 2), potts(1.0, 2))
    >>> print(beliefs[0, :, 0].round(2), bool(info.converged))
    [0.88 0.68 0.58] True
    """
    if not 0.0 <= damping < 1.0:
        raise ValueError(f"damping must be from 0 to below 1, got {damping}")
    nodes, across, along = _arrange(log_nodes, log_horizontal, log_vertical)
    kept = jnp.asarray(damping, nodes.dtype)

    def step(carry: tuple) -> tuple:
        messages, _, i = carry
        new = _flood(nodes, across, along, messages)
        mixed = _Messages(*(_mix(a, b, kept) for a, b in zip(messages, new, strict=True)))
        return mixed, _change(messages, new), i + 1

    start = _Messages(*[jnp.zeros_like(nodes)] * 4)
    messages, residual, steps = jax.lax.while_loop(
        lambda carry: (carry[2] < max_steps) & (carry[1] > tolerance),
        step,
        (start, jnp.asarray(jnp.inf, nodes.dtype), jnp.asarray(0)),
    )
    log_b = _beliefs(_cavities(nodes, messages).left + messages.left)
    energy = _bethe(nodes, across, along, messages)
    converged = (residual <= tolerance) & ~jnp.isnan(energy)
    info = LoopyInfo(steps, residual, converged, energy)
    # Floods end at the first NaN, before it has reached the variables far from it.
    beliefs = jnp.where(jnp.isnan(residual), jnp.nan, jnp.exp(log_b))
    return jnp.moveaxis(beliefs, 0, -1), info
