"""A model small enough to differentiate by hand: a table of logits."""

import jax
import jax.numpy as jnp
import pytest

from vfejax.models.protocol import as_batch
from vfejax.types import Prediction, SequenceModel


@pytest.fixture
def bigram():
    """Logits of the next token looked up by the last one, with a further loss term and a noise that
    only a key brings.
    """

    def build(
        size: int, *, extra: float = 0.0, noise: float = 0.0, dtype=jnp.float64
    ) -> SequenceModel:
        def init(key):
            return {
                "kernel": jax.random.normal(key, (size, size), dtype),
                "scale": jnp.ones((), dtype),
            }

        def apply(params, batch, key):
            logits = params["scale"] * params["kernel"][as_batch(batch).tokens]
            if key is not None:
                logits = logits + noise * jax.random.normal(key, logits.shape, dtype)
            return Prediction(
                logits, {"extra": extra * params["scale"]}, {"scale": params["scale"]}
            )

        return SequenceModel(
            init, apply, lambda params, batch: (), lambda params, state, t: (None, state), None
        )

    return build
