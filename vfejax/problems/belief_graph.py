"""The reachable beliefs of a POMDP, and the transitions between them.

From each belief an action and an observation lead to another one, by Bayes' rule over all
combinations of states, without a factorisation. Where worlds are deterministic but for a few cues
those are few, and the graph closes; where every observation says a little they grow without end.
This is a reference on the host, in NumPy and float64: nothing of it is traced.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from vfejax.inference.policies import check_horizon, enumerate_policies
from vfejax.inference.pomdp.model import POMDP, check_model

__all__ = ["BeliefGraph", "Edges", "reachable_beliefs"]

_LARGEST_TABLE = 2**24


class Edges(NamedTuple):
    """What leads from one belief to the next; in the order of belief, action, outcome.

    Attributes:
        source: the belief before, ``[e]``.
        action: the joint control, a row of ``controls``, ``[e]``.
        outcome: the joint observation, a row of ``outcomes``, ``[e]``.
        target: the belief after, ``[e]``.
        probability: of the outcome, ``[e]``.
    """

    source: np.ndarray
    action: np.ndarray
    outcome: np.ndarray
    target: np.ndarray
    probability: np.ndarray


class BeliefGraph(NamedTuple):
    """Beliefs and edges.

    Attributes:
        beliefs: probabilities of all combinations of states, ``[n, s]``; the last factor changes
            fastest.
        depth: the number of actions after which a belief can first come about, ``[n]``.
        start: edges to the beliefs after the first observation; source and action are 0.
        edges: all others.
        controls: joint controls, ``[u, f]``, in the order of ``enumerate_policies(model, 1)``.
        outcomes: joint observations, ``[o, m]``.
        closed: whether no action leads out of the graph; else beliefs of the last depth have no
            edges.
    """

    beliefs: np.ndarray
    depth: np.ndarray
    start: Edges
    edges: Edges
    controls: np.ndarray
    outcomes: np.ndarray
    closed: bool


class _Tables(NamedTuple):
    """Probabilities over combinations of states."""

    likelihood: np.ndarray  # [o, s]
    transition: np.ndarray  # [u, s', s]
    start: np.ndarray  # [s]


def _columns(array: object) -> np.ndarray:
    """Probabilities in float64, whose sums are 1 there as well."""
    found = np.asarray(array, np.float64)
    return found / found.sum(axis=0)


def _tables(model: POMDP, controls: np.ndarray, outcomes: np.ndarray) -> _Tables:
    states = np.array(list(itertools.product(*(range(n) for n in model.num_states))))
    start = np.prod([_columns(d)[states[:, f]] for f, d in enumerate(model.D)], axis=0)
    likelihood = np.ones((len(outcomes), len(states)))
    for m, factors in enumerate(model.A_dependencies):
        places: list = [states[:, f] for f in factors]
        table = _columns(model.A[m])[:, *places]
        likelihood *= table[outcomes[:, m]].reshape(len(outcomes), -1)  # [o, 1] without factors
    transition = np.ones((len(controls), len(states), len(states)))
    for f, factors in enumerate(model.B_dependencies):
        before: list = [states[:, d] for d in factors]
        table = _columns(model.B[f])[:, *before]
        table = table.reshape(len(table), -1, table.shape[-1])  # [s_f', s or 1, u]
        transition *= np.moveaxis(table[states[:, f]][..., controls[:, f]], -1, 0)
    return _Tables(likelihood, transition, start)


class _Store:
    """Distinct beliefs, in the order in which they were found."""

    def __init__(self, limit: int):
        self.index: dict[bytes, int] = {}
        self.beliefs: list[np.ndarray] = []
        self.depth: list[int] = []
        self.limit = limit

    def place(self, belief: np.ndarray, depth: int) -> int:
        # Ways that lead to one belief differ by rounding.
        key = (np.round(belief, 10) + 0.0).tobytes()
        if key not in self.index:
            if len(self.beliefs) == self.limit:
                raise ValueError(
                    f"more than {self.limit} beliefs can come about within {depth} actions "
                    "(max_beliefs); shorten the horizon"
                )
            self.index[key] = len(self.beliefs)
            self.beliefs.append(belief)
            self.depth.append(depth)
        return self.index[key]

    def observe(self, likelihood: np.ndarray, prior: np.ndarray, depth: int) -> list[tuple]:
        """Outcome, target and probability of everything that may be seen."""
        possible = np.flatnonzero(prior)
        joint = likelihood[:, possible] * prior[possible]
        chances, found = joint.sum(axis=1), []
        for outcome in np.flatnonzero(chances):
            belief = np.zeros_like(prior)
            belief[possible] = joint[outcome] / chances[outcome]
            found.append((outcome, self.place(belief, depth), chances[outcome]))
        return found


def _edges(rows: list[tuple]) -> Edges:
    columns = zip(*rows, strict=True) if rows else ([] for _ in range(5))
    dtypes = (int, int, int, int, np.float64)
    return Edges(*(np.array(c, dtype) for c, dtype in zip(columns, dtypes, strict=True)))


def reachable_beliefs(model: POMDP, horizon: int, *, max_beliefs: int = 20_000) -> BeliefGraph:
    """All beliefs that can come about from D within some actions, and the edges between them.

    Args:
        model: concrete; beliefs begin with D and a first observation.
        horizon: actions, at least 1.
        max_beliefs: more are refused.

    Raises:
        ValueError: when beliefs are too many, or combinations of states, controls and outcomes are
            more than a table of 2^24 entries holds.

    >>> from vfejax.problems.environments import t_maze
    >>> graph = reachable_beliefs(t_maze(), 3)
    >>> len(graph.beliefs), graph.closed  # places and sides; the side is unknown at first
    (9, True)
    """
    check_horizon(horizon)
    states, seen = math.prod(model.num_states), math.prod(model.num_observations)
    actions = math.prod(model.num_controls)
    if max(seen * states, actions * states**2) > _LARGEST_TABLE:
        raise ValueError(
            f"{states} combinations of states, {actions} joint controls and {seen} joint outcomes "
            "are too many: a table of them would have more than 2^24 entries"
        )
    check_model(model)
    controls = enumerate_policies(model, 1)[:, 0]
    outcomes = np.array(list(itertools.product(*(range(n) for n in model.num_observations))))
    tables, store = _tables(model, controls, outcomes), _Store(max_beliefs)
    start = [(0, 0, *row) for row in store.observe(tables.likelihood, tables.start, 0)]
    rows: list[tuple] = []
    node = 0
    while node < len(store.beliefs) and store.depth[node] < horizon:
        for action, transition in enumerate(tables.transition):
            prior = transition @ store.beliefs[node]
            after = store.observe(tables.likelihood, prior, store.depth[node] + 1)
            rows += [(node, action, *row) for row in after]
        node += 1
    return BeliefGraph(
        np.array(store.beliefs),
        np.array(store.depth),
        _edges(start),
        _edges(rows),
        controls,
        outcomes,
        closed=node == len(store.beliefs),
    )
