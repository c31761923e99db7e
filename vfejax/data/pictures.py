"""Pictures from files, as sRGB numbers from 0 to 1."""

import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vfejax.data.files import one_line, read_errors
from vfejax.errors import UserError

__all__ = ["LARGEST_PICTURE", "load_picture"]

LARGEST_PICTURE = 2**26  # pixels: twice 8K
_BROKEN = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
_DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def load_picture(path: str | os.PathLike, option: str = "") -> np.ndarray:
    """The pixels of a picture, ``[h, w, 3]`` in float32 from 0 to 1.

    PNG, JPEG and whatever else Pillow reads: grey, palettes and 16 bits too. What is transparent is
    shown on white, and a picture that a camera has marked as turned is turned. Colours count as
    sRGB; of several frames the first one is read.

    Args:
        path: the file.
        option: the option that named it, for messages.

    Raises:
        UserError: naming the file, when it is missing, no picture, damaged, or has more than 2^26
            pixels.
    """
    path, said = Path(path), f"{option} {os.fspath(path)}".strip()
    with read_errors(path), open(path, "rb"):
        pass  # its own errors, before Pillow's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                if width * height <= LARGEST_PICTURE:
                    return _pixels(ImageOps.exif_transpose(image), said)
    except Image.UnidentifiedImageError:
        raise UserError(f"{said}: is no picture; give a PNG, a JPEG or another picture") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{said}: has more than {LARGEST_PICTURE} pixels; make it smaller"
        ) from None
    except _BROKEN as error:
        raise UserError(f"{said}: cannot read the picture: {one_line(error)}") from None
    raise UserError(
        f"{said}: has {width} x {height} pixels, more than {LARGEST_PICTURE}; make it smaller"
    )


def _pixels(image: Image.Image, said: str) -> np.ndarray:
    if image.mode == "F":
        raise UserError(f"{said}: has real numbers, of which white is unknown; save it as integers")
    if image.mode in _DEEP:
        grey = np.asarray(image).astype(np.float32) / 65535
        if grey.min() < 0 or grey.max() > 1:
            raise UserError(f"{said}: has integers beyond 16 bits; save it with 16 or 8")
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.has_transparency_data:
        colours = np.asarray(image.convert("RGBA"), np.float32) / 255
        opaque = colours[..., 3:]
        return colours[..., :3] * opaque + (1 - opaque)
    return np.asarray(image.convert("RGB"), np.float32) / 255
