"""Options of ``vfejax plan``: their meaning, their defaults, their limits."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from vfejax.cli import options as configuration
from vfejax.cli.limits import check, check_counts, check_numbers, check_run
from vfejax.cli.options import RunOptions
from vfejax.cli.plan import query
from vfejax.errors import UserError

__all__ = ["LISTED", "PlanConfig", "check_values", "learned", "parse"]

LISTED = ("policies", "induction", "utility")
"""The planners that value a list of policies."""
_FURTHEST = 100
_OF_WORLDS = {
    "map": ("grid",),
    "reward": ("grid", "tmaze", "bandit", "cue-chain"),
    "punishment": ("grid", "tmaze"),
    "validity": ("grid", "tmaze"),
    "slip": ("grid",),
    "chances": ("bandit",),
    "cues": ("cue-chain",),
    "sides": ("cue-chain",),
    "states": ("random",),
    "observations": ("random",),
    "controls": ("random",),
}
"""The worlds that each option of a world belongs to."""
_FEWEST = {"cues": 1, "sides": 2, "states": 2, "observations": 2, "controls": 2}
_MOST = 1000
"""How many there may be of what a world is made of."""


@dataclass(frozen=True)
class PlanConfig(RunOptions):
    """Agents perceive, plan and act in a world, by their expected free energy.

    Without arguments the world is a grid: a reward is behind one of two doors, and a cue elsewhere
    tells behind which. With --image there is no world: tokens are allocated to the patches of a
    picture, by their texture, their salience and their information about --query.
    """

    CHANGEABLE: ClassVar[tuple[str, ...]] = ("steps", "checkpoint_every")
    INPUTS: ClassVar[tuple[str, ...]] = ("map", "image")

    out: Path = Path("runs/plan")
    """Run directory to create."""
    seed: int = 0
    """Seed of the worlds, of observations and actions, and of the model of --env random."""

    env: Literal["grid", "tmaze", "bandit", "cue-chain", "random"] = "grid"
    """World: a grid from a text map, a T-maze with a cue, a bandit, a chain of cues that must be
    visited in order, or a random model.
    """
    map: Path | None = None
    """Text map of the grid world: # wall, . free, S start, C cue, T trap, 1 to 9 places where the
    reward may be. By default the map of the package.
    """
    reward: float | None = None
    """Log preference for the reward, in nats; 3 by default, 1 for the bandit."""
    punishment: float | None = None
    """Minus the log preference for a trap or a place without the reward, in nats; 6 by default."""
    validity: float | None = None
    """Probability that a cue of grid and tmaze tells the truth; 1 by default."""
    slip: float | None = None
    """Probability that a move on the grid fails; 0 by default."""
    chances: Annotated[tuple[float, ...], tyro.conf.arg(metavar="CHANCE...")] = ()
    """Probabilities with which the arms of the bandit pay; 0.1 0.5 0.9 by default."""
    cues: int | None = None
    """Number of cues of the chain; 2 by default."""
    sides: int | None = None
    """Places at the end of the chain of cues where the reward may be; 2 by default."""
    states: int | None = None
    """Number of states of the random world; 8 by default."""
    observations: int | None = None
    """Number of observations of the random world; 8 by default."""
    controls: int | None = None
    """Number of controls of the random world; 3 by default."""
    fixed: bool = False
    """What is hidden (where the reward is, which arm pays) is the same in every episode, the first
    possibility, and agents do not know that. They find out with --learn D.
    """

    steps: Annotated[int, tyro.conf.arg(aliases=["--episodes"])] = 8
    """Number of episodes, each of all agents of the batch."""
    log_every: int = 1
    """Episodes between rows of metrics.csv, which are means over them; also the number of episodes
    compiled into one call.
    """
    checkpoint_every: int = 4
    """Episodes between checkpoints, a multiple of --log-every."""
    length: int = 10
    """Observations of an episode, each followed by an action."""
    batch: int = 16
    """Agents side by side, each in a world of its own."""

    planner: Literal[
        "policies", "sophisticated", "greedy", "utility", "induction", "gradient", "mcts"
    ] = "policies"
    """How agents plan: by all sequences of actions (policies), by a tree of actions and outcomes
    (sophisticated), one step ahead (greedy), by preferences without any value of information
    (utility), backwards from the goal (induction, for goals that are further than the horizon), by
    gradient on relaxed policies (gradient), or by Monte Carlo tree search over beliefs (mcts, for
    far horizons; pip install 'vfejax[mctx]').
    """
    horizon: int = 5
    """Steps that agents look ahead; greedy agents look one step ahead."""
    outcomes: int | None = None
    """Most probable outcomes that sophisticated planning follows after each action; all by default.
    """
    simulations: int | None = None
    """Nodes of the tree that mcts grows at every observation; 512 by default. With few the search
    is shallow.
    """
    gamma: float = 16.0
    """Precision of the choice between policies: probabilities are exp(-gamma G), normalised."""
    temperature: float = 1.0
    """Temperature of drawn actions; 0 takes the most probable one."""
    learn: str | None = None
    """Arrays that agents learn by Dirichlet counts over all episodes, letters separated by commas:
    A, likelihoods of observations; B, transitions that they control; C, preferences; D, initial
    states; E, habits. By default agents know the true arrays.
    """
    learning_rate: float = 1.0
    """Count that one event adds to what is learned."""
    forgetting: float = 0.0
    """Share of the counts that is forgotten after each episode, from 0 to 1."""
    prior_knowledge: float = 0.3
    """Initial knowledge of those of the arrays A, B and D that agents learn: 0 is uniform
    distributions, 1 the true ones, and a number between is a mixture of both.
    """
    prior_counts: float = 1.0
    """Number of events that the initial knowledge is worth, in each column."""

    # One agent in real time.
    realtime: float | None = None
    """Cycles per second of one agent that acts in real time, instead of episodes, with deadlines.
    When it would be late it plans less far ahead than --horizon. The run keeps a histogram of
    latencies, and status.json, rewritten every second.
    """
    duration: float | None = None
    """Seconds that the agent acts in real time; until Ctrl-C by default."""
    sensor: Literal["world", "stdin"] = "world"
    """Source of the observations in real time: the world, or lines of standard input with an
    integer for each modality (- where it is missing). The newest line counts, and actions are
    printed.
    """
    max_age: float | None = None
    """Age in seconds above which an observation counts as missing; two cycles by default."""

    precision: Literal["float32", "float64"] = "float32"
    """Floating-point precision of beliefs and values."""

    image: Path | None = None
    """Picture whose patches are given tokens, instead of a world: --steps then counts iterations of
    message combination, and --temperature is that of the belief where to look.
    """
    query: str | None = None
    """What to look for in --image: a colour by its name or as #rrggbb, a region x,y,width,height in
    pixels, or another picture, whose colours are looked for. Nothing by default.
    """
    budget: int | None = None
    """Tokens of all patches of --image; by default twice --k-min for each."""
    k_min: int | None = None
    """Fewest tokens of a patch of --image; 64 by default."""
    k_max: int | None = None
    """Most tokens of a patch of --image; 400 by default."""
    patch: int | None = None
    """Side of a patch of --image, in pixels; 28 by default."""
    weights: tuple[float, float, float] | None = None
    """Weights of the three scores of a patch of --image: entropy of its texture, precision times
    salience, and information about the query; 1 1 5 by default.
    """


def parse(arguments: Sequence[str]) -> PlanConfig:
    """Flags over the configuration file (or, with --resume, over the run's own configuration) over
    the defaults.
    """
    config = configuration.parse_run(PlanConfig, arguments, program="vfejax plan")
    file = query.file_of(config.query)
    if file is not None and os.path.exists(file):
        return dataclasses.replace(config, query=os.path.abspath(file))
    return config


def learned(config: PlanConfig) -> str:
    """The letters of ``--learn``, in alphabetical order.

    >>> learned(PlanConfig(learn="B, A"))
    'AB'
    """
    given = (config.learn or "").split(",")
    return "".join(sorted({name.strip() for name in given if name.strip()}))


def check_values(config: PlanConfig) -> None:
    """Raise a UserError that names the option and its limits for the first value that is out of
    them.
    """
    check_run(config)
    check_counts(config, ["length", "batch"], 1)
    fits = 1 <= config.horizon <= _FURTHEST
    check(fits, "horizon", config.horizon, f"at least 1 and at most {_FURTHEST}")
    check_numbers(config, ["gamma", "temperature"], positive=False)
    _check_world(config)
    _check_planner(config)
    _check_learning(config)
    _check_realtime(config)


def _check_world(config: PlanConfig) -> None:
    for name, worlds in _OF_WORLDS.items():
        value = getattr(config, name)
        if value is not None and value != ():
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            requirement = f"left out with --env {config.env}; it belongs to {' and '.join(worlds)}"
            check(config.env in worlds, name, shown, requirement)
            _check_of_world(config, name, value, shown)

    requirement = "another world with --fixed: nothing in it is hidden for an episode"
    check(not config.fixed or config.env != "random", "env", config.env, requirement)


def _check_of_world(config: PlanConfig, name: str, value: Any, shown: Any) -> None:
    """The limits of an option of a world that is given."""
    if name in ("validity", "slip"):
        check(0 <= value <= 1, name, shown, "a probability, from 0 to 1")
    elif name in ("reward", "punishment"):
        check_numbers(config, [name], positive=False)
    elif name == "chances":
        fits = len(value) > 1 and all(0 <= chance <= 1 for chance in value)
        check(fits, name, shown, "two or more probabilities, from 0 to 1")
    elif name in _FEWEST:
        fits = _FEWEST[name] <= value <= _MOST
        check(fits, name, shown, f"at least {_FEWEST[name]} and at most {_MOST}")


def _check_planner(config: PlanConfig) -> None:
    for name, planner in (("outcomes", "sophisticated"), ("simulations", "mcts")):
        value = getattr(config, name)
        if value is not None:
            check_counts(config, [name], 1)
            requirement = f"left out with --planner {config.planner}; it needs {planner}"
            check(config.planner == planner, name, value, requirement)


def _check_learning(config: PlanConfig) -> None:
    if config.learn is not None:
        fits = bool(learned(config)) and set(learned(config)) <= set("ABCDE")
        check(fits, "learn", repr(config.learn), "letters of ABCDE, separated by commas")
    check_numbers(config, ["learning_rate", "prior_counts"], positive=True)
    for name in ("forgetting", "prior_knowledge"):
        check(0 <= getattr(config, name) <= 1, name, getattr(config, name), "from 0 to 1")
    for name in ("learning_rate", "forgetting", "prior_knowledge", "prior_counts"):
        value = getattr(config, name)
        fits = config.learn is not None or value == getattr(PlanConfig, name)
        check(fits, name, value, "left out without --learn")
    requirement = f"without E with --planner {config.planner}: habits are of listed policies"
    check(
        "E" not in learned(config) or config.planner in LISTED, "learn", config.learn, requirement
    )


def _check_realtime(config: PlanConfig) -> None:
    if config.realtime is None:
        for name in ("duration", "sensor", "max_age"):
            value = getattr(config, name)
            check(value == getattr(PlanConfig, name), name, value, "left out without --realtime")
        return
    check_numbers(config, ["realtime"], positive=True)
    given = [name for name in ("duration", "max_age") if getattr(config, name) is not None]
    check_numbers(config, given, positive=True)
    if config.resume:
        raise UserError(
            "--resume: a run in real time cannot go on; begin a new one with another --out, or "
            "with --overwrite in its place"
        )
    if config.duration is not None:
        fits = config.duration * config.realtime >= 0.5  # it is rounded to whole cycles
        requirement = f"at least one cycle of --realtime {config.realtime}"
        check(fits, "duration", config.duration, requirement)
    for name in ("learn", "tensorboard", "steps", "log_every", "checkpoint_every", "batch"):
        value = getattr(config, name)
        requirement = "left out with --realtime, which has one agent and no episodes"
        check(value == getattr(PlanConfig, name), name, value, requirement)
