"""Group elements on the edges of a neighbour list: transports with curvature between agents.

Along edge e from sender j to receiver i the transport is ``Omega_e = U_i V_e U_j^{-1}`` with ``V_e
= exp(links_e . J)``. At ``links = 0`` it is the quotient of frames. Two changes of gauge leave
every divergence as it is: that of the agents, ``(q_i, U_i) -> (G_i q_i, G_i U_i)``, and that of the
common frame, ``U_i -> U_i H_i^{-1}`` with ``V_e -> H_i V_e H_j^{-1}``. So links without curvature
say no more than frames.

The curvature is the product of links around a loop of edges. :func:`loop_energy` weighs it; add it
to the free energy with a weight of your own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.agents.edges import Edges, check_edges, known_integers
from vfejax.agents.population import check_array
from vfejax.geometry.connection import wilson
from vfejax.geometry.groups import Generators
from vfejax.geometry.transport import frames, holonomy
from vfejax.types import Array

__all__ = ["Loops", "check_links", "loop_energy", "loop_holonomy", "short_loops"]


class Loops(NamedTuple):
    """Closed walks along edges: the edge of each step, ``edges [p, l]``, and its direction, ``signs
    [p, l]``.

    Direction 1 goes from the receiver of the edge to its sender, -1 the other way, and 0 is no step
    at all.
    """

    edges: Array | np.ndarray
    signs: Array | np.ndarray


def check_links(links: Array | None, edges: Edges | None, phi: Array) -> None:
    """Refuse links that do not stand on the edges of a population.

    Args:
        links: link coordinates ``[e, *grid, a]``, or None.
        edges: the neighbour list, or None.
        phi: frame coordinates of the population ``[n, *grid, a]``.

    Raises:
        ValueError: for links without edges; when shape or dtype of the links does not fit.

    >>> check_links(jnp.zeros((2, 3)), None, jnp.zeros((4, 3)))
    Traceback (most recent call last):
        ...
    ValueError: links need edges: give the neighbour list whose edge e has the link links[e]
    """
    if links is None:
        return
    if edges is None:
        raise ValueError(
            "links need edges: give the neighbour list whose edge e has the link links[e]"
        )
    check_array("links", links, (*jnp.shape(edges.receivers), *phi.shape[1:]), phi.dtype)


def short_loops(edges: Edges, num_agents: int) -> Loops:
    """Loops of two and three edges: agents that listen to each other, and triangles.

    A triangle of agents counts once, and takes for each of its sides the edge that is listed,
    either way. Where both ways are listed it takes the edge whose receiver has the lower number,
    and the loop of two ties the other edge to it.

    Args:
        edges: the neighbour list; its numbers must be known, not traced.
        num_agents: number of agents n.

    Returns:
        Loops of three steps; those of two edges have a last step with sign 0. NumPy integers. Time
        and memory O(n^3): for longer loops or larger populations write your own.

    Raises:
        ValueError: as :func:`vfejax.agents.edges.check_edges` does.

    >>> loops = short_loops(Edges(np.array([0, 1, 2, 1]), np.array([1, 2, 0, 0])), 3)
    >>> loops.edges.tolist(), loops.signs.tolist()
    ([[0, 3, 0], [0, 1, 2]], [[1, 1, 0], [1, 1, 1]])
    """
    check_edges(edges, num_agents)
    receivers, senders = (np.asarray(ends) for ends in edges)
    listed = np.full((num_agents, num_agents), -1)
    others = receivers != senders
    listed[receivers[others], senders[others]] = np.flatnonzero(others)
    forward = listed >= 0
    joined = forward | forward.T

    i, j = np.nonzero(np.triu(forward & forward.T, 1))
    pair_edges = np.stack([listed[i, j], listed[j, i], np.zeros_like(i)], axis=-1)
    pair_signs = np.broadcast_to([1, 1, 0], pair_edges.shape)

    upper = np.triu(joined, 1)
    i, j, k = np.nonzero(upper[:, :, None] & upper[None] & upper[:, None, :])
    sides = []
    for a, b in ((i, j), (j, k), (k, i)):
        along = forward[a, b] & ((a < b) | ~forward[b, a])
        sides.append((np.where(along, listed[a, b], listed[b, a]), np.where(along, 1, -1)))
    triangle_edges, triangle_signs = (np.stack(x, axis=-1) for x in zip(*sides, strict=True))
    return Loops(
        np.concatenate([pair_edges, triangle_edges]), np.concatenate([pair_signs, triangle_signs])
    )


def _check_loops(loops: Loops, num_edges: int) -> None:
    shapes = [jnp.shape(x) for x in loops]
    if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[0][1] == 0:
        raise ValueError(
            "loops must have edges and signs of one shape [p, l], got "
            f"{shapes[0]} and {shapes[1]}; each has at least one step"
        )
    known = known_integers("loops", loops._asdict())
    if known is None:
        return
    edges, signs = known["edges"], known["signs"]
    strange = (signs != 0) & ((edges < 0) | (edges >= num_edges))
    _refuse("signs", signs, np.abs(signs) > 1, "-1, 0 or 1")
    _refuse("edges", edges, strange, f"in [0, {num_edges})")


def _refuse(name: str, numbers: np.ndarray, wrong: np.ndarray, allowed: str) -> None:
    for loop, step in np.argwhere(wrong)[:1]:
        raise ValueError(
            f"loops.{name} must be {allowed}, got {numbers[loop, step]} in step {step} of loop "
            f"{loop}"
        )


def loop_holonomy(links: Array, loops: Loops, generators: Generators) -> Array:
    """Product of the links around each loop, in the common frame of the loop's first agent.

    Args:
        links: link coordinates ``[e, *grid, a]``.
        loops: closed walks ``[p, l]`` along the edges.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.

    Returns:
        ``[p, *grid, k, k]``; the identity where links are a pure gauge, NaN where a loop goes along
        an edge that does not exist.

    Raises:
        ValueError: when edges and signs of the loops are not integers of one shape ``[p, l]``, with
            at least one step; when they are known and an edge does not exist, or a sign is not one
            of -1, 0 and 1.

    >>> from vfejax.geometry import irreps
    >>> links = jnp.array([[0.1], [0.2], [0.3]])
    >>> around = Loops(np.array([[0, 1, 2]]), np.array([[1, 1, -1]]))
    >>> holonomy = loop_holonomy(links, around, irreps.so(2))  # 0.1 + 0.2 - 0.3
    >>> bool(jnp.allclose(holonomy[0], jnp.eye(2), atol=1e-6))
    True
    """
    _check_loops(loops, links.shape[0])
    edges, signs = jnp.asarray(loops.edges), jnp.asarray(loops.signs, links.dtype)
    edges, signs = (jnp.reshape(x, x.shape + (1,) * (links.ndim - 1)) for x in (edges, signs))
    exists = (edges >= 0) & (edges < links.shape[0])
    # What is no step is not read: 0 times a broken link is no identity.
    along = jnp.where(exists, links[jnp.asarray(loops.edges)] * signs, jnp.nan)
    steps = jnp.where(signs == 0, 0.0, along)
    operators = frames(steps, generators)
    return holonomy([operators[:, step] for step in range(operators.shape[1])])


def loop_energy(
    links: Array,
    loops: Loops,
    generators: Generators,
    *,
    density_fn: Callable[[Array], Array] = wilson,
) -> Array:
    """Energy of the curvature of links between agents: the sum over loops (and points of a grid).

    Args:
        links: link coordinates ``[e, *grid, a]``.
        loops: closed walks, such as :func:`short_loops`.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        density_fn: energy of one loop, :func:`vfejax.geometry.connection.wilson` (default) or
            :func:`vfejax.geometry.connection.frobenius_defect`.

    Returns:
        A scalar, dimensionless; 0 for a pure gauge.

    Raises:
        ValueError: as :func:`loop_holonomy` does.

    >>> from vfejax.geometry import irreps
    >>> around = Loops(np.array([[0, 1, 2]]), np.array([[1, 1, 1]]))
    >>> round(float(loop_energy(jnp.full((3, 1), jnp.pi / 6), around, irreps.so(2))), 4)
    1.0
    """
    return jnp.sum(density_fn(loop_holonomy(links, loops, generators)))
