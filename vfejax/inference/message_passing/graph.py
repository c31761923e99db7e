"""Models as data: nodes with plates, and the one scalar from which all messages follow.

A node is a conditional distribution of an exponential family; its parents are other nodes, by name,
or constants. A model is a dictionary of nodes in an order in which parents come first. The expected
log joint density ``L(m) = E_q log p`` of a factorised belief q depends on the beliefs only through
their expected statistics m, and for conjugate nodes it is linear in those of each single node. So
the sum of all messages to a node is a gradient:

    eta_i <- dL/dm_i,

its natural parameters at the maximum of the ELBO over its belief. :func:`expected_log_joint` is L;
nothing else of a model is needed.

Source: Winn and Bishop, JMLR 6 (2005) 661; Khan and Lin, AISTATS (2017), for messages as gradients.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.exponential_families import Family, Natural, Statistics, inner
from vfejax.beliefs.supports import check_inside, nan_outside
from vfejax.inference.message_passing._plates import present, weighted_sum
from vfejax.numerics import as_floating, cast_like, expand_leading
from vfejax.types import Array

__all__ = [
    "Model",
    "Node",
    "Parent",
    "expected_log_joint",
    "graph",
    "observe",
    "parent_statistics",
]

Parent = Any
"""The name of a node, or a constant (a number or an array)."""


class Node(NamedTuple):
    """A conditional distribution with plates.

    Attributes:
        family: of the node's own value.
        parents: names of nodes, or constants.
        slots: for each parent, its name and the families it may have; a constant counts as a value
            of the first.
        natural: ``natural(*parents) -> (E eta, E A)``, from the expected statistics of the parents:
            the message down to the node. ``E A`` is the expected log normaliser, ``[plates]``.
        plates: leading shape of the node; None for that of ``E eta``.
        log_density: ``log_density(node, own, parents, weights) -> scalar``, the expected log
            density summed over plates; None for ``<E eta, t> - E A``.
        symmetric: slots among which an exchange of components or a change of sign maps the model
            to itself: beliefs of the first must not start alike if any of the others is latent.
        conjugate: whether the log density is linear in the statistics of every parent.
    """

    family: Family
    parents: tuple[Parent, ...]
    slots: tuple[tuple[str, tuple[Family, ...]], ...]
    natural: Callable[..., tuple[Natural, Array]]
    plates: tuple[int, ...] | None = None
    log_density: Callable[..., Array] | None = None
    symmetric: tuple[int, ...] = ()
    conjugate: bool = True


class Model(NamedTuple):
    """A checked set of nodes.

    Attributes:
        nodes: by name, parents first.
        shapes: of each node, the shapes of its statistics.
        plates: of each node, its leading shape.
        children: of each node, the names of the nodes it is a parent of.
    """

    nodes: dict[str, Node]
    shapes: dict[str, tuple[tuple[int, ...], ...]]
    plates: dict[str, tuple[int, ...]]
    children: dict[str, tuple[str, ...]]


def graph(**nodes: Node) -> Model:
    """A model from nodes by name, declared after their parents.

    Args:
        **nodes: see :mod:`vfejax.inference.message_passing.nodes`.

    Raises:
        ValueError: when a parent is not declared before its child, is of a family that its slot
            does not take, does not fit, or is a constant that cannot be, such as a negative
            precision; the message names node and slot.

    >>> from vfejax.inference.message_passing import nodes
    >>> model = graph(mean=nodes.gaussian(0.0, 1.0), x=nodes.gaussian("mean", 4.0, plates=(5,)))
    >>> model.plates, model.children["mean"]
    ({'mean': (), 'x': (5,)}, ('x',))
    """
    model = Model({}, {}, {}, {})
    for name, node in nodes.items():
        for parent, (slot, families) in zip(node.parents, node.slots, strict=True):
            if isinstance(parent, str):
                _check_parent(model, name, slot, families, parent)
            else:
                check_inside(parent, families[0].support, f"{slot} of {name}")
        shapes, plates = _node_shapes(model, name, node)
        model.shapes[name], model.plates[name] = shapes, plates
        model.nodes[name], model.children[name] = node, ()
        for parent in named_parents(node):
            model.children[parent] += (name,)
    return model


def named_parents(node: Node) -> tuple[str, ...]:
    """Names of the parents of a node that are nodes, each once.

    >>> from vfejax.inference.message_passing import nodes
    >>> named_parents(nodes.gaussian("mean", 1.0))
    ('mean',)
    """
    return tuple(dict.fromkeys(p for p in node.parents if isinstance(p, str)))


def _check_parent(
    model: Model, name: str, slot: str, families: tuple[Family, ...], parent: str
) -> None:
    if parent not in model.nodes:
        known = ", ".join(model.nodes) or "none"
        raise ValueError(f"{slot} of {name}: no node {parent!r} is declared before it ({known})")
    got = model.nodes[parent].family.name
    accepted = tuple(family.name for family in families)
    if got not in accepted:
        raise ValueError(f"{slot} of {name} must be {' or '.join(accepted)}, {parent} is {got}")


def _node_shapes(
    model: Model, name: str, node: Node
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Shapes of the statistics and plates of a node, from those of its parents."""
    dtype = jnp.result_type(float)
    known = {
        parent: tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in model.shapes[parent])
        for parent in node.parents
        if isinstance(parent, str)
    }
    try:
        natural, normaliser = jax.eval_shape(
            lambda stats: node.natural(*parent_statistics(node, stats, jnp.zeros((), dtype))), known
        )
        leading = [x.shape[: x.ndim - k] for x, k in zip(natural, node.family.ranks, strict=True)]
        message = jnp.broadcast_shapes(*leading, normaliser.shape)
    except (ValueError, TypeError) as error:
        listed = ", ".join(
            f"{slot} {known[p][0].shape if isinstance(p, str) else np.shape(p)}"
            for p, (slot, _) in zip(node.parents, node.slots, strict=True)
        )
        raise ValueError(f"the parents of {name} do not fit: {listed}") from error
    plates = message if node.plates is None else tuple(node.plates)
    if len(message) > len(plates) or any(
        have not in (1, want) for have, want in zip(message[::-1], plates[::-1], strict=False)
    ):
        raise ValueError(f"plates of {name} must take those of its parents {message}, got {plates}")
    events = [x.shape[x.ndim - k :] for x, k in zip(natural, node.family.ranks, strict=True)]
    return tuple((*plates, *event) for event in events), plates


