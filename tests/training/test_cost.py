"""Operations of matrix products, against products counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from vfejax.training.cost import product_flops

ROWS = jnp.ones((6, 4))
MATRIX = jnp.ones((4, 5))
STACK = jnp.ones((2, 4, 5))
SIZES = jnp.asarray([2, 4])
ONCE = 2 * 6 * 4 * 5


def _ragged(rows, stack):
    return jnp.sum(jax.lax.ragged_dot(rows, stack, SIZES) ** 2)


def _loop(rows, matrix):
    return jax.lax.scan(lambda x, _: ((x @ matrix) @ matrix.T, None), rows, length=3)[0]


def _branches(rows, matrix):
    return jax.lax.cond(rows[0, 0] > 0, lambda: rows @ matrix, lambda: (rows * 2 @ matrix) * 2)


@pytest.mark.parametrize(
    ("function", "arguments", "products"),
    [
        (lambda x, y: jnp.einsum("nk,bkm->bnm", x, y), (ROWS, STACK), 2),
        (_loop, (ROWS, MATRIX), 6),
        (_branches, (ROWS, MATRIX), 1),
        (jax.jit(jnp.matmul), (ROWS, MATRIX), 1),
        (_ragged, (ROWS, STACK), 1),
        (jax.grad(_ragged, (0, 1)), (ROWS, STACK), 3),
        (jax.grad(lambda x, y: jnp.sum((x @ y) ** 2), (0, 1)), (ROWS, MATRIX), 3),
        (lambda x: jnp.tanh(x) * 2, (ROWS,), 0),
    ],
)
def test_every_product_counts_once_for_each_time_it_is_computed(function, arguments, products):
    assert product_flops(function, *arguments) == products * ONCE
