"""The VAMP-2 score: what it is, and that constant observables score least."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vfejax.koopman.variational import vamp2

score = jax.jit(vamp2)


def _pairs(dtype=jnp.float64):
    x = np.random.default_rng(0).normal(size=(201, 3))
    x[1:] += 2.0 * x[:-1] + 5.0
    return x[:-1].astype(dtype), x[1:].astype(dtype)


def test_it_is_the_sum_of_squared_canonical_correlations():
    now, following = _pairs()
    bases = [np.linalg.qr(x - np.mean(x, axis=0))[0] for x in map(np.asarray, (now, following))]
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    found = score(now, following, 1e-12)
    np.testing.assert_allclose(found, np.sum(correlations**2), rtol=1e-9)
    # Observables in other units and combinations are the same observables.
    mixing = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, -1.0], [0.5, 0.0, 1.0]])
    np.testing.assert_allclose(
        score(now @ mixing + 7.0, following @ mixing, 1e-12), found, rtol=1e-9
    )


def test_constant_and_equal_observables_add_nothing():
    now, following = _pairs()
    constant = np.ones((200, 1))

    def with_more(more_now, more_following):
        return score(
            np.concatenate([now[:, :2], more_now], axis=1),
            np.concatenate([following[:, :2], more_following], axis=1),
            1e-9,
        )

    alone = score(now[:, :2], following[:, :2], 1e-9)
    np.testing.assert_allclose(with_more(constant, constant), alone, rtol=1e-9)
    np.testing.assert_allclose(with_more(now[:, :1], following[:, :1]), alone, rtol=1e-5)
    assert score(0.0 * now + 3.0, 0.0 * following + 3.0) == 0.0
    assert with_more(now[:, 2:], following[:, 2:]) > alone


def test_gradient_and_float32():
    now, following = _pairs()
    check_grads(score, (now, following), order=1, modes=["rev"])
    single = score(*_pairs(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, score(now, following), rtol=1e-4)


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"\[m, d\] with m at least 2, got shapes \(1, 2\)"):
        vamp2(jnp.ones((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"got shapes \(4, 2\) and \(4, 3\)"):
        vamp2(jnp.ones((4, 2)), jnp.ones((4, 3)))
