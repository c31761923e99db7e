"""Linear and continued-fraction recurrences: each algorithm against a Python loop, and their
adjoints.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vfejax.spectral.recurrence import (
    ASSOCIATIVE,
    PLATFORM,
    SEQUENTIAL,
    linear_recurrence,
    moebius_recurrence,
    reciprocal,
)

# A new algorithm joins by one line. Tests without this parameter run the default, PLATFORM.
SCANS = [pytest.param(SEQUENTIAL, id="sequential"), pytest.param(ASSOCIATIVE, id="associative")]
each_algorithm = pytest.mark.parametrize("scans", SCANS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "complex128"])


def draw(rng, dtype, *shape):
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else x).astype(dtype)


def loop(gates, inputs, initial=None, reverse=False):
    """The definition, along axis 0, in double precision."""
    double = np.complex128 if np.iscomplexobj(inputs) else np.float64
    y = np.zeros(inputs.shape[1:], double) if initial is None else initial.astype(double)
    out = np.zeros(inputs.shape, double)
    for i in range(len(inputs))[:: -1 if reverse else 1]:
        out[i] = y = gates[i].astype(double) * y + inputs[i]
    return out


def tolerance(dtype, n=1):
    """Rounding of n steps of a recurrence of condition near 1, with room for products in another
    order.
    """
    return 50 * np.sqrt(n) * np.finfo(dtype).eps


@each_algorithm
@each_dtype
@pytest.mark.parametrize("reverse", [False, True])
def test_linear_equals_the_loop(scans, dtype, reverse, rng):
    gates, inputs = 0.7 * draw(rng, dtype, 6, 2, 1), draw(rng, dtype, 6, 2, 3)
    initial = draw(rng, dtype, 2, 3)
    run = jax.jit(lambda *arrays: linear_recurrence(*arrays, reverse, axis=0, scans=scans))
    y = run(gates, inputs, initial)
    chex.assert_type(y, dtype)
    np.testing.assert_allclose(
        y, loop(gates, inputs, initial, reverse), rtol=0, atol=tolerance(dtype) * 10
    )


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_axis_is_the_sequence_axis(axis, rng):
    gates, inputs = draw(rng, "float64", 3, 3), draw(rng, "float64", 3, 3)
    expected = np.moveaxis(loop(np.moveaxis(gates, axis, 0), np.moveaxis(inputs, axis, 0)), 0, axis)
    # The sequence axis is last unless told: the call without the argument is part of the claim.
    options = {} if axis == -1 else {"axis": axis}
    run = jax.jit(lambda gates, inputs: linear_recurrence(gates, inputs, **options))
    np.testing.assert_allclose(run(gates, inputs), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("reverse", "dtype", "scans"),
    [
        pytest.param(False, "complex128", SEQUENTIAL, id="sequential"),
        pytest.param(True, "float64", ASSOCIATIVE, id="associative-reverse"),
        pytest.param(True, "float64", SEQUENTIAL, id="sequential-reverse", marks=pytest.mark.slow),
        pytest.param(False, "complex128", ASSOCIATIVE, id="associative", marks=pytest.mark.slow),
    ],
)
def test_linear_derivatives(scans, dtype, reverse, rng):
    gates, inputs, initial = (jnp.asarray(draw(rng, dtype, *s)) for s in ((5, 1), (5, 2), (2,)))

    @jax.jit
    def run(gates, inputs, initial):
        return linear_recurrence(gates, inputs, initial, reverse, axis=0, scans=scans)

    check_grads(run, (gates, inputs, initial), order=1, modes=["fwd", "rev"])


def test_linear_second_derivatives(rng):
    gates, inputs = (jnp.asarray(draw(rng, "float64", 4)) for _ in range(2))
    check_grads(jax.jit(linear_recurrence), (gates, inputs), order=2, modes=["rev"])


@each_algorithm
@each_dtype
def test_moebius_equals_the_loop(scans, dtype, rng):
    d, k = 3.0 + draw(rng, dtype, 7, 2), draw(rng, dtype, 6, 2)
    d = d.astype(dtype)
    expected, g = [], 0.0
    for i in range(7):
        g = 1.0 / (d[i].astype("complex128") - (k[i - 1] * g if i else 0.0))
        expected.append(g)
    g = jax.jit(lambda d, k: moebius_recurrence(d, k, axis=0, scans=scans))(d, k)
    chex.assert_type(g, dtype)
    np.testing.assert_allclose(g, expected, rtol=tolerance(dtype) * 10)


@pytest.mark.parametrize(
    "scans",
    [
        pytest.param(SEQUENTIAL, id="sequential"),
        pytest.param(ASSOCIATIVE, id="associative", marks=pytest.mark.slow),
    ],
)
def test_moebius_derivatives(scans, rng):
    d, k = (jnp.asarray(draw(rng, "complex128", *s)) for s in ((2, 5), (2, 4)))

    @jax.jit
    def run(d, k):
        return moebius_recurrence(d + 4.0, k, scans=scans)

    check_grads(run, (d, k), order=1, modes=["fwd", "rev"])


def test_moebius_second_derivatives(rng):
    d, k = (jnp.asarray(draw(rng, "float64", n)) for n in (4, 3))
    check_grads(
        jax.jit(lambda d, k: moebius_recurrence(d + 5.0, k)), (d, k), order=2, modes=["rev"]
    )


def test_empty_and_single_sequences():
    @jax.jit
    def run(empty, one):
        return (
            linear_recurrence(empty, empty, jnp.ones(2), axis=0),
            linear_recurrence(one, one),
            moebius_recurrence(2.0 * one, jnp.zeros(0)),
        )

    nothing, linear, moebius = run(np.zeros((0, 2)), np.ones(1))
    chex.assert_shape(nothing, (0, 2))
    np.testing.assert_array_equal(linear, [1])
    np.testing.assert_array_equal(moebius, [0.5])


def test_real_continued_fraction_passes_a_pole():
    g = jax.jit(moebius_recurrence)(np.array([0.0, 3.0, 2.0]), np.ones(2))
    np.testing.assert_allclose(g, [2.0**100, 0.0, 0.5], rtol=1e-15, atol=1e-15)


def test_gates_that_overflow():
    """The stated limit of the associative algorithm, which multiplies gates."""
    gates, inputs = np.full(4, 1e30, "float32"), np.zeros(4, "float32")
    sequential, associative = jax.jit(
        lambda *arrays: [linear_recurrence(*arrays, scans=s) for s in (SEQUENTIAL, ASSOCIATIVE)]
    )(gates, inputs)
    assert not np.any(sequential)
    assert np.isnan(associative[-1])


@each_algorithm
def test_growing_products_stay_finite(scans):
    """Determinants of this chain reach 10^127, past complex64; ratios, and normalised matrices,
    stay of order 1.
    """
    d, k = np.full(128, 10.0, "complex64"), np.full(127, 1.0, "complex64")
    g = jax.jit(lambda d, k: moebius_recurrence(d, k, scans=scans))(d, k)
    np.testing.assert_allclose(g[-1], 5.0 - np.sqrt(24.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("end", ["low", "middle", "high"])
def test_reciprocal_range(dtype, end, rng):
    """Within the stated range the relative error is a few roundings."""
    info = np.finfo(dtype)
    size = {"low": np.sqrt(info.tiny / info.eps), "middle": 1.0, "high": 0.5 * np.sqrt(info.max)}[
        end
    ]
    w = np.exp(1j * rng.uniform(-np.pi, np.pi, 1000)).astype(dtype) * size
    product = np.asarray(jax.jit(reciprocal)(w)).astype("clongdouble") * w.astype("clongdouble")
    chex.assert_type(w, dtype)
    assert np.max(np.abs(product - 1)) < 6 * info.eps


def test_platform_lowers_to_one_algorithm():
    """On a CPU the function is the sequential loop, elsewhere a tree."""
    d, k = jnp.ones(8), jnp.zeros(7)
    lowered = jax.jit(lambda d, k: moebius_recurrence(d, k, scans=PLATFORM)).trace(d, k)
    on_cpu = lowered.lower(lowering_platforms=("cpu",)).as_text()
    on_gpu = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in on_cpu
    # Exponents of chains in other units are estimated in turn, and nothing else is.
    loops = [line for line in on_gpu.splitlines() if "stablehlo.while" in line]
    assert not any("f64" in line for line in loops), loops


@pytest.mark.parametrize(
    ("gates", "inputs", "options", "message"),
    [
        (np.ones(3), np.ones((3, 2)), {}, "gates must have the rank"),
        (np.ones(3), np.ones(4), {}, "gates must have the rank"),
        (np.ones((2, 3)), np.ones((4, 3)), {}, "gates must broadcast"),
        (np.ones(3), np.ones(3, "float32"), {}, "gates must have the dtype"),
        (
            np.ones((2, 3)),
            np.ones((2, 3)),
            {"initial": np.ones(3)},
            r"initial must be .* \(2,\), got \(3,\)",
        ),
        (np.ones(3), np.ones(3), {"initial": np.ones((), complex)}, "initial must have the dtype"),
        (np.ones(3), [1.0, 1.0, 1.0], {}, "inputs must be an array, got list"),
        (np.ones(3, int), np.ones(3, int), {}, "gates must be real or complex floating"),
    ],
)
def test_linear_refuses(gates, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        linear_recurrence(gates, inputs, **options)


@pytest.mark.parametrize(
    ("d", "k", "message"),
    [
        (np.ones(3), np.ones(3), "coupling must be diagonal"),
        (np.ones((2, 3)), np.ones(2), "coupling must be diagonal"),
        (np.ones(0), np.ones(0), "n >= 1"),
        (np.ones(3), np.ones(2, complex), "coupling must have the dtype"),
        (np.ones(3), 1.0, "coupling must be an array, got float"),
    ],
)
def test_moebius_refuses(d, k, message):
    with pytest.raises(ValueError, match=message):
        moebius_recurrence(d, k)


@pytest.mark.parametrize("scans", [SEQUENTIAL, ASSOCIATIVE])
def test_couplings_of_zero_and_huge_pivots_forget_what_came_before(scans):
    """A pole before a coupling of 0, and pivots whose reciprocals count as 0 in float32."""
    d, k = np.float32([0, 2, 3e38, 2, 1e38, 0.5]), np.float32([0, 1, 1, 1, 1])
    found = jax.jit(lambda d, k: moebius_recurrence(d, k, scans=scans))(d + 0j, k)
    # Products of powers of two, scaled by two roots of each entry.
    rounding = 8 * np.finfo(np.float32).eps
    np.testing.assert_allclose(found, [2.0**40, 0.5, 0, 0.5, 0, 2], rtol=rounding, atol=rounding)
