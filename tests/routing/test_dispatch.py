"""Dispatch against loops over tokens: values, gradients, and that no token feels what becomes of
another.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.routing import expert_feed_forward, feed_forward_blocks, feed_forward_ragged, top_k
from vfejax.routing.dispatch import KEPT

EXPERTS, DIM, HIDDEN = 4, 5, 6
each_form = pytest.mark.parametrize("form", [feed_forward_blocks, feed_forward_ragged])

# Blocks of 1 row, of 4 with some left over, and of 32.
CHOICES = {
    "one row": [2],
    "fewer rows than experts": [3, 0, 3],
    "the first takes all": [0] * 50,
    "the last takes all": [3] * 50,
    "no row takes the second": [0, 2, 3, 3, 2, 3, 3] * 7 + [0],
    "one row over in every group": [0, 1, 2, 3] * 9 + [0, 1] * 7,
    "uneven": [3] * 200 + [1] + [0] * 33 + [3, 2] * 33,
}


def _kernels(rng, dtype=np.float64, num_experts=EXPERTS, dim=DIM, hidden=HIDDEN):
    shapes = (num_experts, dim, hidden), (num_experts, hidden, dim)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@partial(jax.jit, static_argnums=0)
def _value_and_gradients(form, rows, experts, kernel_in, kernel_out, cotangent):
    value, pull = jax.vjp(
        lambda x, *kernels: form(x, experts, *kernels, jnp.tanh), rows, kernel_in, kernel_out
    )
    return value, *pull(cotangent)


def _by_loop(rows, experts, kernel_in, kernel_out, cotangent):
    """The same in NumPy, one row after another, with the derivative by hand."""
    values, changes = np.zeros_like(rows), np.zeros_like(rows)
    changes_in, changes_out = np.zeros_like(kernel_in), np.zeros_like(kernel_out)
    for i, e in enumerate(experts):
        hidden = np.tanh(rows[i] @ kernel_in[e])
        values[i] = hidden @ kernel_out[e]
        change = (kernel_out[e] @ cotangent[i]) * (1.0 - hidden**2)
        changes[i] = kernel_in[e] @ change
        changes_in[e] += np.outer(rows[i], change)
        changes_out[e] += np.outer(hidden, cotangent[i])
    return values, changes, changes_in, changes_out


@each_form
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("one row", "float64", marks=pytest.mark.slow),
        *((name, "float64") for name in CHOICES if name != "one row"),
        pytest.param("uneven", "float32", marks=pytest.mark.slow),
    ],
)
def test_value_and_gradients_are_those_of_a_loop_over_rows(form, name, kind, rng):
    experts, dtype = CHOICES[name], jnp.dtype(kind)
    rows, cotangent = (
        jnp.asarray(rng.standard_normal((len(experts), DIM)), dtype) for _ in range(2)
    )
    kernels = _kernels(rng, dtype)
    found = _value_and_gradients(form, rows, jnp.asarray(experts, jnp.int32), *kernels, cotangent)
    found = [np.asarray(x) for x in found]
    rows, kernel_in, kernel_out, cotangent = (
        np.asarray(x, np.float64) for x in (rows, *kernels, cotangent)
    )
    expected = _by_loop(rows, experts, kernel_in, kernel_out, cotangent)
    chex.assert_type(found, dtype)
    # Sums of up to 266 products of three numbers of order 1.
    atol = 300 * float(jnp.finfo(dtype).eps)
    chex.assert_trees_all_close(found, list(expected), rtol=0, atol=atol)
    for unused in set(range(EXPERTS)) - set(experts):
        assert np.all(found[2][unused] == 0)
        assert np.all(found[3][unused] == 0)


@each_form
def test_an_activation_that_is_not_zero_at_zero_leaves_no_trace_of_the_padding(form, rng):
    experts = jnp.asarray(CHOICES["uneven"], jnp.int32)
    rows, (kernel_in, kernel_out) = (
        jnp.asarray(rng.standard_normal((len(experts), DIM))),
        _kernels(rng),
    )

    @jax.jit
    @jax.grad
    def gradient(kernel_out):
        return jnp.sum(form(rows, experts, kernel_in, kernel_out, jnp.cos))

    found, expected = gradient(kernel_out), np.zeros(kernel_out.shape)
    for row, e in zip(np.asarray(rows), CHOICES["uneven"], strict=True):
        expected[e] += np.cos(row @ np.asarray(kernel_in[e]))[:, None]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_kernel_gradients_of_many_blocks_are_summed_in_single_precision(rng):
    """Adding up 32 rows at a time, bfloat16 would stop at 8192."""
    num = 128 * 128
    rows, kernel = jnp.ones((num, 1), jnp.bfloat16), jnp.ones((1, 1, 1), jnp.bfloat16)
    experts = jnp.zeros(num, jnp.int32)

    def total(kernel_in):
        found = feed_forward_blocks(rows, experts, kernel_in, kernel, lambda x: x)
        return jnp.sum(found.astype(jnp.float32))

    assert float(jax.jit(jax.grad(total))(kernel)[0, 0, 0]) == num


# Width 5 with 20 rows: in blocks of 5 instead of 4, the last bits of a row depend on its place in
# float64.
@each_form
@pytest.mark.parametrize(
    ("tokens", "k", "dim", "hidden", "num_experts", "kind"),
    [
        pytest.param(768, 1, 128, 256, 4, "float32", marks=pytest.mark.slow),
        (768, 2, 128, 256, 4, "float32"),
        pytest.param(768, 2, 128, 256, 4, "bfloat16", marks=pytest.mark.slow),
        (10, 2, 5, 5, 2, "float64"),
        pytest.param(57, 2, 17, 1, 4, "float32", marks=pytest.mark.slow),
        pytest.param(96, 1, 33, 70, 3, "float64", marks=pytest.mark.slow),
    ],
)
def test_a_row_does_not_feel_the_others_bit_for_bit(
    form, tokens, k, dim, hidden, num_experts, kind, rng
):
    kernels = _kernels(rng, kind, num_experts, dim, hidden)
    jitted = jax.jit(lambda rows, experts: form(rows, experts, *kernels, jax.nn.gelu))

    def apply(rows, experts):
        return np.asarray(jitted(jnp.asarray(rows, kind), jnp.asarray(experts, jnp.int32)))

    token = np.arange(tokens)
    for kept in (
        token < tokens // 2,
        token >= tokens // 2,
        rng.random(tokens) < 0.3,
        token == tokens // 3,
    ):
        kept = np.repeat(kept, k)
        rows, others = (rng.standard_normal((tokens * k, dim)) for _ in range(2))
        experts, elsewhere = (rng.choice(num_experts, tokens * k) for _ in range(2))
        before = apply(rows, experts)
        after = apply(np.where(kept[:, None], rows, others), np.where(kept, experts, elsewhere))
        np.testing.assert_array_equal(before[kept], after[kept])
        assert np.any(before[~kept] != after[~kept])


def test_a_row_that_is_not_finite_spoils_no_other(rng):
    experts = jnp.asarray(CHOICES["uneven"], jnp.int32)
    rows, kernels = jnp.asarray(rng.standard_normal((len(experts), DIM))), _kernels(rng)
    cotangent = jnp.ones_like(rows)
    before = _value_and_gradients(feed_forward_blocks, rows, experts, *kernels, cotangent)
    after = _value_and_gradients(
        feed_forward_blocks, rows.at[7].set(jnp.nan), experts, *kernels, cotangent
    )
    before, after = ([np.asarray(x) for x in found] for found in (before, after))
    for old, new in zip(before[:2], after[:2], strict=True):
        np.testing.assert_array_equal(np.delete(new, 7, 0), np.delete(old, 7, 0))
        assert np.all(np.isnan(new[7]))
    np.testing.assert_array_equal(after[2][:3], before[2][:3])  # row 7 went to the last expert


@each_form
@pytest.mark.parametrize("wrong", [-1, EXPERTS])
def test_a_row_whose_expert_does_not_exist_is_nan_and_spoils_no_other(form, wrong, rng):
    experts = np.asarray([0, 3, 1, 2, 1, 0, 3], np.int32)
    rows, kernels = jnp.asarray(rng.standard_normal((len(experts), DIM))), _kernels(rng)
    cotangent = rng.standard_normal(rows.shape)
    gone = [1, 4]
    experts[gone] = wrong
    found = _value_and_gradients(form, rows, jnp.asarray(experts), *kernels, cotangent)
    value, change, *changes = (np.asarray(x) for x in found)
    assert np.all(np.isnan(value[gone]))
    assert np.all(change[gone] == 0)  # nothing is known of these rows
    rest = (np.delete(x, gone, 0) for x in (rows, experts, cotangent))
    kept_rows, kept_experts, kept_cotangent = rest
    expected = _by_loop(kept_rows, kept_experts, *(np.asarray(x) for x in kernels), kept_cotangent)
    found = [np.delete(value, gone, 0), np.delete(change, gone, 0), *changes]
    chex.assert_trees_all_close(found, list(expected), rtol=0, atol=1e-12)


@each_form
def test_no_rows_are_no_rows(form, rng):
    experts = jnp.zeros((0,), jnp.int32)
    found = _value_and_gradients(
        form, jnp.zeros((0, DIM)), experts, *_kernels(rng), jnp.zeros((0, DIM))
    )
    assert found[0].shape == found[1].shape == (0, DIM)
    assert not np.any(found[2])
    assert not np.any(found[3])


@each_form
def test_rows_and_experts_that_are_not_equally_many_are_named(form, rng):
    message = r"one expert each, got rows \(3, 5\) and experts \(4,\)"
    with pytest.raises(ValueError, match=message):
        form(jnp.zeros((3, DIM)), jnp.zeros(4, jnp.int32), *_kernels(rng), jnp.tanh)


def test_all_experts_are_the_dense_mixture(rng, dtype):
    x, logits = (
        jnp.asarray(rng.standard_normal((2, 3, DIM)), dtype),
        jnp.asarray(rng.standard_normal((2, 3, 4)), dtype),
    )
    kernels = _kernels(rng, dtype)
    found = jax.jit(lambda x, logits: expert_feed_forward(x, top_k(logits, 4), *kernels, jnp.tanh))(
        x, logits
    )
    hidden = np.tanh(np.einsum("bnd,edf->bnef", x, kernels[0]))
    expected = np.einsum("bnef,efd,bne->bnd", hidden, kernels[1], _softmax(np.asarray(logits)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=100 * float(jnp.finfo(dtype).eps))


def test_one_chosen_expert_teaches_the_router(rng):
    """Away from ties the choice is constant, and the output smooth in the logits."""
    x, logits = jnp.asarray(rng.standard_normal((6, DIM))), rng.standard_normal((6, EXPERTS))
    step = 1e-5
    assert np.diff(np.sort(logits, axis=-1), axis=-1).min() > 100 * step
    kernels = _kernels(rng)

    def energy(logits):
        return jnp.sum(expert_feed_forward(x, top_k(logits, 1), *kernels) ** 2)

    moves = step * np.eye(logits.size).reshape(-1, *logits.shape)

    @jax.jit
    def results(logits, moved):
        return jax.grad(energy)(logits), jax.lax.map(energy, moved)

    moved = np.concatenate([logits + moves, logits - moves])
    gradient, energies = jax.device_get(results(logits, moved))
    up, down = np.split(energies, 2)
    # Truncation of order step^2 and rounding of order eps / step, times an energy of about 1e3.
    np.testing.assert_allclose(np.ravel(gradient), (up - down) / (2 * step), rtol=0, atol=1e-6)
    assert np.all(np.abs(gradient) > 1e-4)


def test_a_gradient_that_recomputes_a_layer_may_keep_what_experts_cost():
    def square(x, kernel_in, kernel_out):
        routing = top_k(x[:, :EXPERTS], 2)
        return jnp.sum(expert_feed_forward(x, routing, kernel_in, kernel_out) ** 2)

    def work(function):
        program = jax.make_jaxpr(jax.grad(function, (0, 1, 2)))(np.ones((6, DIM)), *kernels)
        names = "scan", "ragged_dot_general", "sort", "cumsum", "scatter"
        return {name: str(program).count(f" {name}[") for name in names}

    kernels = _kernels(np.random.default_rng(0))
    policy = jax.checkpoint_policies.save_only_these_names(KEPT)
    assert work(jax.checkpoint(square, policy=policy)) == work(square)
    again = work(jax.checkpoint(square))
    assert all(again[name] > count for name, count in work(square).items())


@pytest.mark.parametrize(
    ("tokens", "num_experts", "kernel_in", "kernel_out", "message"),
    [
        ((3,), 4, (4, 5, 6), (4, 6, 5), r"routing must be for tokens \(2,\), got \(3,\)"),
        ((2,), 3, (4, 5, 6), (4, 6, 5), "routing must be for 4 experts, got 3"),
        ((2,), 4, (4, 6, 5), (4, 6, 5), r"kernel_in must be \[e, 5, f\], got \(4, 6, 5\)"),
        ((2,), 4, (4, 5), (4, 5), r"kernel_in must be \[e, 5, f\], got \(4, 5\)"),
        ((2,), 4, (4, 5, 6), (4, 5, 6), r"kernel_out must be \(4, 6, 5\) .* got \(4, 5, 6\)"),
        ((2,), 4, (4, 5, 6), (3, 6, 5), r"kernel_out must be \(4, 6, 5\) .* got \(3, 6, 5\)"),
    ],
)
def test_wrong_shapes_are_named(tokens, num_experts, kernel_in, kernel_out, message):
    routing = jax.eval_shape(lambda x: top_k(x, 1), np.zeros((*tokens, num_experts)))
    inputs = np.zeros((2, 5)), routing, np.zeros(kernel_in), np.zeros(kernel_out)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(expert_feed_forward, *inputs)
