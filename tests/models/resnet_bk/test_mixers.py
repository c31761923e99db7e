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
    return rng.standard_normal((BATCH, LENGTH, DIM))


class Compiled:
    """A mixer with its programs, compiled once for all tests."""

    def __init__(self, kind):
        options = {"convolution": 3, "dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.mixer = enlarged(kind(DIM, HEADS, **options))
        self.mix = compiled(self.mixer)
        graphdef, params = nnx.split(self.mixer)
        self.decode = jax.jit(lambda state, token: nnx.merge(graphdef, params).decode(state, token))


@pytest.fixture(scope="module", params=CAUSAL)
def causal(request):
    return Compiled(request.param)


def test_decoding_equals_reading(causal, states):
    state = causal.mixer.init_decode(BATCH)
    mixed = np.asarray(causal.mix(states)[0])
    for i in range(LENGTH):
        token, state = causal.decode(state, states[:, i])
        chex.assert_trees_all_close(np.asarray(token), mixed[:, i], **ROUNDING)


def test_padding_anywhere_is_left_out(causal, states):
    mask = np.array([[0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 1, 1]], bool)
    padded, info = jax.device_get(causal.mix(np.where(mask[..., None], states, 7.0), mask))
    # What follows a text cannot matter: the next test.
    front = np.zeros_like(states)
    for row, keep in enumerate(mask):
        front[row, : keep.sum()] = states[row, keep]
    alone, expected = jax.device_get(causal.mix(front))
    for row, keep in enumerate(mask):
        count = keep.sum()
        chex.assert_trees_all_close(padded[row, keep], alone[row, :count], **ROUNDING)
        gates = info.log_gates[row][:, keep]
        chex.assert_trees_all_close(gates, expected.log_gates[row][:, :count], **ROUNDING)


def test_later_tokens_leave_earlier_outputs_bit_identical(causal, states):
    changed = states.copy()
    changed[:, 4:] += 1.0
    before, after = (np.asarray(causal.mix(x)[0]) for x in (states, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before != after, axis=-1)[:, 4:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUSAL)
def test_so_they_do_in_a_longer_sequence_in_single_precision(kind, rng):
    mix = compiled(kind(16, 2, convolution=4, rngs=nnx.Rngs(0)))
    states = rng.standard_normal((BATCH, 33, 16)).astype(np.float32)
    changed = states.copy()
    changed[:, 20:] += 1.0
    before, after = (np.asarray(mix(x)[0]) for x in (states, changed))
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert np.all(np.any(before != after, axis=-1)[:, 20:])
