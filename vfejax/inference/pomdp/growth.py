"""Growing a model by a new state, when the evidence of the data asks for it.

With Dirichlet counts a before the data, beliefs Dir(b) about columns and a structured posterior
over the states of every window, the log evidence is at least

    L = -sum_n F_n - sum KL(Dir(b) || Dir(a)),     F_n at probabilities exp(psi(b) - psi(b_0))

:func:`fit_counts` raises L by turns: ``b = a + expected counts``. A further state is tried where
one of the old ones is split, and kept when L is larger with it. Its price is in the divergence, so
that a state that the data do not need lowers L. S states can be named in S! ways that L, which sees
one of them, does not count; a state more is worth another ``log(S + 1)`` nats for that.

:func:`vfejax.inference.pomdp.reduction.prune` goes the other way. Shapes change as a model grows,
so that :func:`grow_states` is a loop on the host that compiles once for each size.
"""

import math
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma

from vfejax.inference.pomdp.learning import Counts, count_window, expected_model
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.pomdp.reduction import log_beta
from vfejax.inference.pomdp.windows import smooth_states
from vfejax.types import Array

__all__ = ["Fit", "Growth", "add_state", "dirichlet_divergence", "fit_counts", "grow_states"]


class Fit(NamedTuple):
    """Beliefs about the arrays of a model, from data.

    Attributes:
        counts: after the data.
        elbo: L in nats, at most the log evidence.
        elbos: L before each update, ``[iterations]``; it does not fall.
    """

    counts: Counts
    elbo: Array
    elbos: Array


class Growth(NamedTuple):
    """A model that has grown.

    Attributes:
        model: with the expectation of the counts.
        prior: counts before the data, of its size.
        fit: of the data.
        evidence: L plus the logarithm of the number of names, for each number of states that was
            tried, from the first one on; the last is that of a state too many, unless the largest
            number was reached.
    """

    model: POMDP
    prior: Counts
    fit: Fit
    evidence: tuple[float, ...]


def _log_means(counts: Array) -> Array:
    """``psi(a) - psi(a_0)`` over the first axis: E log theta; 0 where the count is 0."""
    possible = counts != 0
    total = jnp.sum(counts, axis=0, keepdims=True)
    own = digamma(jnp.where(possible, counts, 1.0)) - digamma(total)
    return jnp.where(possible, own, 0.0)


def dirichlet_divergence(posterior: Array, prior: Array) -> Array:
    """``KL(Dir(b) || Dir(a))`` of each column, in nats: ``[k, ...]`` twice to ``[...]``.

    Both have their zeros at the same places.

    >>> float(dirichlet_divergence(jnp.array([2.0, 1.0]), jnp.array([2.0, 1.0])))
    0.0
    """
    pull = jnp.sum((posterior - prior) * _log_means(posterior), axis=0)
    return log_beta(prior) - log_beta(posterior) + pull


def _typical(model: POMDP, counts: Counts) -> POMDP:
    """The model with ``exp E log theta`` in the place of what is learned; columns sum to less."""
    known = {name: value for name, value in counts._asdict().items() if value is not None}
    means = jax.tree.map(lambda a: jnp.where(a == 0, 0.0, jnp.exp(_log_means(a))), known)
    return model.replace(**means)


