"""What the user's files give: observations, an initial population, a neighbour list."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.agents.edges import Edges, check_edges
from vfejax.agents.observation import Observations
from vfejax.agents.population import Population
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.data import population_arrays, tables
from vfejax.errors import UserError
from vfejax.types import Array

__all__ = ["initial", "neighbours", "observations"]


def observations(
    config: SimulateConfig, path: Path, k: int, shape: tuple[int, ...], dtype: Any
) -> Observations:
    """What the agents measured, from the user's files.

    Args:
        config: the command's options.
        path: the table of ``--observations``.
        k: components of a belief.
        shape: the grid's.
        dtype: that of the state.

    Raises:
        UserError: for numbers and shapes that do not fit, naming the option.
    """
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


def neighbours(path: Path, num_agents: int) -> Edges:
    """The neighbour list of a file; UserError when it does not fit."""
    edges = Edges(*map(jnp.asarray, tables.load_edges_csv(path, num_agents)))
    try:
        check_edges(edges, num_agents)
    except ValueError as error:
        raise UserError(f"--edges {path}: {error}") from error
    return edges


def initial(
    config: SimulateConfig,
    path: Path,
    k: int,
    num_generators: int,
    shape: tuple[int, ...],
    dtype: Any,
) -> Population:
    """The population of a file.

    Args:
        config: the command's options.
        path: the arrays of ``--initial``.
        k: components of a belief.
        num_generators: components of a frame.
        shape: the grid's.
        dtype: that of the state.

    Raises:
        UserError: for arrays that do not fit the options, naming them.
    """
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
