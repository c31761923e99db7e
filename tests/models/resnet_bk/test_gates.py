"""Gates that the tokens write, against their recurrences."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.written_mixers import compiled, enlarged

from vfejax.models.resnet_bk.gates import GateOperator, PolarGates, RealGateOperator

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM, HEADS = 2, 7, 6, 3
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # norms of small vectors amplify it


@pytest.fixture
def states(rng):
    return jnp.asarray(rng.standard_normal((BATCH, LENGTH, DIM)))


def _mixer(kind, **options):
    return enlarged(kind(DIM, HEADS, **options, dtype=jnp.float64, rngs=nnx.Rngs(0)))


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
    chex.assert_trees_all_close(compiled(mixer)(states)[0], expected, **ROUNDING)


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
    chex.assert_trees_all_close(compiled(mixer)(states)[0], expected, **ROUNDING)


def test_a_convolution_without_tokens_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        GateOperator(6, 3, convolution=0, rngs=nnx.Rngs(0))
