"""Gaussians that are constant on irreps: the same numbers as dense ones, and closed under
rotation; the bank's logits are divergences, by one product of feature rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.beliefs import gaussian
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.transport import frames
from vfejax.models.pure_fep import prior_bank_logits
from vfejax.models.pure_fep.gaussians import (
    IrrepGaussian,
    dense,
    from_natural,
    irreps,
    kl_divergence,
    moments,
    natural_parameters,
    pairwise_kl,
)
from vfejax.models.pure_fep.prior_bank import bank_logits

pytestmark = pytest.mark.usefixtures("library_promotion")

KIND = irreps((0, 1, 1, 2))
HEADS, WIDTH, IRREPS = 2, 12, 4
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}  # products of rows cancel means of order 1


def _drawn(rng, *shape):
    return IrrepGaussian(
        jnp.asarray(rng.standard_normal((*shape, HEADS, WIDTH))),
        jnp.asarray(rng.uniform(-1, 1, (*shape, HEADS, IRREPS))),
    )


_covariance = jax.jit(gaussian.covariance)


def _dense_kl(q, p):
    """KL of dense Gaussians by NumPy."""
    mean, cov = np.asarray(q.mean), np.asarray(_covariance(q))
    target, other = np.asarray(p.mean), np.asarray(_covariance(p))
    inverse, apart = np.linalg.inv(other), target - mean
    volume = np.linalg.slogdet(other)[1] - np.linalg.slogdet(cov)[1]
    return 0.5 * (np.trace(inverse @ cov) + apart @ inverse @ apart - len(mean) + volume)


def test_divergences_are_those_of_dense_gaussians(rng):
    q, p = _drawn(rng, 3), _drawn(rng, 3)

    @jax.jit
    def told(q, p):
        pairs = pairwise_kl(*(jax.tree.map(lambda x: x[None], g) for g in (q, p)), KIND)
        return kl_divergence(q, p, KIND), (dense(q, KIND), dense(p, KIND)), pairs

    found, both, pairs = jax.device_get(told(q, p))
    rows = [jax.tree.map(lambda x, i=i: x[i], both) for i in range(3)]
    np.testing.assert_allclose(found, [_dense_kl(*row) for row in rows], **ROUNDING)
    np.testing.assert_allclose(np.diagonal(pairs[0].sum(axis=0)), found, **ROUNDING)


@pytest.mark.slow
def test_a_rotation_moves_means_and_leaves_covariances(rng):
    """Closed under transport: the push-forward of the dense Gaussian is in the family."""
    q = jax.tree.map(lambda x: x[:1], _drawn(rng))
    rotation = frames(jnp.asarray(rng.standard_normal(3)), KIND.group)
    moved = gaussian.push_forward(dense(q, KIND), rotation)
    expected = dense(q._replace(mean=q.mean @ rotation.T), KIND)
    np.testing.assert_allclose(moved.mean, expected.mean, **ROUNDING)
    found = gaussian.covariance(moved)
    np.testing.assert_allclose(found, gaussian.covariance(expected), **ROUNDING)


@pytest.mark.slow
def test_natural_parameters_go_back(rng):
    q = _drawn(rng, 2)
    for found, expected in zip(from_natural(*natural_parameters(q, KIND), KIND), q, strict=True):
        np.testing.assert_allclose(found, expected, **ROUNDING)


def _full(rng, *shape, k=5):
    chol = np.tril(rng.standard_normal((*shape, k, k)))
    chol[..., np.arange(k), np.arange(k)] = rng.uniform(0.5, 2, (*shape, k))
    return Gaussian(jnp.asarray(rng.standard_normal((*shape, k))), jnp.asarray(chol))


def test_logits_of_the_bank_are_divergences_over_the_temperature(rng):
    belief, bank = _full(rng, 2, 3), _full(rng, 4)
    found = np.asarray(jax.jit(prior_bank_logits)(belief, bank, 0.7))
    belief, bank = jax.device_get((belief, bank))
    for i, j, v in np.ndindex(2, 3, 4):
        q = Gaussian(belief.mean[i, j], belief.chol[i, j])
        expected = -_dense_kl(q, Gaussian(bank.mean[v], bank.chol[v])) / 0.7
        np.testing.assert_allclose(found[i, j, v], expected, **ROUNDING)


@pytest.mark.slow
def test_constant_covariances_have_the_same_logits_as_dense_ones(rng):
    belief, bank = _drawn(rng, 2, 3), _drawn(rng, 4)
    expected = prior_bank_logits(dense(belief, KIND), dense(bank, KIND), 1.3)
    np.testing.assert_allclose(bank_logits(belief, bank, KIND, 1.3), expected, **ROUNDING)


def test_no_array_has_channels_twice_for_every_pair():
    shapes = (
        jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 6), (64, 6, 6), (50, 6), (50, 6, 6))
    )
    mean, chol, bank_mean, bank_chol = shapes
    program = jax.make_jaxpr(prior_bank_logits, static_argnums=2)(
        Gaussian(mean, chol), Gaussian(bank_mean, bank_chol), 1.0
    )
    sizes = [v.aval.size for eqn in program.eqns for v in eqn.outvars]
    assert max(sizes) == 64 * 50


def test_a_bank_that_does_not_fit_is_named(rng):
    with pytest.raises(ValueError, match=r"bank must be Gaussians \[v, k = 5\]"):
        prior_bank_logits(_full(rng, 2), _full(rng, 4, k=3), 1.0)


@pytest.mark.slow
def test_moments_are_what_beliefs_about_a_token_diverge_from_least(rng):
    beliefs = _drawn(rng, 1, 6)
    ids, counts = jnp.asarray([[0, 2, 0, 2, 0, 2]]), jnp.asarray([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    found, number = moments(beliefs, ids, counts, 3, KIND)
    assert number.tolist() == [3, 0, 2]

    def cost(row):
        return jnp.sum(kl_divergence(jax.tree.map(lambda x: x[0, ::2], beliefs), row, KIND))

    row = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), found)
    slope = jax.grad(cost)(row)
    for leaf in slope:  # of each of the three alike rows; their sum is that of the one token
        np.testing.assert_allclose(leaf.sum(axis=0), 0.0, rtol=0, atol=1e-11)
    assert np.all(np.asarray(found.mean[1]) == 0)
    assert np.all(np.asarray(found.log_variance[1]) == 0)
