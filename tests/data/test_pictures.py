"""Pictures are read as they look, in whatever way they are stored; errors name the file."""

import numpy as np
import pytest
from PIL import Image

from vfejax.data import pictures
from vfejax.data.pictures import load_picture
from vfejax.errors import UserError

COLOURS = np.array([[[255, 0, 0], [0, 128, 0]], [[0, 0, 255], [51, 51, 51]]], np.uint8)


def stored(path, image, **options):
    image.save(path, **options)
    return load_picture(path)


def test_every_mode_is_read_as_it_looks(tmp_path):
    image = Image.fromarray(COLOURS)
    found = stored(tmp_path / "rgb.png", image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, COLOURS.astype(np.float32) / 255)
    np.testing.assert_array_equal(stored(tmp_path / "p.png", image.quantize(4)), found)
    np.testing.assert_array_equal(stored(tmp_path / "whole.bmp", image), found)
    grey = stored(tmp_path / "grey.png", Image.fromarray(COLOURS[..., 0]))
    np.testing.assert_allclose(
        grey, np.repeat(COLOURS[..., :1], 3, axis=2) / 255, rtol=0, atol=1e-7
    )
    bits = stored(tmp_path / "bits.png", Image.fromarray(np.array([[True, False]])))
    np.testing.assert_array_equal(bits, [[[1, 1, 1], [0, 0, 0]]])
    # JPEG is lossy, and averages colours of neighbours.
    flat = Image.fromarray(np.full((16, 16, 3), (200, 100, 50), np.uint8))
    found = stored(tmp_path / "flat.jpg", flat)
    np.testing.assert_allclose(
        found, np.broadcast_to([200, 100, 50], (16, 16, 3)) / 255, rtol=0, atol=0.02
    )


def test_sixteen_bits_keep_their_steps(tmp_path):
    values = np.array([[0, 1, 256], [32768, 65534, 65535]], np.uint16)
    found = stored(tmp_path / "deep.png", Image.fromarray(values))
    np.testing.assert_allclose(found[..., 0], values / 65535, rtol=1e-6)
    assert found.shape == (2, 3, 3)


def test_what_is_transparent_is_shown_on_white(tmp_path):
    colours = np.concatenate([COLOURS, np.full((2, 2, 1), 0, np.uint8)], axis=2)
    colours[0, 0, 3], colours[1, 1, 3] = 255, 51
    found = stored(tmp_path / "a.png", Image.fromarray(colours))
    np.testing.assert_array_equal(found[0, 0], [1, 0, 0])
    np.testing.assert_array_equal(found[0, 1], [1, 1, 1])
    np.testing.assert_allclose(found[1, 1], 0.2 * 0.2 + 0.8, rtol=1e-6)


def test_a_turned_photograph_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    found = stored(tmp_path / "turned.png", Image.fromarray(COLOURS[:1]), exif=exif)
    np.testing.assert_array_equal(found, COLOURS[0, :, None].astype(np.float32) / 255)


def test_errors_name_the_file(tmp_path, monkeypatch):
    def refused(name, *pieces, content=None):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            load_picture(path, "--image")
        for piece in (str(path), *pieces):
            assert piece in str(error.value)

    refused("missing.png", "does not exist")
    refused("text.png", "--image", "is no picture", content=b"hello")
    refused("empty.png", "is no picture", content=b"")
    (tmp_path / "folder.png").mkdir()
    refused("folder.png", "cannot read")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        tmp_path / "good.png"
    )
    whole = (tmp_path / "good.png").read_bytes()
    refused("cut.png", "cannot read the picture", content=whole[: len(whole) // 2])
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "real.tiff")
    refused("real.tiff", "real numbers")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "wide.tiff")
    refused("wide.tiff", "beyond 16 bits")
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 4000)
    refused("good.png", "64 x 64 pixels, more than 4000")
