"""The potential that the tokens write: its bounds, and where it starts."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.models.resnet_bk.potential import Potential

pytestmark = pytest.mark.usefixtures("library_promotion")

BATCH, LENGTH, DIM = 2, 7, 6


def test_the_potential_keeps_its_bounds_and_starts_inside_the_band(rng):
    states = jnp.asarray(3.0 * rng.standard_normal((BATCH, LENGTH, DIM)))
    potential = Potential(DIM, 64, z_floor=0.25, dtype=jnp.float64, rngs=nnx.Rngs(0))
    potential.levels.kernel[...] = 1e4 * potential.levels.kernel[...]
    diagonal = potential.diagonal(states) - potential.offset[...]
    assert np.all(np.abs(diagonal.real) <= 3.0 + 1e-14)  # the offset is added and taken off again
    assert np.abs(diagonal.real).max() > 2.9
    assert np.all(diagonal.imag <= 0)
    assert np.all(potential.z().real == 0)
    assert np.all(potential.z().imag >= 0.25)
    potential.width[...] = -1e3 * jnp.ones(64)
    np.testing.assert_allclose(potential.z().imag, 0.25)
    assert np.all(np.abs(potential.offset[...]) < 2 * potential.hopping())
