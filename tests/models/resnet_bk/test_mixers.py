"""What every causal mixer whose gates the tokens write promises: decoding equals reading, padding
is left out, and nothing looks ahead.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.written_mixers import compiled, enlarged

from vfejax.models.resnet_bk.gates import GateOperator, RealGateOperator
from vfejax.models.resnet_bk.tridiagonal import TridiagonalOperator

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM, HEADS = 2, 7, 6, 3
CAUSAL = (GateOperator, TridiagonalOperator, RealGateOperator)
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # norms of small vectors amplify it


@pytest.fixture
def states(rng):
    return jnp.asarray(rng.standard_normal((BATCH, LENGTH, DIM)))


def _mixer(kind, **options):
    return enlarged(kind(DIM, HEADS, **options, dtype=jnp.float64, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("kind", CAUSAL)
def test_decoding_equals_reading_and_padding_anywhere_is_left_out(kind, states):
    mixer = _mixer(kind, convolution=3)
    mix, state = compiled(mixer), mixer.init_decode(BATCH)
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
    mix = compiled(mixer)
    states = jnp.asarray(rng.standard_normal((BATCH, 33, 16)), jnp.float32)
    before, _ = mix(states)
    after, _ = mix(states.at[:, 20:].add(1.0))
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.all(np.any(before != after, axis=-1)[:, 20:])
