"""Figures of spectra in the complex plane.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import BLUE, FONT_SIZE, GREY, INK, as_array, new_figure, style_axes

__all__ = ["spectrum"]


def spectrum(
    values: ArrayLike,
    residuals: ArrayLike,
    *,
    true: ArrayLike | None = None,
    shade: tuple[ArrayLike, ArrayLike, ArrayLike] | None = None,
    title: str = "",
) -> Figure:
    """Eigenvalues beside the unit circle, the larger and darker the smaller their residuals.

    Args:
        values: eigenvalues ``[p]``, complex.
        residuals: of each, ``[p]``, not negative: 0 for an exact one, about 1 for none. What is not
            finite, here or in ``values``, is not drawn.
        true: known eigenvalues ``[q]``, drawn as crosses.
        shade: real parts ``[n]``, imaginary parts ``[m]`` and the least residual at each point of
            their grid ``[m, n]``, drawn as levels behind.
        title: heading.

    Returns:
        The figure.

    Raises:
        ValueError: for shapes that do not fit.
    """
    values = np.asarray(values, np.complex128)
    size = as_array("residuals", residuals, "eigenvalues")
    if values.shape != size.shape:
        raise ValueError(f"values must have shape {size.shape}, as residuals, got {values.shape}")
    figure = new_figure(4.6, 6.0)
    ax = figure.add_subplot()
    if shade is not None:
        real, imag = as_array("shade[0]", shade[0], "n"), as_array("shade[1]", shade[1], "m")
        least = as_array("shade[2]", shade[2], len(imag), len(real))
        levels = ax.contourf(real, imag, least, levels=10, cmap="Greys_r", alpha=0.6)
        bar = figure.colorbar(levels, ax=ax, shrink=0.8)
        bar.set_label("least residual of any observable", color=INK, fontsize=FONT_SIZE)
    turn = np.linspace(0.0, 2.0 * np.pi, 200)
    ax.plot(np.cos(turn), np.sin(turn), color=GREY, linewidth=0.8)
    finite = np.isfinite(values) & np.isfinite(size)
    values = np.where(finite, values, np.nan)
    weight = 1.0 / (1.0 + 10.0 * np.where(finite, size, np.inf))
    ax.scatter(
        values.real,
        values.imag,
        s=10 + 50 * weight,
        alpha=0.25 + 0.75 * weight,  # type: ignore[arg-type]
        color=BLUE,
        label="estimated; pale: residual",
    )
    if true is not None:
        known = np.asarray(true, np.complex128)
        ax.scatter(known.real, known.imag, marker="x", color=INK, linewidth=1.2, label="true")
    ax.set_aspect("equal")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=FONT_SIZE - 1)
    style_axes(ax, xlabel="real part", ylabel="imaginary part", title=title, grid="both")
    return figure
