"""Gaussian trees against the joint density of all nodes, and a path against a chain."""

import re

import chex
import jax
import numpy as np
import pytest
from jax.test_util import check_grads

from vfejax.inference.chains import LinearGaussian, kalman_smoother
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.inference.gaussian_trees import tree_smoother

# Two trees and a node alone, whose numbers are in no order.
EDGES = np.array([[4, 1], [1, 0], [1, 2], [4, 3], [6, 5], [3, 8]])
V, N, O = 9, 2, 3
run = jax.jit(lambda model, y, mask: tree_smoother(model, EDGES, y, mask))


def covariance(rng, *shape):
    root = rng.normal(size=(*shape, shape[-1]))
    return root @ root.swapaxes(-1, -2) + 0.1 * np.eye(shape[-1])


def draw(rng):
    """Everything changes; one edge is known exactly, and roots in one direction."""
    noise = covariance(rng, len(EDGES), N)
    noise[1] = 0.0
    model = LinearGaussian(
        rng.normal(size=N),
        np.diag([2.0, 0.0]),
        rng.normal(size=(len(EDGES), N, N)),
        noise,
        rng.normal(size=(V, O, N)),
        covariance(rng, V, O),
        rng.normal(size=(len(EDGES), N)),
        rng.normal(size=(V, O)),
    )
    mask = rng.random((V, O)) < 0.6
    mask[2] = mask[4] = False
    return model, np.where(mask, rng.normal(size=(V, O)), np.nan), mask


def joint_gaussian(model, y, mask):
    """Posterior mean ``[v, n]``, covariance ``[v, n, v, n]`` and log evidence, in float64."""
    model = jax.tree.map(lambda x: np.asarray(x, np.float64), model)
    mean, cov = np.zeros((V, N)), np.zeros((V, N, V, N))
    roots = sorted(set(range(V)) - set(EDGES[:, 1].tolist()))
    for v in roots:
        mean[v], cov[v, :, v] = model.initial_mean, model.initial_cov
    done = list(roots)
    while len(done) < V:
        for e, (a, b) in enumerate(EDGES.tolist()):
            if a in done and b not in done:
                push = model.transition[e]
                mean[b] = push @ mean[a] + model.transition_offset[e]
                cov[b] = np.einsum("ij,jvk->ivk", push, cov[a])
                cov[:, :, b] = np.moveaxis(cov[b], 0, -1)
                cov[b, :, b] = push @ cov[a, :, a] @ push.T + model.transition_cov[e]
                done.append(b)
    seen, noise = np.zeros((V, O, V, N)), np.zeros((V, O, V, O))
    for v in range(V):
        seen[v, :, v], noise[v, :, v] = model.emission[v], model.emission_cov[v]
    keep = mask.ravel()
    c = seen.reshape(V * O, V * N)[keep]
    error = (y - model.emission_offset).ravel()[keep] - c @ mean.ravel()
    prior = cov.reshape(V * N, V * N)
    spread = c @ prior @ c.T + noise.reshape(V * O, V * O)[np.ix_(keep, keep)]
    gain = np.linalg.solve(spread, c @ prior).T
    log_density = -0.5 * (
        error @ np.linalg.solve(spread, error)
        + np.linalg.slogdet(spread)[1]
        + keep.sum() * np.log(2 * np.pi)
    )
    after = (prior - gain @ c @ prior).reshape(cov.shape)
    return mean + (gain @ error).reshape(V, N), after, log_density


def test_equals_the_joint_gaussian(rng, dtype):
    model, y, mask = draw(rng)
    model, y = jax.tree.map(lambda x: x.astype(dtype), (model, y))
    found = run(model, y, mask)
    mean, cov, log_evidence = joint_gaussian(model, y, mask)
    chex.assert_trees_all_equal_dtypes(found, jax.tree.map(lambda x: x.astype(dtype), found))
    # Some hundred roundings of numbers of order 10, through matrices of condition 100.
    close = {"rtol": 0, "atol": 1e-11 if dtype == np.float64 else 2e-4}
    np.testing.assert_allclose(found.mean, mean, **close)
    np.testing.assert_allclose(found.cov, [cov[v, :, v] for v in range(V)], **close)
    np.testing.assert_allclose(found.cross_cov, [cov[b, :, a] for a, b in EDGES], **close)
    np.testing.assert_allclose(found.log_evidence, log_evidence, rtol=close["atol"])


