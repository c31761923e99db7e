import chex
import jax
import numpy as np
import pytest

from vfejax import numerics


@pytest.mark.parametrize("shape", [(3, 1), (1, 1), (1,), (), (2, 3, 4)], ids=str)
def test_sum_to_is_the_transpose_of_broadcasting(shape, rng):
    big, small = rng.normal(size=(2, 3, 4)), rng.normal(size=shape)
    # The transpose: the same inner product with every small array.
    summed = jax.jit(lambda x: numerics.sum_to(x, shape))(big)
    chex.assert_shape(summed, shape)
    for _ in range(3):
        np.testing.assert_allclose(np.sum(summed * small), np.sum(big * small), rtol=1e-12)
        small = rng.normal(size=shape)


def test_named_broadcasting_names_what_does_not_fit():
    assert numerics.broadcast_named(rho=(3, 1), dt=()) == (3, 1)
    with pytest.raises(ValueError, match=r"rho \(3,\), dt \(4,\)"):
        numerics.broadcast_named(rho=(3,), dt=(4,))
    chex.assert_shape(numerics.expand_leading(np.ones((5, 2, 2)), 2, core=2), (1, 5, 2, 2))
