"""Chains of kicks and drifts whose gradient stores no intermediate states: it reconstructs them
backward.

A layer moves a pair (q, p) by two shears,

    p' = p + kick(q),    q' = q + drift(p'),

whatever the two functions are: those of a leapfrog step, ``kick = -dt dV/dq``, ``drift = dt
dT/dp``, or any others. What it was given is known from what it returns, ``q = q' - drift(p')``,
``p = p' - kick(q)``, and the determinant of its Jacobian is 1.

:func:`stored` is a plain scan over layers, whose gradient remembers the states of all of them;
:func:`recomputed` remembers what each layer was given and computes it again; :func:`reconstructed`
remembers what the last layer returned. The three have the same values, and the same gradient up to
rounding.

The last two cost as much: each kick and drift once more, a third more products. What is
reconstructed differs from what was there by rounding, which layers pass back like any other change
of the state: the error of the gradient is about the unit roundoff times the number of layers, times
the growth of a change of the last state on its way back to the first. A flow that contracts much in
some direction should not be reconstructed, because its inverse expands there.

Source: Dinh, Krueger, Bengio, NICE (2015), for additive couplings; Gomez et al., The reversible
residual network (2017), for their gradient without activations; Chang et al., Reversible
architectures for arbitrarily deep residual neural networks (2018), for layers as steps of a
Hamiltonian flow.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.types import Array, PyTree

__all__ = ["KickDrift", "Pair", "recomputed", "reconstructed", "reverse", "stored"]


class Pair(NamedTuple):
    """Position q and momentum p: arrays, or pytrees of arrays, of the same shapes."""

    position: PyTree
    momentum: PyTree


def _nothing(*_: Any) -> None:
    """No output of a layer."""


class KickDrift(NamedTuple):
    """What a layer does, the same functions for all layers of a chain, pure.

    Attributes:
        kick: ``(layer, q, constants) -> (change of p, found)``; found is any pytree of arrays that
            a kick computes on the way and ``observe`` may want.
        drift: ``(layer, p, constants) -> change of q``.
        observe: ``(layer, before, after, found, constants) -> output`` of a layer, once it is done;
            by default there is none.
    """

    kick: Callable[[Any, Any, Any], tuple[PyTree, PyTree]]
    drift: Callable[[Any, Any, Any], PyTree]
    observe: Callable[[Any, Pair, Pair, Any, Any], PyTree] = _nothing


def _add(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, x, y)


def _subtract(x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, x, y)


def _like(change: PyTree, state: PyTree) -> PyTree:
    """A change as wide as what it is added to, so that the slopes of the two have one type."""
    return jax.tree.map(
        lambda c, x: jnp.broadcast_to(c, jnp.shape(x)).astype(jnp.result_type(x)), change, state
    )


def _forward(
    step: KickDrift, constants: PyTree, before: Pair, layer: PyTree
) -> tuple[Pair, PyTree]:
    change, found = step.kick(layer, before.position, constants)
    momentum = _add(before.momentum, change)
    after = Pair(_add(before.position, step.drift(layer, momentum, constants)), momentum)
    return after, step.observe(layer, before, after, found, constants)


def stored(
    step: KickDrift, pair: Pair, inputs: PyTree, constants: PyTree = None
) -> tuple[Pair, PyTree]:
    """Run through the layers; the gradient remembers every state on the way.

    Args:
        step: what each layer does.
        pair: what the first one is given.
        inputs: the layers' own weights, keys and other inputs, a pytree of arrays ``[num_layers,
            ...]``.
        constants: further arrays, the same for all layers, to which no gradient flows.

    Returns:
        What the last layer returns, and the outputs stacked by layer, ``[num_layers, ...]``.

    >>> swing = KickDrift(lambda dt, q, _: (-dt * q, None), lambda dt, p, _: dt * p)
    >>> (q, p), _ = stored(swing, Pair(1.0, 0.0), jnp.full(2, 0.5))
    >>> q.item(), p.item()
    (0.3125, -0.875)
    """
    constants = jax.lax.stop_gradient(constants)
    return jax.lax.scan(partial(_forward, step, constants), pair, inputs)


def recomputed(
    step: KickDrift, pair: Pair, inputs: PyTree, constants: PyTree = None
) -> tuple[Pair, PyTree]:
    """:func:`stored`, whose gradient remembers what each layer was given, and nothing else.

    Args:
        step: what each layer does.
        pair: what the first one is given.
        inputs: the layers' own, ``[num_layers, ...]``.
        constants: further arrays, the same for all layers, to which no gradient flows.

    Returns:
        What the last layer returns, and the outputs stacked by layer.

    >>> swing = KickDrift(lambda dt, q, _: (-dt * q, None), lambda dt, p, _: dt * p)
    >>> def end(q):
    ...     return recomputed(swing, Pair(q, 0.0), jnp.full(2, 0.5))[0].position
    >>> jax.grad(end)(1.0).item()
    0.3125
    """
    constants = jax.lax.stop_gradient(constants)
    once = jax.checkpoint(partial(_forward, step), prevent_cse=False)
    return jax.lax.scan(lambda pair, layer: once(constants, pair, layer), pair, inputs)


def reverse(step: KickDrift, pair: Pair, inputs: PyTree, constants: PyTree = None) -> Pair:
    """What the first layer was given, from what the last one returned, up to rounding.

    Args:
        step: what each layer does.
        pair: what the last one returned.
        inputs: the layers' own, ``[num_layers, ...]``.
        constants: further arrays, the same for all layers.

    >>> swing = KickDrift(lambda dt, q, _: (-dt * q, None), lambda dt, p, _: dt * p)
    >>> q, p = reverse(swing, Pair(0.3125, -0.875), jnp.full(2, 0.5))
    >>> q.item(), p.item()
    (1.0, 0.0)
    """

    def back(after: Pair, layer: PyTree) -> tuple[Pair, None]:
        change = step.drift(layer, after.momentum, constants)
        position = _subtract(after.position, change)
        change, _ = step.kick(layer, position, constants)
        return Pair(position, _subtract(after.momentum, change)), None

    return jax.lax.scan(back, pair, inputs, reverse=True)[0]


def _learning(x: Array) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _split(inputs: PyTree) -> tuple[PyTree, PyTree]:
    """Floating leaves, and keys, integers and booleans; None in the places of the others."""
    floating = jax.tree.map(lambda x: x if _learning(x) else None, inputs)
    return floating, jax.tree.map(lambda x: None if _learning(x) else x, inputs)


def _join(floating: PyTree, others: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, y: y if x is None else x, floating, others, is_leaf=lambda x: x is None
    )


def reconstructed(
    step: KickDrift, pair: Pair, inputs: PyTree, constants: PyTree = None
) -> tuple[Pair, PyTree]:
    """:func:`stored`, whose gradient remembers what the last layer returned, and nothing of the
    layers before it: memory does not grow with their number, but for inputs and outputs.

    Reverse mode only. No gradient flows to what the functions of a step close over: what learns is
    among the inputs. Random keys among the inputs are used again on the way back, so that what is
    random (dropout) is the same.

    Args:
        step: what each layer does.
        pair: what the first one is given.
        inputs: the layers' own, ``[num_layers, ...]``.
        constants: further arrays, the same for all layers, to which no gradient flows.

    Returns:
        What the last layer returns, and the outputs stacked by layer.

    >>> swing = KickDrift(lambda dt, q, _: (-dt * q, None), lambda dt, p, _: dt * p)
    >>> def end(q):
    ...     return reconstructed(swing, Pair(q, 0.0), jnp.full(2, 0.5))[0].position
    >>> jax.grad(end)(1.0).item()
    0.3125
    """

    @jax.custom_vjp
    def run(pair: Pair, floating: PyTree, others: PyTree, constants: PyTree) -> Any:
        return stored(step, pair, _join(floating, others), constants)

    def forward(pair: Pair, floating: PyTree, others: PyTree, constants: PyTree) -> Any:
        after, outputs = run(pair, floating, others, constants)
        return (after, outputs), (after, floating, others, constants)

    def backward(residuals: Any, cotangents: Any) -> Any:
        after, floating, others, constants = residuals
        (_, slope), slopes = jax.lax.scan(
            partial(_back, step, constants),
            (after, cotangents[0]),
            (floating, others, cotangents[1]),
            reverse=True,
        )
        return slope, slopes, None, None

    run.defvjp(forward, backward)
    return run(pair, *_split(inputs), constants)


def _back(step: KickDrift, constants: PyTree, carry: Any, layer: Any) -> Any:
    """One layer backwards: what it was given, and the slopes of that and of its weights. Kick and
    drift are computed once, for the state and for the slopes.
    """
    after, slope = carry
    floating, others, output_slope = layer

    def of(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda floating, *x: function(_join(floating, others), *x, constants)

    def drift(layer: Any, momentum: Any, constants: Any) -> Any:
        return _like(step.drift(layer, momentum, constants), after.position)

    def kick(layer: Any, position: Any, constants: Any) -> Any:
        change, found = step.kick(layer, position, constants)
        return _like(change, after.momentum), found

    change, pull_drift = jax.vjp(of(drift), floating, after.momentum)
    position = _subtract(after.position, change)
    (change, found), pull_kick = jax.vjp(of(kick), floating, position)
    before = Pair(position, _subtract(after.momentum, change))
    _, pull_observe = jax.vjp(of(step.observe), floating, before, after, found)
    seen, from_before, from_after, from_found = pull_observe(output_slope)
    position_slope, momentum_slope = _add(slope, from_after)
    drifted, through = pull_drift(position_slope)
    momentum_slope = _add(momentum_slope, through)
    kicked, through = pull_kick((momentum_slope, from_found))
    slope = Pair(_add(position_slope, through), momentum_slope)
    return (before, _add(slope, from_before)), _add(_add(seen, drifted), kicked)
