"""Causal sweeps in any unit of energy, and of sites of all sizes in one chain: against mpmath, and
against chains multiplied by powers of two.
"""

import chex
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from vfejax.spectral.gates import tridiagonal_sweep
from vfejax.spectral.recurrence import ASSOCIATIVE, SEQUENTIAL, moebius_recurrence
from vfejax.spectral.streaming import streaming_init, streaming_step

N, CHANNELS = 12, 2
SCANS = [
    pytest.param(SEQUENTIAL, id="sequential"),
    pytest.param(ASSOCIATIVE, id="associative", marks=pytest.mark.slow),
]
each_algorithm = pytest.mark.parametrize("scans", SCANS)
# A compiler that optimises rounds a product and a sum at once in some programs and not in others.
AS_USERS = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
# Binary exponents of units: 1e-30 to 1e30 in single precision, 1e-300 to 1e300 in double.
UNITS = {"complex64": [-100, -60, 0, 40, 100], "complex128": [-1000, -400, 0, 300, 1000]}


def _system(rng, dtype, n=N):
    """d, b, c and x of one chain whose pivots are of order 1."""
    d, b, c = rng.standard_normal((3, n)) + 1j * rng.standard_normal((3, n))
    x = rng.standard_normal((n, CHANNELS)) + 1j * rng.standard_normal((n, CHANNELS))
    return tuple(row.astype(dtype) for row in (3 * d / np.abs(d), b, c, x))


def _units(dtype):
    return np.ldexp(1.0, np.array(UNITS[dtype])).astype(np.finfo(dtype).dtype)


def _exact(d, b, c, x):
    """gL and y by forty digits."""
    mpmath.mp.dps = 40
    left, y, rows = mpmath.mpc(0), [mpmath.mpc(0)] * CHANNELS, []
    for di, bi, ci, xi in zip(d, b, c, x, strict=True):
        di, bi, ci = (mpmath.mpc(complex(v)) for v in (di, bi, ci))
        left = 1 / (di - bi * ci * left)
        y = [left * (mpmath.mpc(complex(v)) - ci * before) for v, before in zip(xi, y, strict=True)]
        rows.append((left, y))
    return [row[0] for row in rows], [row[1] for row in rows]


def _relative_error(found, exact):
    return max(
        float(abs(mpmath.mpc(complex(got)) / want - 1))
        for got, want in zip(np.ravel(found), np.ravel(np.asarray(exact, object)), strict=True)
    )


