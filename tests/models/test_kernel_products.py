"""Products with kernels."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax.models.kernel_products import kernel_product

DERIVATIVES = {
    "reverse": lambda f: jax.value_and_grad(f, (0, 1)),
    "forward": lambda f: lambda x, k: jax.jvp(f, (x, k), (jnp.cos(x), jnp.sin(k))),
    "forward over reverse": lambda f: (
        lambda x, k: jax.jvp(jax.grad(f, (0, 1)), (x, k), (jnp.cos(x), jnp.sin(k)))
    ),
    "reverse over reverse": lambda f: jax.grad(
        lambda x, k: sum(jnp.vdot(g, g) for g in jax.grad(f, (0, 1))(x, k)), (0, 1)
    ),
    "of a batch of kernels": lambda f: (
        lambda x, k: jax.vmap(jax.grad(f, (0, 1)), (None, 0))(x, jnp.stack([k, 2 * k]))
    ),
    "of a sum over a batch": lambda f: jax.grad(
        lambda x, k: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), k)), (0, 1)
    ),
    "by the kernel alone": lambda f: lambda x, k: jax.grad(lambda k: f(x, k))(k),
}


# The gradient by the kernel is another product where x is the wider one.
WIDTHS = [(4, 5), (5, 4)]


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_of_a_product_with_a_kernel_are_those_of_the_plain_product(rng, name, widths):
    m, n = widths
    x, kernel, weight = (rng.normal(size=shape) for shape in ((2, 3, m), (m, n), (2, 3, n)))

    def derivatives(layer_product):
        layer = nnx.Linear(m, n, use_bias=False, dot_general=layer_product, rngs=nnx.Rngs(0))
        graphdef, _ = nnx.split(layer)

        def value(x, kernel):
            params = nnx.State({"kernel": nnx.Param(kernel)})
            return jnp.sum(weight * jnp.sin(nnx.merge(graphdef, params)(x)))

        return jax.jit(DERIVATIVES[name](value))(x, kernel)

    # The same sums, in an order that is the compiler's.
    expected = derivatives(jax.lax.dot_general)
    chex.assert_trees_all_close(derivatives(kernel_product), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_product_with_a_kernel_keeps_the_dtypes_of_the_plain_one(rng, widths):
    x, kernel = (jnp.asarray(rng.normal(size=s), "bfloat16") for s in ((3, widths[0]), widths))

    def gradients(product):
        def value(x, kernel):
            y = product(x, kernel, preferred_element_type=jnp.float32)
            return jnp.sum(jnp.sin(y.astype(jnp.float32)))

        return jax.grad(value, (0, 1))(x, kernel)

    def plain(x, kernel, **options):
        return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), **options)

    found, expected = gradients(kernel_product), gradients(plain)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=2**-7)  # the last bit of bfloat16


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_gradients_meet_in_a_kernel_that_devices_share(rng, kind, widths):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType[kind],))
    x, kernel = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, 3, widths[0]), widths))

    def gradients(product, options):
        def value(x, kernel):
            return jnp.sum(jnp.sin(product(x, kernel, (((2,), (0,)), ((), ())), **options)))

        if kind == "Explicit":  # devices share arrays by their types
            place = jax.NamedSharding(mesh, jax.P("data"))
            return jax.grad(value, (0, 1))(jax.device_put(x, place), kernel)
        specs = {"in_specs": (jax.P("data"), jax.P()), "out_specs": (jax.P("data"), jax.P())}
        return jax.jit(jax.shard_map(jax.grad(value, (0, 1)), mesh=mesh, **specs))(x, kernel)

    options = {"out_sharding": jax.P("data", None, None)} if kind == "Explicit" else {}
    with jax.set_mesh(mesh):
        found, expected = (gradients(f, options) for f in (kernel_product, jax.lax.dot_general))
    assert [g.sharding for g in found] == [g.sharding for g in expected]
    # The same sums, in an order that is the compiler's.
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("spec", [("data", None), (None, "data")])
def test_the_gradient_of_a_kernel_is_where_the_kernel_is(rng, spec, widths):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    x, kernel = (jnp.asarray(rng.normal(size=shape)) for shape in ((3, widths[0]), widths))

    def value(kernel, product):
        place = None if spec[0] is None else jax.P(None, None)  # where sums over devices go
        y = product(x, kernel, (((1,), (0,)), ((), ())), out_sharding=place)
        return jnp.sum(jnp.sin(y))

    with jax.set_mesh(mesh):
        kernel = jax.device_put(kernel, jax.NamedSharding(mesh, jax.P(*spec)))
        found, expected = (
            jax.grad(value)(kernel, f) for f in (kernel_product, jax.lax.dot_general)
        )
    assert found.sharding == expected.sharding
    # The same sums, in an order that is the compiler's.
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-12)


def test_counts_times_a_kernel_have_gradients_by_the_kernel(rng):
    counts, kernel = jnp.asarray([[1, 2], [3, 4]]), jnp.asarray(rng.normal(size=(2, 3)))
    gradient = jax.grad(lambda kernel: jnp.sum(kernel_product(counts, kernel)))(kernel)
    np.testing.assert_array_equal(gradient, jnp.asarray([[4.0] * 3, [6.0] * 3]))