def fit_counts(
    model: POMDP,
    prior: Counts,
    observations: Sequence[Array],
    actions: Array,
    *,
    start: Counts | None = None,
    num_iterations: int = 50,
    num_sweeps: int | None = None,
) -> Fit:
    """Dirichlet beliefs about A, B and D from windows of data, by turns with beliefs about states.

    Args:
        model: what is not learned, and all sizes.
        prior: counts before the data, of any of A, B and D.
        observations: integers ``[n, t]`` for each modality: n windows of t moments.
        actions: controls of each factor between the moments, integers ``[n, t - 1, f]``.
        start: counts to begin with; by default the prior, whose states must not all be alike then.
        num_iterations: updates.
        num_sweeps: of :func:`vfejax.inference.pomdp.windows.smooth_states`.

    Returns:
        Counts after the data, and L. With one factor L is exact in the states.

    Raises:
        ValueError: when there are counts of C or E.

    Source: Beal, Variational algorithms for approximate Bayesian inference (2003), chapter 3, with
    controls.

    >>> model = POMDP([jnp.eye(2)], [jnp.ones((2, 2, 1)) / 2], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> seen, actions = [jnp.array([[0, 0, 1]])], jnp.zeros((1, 2, 1), int)
    >>> fit = fit_counts(model, Counts(B=(jnp.ones((2, 2, 1)),)), seen, actions)
    >>> round(float(fit.elbo), 4)  # log(1 / 2) for the start, log(1 / 6) for the moves
    -2.4849
    """
    if prior.C is not None or prior.E is not None:
        raise ValueError("only A, B and D are fitted; prior must have no counts of C and E")
    learned = [name for name in "ABD" if getattr(prior, name) is not None]

    def expect(counts: Counts) -> tuple[Counts, Array]:
        """Expected counts of all windows, and L."""
        known = _typical(model, counts)

        def window(seen: Sequence[Array], taken: Array) -> tuple[Counts, Array]:
            found = smooth_states(known, seen, taken, num_sweeps=num_sweeps)
            return count_window(known, seen, taken, found), found.info.free_energy

        events, energies = jax.vmap(window)([jnp.asarray(o) for o in observations], actions)
        paid = jax.tree.map(lambda b, a: jnp.sum(dirichlet_divergence(b, a)), counts, prior)
        total = -jnp.sum(energies) - sum(jax.tree.leaves(paid))
        events = jax.tree.map(lambda x: jnp.sum(x, axis=0), events)
        return Counts(**{name: getattr(events, name) for name in learned}), total

    def update(carry: tuple[Counts, Counts], _: None) -> tuple[tuple[Counts, Counts], Array]:
        counts = carry[0]
        events, value = expect(counts)
        # What cannot happen before the data cannot after them.
        after = jax.tree.map(lambda a, w: jnp.where(a == 0, a, a + w), prior, events)
        return (after, counts), value

    # The last turn is there for the L of the counts before it.
    first = prior if start is None else start
    (_, counts), elbos = jax.lax.scan(update, (first, first), None, length=num_iterations + 1)
    return Fit(counts, elbos[-1], elbos[:-1])


def _axes_of(model: POMDP, factor: int) -> dict[str, list[tuple[int, ...]]]:
    """The axes of each array of A, B and D that run over the states of a factor."""
    transitions = []
    for f, factors in enumerate(model.B_dependencies):
        own = (0,) if f == factor else ()
        transitions.append((*own, *(axis + 1 for axis, d in enumerate(factors) if d == factor)))
    return {
        "A": [
            tuple(axis + 1 for axis, d in enumerate(factors) if d == factor)
            for factors in model.A_dependencies
        ],
        "B": transitions,
        "D": [(0,) if f == factor else () for f in range(len(model.D))],
    }


def add_state(
    model: POMDP, counts: Counts, factor: int, count: Array | float | None = None
) -> Counts:
    """Counts of a model with one more state of a factor, the last one.

    Args:
        model: gives the dependencies.
        counts: of all arrays of A, B and D that know the factor.
        factor: whose states become one more.
        count: the entries that are new; None for the mean of those that an array has.

    Raises:
        ValueError: when the factor does not exist, or an array that knows it has no counts.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> counts = Counts(A=model.A, B=model.B, D=model.D)
    >>> add_state(model, counts, 0, 0.25).A[0].tolist()
    [[1.0, 0.0, 0.25], [0.0, 1.0, 0.25]]
    """
    if not 0 <= factor < len(model.D):
        raise ValueError(f"factor must be 0 to {len(model.D) - 1}, got {factor}")
    found: dict[str, Any] = {}
    for name, every in _axes_of(model, factor).items():
        arrays = getattr(counts, name)
        if arrays is None and any(every):
            raise ValueError(f"{name} knows factor {factor} and needs counts to grow")
        if arrays is not None:
            found[name] = tuple(
                jnp.pad(
                    x,
                    [(0, int(a in axes)) for a in range(x.ndim)],
                    constant_values=jnp.mean(x) if count is None else count,
                )
                for x, axes in zip(arrays, every, strict=True)
            )
    return counts._replace(**found)


