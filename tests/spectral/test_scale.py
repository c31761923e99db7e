"""A chain in another unit of energy has the resolvent of the chain over that unit, at every size
that floating-point numbers have.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_chain as dense

from vfejax.spectral import _scale
from vfejax.spectral._scale import exponents, inverse_unit, inverse_unit_of
from vfejax.spectral.recurrence import ASSOCIATIVE, PLATFORM
from vfejax.spectral.resolvent import left_resolvent_diagonal, resolvent_diagonal
from vfejax.spectral.streaming import streaming_init, streaming_step
from vfejax.spectral.tridiagonal import log_determinant, resolvent_matvec

N = 6
# Powers of ten; squares of the reciprocals of those in the middle are numbers, too.
POWERS = {"float32": [-36, -16, -13, 0, 15, 16, 36], "float64": [-300, -150, -30, 0, 100, 150, 300]}


def everything(scans):
    """Values of all forms, and gradients of the sums of the diagonal and of the solution."""

    @jax.jit
    def run(a, b, c, z, x):
        diagonal, pull = jax.vjp(lambda *v: resolvent_diagonal(*v, scans=scans), a, b, c, z)
        solved, pull_solved = jax.vjp(lambda *v: resolvent_matvec(*v, x, scans=scans), a, b, c, z)
        left = left_resolvent_diagonal(a, b, c, z, scans=scans)
        slopes = pull(jnp.ones_like(diagonal)), pull_solved(jnp.ones_like(solved))
        return (diagonal, left, solved[..., 0], log_determinant(a, b, c, z, scans=scans)), slopes

    return run


@pytest.mark.parametrize(
    ("scans", "dtype"),
    [
        pytest.param(PLATFORM, "float32", id="single"),
        pytest.param(PLATFORM, "float64", id="double"),
        pytest.param(ASSOCIATIVE, "float32", id="tree", marks=pytest.mark.slow),
    ],
)
def test_a_unit_of_energy_divides_the_resolvent_at_every_size(scans, dtype, rng):
    """Chains of all sizes side by side, one of them with two sites of energy 0 at the centre of its
    band, against dense inverses: to a hundred roundings, since 10^p is rounded and Im z is half the
    size of the entries.
    """
    powers, complex_ = POWERS[dtype], np.result_type(dtype, "complex64")
    tolerance = 100 * np.finfo(dtype).eps
    a, b, c, z = dense.chain(rng, N, hermitian=True)
    unit = 10.0 ** np.array(powers, float)
    chains = [(unit[:, None] * x).astype(dtype) for x in (a, b, c)]
    inputs = *chains, (unit * z).astype(complex_), np.ones((N, 1), dtype)
    values, slopes = jax.tree.map(np.asarray, everything(scans)(*inputs))
    exact = dense.resolvent(a, b, c, z)
    slope = -np.outer(exact.sum(0), exact.sum(1))
    expected = dense.diagonal(exact), dense.left(a, b, c, z), exact.sum(1)
    sums = (
        dense.adjoint(a, b, c, z, np.ones(N)),
        (*(np.diag(slope, k) for k in (0, 1, -1)), -np.trace(slope)),
    )
    for i, power in enumerate(powers):
        for got, want in zip(values, expected, strict=False):
            error = np.abs(got[i].astype(complex) * unit[i] - want)
            assert np.max(error) < tolerance * np.max(np.abs(want)), power
        logarithm = np.linalg.slogdet(dense.matrix(a, b, c, z))[1] + N * np.log(unit[i])
        assert abs(values[3][i].real - logarithm) < tolerance * abs(N * np.log(unit[i])) + tolerance
        if 2 * abs(power) > max(powers) - 3:
            continue
        for got, want in zip(jax.tree.leaves(slopes), jax.tree.leaves(sums), strict=True):
            found = got[i].astype(complex) * unit[i] ** 2
            want = want if np.iscomplexobj(got) else np.real(want)
            assert np.max(np.abs(found - want)) < 10 * tolerance * np.max(np.abs(want)), power


def test_poles_are_passed_at_every_size():
    """Equal sites at the centre of their band, where every other fraction has a pole."""
    unit = np.array([[1e-30], [1e-13], [1e15], [1e30]])
    zeros, hops = jnp.zeros((4, 6), jnp.float32), jnp.asarray(np.tile(unit, (1, 5)), jnp.float32)

    @jax.jit
    def run(a, b, x):
        return resolvent_matvec(a, b, b, 0.0, x)[..., 0], resolvent_diagonal(a, b, b, 0.0)

    found = run(zeros, hops, jnp.ones((6, 1), jnp.float32))
    solved, diagonal = (np.asarray(y, complex) * unit for y in found)
    exact = np.linalg.inv(np.diag(np.ones(5), 1) + np.diag(np.ones(5), -1)).sum(1)
    # Ten roundings of single precision.
    np.testing.assert_allclose(solved, np.tile(exact, (4, 1)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(diagonal, 0, rtol=0, atol=1e-6)


def test_parts_of_different_sizes_keep_what_they_had():
    """A few sites of huge energy, which cut a chain, do not set its unit, and neither do infinity
    and NaN; small parts beside large ones are right as far as their pivots are not poles.
    """
    a = np.float32([[1, 1e30, 1, np.nan], [1e-13, 1e7, 1e-13, np.inf], [0, 0, 0, 0]])
    hops = np.float32([[1.0] * 3, [1e-13] * 3, [0.0] * 3])
    z = np.array([0.5j, 0.5e-13j, 0j], "complex64")
    units = np.asarray(jax.jit(inverse_unit_of)(a, hops, hops, z))
    assert units[0] == 1.0
    assert units[1] > 2.0**7  # 1e-13 is no pole
    assert units[2] == 1.0  # of nothing
    a = np.array([1e-30, 1.0, 1e-10, 1e20])
    found = jax.jit(resolvent_diagonal)(a, np.zeros(3), np.zeros(3), 0.0)
    np.testing.assert_allclose(found, 1 / a, rtol=1e-15)


def test_a_chain_that_is_tiny_where_sizes_are_read_first_is_ordinary_where_it_is_not(rng):
    """Both ends and the middle of 64 sites are sites of 1e-30 without couplings."""
    a, b, c, _ = dense.chain(rng, 64, hermitian=True)
    tiny = np.isin(np.arange(64) // 8, (0, 3, 4, 7))
    b, c = (np.where(tiny[1:] | tiny[:-1], 0, x) for x in (b, c))
    chain = [x.astype("float32") for x in (np.where(tiny, 1e-30, 3 + a), b, c)]
    found = np.asarray(jax.jit(resolvent_diagonal)(*chain, np.float32(0)))
    exact = dense.diagonal(dense.resolvent(*chain, 0.0))
    assert np.all(found[tiny] == 2.0**40)  # poles beside the rest
    # A hundred roundings.
    np.testing.assert_allclose(found[~tiny], exact[~tiny], rtol=1e-5)


def test_a_later_site_changes_no_digit_of_the_left_form(rng):
    """The unit sees the whole chain and is a power of two."""
    a, b, c, z = dense.chain(rng, 8, hermitian=True, dtype="complex64")
    larger = a.copy()
    larger[7] *= 1e4
    larger_b = b.copy()
    larger_b[6] = 1e9
    run = jax.jit(left_resolvent_diagonal)
    size = jax.jit(lambda *chain: inverse_unit(exponents(*chain), np.float32))
    units = [size(*(x[None] for x in (a, y, c)), z[None]) for y in (b, larger_b)]
    assert np.asarray(units[0]) != np.asarray(units[1])
    before, after = run(a, b, c, z), run(larger, larger_b, c, z)
    np.testing.assert_array_equal(np.asarray(before)[:7], np.asarray(after)[:7])


def test_streams_have_a_unit_of_their_own(rng):
    a, b, c, z = dense.chain(rng, 4, hermitian=True, dtype="complex64")
    unit = np.float32(2.0**-90)
    step = jax.jit(streaming_step)
    state, small = (streaming_init((), 0) for _ in range(2))
    for i in range(4):
        site = a[i], b[i - 1], c[i - 1], z
        state = step(state, *site, np.zeros(0, np.float32))
        small = step(small, *(unit * x for x in site), np.zeros(0, np.float32))
    assert np.asarray(small.left) * unit == np.asarray(state.left)


@pytest.mark.parametrize("n", [8, 9, 11])
def test_sizes_of_whole_chains_are_the_same_read_in_blocks(n, rng, monkeypatch):
    a, b, c = (np.exp(20 * rng.normal(size=(2, k))) for k in (n, n - 1, n - 1))
    b[0, -1], a[1, 0] = np.inf, np.nan
    z = np.array([1e-20j, 1.0])
    at_once = _scale.exponents(a, b, c, z, whole=True)
    monkeypatch.setattr(_scale, "BLOCK", 4)
    in_blocks = jax.jit(lambda *chains: _scale.exponents(*chains, whole=True))(a, b, c, z)
    chex.assert_trees_all_equal(in_blocks, at_once)
