"""Expected information gain from an observation about states and about parameters of a POMDP, in
nats.

About states, ``I(s; o) = H[q(o)] - E_q H[p(o | s)]``. With several modalities this is a joint
quantity and not the sum of their ``I(s; o_m)``: two modalities that say the same count once.

About the parameters of a column with Dirichlet counts a, one more observation says

    I(o; theta) = sum_o (a_o / a_0) KL(Dir(a + e_o) || Dir(a))
    KL = log(a_0 / a_o) + psi(a_o + 1) - psi(a_0 + 1)

which is exact. Its weights are averaged under the joint p(o | s) q(s); the product form, which
averages a first-order approximation under q(o) q(s), has its own name for comparison.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import digamma

from vfejax.beliefs.categorical import entropy
from vfejax.inference.pomdp.model import POMDP, contract
from vfejax.inference.pomdp.prediction import joint_outcomes, predict_observations
from vfejax.types import Array

__all__ = [
    "ambiguity",
    "likelihood_information_gain",
    "likelihood_information_gain_product",
    "observation_entropies",
    "observation_entropy",
    "state_information_gain",
    "state_information_gain_per_modality",
    "transition_information_gain",
    "transition_information_gain_product",
]

_LARGEST_TABLE = 2**24


def _axes(beliefs: Sequence[Array], factors: Sequence[int], first: int) -> dict[Any, Array]:
    return {first + axis: beliefs[f] for axis, f in enumerate(factors)}


def observation_entropies(model: POMDP) -> tuple[Array, ...]:
    """``H[p(o_m | s)]`` for each modality, ``[*s_deps]``: what the states alone say of ambiguity.

    >>> see = jnp.array([[0.5, 0.9], [0.5, 0.1]])
    >>> model = POMDP([see], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> [round(float(h), 4) for h in observation_entropies(model)[0]]  # log(2), and less
    [0.6931, 0.3251]
    """
    return tuple(entropy(jnp.moveaxis(likelihood, 0, -1)) for likelihood in model.A)


def ambiguity(
    model: POMDP, beliefs: Sequence[Array], entropies: Sequence[Array] | None = None
) -> Array:
    """``sum_m E_q H[p(o_m | s)]``: how uncertain observations stay where states are known.

    Args:
        model: the model.
        beliefs: predicted probabilities for each factor, ``[s_f]``.
        entropies: :func:`observation_entropies` of the model, if they are known already.

    >>> see = jnp.array([[0.5, 1.0], [0.5, 0.0]])
    >>> model = POMDP([see], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> round(float(ambiguity(model, model.D)), 4)  # log(2) / 2
    0.3466
    """
    total = jnp.zeros((), model.D[0].dtype)
    tables = observation_entropies(model) if entropies is None else entropies
    for table, factors in zip(tables, model.A_dependencies, strict=True):
        total += contract(table, _axes(beliefs, factors, 0))
    return total


def state_information_gain_per_modality(model: POMDP, beliefs: Sequence[Array]) -> Array:
    """``sum_m I(s; o_m)``: counts twice what two modalities both say.

    >>> see, stay, flat = jnp.eye(2), jnp.eye(2)[..., None], jnp.zeros(2)
    >>> twice = POMDP([see, see], [stay], [flat, flat], [jnp.ones(2) / 2])
    >>> round(float(state_information_gain_per_modality(twice, twice.D)), 4)  # 2 log(2)
    1.3863
    """
    seen = sum(entropy(o) for o in predict_observations(model, beliefs))
    return seen - ambiguity(model, beliefs)


def _groups(model: POMDP) -> list[list[int]]:
    """Modalities that depend on common factors, directly or through others."""
    groups: list[tuple[list[int], set[int]]] = []
    for m, factors in enumerate(model.A_dependencies):
        members, touched, apart = [m], set(factors), []
        for group in groups:
            if group[1] & touched:
                members, touched = group[0] + members, touched | group[1]
            else:
                apart.append(group)
        groups = [*apart, (members, touched)]
    return [sorted(members) for members, _ in groups]


def observation_entropy(model: POMDP, beliefs: Sequence[Array]) -> Array:
    """``H[q(o_1, ..., o_M)]`` of all modalities together.

    Modalities without a common factor are independent under factorised beliefs, so that a table of
    joint outcomes is needed for each group of dependent ones only.

    Raises:
        ValueError: when such a table would have more than 2^24 entries.

    >>> see, stay, flat = jnp.eye(2), jnp.eye(2)[..., None], jnp.zeros(2)
    >>> twice = POMDP([see, see], [stay], [flat, flat], [jnp.ones(2) / 2])
    >>> round(float(observation_entropy(twice, twice.D)), 4)
    0.6931
    """
    total = jnp.zeros((), model.D[0].dtype)
    for group in _groups(model):
        size = math.prod(model.num_observations[m] for m in group)
        if size > _LARGEST_TABLE:
            raise ValueError(
                f"modalities {group} have {size} joint outcomes, more than 2^24; pass "
                "joint=False for the sum over modalities"
            )
        total += entropy(joint_outcomes(model, beliefs, group))
    return total


def state_information_gain(model: POMDP, beliefs: Sequence[Array]) -> Array:
    """``I(s; o_1, ..., o_M) = H[q(o)] - E_q H[p(o | s)]``, joint over modalities.

    Args:
        model: the model.
        beliefs: predicted probabilities for each factor, ``[s_f]``.

    Returns:
        A scalar in nats, at least 0 up to rounding.

    Raises:
        ValueError: when the joint outcomes are too many to tabulate.

    >>> see, stay, flat = jnp.eye(2), jnp.eye(2)[..., None], jnp.zeros(2)
    >>> twice = POMDP([see, see], [stay], [flat, flat], [jnp.ones(2) / 2])
    >>> round(float(state_information_gain(twice, twice.D)), 4)  # log(2), once
    0.6931
    """
    return observation_entropy(model, beliefs) - ambiguity(model, beliefs)


def _expected_divergence(counts: Array) -> Array:
    """Mean over the first axis of what one more observation says: ``[o, ...]`` to ``[...]``.

    Entries with count 0 cannot occur.
    """
    total = jnp.sum(counts, axis=0)
    possible = counts > 0
    own = jnp.where(possible, counts, 1.0)
    wide = jnp.broadcast_to(total, counts.shape)
    divergence = jnp.log(wide / own) + digamma(own + 1) - digamma(wide + 1)
    return jnp.sum(jnp.where(possible, counts * divergence, 0.0 * counts), axis=0) / total


def _first_order(counts: Array) -> Array:
    """``1 / a_o - 1 / a_0``: twice the divergence for large counts; 0 where the count is 0."""
    possible = counts > 0
    own = jnp.where(possible, counts, 1.0)
    total = jnp.broadcast_to(jnp.sum(counts, axis=0), counts.shape)
    return jnp.where(possible, 1 / own - 1 / total, 0.0 * counts)


def _check_counts(counts: Sequence[Array], arrays: Sequence[Array], name: str) -> None:
    shapes, wanted = ([list(x.shape) for x in xs] for xs in (counts, arrays))
    if shapes != wanted:
        raise ValueError(f"counts of {name} must have its shapes {wanted}, got {shapes}")


def likelihood_information_gain(
    model: POMDP, counts: Sequence[Array], beliefs: Sequence[Array]
) -> Array:
    """What the observations of one step would say about A: ``sum_m E_q(s) I(o_m; A_m[:, s])``.

    Args:
        model: the model.
        counts: Dirichlet counts of A, one array of its shape for each modality.
        beliefs: predicted probabilities for each factor, ``[s_f]``.

    Raises:
        ValueError: for counts of other shapes.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> round(float(likelihood_information_gain(model, [jnp.ones((2, 2))], model.D)), 4)
    0.1931
    """
    _check_counts(counts, model.A, "A")
    total = jnp.zeros((), model.D[0].dtype)
    for table, factors in zip(counts, model.A_dependencies, strict=True):
        total += contract(_expected_divergence(table), _axes(beliefs, factors, 0))
    return total


def likelihood_information_gain_product(
    model: POMDP, counts: Sequence[Array], beliefs: Sequence[Array]
) -> Array:
    """``sum_m sum_o q(o_m) sum_s q(s) (1 / a_o - 1 / a_0)``: the product form, for comparison.

    It counts pairs of a state and an observation that never come together.

    Args:
        model: the model.
        counts: Dirichlet counts of A, one array of its shape for each modality.
        beliefs: predicted probabilities for each factor, ``[s_f]``.

    Raises:
        ValueError: for counts of other shapes.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> float(likelihood_information_gain_product(model, [jnp.ones((2, 2))], model.D))
    0.5
    """
    _check_counts(counts, model.A, "A")
    total = jnp.zeros((), model.D[0].dtype)
    seen = predict_observations(model, beliefs)
    for m, (table, factors) in enumerate(zip(counts, model.A_dependencies, strict=True)):
        weights = _axes(beliefs, factors, 1) | {0: seen[m]}
        total += contract(_first_order(table), weights)
    return total


def transition_information_gain(
    model: POMDP, counts: Sequence[Array], beliefs: Sequence[Array]
) -> tuple[Array, ...]:
    """What the next state would say about B, by the control of each factor, ``[u_f]``.

    Args:
        model: the model.
        counts: Dirichlet counts of B, one array of its shape for each factor.
        beliefs: probabilities of the states before the transition, ``[s_f]``.

    Raises:
        ValueError: for counts of other shapes.

    >>> model = POMDP([jnp.eye(2)], [jnp.ones((2, 2, 1)) / 2], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> (gain,) = transition_information_gain(model, [2 * model.B[0]], model.D)
    >>> [round(float(g), 4) for g in gain]
    [0.1931]
    """
    _check_counts(counts, model.B, "B")
    return tuple(
        contract(_expected_divergence(table), _axes(beliefs, factors, 0))
        for table, factors in zip(counts, model.B_dependencies, strict=True)
    )


def transition_information_gain_product(
    model: POMDP, counts: Sequence[Array], beliefs: Sequence[Array]
) -> tuple[Array, ...]:
    """The product form for B, ``sum_s' q(s') sum_s q(s) (1 / b_s' - 1 / b_0)``, ``[u_f]``.

    Args:
        model: the model.
        counts: Dirichlet counts of B, one array of its shape for each factor.
        beliefs: probabilities of the states before the transition, ``[s_f]``.

    Raises:
        ValueError: for counts of other shapes.

    >>> model = POMDP([jnp.eye(2)], [jnp.ones((2, 2, 1)) / 2], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> transition_information_gain_product(model, [2 * model.B[0]], model.D)[0].tolist()
    [0.5]
    """
    _check_counts(counts, model.B, "B")
    found = []
    for f, (table, factors) in enumerate(zip(counts, model.B_dependencies, strict=True)):
        after = contract(model.B[f], _axes(beliefs, factors, 1))
        average = contract(_first_order(table), _axes(beliefs, factors, 1))
        found.append(jnp.sum(after * average, axis=0))
    return tuple(found)
