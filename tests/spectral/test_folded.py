"""Folded chains cut into blocks, against the same chains in one block."""

import chex
import jax
import numpy as np
from helpers import dense_chain as dense

from vfejax.spectral import _folded
from vfejax.spectral.recurrence import ASSOCIATIVE, SEQUENTIAL
from vfejax.spectral.resolvent import resolvent_diagonal


def results(chain, w, scans):
    """Value, cotangents, and the derivative along a direction, of chains."""

    @jax.jit
    def run(chain, w):
        value, pull = jax.vjp(lambda *x: resolvent_diagonal(*x, scans=scans), *chain)
        _, change = jax.jvp(lambda *x: resolvent_diagonal(*x, scans=scans), chain, chain)
        return value, pull(w), change

    return run(chain, w)


def test_blocks_and_sites_that_fill_them_change_nothing(monkeypatch, rng):
    """13 sites of 3 chains: five blocks of 2 rows, seven sites more than there are. The tree puts
    the same numbers into the same layout.
    """
    chain = dense.chain(rng, 13, batch=(3,), hermitian=True)
    w = rng.standard_normal((3, 13)) + 1j * rng.standard_normal((3, 13))
    expected = results(chain, w, SEQUENTIAL)
    monkeypatch.setattr(_folded, "BLOCK", 8)
    assert _folded.blocks(3, 13) == (5, 2)
    for scans in (SEQUENTIAL, ASSOCIATIVE):
        # Rounding of a few hundred operations, each amplified by at most 1 / Im z.
        chex.assert_trees_all_close(results(chain, w, scans), expected, rtol=1e-12, atol=1e-13)


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
