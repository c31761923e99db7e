"""Forward and backward recursions of discrete chains: on probabilities, on logarithms, as a tree.

On probabilities both directions run in one scan, so that a step has work for the processor, unless
the matrix is so small that XLA compiles the loop of each direction to one function. Where that is
not safe, and for NaN, everything is computed from logarithms.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._logarithms import log_matvec, log_sum, safe_log
from vfejax.inference.chains import _max_product
from vfejax.inference.chains._underflow import divided, kept, limit
from vfejax.numerics import matmul, matvec, transpose
from vfejax.types import Array

__all__ = [
    "ASSOCIATIVE",
    "PLATFORM",
    "SEQUENTIAL",
    "DiscretePasses",
    "log_filter",
]

# Up to this size a matrix times a vector is faster as a sum of columns than as a product.
_MAX_COLUMNS = 16
# Up to so many bytes of a transition XLA runs the loop of one direction at 50 ns a step; that of
# both directions takes 600 ns, as any larger loop does.
_MAX_SMALL_LOOP = 256


class DiscretePasses(NamedTuple):
    """An algorithm for discrete chains as two pure functions of ``(initial [k], transition [k, k]
    or [t - 1, k, k], log_likelihood [t, k])``.

    Attributes:
        filter: returns predicted and filtered probabilities ``[t, k]``, log evidence of each step
            ``[t]``, and which steps are impossible ``[t]``.
        smooth: returns the same four and the smoothed probabilities ``[t, k]``.
        decode: returns the most probable states ``[t]``, their log probability, and which steps are
            impossible ``[t]``.
    """

    filter: Callable[..., tuple[Array, ...]]
    smooth: Callable[..., tuple[Array, ...]]
    decode: Callable[..., tuple[Array, ...]]


def _push(matrix: Array, vector: Array) -> Array:
    if vector.shape[0] > _MAX_COLUMNS:
        return matvec(matrix, vector)
    return jnp.sum(transpose(matrix) * vector[:, None], axis=0)


def _scaled(log_likelihood: Array) -> tuple[Array, Array]:
    """Likelihoods relative to the largest of their row, ``[t, k]``, and its logarithm ``[t]``."""
    highest = jax.lax.stop_gradient(jnp.max(log_likelihood, axis=1))
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    return jnp.exp(log_likelihood - highest[:, None]), highest


def _links(transition: Array) -> Array | None:
    """Transitions that change, with the identity behind them; None for one that does not."""
    if transition.ndim == 2:
        return None
    eye = jnp.eye(transition.shape[-1], dtype=transition.dtype)
    return jnp.concatenate([transition, eye[None]])


def _forward(belief: Array, row: Array, matrix: Array) -> tuple[Array, tuple[Array, ...]]:
    joint = belief * row
    total = jnp.sum(joint)
    after = divided(joint, total)
    return _push(matrix, after), (belief, after, total)


def _fast_filter(initial: Array, transition: Array, log_likelihood: Array) -> tuple:
    likelihood, highest = _scaled(log_likelihood)
    links = _links(transition)

    def step(belief: Array, xs: tuple) -> tuple[Array, tuple]:
        row, link = xs
        return _forward(belief, row, transition if link is None else link)

    _, (predicted, after, totals) = jax.lax.scan(step, initial, (likelihood, links))
    safe = (jnp.min(totals) > limit(totals.dtype)) & kept(
        predicted, log_likelihood, likelihood, totals, transition
    )
    return (predicted, after, totals, highest), safe


def _fast_smooth(initial: Array, transition: Array, log_likelihood: Array) -> tuple:
    likelihood, highest = _scaled(log_likelihood)
    links = _links(transition)
    # Going back from step i needs the transition that leads to it.
    into = None if links is None else jnp.roll(transpose(links), 1, axis=0)[::-1]
    onward = transpose(transition)

    def forward(belief: Array, xs: tuple) -> tuple[Array, tuple]:
        row, link = xs
        return _forward(belief, row, transition if link is None else link)

    def backward(message: Array, xs: tuple) -> tuple[Array, tuple]:
        row, link = xs
        weight = message * row
        total = jnp.sum(weight)
        weight = divided(weight, total)
        return _push(onward if link is None else link, weight), (message, total)

    def both(carry: tuple[Array, Array], xs: tuple[tuple, tuple]) -> tuple[tuple, tuple]:
        (belief, ahead), (message, behind) = forward(carry[0], xs[0]), backward(carry[1], xs[1])
        return (belief, message), (ahead, behind)

    starts = (initial, jnp.ones_like(initial))
    inputs = ((likelihood, links), (likelihood[::-1], into))
    if onward.ndim == 2 and onward.nbytes <= _MAX_SMALL_LOOP:
        _, ahead = jax.lax.scan(forward, starts[0], inputs[0])
        _, behind = jax.lax.scan(backward, starts[1], inputs[1])
    else:
        _, (ahead, behind) = jax.lax.scan(both, starts, inputs)
    (predicted, after, totals), (messages, sums) = ahead, behind
    product = after * messages[::-1]
    products = jnp.sum(product, axis=1, keepdims=True)
    worst = jnp.minimum(jnp.minimum(jnp.min(totals), jnp.min(sums)), jnp.min(products))
    safe = (
        (worst > limit(worst.dtype))
        & kept(predicted, log_likelihood, likelihood, totals, transition)
        & kept(messages, log_likelihood[::-1], likelihood[::-1], sums, transition)
    )
    return (predicted, after, totals, highest, divided(product, products)), safe


def log_filter(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Array, ...]:
    """Logarithms of predicted and filtered probabilities, log evidence, impossible steps.

    Args:
        initial, transition, log_likelihood: of the chain.

    >>> log_filter(jnp.ones(1), jnp.eye(1), jnp.array([[-1e6]]))[2].tolist()
    [-1000000.0]
    """
    table, links = safe_log(transition), _links(transition)
    tables = None if links is None else safe_log(links)

    def step(belief: Array, xs: tuple) -> tuple[Array, tuple]:
        row, link = xs
        lost = log_sum(belief + row, axis=0) == -jnp.inf
        # As a missing one, which leaves probabilities that add up to 1 whatever the transition.
        joint = belief + jnp.where(lost, 0.0, row)
        total = log_sum(joint, axis=0)
        after = joint - jnp.where(total == -jnp.inf, 0.0, total)
        found = belief, after, jnp.where(lost, -jnp.inf, total), lost
        return log_matvec(table if link is None else link, after), found

    return jax.lax.scan(step, safe_log(initial), (log_likelihood, tables))[1]


def _log_smooth(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Array, ...]:
    predicted, after, steps, lost = log_filter(initial, transition, log_likelihood)
    rows = jnp.where(jnp.broadcast_to(lost[:, None], after.shape), 0.0, log_likelihood)
    table, links = transpose(safe_log(transition)), _links(transition)
    tables = None if links is None else transpose(safe_log(links))[:-1]

    def step(message: Array, xs: tuple) -> tuple[Array, Array]:
        row, link = xs
        earlier = log_matvec(table if link is None else link, message + row)
        earlier = earlier - jnp.max(earlier)
        return earlier, earlier

    last = jnp.zeros_like(initial)
    _, messages = jax.lax.scan(step, last, (rows[1:], tables), reverse=True)
    product = after + jnp.concatenate([messages, last[None]])
    smoothed = jnp.exp(product - log_sum(product, axis=1)[:, None])
    return jnp.exp(predicted), jnp.exp(after), steps, lost, smoothed


def _with_fallback(fast: Callable, exact: Callable) -> Callable[..., tuple[Array, ...]]:
    """The fast pass where it is safe, else the one on logarithms."""

    def run(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Array, ...]:
        (predicted, after, totals, highest, *rest), safe = fast(initial, transition, log_likelihood)
        steps = jnp.log(jnp.where(safe, totals, 1.0)) + highest
        found = (predicted, after, steps, jnp.zeros_like(steps, bool), *rest)
        return jax.lax.cond(
            safe,
            lambda: found,
            lambda: exact(initial, transition, log_likelihood),
        )

    return run


def _by_platform(on_cpu: Callable, elsewhere: Callable) -> Callable[..., tuple[Array, ...]]:
    return lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)


def _exact_filter(*arrays: Array) -> tuple[Array, ...]:
    predicted, after, steps, lost = log_filter(*arrays)
    return jnp.exp(predicted), jnp.exp(after), steps, lost


SEQUENTIAL = DiscretePasses(
    _with_fallback(_fast_filter, _exact_filter),
    _with_fallback(_fast_smooth, _log_smooth),
    _max_product.sequential,
)


def _normalised_product(first: Array, second: Array) -> Array:
    """``second first`` for stacks of matrices, scaled to a largest entry of 1."""
    product = matmul(second, first)
    highest = jnp.max(product, axis=(-2, -1), keepdims=True)
    return product / jnp.where(highest == 0, 1.0, highest)


def _agree(found: Array, again: Array) -> Array:
    """Whether probabilities are those that the recursion makes of the ones before them."""
    info = jnp.finfo(found.dtype)
    return jnp.all(jnp.abs(found - again) <= float(info.eps) ** 0.5 * again + limit(found.dtype))


def _tree_filter(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Any, Array]:
    likelihood, highest = _scaled(log_likelihood)
    t, k = likelihood.shape
    steps = jnp.broadcast_to(transition, (t - 1, k, k))
    first = jnp.broadcast_to(initial[None, :, None], (1, k, k))
    maps = likelihood[..., None] * jnp.concatenate([first, steps])
    joint = jax.lax.associative_scan(_normalised_product, maps)[..., 0]
    total = jnp.sum(joint, axis=1, keepdims=True)
    after = divided(joint, total)
    predicted = jnp.concatenate([initial[None], matvec(steps, after[:-1])])
    seen = predicted * likelihood
    totals = jnp.sum(seen, axis=1)
    worst = jnp.minimum(jnp.min(total), jnp.min(totals))
    safe = (
        (worst > limit(worst.dtype))
        & _agree(after, divided(seen, totals[:, None]))
        & kept(predicted, log_likelihood, likelihood, totals, transition)
    )
    return (predicted, after, totals, highest), safe


def _tree_smooth(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Any, Array]:
    found, safe = _tree_filter(initial, transition, log_likelihood)
    likelihood, _ = _scaled(log_likelihood)
    t, k = likelihood.shape
    steps = jnp.broadcast_to(transition, (t - 1, k, k))
    suffix = jax.lax.associative_scan(
        lambda late, early: _normalised_product(early, late),
        likelihood[1:, :, None] * steps,
        reverse=True,
    )
    messages = jnp.concatenate([jnp.sum(suffix, axis=1), jnp.ones((1, k), likelihood.dtype)])
    product = found[1] * messages
    products = jnp.sum(product, axis=1, keepdims=True)
    seen = messages * likelihood
    totals = jnp.sum(seen, axis=1)
    again = matvec(transpose(steps), divided(seen, totals[:, None])[1:])
    # Messages are right up to a factor each.
    scale = jnp.sum(messages[:-1], axis=1, keepdims=True)
    again = again * divided(scale, jnp.sum(again, axis=1, keepdims=True))
    ahead = jnp.concatenate([again, messages[-1:]])[::-1]
    safe = (
        safe
        & (jnp.min(products) > limit(products.dtype))
        & _agree(messages[:-1], again)
        & kept(ahead, log_likelihood[::-1], likelihood[::-1], totals[::-1], transition)
    )
    return (*found, divided(product, products)), safe


ASSOCIATIVE = DiscretePasses(
    _with_fallback(_tree_filter, _exact_filter),
    _with_fallback(_tree_smooth, _log_smooth),
    _max_product.associative,
)

PLATFORM = DiscretePasses(
    *(_by_platform(*pair) for pair in zip(SEQUENTIAL, ASSOCIATIVE, strict=True))
)
