"""The expected free energy of policies.

For each future step of a policy pi, with predicted beliefs q(s | pi) and q(o | pi),

    G = KL(q(o | pi) || p(o | C)) + E_q H[p(o | s)]              risk plus ambiguity
      = -E_q(o | pi) log p(o | C) - I(s; o | pi)                 minus utility, minus information

and further gains of information about parameters are subtracted, and what a step off the way to an
intended state costs is added. ``neg_efe`` is minus the sum of G over the steps, so that **higher is
better**. The preferences C are log probabilities up to a
constant: utility takes them as they are, risk with the constant ``logsumexp(C)``, which is the same
for all policies.

Policies that begin alike share what their beginnings cost, and a transition is contracted with a
belief once for all of its controls.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import entropy
from vfejax.inference import information_gain as gain
from vfejax.inference.inductive import Intention, inductive_value
from vfejax.inference.policies import PolicyTree, check_policies, policy_tree
from vfejax.inference.pomdp.model import POMDP, check_beliefs, contract
from vfejax.inference.pomdp.prediction import predict_observations
from vfejax.types import Array

__all__ = [
    "ExpectedFreeEnergy",
    "StepTerms",
    "check_preferences",
    "expected_free_energy",
    "predict_all_controls",
    "step_terms",
    "utility",
]

_FEW_NODES = 128


class ExpectedFreeEnergy(NamedTuple):
    """Minus the expected free energy of policies and its terms at every step, in nats.

    Attributes:
        neg_efe: ``[p]``, higher is better: utility, information gains and the inductive term, over
            all steps.
        utility: ``E_q(o) C``, the pragmatic value, ``[p, horizon]``.
        state_information_gain: ``I(s; o_1, ..., o_M)``, ``[p, horizon]``; None without ``joint``.
        state_information_gain_per_modality: ``sum_m I(s; o_m)``, ``[p, horizon]``.
        parameter_information_gain: about A and B, ``[p, horizon]``; 0 without their counts.
        risk: ``KL(q(o) || p(o | C))``, ``[p, horizon]``; without ``joint`` the sum over
            modalities.
        ambiguity: ``E_q H[p(o | s)]``, ``[p, horizon]``.
        inductive: at most 0, ``[p, horizon]``; 0 without an intention.
    """

    neg_efe: Array
    utility: Array
    state_information_gain: Array | None
    state_information_gain_per_modality: Array
    parameter_information_gain: Array
    risk: Array
    ambiguity: Array
    inductive: Array


class StepTerms(NamedTuple):
    """The terms of one step, as in :class:`ExpectedFreeEnergy`."""

    utility: Array
    joint: Array | None
    per_modality: Array
    parameters: Array
    risk: Array
    ambiguity: Array
    inductive: Array

    @property
    def neg_efe(self) -> Array:
        """Minus G of this step."""
        information = self.per_modality if self.joint is None else self.joint
        return self.utility + information + self.parameters + self.inductive


def predict_all_controls(model: POMDP, beliefs: Sequence[Array]) -> tuple[Array, ...]:
    """Beliefs about the next state of each factor under each of its controls, ``[u_f, s_f]``.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.zeros(2)], [jnp.array([1.0, 0.0])])
    >>> predict_all_controls(model, model.D)[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return tuple(
        contract(
            jnp.moveaxis(transition, -1, 0),
            {axis + 2: beliefs[d] for axis, d in enumerate(factors)},
        )
        for transition, factors in zip(model.B, model.B_dependencies, strict=True)
    )


def _preferences(model: POMDP, step: int | Array) -> tuple[Array, ...]:
    return tuple(c if c.ndim == 1 else c[step] for c in model.C)


def utility(model: POMDP, observations: Sequence[Array], step: int | Array = 0) -> Array:
    """``sum_m E_q(o_m) C_m`` at one step of a policy, in nats.

    Args:
        model: the model.
        observations: predicted probabilities for each modality, ``[o_m]``.
        step: from 0, for preferences that change with it.

    >>> prefer = jnp.array([0.0, 2.0])
    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [prefer], [jnp.array([0.5, 0.5])])
    >>> float(utility(model, [jnp.array([0.5, 0.5])]))
    1.0
    """
    total = jnp.zeros((), model.D[0].dtype)
    for seen, preferred in zip(observations, _preferences(model, step), strict=True):
        # An outcome that never comes may have a log preference of -inf.
        value = jnp.where(seen == 0, 0.0, jnp.where(seen == 0, 0.0, preferred) * seen)
        total += jnp.sum(value)
    return total


def step_terms(
    model: POMDP,
    beliefs: Sequence[Array],
    step: int | Array = 0,
    joint: bool = True,
    entropies: Sequence[Array] | None = None,
) -> StepTerms:
    """Terms of one step, without a gain about parameters or an inductive term.

    Args:
        model: the model.
        beliefs: predicted probabilities for each factor, ``[s_f]``.
        step: from 0, for preferences that change with it.
        joint: whether the joint information is computed.
        entropies: see :func:`expected_free_energy`.

    Returns:
        Scalars in nats.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> round(float(step_terms(model, model.D).neg_efe), 4)  # log(2), to be told where one is
    0.6931
    """
    observations = predict_observations(model, beliefs)
    pragmatic = utility(model, observations, step)
    unclear = gain.ambiguity(model, beliefs, entropies)
    separate = sum(entropy(seen) for seen in observations) - unclear
    information = gain.observation_entropy(model, beliefs) - unclear if joint else None
    constant = sum(jax.nn.logsumexp(c) for c in _preferences(model, step))
    risk = constant - pragmatic - (separate if information is None else information) - unclear
    none = jnp.zeros_like(unclear)
    return StepTerms(pragmatic, information, separate, none, risk, unclear, none)


class _Nodes(NamedTuple):
    """Nodes of the tree of policies, of one step or of several."""

    step: Array | np.ndarray  # [n], from 0
    before: tuple[Array, ...]  # beliefs of the step before, [b, s_f]
    parents: Array | np.ndarray  # [n], rows of ``before``
    actions: Array | np.ndarray  # [n, f]
    own: tuple[Array, ...]  # [n, s_f]


def _entries(x: Array, rows: Array | np.ndarray, columns: Array | np.ndarray) -> Array:
    """``x[rows, columns]`` of ``[n, u, s]``; no copy where these are all of them, in order."""
    n, u = x.shape[:2]
    known = not isinstance(columns, jax.core.Tracer)
    if known and np.array_equal(rows * u + columns, np.arange(n * u)):
        return x.reshape(n * u, -1)
    return x[rows, columns]


def _levels(model: POMDP, beliefs: Sequence[Array], tree: PolicyTree) -> Iterator[_Nodes]:
    """The nodes of each step."""
    nodes = tuple(q[None] for q in beliefs)
    for step, (parents, actions) in enumerate(zip(tree.parents, tree.actions, strict=True)):
        after = jax.vmap(lambda *q: predict_all_controls(model, q))(*nodes)
        own = tuple(_entries(x, parents, actions[:, f]) for f, x in enumerate(after))
        yield _Nodes(np.full(len(parents), step), nodes, parents, actions, own)
        nodes = own


def _together(levels: Sequence[_Nodes]) -> _Nodes:
    """The nodes of several steps as one set."""
    above = np.cumsum([0, *(len(level.before[0]) for level in levels[:-1])])
    parents = [level.parents + shift for level, shift in zip(levels, above, strict=True)]
    joined = jax.tree.map(lambda *xs: jnp.concatenate(xs), *levels)
    return joined._replace(parents=jnp.concatenate(parents))


def _groups(levels: Iterator[_Nodes]) -> Iterator[_Nodes]:
    """Sets of nodes: small steps together, since small kernels cost as much as larger ones, and
    each large one alone, since memory is that of the largest set.
    """
    waiting: list[_Nodes] = []
    for level in levels:
        if waiting and sum(len(x.step) for x in [*waiting, level]) > _FEW_NODES:
            yield _together(waiting)
            waiting = []
        waiting.append(level)
    yield _together(waiting)


def check_preferences(model: POMDP, horizon: int) -> None:
    """Refuse preferences of fewer steps than are planned.

    >>> see, stay = jnp.eye(2), jnp.eye(2)[..., None]
    >>> check_preferences(POMDP([see], [stay], [jnp.zeros((3, 2))], [jnp.ones(2) / 2]), 3)
    """
    for m, preferences in enumerate(model.C):
        if preferences.ndim == 2 and len(preferences) < horizon:
            raise ValueError(f"C[{m}] has {len(preferences)} steps and the policies have {horizon}")


def expected_free_energy(
    model: POMDP,
    beliefs: Sequence[Array],
    policies: Array | np.ndarray,
    *,
    joint: bool = True,
    intention: Intention | None = None,
    A_counts: Sequence[Array] | None = None,
    B_counts: Sequence[Array] | None = None,
    product: bool = False,
    entropies: Sequence[Array] | None = None,
) -> ExpectedFreeEnergy:
    """Minus the expected free energy of policies from where the agent believes to be.

    Args:
        model: the model.
        beliefs: probabilities of the present states for each factor, ``[s_f]``.
        policies: integers ``[p, horizon, f]``. Step 1 is the state after the first controls.
            NumPy arrays share the cost of common beginnings.
        joint: whether the information about states is that of all modalities together; else it is
            the sum over modalities.
        intention: goals of :func:`vfejax.inference.inductive.intention`; with them the inductive
            term counts.
        A_counts: Dirichlet counts of A; with them the gain of information about A counts.
        B_counts: Dirichlet counts of B, likewise.
        product: whether gains about parameters take the product form.
        entropies: what :func:`vfejax.inference.information_gain.observation_entropies` says of the
            model, for agents that take many steps with the same one; taken anew by default.

    Returns:
        ``neg_efe [p]``, higher is better, and its terms.

    Raises:
        ValueError: when arguments do not fit the model, a control does not exist, or preferences
            have fewer steps than the policies.

    Source: Parr, Pezzulo and Friston, Active Inference (2022), equation 4.9; the sign is ours.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> expected_free_energy(model, model.D, np.array([[[0]], [[1]]])).neg_efe.tolist()
    [0.0, 3.0]
    """
    check_policies(model, policies)
    start = check_beliefs(model, beliefs, "beliefs")
    check_preferences(model, policies.shape[1])
    about_a, about_b = gain.likelihood_information_gain, gain.transition_information_gain
    if product:
        about_a = gain.likelihood_information_gain_product
        about_b = gain.transition_information_gain_product

    def terms_of(nodes: _Nodes) -> StepTerms:
        terms = jax.vmap(lambda step, q: step_terms(model, q, step, joint, entropies))(
            nodes.step, nodes.own
        )
        learned = terms.parameters
        if A_counts is not None:
            learned += jax.vmap(lambda *q: about_a(model, A_counts, q))(*nodes.own)
        if B_counts is not None:
            by_control = jax.vmap(lambda *q: about_b(model, B_counts, q))(*nodes.before)
            for f, found in enumerate(by_control):
                learned += found[nodes.parents, nodes.actions[:, f]]
        terms = terms._replace(parameters=learned)
        if intention is None:
            return terms
        value = jax.vmap(lambda step, q: inductive_value(intention, start, q, step))
        return terms._replace(inductive=value(nodes.step, nodes.own))

    tree = policy_tree(policies)
    groups = [terms_of(nodes) for nodes in _groups(_levels(model, start, tree))]
    first = np.cumsum([0, *(len(parents) for parents in tree.parents[:-1])])
    which = np.stack([nodes + i for nodes, i in zip(tree.nodes, first, strict=True)], axis=1)
    every = jax.tree.map(lambda *xs: jnp.concatenate(xs)[which], *groups)
    return ExpectedFreeEnergy(jnp.sum(every.neg_efe, axis=1), *every)
