"""Pictures of a VFE transformer hold what inference did."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.weights import random_weights

from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.maps import maps
from vfejax.models.vfe.model import build

pytestmark = pytest.mark.usefixtures("library_promotion")

CONFIG = VFEConfig(layers=2, dim=16, heads=2, hidden=0, steps=3, window=4, frames="frozen")
QUICK = {"xla_backend_optimization_level": 0}


@pytest.mark.slow
def test_pictures_are_attention_steps_beliefs_and_frames(rng):
    shown = maps(CONFIG, 5, 6)
    params = random_weights(build(CONFIG, 5, 6), 0, 0.3)
    tokens = rng.integers(0, 5, (2, 6)).astype(np.int32)
    pictures = (shown, *shown.further)
    assert [picture.name for picture in pictures] == ["attention", "inference", "beliefs", "frames"]

    def values(params, tokens):
        return [picture.values(params, tokens) for picture in pictures]

    attention, lengths, changes, turns = jax.jit(values, compiler_options=QUICK)(params, tokens)
    assert len(attention) == 4
    for weights in attention.values():
        near = np.tri(6, k=-1, dtype=bool) & ~np.tri(6, k=-4, dtype=bool)
        np.testing.assert_array_equal(weights > 0, near)
        np.testing.assert_allclose(np.sum(weights, axis=1), [0, 1, 1, 1, 1, 1], rtol=1e-6)
    assert lengths["layer 1"].shape == (3, 6)
    # The first token has nobody to read.
    assert np.all(lengths["layer 0"][:, 0] == 0)
    assert np.all(np.array(list(lengths.values()))[..., 1:] > 0)
    assert changes["layer 1"].shape == (3, 6)
    assert np.all(changes["layer 1"][:, 0] == 0)
    assert np.all(np.array(list(changes.values()))[..., 1:] > 0)
    assert turns["layer 0"].shape == (2, 6)
    assert np.all(np.array(list(turns.values())) > 0)


def test_no_picture_of_what_there_is_not():
    plain = dataclasses.replace(CONFIG, steps=0, frames="identity")
    assert maps(plain, 5, 6).further == ()
