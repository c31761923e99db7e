"""A sequence model that compiles in no time, for runs whose model does not matter: bigrams, whose
weights are how often each token followed each other one, and a trainer that counts.
"""

import jax.numpy as jnp

from vfejax.models.protocol import as_batch
from vfejax.training.losses import next_token_loss
from vfejax.types import Prediction, SequenceModel, Trainer, TrainInfo, TrainState


def counting_model(config, vocab_size, length, dtype):
    """Bigrams: the weights are how often each token followed each other one."""

    def init(key):
        return {"counts": jnp.zeros((vocab_size, vocab_size), dtype)}

    def logits(params, tokens):
        return jnp.log(params["counts"][tokens] + 1)

    def apply(params, batch, key):
        return Prediction(logits(params, as_batch(batch).tokens), {}, {})

    def decode(params, state, tokens):
        return logits(params, tokens), state

    return SequenceModel(init, apply, lambda params, batch_size: (), decode, None)


def counting_trainer(model, config, learning_rate_fn, key):
    """Adds the learning rate to the count of every pair; no gradients."""

    def init(key):
        return TrainState(jnp.int32(0), model.init(key), {"pairs": jnp.int32(0)})

    def step(state, windows):
        before, following = windows[:, :-1], windows[:, 1:]
        loss, parts = next_token_loss(model, state.params, windows)
        rate = learning_rate_fn(state.step)
        counts = state.params["counts"].at[before, following].add(rate)
        change = jnp.linalg.norm(counts - state.params["counts"])
        remembered = {"pairs": state.optimizer_state["pairs"] + before.size}
        after = TrainState(state.step + 1, {"counts": counts}, remembered)
        return after, TrainInfo(loss, parts, change)

    return Trainer(init, step)
