"""The layer of experts against its formula, and as a part of a model: precision, batches, stacks,
causality.
"""

import math
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vfejax import routing
from vfejax.models.resnet_bk.experts import MixtureOfExperts

pytestmark = pytest.mark.usefixtures("library_promotion")

DIM, HIDDEN = 6, 8


@cache
def _module(num_experts=4, top_k=1, dtype=jnp.float64, dim=DIM, hidden=HIDDEN, seed=0, **options):
    module = MixtureOfExperts(
        dim, hidden, num_experts, top_k, dtype=dtype, rngs=nnx.Rngs(seed), **options
    )
    # Larger than at first, so that outputs and choices matter.
    for weights in (
        module.kernel_in,
        module.kernel_out,
        *([module.router.kernel] if num_experts > 1 else []),
    ):
        weights[...] = jnp.asarray(20.0 * np.asarray(weights[...]))
    return module


@cache
def _pure(module):
    """The compiled layer as a function of its parameters, and these."""
    graphdef, params = nnx.split(module)

    def apply(params, x, key=None):
        found, sums = nnx.merge(graphdef, params)(x, key)
        return found, None if sums is None else routing.router_losses(sums)

    return jax.jit(apply), params


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.fixture
def states(rng):
    return rng.standard_normal((3, 7, DIM))


def test_one_expert_is_a_plain_layer_without_a_router(states):
    module = _module(num_experts=1)
    found, sums = _pure(module)[0](nnx.state(module), states)
    assert set(nnx.state(module)) == {"kernel_in", "kernel_out"}
    kernel_in, kernel_out = np.asarray(module.kernel_in[...]), np.asarray(module.kernel_out[...])
    expected = _gelu(states @ kernel_in[0]) @ kernel_out[0]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    assert sums is None


@pytest.mark.parametrize("k", [2, 4])
def test_output_and_statistics_are_the_formula(k, states):
    module = _module(top_k=k)
    apply, params = _pure(module)
    found, statistics = apply(params, states)
    logits = states @ np.asarray(module.router.kernel[...])
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = p >= np.sort(p, axis=-1)[..., -k, None]
    hidden = _gelu(np.einsum("bnd,edf->bnef", states, module.kernel_in[...]))
    expected = np.einsum("bnef,efd,bne->bnd", hidden, module.kernel_out[...], p * chosen)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    usage = chosen.mean((0, 1)) / k
    np.testing.assert_allclose(statistics.usage, usage, rtol=1e-14)
    np.testing.assert_allclose(statistics.load_balance, 4 * usage @ p.mean((0, 1)), rtol=1e-13)
    np.testing.assert_allclose(
        statistics.router_z, np.mean(np.log(np.exp(logits).sum(-1)) ** 2), rtol=1e-12
    )


def test_half_precision_keeps_weights_and_choices_in_single(states):
    half, single = (_module(top_k=2, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    states = jnp.asarray(states, jnp.bfloat16)
    (found, statistics), (exact, expected) = (
        _pure(m)[0](nnx.state(m), states) for m in (half, single)
    )
    chex.assert_type(jax.tree.leaves((nnx.state(half), statistics)), jnp.float32)
    chex.assert_type([found, exact], [jnp.bfloat16, jnp.float32])
    # The same numbers in the same arithmetic: an output alone may be rounded.
    chex.assert_trees_all_equal(statistics, expected)
    # Kernels, hidden layer, outputs and weights are each rounded to 8 bits, and then added up.
    exact = np.asarray(exact)
    error = np.abs(np.asarray(found, np.float32) - exact).max() / np.abs(exact).max()
    assert 0 < error < 8 * 2.0**-8


@pytest.mark.slow  # in a model: decoding in tests/models/test_sequence_models.py
def test_a_token_alone_is_what_it_is_in_a_batch(states):
    apply, params = _pure(_module(top_k=2))
    whole, _ = apply(params, states)
    column, _ = apply(params, states[:, 4])
    np.testing.assert_allclose(column, whole[:, 4], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_later_tokens_and_other_sequences_leave_an_output_bit_identical(k, rng):
    apply, params = _pure(_module(top_k=k, dtype=jnp.float32, dim=128, hidden=256))
    states, others = (rng.standard_normal((3, 256, 128)).astype(np.float32) for _ in range(2))
    before, statistics = apply(params, states)
    assert np.all(statistics.usage > 0)
    for changed in (np.s_[:, 100:], np.s_[:2], np.s_[1:]):
        kept = np.ones(states.shape, bool)
        kept[changed] = False
        after, changes = apply(params, np.where(kept, states, others))
        assert np.any(changes.usage != statistics.usage)
        before, after = np.asarray(before), np.asarray(after)
        np.testing.assert_array_equal(after[kept], before[kept])
        assert np.all(np.any((after != before)[changed], axis=-1))


@pytest.mark.parametrize(
    "router_fn",
    [routing.top_k, pytest.param(routing.gumbel_top_k, marks=pytest.mark.slow)],
)
def test_every_chosen_expert_and_the_whole_router_learn(router_fn, states):
    apply, params = _pure(_module(router_fn=router_fn))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        found, statistics = apply(params, states)
        return jnp.sum(found**2), statistics.usage

    changes, usage = jax.device_get(gradient(params))
    assert np.any(usage == 0)  # by this seed: both sides of the claim are tested
    for name in ("kernel_in", "kernel_out"):
        change = np.asarray(changes[name][...])
        np.testing.assert_array_equal(np.any(change != 0, axis=(1, 2)), np.asarray(usage) > 0)
        chex.assert_tree_all_finite(change)
    assert np.all(changes["router"]["kernel"][...] != 0)


def test_a_key_draws_experts_and_none_takes_the_most_probable(states):
    apply, params = _pure(_module(router_fn=routing.gumbel_top_k))
    usages = [apply(params, states, jax.random.key(seed))[1].usage for seed in (0, 0, 1)]
    np.testing.assert_array_equal(usages[0], usages[1])
    assert np.any(usages[0] != usages[2])
    first, second = (apply(params, states)[1].usage for _ in range(2))
    np.testing.assert_array_equal(first, second)
    plain, params = _pure(_module())
    np.testing.assert_array_equal(first, plain(params, states)[1].usage)


def test_stacked_layers_equal_one_after_another(states):
    apply, first = _pure(_module(top_k=2))
    params = [jax.tree.map(lambda x, n=n: np.roll(x, n, axis=-1), first) for n in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)

    @partial(jax.jit, static_argnums=0)
    def energies(over, params):
        return over(
            jax.value_and_grad(lambda params: jnp.sum(apply(params, states)[0] ** 2)), params
        )

    together = energies(lambda f, params: jax.vmap(f)(params), stacked)
    one = lambda f, params: f(params)  # noqa: E731
    alone = [energies(one, layer) for layer in params]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
    chex.assert_trees_all_close(together, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("k", [0, 5])
def test_a_wrong_k_is_named(k):
    with pytest.raises(ValueError, match=f"top_k must lie between 1 and num_experts 4, got {k}"):
        _module(top_k=k)
