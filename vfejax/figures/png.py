"""Figures as PNG, drawn here or by processes that draw what they are sent."""

import importlib
import io
import os
import pickle
from collections.abc import Sequence
from typing import Any

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


def serve(pipes: Sequence[tuple[int, int]]) -> None:
    """Answer every pickled question with a PNG, pickled, until there are no more, in one process
    for each pair of pipes.

    Args:
        pipes: file descriptors of questions and answers. A question is a figure, or ``(module,
            function, arguments, options)`` of a function that makes one.
    """
    mine = pipes[0]
    for pair in pipes[1:]:
        if not os.fork():
            mine = pair
            break
    for end in (end for pair in pipes for end in pair if pair != mine):
        os.close(end)
    with os.fdopen(mine[0], "rb") as questions, os.fdopen(mine[1], "wb") as answers:
        while True:
            try:
                question = pickle.load(questions)
            except EOFError:
                return
            pickle.dump(figure_png(_made(question)), answers)
            answers.flush()


def _made(question: Any) -> Figure:
    if not isinstance(question, tuple):
        return question
    module, function, arguments, options = question
    return getattr(importlib.import_module(module), function)(*arguments, **options)
