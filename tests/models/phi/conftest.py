"""The stored checkpoints, each read and compiled once.

``tests/helpers/phi_reference.py`` made them, with PyTorch transformers: random weights, and for two
rows of 8 and 5 tokens the logits under padding on either side and the greedy continuation.
"""

from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from vfejax.models import phi

CHECKPOINTS = Path(__file__).parent / "checkpoints"
VARIANTS = sorted(path.name for path in CHECKPOINTS.iterdir())


class Checkpoint:
    """A checkpoint, what is expected of it, and its model with the functions compiled once."""

    def __init__(self, name):
        self.directory = CHECKPOINTS / name
        self.model, self.params = phi.load(self.directory)
        self.apply = jax.jit(lambda params, batch: self.model.apply(params, batch).logits)
        with np.load(self.directory / "expected.npz") as arrays:
            self.expected = dict(arrays)


@pytest.fixture(scope="session")
def checkpoint():
    return cache(Checkpoint)


@pytest.fixture(params=VARIANTS)
def each(request, checkpoint):
    return checkpoint(request.param)
