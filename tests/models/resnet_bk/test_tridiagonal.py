"""Tridiagonal operators that the tokens write, against dense systems and against the gate alone."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.written_mixers import compiled, enlarged

from vfejax.models.resnet_bk.gates import GateOperator
from vfejax.models.resnet_bk.tridiagonal import TridiagonalOperator, TwoSidedTridiagonal

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM, HEADS = 2, 7, 6, 3
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # norms of small vectors amplify it


@pytest.fixture
def states(rng):
    return jnp.asarray(rng.standard_normal((BATCH, LENGTH, DIM)))


@functools.cache
def _mixer(kind, **options):
    return enlarged(kind(DIM, HEADS, **options, dtype=jnp.float64, rngs=nnx.Rngs(0)))


@functools.cache
def _mix(kind, **options):
    return compiled(_mixer(kind, **options))


def _dense(mixer, states):
    """T of every head ``[b, heads, n, n]``, and what drives it, ``[b, heads, n, c]``."""
    decay, phase = (np.asarray(x) for x in mixer.gates(states))
    gate = np.exp(-decay + 1j * phase)
    w = np.asarray(mixer.couplings(states))
    w = w[..., :HEADS] + 1j * w[..., HEADS:]
    coupling = mixer.coupling * w / np.sqrt(1 + np.abs(w) ** 2)
    dense = np.zeros((BATCH, HEADS, LENGTH, LENGTH), complex)
    for i in range(LENGTH):
        dense[..., i, i] = 1 + np.abs(gate * coupling)[:, i]
        if i:
            dense[..., i, i - 1] = -gate[:, i]
            dense[..., i - 1, i] = coupling[:, i]
    u = np.asarray(mixer.values(states)).reshape(BATCH, LENGTH, HEADS, -1)
    return dense, np.swapaxes(np.sqrt(1 - np.abs(gate) ** 2)[..., None] * u, 1, 2)


def _solutions(mixer, states):
    """The last entries of the systems cut off after each token, ``[b, n, heads, c]``."""
    dense, u = _dense(mixer, states)
    cut = [slice(0, i + 1) for i in range(LENGTH)]
    y = [np.linalg.solve(dense[..., c, c], u[..., c, :])[..., -1, :] for c in cut]
    return np.stack(y, axis=1)


@pytest.mark.parametrize("coupling", [pytest.param(0.25, marks=pytest.mark.slow), 1.0])
def test_the_tridiagonal_operator_solves_every_system_cut_off_after_the_token(coupling, states):
    mixer = _mixer(TridiagonalOperator, coupling=coupling)
    mixed, info = compiled(mixer)(states)
    expected = mixer.project(jnp.asarray(_solutions(mixer, states)), states)
    chex.assert_trees_all_close(mixed, expected, **ROUNDING)
    assert np.all(info.log_gates <= 0)


def test_the_two_sided_operator_solves_the_whole_system_and_sees_the_future(states):
    mixer = _mixer(TwoSidedTridiagonal, coupling=1.0)
    dense, u = _dense(mixer, states)
    y = jnp.asarray(np.swapaxes(np.linalg.solve(dense, u), 1, 2))
    mix = _mix(TwoSidedTridiagonal, coupling=1.0)
    mixed, _ = mix(states)
    chex.assert_trees_all_close(mixed, mixer.project(y, states), **ROUNDING)
    changed, _ = mix(states.at[:, -1].add(1.0))
    assert np.all(np.abs(changed - mixed)[:, 0].max(-1) > 0)
    assert not hasattr(mixer, "decode")


def test_without_couplings_the_tridiagonal_operator_is_the_gate(states):
    tridiagonal, gate = _mixer(TridiagonalOperator, coupling=0.0), _mixer(GateOperator)
    for name in ("gates", "values", "gate", "out"):
        nnx.update(getattr(gate, name), nnx.state(getattr(tridiagonal, name)))
    chex.assert_trees_all_close(compiled(tridiagonal)(states), compiled(gate)(states), **ROUNDING)


def test_the_two_sided_operator_leaves_padding_out(states):
    mix = _mix(TwoSidedTridiagonal, coupling=1.0)
    keep = np.array([0, 1, 1, 0, 1, 1, 0, 1, 1, 1], bool)
    tokens = np.full((BATCH, len(keep), DIM), 7.0)
    tokens[:, keep] = states
    padded, _ = mix(tokens, np.tile(keep, (BATCH, 1)))
    chex.assert_trees_all_close(np.asarray(padded)[:, keep], np.asarray(mix(states)[0]), **ROUNDING)


@pytest.mark.parametrize(
    ("heads", "coupling", "message"),
    [
        (4, 0.25, "dim 6 and heads 4"),
        (3, 1.1, "coupling must lie between 0 and 1, got 1.1"),
        (3, float("nan"), "coupling must lie between 0 and 1, got nan"),
    ],
)
def test_options_that_do_not_fit_are_named(heads, coupling, message):
    with pytest.raises(ValueError, match=message):
        TridiagonalOperator(6, heads, coupling=coupling, rngs=nnx.Rngs(0))
