"""Worlds for agents that plan, as data: each is a POMDP, and the world behaves as that model says.

An agent may be given the same model, or another one. :func:`process` turns a model into a world of
pure functions, so that an episode is a scan and a batch a ``vmap``.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.pomdp.model import POMDP
from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = [
    "Environment",
    "bandit",
    "cue_chain",
    "process",
    "random_model",
    "t_maze",
]


class Environment(NamedTuple):
    """A world as two pure functions.

    Attributes:
        init: ``init(key) -> (state, observation)``: integers, one for each factor ``[f]`` and one
            for each modality ``[m]``.
        step: ``step(state, action, key) -> (state, observation)``, with a control for each factor
            ``[f]``.
    """

    init: Callable[[Array], tuple[Array, Array]]
    step: Callable[[Array, Array, Array], tuple[Array, Array]]


def process(model: POMDP) -> Environment:
    """The world that behaves as a model says: states drawn from D and B, observations from A.

    >>> world = process(bandit(jnp.array([0.5, 0.9])))
    >>> state, observation = world.init(jax.random.key(0))
    >>> state, observation = world.step(state, jnp.array([2, 0]), jax.random.key(1))
    >>> int(state[0])
    2
    """

    def draw(key: Array, probabilities: Sequence[Array]) -> Array:
        keys = jax.random.split(key, len(probabilities))
        drawn = [
            jax.random.choice(k, len(p), p=p) for k, p in zip(keys, probabilities, strict=True)
        ]
        return jnp.stack(drawn)

    def observe(key: Array, state: Array) -> Array:
        rows = [
            likelihood[:, *(state[f] for f in factors)]
            for likelihood, factors in zip(model.A, model.A_dependencies, strict=True)
        ]
        return draw(key, rows)

    def init(key: Array) -> tuple[Array, Array]:
        first, seen = jax.random.split(key)
        state = draw(first, model.D)
        return state, observe(seen, state)

    def step(state: Array, action: Array, key: Array) -> tuple[Array, Array]:
        moved, seen = jax.random.split(key)
        rows = [
            transition[:, *(state[d] for d in factors), action[f]]
            for f, (transition, factors) in enumerate(
                zip(model.B, model.B_dependencies, strict=True)
            )
        ]
        after = draw(moved, rows)
        return after, observe(seen, after)

    return Environment(init, step)


def bandit(chances: Array, *, reward: float = 1.0, start_known: bool = False) -> POMDP:
    """Arms that pay with probabilities that the agent knows as a set, but not which arm has which.

    Factor 0 is the arm that was pulled (0 before the first pull), factor 1 which arm has which
    probability: their cyclic shifts. Modality 0 is the payment (none yet, lost, won), modality 1
    the arm.

    Args:
        chances: probabilities of a payment, ``[k]``, at least two.
        reward: log preference for a payment, in nats.
        start_known: whether the first shift is the case and known; else all are as probable.

    Raises:
        ValueError: for chances of another shape, or concrete ones that are no probabilities.

    >>> model = bandit(jnp.array([0.1, 0.9]))
    >>> model.num_states, model.num_controls
    ((3, 2), (3, 1))
    """
    chances = as_floating(chances, "chances")
    num = chances.shape[0]
    if chances.ndim != 1 or num < 2:
        raise ValueError(f"chances must have shape [k], k at least 2, got {list(chances.shape)}")
    given = 0.0 if isinstance(chances, jax.core.Tracer) else np.asarray(chances)
    if not np.all((given >= 0) & (given <= 1)):
        raise ValueError(f"chances must be probabilities, got {chances}")
    shifts = jnp.stack([jnp.roll(chances, shift) for shift in range(num)], axis=1)  # [arm, shift]
    never = jnp.zeros_like(shifts)[None]
    payment = jnp.concatenate([never, 1 - shifts[None], shifts[None]])
    waiting = jnp.zeros((3, 1, num), chances.dtype).at[0].set(1.0)
    eye = jnp.eye(num + 1, dtype=chances.dtype)
    choose = jnp.broadcast_to(eye[:, None], (num + 1, num + 1, num + 1))
    start = jax.nn.one_hot(0, num, dtype=chances.dtype)
    return POMDP(
        [jnp.concatenate([waiting, payment], axis=1), eye],
        [choose, jnp.eye(num, dtype=chances.dtype)[..., None]],
        [jnp.array([0.0, 0.0, reward], chances.dtype), jnp.zeros(num + 1, chances.dtype)],
        [eye[0], start if start_known else jnp.full(num, 1 / num, chances.dtype)],
        A_dependencies=[[0, 1], [0]],
    )


def t_maze(
    *,
    reward: float = 3.0,
    punishment: float = 6.0,
    validity: float = 1.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> POMDP:
    """A reward waits in the left or the right arm of a T, and a cue below tells in which.

    Factor 0 is the place: centre, left, right, cue; the arms cannot be left again. Factor 1 is the
    side of the reward. Modality 0 is the place, modality 1 nothing, reward or punishment, modality
    2 the cue: none, left, right.

    Args:
        reward: log preference for the reward, in nats.
        punishment: minus the log preference for the other arm.
        validity: probability that the cue tells the truth.
        dtype: of the arrays.

    Raises:
        ValueError: when the validity is not a probability.

    Source: Friston, Rigoli, Ognibene, Mathys, Fitzgerald and Pezzulo, Active inference and
    epistemic value, Cognitive Neuroscience 6 (2015) 187.

    >>> t_maze().num_observations
    (4, 3, 3)
    """
    if not 0 <= validity <= 1:
        raise ValueError(f"validity must be a probability, got {validity}")
    found, told = np.zeros((3, 4, 2)), np.zeros((3, 4, 2))
    found[0, [0, 3]] = told[0, :3] = 1
    for side in range(2):
        found[1, 1 + side, side] = found[2, 2 - side, side] = 1
        told[1 + side, 3, side], told[2 - side, 3, side] = validity, 1 - validity
    move = np.zeros((4, 4, 4))
    for target in range(4):
        for place in range(4):
            move[place if place in (1, 2) else target, place, target] = 1

    def array(x: np.ndarray) -> Array:
        return jnp.asarray(x, dtype)

    return POMDP(
        [array(np.eye(4)), array(found), array(told)],
        [array(move), array(np.eye(2)[..., None])],
        [array(np.zeros(4)), array(np.array([0.0, reward, -punishment])), array(np.zeros(3))],
        [array(np.eye(4)[0]), array(np.full(2, 0.5))],
        A_dependencies=[[0], [0, 1], [0, 1]],
    )


def cue_chain(length: int = 3, sides: int = 2, *, reward: float = 3.0) -> POMDP:
    """Cues that must be visited in order: each is told only where the one before was just seen.

    Factor 0 is the stage: a start, ``length`` stages of the chain, and one place for each side.
    Factor 1 is the side of the reward. The last stage tells the side. Control 0 waits, control 1
    goes one stage on (and, at the end, stays), controls 2 and more choose a side.

    Args:
        length: stages, at least 1.
        sides: places where the reward may be, at least 2.
        reward: log preference for the reward, in nats; that of a wrong choice is minus twice it.

    >>> cue_chain(2).num_states
    (5, 2)
    """
    if length < 1 or sides < 2:
        raise ValueError(f"length must be at least 1 and sides 2, got {length} and {sides}")
    num = 1 + length + sides
    move = np.zeros((num, num, 2 + sides))
    for i in range(num):
        chosen = i > length
        move[i, i, 0] = 1
        move[i if chosen else min(i + 1, length), i, 1] = 1
        for side in range(sides):
            move[i if chosen else 1 + length + side, i, 2 + side] = 1
    outcome, told = np.zeros((3, num, sides)), np.zeros((sides + 1, num, sides))
    outcome[0, : 1 + length], told[0] = 1, 1
    for side in range(sides):
        told[:, length, side] = np.eye(sides + 1)[1 + side]
        for choice in range(sides):
            outcome[1 if choice == side else 2, 1 + length + choice, side] = 1
    return POMDP(
        [jnp.eye(num), jnp.asarray(outcome, jnp.float32), jnp.asarray(told, jnp.float32)],
        [jnp.asarray(move, jnp.float32), jnp.eye(sides)[..., None]],
        [jnp.zeros(num), jnp.array([0.0, reward, -2 * reward]), jnp.zeros(sides + 1)],
        [jnp.eye(num)[0], jnp.full(sides, 1 / sides)],
        A_dependencies=[[0], [0, 1], [0, 1]],
    )


def random_model(
    key: Array,
    num_states: Sequence[int],
    num_observations: Sequence[int],
    num_controls: Sequence[int],
    *,
    concentration: float = 0.5,
) -> POMDP:
    """Columns drawn from a symmetric Dirichlet distribution; every modality depends on all factors.

    Args:
        key: a random key.
        num_states: of each factor.
        num_observations: of each modality.
        num_controls: of each factor.
        concentration: counts of the Dirichlet; small ones give sharp columns.

    >>> random_model(jax.random.key(0), [3, 2], [4], [2, 1]).num_states
    (3, 2)
    """
    keys = iter(jax.random.split(key, len(num_observations) * 2 + len(num_states) * 2))

    def columns(*shape: int) -> Array:
        drawn = jax.random.dirichlet(next(keys), jnp.full(shape[0], concentration), shape[1:])
        return jnp.moveaxis(drawn, -1, 0)

    return POMDP(
        [columns(o, *num_states) for o in num_observations],
        [columns(s, s, u) for s, u in zip(num_states, num_controls, strict=True)],
        [jax.random.normal(next(keys), (o,)) for o in num_observations],
        [columns(s) for s in num_states],
    )
