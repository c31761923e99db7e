"""Options of ``vfejax simulate``: their meaning, their defaults, their limits."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from vfejax.agents.alignment import ALIGNMENTS
from vfejax.cli import options as configuration
from vfejax.cli.distributed import GroupOptions
from vfejax.cli.limits import LARGEST_COUNT, check, check_counts, check_numbers, check_run
from vfejax.cli.simulate import meta_agents
from vfejax.cli.simulate.meta_agents import Meta
from vfejax.errors import UserError

__all__ = ["Masses", "Rates", "SimulateConfig", "Weights", "check_values", "parse"]


@dataclass(frozen=True)
class Weights:
    """Dimensionless weight of each term of the free energy."""

    self_coupling: float = 1.0
    """KL of each belief from its prior."""
    belief_alignment: float = 10.0
    """Attention-weighted KL between transported beliefs."""
    prior_alignment: float = 0.0
    """The same between priors."""
    observation: float = 1.0
    """Expected negative log likelihood of what the agents measured."""


@dataclass(frozen=True)
class Rates:
    """Learning rate of each group as a multiple of --step-size; 0 freezes it. For gradient, adam
    and natural dynamics.
    """

    belief_mean: float = 1.0
    """Means of the beliefs."""
    belief_cov: float = 1.0
    """Covariances of the beliefs."""
    prior_mean: float = 0.0
    """Means of the priors."""
    prior_cov: float = 0.0
    """Covariances of the priors."""
    frames: float = 1.0
    """Gauge frames."""


@dataclass(frozen=True)
class Masses:
    """Mass of each group, in nats time^2 / coordinate^2; inf freezes it. For hamiltonian dynamics;
    with --mass belief only that of the frames, their moment of inertia.
    """

    belief_mean: float = 100.0
    """Means of the beliefs."""
    belief_cov: float = 10_000.0
    """Covariances of the beliefs (log-scale coordinates of the Cholesky factor)."""
    prior_mean: float = float("inf")
    """Means of the priors."""
    prior_cov: float = float("inf")
    """Covariances of the priors."""
    frames: float = 1000.0
    """Gauge frames."""


@dataclass(frozen=True)
class SimulateConfig(GroupOptions):
    """A population of Gaussian agents minimises its variational free energy.

    Without data of your own it solves the embedded problem: sensors with unknown orientations
    measure the same three landmarks. With several --scenes, each sensor sees one of them. With
    --emergence, agents that agree form meta-agents.
    """

    CHANGEABLE: ClassVar[tuple[str, ...]] = ("steps", "checkpoint_every", "step_size")
    INPUTS: ClassVar[tuple[str, ...]] = (
        *("observations", "observation_matrix", "initial", "edges"),
    )

    out: Path = Path("runs/simulate")
    """Run directory to create."""
    seed: int = 0
    """Seed of the embedded problem and of support centres."""

    agents: int = 64
    """Number of sensors of the embedded problem."""
    measurements: int = 4
    """Measurements each sensor of the embedded problem takes (per point of the base manifold)."""
    scenes: int = 1
    """Number of scenes of the embedded problem. Each sensor sees one of them; which sensors see the
    same one is not given.
    """
    contrast: float = 0.5
    """How far several scenes differ, in metres: standard deviation of each coordinate of a
    landmark from scene to scene.
    """
    noise_std: float = 0.2
    """Standard deviation of the measurement noise, in metres (or your data's unit)."""
    prior_std: float = 3.0
    """Standard deviation of every prior around the origin, in metres (or your data's unit)."""
    observations: Path | None = None
    """CSV of your own measurements: columns agent, [point,] o0, o1, ...; one row each, several rows
    per agent allowed.
    """
    observation_matrix: Path | None = None
    """CSV without header, o rows of k numbers: C in o = C x + noise. The identity by default."""
    initial: Path | None = None
    """NPZ of your own population: mu_q, Sigma_q, mu_p, Sigma_p, phi, with the agent axis first."""
    edges: Path | None = None
    """CSV with header receiver,sender: who listens to whom. By default everyone listens to
    everyone.
    """

    group: Literal["so3", "so"] = "so3"
    """Gauge group: so3 with --irreps, or so(n) in its fundamental representation with --dimension
    n.
    """
    irreps: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SPIN...")] = (1, 1, 1)
    """Spins l whose direct sum a belief carries under so3; k is the sum of 2 l + 1."""
    dimension: int = 3
    """n of so(n)."""
    base: Literal["point", "ring", "line", "plane", "torus"] = "point"
    """Base manifold on which agents are fields."""
    grid: Annotated[tuple[int, ...], tyro.conf.arg(metavar="POINTS...")] = ()
    """Grid points along each axis of the base manifold (lengths are 2 pi on periodic axes, else
    1).
    """
    support: Literal["everywhere", "sharp", "smooth"] = "everywhere"
    """Where on the base manifold an agent is present: everywhere, in a ball, or under a smooth
    bump.
    """
    support_radius: float = 2.0
    """Radius of the supports, in units of the base manifold's coordinates."""

    weights: Weights = field(default_factory=Weights)
    temperature: float = 10_000.0
    """Temperature tau of the attention, in nats. At a low temperature agents attend only to those
    whose beliefs diverge least from their own. In the embedded problem divergences start near 1000
    nats.
    """
    prior_temperature: float | None = None
    """Temperature of the attention between priors, in nats; that of the beliefs by default. Used
    only if --weights.prior-alignment is not 0.
    """
    alignment: Literal[*ALIGNMENTS] = "weighted"  # type: ignore[valid-type]
    """Alignment energy. weighted: KL divergences weighted by the attention, in which pairs far
    above the mean repel each other. entropic: their soft minimum, which only attracts. saturating:
    the soft minimum with a limit, so that agents further away than 20 times the temperature do not
    attract. Meta-agents have an option of their own, --meta.alignment.
    """

    dynamics: Literal["natural", "gradient", "adam", "hamiltonian"] = "natural"
    """Natural-gradient, plain gradient or Adam descent, or Hamiltonian flow."""
    mass: Literal["constant", "belief"] = "constant"
    """Mass in hamiltonian dynamics. constant: the numbers of --masses. belief: precisions that
    follow the current beliefs and the attention; that of a mean is the curvature of the free
    energy.
    """
    scheme: Literal["verlet", "yoshida4", "midpoint"] = "verlet"
    """Integrator of hamiltonian dynamics: second order (Stoermer-Verlet; with --mass belief its
    implicit generalisation), fourth (Yoshida, constant mass), or the implicit midpoint rule (mass
    of the beliefs).
    """
    step_size: float = 0.02
    """Step size: learning rate of the descents, time step of hamiltonian dynamics."""
    rates: Rates = field(default_factory=Rates)
    trust_radius: float = 0.3
    """Longest step of one belief (Fisher length) and of one frame (radians) in natural dynamics."""
    masses: Masses = field(default_factory=Masses)
    friction: float = 0.0
    """Friction of hamiltonian dynamics, per unit of time."""

    emergence: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SLOTS...")] = ()
    """Let agents that agree form meta-agents, and these meta-agents of their own: the largest
    number of meta-agents at scale 1, at scale 2, and so on. None by default. For natural dynamics.
    """
    meta: Meta = field(default_factory=Meta)

    precision: Literal["float32", "float64"] = "float32"
    """Floating-point precision of the state."""
    compute_dtype: Literal["same", "bfloat16", "float16"] = "same"
    """Precision of the operands of the pairwise products; they accumulate in --precision."""


def check_values(config: SimulateConfig) -> None:
    """Raise a UserError that names the option and its limits for the first value that is out of
    them.
    """
    check_run(config)
    requirement = f"at least 2 and at most {LARGEST_COUNT}: one agent has none to align with"
    check(2 <= config.agents <= LARGEST_COUNT, "agents", config.agents, requirement)
    check_counts(config, ["measurements"], 1)
    positive = ("noise_std", "prior_std", "support_radius", "temperature", "step_size")
    given = () if config.prior_temperature is None else ("prior_temperature",)
    check_numbers(config, [*positive, *given, "trust_radius"], positive=True)
    check_numbers(config, ["friction"], positive=False)
    for table in ("weights", "rates"):
        values = getattr(config, table)
        check_numbers(values, list(vars(values)), positive=False, prefix=f"{table}.")
    for name, value in vars(config.masses).items():
        check(value >= 1.2e-38, f"masses.{name}", value, "positive (inf freezes the group)")
    _check_inertia(config)
    needs = config.observation_matrix is None or config.observations is not None
    value = config.observation_matrix
    check(needs, "observation-matrix", value, "left out without --observations")
    for name, limit in (("irreps", 1000), ("grid", LARGEST_COUNT)):
        values = getattr(config, name)
        shown = " ".join(str(value) if abs(value) < 10**40 else "..." for value in values)
        check(all(value <= limit for value in values), name, shown, f"at most {limit} each")
    check(config.dimension <= 1000, "dimension", config.dimension, "at most 1000")
    _check_scenes(config)
    _check_emergence(config)
    _check_memory(config)


def _check_inertia(config: SimulateConfig) -> None:
    """Refuse masses and schemes that do not go with the kind of mass."""
    if config.mass == "constant":
        fits = config.scheme != "midpoint"
        check(fits, "scheme", config.scheme, "verlet or yoshida4 without --mass belief")
        return
    fits = config.dynamics == "hamiltonian"
    check(fits, "mass", config.mass, "constant without --dynamics hamiltonian")
    check(
        config.scheme != "yoshida4",
        "scheme",
        config.scheme,
        "verlet or midpoint with --mass belief",
    )
    for name, value in vars(config.masses).items():
        fits = name == "frames" or value == getattr(Masses, name)
        requirement = "left out with --mass belief, whose masses are those of the beliefs"
        check(fits, f"masses.{name}", value, requirement)
    weights = config.weights
    heavy = weights.self_coupling + weights.belief_alignment + weights.observation > 0
    requirement = "positive with --mass belief if no other weight of beliefs is: they need a mass"
    check(heavy, "weights.self-coupling", weights.self_coupling, requirement)


def _check_scenes(config: SimulateConfig) -> None:
    check_counts(config, ["scenes"], 1)
    check_numbers(config, ["contrast"], positive=False)
    if config.scenes == 1:
        return
    for option in ("observations", "initial"):
        requirement = f"left out with --{option}: scenes are those of the embedded problem"
        check(getattr(config, option) is None, "scenes", config.scenes, requirement)
    requirement = f"at most half of --agents {config.agents}: each needs two sensors"
    check(2 * config.scenes <= config.agents, "scenes", config.scenes, requirement)
    requirement = f"left out with --base {config.base}: several scenes are seen at a point"
    check(config.base == "point", "scenes", config.scenes, requirement)


def _check_emergence(config: SimulateConfig) -> None:
    meta_agents.check_values(config.meta, config.emergence)
    if not config.emergence:
        return
    shown = " ".join(map(str, config.emergence))
    requirement = f"left out with --dynamics {config.dynamics}; it needs --dynamics natural"
    check(config.dynamics == "natural", "emergence", shown, requirement)
    if config.meta.cooling_steps:
        requirement = f"at most --temperature {config.temperature}, which it cools down from"
        final = config.meta.final_temperature
        check(final <= config.temperature, "meta.final-temperature", final, requirement)
    requirement = f"left out with --compute-dtype {config.compute_dtype}; it needs same"
    check(config.compute_dtype == "same", "emergence", shown, requirement)
    requirement = f"left out with --processes {config.processes}: one device has all agents then"
    check(config.processes in (None, 1), "emergence", shown, requirement)


def _check_memory(config: SimulateConfig) -> None:
    """Refuse populations whose covariances alone are larger than the machine's memory."""
    given = config.observations is not None or config.initial is not None
    k = config.dimension if config.group == "so" else sum(2 * spin + 1 for spin in config.irreps)
    numbers = (1 if given else config.agents) * math.prod(config.grid) * k * k
    # Beliefs and priors, in float64 while they are drawn; no larger than what a float can show.
    needed = min(2 * 8 * numbers, 10**40)
    present = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > present:
        raise UserError(
            f"the covariances of this population take {needed / 2**30:.3g} GiB, and this "
            f"machine has {present / 2**30:.3g} GiB; choose smaller --agents, --irreps or --grid"
        )


def parse(arguments: Sequence[str]) -> SimulateConfig:
    """Flags over the configuration file (or, with --resume, over the run's own configuration) over
    the defaults.
    """
    config = configuration.parse_run(SimulateConfig, arguments, program="vfejax simulate")
    # Without numbers it switches meta-agents of a configuration file off, and is a slip elsewhere.
    slip = "--emergence" in arguments and not config.emergence and config.config is None
    check(not slip, "emergence", "", "one or more numbers of meta-agents, such as 8 2")
    return config
