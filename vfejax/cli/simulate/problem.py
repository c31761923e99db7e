"""What ``vfejax simulate`` computes: data, population, energy function and integrator from a
configuration.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.agents import alignment, free_energy, observation
from vfejax.agents import population as populations
from vfejax.agents.edges import Edges, check_edges
from vfejax.agents.observation import Observations
from vfejax.agents.population import Population, PopulationCoordinates
from vfejax.agents.supports import measure
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.data import population_arrays, tables
from vfejax.dynamics import gradient_flow, hamiltonian
from vfejax.errors import UserError
from vfejax.geometry import grid as grids
from vfejax.geometry import irreps
from vfejax.geometry.grid import Grid
from vfejax.geometry.groups import Group
from vfejax.problems import sensor_network
from vfejax.problems.population_flow import population_flow
from vfejax.problems.sensor_network import Truth
from vfejax.types import Array, Integrator, PyTree

__all__ = ["Problem", "build", "energy_function", "integrator"]


class Problem(NamedTuple):
    """Everything that stays fixed during a run, and the population it starts from."""

    population: Population
    group: Group
    observations: Observations | None
    truth: Truth | None
    grid: Grid
    supports: Array | None
    edges: Edges | None


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


def _measured(
    config: SimulateConfig, path: Path, k: int, shape: tuple[int, ...], dtype: Any
) -> Observations:
    """Observations from the user's files."""
    table = population_arrays.load_observations_csv(path)
    values, present = _on_grid(config, table, shape)
    dim = values.shape[-1]
    if config.observation_matrix is None:
        if dim != k:
            raise UserError(
                f"--observations {config.observations}: rows have {dim} numbers, but beliefs "
                f"have k = {k} components; "
                "give --observation-matrix, or other --irreps"
            )
        matrix = np.eye(k)
    else:
        matrix = tables.load_matrix_csv(config.observation_matrix, (dim, k))
    return Observations(
        _fitting(values, dtype, f"--observations {config.observations}"),
        jnp.asarray(present, dtype),
        _fitting(matrix, dtype, f"--observation-matrix {config.observation_matrix}"),
        config.noise_std * jnp.eye(dim, dtype=dtype),
    )


def _fitting(values: np.ndarray, dtype: Any, source: str) -> Array:
    """Numbers of a file in the precision of the state; UserError for one that it cannot hold."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest > float(jnp.finfo(dtype).max):
        raise UserError(
            f"{source}: {largest:g} is too large for --precision {dtype}; scale the data, or give "
            "--precision float64"
        )
    return jnp.asarray(values, dtype)


def _on_grid(
    config: SimulateConfig, table: dict[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the table at their points: values ``[n, m, *grid, o]`` and presence ``[n, m,
    *grid]``.
    """
    values, present = table["values"], table["present"].astype(bool)
    num_points = int(np.prod(shape))
    points = table.get("point")
    if points is None:
        if shape:
            raise UserError(
                f"--observations {config.observations}: --base {config.base} needs a column 'point'"
            )
        return values, present.astype(float)
    if points[present].max() >= num_points:
        raise UserError(
            f"--observations {config.observations}: point {points[present].max()} is outside "
            f"the grid of {num_points} points"
        )
    if not shape:
        return values, present.astype(float)
    num_agents, num_rows, dim = values.shape
    placed = np.zeros((num_agents, num_rows, num_points, dim))
    there = np.zeros((num_agents, num_rows, num_points))
    agent, row = np.nonzero(present)
    placed[agent, row, points[agent, row]] = values[agent, row]
    there[agent, row, points[agent, row]] = 1.0
    return placed.reshape(num_agents, num_rows, *shape, dim), there.reshape(
        num_agents, num_rows, *shape
    )


def _fresh_population(
    config: SimulateConfig, observations: Observations, k: int, num_generators: int, dtype: Any
) -> Population:
    """Broad priors, beliefs as good as each agent can make them alone, and nothing known about
    orientations.
    """
    shape = (observations.values.shape[0], *observations.values.shape[2:-1])
    prior = Gaussian(
        jnp.zeros((*shape, k), dtype),
        jnp.broadcast_to(config.prior_std * jnp.eye(k, dtype=dtype), (*shape, k, k)),
    )
    belief = jax.jit(observation.posterior)(prior, observations)
    return Population(belief, prior, jnp.zeros((*shape, num_generators), dtype))


