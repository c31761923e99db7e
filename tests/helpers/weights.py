"""Weights of a model without compiling its first ones, for tests that hold for any."""

import jax
import numpy as np


def random_weights(model, seed, scale):
    """Normally distributed with that standard deviation, drawn by NumPy."""
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: (scale * rng.standard_normal(x.shape)).astype(x.dtype), abstract)
