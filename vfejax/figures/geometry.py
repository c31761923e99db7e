"""Figures of the geometry of fields: metrics on the base manifold, and curvature.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.fields import field_maps
from vfejax.figures.style import INK, as_array

__all__ = ["base_metric", "curvature_map"]

# More ellipses along an axis than this touch each other.
_MOST_ELLIPSES = 12


def base_metric(metric: ArrayLike, *, kind: str, lengths: Sequence[float]) -> Figure:
    """A metric on the base manifold.

    Args:
        metric: ``[*grid, d, d]``, symmetric, in nats per squared unit of the coordinates.
        kind: ``ring``, ``line`` (d = 1), ``torus`` or ``plane`` (d = 2).
        lengths: length or circumference of each axis, as in
            :func:`vfejax.figures.fields.field_maps`.

    Returns:
        One axis: the length element as a curve. Two: the volume element as an image, with unit
        circles of the metric at some points, drawn at one scale; an axis that would reach far
        beyond the next circle is cut short. Along the short axis of a circle the beliefs change
        fast. Points whose metric is singular have no circle.

    Raises:
        ValueError: when the metric does not fit the kind, or lengths do not.
    """
    d = len(lengths)
    metric = as_array("metric", metric, *[f"points along axis {i + 1}" for i in range(d)], d, d)
    if d == 1:
        return field_maps(
            {"length element (√nats per unit)": np.sqrt(np.maximum(metric[..., 0, 0], 0.0))},
            kind=kind,
            lengths=lengths,
        )
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite leaves gaps
        volume = np.sqrt(np.maximum(np.linalg.det(metric), 0.0))
    figure = field_maps({"volume element and unit circles": volume}, kind=kind, lengths=lengths)
    _draw_ellipses(figure.axes[0], metric, kind, lengths)
    return figure


def _draw_ellipses(ax: Axes, metric: np.ndarray, kind: str, lengths: Sequence[float]) -> None:
    """Unit circles ``dx^T g dx = 1``, scaled so that a typical one fits between its neighbours.

    Each is drawn in white and then, narrower, in ink: so it is seen on every colour.
    """
    shape = metric.shape[:2]
    steps = [-(-num // _MOST_ELLIPSES) for num in shape]
    spacing = [
        length / (num if kind == "torus" else max(num - 1, 1))
        for num, length in zip(shape, lengths, strict=True)
    ]
    chosen = metric[:: steps[0], :: steps[1]]
    values, vectors = np.linalg.eigh(chosen)
    places = np.stack(
        np.meshgrid(
            *(h * np.arange(num)[::s] for h, num, s in zip(spacing, shape, steps, strict=True)),
            indexing="ij",
        ),
        axis=-1,
    )
    drawn = values[..., 0] > 1e-9 * values[..., 1]
    if not np.any(drawn):
        return
    diameters = 2.0 / np.sqrt(values[drawn])
    room = 0.9 * min(h * s for h, s in zip(spacing, steps, strict=True))
    scale = room / np.median(diameters.max(axis=-1))
    diameters = np.minimum(scale * diameters, 1.6 * room)
    # The first eigenvector belongs to the smallest eigenvalue: the long axis.
    angles = np.degrees(np.arctan2(vectors[drawn][:, 1, 0], vectors[drawn][:, 0, 0]))
    for colour, width in (("white", 1.6), (INK, 0.8)):
        ellipses = EllipseCollection(
            diameters[:, 0],
            diameters[:, 1],
            angles,
            units="xy",
            offsets=places[drawn],
            offset_transform=ax.transData,
            facecolors="none",
            edgecolors=colour,
            linewidths=width,
        )
        ax.add_collection(ellipses)


def curvature_map(density: ArrayLike, *, kind: str, lengths: Sequence[float]) -> Figure:
    """Curvature of a connection over a plane or torus.

    Args:
        density: of each elementary square ``[*grid]``, from
            :func:`vfejax.geometry.connection.wilson` of one plane's plaquettes; 0 where there is no
            square.
        kind: ``torus`` or ``plane``.
        lengths: as in :func:`vfejax.figures.fields.field_maps`.

    Returns:
        An image with its colour bar.

    Raises:
        ValueError: when the density has not two grid axes, or lengths do not fit.
    """
    density = as_array("density", density, "points", "points on the second axis")
    return field_maps({"curvature (energy per square)": density}, kind=kind, lengths=lengths)