def test_a_path_is_a_chain(rng):
    eye = np.eye(N)
    model = LinearGaussian(np.ones(N), eye, 0.7 * eye + 0.2, 0.1 * eye, np.ones((1, N)), np.eye(1))
    y, path = rng.normal(size=(6, 1)), np.stack([np.arange(5), np.arange(1, 6)], axis=1)
    found = jax.jit(lambda y: tree_smoother(model, path, y))(y)
    chain = jax.jit(lambda y: kalman_smoother(model, y, passes=SEQUENTIAL))(y)
    chex.assert_trees_all_close(tuple(found), tuple(chain)[:4], rtol=0, atol=1e-13)


def test_gradient_in_the_prior_mean_is_its_score(rng):
    """Fisher's identity: ``P^-1 (sum of E x_root - m)``. Padding beside a long path of an unstable
    motion does not spoil it.
    """
    num = 1200
    edges = np.stack([np.arange(num - 1), np.arange(1, num)], axis=1)
    edges[num // 2 :, 0] = num // 2
    eye = np.eye(1, dtype="float32")
    model = LinearGaussian(np.zeros(1, "float32"), 2 * eye, 1.2 * eye, eye, eye, eye)
    y = rng.normal(size=(num, 1)).astype("float32")

    @jax.jit
    def run(mean, y):
        def evidence(mean):
            found = tree_smoother(model._replace(initial_mean=mean), edges, y)
            return found.log_evidence, found.mean[0]

        return jax.grad(evidence, has_aux=True)(mean)

    slope, first = run(np.array([0.3], "float32"), y)
    np.testing.assert_allclose(slope, (first - 0.3) / 2, rtol=1e-4)


def test_a_negative_covariance_and_nan_give_nan(rng):
    model, y, mask = draw(rng)
    cov = model.transition_cov.copy()
    cov[5] = -np.eye(N)
    assert np.isnan(run(model._replace(transition_cov=cov), y, mask).log_evidence)
    mask[2, 0] = True
    found = run(model, y, mask)
    assert np.isnan(found.log_evidence)
    assert np.isnan(found.mean[:5]).all()
    # The other trees do not hear of it.
    assert np.isfinite(found.mean[5:8]).all()


@pytest.mark.slow
def test_derivatives(rng):
    model, y, mask = draw(rng)
    y = np.where(mask, y, 0.0)
    roots = rng.normal(size=(len(EDGES), N, N))

    @jax.jit
    def change(roots, push):
        cov = roots @ roots.swapaxes(1, 2)
        return run(model._replace(transition_cov=cov, transition=push), y, mask)

    check_grads(change, (roots, model.transition), order=1, modes=["fwd", "rev"])


@pytest.mark.parametrize(
    ("edges", "change", "message"),
    [
        ([[0, 1], [2, 1]], {}, r"node 1 has the parents \[0, 2\]"),
        ([[1, 2], [2, 1]], {}, "closes a cycle"),
        ([[0, 3]], {}, "nodes 0 to 2"),
        ([[0, 1]], {"transition": np.ones((2, 1, 1))}, r"model.transition .* length e = 1"),
        ([[0, 1]], {"emission_control": np.eye(1)}, "a tree has no controls"),
    ],
)
def test_refuses(edges, change, message):
    one = np.eye(1)
    model = LinearGaussian(np.zeros(1), one, one, one, one, one)._replace(**change)
    with pytest.raises(ValueError, match=message):
        tree_smoother(model, np.array(edges), np.zeros((3, 1)))


def test_a_long_path_is_the_chain_and_copies_no_moments_from_row_to_row(rng):
    """Its time was quadratic: every row copied the moments of all."""
    v = 300
    edges = np.stack([np.arange(v - 1), np.arange(1, v)], axis=1)
    turn = 0.9 * np.linalg.qr(rng.normal(size=(N, N)))[0]
    noises = covariance(rng, N), covariance(rng, O)
    model = LinearGaussian(
        np.zeros(N), covariance(rng, N), turn, noises[0], rng.normal(size=(O, N)), noises[1]
    )
    y = rng.normal(size=(v, O))
    program = jax.jit(lambda model, y: tree_smoother(model, edges, y))
    compiled = program.lower(model, y).compile()
    if jax.default_backend() == "cpu":
        assert not re.search(r"\[2,[12],30[01]\]\S* copy\(", compiled.as_text())
    found = compiled(model, y)
    chain = jax.jit(lambda model, y: kalman_smoother(model, y, passes=SEQUENTIAL))(model, y)
    np.testing.assert_allclose(found.mean, chain.mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.cov, chain.cov, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.log_evidence, chain.log_evidence, rtol=1e-12)
