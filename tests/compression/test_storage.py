"""What a file keeps of a leaf comes back bit for bit, in as many bytes as are counted."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression import storage
from vfejax.compression.quantize import Scheme, dequantize, quantize
from vfejax.compression.storage import Form

SCHEMES = (None, Scheme(4, 5), Scheme(3, 0), Scheme(2, 4, symmetric=False))
FORMS = [
    Form(scheme, axis, sparse, half)
    for scheme, axis, sparse, half in itertools.product(SCHEMES, (-1, -2), (False, True), (0, 1))
    if scheme is None or not half
]


@pytest.fixture(scope="module")
def round_trips():
    """Weights of two axes, a third of them 0, and for every form what goes to a file and what comes
    back; one program.
    """
    x = np.random.default_rng(0).normal(size=(13, 7)).astype(np.float32)
    x[np.abs(x) < 0.4] = 0.0
    leaves = jax.jit(lambda x: [storage.encode(x, form) for form in FORMS])(x)
    parts = [storage.parts(*pair) for pair in zip(leaves, FORMS, strict=True)]
    back = [
        storage.encoded(kept, form, x.shape, x.dtype)
        for kept, form in zip(parts, FORMS, strict=True)
    ]

    @jax.jit
    def decoded(back):
        return [storage.decode(leaf, form, x.dtype) for leaf, form in zip(back, FORMS, strict=True)]

    return x, parts, decoded(leaves), decoded(back)


def test_packing_changes_no_bit(round_trips):
    _, _, before, after = round_trips
    for form, first, second in zip(FORMS, before, after, strict=True):
        np.testing.assert_array_equal(first, second, str(form))


def test_weights_come_back_as_the_form_says(round_trips):
    x, _, _, after = round_trips
    for form, found in zip(FORMS, after, strict=True):
        if form.scheme is None:
            expected = x.astype(np.float16).astype(np.float32) if form.half else x
        else:
            quantized = jax.jit(partial(quantize, scheme=form.scheme, axis=form.axis))(x)
            expected = np.asarray(dequantize(quantized, form.scheme, form.axis))
            expected = np.where(x == 0, 0, expected) if form.sparse else expected
        np.testing.assert_array_equal(found, expected, str(form))


def test_bytes_are_those_of_the_parts(round_trips):
    x, parts, _, _ = round_trips
    for form, kept in zip(FORMS, parts, strict=True):
        counted = storage.num_bytes({"x": x}, {"x": form})
        assert counted == sum(array.nbytes for array in kept.values()), form
    nonzero, whole = np.count_nonzero(x), Form(sparse=True, half=True)
    assert storage.num_bytes({"x": x}, {"x": whole}) == 2 * nonzero + -(-x.size // 8)


def test_training_reads_what_the_file_will_hold_and_zeros_stay():
    x = {"x": jnp.asarray([[0.75], [0.0], [-1.0], [0.3]])}
    for form in (Form(Scheme(3, 0), sparse=True), Form(half=True, sparse=True)):
        read = partial(storage.as_stored, forms={"x": form})
        expected = storage.decode(storage.encode(x["x"], form), form, jnp.float32)
        np.testing.assert_array_equal(read(x)["x"], expected)
        gradient = jax.grad(lambda p, read=read: jnp.sum(read(p)["x"]))(x)["x"]
        np.testing.assert_array_equal(gradient.ravel(), [1, 0, 1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.zeros(2, np.uint8)}, r"codes must be uint8 \[4\], got uint8 \[2\]"),
        ({"codes": np.zeros(4, np.int8)}, r"codes must be uint8 \[4\], got int8 \[4\]"),
        ({"scale": np.zeros((1, 2), np.float32)}, r"scale must be float16 \[1, 2\]"),
        ({"scale": None}, r"scale must be float16 \[1, 2\], got nothing"),
        ({"bitmap": None}, r"bitmap must be uint8 \[1\], got nothing"),
        ({"zero": np.zeros(1, np.uint8)}, "zero does not belong"),
    ],
    ids=str,
)
def test_parts_of_another_leaf_are_refused(changes, message):
    form = Form(Scheme(8, 0), sparse=True)
    good = {
        "bitmap": np.asarray([15], np.uint8),
        "codes": np.zeros(4, np.uint8),
        "scale": np.zeros((1, 2), np.float16),
    }
    storage.encoded(good, form, (2, 2), np.float32)
    bad = {name: array for name, array in (good | changes).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        storage.encoded(bad, form, (2, 2), np.float32)