def parent_statistics(
    node: Node, statistics: Mapping[str, Statistics], like: Array
) -> tuple[Statistics, ...]:
    """Expected statistics of the parents of a node, those of constants in the dtype of ``like``.

    Args:
        node: whose parents they are.
        statistics: of nodes, by name.
        like: an array of the wanted dtype.

    >>> from vfejax.inference.message_passing import nodes
    >>> [t.tolist() for t in parent_statistics(nodes.gaussian(2.0, 1.0), {}, jnp.ones(()))[0]]
    [2.0, 4.0]
    """
    return tuple(
        statistics[parent]
        if isinstance(parent, str)
        else families[0].statistics(cast_like(parent, like))
        for parent, (_, families) in zip(node.parents, node.slots, strict=True)
    )


def observe(
    model: Model, data: Mapping[str, Array], weights: Mapping[str, Array] | None = None
) -> dict[str, Statistics]:
    """Statistics of observed nodes; 0 where a weight is 0, whatever stands there.

    Args:
        model: from :func:`graph`.
        data: values by the name of their node, ``[*plates, *event]``. States of a categorical node
            are one-hot rows.
        weights: by name, broadcastable to plates.

    Raises:
        ValueError: for arrays without names, a name that is no node, a shape that does not fit, or
            a value that cannot be, such as a count of -1. Where values are traced it becomes NaN.

    >>> from vfejax.inference.message_passing import nodes
    >>> model = graph(x=nodes.gaussian(0.0, 1.0, plates=(2,)))
    >>> [t.tolist() for t in observe(model, {"x": jnp.array([1.0, 2.0])})["x"]]
    [[1.0, 2.0], [1.0, 4.0]]
    """
    if not isinstance(data, Mapping):
        raise ValueError(
            f"data must be arrays by the name of their node, of {', '.join(model.nodes)}; got "
            f"{type(data).__name__}"
        )
    observed = {}
    for name, value in data.items():
        if name not in model.nodes:
            raise ValueError(f"data: no node {name!r}, there are {', '.join(model.nodes)}")
        family, called = model.nodes[name].family, f"data[{name!r}]"
        statistics = family.statistics(nan_outside(as_floating(value, called), family.support))
        if tuple(t.shape for t in statistics) != model.shapes[name]:
            raise ValueError(
                f"{called} must have plates {model.plates[name]} and statistics of shapes "
                f"{model.shapes[name]}, got shape {jnp.shape(value)}"
            )
        weight, plates = (weights or {}).get(name), len(model.plates[name])
        check_inside(value, family.support, called, 1.0 if weight is None else weight, plates)
        if weight is not None:
            statistics = present(statistics, weight, plates)
        observed[name] = statistics
    return observed


def _log_density(
    node: Node, own: Statistics, parents: tuple[Statistics, ...], weights: Array | None
) -> Array:
    """``sum_n w_n (<E eta, t_n> - E A)``."""
    natural, normaliser = node.natural(*parents)
    rank = node.family.ranks[0]
    plates = own[0].shape[: own[0].ndim - rank]
    product = inner(node.family, natural, own)
    terms = product - jnp.broadcast_to(expand_leading(normaliser, product.ndim), product.shape)
    return weighted_sum(terms, weights, plates)


def expected_log_joint(
    model: Model,
    statistics: Mapping[str, Statistics],
    weights: Mapping[str, Array] | None = None,
    names: tuple[str, ...] | None = None,
) -> Array:
    """``L(m) = E_q log p``, in nats: the sum of the expected log densities of nodes.

    Args:
        model: from :func:`graph`.
        statistics: expected statistics of every node, observed or not. They have one dtype.
        weights: by name, how often each member of a node's plates counts: 0 for a missing
            observation, a number of copies, or the inverse of the fraction that a batch is.
        names: the nodes whose densities count; None for all.

    Returns:
        Scalar. The base measure of observed nodes is left out: it depends on no belief.

    >>> from vfejax.inference.message_passing import nodes
    >>> model = graph(x=nodes.gaussian(0.0, 1.0, plates=(2,)))
    >>> round(float(expected_log_joint(model, observe(model, {"x": jnp.zeros(2)}))), 4)
    -1.8379
    """
    weights = weights or {}
    total: Array | None = None
    for name in model.nodes if names is None else names:
        node, own = model.nodes[name], statistics[name]
        parents = parent_statistics(node, statistics, own[0])
        weight = None if name not in weights else cast_like(weights[name], own[0])
        density = (node.log_density or _log_density)(node, own, parents, weight)
        total = density if total is None else total + density
    return jnp.zeros(()) if total is None else total
