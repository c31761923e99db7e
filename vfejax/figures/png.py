"""Figures as PNG, drawn here or by a process that draws what it is sent."""

import io
import os
import pickle
import sys

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["figure_pixels", "figure_png", "serve"]


def figure_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """A matplotlib figure as PNG. The same figure gives the same bytes: no date or version is
    written into it, and it has no transparency to pack.
    """
    buffer = io.BytesIO()
    pixels = figure_pixels(figure, dpi=dpi)
    Image.fromarray(pixels).save(buffer, format="png", dpi=(dpi, dpi))
    return buffer.getvalue()


def figure_pixels(figure: Figure, *, dpi: int) -> np.ndarray:
    """A matplotlib figure as red, green and blue, bytes ``[height, width, 3]``. It is drawn once,
    while ``savefig`` draws twice.
    """
    before = figure.dpi
    try:
        figure.set_dpi(dpi)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    finally:
        figure.set_dpi(before)
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def serve() -> None:
    """Answer every pickled figure on standard input with its PNG, pickled, on standard output,
    until the input ends. The first answer is None: the process is ready.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed must not be taken for an answer
    pickle.dump(None, answers)
    answers.flush()
    while True:
        try:
            figure = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(figure_png(figure), answers)
        answers.flush()
