"""Beliefs about the states of one moment.

They are a product over factors, one array each. Of such a belief q with prior p

    F = sum_f KL(q_f || p_f) - sum_m E_q log p(o_m | s)

is at least ``-log p(o)``, and equal to it with one factor. Factors are updated one after the other,
each to its minimum of F, so that F never rises; updating all of them at once raises it in some
models. Logarithms of probabilities stop at the smallest normal number
(:func:`vfejax.beliefs.categorical.safe_log`), so that an impossible observation costs much and
keeps beliefs finite. All functions take one agent; ``jax.vmap`` gives a batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs.categorical import safe_log
from vfejax.inference.pomdp.model import POMDP, check_beliefs, contract
from vfejax.types import Array

__all__ = [
    "ExactPosterior",
    "StateInfo",
    "exact_posterior",
    "infer_states",
    "log_likelihoods",
]


def log_likelihoods(
    model: POMDP, observation: Sequence[Any], mask: Array | None = None
) -> tuple[Array, ...]:
    """``log p(o_m | s)`` of each modality over the states that it depends on, in nats.

    Args:
        model: the model.
        observation: for each modality an integer, or weights ``[o_m]`` of its values; an integer
            that is none of them gives NaN.
        mask: booleans ``[m]``, True where there is an observation; None where all are.

    Returns:
        ``[*s_deps]`` for each modality; 0 where the observation is missing.

    Raises:
        ValueError: when there is not one entry per modality, in the mask too.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> log_likelihoods(model, [1], jnp.array([False]))[0].tolist()
    [0.0, 0.0]
    """
    scalar = not hasattr(observation, "__len__") or getattr(observation, "ndim", None) == 0
    if scalar or len(observation) != len(model.A):
        raise ValueError(
            f"observation must have {len(model.A)} entries, one per modality, got "
            f"{f'one number, {observation}' if scalar else len(observation)}"
        )
    if mask is not None and jnp.shape(mask) != (len(model.A),):
        raise ValueError(f"mask must have shape [{len(model.A)}], got {list(jnp.shape(mask))}")
    found = []
    for m, (likelihood, seen) in enumerate(zip(model.A, observation, strict=True)):
        value = jnp.asarray(seen)
        if value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer):
            row = likelihood[value]
            inside = (value >= 0) & (value < likelihood.shape[0])
            row = jnp.where(inside, row, jnp.nan)
        elif value.shape == (likelihood.shape[0],):
            row = contract(likelihood, {0: value.astype(likelihood.dtype)})
        else:
            raise ValueError(
                f"observation[{m}] must be an integer or weights [{likelihood.shape[0]}], got "
                f"{value.dtype} {list(value.shape)}"
            )
        row = safe_log(row)
        found.append(row if mask is None else jnp.where(mask[m], row, 0.0))
    return tuple(found)


class StateInfo(NamedTuple):
    """How a belief about states was found.

    Attributes:
        free_energy: F at the end, in nats.
        free_energies: F before the first and after each sweep over the factors, ``[sweeps + 1]``.
    """

    free_energy: Array
    free_energies: Array


def _free_energy(
    model: POMDP, beliefs: Sequence[Array], prior: Sequence[Array], terms: Sequence[Array]
) -> Array:
    """``sum_f KL(q_f || p_f) - sum_m E_q log p(o_m | s)``, with logarithms that stop."""
    total = jnp.zeros((), model.D[0].dtype)
    for q, p in zip(beliefs, prior, strict=True):
        total += jnp.sum(q * (safe_log(q) - safe_log(p)))
    for term, factors in zip(terms, model.A_dependencies, strict=True):
        total -= contract(term, {axis: beliefs[f] for axis, f in enumerate(factors)})
    return total


def infer_states(
    model: POMDP,
    observation: Sequence[Any],
    prior: Sequence[Array],
    *,
    mask: Array | None = None,
    num_sweeps: int | None = None,
) -> tuple[tuple[Array, ...], StateInfo]:
    """Beliefs about the states of one moment, by coordinate ascent over the factors.

    ``q_f ~ p_f exp(sum_m E_{q without f} log p(o_m | s))``, one factor after the other. With one
    factor, or modalities of one factor each, a single sweep is Bayes' rule.

    Args:
        model: the model.
        observation: for each modality an integer, or weights ``[o_m]`` of its values.
        prior: probabilities for each factor, ``[s_f]``: D at first, later the prediction of
            :func:`vfejax.inference.pomdp.prediction.predict_states`.
        mask: booleans ``[m]``, True where there is an observation; None where all are.
        num_sweeps: sweeps over the factors; by default 16, or 1 where one is exact.

    Returns:
        Beliefs for each factor ``[s_f]``, and F in nats.

    Raises:
        ValueError: when arguments do not fit the model.

    Source: coordinate ascent for the free energy of Parr, Pezzulo and Friston, Active Inference
    (2022), appendix B; theirs updates all factors at once.

    >>> see = jnp.array([[0.9, 0.2], [0.1, 0.8]])
    >>> model = POMDP([see], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.array([0.5, 0.5])])
    >>> (q,), info = infer_states(model, [0], model.D)
    >>> [round(float(x), 4) for x in q], round(float(info.free_energy), 4)  # -log(0.55)
    ([0.8182, 0.1818], 0.5978)
    """
    terms = log_likelihoods(model, observation, mask)
    priors = check_beliefs(model, prior, "prior")
    if num_sweeps is None:
        num_sweeps = 16 if any(len(factors) > 1 for factors in model.A_dependencies) else 1
    if num_sweeps < 1:
        raise ValueError(f"num_sweeps must be at least 1, got {num_sweeps}")

    def sweep(beliefs: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], Array]:
        found = list(beliefs)
        for f in range(len(found)):
            found[f] = _update_factor(model, f, found, priors, terms)
        return tuple(found), _free_energy(model, found, priors, terms)

    first = _free_energy(model, priors, priors, terms)
    beliefs, energies = jax.lax.scan(sweep, priors, None, length=num_sweeps)
    return beliefs, StateInfo(energies[-1], jnp.concatenate([first[None], energies]))


def _update_factor(
    model: POMDP, f: int, beliefs: Sequence[Array], priors: Sequence[Array], terms: Sequence[Array]
) -> Array:
    """The belief about one factor that minimises F, the others being as they are."""
    logits = safe_log(priors[f])
    for term, factors in zip(terms, model.A_dependencies, strict=True):
        if f in factors:
            logits += contract(term, {a: beliefs[g] for a, g in enumerate(factors) if g != f})
    return jax.nn.softmax(logits)


class ExactPosterior(NamedTuple):
    """The posterior of one moment without a factorisation.

    Attributes:
        joint: probabilities of all combinations of states, ``[s_0, s_1, ...]``.
        marginals: of each factor, ``[s_f]``.
        log_evidence: log p(o), in nats; -inf for an impossible observation, whose probabilities are
            NaN.
    """

    joint: Array
    marginals: tuple[Array, ...]
    log_evidence: Array


def exact_posterior(
    model: POMDP, observation: Sequence[Any], prior: Sequence[Array], *, mask: Array | None = None
) -> ExactPosterior:
    """Bayes' rule over all combinations of states: for models whose product of sizes is small.

    Args:
        model: the model.
        observation: for each modality an integer, or weights ``[o_m]`` of its values.
        prior: probabilities for each factor, ``[s_f]``.
        mask: booleans ``[m]``, True where there is an observation; None where all are.

    >>> see = jnp.array([[0.9, 0.2], [0.1, 0.8]])
    >>> model = POMDP([see], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.array([0.5, 0.5])])
    >>> round(float(exact_posterior(model, [0], model.D).log_evidence), 4)
    -0.5978
    """
    priors = check_beliefs(model, prior, "prior")
    floor = safe_log(jnp.zeros((), priors[0].dtype))
    num = len(priors)

    def spread(array: Array, factors: Sequence[int]) -> Array:
        order = sorted(range(len(factors)), key=lambda a: factors[a])
        missing = [f for f in range(num) if f not in factors]
        return jnp.expand_dims(jnp.transpose(array, order), missing)

    logits = jnp.zeros(model.num_states, priors[0].dtype)
    impossible = jnp.zeros(model.num_states, bool)
    pieces: list[Any] = [(safe_log(p), (f,)) for f, p in enumerate(priors)]
    pieces += zip(log_likelihoods(model, observation, mask), model.A_dependencies, strict=True)
    for term, factors in pieces:
        wide = jnp.broadcast_to(spread(term, factors), logits.shape)
        logits, impossible = logits + wide, impossible | (wide <= floor)
    logits = jnp.where(impossible & ~jnp.isnan(logits), -jnp.inf, logits)
    log_evidence = jax.nn.logsumexp(logits)
    joint = jnp.exp(logits - log_evidence)
    marginals = tuple(
        jnp.sum(joint, axis=tuple(g for g in range(num) if g != f)) for f in range(num)
    )
    return ExactPosterior(joint, marginals, log_evidence)