def build(config: SimulateConfig) -> Problem:
    """Data and initial population.

    Raises:
        UserError: for files, shapes and options that do not fit each other, naming them.
    """
    dtype = jnp.dtype(config.precision)
    group = _group(config)
    num_generators, k, _ = group.generators.shape
    grid = _base(config)
    shape = grid.quadrature.shape
    rng = np.random.default_rng(config.seed)
    population = observations = truth = None
    if config.initial is not None:
        population = _initial(config, config.initial, k, num_generators, shape, dtype)
    if config.observations is not None:
        observations = _measured(config, config.observations, k, shape, dtype)
    elif population is None:
        if config.group != "so3" or set(config.irreps) != {1}:
            raise UserError(
                f"--group {config.group} --irreps {' '.join(map(str, config.irreps))}: the "
                "embedded problem needs copies of spin 1; "
                "give --observations or --initial for other representations"
            )
        observations, truth = sensor_network.simulate(
            rng,
            config.agents,
            num_landmarks=len(config.irreps),
            num_observations=config.measurements,
            noise_std=config.noise_std,
            points=np.asarray(grid.points),
            dtype=dtype,
        )
    if population is None:
        given = cast(Observations, observations)  # of the files, or of the embedded problem
        population = _fresh_population(config, given, k, num_generators, dtype)
    num_agents = population.phi.shape[0]
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
    edges = None if config.edges is None else _edges(config.edges, num_agents)
    supports = _supports(config, grid, num_agents, rng, dtype)
    grid = jax.tree.map(lambda x: x.astype(dtype), grid)
    return Problem(
        population,
        group,
        observations,
        truth,
        grid,
        supports,
        edges,
    )


def _edges(path: Path, num_agents: int) -> Edges:
    """The neighbour list of a file."""
    edges = Edges(*map(jnp.asarray, tables.load_edges_csv(path, num_agents)))
    try:
        check_edges(edges, num_agents)
    except ValueError as error:
        raise UserError(f"--edges {path}: {error}") from error
    return edges


def _initial(
    config: SimulateConfig,
    path: Path,
    k: int,
    num_generators: int,
    shape: tuple[int, ...],
    dtype: Any,
) -> Population:
    arrays = population_arrays.load_npz(path)
    try:
        population = population_arrays.from_arrays(arrays, dtype=dtype)
    except UserError as error:
        raise UserError(f"--initial {path}: {error}") from None
    given = population.belief.mean.shape
    source = (
        f"--irreps {' '.join(map(str, config.irreps))}"
        if config.group == "so3"
        else f"--dimension {config.dimension}"
    )
    if given[-1] != k:
        raise UserError(
            f"--initial {config.initial}: beliefs have k = {given[-1]} components, but "
            f"{source} gives {k}"
        )
    if given[1:-1] != shape:
        raise UserError(
            f"--initial {config.initial}: fields live on a grid {given[1:-1]}, but --base "
            f"{config.base} --grid gives {shape}"
        )
    if population.phi.shape[-1] != num_generators:
        raise UserError(
            f"--initial {config.initial}: phi has {population.phi.shape[-1]} components, but "
            f"{source} has {num_generators} generators"
        )
    return population


def _quadrature(config: SimulateConfig, problem: Problem) -> Array | None:
    return None if config.base == "point" else problem.grid.quadrature


def energy_function(
    config: SimulateConfig, problem: Problem
) -> Callable[[PopulationCoordinates], tuple[Array, Any]]:
    """The population's free energy as a function of its coordinates, with its terms besides."""
    compute_dtype = None if config.compute_dtype == "same" else jnp.dtype(config.compute_dtype)

    def energy_fn(coordinates: PopulationCoordinates) -> tuple[Array, Any]:
        terms = free_energy.free_energy_terms(
            populations.constrain(coordinates),
            problem.group,
            weights=free_energy.Weights(**vars(config.weights)),
            temperature=config.temperature,
            alignment_fn=alignment.ALIGNMENTS[config.alignment],
            observations=problem.observations,
            supports=problem.supports,
            quadrature=_quadrature(config, problem),
            edges=problem.edges,
            compute_dtype=compute_dtype,
        )
        return terms.total, terms

    return energy_fn


def _grouped(groups: Any, scale: float = 1.0) -> PopulationCoordinates:
    """One number per group as a tree prefix of the coordinates."""
    return PopulationCoordinates(
        GaussianCoordinates(scale * groups.belief_mean, scale * groups.belief_cov),
        GaussianCoordinates(scale * groups.prior_mean, scale * groups.prior_cov),
        scale * groups.frames,
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
    if config.dynamics == "hamiltonian":
        scheme = {"verlet": hamiltonian.velocity_verlet, "yoshida4": hamiltonian.yoshida4}[
            config.scheme
        ]
        return scheme(
            energy_fn, config.step_size, _grouped(config.masses), config.friction, has_aux=True
        )
    if config.dynamics == "natural":
        return population_flow(
            energy_fn,
            problem.group,
            config.step_size,
            config.trust_radius,
            _grouped(config.rates),
            measure=measure(problem.population, problem.supports, _quadrature(config, problem)),
            has_aux=True,
        )
    optimizer = gradient_flow.scale_by_tree(_grouped(config.rates, config.step_size))
    if config.dynamics == "adam":
        optimizer = optax.chain(optax.scale_by_adam(), optimizer)

    retract = functools.partial(populations.retract, generators=problem.group)
    return gradient_flow.gradient_flow(energy_fn, optimizer, has_aux=True, retract=retract)
