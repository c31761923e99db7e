"""Block-wise attention: memory, half precision, what is not read, transformations."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.blockwise import blockwise
from vfejax.attention.toroidal import axial_attention, dense, toroidal_attention

METHOD = blockwise(4, 8)


def loss_of(method, **options):
    """Sum of squares of the answer, with its gradient by query, key, value and slope."""

    def loss(query, key, value, slope):
        answer = toroidal_attention(query, key, value, slope=slope, method=method, **options)
        return jnp.sum(answer.astype(jnp.float32) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))


def compiled(method, n, depth):
    """Bytes that the gradient of one call needs besides arguments and results."""
    array = jax.ShapeDtypeStruct((1, n, 2 * depth, 8), jnp.float32)
    slope = jax.ShapeDtypeStruct((2,), jnp.float32)
    loss = loss_of(method, depth=depth, circumference=n)
    program = jax.jit(loss).lower(array, array, array, slope).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_of_the_gradient_grows_with_the_tokens():
    method = blockwise(16, 32)
    # The workspace of cuBLAS counts as temporary memory, whatever the size.
    workspace = 2**25 if jax.default_backend() == "gpu" else 0
    small, large = (compiled(method, n, 2) - workspace for n in (128, 512))
    inputs = 4 * (3 * 512 * 4 * 8)
    # What does not grow with the length counts in `small` alone.
    assert large < 4.2 * small
    # Query, key, value, their gradients, the answer, and the strip of 16 numbers per token.
    assert large < 6 * inputs
    assert compiled(dense, 512, 2) - workspace > 10 * large


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_is_summed_in_float32(dtype):
    eps = float(jnp.finfo(dtype).eps)
    ones = jnp.ones((1, 600, 1, 2), dtype)

    def attend(value):
        return axial_attention(
            ones, ones, value, depth=1, slope=1.0, circumference=600, method=blockwise()
        )

    @jax.jit
    def both(value):
        answer, pull_back = jax.vjp(attend, value)
        return answer, pull_back(value)[0]

    answer, to_value = both(ones)
    chex.assert_type([answer, to_value], dtype)
    # 600 weights that differ by a factor of up to 2, rounded one by one but not in their sum: a sum
    # in bfloat16 stays at 256 ones.
    for found in (answer, to_value):
        chex.assert_trees_all_close(found.astype(jnp.float32), 1.0, rtol=0, atol=2 * eps)


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "window": 3},
        {"window": 2},
        pytest.param({"causal": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_blocks_that_nobody_may_read_are_not_read(options, rng):
    query, key, value = (jnp.asarray(rng.normal(size=(1, 16, 2, 2))) for _ in range(3))
    attend = jax.jit(
        partial(toroidal_attention, depth=2, slope=1.0, circumference=16, method=METHOD, **options)
    )
    before = attend(query, key, value)
    # Blocks of 2 keys and of 4 queries: those at 4 to 7 may not read the keys at 10 to 13. A NaN
    # that is read shows, even at weight 0.
    after = attend(query, key, value.at[:, 10:14].set(jnp.nan))
    chex.assert_trees_all_equal(after[:, 4:8], before[:, 4:8])
    assert np.all(np.isnan(np.asarray(after)[:, 12]))


def test_checkpoint_and_vmap_change_nothing(rng):
    arrays = [jnp.asarray(rng.normal(size=(3, 2, 6, 2, 2))) for _ in range(3)]
    slopes = jnp.asarray([0.0, 1.0, 5.0])
    options = {"depth": 2, "circumference": 7, "causal": True}

    def kept(query, key, value, slope):
        attend = partial(toroidal_attention, method=METHOD, **options)
        answer_fn = jax.checkpoint(lambda *x: attend(*x[:3], slope=x[3]))
        return jnp.sum(answer_fn(query, key, value, slope).astype(jnp.float32) ** 2)

    mapped, single = jax.jit(
        lambda *x: (
            jax.vmap(loss_of(METHOD, **options))(*x),
            jax.value_and_grad(kept, (0, 1, 2, 3))(*(y[1] for y in x)),
        )
    )(*arrays, slopes)
    # The loss is taken in float32.
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], mapped), single, rtol=1e-6, atol=1e-6)


def test_nan_stays_in_its_sequence(rng):
    query, key, value = (jnp.asarray(rng.normal(size=(2, 6, 2, 2))) for _ in range(3))
    loss = loss_of(METHOD, depth=2, circumference=6)
    gradients = jax.jit(loss)(query.at[0, 1].set(jnp.nan), key, value, jnp.asarray(1.0))[1]
    chex.assert_tree_all_finite([x[1] for x in gradients[:3]])
    assert np.all(np.isnan(np.asarray(gradients[0])[0, 1]))


def test_no_tokens_and_one():
    for n in (0, 1):
        array = jnp.ones((1, n, 2, 2))
        answer = jax.jit(
            partial(toroidal_attention, depth=2, slope=1.0, circumference=4, method=METHOD)
        )(array, array, array)
        chex.assert_trees_all_close(answer, array)


@pytest.mark.parametrize("name", ["block_size", "query_block_size"])
def test_errors_name_the_argument(name):
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, got 0"):
        blockwise(**{name: 0})
