"""The alignment energy: its own slopes, blocks of receivers, neighbours."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.agents import alignment
from vfejax.models.vfe.energy import Places, align, neighbours, reader

N, HEADS, ROW = 7, 2, 3
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
HERE = Places(np.arange(N), np.arange(N))


def _inputs(rng):
    a, b = rng.standard_normal((2, 1, N, HEADS, ROW))
    return a, b, np.array([0.7, 1.9])


def _plain(name, near, a, b, tau):
    """The table's own energy on all pairs, differentiated as it is."""
    divergence = jnp.einsum("bnhr,bmhr->bhnm", a, b) / tau[None, :, None, None]
    allowed = near(jnp.arange(N)[:, None] - jnp.arange(N)[None])
    log_weight = jnp.broadcast_to(jnp.where(allowed, 0.0, -jnp.inf), divergence.shape)
    fn = alignment.ALIGNMENTS[name]
    return tau[None, None] * jnp.moveaxis(fn(divergence, log_weight, alignment.rows()), 1, 2)


def _everything(energy_fn, *inputs):
    """Energies, their slopes, and slopes of a function of the receivers' slopes."""

    def total(*inputs):
        return jnp.sum(jnp.sin(energy_fn(*inputs)))

    def learned(*inputs):
        return jnp.sum(jnp.sin(jax.grad(total)(*inputs)))

    arguments = (0, 1, 2)
    slopes = (jax.grad(f, arguments)(*inputs) for f in (total, learned))
    return energy_fn(*inputs), *slopes


@pytest.mark.parametrize(
    ("name", "mask_self", "block"),
    [
        ("entropic", True, 2),
        ("weighted", False, N),
        pytest.param("entropic", False, N, marks=pytest.mark.slow),
        pytest.param("weighted", True, 2, marks=pytest.mark.slow),
        pytest.param("saturating", True, 2, marks=pytest.mark.slow),
    ],
)
def test_values_and_two_derivatives_are_those_of_the_plain_energy(name, mask_self, block, rng):
    """In one piece and by blocks that do not divide the length; without neighbours too."""
    near = neighbours(mask_self=mask_self)

    @jax.jit
    def compared(*inputs):
        plain = _everything(lambda *x: _plain(name, near, *x), *inputs)
        how = reader(name, near, block)
        return plain, _everything(lambda *x: align(how, *x, HERE).energy, *inputs)

    a, b, tau = _inputs(rng)
    if name == "saturating":  # divergences from 20 to 60, on both sides of the limit
        a, b = 2 + 0.1 * a, 6 + 0.5 * b
    plain, found = compared(a, b, tau)
    chex.assert_trees_all_close(found, plain, **CLOSE)
    if mask_self:
        np.testing.assert_array_equal(found[0][:, 0], 0.0)


_read = jax.jit(lambda *x: align(reader("entropic"), *x, HERE))


def test_entropy_is_that_of_the_attention(rng):
    a, b, tau = _inputs(rng)
    entropy = _read(a, b, tau).entropy[0, -1, 0]
    logits = -np.asarray(a[0, -1, 0] @ b[0, :, 0].T) / 0.7
    weights = np.exp(logits) / np.sum(np.exp(logits))
    np.testing.assert_allclose(entropy, -np.sum(weights * np.log(weights)), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6]),
        ({"window": 3}, [4, 5, 6]),
        ({"window": 2, "stride": 3}, [0, 3, 5, 6]),
        ({"window": 2, "stride": 3, "mask_self": True}, [0, 3, 5]),
    ],
)
def test_neighbours_are_those_that_the_options_name(options, read):
    near = neighbours(**options)(N - 1 - jnp.arange(N + 2))
    assert np.flatnonzero(near).tolist() == read


def test_a_nan_among_neighbours_is_not_hidden(rng):
    a, b, tau = _inputs(rng)
    b[0, 2] = np.nan
    energy = _read(a, b, tau).energy[0]
    assert np.all(np.isnan(energy[2:]))
    assert np.all(np.isfinite(energy[:2]))


def test_blocks_bound_the_memory_of_two_derivatives():
    """All pairs of 4 sequences, 4 heads and 1024 tokens would take 64 MB for each array of them."""
    how, n = reader("entropic"), 1024
    row = jax.ShapeDtypeStruct((4, n, 4, 10), jnp.float32)

    def learned(a, b):
        tau, here = jnp.ones(4, jnp.float32), Places(jnp.arange(n), jnp.arange(n))
        slope = jax.grad(lambda a: jnp.sum(align(how, a, b, tau, here).energy))(a)
        return jnp.sum(slope**2)

    program = jax.jit(jax.grad(learned, (0, 1))).lower(row, row).compile()
    assert program.memory_analysis().temp_size_in_bytes < 60e6
