"""Paths of the generalised model of ``vfejax filter``: estimates, predictions, and a stream."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.filter.estimates import FREE_ENERGY, Engine, Estimates, half_width
from vfejax.cli.filter.generalized import KIND, Smooth, learner, start
from vfejax.cli.filter.path_moments import Moments, believe, later, now
from vfejax.cli.filter.stream import Answer, Stream, series_columns
from vfejax.inference.generalized_filtering import observation
from vfejax.inference.generalized_filtering.dynamic_expectation_maximization import LearningState
from vfejax.types import Array, PyTree

__all__ = ["engine", "path_stream"]


def state_names(smooth: Smooth) -> tuple[str, ...]:
    """Names of states and causes."""
    n, m = smooth.fields["gain"].shape
    return (*(f"state_{i}" for i in range(n)), *(f"cause_{i}" for i in range(m)))


def engine(smooth: Smooth, names: tuple[str, ...], values: np.ndarray) -> Engine:
    """The model of a series as the command runs it.

    Args:
        smooth: the model.
        names: of the series.
        values: rows ``[t, o]``, none of them missing, at least as many as a window has.
    """
    order, num = smooth.order, len(values)
    windows = np.swapaxes(np.lib.stride_tricks.sliding_window_view(values, order, axis=0), 1, 2)
    operators, covariances = map(np.stack, zip(*map(smooth.position, range(order)), strict=True))
    middle = order // 2
    method = learner(smooth)
    seen = observation(smooth.model(np.eye(order)), np.matmul(operators[middle], windows))
    value = compiled_once(lambda params: method.free_energy(params, seen))
    sources = _sources(num, order)

    def at(params: LearningState, window: Array, operator: Array, covariance: Array) -> Moments:
        return now(smooth, params, believe(smooth, params, window, operator, covariance))

    def ahead(num_steps: int, params: LearningState, window: Array) -> Moments:
        belief = believe(smooth, params, window, *smooth.position(order - 1))
        return later(smooth, params, belief, window, num_steps)

    every_row = compiled_once(jax.vmap(at, (None, 0, 0, 0)))
    next_row = compiled_once(jax.vmap(partial(ahead, 1), (None, 0)))

    def update(params: LearningState) -> tuple[LearningState, Array]:
        before = -method.free_energy(params, seen)
        return method.step(params, seen)[0], before

    def rows(params: LearningState, chosen: np.ndarray, places: np.ndarray) -> Moments:
        found = every_row(params, windows[chosen], operators[places], covariances[places])
        return jax.tree.map(np.asarray, found)

    def estimates(params: LearningState, which: str, interval: float, horizon: int) -> Estimates:
        following = jax.tree.map(lambda x: np.asarray(x)[:, 0], next_row(params, windows))
        predicted = jax.tree.map(lambda x: _after(x[:-1], num), following)
        found = rows(params, *sources[which]) if which in sources else predicted
        if which == "filtered":  # the first window begins with rows that no window ends at
            found = jax.tree.map(lambda x: _after(x[order - 1 :], num), found)
        if horizon:
            after = compiled_once(partial(ahead, horizon))(params, windows[-1])
            found = jax.tree.map(lambda a, b: np.concatenate([a, b]), found, after)
        off = (values - predicted.new) / np.sqrt(predicted.new_spread)
        evidence = -float(value(params))
        return _estimates(smooth, found, half_width(interval), evidence, off)

    return Engine(
        KIND,
        start(smooth),
        update,
        lambda params: -float(value(params)),
        estimates,
        lambda params: smooth.document(params, names),
        measure=FREE_ENERGY,
        num_blank={"smoothed": 0, "filtered": order - 1, "predicted": order},
    )


def _sources(num: int, order: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By the kind of estimate, of every row: the window that it is estimated from, and its place
    there. Filtered rows are the last of their window, smoothed ones its middle where they can be.
    """
    row = np.arange(num)
    filtering = np.clip(row - order + 1, 0, None)
    smoothing = np.clip(row - order // 2, 0, num - order)
    return {
        "filtered": (filtering, np.full(num, order - 1)),
        "smoothed": (smoothing, row - smoothing),
    }


def _after(found: np.ndarray, num: int) -> np.ndarray:
    """As many rows as the series has; NaN where there were too few before."""
    blank = np.full((num - len(found), *found.shape[1:]), np.nan)
    return np.concatenate([blank, found])


def _estimates(
    smooth: Smooth, found: Moments, width: float, evidence: float, off: np.ndarray
) -> Estimates:
    inner, outer, around = (
        width * np.sqrt(x) for x in (found.spread, found.new_spread, found.state_spread)
    )
    return Estimates(
        mean=np.asarray(found.signal),
        lower=np.asarray(found.signal - inner),
        upper=np.asarray(found.signal + inner),
        new_lower=np.asarray(found.new - outer),
        new_upper=np.asarray(found.new + outer),
        state_names=state_names(smooth),
        state_mean=np.asarray(found.state),
        state_lower=np.asarray(found.state - around),
        state_upper=np.asarray(found.state + around),
        states=None,
        log_evidence=evidence,
        residuals=off,
    )


def path_stream(smooth: Smooth, names: tuple[str, ...], width: float, which: str) -> Stream:
    """The model one row at a time, in the memory of a window.

    Args:
        smooth: the model.
        names: of the series.
        width: half the width of the intervals, in standard deviations.
        which: filtered or predicted.
    """
    order, params = smooth.order, start(smooth)
    position = smooth.position(order - 1)

    def numbers(found: Moments) -> Array:
        inner, outer, around = (
            width * jnp.sqrt(x) for x in (found.spread, found.new_spread, found.state_spread)
        )
        x, new, s = found.signal, found.new, found.state
        series = [x, x - inner, x + inner, new - outer, new + outer]
        return jnp.concatenate(
            [jnp.stack(series, 1).ravel(), jnp.stack([s, s - around, s + around], 1).ravel()]
        )

    def step(state: PyTree, elapsed: Array, values: Array, mask: Array) -> tuple[PyTree, Answer]:
        window, count = state
        even = (count == 0) | (jnp.abs(elapsed - smooth.dt) <= 1e-3 * smooth.dt)
        complete = jnp.all(mask)
        fresh = jnp.concatenate([window[1:], values[None]])
        known = jnp.where(even, count, 0)
        length = jnp.where(complete, jnp.minimum(known + 1, order), 0)
        belief = believe(smooth, params, fresh, *position)
        if which == "filtered":
            found, enough = numbers(now(smooth, params, belief)), length >= order
        else:
            before = believe(smooth, params, window, *position)
            row = later(smooth, params, before, window, 1)
            found, enough = numbers(jax.tree.map(lambda x: x[0], row)), known >= order
        score = jnp.where(length >= order, -belief.free_energy, 0.0)
        # A fresh window begins at every gap; the first row is none.
        broken = (count > 0) & ~(even & complete)
        return (fresh, length), Answer(jnp.where(enough, found, jnp.nan), score, broken)

    init = jnp.zeros((order, len(names))), jnp.zeros((), jnp.int32)
    said = (
        f"a value is missing, or the step is not dt = {smooth.dt:g}; estimates begin again after "
        f"{order} complete rows"
    )
    return Stream(
        series_columns(names, state_names(smooth)), init, step, said, FREE_ENERGY, smooth.dt
    )
