"""Sweeps through systems whose off-diagonals every site writes: dense solutions, their bounds,
masks, pieces.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.spectral.gates import (
    bounded_coupling,
    dominant_diagonal,
    gate_weight,
    polar_gate,
    tridiagonal_solve,
    tridiagonal_sweep,
)
from vfejax.spectral.recurrence import ASSOCIATIVE, SEQUENTIAL, linear_recurrence
from vfejax.spectral.streaming import StreamingState, streaming_step

N, CHANNELS = 6, 2
SCANS = {"sequential": SEQUENTIAL, "associative": ASSOCIATIVE}
SWEEP = jax.jit(tridiagonal_sweep)
each_algorithm = pytest.mark.parametrize("scans", SCANS.values(), ids=SCANS)


def _draw(rng, dtype, *shape):
    x = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return (x if np.dtype(dtype).kind == "c" else x.real).astype(dtype)


@jax.jit
def _bounded(decay, angle, *coupling):
    a, b = polar_gate(decay, angle), bounded_coupling(*coupling)
    return dominant_diagonal(b * a).astype(a.dtype), b, -a


def _system(rng, dtype, n=N, batch=()):
    """Diagonal, superdiagonal, subdiagonal and x within the bounds of the models."""
    complex_dtype = jnp.dtype("complex64" if dtype == "float32" else "complex128")
    polar = (rng.uniform(0.0, 2.0, (*batch, n)).astype(dtype) for _ in range(2))
    coupling = (_draw(rng, dtype, *batch, n) for _ in range(2))
    return *_bounded(*polar, *coupling), _draw(rng, complex_dtype, *batch, n, CHANNELS)


def _dense(d, b, c):
    """T of one sequence."""
    return jnp.diag(d) + jnp.diag(b[1:], 1) + jnp.diag(c[1:], -1)


def _dense_sweep(d, b, c, x):
    """gL and y of one sequence, from the inverse of every leading block."""
    matrix, order = _dense(d, b, c), jnp.arange(len(d))

    def last_row(i):
        inside = (order <= i)[:, None] & (order <= i)[None, :]
        return jnp.linalg.inv(jnp.where(inside, matrix, jnp.eye(len(d), dtype=d.dtype)))[i]

    rows = jax.lax.map(last_row, order)
    return jnp.diagonal(rows), rows @ x


def _tolerance(dtype):
    """Rounding of a few well-conditioned steps, and of a dense inverse."""
    return {"rtol": 200 * float(jnp.finfo(dtype).eps), "atol": 200 * float(jnp.finfo(dtype).eps)}


CLOSE = _tolerance("float64")


@each_algorithm
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
    plain = linear_recurrence(-c[:, None], x, axis=0)
    left, y = SWEEP(jnp.ones_like(b), 0 * b, c, x)
    chex.assert_trees_all_close(y, plain, **_tolerance("float32"))
    np.testing.assert_array_equal(left, 1)


def test_real_arguments_broadcast_and_get_real_gradients(rng):
    ones, gates = jnp.ones(N), jnp.asarray(rng.uniform(-1, 1, (3, 1, N)))
    x = jnp.asarray(rng.standard_normal((2, N, CHANNELS)))
    left, y = SWEEP(ones, 0.2 * ones, gates, x)
    chex.assert_shape(left, (3, 2, N))
    chex.assert_shape(y, (3, 2, N, CHANNELS))
    slope_fn = jax.grad(lambda *system: jnp.sum(jnp.abs(SWEEP(*system).output) ** 2), (0, 1, 2, 3))
    slopes = jax.jit(slope_fn)(ones, 0.2 * ones, gates, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(slopes, (ones, ones, gates, x))


def test_the_fraction_keeps_its_bounds_for_the_worst_couplings(dtype, rng):
    n = 2000
    largest = 0.25 * (1 - jnp.finfo(dtype).eps)
    ones, x = jnp.ones(n, dtype), jnp.zeros((n, 1), dtype)
    # Real positive couplings make every denominator as small as it can be.
    left = SWEEP(ones, largest * ones, ones, x).left
    assert 1.99 < jnp.abs(left).max() < 2
    couplings = bounded_coupling(*(100 * _draw(rng, dtype, 2, n)))
    for k in (jnp.full_like(couplings, largest), couplings):
        left = SWEEP(dominant_diagonal(k), k, jnp.ones_like(k), x).left
        assert jnp.abs(left).max() <= 1 + 10 * jnp.finfo(dtype).eps


def test_nothing_grows_along_a_long_sequence_of_open_gates(rng):
    n = 4000
    a = polar_gate(jnp.zeros(n), jnp.asarray(rng.uniform(-3, 3, n)))
    b = bounded_coupling(*(3 * _draw(rng, "float64", 2, n)))
    start = jnp.zeros((n, 1)).at[0].set(1.0)
    y = SWEEP(dominant_diagonal(b * a), b, -a, start).output
    assert np.all(np.abs(y) <= 1 + 1e-12)


def test_pieces_and_single_steps_go_on_where_the_last_one_ended(rng):
    system = _system(rng, "float64", batch=(2,))
    whole = SWEEP(*system)
    state, pieces = None, []
    for part in (slice(0, 2), slice(2, 3), slice(3, N)):
        d, b, c, x = (row[:, part] for row in system)
        piece = SWEEP(d, b, c, x, state=state)
        pieces.append(piece)
        state = jax.tree.map(lambda entry: entry[:, -1], piece)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *pieces)
    chex.assert_trees_all_close(joined, whole, **CLOSE)
    d, b, c, x = (row[:, -1] for row in system)
    before = jax.tree.map(lambda entry: entry[:, -2], whole)
    last = streaming_step(before, d, b, c, 0.0, x)
    chex.assert_trees_all_close(last, jax.tree.map(lambda entry: entry[:, -1], whole), **CLOSE)


MASKS = {
    "left": [0, 0, 1, 1, 1, 1],
    "right": [1, 1, 1, 0, 0, 0],
    "scattered": [0, 1, 0, 1, 1, 0],
    "none": [0, 0, 0, 0, 0, 0],
}


@each_algorithm
def test_a_padded_site_leaves_the_state_untouched_whatever_it_holds(scans, rng):
    system = _system(rng, "float64", batch=(len(MASKS),))
    mask = jnp.asarray(list(MASKS.values()), bool)
    bad = [jnp.where(mask.reshape(mask.shape + (1,) * (r.ndim - 2)), r, jnp.nan) for r in system]
    state = jax.tree.map(
        lambda entry: entry[:, -1], SWEEP(*_system(rng, "float64", batch=(len(MASKS),)))
    )

    @jax.jit
    def masked(*system):
        sweep = tridiagonal_sweep(*system, state=state, mask=mask, scans=scans)
        return jnp.sum(jnp.abs(sweep.output) ** 2), sweep

    slopes, sweep = jax.grad(masked, argnums=(0, 1, 2, 3), has_aux=True)(*bad)
    chex.assert_tree_all_finite((slopes, sweep))
    step = jax.jit(streaming_step)
    for i in range(N):
        d, b, c, x = (row[:, i] for row in system)
        after, keep = step(state, d, b, c, 0.0, x), mask[:, i]
        state = StreamingState(
            jnp.where(keep, after.left, state.left),
            jnp.where(keep[:, None], after.output, state.output),
        )
        chex.assert_trees_all_close((sweep.left[:, i], sweep.output[:, i]), tuple(state), **CLOSE)
    for slope in slopes:
        assert np.all(np.asarray(slope)[~np.asarray(mask)] == 0)


@pytest.mark.parametrize("mask", [None, [True, False, True, True, False, True]])
def test_two_sided_solution_is_the_dense_one_with_padding_cut_out(mask, dtype, rng):
    d, b, c, x = _system(rng, dtype)
    keep = np.ones(N, bool) if mask is None else np.asarray(mask)
    dense = _dense(d[keep], b[keep], c[keep])
    expected = jnp.zeros_like(x).at[np.flatnonzero(keep)].set(jnp.linalg.solve(dense, x[keep]))
    mask = None if mask is None else jnp.asarray(mask)
    got = jax.jit(tridiagonal_solve)(d, b, c, x, mask=mask)
    chex.assert_trees_all_close(got, expected, **_tolerance(dtype))


def test_later_sites_leave_earlier_ones_bit_identical(rng):
    system, others = (_system(rng, "float32", 33, (3,)) for _ in range(2))
    before = SWEEP(*system)
    pairs = zip(*jax.tree.map(np.asarray, (system, others)), strict=True)
    changed = [np.concatenate([row[:, :20], other[:, 20:]], axis=1) for row, other in pairs]
    after = SWEEP(*changed)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old[:, :20], new[:, :20])
        assert np.all(np.any((old != new)[:, 20:].reshape(3, 13, -1), axis=-1))


def test_gate_and_weight_share_the_variance_and_keep_their_edges(dtype):
    decay = jnp.asarray([1e-6, 1e-2, 1.0, 50.0], dtype)
    size = jnp.abs(polar_gate(decay, jnp.ones_like(decay)))
    np.testing.assert_allclose(size**2 + gate_weight(decay) ** 2, 1, rtol=8 * jnp.finfo(dtype).eps)
    exact = np.sqrt(-np.expm1(-2 * np.asarray(decay, np.float64)))
    np.testing.assert_allclose(gate_weight(decay), exact, rtol=8 * jnp.finfo(dtype).eps)
    assert jax.grad(gate_weight)(jnp.zeros((), dtype)) == 0
    assert np.isnan(gate_weight(jnp.asarray(np.nan, dtype)))


def test_couplings_keep_their_direction_and_their_bound(dtype, rng):
    w = np.asarray(_draw(rng, dtype, 2, 50)) * np.repeat([1e-6, 1.0, 1e3, 1e15, 1e30], 10)
    w = jnp.asarray(w, dtype)
    coupling = bounded_coupling(*w)
    exact = np.asarray(w[0], complex) + 1j * np.asarray(w[1])
    exact = 0.25 * exact / np.sqrt(1 + np.abs(exact) ** 2)
    np.testing.assert_allclose(coupling, exact, rtol=8 * jnp.finfo(dtype).eps)
    slope = jax.grad(lambda w: bounded_coupling(w, jnp.zeros_like(w)).real)(jnp.zeros((), dtype))
    assert slope == 0.25
    zero = jnp.zeros((), coupling.dtype)
    assert jax.grad(dominant_diagonal)(zero) == 0
    assert np.isnan(dominant_diagonal(zero + jnp.nan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones(N)}, r"x must be \[\.\.\., n, c\]"),
        ({"subdiagonal": jnp.ones(N - 1)}, r"subdiagonal must be \[\.\.\., 6\] for x \(6, 2\)"),
        ({"mask": jnp.ones(N)}, "mask must be boolean, got float64"),
        ({"diagonal": jnp.ones(N, jnp.float32)}, "precision"),
        ({"diagonal": jnp.ones((3, N)), "x": jnp.ones((2, N, 2))}, "leading axes must broadcast"),
        ({"state": StreamingState(jnp.zeros(2), jnp.zeros((2, 3)))}, "state must hold"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    ones = jnp.ones(N)
    arguments = {"diagonal": ones, "superdiagonal": ones, "subdiagonal": ones}
    with pytest.raises(ValueError, match=message):
        tridiagonal_sweep(**arguments | {"x": jnp.ones((N, CHANNELS))} | change)
