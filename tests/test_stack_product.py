import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vfejax import numerics
from vfejax.stack_product import fits, stack_product

NUM = 33  # written out on a CPU; NumPy's stacks of 3 are not
ORIENTATIONS = pytest.mark.parametrize(
    ("left_axis", "right_axis"), [(-1, -2), (-2, -2), (-1, -1), (-2, -1)]
)
jitted = jax.jit(stack_product, static_argnums=(2, 3, 4))


def factors(rng, left_axis, right_axis, num=NUM):
    """Stacks of 2 x 4 and 4 x 3 matrices, laid out so that the given axes are summed over."""
    left, right = rng.normal(size=(num, 2, 4)), rng.normal(size=(num, 4, 3))
    expected = left @ right
    left = left if left_axis == -1 else np.swapaxes(left, -1, -2)
    right = right if right_axis == -2 else np.swapaxes(right, -1, -2)
    return left, right, expected


@ORIENTATIONS
@pytest.mark.parametrize("num", [3, NUM], ids=["few", "many"])
def test_products_are_numpys(left_axis, right_axis, num, rng, dtype):
    left, right, expected = factors(rng, left_axis, right_axis, num)
    product = jitted(left.astype(dtype), right.astype(dtype), left_axis, right_axis)
    chex.assert_type(product, dtype)
    # four products of numbers of order 1 are summed
    np.testing.assert_allclose(product, expected, rtol=0, atol=50 * jnp.finfo(dtype).eps)


@ORIENTATIONS
@pytest.mark.parametrize("num", [3, NUM], ids=["few", "many"])
def test_the_stack_may_lie_behind(left_axis, right_axis, num, rng):
    left, right, expected = factors(rng, left_axis, right_axis, num)
    left, right = np.moveaxis(left, 0, -1), np.moveaxis(right, 0, -1)
    product = jitted(left, right, left_axis, right_axis, 1)
    np.testing.assert_allclose(np.moveaxis(product, -1, 0), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("left_axis", "right_axis", "lanes"), [(-1, -2, 0), (-2, -1, 1)])
def test_derivatives_to_second_order(left_axis, right_axis, lanes, rng):
    left, right, _ = factors(rng, left_axis, right_axis)
    if lanes:
        left, right = np.moveaxis(left, 0, -1), np.moveaxis(right, 0, -1)
    check_grads(
        jax.jit(lambda x, y: jnp.sin(stack_product(x, y, left_axis, right_axis, lanes))),
        (left, right),
        order=2,
        modes=("fwd", "rev"),
    )


def test_every_derivative_is_written_out_too(rng):
    """A product of the compiled gradient that is not written out would be a ``dot_general``."""
    left, right, _ = factors(rng, -1, -2)

    def slope(x, y):
        return jax.grad(lambda x, y: jnp.sum(stack_product(x, y) ** 2), argnums=(0, 1))(x, y)

    if jax.default_backend() != "cpu":
        pytest.skip("written out on a CPU only")
    lowered = jax.jit(slope).lower(left, right).as_text()
    products = str(jax.make_jaxpr(slope)(left, right))
    assert products.count("stack_product") == 3
    assert "dot_general" not in products
    assert lowered.count("stablehlo.case") >= 1


@pytest.mark.parametrize(
    ("shape", "products"), [((15, 15), 0), ((31, 5, 5), 0), ((16, 16), 1), ((31, 6, 6), 1)], ids=str
)
def test_only_a_few_larger_matrices_take_a_product_of_their_own(shape, products):
    """One in a loop keeps XLA from compiling a step of the loop into one function."""
    if jax.default_backend() != "cpu":
        pytest.skip("written out on a CPU only")
    matrix = jnp.ones(shape)
    lowered = jax.jit(lambda x: stack_product(x, x, -2, -1)).lower(matrix).as_text()
    assert lowered.count("dot_general") == products


@pytest.mark.parametrize("axes", [(1, None), (None, 0), (2, 1)], ids=str)
def test_vmap_is_a_larger_stack(axes, rng):
    left, right, expected = factors(rng, -1, -2, num=5)
    mapped = [
        x if axis is None else np.stack([x, 2.0 * x], axis=axis)
        for x, axis in zip((left, right), axes, strict=True)
    ]
    product = jax.jit(jax.vmap(stack_product, in_axes=axes))(*mapped)
    factor = 2.0 ** sum(axis is not None for axis in axes)
    np.testing.assert_allclose(product, np.stack([expected, factor * expected]), rtol=1e-13)


def test_a_bad_member_stays_alone(rng):
    left, right, expected = factors(rng, -1, -2)
    for member in (0, 7):  # the first number of the first member is looked at
        bad = left.copy()
        bad[member, 0, 0] = np.nan
        product = np.array(jitted(bad, right, -1, -2))
        assert np.all(np.isnan(product[member, 0]))
        product[member, 0] = expected[member, 0]
        np.testing.assert_allclose(product, expected, rtol=0, atol=1e-14)


def test_eager_and_compiled_agree(rng):
    left, right, expected = factors(rng, -1, -2)
    np.testing.assert_allclose(stack_product(left, right), expected, rtol=0, atol=1e-14)
    with jax.disable_jit():
        np.testing.assert_allclose(stack_product(left, right), expected, rtol=0, atol=1e-14)


def test_every_device_of_a_mesh_multiplies_its_own_stack(rng):
    left, right, expected = factors(rng, -1, -2)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    places = {"in_specs": jax.P("data"), "out_specs": jax.P("data")}
    product = jax.jit(jax.shard_map(stack_product, mesh=mesh, **places))(left, right)
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-14)


def test_what_fits():
    stack = jnp.ones((NUM, 3, 3))
    assert fits(stack, stack)
    assert fits(jnp.eye(3), jnp.eye(3))
    assert fits(jnp.ones((3, 3, NUM)), jnp.ones((3, 2, NUM)), lanes=1)
    assert not fits(stack, stack, lanes=1)
    assert not fits(stack, jnp.ones((1, 3, 3)))
    assert not fits(jnp.ones((NUM, 3, 17)), jnp.ones((NUM, 17, 3)))
    assert not fits(stack.astype(jnp.bfloat16), stack.astype(jnp.bfloat16))
    assert not fits(stack.astype(complex), stack.astype(complex))
    assert not fits(stack[:, :0], stack[..., :0])


def test_transposed_products_of_any_factors(rng):
    left, right = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    np.testing.assert_allclose(numerics.matmul_tn(left, right), left.T @ right, rtol=1e-13)
    np.testing.assert_allclose(numerics.matmul_nt(left.T, right.T), left.T @ right, rtol=1e-13)
