"""Mixers whose gates the tokens write: each against its formula and dense systems, and against one
another.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.models.resnet_bk.gates import (
    GateOperator,
    PolarGates,
    RealGateOperator,
    TridiagonalOperator,
    TwoSidedTridiagonal,
)
from vfejax.models.resnet_bk.readout import ShortConvolution

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM, HEADS = 2, 7, 6, 3
CAUSAL = (GateOperator, TridiagonalOperator, RealGateOperator)
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # norms of small vectors amplify it


@pytest.fixture
def states(rng):
    return jnp.asarray(rng.standard_normal((BATCH, LENGTH, DIM)))


def _mixer(kind, **options):
    mixer = kind(DIM, HEADS, **options, dtype=jnp.float64, rngs=nnx.Rngs(0))
    # Larger than at first, so that every part of the formula matters.
    for name in ("gates", "couplings", "levels"):
        layer = getattr(mixer, name, None)
        if layer is not None:
            kernel = getattr(layer, "levels", layer).kernel
            kernel[...] = 40.0 * kernel[...]
    return mixer


def _compiled(mixer):
    graphdef, params = nnx.split(mixer)
    return jax.jit(lambda *inputs: nnx.merge(graphdef, params)(*inputs))


def _dense(mixer, states):
    """T of every head ``[b, heads, n, n]``, and what drives it, ``[b, heads, n, c]``."""
    decay, phase = (np.asarray(x) for x in mixer.gates(states))
    gate = np.exp(-decay + 1j * phase)
    w = np.asarray(mixer.couplings(states))
    w = w[..., :HEADS] + 1j * w[..., HEADS:]
    coupling = w / np.sqrt(1 + np.abs(w) ** 2) / 4
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


def test_gates_start_at_many_reaches_and_keep_their_bounds(states):
    gates = PolarGates(DIM, 64, dtype=jnp.float64, rngs=nnx.Rngs(0))
    gates.levels.kernel[...] = jnp.zeros_like(gates.levels.kernel[...])
    decay, phase = gates(states)
    reach = np.sort(1 / np.asarray(decay)[0, 0])
    assert 0.9 < reach[0] < 1.2
    assert 40 < reach[-1] < 51
    assert np.diff(np.log(reach)).max() < 0.15
    assert (phase.min(), phase.max()) == (0, jnp.pi)
    gates.levels.kernel[...] = 1e3 * jnp.ones_like(gates.levels.kernel[...])
    decay, _ = gates(states)
    assert np.all(decay >= 1e-4)
    chex.assert_tree_all_finite(decay)


def test_the_tridiagonal_operator_solves_every_system_cut_off_after_the_token(states):
    mixer = _mixer(TridiagonalOperator)
    mixed, info = _compiled(mixer)(states)
    expected = mixer.project(jnp.asarray(_solutions(mixer, states)), states)
    chex.assert_trees_all_close(mixed, expected, **ROUNDING)
    assert np.all(info.log_gates <= 0)


def test_the_two_sided_operator_solves_the_whole_system_and_sees_the_future(states):
    mixer = _mixer(TwoSidedTridiagonal)
    dense, u = _dense(mixer, states)
    y = jnp.asarray(np.swapaxes(np.linalg.solve(dense, u), 1, 2))
    mix = _compiled(mixer)
    mixed, _ = mix(states)
    chex.assert_trees_all_close(mixed, mixer.project(y, states), **ROUNDING)
    changed, _ = mix(states.at[:, -1].add(1.0))
    assert np.all(np.abs(changed - mixed)[:, 0].max(-1) > 0)
    assert not hasattr(mixer, "decode")


def test_without_couplings_the_tridiagonal_operator_is_the_gate(states):
    tridiagonal, gate = _mixer(TridiagonalOperator), _mixer(GateOperator)
    for layer in (tridiagonal.couplings.kernel, tridiagonal.couplings.bias):
        layer[...] = jnp.zeros_like(layer[...])
    for name in ("gates", "values", "gate", "out"):
        nnx.update(getattr(gate, name), nnx.state(getattr(tridiagonal, name)))
    chex.assert_trees_all_close(_compiled(tridiagonal)(states), _compiled(gate)(states), **ROUNDING)


def test_the_gate_is_its_recurrence(states):
    mixer = _mixer(GateOperator)
    decay, phase = (np.asarray(x)[..., None] for x in mixer.gates(states))
    u = np.asarray(mixer.inputs(states))
    y, outputs = np.zeros_like(u[:, 0], complex), []
    for i in range(LENGTH):
        size = np.exp(-decay[:, i])
        y = size * np.exp(1j * phase[:, i]) * y + np.sqrt(1 - size**2) * u[:, i]
        outputs.append(y)
    expected = mixer.project(jnp.asarray(np.stack(outputs, axis=1)), states)
    chex.assert_trees_all_close(_compiled(mixer)(states)[0], expected, **ROUNDING)


def test_the_real_gate_is_its_recurrence(states):
    mixer = _mixer(RealGateOperator)
    levels = 1 / (1 + np.exp(-np.asarray(mixer.levels(states))))
    decay = 1e-4 + 8 * np.log1p(np.exp(np.asarray(mixer.decay[...]))) * levels[..., :HEADS]
    u = np.asarray(mixer.inputs(states)) * levels[..., HEADS:, None]
    y, outputs = np.zeros_like(u[:, 0]), []
    for i in range(LENGTH):
        size = np.exp(-decay[:, i])[..., None]
        y = size * y + np.sqrt(1 - size**2) * u[:, i]
        outputs.append(y)
    expected = mixer.project(jnp.asarray(np.stack(outputs, axis=1)), states)
    chex.assert_trees_all_close(_compiled(mixer)(states)[0], expected, **ROUNDING)


@pytest.mark.parametrize("kind", CAUSAL)
def test_decoding_equals_reading_and_padding_anywhere_is_left_out(kind, states):
    mixer = _mixer(kind, convolution=3)
    mix, state = _compiled(mixer), mixer.init_decode(BATCH)
    graphdef, params = nnx.split(mixer)
    decode = jax.jit(lambda state, token: nnx.merge(graphdef, params).decode(state, token))
    mixed, info = mix(states)
    for i in range(LENGTH):
        token, state = decode(state, states[:, i])
        chex.assert_trees_all_close(token, mixed[:, i], **ROUNDING)
    mask = jnp.asarray([[False, False, True, True, True, True, True]] * 2).at[1, 3].set(False)
    padded, info = mix(jnp.where(mask[..., None], states, 7.0), mask)
    for row, keep in enumerate(np.asarray(mask)):
        alone, expected = mix(states[row : row + 1, keep])
        chex.assert_trees_all_close(padded[row, keep], alone[0], **ROUNDING)
        gates = info.log_gates[row][:, keep]
        chex.assert_trees_all_close(gates, expected.log_gates[0], **ROUNDING)


@pytest.mark.parametrize("kind", CAUSAL)
def test_later_tokens_leave_earlier_outputs_bit_identical(kind, rng):
    mixer = kind(16, 2, convolution=4, rngs=nnx.Rngs(0))
    mix = _compiled(mixer)
    states = jnp.asarray(rng.standard_normal((BATCH, 33, 16)), jnp.float32)
    before, _ = mix(states)
    after, _ = mix(states.at[:, 20:].add(1.0))
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.all(np.any(before != after, axis=-1)[:, 20:])


def test_the_two_sided_operator_leaves_padding_out(states):
    mix = _compiled(_mixer(TwoSidedTridiagonal))
    keep = np.asarray([False, True, True, False, True, True, False])
    mask = jnp.broadcast_to(jnp.asarray(keep), (BATCH, LENGTH))
    padded, _ = mix(jnp.where(mask[..., None], states, 7.0), mask)
    chex.assert_trees_all_close(padded[:, keep], mix(states[:, keep])[0], **ROUNDING)


def test_a_short_convolution_is_the_identity_at_first_and_reads_the_past_alone(states):
    layer = ShortConvolution(DIM, 3, dtype=jnp.float64, rngs=nnx.Rngs(0))
    taps = np.asarray(layer.taps[...])
    expected = sum(taps[j] * np.pad(states, ((0, 0), (j, 0), (0, 0)))[:, :LENGTH] for j in range(3))
    chex.assert_trees_all_close(layer(states), jnp.asarray(expected), **ROUNDING)
    assert np.all(np.abs(taps - np.eye(3)[:, :1]) < 0.2)
    identity = ShortConvolution(DIM, 1, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(identity(states), states)
    assert not jax.tree.leaves(nnx.state(identity))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="dim 6 and heads 4"):
        TridiagonalOperator(6, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        GateOperator(6, 3, convolution=0, rngs=nnx.Rngs(0))
