"""What experts are worth, against a loop over tokens; and what those that stay are scaled by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from vfejax.compression.experts import combined_scale, expert_statistics, kept_scale, shares
from vfejax.routing import gumbel_top_k, top_k

scale_of = jax.jit(kept_scale, static_argnames=("k", "router_fn"))


@pytest.fixture(scope="module")
def layer():
    rng = np.random.default_rng(0)
    shapes = {"x": (20, 4), "logits": (20, 3), "kernel_in": (3, 4, 5), "kernel_out": (3, 5, 4)}
    found = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    found["logits"][:, 2] = -50.0  # the last expert reads nothing
    return found


def test_statistics_are_means_over_the_tokens_that_an_expert_reads(layer):
    @jax.jit
    def told(layer):
        routing = top_k(layer["logits"], 1)
        return routing, expert_statistics(**layer, routing=routing, activation_fn=jnp.tanh)

    routing, found = jax.device_get(told(layer))
    reads = {expert: [] for expert in range(3)}
    for i in range(20):
        expert = int(routing.experts[i, 0])
        x, weight = layer["x"][i], routing.weights[i, 0]
        hidden = np.tanh(x @ layer["kernel_in"][expert])
        norm = np.linalg.norm(hidden @ layer["kernel_out"][expert])
        reads[expert].append((norm, weight * norm, np.outer(x, x), np.outer(hidden, hidden)))
    for expert, rows in reads.items():
        expected = [np.mean([row[i] for row in rows], axis=0) if rows else 0.0 for i in range(4)]
        names = ("activation", "contribution", "inputs", "hidden")
        for name, value in zip(names, expected, strict=True):
            # Sums of 20 numbers of size 1 in another order.
            np.testing.assert_allclose(getattr(found, name)[expert], value, rtol=0, atol=1e-14)
        assert found.frequency[expert] == len(rows) / 20
    np.testing.assert_allclose(np.diagonal(found.similarity), 1.0, rtol=1e-14)


def test_experts_that_stay_say_what_they_said_among_all(layer):
    """Without the last, which has no weight, nothing changes; without the second, all is left to
    the first, whose weight 1 is scaled to the mean of what it had.
    """
    both = scale_of(layer["logits"], np.asarray([0, 1]), k=1)
    np.testing.assert_allclose(both, 1.0, rtol=1e-14)
    alone = scale_of(layer["logits"], np.asarray([0]), k=1)
    expected = np.mean(softmax(layer["logits"], axis=-1)[:, 0])
    np.testing.assert_allclose(alone, [expected], rtol=1e-14)


@pytest.mark.parametrize("k", [1, 2])
def test_equal_weights_of_fewer_choices_are_scaled_back(layer, k):
    """A router that gives 1 / k gives more where fewer than k experts are left."""
    found = scale_of(layer["logits"], np.asarray([1]), k=k, router_fn=gumbel_top_k)
    np.testing.assert_allclose(found, [1 / k], rtol=1e-14)


def test_a_merged_expert_has_the_weights_of_its_members(layer):
    """With all chosen, the members' weights add up; the scale makes up for the router, in which
    they do not.
    """
    mixing = np.asarray([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])
    members = (mixing > 0).astype(mixing.dtype)

    @jax.jit
    def told(logits, mixing, members):
        return combined_scale(logits, mixing, members, 3), shares(top_k(logits @ mixing, 2))

    found, new = jax.device_get(told(layer["logits"], mixing, members))
    old = softmax(layer["logits"], axis=-1) @ members
    expected = np.sum(new * old, axis=0) / np.sum(new * new, axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_an_expert_that_reads_nothing_is_not_scaled(layer):
    assert np.asarray(scale_of(layer["logits"], np.asarray([0, 2]), k=1))[1] == 1.0
