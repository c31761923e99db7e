"""The optimal policy in an environment that the agent knows: exact values of all beliefs.

With log preferences as rewards and t actions done,

    V_t(b) = max_u sum_o p(o | b, u) [ sum_m C_m(o_m) + V_t+1(b_u,o) ],        V_horizon = 0

over the beliefs that can come about. Information has no value of its own here: asking pays by what
it lets the agent do later. With a goal instead of preferences the value is the probability of ever
seeing it. Values, success and times are expectations, without any drawing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.active_inference import Agent, Decision, Plan
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems.belief_graph import BeliefGraph, reachable_beliefs
from vfejax.types import Array

__all__ = ["Evaluation", "OptimalState", "Solution", "evaluate", "optimal_agent", "solve"]

Goal = tuple[int, int]


class Solution(NamedTuple):
    """What to do, and what it is worth.

    Attributes:
        graph: the beliefs.
        values: of each belief when t actions are done, ``[horizon + 1, n]``; NaN for beliefs that
            cannot come about so early.
        action_values: of each action, ``[horizon, n, u]``, likewise.
        actions: the best one, a row of ``graph.controls``, ``[horizon, n]``.
    """

    graph: BeliefGraph
    values: np.ndarray
    action_values: np.ndarray
    actions: np.ndarray

    @property
    def value(self) -> float:
        """Expected before the first observation."""
        start = self.graph.start
        return float(start.probability @ self.values[0, start.target])

    def find(self, belief: Sequence[Array] | np.ndarray) -> int:
        """The number of a belief in the graph.

        Args:
            belief: probabilities for each factor, ``[s_f]``, or of all combinations, one array.

        Raises:
            ValueError: when it cannot come about.
        """
        if isinstance(belief, Sequence):
            joint = np.ones(())
            for q in belief:
                joint = np.multiply.outer(joint, np.asarray(q))
        else:
            joint = np.asarray(belief)
        distance = np.abs(self.graph.beliefs - joint.reshape(-1)).sum(axis=1)
        # Beliefs of agents are float32.
        if not distance.min() < 1e-4:
            raise ValueError("the belief cannot come about from D within the horizon")
        return int(distance.argmin())


def _hits(graph: BeliefGraph, goal: Goal, outcomes: np.ndarray) -> np.ndarray:
    modality, value = goal
    return graph.outcomes[outcomes, modality] == value


def _check_goal(model: POMDP, goal: Goal) -> None:
    modality, value = goal
    if not 0 <= modality < len(model.A) or not 0 <= value < model.num_observations[modality]:
        raise ValueError(
            f"goal must be a modality, 0 to {len(model.A) - 1}, and one of its observations, "
            f"got {tuple(goal)}"
        )


def _expect(graph: BeliefGraph, values: np.ndarray) -> np.ndarray:
    """Expectation over outcomes of what stands at the edges: ``[e]`` to ``[n, u]``."""
    shape = len(graph.beliefs), len(graph.controls)
    found = np.zeros(shape)
    np.add.at(found, graph.edges[:2], graph.edges.probability * values)
    return found


def _check_preferences(model: POMDP, horizon: int) -> None:
    for m, preferences in enumerate(model.C):
        if preferences.ndim == 2 and len(preferences) < horizon:
            raise ValueError(f"C[{m}] has {len(preferences)} steps and the horizon is {horizon}")


def _utilities(model: POMDP, graph: BeliefGraph, step: int) -> np.ndarray:
    """``sum_m C_m(o_m)`` of each joint outcome, ``[o]``."""
    rows = [np.asarray(c if c.ndim == 1 else c[step], np.float64) for c in model.C]
    return sum(row[graph.outcomes[:, m]] for m, row in enumerate(rows))


def solve(
    model: POMDP, horizon: int, *, goal: Goal | None = None, max_beliefs: int = 20_000
) -> Solution:
    """The best actions for a number of steps, from all beliefs that can come about.

    Args:
        model: of the world, concrete; the agent knows it.
        horizon: actions, at least 1. Rewards are those of the observations after each.
        goal: a modality and one of its observations; where given, the probability of ever seeing
            it is maximised, and then the time until then made short, whatever the preferences.
        max_beliefs: more are refused.

    Raises:
        ValueError: when the goal is none, there are too many beliefs, or preferences have fewer
            steps than the horizon.

    Source: Kaelbling, Littman and Cassandra, Planning and acting in partially observable stochastic
    domains (1998).

    >>> from vfejax.problems.environments import t_maze
    >>> best = solve(t_maze(), 3)  # ask, go there, stay: twice the reward of 3 nats
    >>> round(best.value, 6), best.graph.controls[best.actions[0, 0], 0].item()
    (6.0, 3)
    """
    if goal is None:
        _check_preferences(model, horizon)
    else:
        _check_goal(model, goal)
    graph = reachable_beliefs(model, horizon, max_beliefs=max_beliefs)
    num, actions = len(graph.beliefs), len(graph.controls)
    values, waits = np.zeros((horizon + 1, num)), np.zeros(num)
    every, best = np.zeros((horizon, num, actions)), np.zeros((horizon, num), int)
    target = graph.edges.target
    for step in reversed(range(horizon)):
        if goal is None:
            reward = _utilities(model, graph, step)[graph.edges.outcome]
            every[step] = _expect(graph, reward + values[step + 1, target])
            best[step] = every[step].argmax(axis=1)
        else:
            hit = _hits(graph, goal, graph.edges.outcome)
            every[step] = _expect(graph, np.where(hit, 1.0, values[step + 1, target]))
            wait = _expect(graph, np.where(hit, 0.0, 1.0 + waits[target]))
            good = every[step] >= every[step].max(axis=1, keepdims=True) - 1e-12
            best[step] = np.where(good, wait, np.inf).argmin(axis=1)
            waits = wait[np.arange(num), best[step]]
        values[step] = every[step].max(axis=1)
    if not graph.closed:
        early = graph.depth[None] > np.arange(horizon + 1)[:, None]
        values[early], every[early[:-1]] = np.nan, np.nan
    return Solution(graph, values, every, best)


class Evaluation(NamedTuple):
    """What comes of a solution, in expectation.

    Attributes:
        utility: of the observations after each action, ``[horizon]``, in nats.
        success: probability that the goal was seen after t actions or before, ``[horizon + 1]``.
        steps: mean number of actions until it was first seen, where it was seen; NaN where never.
    """

    utility: np.ndarray
    success: np.ndarray
    steps: float


def evaluate(model: POMDP, solution: Solution, goal: Goal) -> Evaluation:
    """Success, time and utility of the best actions, summed over all that can happen.

    Args:
        model: of the world, the one that was solved.
        solution: of :func:`solve`.
        goal: a modality and one of its observations.

    Raises:
        ValueError: when the goal is none, or preferences have fewer steps than the solution.

    >>> from vfejax.problems.environments import t_maze
    >>> found = evaluate(t_maze(), solve(t_maze(), 3), (1, 1))
    >>> found.success.round(6).tolist(), round(found.steps, 6)
    ([0.0, 0.0, 1.0, 1.0], 2.0)
    """
    _check_goal(model, goal)
    graph, horizon = solution.graph, len(solution.actions)
    _check_preferences(model, horizon)
    edges, num = graph.edges, len(graph.beliefs)
    seen = _hits(graph, goal, graph.start.outcome)
    everyone: np.ndarray = np.zeros(num)
    searching: np.ndarray = np.zeros(num)
    np.add.at(everyone, graph.start.target, graph.start.probability)
    np.add.at(searching, graph.start.target[~seen], graph.start.probability[~seen])
    utility, success = np.zeros(horizon), np.zeros(horizon + 1)
    success[0] = graph.start.probability[seen].sum()
    hit = _hits(graph, goal, edges.outcome)
    for step in range(horizon):
        flow = edges.probability * (solution.actions[step, edges.source] == edges.action)
        arriving = flow * everyone[edges.source]
        came = arriving > 0  # 0 times a preference of -inf would be NaN
        utility[step] = arriving[came] @ _utilities(model, graph, step)[edges.outcome[came]]
        left = flow * searching[edges.source]
        success[step + 1] = success[step] + left[hit].sum()
        everyone = np.bincount(edges.target, arriving, num)
        searching = np.bincount(edges.target, np.where(hit, 0.0, left), num)
    first = np.diff(success, prepend=0.0)
    steps = first @ np.arange(horizon + 1) / success[-1] if success[-1] > 0 else np.nan
    return Evaluation(utility, success, float(steps))


class OptimalState(NamedTuple):
    """What an agent of exact beliefs carries.

    Attributes:
        belief: its number in the graph before the observation, scalar.
        action: the joint control that it took, scalar.
        step: actions done, scalar; -1 before the first observation.
    """

    belief: Array
    action: Array
    step: Array


def _table(graph: BeliefGraph) -> tuple[np.ndarray, ...]:
    """Sorted codes of belief, action and outcome, with target and probability of each."""
    num = len(graph.beliefs)
    sources = np.concatenate([graph.edges.source, np.full(len(graph.start.source), num)])
    rest = [np.concatenate([a, b]) for a, b in zip(graph.edges, graph.start, strict=True)][1:]
    action, outcome, target, probability = rest
    codes = (sources * len(graph.controls) + action) * len(graph.outcomes) + outcome
    if codes.max() >= 2**31:
        raise ValueError(f"{num} beliefs are too many to be looked up by 32-bit integers")
    order = np.argsort(codes)
    return codes[order].astype(np.int32), target[order].astype(np.int32), probability[order]


def optimal_agent(model: POMDP, solution: Solution) -> Agent:
    """An agent that keeps exact beliefs and does what is best, in the world that was solved.

    Behind the horizon it goes on as at the last step. An observation that its model excludes has
    infinite free energy, and what follows means nothing.

    Args:
        model: the one that was solved.
        solution: of :func:`solve`.

    >>> from vfejax.problems.environments import process, t_maze
    >>> from vfejax.problems.episodes import run_episode
    >>> maze = t_maze()
    >>> best = optimal_agent(maze, solve(maze, 2))
    >>> run_episode(best, process(maze), jax.random.key(0), 3).states[:2, 0].tolist()
    [0, 3]
    """
    graph, dtype = solution.graph, model.D[0].dtype
    codes, targets, chances = (jnp.asarray(x) for x in _table(graph))
    chances, horizon, num = chances.astype(dtype), len(solution.actions), len(graph.beliefs)
    joint = graph.beliefs.reshape(num, *model.num_states)
    factors = range(1, joint.ndim)
    marginals = [
        jnp.asarray(joint.sum(axis=tuple(g for g in factors if g != f)), dtype) for f in factors
    ]
    best = jnp.asarray(solution.actions, jnp.int32)
    values, controls = jnp.asarray(solution.action_values, dtype), jnp.asarray(graph.controls)
    later = np.cumprod((1, *model.num_observations[:0:-1]))[::-1]  # outcomes of later modalities
    weights, sizes = jnp.asarray(later, jnp.int32), jnp.asarray(model.num_observations)

    def init() -> OptimalState:
        return OptimalState(jnp.int32(num), jnp.int32(0), jnp.int32(-1))

    def step(
        state: OptimalState, observation: Array, key: Array, mask: Array | None = None
    ) -> tuple[OptimalState, Decision]:
        del key  # nothing is drawn
        if mask is not None:
            raise ValueError("an agent of exact beliefs needs all observations; mask must be None")
        outcome = jnp.sum(observation.astype(jnp.int32) * weights, dtype=jnp.int32)
        code = (state.belief * len(graph.controls) + state.action) * len(graph.outcomes) + outcome
        place = jnp.minimum(jnp.searchsorted(codes, code), len(codes) - 1)
        inside = jnp.all((observation >= 0) & (observation < sizes))
        chance = jnp.where(inside & (codes[place] == code), chances[place], 0.0)
        belief, done = targets[place], state.step + 1
        now = jnp.minimum(done, horizon - 1)
        action = best[now, belief]
        plan = Plan(
            jax.nn.one_hot(action, len(graph.controls), dtype=dtype),
            values[now, belief],
            tuple(
                jax.nn.one_hot(controls[action, f], n, dtype=dtype)
                for f, n in enumerate(model.num_controls)
            ),
        )
        beliefs = tuple(q[belief] for q in marginals)
        decision = Decision(beliefs, -jnp.log(chance), plan, controls[action])
        return OptimalState(belief, action, done), decision

    return Agent(init, step)
