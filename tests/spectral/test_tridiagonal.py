"""Causal sweep, solve, determinant and density of states against dense linear algebra and closed
forms; streaming.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense_chain as dense
from helpers.precisions import single_by_default
from jax.test_util import check_grads

from vfejax.spectral.recurrence import ASSOCIATIVE, PLATFORM, SEQUENTIAL
from vfejax.spectral.resolvent import left_resolvent_diagonal
from vfejax.spectral.streaming import streaming_init, streaming_step
from vfejax.spectral.tridiagonal import (
    causal_sweep,
    determinant,
    log_determinant,
    resolvent_matvec,
    spectral_density,
)

SCANS = [pytest.param(SEQUENTIAL, id="sequential"), pytest.param(ASSOCIATIVE, id="associative")]
each_algorithm = pytest.mark.parametrize("scans", SCANS)
# Elimination of well-conditioned systems of 20 sites: some hundred roundings.
TOLERANCE = {"complex64": 1e-5, "complex128": 1e-13}

solve = {
    scans: jax.jit(partial(resolvent_matvec, scans=scans))
    for scans in (SEQUENTIAL, ASSOCIATIVE, PLATFORM)
}
sweep = {
    scans: jax.jit(partial(causal_sweep, scans=scans))
    for scans in (SEQUENTIAL, ASSOCIATIVE, PLATFORM)
}
pivots = jax.jit(left_resolvent_diagonal)
log_det = jax.jit(log_determinant)


def vectors(rng, dtype, *shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize(
    ("scans", "dtype"),
    [
        pytest.param(SEQUENTIAL, "complex64", id="sequential-complex64"),
        pytest.param(SEQUENTIAL, "complex128", id="sequential-complex128"),
        pytest.param(ASSOCIATIVE, "complex64", id="associative-complex64"),
    ],
)
def test_solve_and_sweep_against_dense(scans, dtype, rng):
    chain, x = dense.chain(rng, 20, batch=(2,), dtype=dtype), vectors(rng, dtype, 2, 20, 3)
    solved = solve[scans](*chain, x)
    swept = sweep[scans](pivots(*chain), chain[2], x)
    chex.assert_type([solved, swept], dtype)
    expected = dense.resolvent(*chain) @ x
    np.testing.assert_allclose(
        solved, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max()
    )
    # y_i is the last unknown of the system cut off after site i.
    matrix = dense.matrix(*chain)
    cut = [np.linalg.solve(matrix[:, : i + 1, : i + 1], x[:, : i + 1])[:, i] for i in range(20)]
    np.testing.assert_allclose(
        swept, np.stack(cut, 1), rtol=0, atol=TOLERANCE[dtype] * np.abs(cut).max()
    )


def test_solve_of_a_long_chain_has_a_small_residual(rng):
    """n = 2000, where determinants overflow: ``(T - z) y - x`` is a few roundings of what it
    sums.
    """
    a, b, c, z = dense.chain(rng, 2000, hermitian=True, dtype="complex64")
    x = vectors(rng, "complex64", 2000, 2)
    y = np.asarray(solve[PLATFORM](a, b, c, z, x), np.complex128)
    residual = (a.astype("f8") - np.complex128(z))[:, None] * y - x
    residual[:-1] += b[:, None] * y[1:]
    residual[1:] += c[:, None] * y[:-1]
    assert np.abs(residual).max() < 1e-5 * np.abs(y).max()


@single_by_default
def test_sweep_broadcasts_and_takes_real_input(dtype, rng):
    z = np.asarray(rng.standard_normal(2) + 1j, np.result_type(dtype, "complex64"))
    a, b, c = (rng.standard_normal(s).astype(dtype) for s in ((3, 1, 5), (2, 4), (2, 4)))
    x = rng.standard_normal((3, 1, 5, 2)).astype(dtype)
    left = np.asarray(pivots(a, b, c, z))
    found = np.asarray(sweep[PLATFORM](left, c, x))
    chex.assert_shape(found, (3, 2, 5, 2))
    chex.assert_type(found, z.dtype)
    for i, j in np.ndindex(3, 2):
        expected = sweep[PLATFORM](left[i, j], c[j], x[i, 0])
        np.testing.assert_allclose(found[i, j], expected, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize(
    "scans",
    [
        pytest.param(SEQUENTIAL, id="sequential"),
        pytest.param(ASSOCIATIVE, id="associative", marks=pytest.mark.slow),
    ],
)
def test_gradients(scans, rng):
    chain = dense.chain(rng, 4)
    x = vectors(rng, "complex128", 4, 2)
    check_grads(solve[scans], (*chain, x), order=1, modes=["fwd", "rev"])
    check_grads(sweep[scans], (dense.left(*chain), chain[2], x), order=1, modes=["rev"])


def test_gradients_of_real_arguments(rng):
    """Real diagonals and real vectors under a batch of complex z: cotangents come back real, summed
    over the broadcast axes.
    """
    a, b, c = (jnp.asarray(rng.standard_normal(s)) for s in ((2, 4), (3,), (3,)))
    z = jnp.asarray(rng.standard_normal(2) + 1j)
    x = jnp.asarray(rng.standard_normal((2, 4, 2)))
    check_grads(solve[PLATFORM], (a, b, c, z, x), order=1, modes=["rev"])


@each_algorithm
def test_sweep_is_causal_bit_for_bit(scans, rng):
    left, c, x = (vectors(rng, "complex64", *s) for s in ((20,), (19,), (20, 2)))
    before = sweep[scans](left, c, x)
    for t in (1, 9, 19):
        changed = [v.copy() for v in (left, c, x)]
        for v, start in zip(changed, (t, t - 1, t), strict=True):
            v[start:] += 1
        after = sweep[scans](*changed)
        np.testing.assert_array_equal(after[:t], before[:t])
        assert np.all(after[t] != before[t])


def test_determinant(rng):
    chain = dense.chain(rng, 20, batch=(2,))
    expected = np.linalg.det(dense.matrix(*chain))
    value, logarithm = jax.jit(lambda *v: (determinant(*v), log_determinant(*v)))(*chain)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(logarithm), expected, rtol=1e-12)


def test_log_determinant_of_a_long_chain(rng):
    """Eigenvalues give modulus and total phase, ``sum_j log(lambda_j - z)``: each phase in (-pi, 0)
    too, so no 2 pi is lost.
    """
    a, b, c, z = dense.chain(rng, 300, hermitian=True)
    eigenvalues = np.linalg.eigvalsh(dense.matrix(a, b, c, 0.0).real).astype(complex)
    expected = np.sum(np.log(eigenvalues - z))
    found = log_det(a, b, c, z)
    assert expected.imag < -100
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    single = log_det(*(v.astype("float32") for v in (a, b, c)), z.astype("complex64"))
    np.testing.assert_allclose(single, expected, rtol=1e-5)


def test_log_determinant_is_continuous(rng):
    """Along a path of z through the band the branch never jumps."""
    a, b, c, _ = dense.chain(rng, 20, hermitian=True)
    phase = log_det(a, b, c, np.linspace(-4, 4, 4001) + 0.2j).imag
    # |d phase / d Re z| <= sum_j 1 / Im z = n / 0.2; the step is 0.002.
    assert np.abs(np.diff(phase)).max() < 20 / 0.2 * 0.002


def test_slope_of_the_log_determinant_is_the_trace(rng):
    """``d log det / d a_i = G_ii`` and ``d log det / dz = -tr G``."""
    chain = dense.chain(rng, 20)
    slope_a, slope_z = jax.jit(jax.grad(log_determinant, argnums=(0, 3), holomorphic=True))(*chain)
    g = dense.diagonal(dense.resolvent(*chain))
    np.testing.assert_allclose(slope_a, g, rtol=1e-12)
    np.testing.assert_allclose(slope_z, -g.sum(), rtol=1e-12)


def test_density_of_the_free_lattice():
    """Open chain, hopping t: ``sum_m |psi_m(i)|^2 L(E - 2 t cos(pi m / (n + 1)))`` with Lorentzian
    L; bulk: 1 / (pi sqrt(4 t^2 - E^2)).
    """
    n, hop, eta = 400, 0.7, 0.05
    energies = np.linspace(-2, 2, 9)
    density = jax.jit(spectral_density)(
        np.zeros(n), np.full(n - 1, hop), np.full(n - 1, hop), energies + 1j * eta
    )
    m = np.arange(1, n + 1) * np.pi / (n + 1)
    lorentzian = eta / np.pi / ((energies[:, None] - 2 * hop * np.cos(m)) ** 2 + eta**2)
    modes = 2 / (n + 1) * np.sin(np.outer(m, np.arange(1, n + 1))) ** 2
    np.testing.assert_allclose(density, lorentzian @ modes, rtol=1e-11)
    inside = np.abs(energies) <= 1
    # Broadening moves the infinite chain's density by O(eta).
    np.testing.assert_allclose(
        density[inside, n // 2], 1 / (np.pi * np.sqrt(4 * hop**2 - energies[inside] ** 2)), rtol=eta
    )


def test_density_integrates_to_one_per_site(rng):
    a, b, c, _ = dense.chain(rng, 6, hermitian=True)
    energies = np.linspace(-2000, 2000, 40001)
    density = jax.jit(spectral_density)(a, b, c, energies + 1.0j)
    # A Lorentzian of half width 1 leaves 2 / (2000 pi) outside.
    np.testing.assert_allclose(np.trapezoid(density, energies, axis=0), 1.0, rtol=0, atol=4e-4)


@pytest.mark.parametrize("dtype", ["complex64", pytest.param("complex128", marks=pytest.mark.slow)])
def test_streaming_equals_the_batch(dtype, rng):
    a, b, c, z = dense.chain(rng, 20, batch=(2,), dtype=dtype)
    x = vectors(rng, dtype, 2, 20, 3)
    left = np.asarray(pivots(a, b, c, z))
    swept = np.asarray(sweep[PLATFORM](left, c, x))
    step, state = jax.jit(streaming_step), streaming_init((2,), 3, dtype)
    for i in range(20):
        # The first site has no link to a site before it: any finite number will do.
        above, below = (b[:, i - 1], c[:, i - 1]) if i else (np.ones(2, dtype), np.ones(2, dtype))
        state = step(state, a[:, i], above, below, z, x[:, i])
        chex.assert_type(state.left, dtype)
        np.testing.assert_allclose(state.left, left[:, i], rtol=20 * np.finfo(dtype).eps)
        np.testing.assert_allclose(state.output, swept[:, i], rtol=0, atol=TOLERANCE[dtype])


def test_streaming_passes_a_pole():
    """Two equal sites at the band centre: the pole of the first is finite in the state, and the
    second sees its inverse, 0.
    """
    state, one = streaming_init((), 1), np.ones(1, "float32")
    step = jax.jit(lambda state: streaming_step(state, 0.0, 1.0, 1.0, 0.0, one))
    for _ in range(2):
        state = step(state)
    np.testing.assert_allclose(state.left, 0, rtol=0, atol=1e-11)
    np.testing.assert_allclose(state.output, 1, rtol=1e-6)


def test_streaming_without_channels():
    """gL alone, from Python numbers: the golden ratio's continued fraction, 1 / (1 + 1 / (1 +
    ...)).
    """
    state, nothing = streaming_init((), 0), np.zeros(0, "float32")
    step = jax.jit(lambda state: streaming_step(state, 1.0, 1.0, -1.0, 0.0, nothing))
    for _ in range(40):
        state = step(state)
    chex.assert_shape(state.output, (0,))
    np.testing.assert_allclose(state.left, (np.sqrt(5) - 1) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "dtype", "message"),
    [
        (((4,), (3,), (4, 2)), "float32", "left must be complex"),
        (((0,), (0,), (0, 2)), "complex64", "n >= 1"),
        (((4,), (4,), (4, 2)), "complex64", r"subdiagonal must be \[..., 3\].*got \(4,\)"),
        (((4,), (3,), (4,)), "complex64", r"x must be \[..., 4, c\], got \(4,\)"),
        (((2, 4), (3,), (3, 4, 2)), "complex64", "leading axes must broadcast"),
        (((4,), (3,), (4, 2)), "complex128", "subdiagonal must have the precision of complex128"),
    ],
)
def test_sweep_refuses(shapes, dtype, message):
    with pytest.raises(ValueError, match=message):
        causal_sweep(jnp.ones(shapes[0], dtype), *(jnp.ones(s, "float32") for s in shapes[1:]))


def test_streaming_refuses():
    state, one = streaming_init((), 2), jnp.ones((), "float32")
    with pytest.raises(ValueError, match=r"x must be \[..., 2\], got \(3,\)"):
        streaming_step(state, one, one, one, 1j, jnp.ones(3, "float32"))
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        streaming_step(state, jnp.ones(3, "float32"), one, one, 1j, jnp.ones(2, "float32"))
    with pytest.raises(ValueError, match="dtype must be complex64"):
        streaming_init((), 2, jnp.float32)
    with pytest.raises(ValueError, match="diagonal must have the precision of complex64"):
        streaming_step(state, jnp.ones(()), one, one, 1j, jnp.ones(2, "float32"))
