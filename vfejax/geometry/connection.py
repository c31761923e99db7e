"""Connections with curvature: a group element on every link of a grid.

The link ``V_mu(c)`` carries a vector from the neighbour ``c + mu`` to the point c. For a smooth
connection with the covariant derivative ``D_mu = d_mu + A_mu``, and spacing h, it is ``1 + h A_mu``
to first order. A local gauge change ``G(c)`` acts as

    V_mu(c) -> G(c) V_mu(c) G(c + mu)^{-1}.

Frames alone give the links ``U(c) U(c + mu)^{-1}``, whose product around every contractible loop is
the identity: a pure gauge. With links of their own it is not. Around the smallest loop, the
plaquette, it is

    P_{mu nu}(c) = V_mu(c) V_nu(c + mu) V_mu(c + nu)^{-1} V_nu(c)^{-1} = 1 + h^2 F_{mu nu} + O(h^3),
    F_{mu nu} = d_mu A_nu - d_nu A_mu + [A_mu, A_nu].

Source: Wilson, Physical Review D 10 (1974) 2445, with real representations of any group.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.geometry.grid import Grid
from vfejax.geometry.groups import Generators, as_group, structure_constants
from vfejax.geometry.transport import frames
from vfejax.numerics import as_floating, identity_like, matmul
from vfejax.types import Array

__all__ = [
    "Links",
    "check_links",
    "curvature",
    "existing_links",
    "exponential_links",
    "frobenius_defect",
    "gauge_transform",
    "path_transport",
    "plaquette_energy",
    "plaquettes",
    "pure_gauge",
    "wilson",
]


class Links(NamedTuple):
    """Group elements on the links of a grid with d axes, and their inverses.

    ``forward[mu, c]`` carries from ``c + mu`` to c and ``backward`` is its inverse, both ``[d,
    *grid, k, k]``. On an open axis the links of the last points lead nowhere and are never read.
    """

    forward: Array
    backward: Array


def check_links(links: Links, grid: Grid) -> None:
    """Refuse links that do not stand on a grid.

    Args:
        links: group elements and their inverses.
        grid: the base manifold, with shape ``[*grid]`` and d axes.

    Raises:
        ValueError: when a shape is not ``[d, *grid, k, k]``.

    >>> from vfejax.geometry.grid import ring
    >>> check_links(Links(jnp.ones((4, 3, 3)), jnp.ones((4, 3, 3))), ring(4))
    Traceback (most recent call last):
        ...
    ValueError: links.forward must be [1, 4, k, k] on this grid, got shape (4, 3, 3)
    """
    lead = (grid.points.shape[-1], *grid.quadrature.shape)
    for name, array in links._asdict().items():
        shape = jnp.shape(array)
        if shape[:-2] != lead or len(shape) != len(lead) + 2 or shape[-1] != shape[-2]:
            wanted = ", ".join(map(str, (*lead, "k", "k")))
            raise ValueError(f"links.{name} must be [{wanted}] on this grid, got shape {shape}")


def exponential_links(phi: Array, generators: Generators) -> Links:
    """Links ``exp(phi . J)`` with coordinates of their own.

    Args:
        phi: link coordinates ``[d, *grid, a]``; ``h A_mu`` at the middle of the link for a smooth
            connection.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.

    Returns:
        Links ``[d, *grid, k, k]``.

    >>> from vfejax.geometry import irreps
    >>> exponential_links(jnp.zeros((1, 4, 3)), irreps.so3((1,))).forward.shape
    (1, 4, 3, 3)
    """
    return Links(*frames(jnp.stack([phi, -phi]), generators))


def existing_links(links: Links, grid: Grid) -> Links:
    """The links, with identities in place of those that cross the end of an open axis: what stands
    there has no effect, also not on gradients.

    Args:
        links: ``[d, *grid, k, k]``.
        grid: the base manifold.

    Returns:
        Links of the same shape.

    Raises:
        ValueError: as :func:`check_links` does.

    >>> from vfejax.geometry.grid import line
    >>> broken = jnp.ones((1, 3, 1, 1)).at[0, 2].set(jnp.nan)
    >>> existing_links(Links(broken, broken), line(3)).forward.ravel()
    Array([1., 1., 1.], dtype=float32)
    """
    check_links(links, grid)
    axes = range(grid.points.shape[-1])
    exists = jnp.stack([_stays_inside(grid, axis, 1) for axis in axes])[..., None, None]
    return Links(*(jnp.where(exists, x, identity_like(x)) for x in links))


def _ahead(field: Array, axis: int) -> Array:
    """The field at the next point along an axis; behind the end of an open axis, at the first."""
    return jnp.roll(field, -1, axis)


def pure_gauge(phi: Array, generators: Generators, grid: Grid) -> Links:
    """Links ``U(c) U(c + mu)^{-1}`` of frames alone: no curvature.

    Args:
        phi: frame coordinates ``[*grid, a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        grid: the base manifold.

    Returns:
        Links ``[d, *grid, k, k]``.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import ring
    >>> phi = jnp.array([[0.0, 0.0, 0.5], [0.0, 0.0, 0.2], [0.0, 0.0, 0.2]])
    >>> turn = pure_gauge(phi, irreps.so3((1,)), ring(3)).forward[0, 0]
    >>> round(float(turn[1, 0]), 4)  # sin(0.5 - 0.2)
    0.2955
    """
    outward, inward = frames(jnp.stack([phi, -phi]), generators)
    axes = range(grid.points.shape[-1])
    return Links(
        jnp.stack([matmul(outward, _ahead(inward, axis)) for axis in axes]),
        jnp.stack([matmul(_ahead(outward, axis), inward) for axis in axes]),
    )


def gauge_transform(links: Links, phi: Array, generators: Generators, grid: Grid) -> Links:
    """Links after a local change of gauge, ``G(c) V_mu(c) G(c + mu)^{-1}`` with ``G = exp(phi .
    J)``.

    Args:
        links: ``[d, *grid, k, k]``.
        phi: coordinates of the change at every point, ``[*grid, a]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        grid: the base manifold.

    Returns:
        Links of the same shape.

    Raises:
        ValueError: when the links do not stand on the grid.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import ring
    >>> group, phi = irreps.so3((1,)), jnp.ones((3, 3))
    >>> flat = exponential_links(jnp.zeros((1, 3, 3)), group)
    >>> expected = pure_gauge(phi, group, ring(3))
    >>> turned = gauge_transform(flat, phi, group, ring(3))
    >>> bool(jnp.allclose(turned.forward, expected.forward, atol=1e-6))
    True
    """
    check_links(links, grid)
    outward, inward = frames(jnp.stack([phi, -phi]), generators)
    forward, backward = [], []
    for axis in range(grid.points.shape[-1]):
        next_outward, next_inward = _ahead(outward, axis), _ahead(inward, axis)
        forward.append(matmul(matmul(outward, links.forward[axis]), next_inward))
        backward.append(matmul(matmul(next_outward, links.backward[axis]), inward))
    return Links(jnp.stack(forward), jnp.stack(backward))


def path_transport(links: Links, moves: Sequence[tuple[int, int]], grid: Grid) -> Array:
    """Transport along one lattice path from every point: the product of its links, in order.

    The result carries a vector from the end of the path to its beginning c. For a closed path it is
    the holonomy at c. It changes by conjugation under a change of gauge, so its trace does not
    change.

    Args:
        links: ``[d, *grid, k, k]``.
        moves: the path as ``(axis, number of links)``, negative numbers backwards:
            ``[(0, 2), (1, 1), (0, -2), (1, -1)]`` goes around a rectangle.
        grid: the base manifold.

    Returns:
        ``[*grid, k, k]``; NaN where the path leaves the grid across the end of an open axis.

    Raises:
        ValueError: when the links do not stand on the grid, or an axis is not one of it.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import ring
    >>> links = exponential_links(jnp.full((1, 4, 1), jnp.pi / 4), irreps.so(2))  # once around: pi
    >>> around = path_transport(links, [(0, 4)], ring(4))
    >>> bool(jnp.allclose(around[0], -jnp.eye(2), atol=1e-6))
    True
    """
    links = existing_links(links, grid)
    shape, num_axes = grid.quadrature.shape, grid.points.shape[-1]
    total = identity_like(links.forward[0])
    offset, inside = [0] * num_axes, jnp.ones(shape, bool)
    for axis, count in moves:
        if not 0 <= axis < num_axes:
            raise ValueError(f"moves must go along axes 0 to {num_axes - 1}, got axis {axis}")
        for _ in range(abs(count)):
            offset[axis] -= count < 0
            link = (links.forward if count > 0 else links.backward)[axis]
            here = tuple(range(num_axes))
            total = matmul(total, jnp.roll(link, [-x for x in offset], here))
            offset[axis] += count > 0
            inside = inside & _stays_inside(grid, axis, offset[axis])
    return jnp.where(inside[..., None, None], total, jnp.nan)


def _stays_inside(grid: Grid, axis: int, offset: int) -> Array:
    """Where ``c + offset`` along an axis is on the grid: everywhere on a periodic axis."""
    shape = grid.quadrature.shape
    there = jnp.arange(shape[axis]) + offset
    inside = (there >= 0) & (there < shape[axis]) | jnp.isfinite(grid.periods[axis])
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return jnp.broadcast_to(jnp.reshape(inside, along), shape)


def plaquettes(links: Links, grid: Grid) -> Array:
    """Products around the elementary squares, ``V_mu(c) V_nu(c + mu) V_mu(c + nu)^{-1}
    V_nu(c)^{-1}`` for mu < nu.

    Args:
        links: ``[d, *grid, k, k]``.
        grid: the base manifold.

    Returns:
        ``[d (d - 1) / 2, *grid, k, k]``, planes in lexicographic order. The identity where a square
        would cross the end of an open axis, so that sums over the grid need no mask.

    Raises:
        ValueError: when the links do not stand on the grid.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import torus
    >>> phi = jnp.stack([jnp.zeros((3, 3, 1)), 0.1 * jnp.arange(9.0).reshape(3, 3, 1)])
    >>> links = exponential_links(phi, irreps.so(2))
    >>> round(float(plaquettes(links, torus((3, 3)))[0, 0, 0, 1, 0]), 4)  # sin(0.3 - 0)
    0.2955
    """
    forward, backward = existing_links(links, grid)
    k, num_axes, shape = forward.shape[-1], grid.points.shape[-1], grid.quadrature.shape
    squares = []
    for mu, nu in combinations(range(num_axes), 2):
        out = matmul(forward[mu], _ahead(forward[nu], mu))
        back = matmul(_ahead(backward[mu], nu), backward[nu])
        inside = _stays_inside(grid, mu, 1) & _stays_inside(grid, nu, 1)
        square = matmul(out, back)
        squares.append(jnp.where(inside[..., None, None], square, identity_like(square)))
    return jnp.stack(squares) if squares else jnp.zeros((0, *shape, k, k), forward.dtype)


def wilson(plaquette: Array) -> Array:
    """Wilson's density ``1 - tr P / k`` of each loop, ``[...]`` of ``[..., k, k]``.

    It is invariant under every change of gauge. For rotations it is at least 0, and 0 for the
    identity alone; in a group that is not compact it has no lower bound.

    >>> wilson(jnp.array([[0.0, -1.0], [1.0, 0.0]]))  # a quarter turn
    Array(1., dtype=float32)
    """
    trace = jnp.trace(plaquette, axis1=-2, axis2=-1)
    return 1.0 - trace / plaquette.shape[-1]


def frobenius_defect(plaquette: Array) -> Array:
    """Half the squared distance ``|P - 1|_F^2 / 2`` from the identity, ``[...]`` of ``[..., k,
    k]``.

    It is at least 0 for every group, and invariant under changes of gauge by rotations. For
    rotations it is k times :func:`wilson`, without the cancellation near the identity.

    >>> frobenius_defect(jnp.array([[0.0, -1.0], [1.0, 0.0]]))
    Array(2., dtype=float32)
    """
    defect = plaquette - identity_like(plaquette)
    return 0.5 * jnp.sum(defect * defect, axis=(-2, -1))


def plaquette_energy(
    links: Links, grid: Grid, *, density_fn: Callable[[Array], Array] = wilson
) -> Array:
    """Energy of the curvature: the sum over all elementary squares, dimensionless.

    Add it to a free energy with a weight of your own, in nats. It vanishes for a pure gauge.

    Args:
        links: ``[d, *grid, k, k]``.
        grid: the base manifold.
        density_fn: energy of one square, :func:`wilson` or :func:`frobenius_defect`.

    Returns:
        A scalar.

    Raises:
        ValueError: when the links do not stand on the grid.

    >>> from vfejax.geometry import irreps
    >>> from vfejax.geometry.grid import torus
    >>> links = exponential_links(jnp.ones((2, 3, 3, 1)), irreps.so(2))  # constant: flat
    >>> round(abs(float(plaquette_energy(links, torus((3, 3))))), 4)
    0.0
    """
    return jnp.sum(density_fn(plaquettes(links, grid)))


def curvature(connection_fn: Callable[[Array], Array], x: Array, generators: Generators) -> Array:
    """Curvature ``F_{mu nu} = d_mu A_nu - d_nu A_mu + [A_mu, A_nu]`` of a smooth connection.

    Args:
        connection_fn: point ``[d]`` to the coordinates of A there, ``[d, a]``.
        x: the point ``[d]``.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.

    Returns:
        Coordinates in the algebra ``[d, d, a]``, antisymmetric in the first two axes.

    >>> from vfejax.geometry import irreps
    >>> uniform = lambda x: jnp.stack([-x[1], x[0]])[:, None]  # a field of strength 2
    >>> curvature(uniform, jnp.zeros(2), irreps.so(2))[0, 1]
    Array([2.], dtype=float32)
    """
    x = as_floating(x, "x")
    potential, slope = connection_fn(x), jax.jacfwd(connection_fn)(x)
    constants = structure_constants(as_group(generators)).astype(potential.dtype)
    change = jnp.moveaxis(slope, -1, 0)
    bracket = jnp.einsum("ma,nb,abc->mnc", potential, potential, constants, precision="highest")
    return change - jnp.swapaxes(change, 0, 1) + bracket
