"""Look, then spend: tokens for learning where things are, before the rest is spent there.

Some thing is in one of r regions. A look at a region costs tokens and reports it with some errors;
in the end all tokens that are left go to one region. This is a POMDP whose preferences are tokens:
those that reach the thing, times what one is worth in nats. Its expected free energy says when a
look is worth its price: looking pays by what is seen, spending by what is reached.

Regions are groups of patches. Their belief is that of their patches summed, and what looks have
told about regions is a new prior over patches, by Jeffrey's rule.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import safe_log
from vfejax.inference.planning import sophisticated
from vfejax.inference.pomdp.model import POMDP
from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = ["look_then_spend", "plan_looks", "prior_after_looks", "region_belief"]


def look_then_spend(
    belief: Array,
    *,
    budget: int,
    look_tokens: int,
    num_looks: int,
    detection: float = 0.9,
    false_alarm: float = 0.1,
    nats_per_token: float = 0.01,
) -> POMDP:
    """The model of up to ``num_looks`` looks, and of spending what they leave.

    Factor 0 is the region of the thing, factor 1 what was done last: nothing, a look at one of the
    regions, spending on one of them, or nothing more. Control ``i < r`` looks at region i, control
    ``r + i`` spends on it; after that nothing can be done. Modality 0 is the report of a look:
    none, not seen, seen. Modality 1 says where tokens went: none spent, missed, reached.

    Args:
        belief: probabilities of the regions, ``[r]``.
        budget: tokens in all.
        look_tokens: tokens of one look.
        num_looks: the most looks.
        detection: probability that a look at the right region reports the thing.
        false_alarm: probability that a look at another region does.
        nats_per_token: what a token that reaches the thing is worth.

    Returns:
        A model for policies of up to ``num_looks + 1`` steps.

    Raises:
        ValueError: when looks would cost more than the budget, a probability is none, or there are
            fewer than two regions.

    >>> model = look_then_spend(jnp.ones(3) / 3, budget=100, look_tokens=10, num_looks=2)
    >>> model.num_states, model.num_controls, model.num_observations
    ((3, 8), (1, 6), (3, 3))
    """
    belief = as_floating(belief, "belief")
    if belief.ndim != 1 or belief.size < 2:
        raise ValueError(f"belief must have shape [r], r at least 2, got {list(belief.shape)}")
    for name, value in (("detection", detection), ("false_alarm", false_alarm)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be a probability, got {value}")
    if num_looks < 0 or look_tokens < 0 or num_looks * look_tokens > budget:
        raise ValueError(
            f"num_looks {num_looks} of look_tokens {look_tokens} must be at least 0 and cost at "
            f"most the budget {budget}"
        )
    num = belief.size
    left = budget - look_tokens * np.arange(num_looks + 1)
    preferences = np.stack([0 * left, 0 * left, nats_per_token * left], axis=1)

    def array(x: np.ndarray) -> Array:
        return jnp.asarray(x, belief.dtype)

    return POMDP(
        [array(x) for x in _likelihoods(num, detection, false_alarm)],
        [array(np.eye(num)[..., None]), array(_transitions(num))],
        [array(np.zeros(3)), array(preferences)],
        [belief, array(np.eye(2 * num + 2)[0])],
    )


def _likelihoods(num: int, detection: float, false_alarm: float) -> tuple[np.ndarray, np.ndarray]:
    """``p(report | region, last act)`` and ``p(where tokens went | region, last act)``."""
    report, reached = np.zeros((3, num, 2 * num + 2)), np.zeros((3, num, 2 * num + 2))
    report[0], reached[0] = 1, 1
    for region in range(num):
        seen = np.where(np.arange(num) == region, detection, false_alarm)
        report[:, :, 1 + region] = 0 * seen, 1 - seen, seen
        hit = (np.arange(num) == region).astype(float)
        reached[:, :, 1 + num + region] = 0 * hit, 1 - hit, hit
    return report, reached


def _transitions(num: int) -> np.ndarray:
    """``p(act | last act, control)``: looks may follow looks, and nothing follows spending."""
    done = 2 * num + 1
    move = np.zeros((done + 1, done + 1, 2 * num))
    for control in range(2 * num):
        move[1 + control, : 1 + num, control] = 1
        move[done, 1 + num :, control] = 1
    return move


def plan_looks(model: POMDP, horizon: int, *, hard: bool = True) -> Array:
    """Minus the expected free energy of each first look and of spending at once, ``[2 r]``.

    The search follows what will be believed after each report. A new belief from a report, as of
    :func:`vfejax.inference.pomdp.infer_states`, makes the next model.

    Args:
        model: of :func:`look_then_spend`.
        horizon: steps, at most its looks and one.
        hard: whether the best action is taken later, rather than one drawn.

    Returns:
        In nats, higher is better: looks at each region, then spending on each.

    Raises:
        ValueError: when the horizon does not fit.

    >>> model = look_then_spend(jnp.ones(2) / 2, budget=900, look_tokens=90, num_looks=1)
    >>> plan_looks(model, 2).argmax().item() < 2  # a look first
    True
    """
    steps = model.C[1].shape[0]
    if not 1 <= horizon <= steps:
        raise ValueError(f"horizon must be 1 to {steps}, got {horizon}")
    return sophisticated(model, model.D, horizon, hard=hard)


def region_belief(log_pi: Array, regions: Array, num_regions: int) -> Array:
    """Probabilities of regions from those of their patches, ``[r]``.

    Args:
        log_pi: log probabilities of the patches, ``[p]``.
        regions: the region of each patch, integers ``[p]``.
        num_regions: r.

    Raises:
        ValueError: when the shapes differ.

    >>> region_belief(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array([0, 1, 1]), 2).tolist()
    [0.5, 0.5]
    """
    _check_regions(log_pi, regions)
    return jax.ops.segment_sum(jnp.exp(log_pi), regions, num_regions)


def prior_after_looks(log_pi: Array, regions: Array, belief: Array) -> Array:
    """Log probabilities of the patches once looks have told about regions.

    Each region has the probability of its belief, shared out among its patches as before.

    Args:
        log_pi: log probabilities of the patches before, ``[p]``.
        regions: the region of each patch, integers ``[p]``.
        belief: probabilities of the regions after the looks, ``[r]``.

    Returns:
        ``[p]``, normalised: a ``log_prior`` for scores from what was seen, or itself the belief by
        which tokens are spent.

    Raises:
        ValueError: when the shapes differ.

    >>> before, regions = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array([0, 1, 1])
    >>> after = jnp.exp(prior_after_looks(before, regions, jnp.array([0.2, 0.8])))
    >>> [round(float(p), 3) for p in after]
    [0.2, 0.4, 0.4]
    """
    before = region_belief(log_pi, regions, belief.size)
    ratio = safe_log(belief.astype(log_pi.dtype)) - safe_log(before)
    return jax.nn.log_softmax(log_pi + ratio[regions])


def _check_regions(log_pi: Array, regions: Array) -> None:
    if log_pi.ndim != 1 or regions.shape != log_pi.shape:
        raise ValueError(
            f"log_pi and regions must have one shape [p], got {list(log_pi.shape)} and "
            f"{list(regions.shape)}"
        )