def _split(model: POMDP, counts: Counts, factor: int, key: Array) -> Counts:
    """Counts in which one of the states is split, its halves made different: ``[s, ...]``."""

    def divide(state: Array, key: Array) -> Counts:
        found: dict[str, Any] = {}
        for name, every in _axes_of(model, factor).items():
            arrays = []
            for array, axes in zip(getattr(counts, name) or (), every, strict=False):
                for axis in axes:
                    half = jnp.where(jnp.arange(array.shape[axis]) == state, 0.5, 1.0)
                    shape = [1] * array.ndim
                    shape[axis] = -1
                    array = array * half.astype(array.dtype).reshape(shape)
                    new = jax.lax.dynamic_slice_in_dim(array, state, 1, axis)
                    array = jnp.concatenate([array, new], axis=axis)
                key, own = jax.random.split(key)
                noise = jnp.exp(0.5 * jax.random.normal(own, array.shape, array.dtype))
                arrays.append(array * noise if axes else array)
            found[name] = tuple(arrays) or None
        return counts._replace(**found)

    num = model.num_states[factor]
    return jax.vmap(divide)(jnp.arange(num), jax.random.split(key, num))


def grow_states(
    model: POMDP,
    prior: Counts,
    observations: Sequence[Array],
    actions: Array,
    key: Array,
    *,
    factor: int = 0,
    max_states: int = 16,
    num_iterations: int = 50,
) -> Growth:
    """Add states to a factor as long as the evidence of the data rises.

    Args:
        model: to begin with, often with one state of the factor.
        prior: counts before the data of its A, B and D, alike for all states of the factor. New
            entries have the mean of those that an array has.
        observations: integers ``[n, t]`` for each modality.
        actions: controls of each factor between the moments, integers ``[n, t - 1, f]``.
        key: a random key, for the noise that tells the halves of a state apart.
        factor: whose states become more.
        max_states: where it ends in any case.
        num_iterations: updates of each fit.

    Returns:
        The model with the largest evidence on the way.

    Raises:
        ValueError: when the factor does not exist, or an array that knows it has no counts.

    >>> ones = jnp.ones((1, 1, 1))
    >>> model = POMDP([jnp.ones((2, 1)) / 2], [ones], [jnp.zeros(2)], [jnp.ones(1)])
    >>> prior = Counts(A=(jnp.ones((2, 1)),), B=(ones,), D=(jnp.ones(1),))
    >>> seen, actions = [jnp.array([[0] * 20, [1] * 20])], jnp.zeros((2, 19, 1), int)
    >>> grow_states(model, prior, seen, actions, jax.random.key(0)).model.num_states
    (2,)
    """

    def fitted(model: POMDP, prior: Counts, start: Counts) -> Fit:
        return fit_counts(
            model, prior, observations, actions, start=start, num_iterations=num_iterations
        )

    wider = add_state(model, prior, factor)
    fit, names = fitted(model, prior, prior), 0.0
    evidence = [float(fit.elbo)]
    while model.num_states[factor] < max_states:
        key, own = jax.random.split(key)
        larger = expected_model(model, wider)
        starts = _split(model, fit.counts, factor, own)
        trials = jax.vmap(partial(fitted, larger, wider))(starts)
        best = jax.tree.map(itemgetter(int(jnp.argmax(trials.elbo))), trials)
        names += math.log(larger.num_states[factor])
        evidence.append(float(best.elbo) + names)
        if not evidence[-1] > evidence[-2]:
            break
        model, prior, fit = larger, wider, best
        wider = add_state(model, prior, factor)
    return Growth(expected_model(model, fit.counts), prior, fit, tuple(evidence))
