"""Attention through JAX's own function: equal where it is taken, refused elsewhere."""

import chex
import jax
import jax.numpy as jnp
import pytest

from vfejax.attention.dot_product import dot_product
from vfejax.attention.toroidal import axial_attention, dense, toroidal_attention


@pytest.mark.usefixtures("library_promotion")
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_value_and_gradient_are_those_of_the_definition(dtype, rng):
    arrays = [jnp.asarray(rng.normal(size=(2, 6, 4, 2)), dtype) for _ in range(3)]

    def both(method, attention_fn, causal):
        options = {"depth": 2, "slope": None, "circumference": 6, "causal": causal}
        attend = lambda *x: attention_fn(*x, method=method, **options)  # noqa: E731
        answer, pull_back = jax.vjp(attend, *arrays)
        return answer, pull_back(answer)

    cases = [(axial_attention, True), (toroidal_attention, False)]
    ours, expected = jax.jit(
        lambda: [[both(method, *case) for case in cases] for method in (dot_product, dense)]
    )()
    chex.assert_trees_all_equal_dtypes(ours, expected)
    # Numbers of order one, rounded a few times on the way.
    ours, expected = jax.tree.map(lambda x: x.astype(jnp.float32), (ours, expected))
    chex.assert_trees_all_close(ours, expected, rtol=0, atol=16 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({"slope": 1.0}, "float32", "no distance bias"),
        ({"window": 1}, "float32", "no window round the ring, got window 1"),
        ({"mask": jnp.ones((1, 1, 1, 3), bool)}, "float32", "mean of all values and not 0"),
        ({"causal": True, "positions": jnp.arange(3)}, "float32", "got positions"),
        ({"causal": True}, "float32", "later platters of one place, got depth 2"),
        ({}, "float64", "softmax is taken in float32, got a query of float64"),
    ],
)
def test_what_it_does_not_compute_exactly_is_refused_with_the_reason(options, dtype, reason):
    array = jnp.zeros((1, 3, 2, 2), dtype)
    with pytest.raises(ValueError, match=rf"{reason}.*take the method dense or blockwise\(\)"):
        toroidal_attention(
            array,
            array,
            array,
            method=dot_product,
            **{"depth": 2, "slope": None, "circumference": 3, **options},
        )


def test_values_of_another_width_are_refused():
    array = jnp.zeros((1, 3, 2, 2), jnp.float32)
    with pytest.raises(ValueError, match="keys and values must have one shape"):
        axial_attention(
            array,
            array,
            array[..., :1],
            depth=1,
            slope=None,
            circumference=3,
            method=dot_product,
        )
