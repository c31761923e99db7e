"""Sizes of the plans and arrays of ``vfejax plan``: what is too large is refused before the run
begins.
"""

import math
import os

import numpy as np

from vfejax.cli.plan.config import LISTED, PlanConfig
from vfejax.cli.plan.problem import Problem
from vfejax.errors import UserError

__all__ = ["check"]

_MOST_POLICIES = 2**20
_LARGEST_TREE = 2**22
_DEPTH = {"sophisticated": "--horizon, --outcomes", "mcts": "--simulations"}
"""The options that decide how much a planner looks at, where it is not --horizon alone."""


def check(config: PlanConfig, problem: Problem) -> None:
    """Refuse what no machine plans, and what is larger than the memory of this one.

    Raises:
        UserError: with the options that make it smaller.
    """
    model, horizon = problem.model, config.horizon
    actions, outcomes = math.prod(model.num_controls), math.prod(model.num_observations)
    policies = nodes = actions
    if config.planner in LISTED:
        policies = nodes = actions**horizon
        if policies > _MOST_POLICIES:
            raise UserError(
                f"--horizon {horizon}: there are {actions}^{horizon} sequences of actions, more "
                f"than {_MOST_POLICIES}; choose a smaller --horizon, or --planner gradient or mcts"
            )
    elif config.planner == "sophisticated":
        followed = min(config.outcomes or outcomes, outcomes)
        nodes = actions**horizon * followed ** (horizon - 1)
        if nodes > _LARGEST_TREE:
            # With a single outcome there is still a node for each sequence of actions.
            fewer = " or fewer --outcomes" if actions**horizon <= _LARGEST_TREE else ""
            raise UserError(
                f"--horizon {horizon}: the tree of {actions} actions and {followed} of {outcomes} "
                f"outcomes has more than {_LARGEST_TREE} nodes; choose a smaller --horizon{fewer}, "
                "or --planner mcts"
            )
    elif config.planner == "mcts":
        nodes = actions * (config.simulations or 512)
    states = sum(model.num_states)
    numbers = nodes * (states + outcomes) + config.length * (2 * policies + states)
    _check_memory(config, config.batch * numbers * np.dtype(config.precision).itemsize)


def _check_memory(config: PlanConfig, needed: int) -> None:
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise UserError(
            f"these agents take about {min(needed, 10**40) / 2**30:.3g} GiB, and this machine has "
            f"{present / 2**30:.3g} GiB; choose a smaller --batch, "
            f"{_DEPTH.get(config.planner, '--horizon')} or --length"
        )
