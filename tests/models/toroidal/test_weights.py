"""Slopes are positive, start where they are told, and learn only if they may."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.attention.depth_fusion import FUSIONS
from vfejax.models.toroidal.weights import TorusWeights

pytestmark = pytest.mark.usefixtures("library_promotion")


def _made(slopes, fusion="none", learn_slopes=True):
    return TorusWeights(
        slopes,
        FUSIONS[fusion],
        learn_slopes=learn_slopes,
        depth=2,
        dim=8,
        rank=3,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )


def _shapes(weights):
    return jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(weights, nnx.Param)))


def test_learned_slopes_start_where_they_are_told():
    weights = _made((1e3, 8.0, 1e-6))
    np.testing.assert_allclose(weights.slope(), (1e3, 8.0, 1e-6), rtol=1e-9)
    assert _shapes(weights) == {"slopes": (3,)}


def test_fixed_slopes_are_no_weights_and_no_bias_where_all_are_zero():
    np.testing.assert_array_equal(_made((2.0, 0.0), learn_slopes=False).slope(), (2.0, 0.0))
    assert _shapes(_made((2.0, 0.0), learn_slopes=False)) == {}
    assert _made((0.0, 0.0), learn_slopes=False).slope() is None
    assert _made(()).slope() is None


def test_a_fusion_with_weights_starts_as_the_identity():
    weights = _made((), "low-rank")
    assert _shapes(weights) == {"fusion": {"0": (8, 3), "1": (8, 3)}}
    x = jnp.ones((1, 2, 4, 2))
    np.testing.assert_array_equal(weights.fuse(x), x)
