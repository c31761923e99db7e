import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics.iteration import default_tolerance, iterate, relative_size


def test_an_iteration_ends_where_it_is_small_is_nan_or_is_used_up():
    @jax.jit
    def ends(start):
        return iterate(lambda z: (z * start, jnp.abs(z)), start, 0.1, 5)

    small, nan, large = (ends(jnp.asarray(x)) for x in (0.1, np.nan, 2.0))
    # The residual is that of the iterate before the last.
    assert (int(small.iterations), bool(small.converged)) == (1, True)
    assert (int(nan.iterations), bool(nan.converged)) == (1, False)
    assert (int(large.iterations), bool(large.converged)) == (5, False)
    np.testing.assert_allclose(large.value, 2.0**6, rtol=0)


def test_sizes_are_those_of_the_worst_leaf_in_the_widest_dtype():
    change = {"a": jnp.ones(2, jnp.float32), "b": jnp.asarray([3.0, -4.0])}
    value = {"a": jnp.full(2, 99.0, jnp.float32), "b": jnp.ones(2)}
    size = relative_size(change, value)
    assert size.dtype == jnp.float64
    np.testing.assert_allclose(size, 2.0, rtol=0)
    assert float(relative_size({}, {})) == 0.0


def test_the_least_precise_leaf_sets_the_tolerance():
    tree = {"a": jnp.ones(1, jnp.float32), "b": jnp.ones(1)}
    assert default_tolerance(tree) == float(jnp.finfo(jnp.float32).eps) ** 0.75
    assert default_tolerance({}) == 0.0
