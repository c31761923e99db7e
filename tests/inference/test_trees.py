"""Sum-product and max-product on trees against all assignments."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.trees import max_product, sum_product

# Two trees and a node alone; some edges lead to the root, some away from it.
EDGES = np.array([[0, 1], [2, 1], [1, 3], [3, 4], [6, 5]])
V, K = 8, 3
run = jax.jit(lambda nodes, pairs: sum_product(nodes, pairs, EDGES))
decode = jax.jit(lambda nodes, pairs: max_product(nodes, pairs, EDGES))


def draw(rng, impossible):
    nodes, pairs = rng.normal(size=(V, K)), rng.normal(size=(len(EDGES), K, K))
    if impossible:
        nodes[3, 1] = nodes[5, 2] = -np.inf
        pairs[0, :, 1] = pairs[2, 0, 0] = -np.inf
    return nodes, pairs


def enumerate_all(nodes, pairs, edges):
    weights, scores = {}, {}
    for x in itertools.product(range(nodes.shape[1]), repeat=len(nodes)):
        score = sum(nodes[v, a] for v, a in enumerate(x))
        score += sum(pairs[e, x[a], x[b]] for e, (a, b) in enumerate(edges))
        weights[x], scores[x] = np.exp(score), score
    total = sum(weights.values())
    marginals, joint = np.zeros(nodes.shape), np.zeros(pairs.shape)
    for x, weight in weights.items():
        for v, a in enumerate(x):
            marginals[v, a] += weight / total
        for e, (a, b) in enumerate(edges):
            joint[e, x[a], x[b]] += weight / total
    best = max(scores, key=scores.get)
    return marginals, joint, np.log(total), (best, scores[best])


@pytest.mark.parametrize("impossible", [False, True])
def test_equals_the_sum_over_all_assignments(impossible, rng):
    nodes, pairs = draw(rng, impossible)
    found, assignment = run(nodes, pairs), decode(nodes, pairs)
    marginals, joint, log_partition, (best, score) = enumerate_all(nodes, pairs, EDGES)
    assert assignment.nodes.tolist() == list(best)
    np.testing.assert_allclose(assignment.log_score, score, rtol=1e-14)
    # A few dozen roundings.
    np.testing.assert_allclose(found.nodes, marginals, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.edges, joint, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.log_partition, log_partition, rtol=1e-14)


def test_an_impossible_forest_has_a_score_of_minus_infinity_and_nan_stays_nan(rng):
    nodes, pairs = draw(rng, False)
    nodes[7] = -np.inf
    assert decode(nodes, pairs).log_score == run(nodes, pairs).log_partition == -np.inf
    nodes[2, 0] = np.nan
    assert np.isnan(decode(nodes, pairs).log_score)


@pytest.mark.slow
def test_gradient_of_the_log_partition_is_the_marginals(rng):
    nodes, pairs = rng.normal(size=(V, K)), rng.normal(size=(len(EDGES), K, K))
    nodes[3, 1] = -np.inf
    slope = jax.jit(jax.grad(lambda *x: sum_product(*x, EDGES).log_partition, argnums=(0, 1)))
    found = run(nodes, pairs)
    for got, expected in zip(slope(nodes, pairs), (found.nodes, found.edges), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["path", "star", "random"])
def test_large_trees_in_single_precision(shape, rng):
    """Ising variables without fields: ``Z = 2 (2 cosh J)^e`` on every tree."""
    num = 3000
    above = {
        "path": np.arange(num - 1),
        "star": np.zeros(num - 1, int),
        "random": (rng.random(num - 1) * np.arange(1, num)).astype(int),
    }[shape]
    edges = np.stack([above, np.arange(1, num)], axis=1)
    pair = jnp.array([[0.4, -0.4], [-0.4, 0.4]], "float32")
    found = jax.jit(lambda p: sum_product(jnp.zeros((num, 2), "float32"), p, edges))(pair)
    # All equal; the lowest value at the root decides between the two best.
    assignment = jax.jit(lambda p: max_product(jnp.zeros((num, 2), "float32"), p, edges))(pair)
    assert not assignment.nodes.any()
    np.testing.assert_allclose(assignment.log_score, 0.4 * (num - 1), rtol=1e-5)
    expected = np.log(2.0) + (num - 1) * np.log(2 * np.cosh(0.4))
    np.testing.assert_allclose(found.log_partition, expected, rtol=1e-5)
    np.testing.assert_allclose(found.nodes, 0.5, rtol=0, atol=1e-3)
    agree = np.exp(0.4) / (2 * np.cosh(0.4)) / 2
    np.testing.assert_allclose(found.edges[:, 0, 0], agree, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("edges", "pairs", "message"),
    [
        ([[0, 1], [1, 2], [2, 0]], np.zeros((2, 2)), "edge 1 closes a cycle|edge 2 closes a cycle"),
        ([[0, 1], [1, 0]], np.zeros((2, 2)), "closes a cycle"),
        ([[0, 3]], np.zeros((2, 2)), r"nodes 0 to 2; edge 0 is \[0, 3\]"),
        ([[0, 1]], np.zeros((3, 3)), r"log_pairs must be \[2, 2\] or \[1, 2, 2\]"),
        ([[0.0, 1.0]], np.zeros((2, 2)), "edges must be integers"),
    ],
)
def test_refuses(edges, pairs, message):
    with pytest.raises(ValueError, match=message):
        sum_product(np.zeros((3, 2)), pairs, np.array(edges))


def test_a_long_path_copies_no_messages_from_row_to_row(rng):
    """Its time was quadratic: every row copied the messages of all."""
    v = 300
    nodes, pair = rng.normal(size=(v, K)), rng.normal(size=(K, K))
    edges = np.stack([np.arange(v - 1), np.arange(1, v)], axis=1)
    program = jax.jit(lambda nodes, pair: sum_product(nodes, pair, edges))
    compiled = program.lower(nodes, pair).compile()
    if jax.default_backend() == "cpu":
        # Two are of the results; there were six.
        assert len(re.findall(r"\[301,3\]\S* copy\(", compiled.as_text())) <= 2
    found = compiled(nodes, pair)
    left, right, log_partition = [np.ones(K)], [np.ones(K)], 0.0
    for i in range(v - 1):
        left.append((left[-1] * np.exp(nodes[i])) @ np.exp(pair))
        right.append(np.exp(pair) @ (right[-1] * np.exp(nodes[-1 - i])))
        log_partition += np.log(left[-1].sum())
        left[-1], right[-1] = left[-1] / left[-1].sum(), right[-1] / right[-1].sum()
    joint = np.array(left) * np.array(right[::-1]) * np.exp(nodes)
    log_partition += np.log(joint[-1].sum())
    np.testing.assert_allclose(found.nodes, joint / joint.sum(1)[:, None], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.log_partition, log_partition, rtol=1e-14)
