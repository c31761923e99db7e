"""Blocks in the hands of a function: run as they are, the model is what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models import table
from vfejax.models.block_hooks import silent
from vfejax.models.table import MODELS
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VISITED = {"resnet-bk", "transformer", "gpt-modern", "toroidal"}
VOCABULARY, LENGTH = 7, 6


def _member(name):
    return pytest.param(name, marks=() if name == "resnet-bk" else pytest.mark.slow)


@pytest.mark.parametrize("name", [_member(name) for name in sorted(VISITED)])
def test_a_visit_that_runs_every_block_changes_no_bit_and_one_that_skips_all_leaves_the_stream(
    name, rng
):
    model = table.build(name, MODELS[name].tiny, VOCABULARY, LENGTH)
    tokens = rng.integers(0, VOCABULARY, (2, LENGTH))
    batch = Batch(tokens, np.arange(LENGTH) >= np.asarray([[0], [2]]))

    def look(number, block_fn, hidden):
        after, said = block_fn(hidden)
        return after, said, (number, hidden, after)

    def skip(number, block_fn, hidden):
        return hidden, silent(block_fn, hidden), hidden

    @jax.jit
    def run(key):
        params = model.init(key)
        applied = model.apply(params, batch)
        _, layers = model.watch(params, tokens)
        return (
            applied,
            model.visit(params, batch, look)[0],
            model.visit(params, tokens, look)[1],
            model.visit(params, tokens, skip)[1],
            layers.hidden,
        )

    applied, visited, (numbers, before, after), skipped, hidden = run(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, applied, visited)
    assert numbers.tolist() == [0, 1]
    np.testing.assert_array_equal(after, hidden)
    np.testing.assert_array_equal(before[1], after[0])
    np.testing.assert_array_equal(skipped, jnp.stack([before[0]] * 2))


def test_models_with_more_than_one_stream_are_not_visited():
    for name, entry in MODELS.items():
        model = table.build(name, entry.tiny, VOCABULARY, LENGTH)
        assert (model.visit is not None) == (name in VISITED), name
