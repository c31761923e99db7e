"""Products with kernels."""

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.kernels import kernel_product


def test_gradients_of_a_product_with_a_kernel_are_those_of_the_plain_product(rng):
    x, kernel, weight = (rng.normal(size=shape) for shape in ((2, 3, 4), (4, 5), (2, 3, 5)))

    def gradients(layer_product):
        layer = nnx.Linear(4, 5, use_bias=False, dot_general=layer_product, rngs=nnx.Rngs(0))
        graphdef, _ = nnx.split(layer)

        def value(x, kernel):
            params = nnx.State({"kernel": nnx.Param(kernel)})
            return jnp.sum(weight * nnx.merge(graphdef, params)(x))

        return jax.jit(jax.value_and_grad(value, (0, 1)))(x, kernel)

    # The same sums, in an order that is the compiler's.
    expected = gradients(jax.lax.dot_general)
    chex.assert_trees_all_close(gradients(kernel_product), expected, rtol=1e-13, atol=1e-13)
