"""Folded chains cut into blocks and groups, against the same chains in one."""

import chex
import jax
import numpy as np
import pytest
from helpers import dense_chain as dense

from vfejax.spectral import _folds
from vfejax.spectral.recurrence import ASSOCIATIVE, SEQUENTIAL
from vfejax.spectral.resolvent import resolvent_diagonal
from vfejax.spectral.tridiagonal import resolvent_matvec


def results(chain, w, scans):
    """Value, cotangents, and the derivative along a direction, of chains."""

    @jax.jit
    def run(chain, w):
        value, pull = jax.vjp(lambda *x: resolvent_diagonal(*x, scans=scans), *chain)
        _, change = jax.jvp(lambda *x: resolvent_diagonal(*x, scans=scans), chain, chain)
        return value, pull(w), change

    return run(chain, w)


def test_blocks_and_groups_change_nothing(monkeypatch, rng):
    """37 sites of 3 chains: three blocks of 7 rows, which overlap in the middle. The tree gives the
    same numbers.
    """
    chain = dense.chain(rng, 37, batch=(3,), hermitian=True)
    w = rng.standard_normal((3, 37)) + 1j * rng.standard_normal((3, 37))
    expected = results(chain, w, SEQUENTIAL)
    monkeypatch.setattr(_folds, "ROWS", 2)
    assert _folds.blocks(37) == (3, 7)
    for scans in (SEQUENTIAL, ASSOCIATIVE):
        # Rounding of a few hundred operations, each amplified by at most 1 / Im z.
        chex.assert_trees_all_close(results(chain, w, scans), expected, rtol=1e-12, atol=1e-13)
    # Two chains at a time, in single precision: the last of them twice.
    monkeypatch.setattr(_folds, "LANES", 2)
    assert _folds.groups(3, True) == 2
    single = {"complex128": "complex64", "float64": "float32"}
    chain, w = jax.tree.map(lambda x: np.asarray(x, single[str(x.dtype)]), (chain, w))
    found = results(chain, w, SEQUENTIAL)
    chex.assert_trees_all_close(
        found,
        jax.tree.map(lambda x, y: np.asarray(x, y.dtype), expected, found),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_site_of_huge_energy_is_as_good_as_cut_out():
    """1e20 has a square beyond float32: its own entry of G is 0, and others are as without it."""
    a, b = np.array([0.3, 1e20, 0.2, 1e20, -0.1], np.float32), np.ones(4, np.float32)
    value, pull = jax.vjp(jax.jit(lambda a: resolvent_diagonal(a, b, b, 0.5j, scans=SEQUENTIAL)), a)
    expected = 1 / (a.astype(complex) - 0.5j)
    expected[1::2] = 0
    rounding = 4 * np.finfo(np.float32).eps
    np.testing.assert_allclose(value, expected, rtol=0, atol=2 * rounding)
    (change,) = pull(np.ones(5, np.complex64))
    np.testing.assert_allclose(change, -np.real(expected**2), rtol=0, atol=4 * rounding)


def test_no_chain_gives_no_diagonal():
    def run(*chain):
        value, pull = jax.vjp(lambda *x: resolvent_diagonal(*x, 1j), *chain)
        return value, *pull(value)

    shapes = jax.eval_shape(run, np.zeros((0, 4)), np.zeros((0, 3)), np.zeros((0, 3)))
    chex.assert_shape(shapes, [(0, 4), (0, 4), (0, 3), (0, 3)])


@pytest.mark.parametrize("n", [1, 5])
def test_solutions_of_chains_in_groups_are_those_of_a_dense_solve(n, monkeypatch, rng):
    """An odd chain has its middle site twice, and three chains in groups of two the last one."""
    monkeypatch.setattr(_folds, "LANES", 2)
    chain = dense.chain(rng, n, batch=(3,), hermitian=True, dtype="complex64")
    x = rng.standard_normal((3, n, 1)).astype(np.float32)
    found = jax.jit(lambda *x: resolvent_matvec(*x, scans=SEQUENTIAL))(*chain, x)
    # A few hundred roundings, each amplified by at most 1 / Im z.
    np.testing.assert_allclose(found, dense.resolvent(*chain) @ x, rtol=0, atol=1e-5)
