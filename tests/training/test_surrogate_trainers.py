"""Gradients past blocks: exact where the surrogate is the block's Jacobian, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.linear_model import DELAYS, LAYERS, VOCABULARY, linear_model

from vfejax.models.spans import DelayMap
from vfejax.training import surrogate_gradients, surrogate_trainers
from vfejax.training.losses import next_token_loss, training_batch
from vfejax.types import SequenceModel

pytestmark = pytest.mark.usefixtures("library_promotion")

WINDOWS = np.random.default_rng(1).integers(0, VOCABULARY, (4, 8, 13))


@pytest.fixture(scope="module")
def model():
    return linear_model()


def _gradient(model, params):
    batch = training_batch(jnp.asarray(WINDOWS[0]), None)
    return jax.grad(lambda p: next_token_loss(model, p, batch, None, None)[0])(params)


def test_operators_that_are_the_blocks_give_exact_gradients_and_others_only_the_last_blocks(model):
    through = surrogate_gradients.through_operators(model)

    @jax.jit
    def gradients(key):
        params = model.init(key)
        found = _gradient(through, {"model": params, "operators": params["blocks"]})
        past = [
            surrogate_gradients.past_blocks(model, identity=identity) for identity in (True, False)
        ]
        return _gradient(model, params), found, *(_gradient(other, params) for other in past)

    exact, found, bare, none = jax.device_get(gradients(jax.random.key(0)))
    # Sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
                 found["model"], exact)  # fmt: skip
    assert not any(np.any(x) for x in jax.tree.leaves(found["operators"]))
    np.testing.assert_allclose(bare["readout"], exact["readout"], rtol=1e-9)
    for name in ("kernel", "bias"):
        a, b = (getattr(x["blocks"], name) for x in (bare, exact))
        np.testing.assert_allclose(a[-1], b[-1], rtol=1e-9, atol=1e-12)
        assert np.max(np.abs(a[0] - b[0])) > 1e-3
    np.testing.assert_allclose(none["readout"], exact["readout"], rtol=1e-9)
    assert not np.any(none["blocks"].kernel)
    assert not np.any(none["embedding"])


def test_training_learns_the_operators_from_its_own_streams(model):
    """Without updates of the weights, blocks that are linear are found up to the ridge."""
    method = surrogate_trainers.koopman_trainer(
        model, optax.sgd(0.0), jax.random.key(1), delays=DELAYS, every=2
    )
    state = jax.jit(method.init)(jax.random.key(0))
    assert not np.any(state.optimizer_state.maps.kernel)
    state, info = jax.jit(lambda s: jax.lax.scan(method.step, s, WINDOWS))(state)
    assert int(state.step) == 4
    assert np.isfinite(info.loss).all()
    # Two of four batches were seen, the first of which has lost a tenth of its weight.
    tokens = WINDOWS.shape[1] * (WINDOWS.shape[2] - 1)
    np.testing.assert_allclose(state.optimizer_state.factor.count, [1.9 * tokens] * LAYERS)
    maps, true = state.optimizer_state.maps, state.params["blocks"]
    assert isinstance(maps, DelayMap)
    assert np.max(np.abs(maps.kernel - true.kernel)) < 0.1 * np.max(np.abs(true.kernel))


def test_the_readout_learns_and_blocks_keep_their_bits(model):
    method = surrogate_trainers.readout_trainer(model, optax.sgd(0.1), jax.random.key(1))
    first = jax.jit(method.init)(jax.random.key(0))
    last, _ = jax.jit(method.step)(first, WINDOWS[0])
    jax.tree.map(np.testing.assert_array_equal, last.params["blocks"], first.params["blocks"])
    assert np.any(last.params["readout"] != first.params["readout"])


def test_the_identity_learns_every_weight(model):
    method = surrogate_trainers.identity_trainer(model, optax.sgd(0.1), jax.random.key(1))
    first = jax.jit(method.init)(jax.random.key(0))
    last, _ = jax.jit(method.step)(first, WINDOWS[0])
    for a, b in zip(*map(jax.tree.leaves, (last.params, first.params)), strict=True):
        assert np.any(a != b)


def test_a_model_whose_blocks_cannot_be_visited_is_refused():
    bare = SequenceModel(lambda key: {}, None, None, None, None)
    for make in (
        surrogate_trainers.koopman_trainer,
        surrogate_trainers.identity_trainer,
        surrogate_trainers.readout_trainer,
    ):
        with pytest.raises(ValueError, match="model must have blocks that hand on one stream"):
            make(bare, optax.sgd(0.1), jax.random.key(0))
