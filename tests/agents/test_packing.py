import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from vfejax.agents.packing import pack, packed_gram, unpack

K, NUM = 4, 5
gram = jax.jit(packed_gram, static_argnums=1)


def test_packing_goes_back_and_forth(rng):
    matrix = rng.normal(size=(5, 4, 4))
    matrix = matrix + np.swapaxes(matrix, -1, -2)
    there = pack(jnp.asarray(matrix))
    chex.assert_shape(there, (5, 10))
    np.testing.assert_array_equal(unpack(there, 4), matrix)


def test_packed_gram_is_numpys(rng, dtype):
    rows = rng.normal(size=(3, K, NUM))
    expected = np.einsum("lin,ljn->ijn", rows, rows) * (2.0 - np.eye(K)[:, :, None])
    found = gram(jnp.asarray(rows, dtype), 2.0)
    chex.assert_type(found, dtype)
    # three products of numbers of order 1 are summed and doubled
    atol = 50 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(found, expected[np.tril_indices(K)], rtol=0, atol=atol)
    with jax.disable_jit():
        np.testing.assert_allclose(
            packed_gram(jnp.asarray(rows, dtype), 2.0), found, rtol=0, atol=atol
        )


def test_its_derivatives_to_second_order(rng):
    rows = rng.normal(size=(3, K, NUM))
    check_grads(
        jax.jit(lambda x: jnp.sin(packed_gram(x, 2.0))), (rows,), order=2, modes=("fwd", "rev")
    )


def test_the_mapped_slope_is_numpys_and_scatters_nothing(rng):
    rows = rng.normal(size=(2, 3, K, NUM))
    slope = jax.jit(jax.vmap(jax.grad(lambda x: jnp.sum(packed_gram(x, 2.0) ** 2))))
    # sum_ij c_ij G_ij^2 with c = 2 off the diagonal and 1 on it
    doubled = (2.0 - np.eye(K)[:, :, None]) * np.einsum("blin,bljn->bijn", rows, rows)
    expected = 4.0 * np.einsum("blin,bijn->bljn", rows, doubled)
    np.testing.assert_allclose(slope(rows), expected, rtol=1e-12, atol=1e-12)
    assert "scatter" not in slope.lower(rows).as_text()
