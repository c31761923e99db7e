"""A sequence model whose blocks are linear maps of the delayed stream, known to the last digit."""

import jax
import jax.numpy as jnp

from vfejax.models.spans import DelayMap, mapped
from vfejax.types import Batch, Prediction, SequenceModel

LAYERS, DIM, VOCABULARY, DELAYS = 3, 4, 9, 2


def _tokens(batch):
    return batch.tokens if isinstance(batch, Batch) else batch


def linear_model():
    """Its weights: ``embedding``, ``blocks`` (a :class:`DelayMap` stacked by layer) and
    ``readout``.
    """

    def init(key):
        keys = jax.random.split(key, 4)
        draw = jax.random.normal
        return {
            "embedding": draw(keys[0], (VOCABULARY, DIM), jnp.float64),
            "blocks": DelayMap(
                0.3 * draw(keys[1], (LAYERS, DELAYS * DIM, DIM), jnp.float64),
                draw(keys[2], (LAYERS, DIM), jnp.float64),
            ),
            "readout": draw(keys[3], (DIM, VOCABULARY), jnp.float64),
        }

    def visit(params, batch, visit_fn, key=None):
        def step(hidden, layer):
            number, block = layer
            hidden, _, said = visit_fn(number, lambda h: (mapped(block, h), ()), hidden)
            return hidden, said

        hidden = params["embedding"][_tokens(batch)]
        numbers = jnp.arange(LAYERS)
        hidden, said = jax.lax.scan(step, hidden, (numbers, params["blocks"]))
        return Prediction(hidden @ params["readout"], {}, {}), said

    def apply(params, batch, key=None):
        return visit(params, batch, lambda number, block_fn, h: (*block_fn(h), None))[0]

    return SequenceModel(init, apply, None, None, None, visit=visit)
