import chex
import jax
import jax.numpy as jnp
import numpy as np

from vfejax import numerics


def test_small_matrix_helpers(dtype, rng):
    x = rng.normal(size=(2, 3, 3)).astype(dtype)
    v = rng.normal(size=(2, 3)).astype(dtype)

    @jax.jit
    def helpers(x, v):
        sym = numerics.symmetrize(x)
        return (
            numerics.transpose(x),
            sym,
            numerics.symmetrize(sym),
            numerics.identity_like(x),
            numerics.matvec(x, v),
            jax.value_and_grad(lambda x: jnp.vdot(v, numerics.diagonal(x)))(x),
        )

    transposed, sym, again, eye, product, (weighted, slope) = helpers(x, v)
    entries = np.diagonal(x, axis1=-2, axis2=-1)
    np.testing.assert_allclose(
        weighted, np.vdot(v, entries), rtol=0, atol=20 * jnp.finfo(dtype).eps
    )
    np.testing.assert_array_equal(slope, v[..., None] * np.eye(3, dtype=dtype))
    assert numerics.diagonal(x[:, :0, :0]).shape == (2, 0)
    np.testing.assert_array_equal(transposed, np.swapaxes(x, -1, -2))
    np.testing.assert_array_equal(sym, np.swapaxes(sym, -1, -2))
    np.testing.assert_array_equal(again, sym)
    chex.assert_trees_all_equal(eye, np.broadcast_to(np.eye(3, dtype=dtype), (2, 3, 3)))
    chex.assert_type(eye, dtype)
    expected = np.einsum("nij,nj->ni", x.astype(float), v.astype(float))
    np.testing.assert_allclose(product, expected, rtol=0, atol=10 * jnp.finfo(dtype).eps)
