"""Chains whose time the devices of a mesh share.

:func:`over_mesh` makes algorithms for :mod:`vfejax.inference.chains.hidden_markov` and
:mod:`vfejax.inference.chains.square_root`, whose functions take them as ``passes``. Every device
holds a stretch of the observations, a shard, and what is found of its states.

What a shard does to any belief before it is a few numbers: the log probability of each last state
given each first one, or one step of a square-root filter. The devices gather them, apply those of
the shards before their own, and then filter, smooth or decode their shard from the right start. The
result is that of one device, to rounding, and so are derivatives of every order, but for a
transition or an initial probability that is 0: it stays 0, and its derivative is 0. On p devices
memory is O(t / p) each, and what travels does not grow with t. What a shard does is found once for
each first state, which is k times the work of a filter of k states.

Moments of :mod:`vfejax.inference.chains.linear_gaussian` need no algorithm of their own: with
observations dealt out over the devices, ``passes=blocks(8)`` of
:mod:`vfejax.inference.chains.blocks` leaves 8 blocks where they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from vfejax import rings
from vfejax.inference.chains import _discrete, _sharded_discrete, _sharded_roots
from vfejax.inference.chains._discrete import DiscretePasses
from vfejax.inference.chains._root_steps import BackwardChain, RootPasses, Sites
from vfejax.inference.chains._shard_elements import Shard
from vfejax.types import Array

__all__ = ["OverMesh", "over_mesh"]


class OverMesh(NamedTuple):
    """Algorithms for whole arrays.

    Attributes:
        discrete: ``passes`` of the functions of :mod:`vfejax.inference.chains.hidden_markov`. Of
            paths that are equally probable to rounding any may come back.
        square_root: ``passes`` of those of :mod:`vfejax.inference.chains.square_root`.
    """

    discrete: DiscretePasses
    square_root: RootPasses


def over_mesh(mesh: Mesh, axis: str, *, discrete: DiscretePasses = _discrete.PLATFORM) -> OverMesh:
    """Algorithms for chains whose time the devices along one axis of a mesh share.

    Other axes of the mesh stay the compiler's. Transitions that change with time come whole, for
    they are one fewer than the observations; within the program they are shared, too. Use them
    within ``jax.jit``: outside of it JAX sends every operation to the devices by itself.

    Args:
        mesh: its axes are of type Auto.
        axis: axis of the mesh along time; its size divides the number of observations.
        discrete: the algorithm of hidden Markov chains within a shard.

    Returns:
        The algorithms. Their results are shared over the mesh along time.

    Raises:
        ValueError: for an axis that the mesh does not have or that is not of type Auto, and when
            called, for a number of observations that the devices do not divide.

    Source: Hassan, Sarkka and Garcia-Fernandez, Temporal parallelization of inference in hidden
        Markov models (2021); Yaghoobi, Corenflos, Hassan and Sarkka, Parallel square-root
        statistical linear regression for inference in nonlinear state space models (2022), for
        elements in square-root form. Ours are steps of the filter.

    >>> from vfejax.inference.chains.hidden_markov import HiddenMarkov, hidden_markov_filter
    >>> mesh = jax.make_mesh((1,), ("time",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    >>> rows = jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]]))
    >>> passes = over_mesh(mesh, "time").discrete
    >>> found = jax.jit(lambda rows: hidden_markov_filter(model, rows, passes=passes))(rows)
    >>> [round(float(x), 2) for x in found.probabilities[1]]
    [0.82, 0.18]
    """
    rings.check_axis(mesh, axis)
    return OverMesh(_discrete_over(mesh, axis, discrete), _roots_over(mesh, axis))


def _shared(
    mesh: Mesh, axis: str, run: Callable, length: int, specs: tuple, found: tuple
) -> Callable[..., tuple[Array, ...]]:
    """``run`` of shards; what has no axis along time is on every device."""
    devices = mesh.shape[axis]
    if length % devices:
        raise ValueError(
            f"the {devices} devices of {axis!r} must divide the chain, got {length} observations"
        )

    def local(*arrays: Array) -> tuple[Array, ...]:
        pairs = zip(arrays, specs, strict=True)
        return run(*(x if spec else rings.varying(x, axis) for x, spec in pairs))

    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=found, axis_names={axis})


def _discrete_over(mesh: Mesh, axis: str, passes: DiscretePasses) -> DiscretePasses:
    along, whole = PartitionSpec(axis), PartitionSpec()

    def over(run: Callable, found: tuple[PartitionSpec, ...]) -> Callable[..., tuple[Array, ...]]:
        def call(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Array, ...]:
            # A 0 has no derivative: as a logarithm it would be infinite.
            initial, links = (jnp.where(x == 0, 0.0, x) for x in (initial, transition))
            first = jnp.broadcast_to(initial[:, None], (initial.shape[0],) * 2)
            varying = links.ndim == 3
            if varying:
                links = jnp.concatenate([first[None], links])

            def shard(first: Array, links: Array, rows: Array) -> tuple[Array, ...]:
                if varying:
                    return run(Shard(links[1:], links[0], rows), axis, passes)
                into = jnp.where(jax.lax.axis_index(axis) == 0, first, links)
                return run(Shard(links, into, rows), axis, passes)

            specs = (whole, along if varying else whole, along)
            share = _shared(mesh, axis, shard, log_likelihood.shape[0], specs, found)
            return share(first, links, log_likelihood)

        return call

    return DiscretePasses(
        over(_sharded_discrete.filter_shard, (along,) * 4),
        over(_sharded_discrete.smooth_shard, (along,) * 5),
        over(_sharded_discrete.decode_shard, (along, whole, along)),
    )


def _roots_over(mesh: Mesh, axis: str) -> RootPasses:
    along, whole = PartitionSpec(axis), PartitionSpec()

    def filter_chain(first: tuple[Array, Array], sites: Sites) -> tuple[Array, ...]:
        def shard(mean: Array, root: Array, *sites: Array) -> tuple[Array, ...]:
            return _sharded_roots.filter_shard((mean, root), Sites(*sites), axis)

        length = sites.values.shape[0]
        specs = whole, whole, *(along if x.shape[0] == length else whole for x in sites)
        return _shared(mesh, axis, shard, length, specs, (along,) * 3)(*first, *sites)

    def smooth_chain(chain: BackwardChain) -> tuple[Array, ...]:
        def shard(*chain: Array) -> tuple[Array, ...]:
            return _sharded_roots.smooth_shard(BackwardChain(*chain), axis)

        length, specs = chain.gain.shape[0], (along,) * 3
        return _shared(mesh, axis, shard, length, specs, (along,) * 2)(*chain)

    return RootPasses(filter_chain, smooth_chain)
