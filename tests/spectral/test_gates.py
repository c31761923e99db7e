"""Sweeps through systems whose off-diagonals every site writes: dense solutions, their bounds,
masks, pieces.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.precisions import single_by_default

from vfejax.spectral.gates import (
    bounded_coupling,
    dominant_diagonal,
    gate_weight,
    polar_gate,
    tridiagonal_solve,
    tridiagonal_sweep,
)
from vfejax.spectral.recurrence import ASSOCIATIVE, SEQUENTIAL, linear_recurrence
from vfejax.spectral.streaming import StreamingState, streaming_init, streaming_step

N, CHANNELS = 6, 2
SWEEP = jax.jit(tridiagonal_sweep)
sequential_by_default = pytest.mark.parametrize(
    "scans",
    [
        pytest.param(SEQUENTIAL, id="sequential"),
        pytest.param(ASSOCIATIVE, id="associative", marks=pytest.mark.slow),
    ],
)


def _draw(rng, dtype, *shape):
    x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return (x if np.dtype(dtype).kind == "c" else x.real).astype(dtype)


def _complex(dtype):
    return "complex64" if dtype == "float32" else "complex128"


def _system(rng, dtype, n=N, batch=()):
    """Diagonal, superdiagonal, subdiagonal and x within the bounds of the models."""
    decay, angle = rng.uniform(0.0, 2.0, (2, *batch, n))
    gates, w = np.exp(-decay + 1j * angle), _draw(rng, "complex128", *batch, n)
    b = 0.25 * w / np.sqrt(1 + np.abs(w) ** 2)
    x = _draw(rng, "complex128", *batch, n, CHANNELS)
    return tuple(part.astype(_complex(dtype)) for part in (1 + np.abs(b * gates), b, -gates, x))


def _dense_sweep(d, b, c, x):
    """gL and y of one sequence, from the inverse of every leading block."""
    matrix, order = jnp.diag(d) + jnp.diag(b[1:], 1) + jnp.diag(c[1:], -1), jnp.arange(len(d))

    def last_row(i):
        inside = (order <= i)[:, None] & (order <= i)[None, :]
        return jnp.linalg.inv(jnp.where(inside, matrix, jnp.eye(len(d), dtype=d.dtype)))[i]

    rows = jax.lax.map(last_row, order)
    return jnp.diagonal(rows), rows @ x


def _tolerance(dtype):
    """Rounding of a few well-conditioned steps, and of a dense inverse."""
    return {"rtol": 200 * float(jnp.finfo(dtype).eps), "atol": 200 * float(jnp.finfo(dtype).eps)}


CLOSE = _tolerance("float64")


@pytest.mark.parametrize(
    ("scans", "dtype"),
    [
        pytest.param(SEQUENTIAL, "float32", id="sequential-float32"),
        pytest.param(ASSOCIATIVE, "float64", id="associative-float64"),
        pytest.param(SEQUENTIAL, "float64", id="sequential-float64", marks=pytest.mark.slow),
        pytest.param(ASSOCIATIVE, "float32", id="associative-float32", marks=pytest.mark.slow),
    ],
)
def test_sweep_and_its_gradients_are_those_of_dense_inverses(scans, dtype, rng):
    system = _system(rng, dtype)
    weights = _draw(rng, "complex128", N), _draw(rng, "complex128", N, CHANNELS)

    def energy(sweep_fn):
        def value(*system):
            left, y = sweep_fn(*system)
            total = jnp.sum((weights[0].astype(left.dtype) * left).real)
            return total + jnp.sum(jnp.abs(y * weights[1].astype(y.dtype)) ** 2), (left, y)

        return jax.jit(jax.grad(value, argnums=(0, 1, 2, 3), has_aux=True))

    got = energy(lambda *system: tuple(tridiagonal_sweep(*system, scans=scans)))(*system)
    expected = energy(_dense_sweep)(*system)
    # Couplings of the first site have none to couple to: 0 on both sides.
    chex.assert_trees_all_close(got, expected, **_tolerance(dtype))
    chex.assert_trees_all_equal_dtypes(got, expected)


def test_without_couplings_forward_it_is_the_plain_gate(rng):
    _, b, c, x = _system(rng, "float32", 40)

    @jax.jit
    def both(b, c, x):
        return tridiagonal_sweep(b, 0 * b, c, x), linear_recurrence(-c[:, None], x, axis=0)

    (left, y), plain = both(np.ones_like(b), c, x)
    chex.assert_trees_all_close(y, plain, **_tolerance("float32"))
    np.testing.assert_array_equal(left, 1)


def test_real_arguments_broadcast_and_get_real_gradients(rng):
    ones, gates = np.ones(N), rng.uniform(-1, 1, (3, 1, N))
    x = rng.standard_normal((2, N, CHANNELS))

    def value(*system):
        left, y = tridiagonal_sweep(*system)
        return jnp.sum(jnp.abs(y) ** 2), (left, y)

    slope_fn = jax.jit(jax.grad(value, (0, 1, 2, 3), has_aux=True))
    slopes, (left, y) = slope_fn(ones, 0.2 * ones, gates, x)
    chex.assert_shape(left, (3, 2, N))
    chex.assert_shape(y, (3, 2, N, CHANNELS))
    chex.assert_trees_all_equal_shapes_and_dtypes(slopes, (ones, ones, gates, x))


# The bounds that the models take, in one program: a coupling and the diagonal that dominates it.
@jax.jit
def _bounded(w, gates):
    coupling = bounded_coupling(*w)
    return coupling, dominant_diagonal(coupling * gates).astype(gates.dtype)


LONG = 4000


@single_by_default
def test_the_fraction_keeps_its_bounds_for_the_worst_couplings(dtype, rng):
    largest = 0.25 * (1 - jnp.finfo(dtype).eps)
    couplings, _ = _bounded(100 * _draw(rng, dtype, 2, LONG), jnp.ones(LONG, _complex(dtype)))
    couplings = np.asarray(couplings)
    ones, x = np.ones_like(couplings), np.zeros_like(couplings)[:, None]
    worst = (largest * ones).astype(couplings.dtype)
    # Real positive couplings make every denominator as small as it can be.
    left = SWEEP(ones, worst, ones, x).left
    assert 1.99 < np.abs(left).max() < 2
    for k in (worst, couplings):
        left = SWEEP((1 + np.abs(k)).astype(k.dtype), k, ones, x).left
        assert np.abs(left).max() <= 1 + 10 * jnp.finfo(dtype).eps


def test_nothing_grows_along_a_long_sequence_of_open_gates(rng):
    a = np.exp(1j * rng.uniform(-3, 3, LONG))
    b, d = _bounded(3 * _draw(rng, "float64", 2, LONG), a)
    start = np.zeros((LONG, 1), complex)
    start[0] = 1
    y = SWEEP(d, b, -a, start).output
    assert np.all(np.abs(y) <= 1 + 1e-12)


def test_pieces_and_single_steps_go_on_where_the_last_one_ended(rng):
    system = _system(rng, "float64", batch=(2,))

    @jax.jit
    def run(*system):
        whole = tridiagonal_sweep(*system)
        state, pieces = None, []
        for part in (slice(0, 2), slice(2, 3), slice(3, N)):
            d, b, c, x = (row[:, part] for row in system)
            pieces.append(tridiagonal_sweep(d, b, c, x, state=state))
            state = jax.tree.map(lambda entry: entry[:, -1], pieces[-1])
        d, b, c, x = (row[:, -1] for row in system)
        before = jax.tree.map(lambda entry: entry[:, -2], whole)
        return whole, pieces, streaming_step(before, d, b, c, 0.0, x)

    whole, pieces, last = run(*system)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *pieces)
    chex.assert_trees_all_close(joined, whole, **CLOSE)
    chex.assert_trees_all_close(last, jax.tree.map(lambda entry: entry[:, -1], whole), **CLOSE)


MASKS = {
    "left": [0, 0, 1, 1, 1, 1],
    "right": [1, 1, 1, 0, 0, 0],
    "scattered": [0, 1, 0, 1, 1, 0],
    "none": [0, 0, 0, 0, 0, 0],
}


@sequential_by_default
def test_a_padded_site_leaves_the_state_untouched_whatever_it_holds(scans, rng):
    system = _system(rng, "float64", batch=(len(MASKS),))
    mask = np.asarray(list(MASKS.values()), bool)
    bad = [np.where(mask.reshape(mask.shape + (1,) * (r.ndim - 2)), r, np.nan) for r in system]
    left, output = (_draw(rng, "complex128", len(MASKS), *shape) for shape in ((), (CHANNELS,)))

    def masked(*system):
        state = StreamingState(jnp.asarray(left), jnp.asarray(output))
        sweep = tridiagonal_sweep(*system, state=state, mask=jnp.asarray(mask), scans=scans)
        return jnp.sum(jnp.abs(sweep.output) ** 2), sweep

    slopes, sweep = jax.jit(jax.grad(masked, argnums=(0, 1, 2, 3), has_aux=True))(*bad)
    chex.assert_tree_all_finite((slopes, sweep))
    for i in range(N):
        d, b, c, x = (row[:, i] for row in system)
        after, keep = 1 / (d - b * c * left), mask[:, i]
        output = np.where(keep[:, None], after[:, None] * (x - c[:, None] * output), output)
        left = np.where(keep, after, left)
        chex.assert_trees_all_close((sweep.left[:, i], sweep.output[:, i]), (left, output), **CLOSE)
    for slope in slopes:
        assert np.all(np.asarray(slope)[~mask] == 0)


SCATTERED = np.array([True, False, True, True, False, True])


@pytest.mark.parametrize(
    ("mask", "dtype"),
    [
        pytest.param(None, "float32", id="None-float32"),
        pytest.param(SCATTERED, "float64", id="mask-float64"),
        pytest.param(None, "float64", id="None-float64", marks=pytest.mark.slow),
        pytest.param(SCATTERED, "float32", id="mask-float32", marks=pytest.mark.slow),
    ],
)
def test_two_sided_solution_is_the_dense_one_with_padding_cut_out(mask, dtype, rng):
    d, b, c, x = _system(rng, dtype)
    keep = np.ones(N, bool) if mask is None else mask
    dense = np.diag(d[keep]) + np.diag(b[keep][1:], 1) + np.diag(c[keep][1:], -1)
    expected = np.zeros_like(x)
    expected[keep] = np.linalg.solve(dense, x[keep])
    got = jax.jit(tridiagonal_solve)(d, b, c, x, mask=mask)
    chex.assert_trees_all_close(got, expected, **_tolerance(dtype))


def test_later_sites_leave_earlier_ones_bit_identical(rng):
    system, others = (_system(rng, "float32", 33, (3,)) for _ in range(2))
    before = SWEEP(*system)
    pairs = zip(system, others, strict=True)
    changed = [np.concatenate([row[:, :20], other[:, 20:]], axis=1) for row, other in pairs]
    after = SWEEP(*changed)
    for old, new in zip(*jax.tree.map(np.asarray, (before, after)), strict=True):
        np.testing.assert_array_equal(old[:, :20], new[:, :20])
        assert np.all(np.any((old != new)[:, 20:].reshape(3, 13, -1), axis=-1))


def test_gate_and_weight_share_the_variance_and_keep_their_edges(dtype):
    @jax.jit
    def run(decay):
        slope = jax.grad(gate_weight)(jnp.zeros((), decay.dtype))
        return polar_gate(decay, jnp.ones_like(decay)), gate_weight(decay), slope

    decay = np.asarray([1e-6, 1e-2, 1.0, 50.0, np.nan], dtype)
    gate, weight, slope = jax.tree.map(np.asarray, run(decay))
    eps = jnp.finfo(dtype).eps
    np.testing.assert_allclose(np.abs(gate[:4]) ** 2 + weight[:4] ** 2, 1, rtol=8 * eps)
    exact = np.sqrt(-np.expm1(-2 * np.asarray(decay, np.float64)))
    np.testing.assert_allclose(weight[:4], exact[:4], rtol=8 * eps)
    assert slope == 0
    assert np.isnan(weight[4])


def test_couplings_keep_their_direction_and_their_bound(dtype, rng):
    @jax.jit
    def run(w, couplings):
        zero = jnp.zeros((), dtype)
        slope = jax.grad(lambda w: bounded_coupling(w, jnp.zeros_like(w)).real)(zero)
        diagonal = dominant_diagonal(couplings)
        return bounded_coupling(*w), slope, diagonal, jax.grad(dominant_diagonal)(couplings[0])

    w = _draw(rng, dtype, 2, 50) * np.repeat([1e-6, 1.0, 1e3, 1e15, 1e30], 10)
    w = w.astype(dtype)
    couplings = np.array([0, 3 + 4j, np.nan], _complex(dtype))
    coupling, slope, diagonal, slope_of_diagonal = run(w, couplings)
    exact = w[0] + 1j * w[1].astype("float64")
    exact = 0.25 * exact / np.sqrt(1 + np.abs(exact) ** 2)
    np.testing.assert_allclose(coupling, exact, rtol=8 * jnp.finfo(dtype).eps)
    assert slope == 0.25
    np.testing.assert_array_equal(diagonal, [1, 6, np.nan])
    assert slope_of_diagonal == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones(N)}, r"x must be \[\.\.\., n, c\]"),
        ({"subdiagonal": jnp.ones(N - 1)}, r"subdiagonal must be \[\.\.\., 6\] for x \(6, 2\)"),
        ({"mask": jnp.ones(N)}, "mask must be boolean, got float64"),
        ({"diagonal": jnp.ones(N, jnp.float32)}, "precision"),
        ({"diagonal": jnp.ones((3, N)), "x": jnp.ones((2, N, 2))}, "leading axes must broadcast"),
        ({"state": StreamingState(jnp.zeros(2), jnp.zeros((2, 3)))}, "state must hold"),
        ({"state": streaming_init((), CHANNELS)}, r"state must be of complex128, .* got complex64"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    ones = jnp.ones(N)
    arguments = {"diagonal": ones, "superdiagonal": ones, "subdiagonal": ones}
    with pytest.raises(ValueError, match=message):
        tridiagonal_sweep(**arguments | {"x": jnp.ones((N, CHANNELS))} | change)