@pytest.mark.parametrize(
    ("scans", "dtype"),
    [
        pytest.param(SEQUENTIAL, "complex64", id="sequential-single"),
        pytest.param(ASSOCIATIVE, "complex64", id="associative-single"),
        pytest.param(SEQUENTIAL, "complex128", id="sequential-double"),
        pytest.param(ASSOCIATIVE, "complex128", id="associative-double", marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_scale_with_the_unit(scans, dtype, rng):
    """``gL(s T) = gL(T) / s`` and ``y(s T, s x) = y(T, x)``; of a loss without a unit the gradients
    by d, b and c are divided by s. One chain of each unit side by side.
    """
    system, unit = _system(rng, dtype), _units(dtype)
    rows = [unit[:, *(None,) * row.ndim] * row[None] for row in system]

    @jax.jit
    def run(unit, *rows):
        def loss(*rows):
            left, y = tridiagonal_sweep(*rows, scans=scans)
            # Each factor of the unit alone, as it would overflow with another.
            scaled = jax.lax.complex(unit * left.real, unit * left.imag)
            return jnp.sum(scaled.imag) + jnp.sum(jnp.abs(y) ** 2), (scaled, y)

        slopes, found = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*rows)
        return found, [
            jax.lax.complex(s * x.real, s * x.imag)
            for x in slopes
            for s in [unit if x.ndim == 2 else unit[..., None]]
        ]

    (left, y), slopes = jax.tree.map(np.asarray, run(unit[:, None], *rows))
    rounding = np.finfo(dtype).eps
    exact = _exact(*system)
    # Ten steps of condition below 10.
    assert _relative_error(left[2], exact[0]) < 100 * rounding
    assert _relative_error(y[2], exact[1]) < 1000 * rounding
    ordinary = UNITS[dtype].index(0)
    for found in (left, y, *slopes):
        assert np.max(np.abs(found[ordinary])) > 0.01
        for i in range(len(unit)):
            # The associative algorithm sweeps units that are no powers of four in twice one.
            chex.assert_trees_all_close(
                found[i], found[ordinary], rtol=1000 * rounding, atol=100 * rounding
            )
    if scans is SEQUENTIAL:
        for i in range(len(unit)):
            np.testing.assert_array_equal(left[i], left[ordinary])


@each_algorithm
def test_sites_of_all_sizes_in_one_chain(scans, rng):
    """``T = S T_0 S`` with S from 1e-15 to 1e15 in any order, and one site of 1e-30 that ordinary
    ones couple to: against forty digits, by every site alone, with the derivatives of log gL.
    """
    d, b, c, x = _system(rng, "complex128", 24)
    size = np.exp2(rng.integers(-50, 51, 24))
    before = np.concatenate([[1.0], size[:-1]])
    mixed = (size**2 * d, size * before * b, size * before * c, size[:, None] * x)
    lone = (np.where(np.arange(24) == 5, 1e-30, d), b, c, x)
    chains = [tuple(np.stack(rows).astype("complex64") for rows in zip(mixed, lone, strict=True))][
        0
    ]

    @jax.jit
    def run(d, b, c, x):
        def logarithms(d, b, c):
            left, y = tridiagonal_sweep(d, b, c, x, scans=scans)
            return left, y

        found, pull = jax.vjp(logarithms, d, b, c)
        weights = jnp.where(found[0] == 0, 0, 1 / found[0])
        return found, pull((weights, jnp.zeros_like(found[1])))[0]

    (left, y), slope = jax.tree.map(np.asarray, run(*chains))
    rounding = np.finfo("complex64").eps
    for i in range(2):
        rows = [row[i].astype("complex128") for row in chains]
        exact_left, exact_y = _exact(*rows)
        assert _relative_error(left[i], exact_left) < 300 * rounding
        # y of a site adds what comes of all before it.
        assert _relative_error(y[i], exact_y) < 3000 * rounding
        # d log gL_j / dd_j = -gL_j of the last site, which nothing else feels.
        assert _relative_error(slope[i, -1:], [-exact_left[-1]]) < 300 * rounding


@each_algorithm
def test_what_comes_later_changes_no_bit(scans, dtype, rng):
    """Later sites of other units, poles, overflow and NaN, which let a chain be swept again."""
    complex_ = np.result_type(dtype, "complex64")
    run = jax.jit(
        lambda *rows: tuple(tridiagonal_sweep(*rows, scans=scans)), compiler_options=AS_USERS
    )
    bare = jax.jit(lambda d, k: moebius_recurrence(d, k, scans=scans), compiler_options=AS_USERS)
    rows = [np.stack([row] * 3) for row in _system(rng, complex_, 30)]
    # Real rows and small early pivots, too: nearly poles, but none.
    real = [np.stack([rng.standard_normal(30)] * 3).astype(dtype) for _ in range(2)]
    whole, alone = run(*rows), np.asarray(bare(real[0], real[1][:, 1:]))
    tiny = float(np.finfo(dtype).tiny)
    for size in (0.0, tiny * 1e6, 1e-6 / tiny, np.nan):
        changed = [row.copy() for row in rows]
        changed[0][1, 20:], changed[1][1, 20] = size, 0.0
        again = run(*changed)
        for old, new in zip(*jax.tree.map(np.asarray, (whole, again)), strict=True):
            np.testing.assert_array_equal(new[1, :20], old[1, :20])
            np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
            assert np.any(new[1, 20] != old[1, 20])
        d, k = (row.copy() for row in real)
        d[1, 20:], k[1, 20] = size, 0.0
        found = np.asarray(bare(d, k[:, 1:]))
        np.testing.assert_array_equal(found[1, :20], alone[1, :20])
        np.testing.assert_array_equal(found[[0, 2]], alone[[0, 2]])
        assert np.isnan(found[1, 20:]).all() == np.isnan(size)


@each_algorithm
def test_poles_are_passed_in_every_unit(scans):
    """Sites of energy 0 between couplings of one size: every other fraction has a pole, and what
    follows is right: ``gL_{i-1} gL_i = -1 / k``. Only the first site has no unit.
    """
    unit = np.exp2([-60.0, -30, 0, 30, 60])[:, None].astype("float32")
    zeros, hops = np.zeros((5, 7), "float32"), np.tile(unit, (1, 7))
    # The first site is of energy 1 unit, and the second such that its pivot vanishes.
    zeros[:, 0], zeros[:, 1] = unit[:, 0], unit[:, 0]
    x = np.tile(unit[..., None], (1, 7, 1))
    left, y = jax.tree.map(
        np.asarray,
        jax.jit(lambda *v: tuple(tridiagonal_sweep(*v, scans=scans)))(zeros, hops, hops, x),
    )
    ratio = left.real * unit
    np.testing.assert_allclose(ratio[:, 0], 1.0, rtol=1e-6)
    assert np.all(np.abs(ratio[:, 1::2]) > 2.0**30)
    np.testing.assert_allclose(ratio[:, 1:-1] * ratio[:, 2:], -1, rtol=1e-6)
    # The exact y after poles: of the leading block of odd length.
    for n in (3, 5, 7):
        matrix = np.diag([1.0, 1.0] + [0.0] * (n - 2))
        matrix += np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
        exact = np.linalg.solve(matrix, np.ones(n))[-1]
        np.testing.assert_allclose(y[:, n - 1, 0].real, exact, rtol=0, atol=1e-5)


@each_algorithm
def test_pivots_beyond_all_numbers_leave_what_follows_right(scans):
    """After a pole of 2^100 the next pivot is 2^140, its reciprocal 0, and then sites of all sizes
    follow.
    """
    d = np.exp2(np.array([100.0, 100, 100, 100, 20, -60])).astype("float32")
    b = np.array([0, 2.0**100, 2.0**100, 2.0**99, 2.0**59, 2.0**-21], "float32")
    found = jax.jit(lambda *v: tridiagonal_sweep(*v, scans=scans).left)(
        d, b, b, np.ones((6, 1), "float32")
    )
    # gL of the third site is 0, so that the fourth begins anew.
    hops = np.append(0, b[4:])
    exact, _ = _exact(d[3:], hops, hops, np.zeros((3, CHANNELS)))
    assert _relative_error(np.asarray(found)[3:], exact) < 100 * np.finfo("float32").eps


def test_a_stream_goes_on_in_every_unit(rng):
    """Pieces and single steps, against the whole."""
    unit = _units("complex64")
    rows = [unit[:, *(None,) * row.ndim] * row[None] for row in _system(rng, "complex64")]

    @jax.jit
    def run(*rows):
        whole = tridiagonal_sweep(*rows)
        first = tridiagonal_sweep(*(row[:, :5] for row in rows))
        state = jax.tree.map(lambda entry: entry[:, -1], first)
        second = tridiagonal_sweep(*(row[:, 5:] for row in rows), state=state)
        state, steps = streaming_init((len(unit),), CHANNELS), []
        for i in range(N):
            d, b, c, x = (row[:, i] for row in rows)
            state = streaming_step(state, d, b, c, 0.0, x)
            steps.append(state)
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), first, second)
        return whole, joined, jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *steps)

    whole, joined, steps = run(*rows)
    for found in (joined, steps):
        error = np.abs(np.asarray(found.left) - whole.left) / np.abs(whole.left)
        assert np.max(error) < 300 * np.finfo("complex64").eps
        np.testing.assert_allclose(found.output, whole.output, rtol=1e-4, atol=1e-5)


@each_algorithm
def test_bare_fractions_have_any_unit_that_couplings_can_be_written_in(scans, rng):
    """``g(s d, s^2 k) = g(d, k) / s``, real, with gradients; k of 2^100 and of 2^-100."""
    unit = np.exp2(np.array([-50.0, -20, 0, 20, 50])).astype("float32")[:, None]
    d = (unit * (3 + rng.random(N))).astype("float32")
    k = (unit**2 * rng.standard_normal(N - 1)).astype("float32")

    @jax.jit
    def run(d, k):
        g, pull = jax.vjp(lambda *v: moebius_recurrence(*v, scans=scans), d, k)
        return g, pull(unit * jnp.ones_like(g))

    g, (by_d, by_k) = jax.tree.map(np.asarray, run(d, k))
    for found, power in ((g, 1), (by_d, 1), (by_k, 2)):
        one = found * unit**power
        # A unit that is no power of four is swept in twice one.
        np.testing.assert_allclose(one, np.tile(one[2], (5, 1)), rtol=1e-5)
    chex.assert_tree_all_finite((g, by_d, by_k))
