"""Arrays as pymdp has them, to and from a :class:`vfejax.inference.pomdp.model.POMDP`.

The conventions are the same: columns sum to 1 over the first axis, the control is the last axis of
B, C is a log preference. What differs is what may be left out, that its agents put a batch in
front of every array, and that its lists may be NumPy arrays of objects.

A step of a pymdp agent with its defaults, from its observation to its action:

>>> import jax
>>> from vfejax.inference.active_inference import agent, policy_planner
>>> from vfejax.inference.policies import enumerate_policies
>>> see, move = np.array([[0.9, 0.2], [0.1, 0.8]]), np.stack([np.eye(2), 1 - np.eye(2)], axis=-1)
>>> model = from_pymdp([see], [move], [np.array([0.0, 2.0])])
>>> planner = policy_planner(enumerate_policies(model, 1), gamma=1.0, joint=False)
>>> mine = agent(model, planner, temperature=0)
>>> state, decision = mine.step(mine.init(), np.array([0]), jax.random.key(0))
>>> [round(float(q), 3) for q in decision.beliefs[0]], decision.action.tolist()
([0.818, 0.182], [1])
>>> [round(float(g), 3) for g in decision.plan.neg_efe]  # infer_policies; q_pi is plan.posterior
[0.634, 1.509]

Its other names are in a table of docs/design/active_inference.md.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.inference.pomdp.model import POMDP, Dependencies

__all__ = ["from_pymdp", "to_pymdp"]


def from_pymdp(
    A: Sequence[Any],
    B: Sequence[Any],
    C: Sequence[Any] | None = None,
    D: Sequence[Any] | None = None,
    E: Any = None,
    *,
    A_dependencies: Dependencies | None = None,
    B_dependencies: Dependencies | None = None,
    batched: bool = False,
) -> POMDP:
    """A model from the arguments of pymdp's ``Agent``.

    Args:
        A, B, C, D, E: lists of arrays, or NumPy arrays of objects; without C nothing is preferred,
            without D all states are equally probable at first.
        A_dependencies, B_dependencies: as there.
        batched: whether every array has an axis of agents in front, as those of an ``Agent`` have;
            the arrays of the first agent are taken.

    Raises:
        ValueError: when shapes do not fit each other.

    >>> model = from_pymdp([np.eye(2)], [np.eye(2)[..., None]])
    >>> model.D[0].tolist(), model.C[0].tolist()
    ([0.5, 0.5], [0.0, 0.0])
    """

    def arrays(group: Sequence[Any]) -> list:
        found = [jnp.asarray(np.asarray(x, float)) for x in group]
        return [x[0] for x in found] if batched else found

    likelihoods, transitions = arrays(A), arrays(B)
    preferences = [jnp.zeros_like(a, shape=a.shape[:1]) for a in likelihoods]
    starts = [jnp.full_like(b, 1 / b.shape[0], shape=b.shape[:1]) for b in transitions]
    return POMDP(
        likelihoods,
        transitions,
        preferences if C is None else arrays(C),
        starts if D is None else arrays(D),
        None if E is None else arrays([E])[0],
        A_dependencies=A_dependencies,
        B_dependencies=B_dependencies,
    )


def to_pymdp(model: POMDP) -> dict[str, Any]:
    """The arguments of pymdp's ``Agent`` for this model; it puts a batch in front by itself.

    Args:
        model: the model.

    >>> sorted(to_pymdp(from_pymdp([np.eye(2)], [np.eye(2)[..., None]])))
    ['A', 'A_dependencies', 'B', 'B_dependencies', 'C', 'D']
    """
    found: dict[str, Any] = {name: list(getattr(model, name)) for name in "ABCD"}
    if model.E is not None:
        found["E"] = model.E
    return found | {
        "A_dependencies": [list(row) for row in model.A_dependencies],
        "B_dependencies": [list(row) for row in model.B_dependencies],
    }
