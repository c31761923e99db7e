"""What ``--query`` asks of a picture: a colour, a region, or what another picture looks like."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import is_color_like, to_rgb

from vfejax.data.pictures import load_picture
from vfejax.errors import UserError

__all__ = ["Query", "file_of", "read"]

_REGION = re.compile(r"\d{1,9},\d{1,9},\d{1,9},\d{1,9}")


class Query(NamedTuple):
    """What is asked; one of the two is None, or both.

    Attributes:
        example: sRGB colours that are looked for, ``[n, 3]``.
        region: left, top, width and height, in pixels.
        words: the question for a reader.
    """

    example: np.ndarray | None
    region: tuple[int, int, int, int] | None
    words: str


def _is_colour(text: str) -> bool:
    return text.lower() != "none" and bool(is_color_like(text))


def file_of(query: str | None) -> Path | None:
    """The picture file that a query names; None when it is a colour, a region, or nothing.

    >>> file_of("red"), file_of("10,20,30,40"), file_of("leaf.png").name
    (None, None, 'leaf.png')
    """
    if query is None or _is_colour(query) or _REGION.fullmatch(query):
        return None
    return Path(query)


def read(query: str | None, width: int, height: int) -> Query:
    """The query of a picture of this size.

    Args:
        query: what ``--query`` says; None when it is not given.
        width, height: of the picture, in pixels.

    Raises:
        UserError: for a region beside the picture, or a file that cannot be read.

    >>> read("10,20,30,40", 640, 480).region
    (10, 20, 30, 40)
    """
    if query is None:
        return Query(None, None, "nothing")
    if _is_colour(query):
        return Query(np.asarray([to_rgb(query)], np.float32), None, f"the colour {query}")
    if _REGION.fullmatch(query):
        left, top, wide, high = (int(number) for number in query.split(","))
        if left >= width or top >= height or not wide or not high:
            raise UserError(
                f"--query {query}: must be a region x,y,width,height that holds a pixel of the "
                f"picture of {width} x {height} pixels"
            )
        return Query(None, (left, top, wide, high), f"the region {query}")
    pixels = load_picture(query, "--query").reshape(-1, 3)
    return Query(pixels, None, f"what {Path(query).name} looks like")
