"""The frame around a recurrence: the short convolution before it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.models.resnet_bk.readout import ShortConvolution

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM = 2, 7, 6
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # norms of small vectors amplify it


def test_a_short_convolution_is_the_identity_at_first_and_reads_the_past_alone(rng):
    states = jnp.asarray(rng.standard_normal((BATCH, LENGTH, DIM)))
    layer = ShortConvolution(DIM, 3, dtype=jnp.float64, rngs=nnx.Rngs(0))
    taps = np.asarray(layer.taps[...])
    expected = sum(taps[j] * np.pad(states, ((0, 0), (j, 0), (0, 0)))[:, :LENGTH] for j in range(3))
    chex.assert_trees_all_close(layer(states), jnp.asarray(expected), **ROUNDING)
    assert np.all(np.abs(taps - np.eye(3)[:, :1]) < 0.2)
    identity = ShortConvolution(DIM, 1, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(identity(states), states)
    assert not jax.tree.leaves(nnx.state(identity))
