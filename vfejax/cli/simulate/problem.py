"""What ``vfejax simulate`` computes: data, population, energy function and integrator from a
configuration.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.agents import alignment, free_energy, inertia, observation, pairwise
from vfejax.agents import population as populations
from vfejax.agents.edges import Edges
from vfejax.agents.observation import Observations
from vfejax.agents.pairwise import Method
from vfejax.agents.population import Population, PopulationCoordinates
from vfejax.agents.supports import measure
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.simulate import inputs
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.dynamics import gradient_flow, hamiltonian, implicit
from vfejax.errors import UserError
from vfejax.geometry import grid as grids
from vfejax.geometry import irreps
from vfejax.geometry.grid import Grid
from vfejax.geometry.groups import Group
from vfejax.problems import scenes, sensor_network
from vfejax.problems.inertial_flow import inertial_flow
from vfejax.problems.population_flow import population_flow
from vfejax.problems.sensor_network import Truth
from vfejax.types import Array, Integrator, PyTree

__all__ = ["Problem", "build", "energy_function", "grouped", "integrator", "quadrature"]


class Problem(NamedTuple):
    """Everything that stays fixed during a run, and the population it starts from.

    With several scenes the landmarks of the truth are ``[scenes, l, 3]``, and ``scene`` says which
    of them each agent sees, ``[n]``.
    """

    population: Population
    group: Group
    observations: Observations | None
    truth: Truth | None
    grid: Grid
    supports: Array | None
    edges: Edges | None
    scene: np.ndarray | None = None


def _group(config: SimulateConfig) -> Group:
    """The gauge group in the representation that beliefs carry."""
    if config.group == "so":
        if config.dimension < 2:
            raise UserError(f"--dimension {config.dimension}: so(n) needs n of at least 2")
        return irreps.so(config.dimension)
    if not config.irreps or min(config.irreps) < 0:
        raise UserError(
            f"--irreps {' '.join(map(str, config.irreps))}: give one or more spins of at least 0"
        )
    return irreps.so3(config.irreps)


def _base(config: SimulateConfig) -> Grid:
    axes = {"point": 0, "ring": 1, "line": 1, "plane": 2, "torus": 2}[config.base]
    if len(config.grid) != axes:
        given = " ".join(map(str, config.grid)) or "not given"
        many = ("no points", "one number of points", "two numbers of points")[axes]
        raise UserError(f"--grid {given}: --base {config.base} needs {many}")
    if any(num < 2 for num in config.grid):
        raise UserError(
            f"--grid {' '.join(map(str, config.grid))}: needs at least 2 points along each axis"
        )
    make = {"plane": grids.plane, "torus": grids.torus}
    if axes == 0:
        return grids.point()
    if axes == 1:
        return (grids.ring if config.base == "ring" else grids.line)(config.grid[0])
    return make[config.base](config.grid)


def _supports(
    config: SimulateConfig, grid: Grid, num_agents: int, rng: np.random.Generator, dtype: Any
) -> Array | None:
    if config.support == "everywhere":
        return None
    if config.base == "point":
        raise UserError(
            f"--support {config.support}: a point has no room for supports; choose a --base"
        )
    flat = grid.points.reshape(-1, grid.points.shape[-1])
    centres = flat[rng.integers(flat.shape[0], size=num_agents)]
    shape = {"sharp": grids.sharp_support, "smooth": grids.smooth_support}[config.support]
    return shape(grids.distance(grid, centres), config.support_radius).astype(dtype)


def _fresh_population(
    config: SimulateConfig, observations: Observations, k: int, num_generators: int, dtype: Any
) -> Population:
    """Broad priors, beliefs as good as each agent can make them alone, and nothing known about
    orientations.
    """
    shape = (observations.values.shape[0], *observations.values.shape[2:-1])
    prior = Gaussian(
        jax.device_put(np.zeros((*shape, k), dtype)),
        jax.device_put(np.broadcast_to(config.prior_std * np.eye(k, dtype=dtype), (*shape, k, k))),
    )
    belief = compiled_once(observation.posterior)(prior, observations)
    return Population(belief, prior, jax.device_put(np.zeros((*shape, num_generators), dtype)))


def _embedded(
    config: SimulateConfig, grid: Grid, rng: np.random.Generator, dtype: Any
) -> tuple[Observations, Truth, np.ndarray | None]:
    """The sensor network with a known answer, and the scene that each sensor sees."""
    if config.group != "so3" or set(config.irreps) != {1}:
        raise UserError(
            f"--group {config.group} --irreps {' '.join(map(str, config.irreps))}: the "
            "embedded problem needs copies of spin 1; "
            "give --observations or --initial for other representations"
        )
    sizes: dict[str, Any] = {
        "num_landmarks": len(config.irreps),
        "num_observations": config.measurements,
        "noise_std": config.noise_std,
        "dtype": dtype,
    }
    if config.scenes == 1:
        points = np.asarray(grid.points)
        return *sensor_network.simulate(rng, config.agents, points=points, **sizes), None
    observations, truth = scenes.simulate(
        rng, config.agents, config.scenes, contrast=config.contrast, **sizes
    )
    return observations, Truth(truth.landmarks, truth.rotations), truth.labels


def _data(
    config: SimulateConfig, group: Group, grid: Grid, rng: np.random.Generator, dtype: Any
) -> tuple[Population, Observations | None, Truth | None, np.ndarray | None]:
    """Population, observations, truth and scenes: of the user's files, or of the embedded
    problem.
    """
    num_generators, k, _ = group.generators.shape
    shape = grid.quadrature.shape
    population = observations = truth = scene = None
    if config.initial is not None:
        population = inputs.initial(config, config.initial, k, num_generators, shape, dtype)
    if config.observations is not None:
        observations = inputs.observations(config, config.observations, k, shape, dtype)
    elif population is None:
        observations, truth, scene = _embedded(config, grid, rng, dtype)
    if population is None:
        given = cast(Observations, observations)  # of the files, or of the embedded problem
        population = _fresh_population(config, given, k, num_generators, dtype)
    return population, observations, truth, scene


def _check_agents(
    config: SimulateConfig, num_agents: int, observations: Observations | None
) -> None:
    if num_agents < 2:
        option = "observations" if config.initial is None else "initial"
        raise UserError(
            f"--{option} {getattr(config, option)}: holds {num_agents} agent, which has none to "
            "align with; give at least 2"
        )
    if observations is not None and observations.values.shape[0] != num_agents:
        raise UserError(
            f"--observations {config.observations} has {observations.values.shape[0]} agents, "
            f"--initial {config.initial} has {num_agents}"
        )


def build(config: SimulateConfig) -> Problem:
    """Data and initial population.

    Raises:
        UserError: for files, shapes and options that do not fit each other, naming them.
    """
    dtype = jnp.dtype(config.precision)
    group, grid = _group(config), _base(config)
    rng = np.random.default_rng(config.seed)
    population, observations, truth, scene = _data(config, group, grid, rng, dtype)
    num_agents = population.phi.shape[0]
    _check_agents(config, num_agents, observations)
    edges = None if config.edges is None else inputs.neighbours(config.edges, num_agents)
    supports = _supports(config, grid, num_agents, rng, dtype)
    grid = jax.tree.map(lambda x: x.astype(dtype), grid)
    return Problem(population, group, observations, truth, grid, supports, edges, scene)


def quadrature(config: SimulateConfig, problem: Problem) -> Array | None:
    """Weight of each point of the base manifold; None at a point."""
    return None if config.base == "point" else problem.grid.quadrature


def energy_function(
    config: SimulateConfig, problem: Problem, method: Method = pairwise.alignment_energy
) -> Callable[[PopulationCoordinates], tuple[Array, Any]]:
    """The population's free energy as a function of its coordinates, with its terms besides.

    Args:
        config: what the user asked for.
        problem: what stays fixed.
        method: how the energy of all pairs is computed.
    """
    # Apart from the options, so that runs which differ in others share a compiled program.
    terms_fn = functools.partial(
        free_energy.free_energy_terms,
        generators=problem.group,
        weights=free_energy.Weights(**vars(config.weights)),
        temperature=config.temperature,
        prior_temperature=config.prior_temperature,
        alignment_fn=alignment.ALIGNMENTS[config.alignment],
        observations=problem.observations,
        supports=problem.supports,
        quadrature=quadrature(config, problem),
        edges=problem.edges,
        compute_dtype=None if config.compute_dtype == "same" else jnp.dtype(config.compute_dtype),
        method=method,
    )

    def energy_fn(coordinates: PopulationCoordinates) -> tuple[Array, Any]:
        terms = terms_fn(populations.constrain(coordinates))
        return terms.total, terms

    return energy_fn


def grouped(groups: Any, scale: float = 1.0) -> PopulationCoordinates:
    """One number per group, rates or masses, as a tree prefix of the coordinates."""
    return PopulationCoordinates(
        GaussianCoordinates(scale * groups.belief_mean, scale * groups.belief_cov),
        GaussianCoordinates(scale * groups.prior_mean, scale * groups.prior_cov),
        scale * groups.frames,
    )


def _inertial(
    config: SimulateConfig, energy_fn: Callable[[PyTree], Any], problem: Problem
) -> Integrator:
    """Hamiltonian flow with the masses of the beliefs."""
    kinetic_fn = inertia.kinetic_energy(
        problem.group,
        moment_of_inertia=config.masses.frames,
        weights=free_energy.Weights(**vars(config.weights)),
        temperature=config.temperature,
        observations=problem.observations,
        supports=problem.supports,
        quadrature=quadrature(config, problem),
        edges=problem.edges,
    )
    scheme = {"verlet": implicit.generalized_leapfrog, "midpoint": implicit.implicit_midpoint}[
        config.scheme
    ]
    return inertial_flow(
        energy_fn,
        kinetic_fn,
        problem.group,
        config.step_size,
        config.friction,
        scheme=scheme,
        has_aux=True,
    )


def integrator(
    config: SimulateConfig, energy_fn: Callable[[PyTree], Any], problem: Problem
) -> Integrator:
    """The dynamics that the configuration names.

    Args:
        config: what the user asked for.
        energy_fn: coordinates to ``(energy, terms)``, from :func:`energy_function`.
        problem: gives the group and where agents are.
    """
    if config.mass == "belief":
        return _inertial(config, energy_fn, problem)
    if config.dynamics == "hamiltonian":
        scheme = {"verlet": hamiltonian.velocity_verlet, "yoshida4": hamiltonian.yoshida4}[
            config.scheme
        ]
        return scheme(
            energy_fn, config.step_size, grouped(config.masses), config.friction, has_aux=True
        )
    if config.dynamics == "natural":
        return population_flow(
            energy_fn,
            problem.group,
            config.step_size,
            config.trust_radius,
            grouped(config.rates),
            measure=measure(problem.population, problem.supports, quadrature(config, problem)),
            has_aux=True,
        )
    optimizer = gradient_flow.scale_by_tree(grouped(config.rates, config.step_size))
    if config.dynamics == "adam":
        optimizer = optax.chain(optax.scale_by_adam(), optimizer)

    retract = functools.partial(populations.retract, generators=problem.group)
    return gradient_flow.gradient_flow(energy_fn, optimizer, has_aux=True, retract=retract)
