"""A model small enough to differentiate by hand: a table of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models.protocol import as_batch
from vfejax.types import Prediction, SequenceModel


@pytest.fixture(scope="session")
def bigram():
    """Logits of the next token looked up by the last one, with a further loss term and a noise that
    only a key brings. Every key gives the same first weights, drawn by NumPy: nothing to compile.
    """

    def build(
        size: int, *, extra: float = 0.0, noise: float = 0.0, dtype=jnp.float64
    ) -> SequenceModel:
        def init(key):
            kernel = np.random.default_rng(7).standard_normal((size, size))
            return {"kernel": kernel.astype(dtype), "scale": np.ones((), dtype)}

        def apply(params, batch, key):
            logits = params["scale"] * jnp.asarray(params["kernel"])[as_batch(batch).tokens]
            if key is not None:
                logits = logits + noise * jax.random.normal(key, logits.shape, dtype)
            return Prediction(
                logits, {"extra": extra * params["scale"]}, {"scale": params["scale"]}
            )

        return SequenceModel(
            init, apply, lambda params, batch: (), lambda params, state, t: (None, state), None
        )

    return build
