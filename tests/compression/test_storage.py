"""What a file keeps of a leaf comes back bit for bit, in as many bytes as are counted."""

import itertools

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


def _expected(x, form):
    """What comes back, written out."""
    if form.scheme is None:
        return x.astype(jnp.float16).astype(x.dtype) if form.half else x
    found = dequantize(quantize(x, form.scheme, form.axis), form.scheme, form.axis, x.dtype)
    return jnp.where(x == 0, jnp.zeros((), x.dtype), found) if form.sparse else found


@jax.jit
def _everything(x):
    """For every form: what goes to a file, what comes back from there by the formula, what training
    reads, and its gradient.
    """
    leaves = [storage.encode(x, form) for form in FORMS]
    read = [
        jax.value_and_grad(
            lambda x, form=form: (
                (y := storage.as_stored({"x": x}, {"x": form})["x"]).sum(),
                y,
            ),
            has_aux=True,
        )(x)
        for form in FORMS
    ]
    return leaves, [_expected(x, form) for form in FORMS], [(y, g) for (_, y), g in read]


@pytest.fixture(scope="module")
def round_trips():
    """Weights of two axes, some of them 0, and for every form: its parts, what they give, and what
    :func:`_everything` says.
    """
    x = np.random.default_rng(0).normal(size=(13, 7)).astype(np.float32)
    x[np.abs(x) < 0.4] = 0.0
    leaves, expected, read = _everything(x)
    kept = [storage.parts(*pair) for pair in zip(leaves, FORMS, strict=True)]
    back = [storage.encoded(k, f, x.shape, x.dtype) for k, f in zip(kept, FORMS, strict=True)]

    @jax.jit
    def decoded(back):
        return [storage.decode(leaf, form, x.dtype) for leaf, form in zip(back, FORMS, strict=True)]

    return x, kept, decoded(back), expected, read


def test_weights_come_back_bit_for_bit_as_the_form_says(round_trips):
    _, _, found, expected, _ = round_trips
    for form, first, second in zip(FORMS, found, expected, strict=True):
        np.testing.assert_array_equal(first, second, str(form))


def test_bytes_are_those_of_the_parts(round_trips):
    x, kept, *_ = round_trips
    for form, parts in zip(FORMS, kept, strict=True):
        counted = storage.num_bytes({"x": x}, {"x": form})
        assert counted == sum(array.nbytes for array in parts.values()), form
    nonzero, whole = np.count_nonzero(x), Form(sparse=True, half=True)
    assert storage.num_bytes({"x": x}, {"x": whole}) == 2 * nonzero + -(-x.size // 8)


def test_training_reads_what_the_file_will_hold_and_zeros_stay(round_trips):
    x, _, _, expected, read = round_trips
    for form, values, (found, gradient) in zip(FORMS, expected, read, strict=True):
        np.testing.assert_array_equal(found, values, str(form))
        if form.sparse:
            np.testing.assert_array_equal(np.asarray(gradient)[x == 0], 0, str(form))
        assert np.count_nonzero(gradient) > x.size / 3


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


def test_forms_of_leaves_that_are_not_there_are_named():
    """A misspelt name trained, and counted, exact weights without a word."""
    params, forms = {"mlp": {"kernel": np.ones((4, 4))}}, {"mlp/kernels": Form(Scheme(4))}
    for use in (storage.as_stored, storage.num_bytes):
        with pytest.raises(ValueError, match=r"such as 'mlp/kernel', got 'mlp/kernels'"):
            use(params, forms)


def test_weights_that_outgrow_float16_in_training_are_its_largest_number_and_nan_stays():
    x, half = jnp.asarray([1e6, -jnp.inf, jnp.nan, 65504.0]), Form(half=True)
    read = storage.decode(storage.encode(x, half), half, jnp.float32)
    np.testing.assert_array_equal(read, [65504.0, -65504.0, np.nan, 65504.0])
    np.testing.assert_array_equal(storage.as_stored({"x": x}, {"x": half})["x"], read)


def test_gradients_of_weights_in_float16_are_not_rounded_to_it():
    half = {"x": Form(half=True)}
    x, slopes = (jnp.asarray(v, jnp.float32) for v in ([0.3, -2.0, 1e6], [1e-9, 1e6, 1.0]))
    read = jax.jit(lambda x: storage.as_stored({"x": x}, half)["x"])
    (gradient,) = jax.vjp(read, x)[1](slopes)
    np.testing.assert_array_equal(gradient, slopes.at[2].set(0.0))
    np.testing.assert_array_equal(jax.jvp(read, (x,), (slopes,))[1], gradient)
