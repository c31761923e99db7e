"""Hierarchies of agents as plain NumPy arrays, for ``.npz`` files.

To the arrays of a population (:mod:`vfejax.data.population_arrays`), with N rows, come ``parent``
(int32 ``[N]``, the row of the meta-agent one scale up, a row's own number for none), ``active``
(bool ``[N]``), ``scale`` (int32 ``[N]``) and, for fields that do not live everywhere, ``supports
[N, *grid]``.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.agents.hierarchy import Hierarchy, Scales
from vfejax.data import population_arrays
from vfejax.errors import UserError

__all__ = ["from_arrays", "to_arrays"]

_KEYS = ("parent", "active", "scale")


def to_arrays(hierarchy: Hierarchy, scales: Scales) -> dict[str, np.ndarray]:
    """The arrays of a hierarchy, in its dtype."""
    arrays = population_arrays.to_arrays(hierarchy.population)
    arrays |= {
        "parent": np.asarray(hierarchy.parent, np.int32),
        "active": np.asarray(hierarchy.active, bool),
        "scale": np.asarray(scales.of_rows, np.int32),
    }
    if hierarchy.supports is not None:
        arrays["supports"] = np.asarray(hierarchy.supports)
    return arrays


def from_arrays(
    arrays: Mapping[str, Any], *, dtype: Any = None, source: str = "hierarchy"
) -> tuple[Hierarchy, Scales]:
    """The hierarchy with these arrays, and how its rows are divided.

    Args:
        arrays: those of :func:`to_arrays`.
        dtype: float32 or float64 of the result; JAX's default float if None.
        source: what messages call the data, a file name for instance.

    Returns:
        A hierarchy of JAX arrays, and its scales.

    Raises:
        UserError: for a missing or unknown array, for those of the population as
            :func:`vfejax.data.population_arrays.from_arrays`, and for rows that make no hierarchy.

    >>> from vfejax.agents.hierarchy import initial_hierarchy
    >>> from vfejax.agents.population import Population
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> unit = Gaussian(jnp.zeros((4, 3)), jnp.tile(jnp.eye(3), (4, 1, 1)))
    >>> arrays = to_arrays(*initial_hierarchy(Population(unit, unit, jnp.zeros((4, 3))), (2,)))
    >>> hierarchy, scales = from_arrays(arrays)
    >>> scales, hierarchy.active.tolist()
    (Scales(num_agents=4, capacities=(2,)), [True, True, True, True, False, False])
    """
    for name in _KEYS:
        if name not in arrays:
            raise UserError(
                f"{source}: array {name} is missing, so this is no hierarchy of agents; give "
                "final.npz of a run with --emergence"
            )
    own = {name: np.asarray(arrays[name]) for name in _KEYS}
    others = {name: x for name, x in arrays.items() if name not in (*_KEYS, "supports")}
    population = population_arrays.from_arrays(others, dtype=dtype, source=source)
    scales = _scales(own, population.phi.shape[0], source)
    supports = arrays.get("supports")
    if supports is not None:
        if np.shape(supports) != population.phi.shape[:-1]:
            raise UserError(
                f"{source}: supports must have shape {population.phi.shape[:-1]} to fit phi, got "
                f"{np.shape(supports)}"
            )
        given = np.asarray(supports)
        if given.dtype.kind not in "fiu" or not np.all((given >= 0) & (given <= 1)):
            raise UserError(f"{source}: supports must hold numbers from 0 to 1; correct the data")
        supports = jnp.asarray(given, population.phi.dtype)
    parent, active = jnp.asarray(own["parent"], jnp.int32), jnp.asarray(own["active"])
    return Hierarchy(population, parent, active, supports), scales


def _scales(own: Mapping[str, np.ndarray], num_rows: int, source: str) -> Scales:
    """How the rows are divided, once parents are known to be one scale up."""
    parent, active, scale = (own[name] for name in _KEYS)
    for name, array, kind in (("parent", parent, "iu"), ("active", active, "b")):
        if array.shape != (num_rows,) or array.dtype.kind not in kind:
            raise UserError(
                f"{source}: {name} must have shape ({num_rows},), one for each row of mu_q, got "
                f"{array.dtype} {array.shape}"
            )
    known = scale.shape == (num_rows,) and scale.dtype.kind in "iu"
    if not known or scale[0] != 0 or not np.all(np.isin(np.diff(scale), (0, 1))):
        raise UserError(f"{source}: scale must rise from 0 by steps of 1, one for each row of mu_q")
    rows = np.arange(num_rows)
    if np.any((parent < 0) | (parent >= num_rows)):
        raise UserError(f"{source}: parent must hold rows from 0 to {num_rows - 1}")
    wrong = (parent != rows) & ~((scale[parent] == scale + 1) & active & active[parent])
    if np.any(wrong):
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{source}: parent of row {row} is {parent[row]}, which is no active row one scale up"
        )
    num_agents, *capacities = np.bincount(scale).tolist()
    return Scales(num_agents, tuple(capacities))
