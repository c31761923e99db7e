"""Options of meta-agents, ``vfejax simulate --emergence``: their meaning, defaults and limits."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from vfejax.agents.alignment import ALIGNMENTS
from vfejax.agents.emergence import Criteria
from vfejax.agents.hierarchy_energy import CrossScale
from vfejax.cli.limits import LARGEST_COUNT, check, check_counts, check_numbers
from vfejax.errors import UserError
from vfejax.problems import emergent_flow
from vfejax.problems.emergent_flow import Clock
from vfejax.problems.scenes import cooling
from vfejax.types import Array

__all__ = [
    "Meta",
    "check_fits",
    "check_values",
    "clocks",
    "criteria",
    "cross_scale",
    "looks",
    "temperature",
]


@dataclass(frozen=True)
class Meta:
    """When agents form meta-agents, and how scales act on one another. For --emergence."""

    threshold: float = 0.5
    """Two agents are linked when neither of their beliefs diverges from the other by more than
    this, in nats.
    """
    prior_threshold: float = math.inf
    """The same for their priors, in nats. With inf, priors do not count."""
    diameter: float = 1.0
    """Largest divergence between two members of a group, in nats. A wider group is split by a
    smaller threshold.
    """
    levels: int = 4
    """Number of thresholds that are tried. Each is half of the one before."""
    release: float = 10.0
    """A member leaves when its belief diverges from its meta-agent's by more than this multiple of
    the threshold; at least 1.
    """
    min_members: int = 2
    """Members that a meta-agent needs; at least 2. With fewer left it dissolves."""
    max_members: int | None = None
    """The most members that a meta-agent may have when it forms. Any number by default."""
    final_temperature: float = 0.3
    """Temperature of the attention after the cooling, in nats. At a high one all agents align with
    all; at a low one an agent attends to those it agrees with.
    """
    cooling_steps: int = 400
    """Steps over which the temperature falls, by the same factor at each, from --temperature to
    --meta.final-temperature. With 0 it stays at --temperature.
    """
    detect_from: int = 450
    """First step at which groups are looked for. Before it, agents that see the same scene may not
    be aligned yet, and similar scenes may not be separated.
    """
    detect_every: int = 10
    """Steps from one look for groups to the next: members leave and groups form at such steps
    only.
    """
    blend: float = 1.0
    """Share of the meta-agent's belief in the prior of its members, from 0 to 1: at 1 it replaces
    their own prior, at 0 it has no influence.
    """
    alignment: Literal[*ALIGNMENTS] = "saturating"  # type: ignore[valid-type]
    """Alignment energy of meta-agents among themselves. With saturating, those that are further
    from one another than 20 times the temperature do not attract; with the others the attention of
    each sums to 1, however far the rest are.
    """
    bottom_up: float = 0.0
    """Precision with which a meta-agent observes its members, a dimensionless factor; at 0 it does
    not observe them, and no evidence counts twice. From 1 on beliefs become more and more certain
    for as long as the run goes on.
    """
    hyperprior_depth: int = 0
    """Number of scales above the meta-agent whose beliefs act on an agent as further priors."""
    decay: float = 0.5
    """Factor by which such a prior becomes weaker with every scale."""
    clock: Literal["steps", "information"] = "steps"
    """When a scale above the agents moves: by the number of steps (--meta.every), or by how far its
    members have moved since it last did (--meta.nats).
    """
    every: Annotated[tuple[int, ...], tyro.conf.arg(metavar="STEPS...")] = (1,)
    """Steps from one move of scale 1, 2, ... to the next. One number holds for all scales."""
    nats: Annotated[tuple[float, ...], tyro.conf.arg(metavar="NATS...")] = (1.0,)
    """Information that must come from the members before scale 1, 2, ... moves, in nats: half the
    sum of the squared Fisher lengths of its members' steps. One number holds for all scales.
    """


def check_values(meta: Meta, emergence: tuple[int, ...]) -> None:
    """Raise a UserError for the first of the options of meta-agents that is out of its limits.

    Args:
        meta: the options.
        emergence: slots of each scale above the agents.
    """
    shown = " ".join(map(str, emergence))
    fits = all(1 <= count <= LARGEST_COUNT for count in emergence)
    check(
        fits,
        "emergence",
        shown,
        f"numbers of meta-agents, each at least 1 and at most {LARGEST_COUNT}",
    )
    check_numbers(
        meta, ["threshold", "diameter", "final_temperature"], positive=True, prefix="meta."
    )
    allowed = "positive (with inf, priors do not count)"
    check(meta.prior_threshold >= 1.2e-38, "meta.prior-threshold", meta.prior_threshold, allowed)
    fits = 1 <= meta.release <= 3.4e38
    allowed = "at least 1 and finite: members leave at no smaller divergence than they join at"
    check(fits, "meta.release", meta.release, allowed)
    check_counts(meta, ["min_members"], 2, prefix="meta.")
    check_counts(meta, ["levels", "detect_every"], 1, prefix="meta.")
    check_counts(meta, ["detect_from", "hyperprior_depth", "cooling_steps"], 0, prefix="meta.")
    fits = meta.levels <= 100
    check(fits, "meta.levels", meta.levels, "at most 100")
    if meta.max_members is not None:
        fits = meta.min_members <= meta.max_members <= LARGEST_COUNT
        allowed = f"at least --meta.min-members {meta.min_members}"
        check(fits, "meta.max-members", meta.max_members, allowed)
    check(0 <= meta.blend <= 1, "meta.blend", meta.blend, "from 0 to 1")
    check_numbers(meta, ["bottom_up", "decay"], positive=False, prefix="meta.")
    _check_clocks(meta, emergence)


def _check_clocks(meta: Meta, emergence: tuple[int, ...]) -> None:
    least: tuple[tuple[str, tuple[Any, ...], Callable[[Any], bool], str], ...] = (
        ("every", meta.every, lambda x: 1 <= x <= LARGEST_COUNT, "at least 1"),
        ("nats", meta.nats, lambda x: math.isfinite(x) and x >= 0, "at least 0 and finite"),
    )
    for name, values, fits, allowed in least:
        shown = " ".join(map(str, values))
        check(bool(values) and all(map(fits, values)), f"meta.{name}", shown, f"{allowed} each")
        many = {1} if not emergence else {1, len(emergence)}
        wanted = f"one number for all scales, or {len(emergence)}, one for each of --emergence"
        check(len(values) in many, f"meta.{name}", shown, wanted)


def check_fits(meta: Meta, emergence: tuple[int, ...], num_agents: int) -> None:
    """Raise a UserError for more scales than the agents can fill, or slots than memory can hold.

    Args:
        meta: the options.
        emergence: slots of each scale above the agents.
        num_agents: number of agents.
    """
    rows = num_agents + sum(emergence)
    # Divergences of all pairs of rows, and what is made of them, in float32.
    needed, present = 4 * 4 * rows**2, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise UserError(
            f"--emergence {' '.join(map(str, emergence))}: all pairs of {rows} agents and slots "
            f"take {needed / 2**30:.3g} GiB, and this machine has {present / 2**30:.3g} GiB; give "
            f"smaller numbers ({num_agents} agents fill at most {num_agents // meta.min_members} "
            "slots of scale 1)"
        )
    most = num_agents
    for scale, slots in enumerate(emergence, 1):
        most = min(most // meta.min_members, slots)
        if most < 1:
            below = f", and {meta.min_members} slots in the scale below" if scale > 1 else ""
            raise UserError(
                f"--emergence {' '.join(map(str, emergence))}: scale {scale} can never be reached "
                f"by {num_agents} agents and these slots; with --meta.min-members "
                f"{meta.min_members} it takes at least {meta.min_members**scale} agents{below}; "
                "leave the scale out"
            )


def criteria(meta: Meta) -> Criteria:
    """When agents join and when they part."""
    return Criteria(
        threshold=meta.threshold,
        diameter=meta.diameter,
        prior_threshold=meta.prior_threshold,
        release=meta.release,
        min_members=meta.min_members,
        max_members=meta.max_members,
        levels=meta.levels,
    )


def cross_scale(meta: Meta) -> CrossScale:
    """How scales act on one another."""
    return CrossScale(meta.blend, meta.bottom_up, meta.decay, meta.hyperprior_depth)


def clocks(meta: Meta, num_scales: int) -> tuple[Clock, ...]:
    """The clocks of the scales above the agents, ``num_scales`` of them."""

    def each(given: tuple) -> tuple:
        return given * num_scales if len(given) == 1 else given

    if meta.clock == "steps":
        return tuple(map(emergent_flow.every, each(meta.every)))
    return tuple(map(emergent_flow.information, each(meta.nats)))


def temperature(meta: Meta, start: float, step: Array | np.ndarray) -> Array:
    """Temperature of the attention at a step, in nats, in the dtype of the step.

    Args:
        meta: the options.
        start: the temperature of step 0.
        step: number of the step, floating.
    """
    if meta.cooling_steps == 0:
        return jnp.full_like(step, start)
    progress = jnp.minimum(step / meta.cooling_steps, 1.0)
    return cooling(progress, start, meta.final_temperature)


def looks(meta: Meta, step: Array | np.int32) -> Array:
    """Steps from one look for groups to the next, as the flow takes them at this step: before the
    first look it is as if there were none.

    Args:
        meta: the options.
        step: number of the step, int32.
    """
    return jnp.where(step < meta.detect_from, jnp.int32(LARGEST_COUNT), meta.detect_every)
