"""A mixture of Gaussians with unknown weights, means and precisions."""

import jax
import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Natural
from vfejax.inference.message_passing import couplings, nodes
from vfejax.inference.message_passing.coordinate_ascent import MessagePassing, message_passing
from vfejax.inference.message_passing.graph import graph
from vfejax.numerics import as_floating, expand_leading
from vfejax.types import Array

__all__ = ["gaussian_mixture", "start_from_points"]


def gaussian_mixture(
    num_points: int,
    dim: int,
    num_components: int,
    concentration: float = 1e-2,
    mean_precision: float = 1e-2,
    dof: float | None = None,
) -> MessagePassing:
    """Points ``x_n ~ N(mean_z, precision_z^{-1})`` with ``z_n ~ weights``.

    Nodes ``weights``, ``mean``, ``precision``, ``label`` and the observed ``point [n, dim]``. With
    a small concentration components that are not needed lose their weight.

    Args:
        num_points: n.
        dim: of a point.
        num_components: the largest number of components.
        concentration: of the Dirichlet prior of the weights.
        mean_precision: of the prior of the means, ``N(0, 1 / mean_precision)``.
        dof: degrees of freedom of the Wishart prior of the precisions, whose rate is the identity;
            None for ``dim``.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), section 10.2, with means
        independent of the precisions.

    >>> method = gaussian_mixture(100, dim=2, num_components=3)
    >>> method.schedule
    (('weights',), ('mean',), ('precision',), ('label',))
    """
    eye, plates = jnp.eye(dim), (num_components,)
    component = nodes.multivariate_gaussian("mean", "precision")
    model = graph(
        weights=nodes.dirichlet(jnp.full(num_components, concentration)),
        mean=nodes.multivariate_gaussian(jnp.zeros(dim), mean_precision * eye, plates),
        precision=nodes.wishart(float(dim if dof is None else dof), eye, plates),
        label=nodes.categorical("weights", plates=(num_points,)),
        point=couplings.mixture("label", component),
    )
    return message_passing(model, ("point",))


def start_from_points(key: Array, points: Array, num_components: int) -> dict[str, Natural]:
    """A start that the data break the symmetry of: every point belongs to the nearest of k points
    far from one another.

    The k points are drawn one after another, each with a probability that grows as the square of
    its distance to those before it.

    Args:
        key: of ``jax.random``.
        points: ``[n, dim]``.
        num_components: k.

    Returns:
        Natural parameters of ``label`` for ``init(key, data, start=...)``.

    Source: Arthur and Vassilvitskii, SODA (2007).

    >>> start = start_from_points(jax.random.key(0), jnp.array([[0.0], [0.1], [9.0]]), 2)
    >>> labels = start["label"][0].argmax(axis=1)
    >>> bool(labels[0] == labels[1]), bool(labels[0] == labels[2])
    (True, False)
    """
    points = as_floating(points, "points")
    first, *keys = jax.random.split(key, num_components)
    chosen = jax.random.randint(first, (), 0, points.shape[0])
    distances = [_squares(points, points[chosen])]
    for next_key in keys:
        nearest = jnp.min(jnp.stack(distances), axis=0)
        chosen = jax.random.categorical(next_key, jnp.log(nearest))
        distances.append(_squares(points, points[chosen]))
    label = jnp.argmin(jnp.stack(distances), axis=0)
    # One in ten of its belief is shared among the components.
    belief = 0.9 * jax.nn.one_hot(label, num_components, dtype=points.dtype) + 0.1 / num_components
    return {"label": (jnp.log(belief),)}


def _squares(points: Array, centre: Array) -> Array:
    return jnp.sum((points - expand_leading(centre, 1, 1)) ** 2, axis=-1)
