"""What a function computes, as a digest."""

import functools
import math
import sys
from collections import defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfejax.cli import function_digest
from vfejax.cli.function_digest import Nameless, digest
from vfejax.geometry import irreps
from vfejax.models import table
from vfejax.training import sharding
from vfejax.training.optimizer import adamw, warmup_cosine
from vfejax.training.step import trainer

_RATE = (1.0, 1, 4, 0.1)


def _changed():
    """Values no two of which are the same, though some look alike."""
    yield from (1, 1.0, True, "1", b"1", None, (), [], {}, (1, 2), ((1, 2),), (1, (2,)), [1, 2])
    yield from ({"a": 1}, {"b": 1}, {1}, {2}, frozenset({1}), np.float32, np.dtype("float32"))
    yield from (np.zeros(2), np.zeros(2, np.float32), np.ones(2), np.zeros((2, 1)), np.float64(0))
    yield from (jnp.zeros(2), jax.random.key(0), jax.random.key(1), jax.random.key_data)
    yield from (0.0, -0.0, math.nan, -math.nan, complex(0.0), complex(0.0, -0.0))
    yield from (warmup_cosine, warmup_cosine(*_RATE), warmup_cosine(2.0, *_RATE[1:]))
    yield from (optax.sgd(0.1), optax.sgd(0.2), adamw(0.1), functools.partial(adamw, 0.1))
    yield from (jax.tree.structure(x) for x in (0, (0,), [0], {"a": 0}, (0, None), (None, 0)))
    yield from (jax.tree.structure(group) for group in (irreps.so3((1,)), irreps.so(4)))


def test_different_values_have_different_digests_and_equal_ones_the_same():
    digests = list(map(digest, _changed()))
    assert len(set(digests)) == len(digests)
    assert list(map(digest, _changed())) == digests


@pytest.fixture
def known(monkeypatch):
    """This module for one of a package, whose functions have digests."""
    monkeypatch.setattr(
        function_digest, "_KNOWN", function_digest._KNOWN | {__name__.partition(".")[0]}
    )
    monkeypatch.setattr(
        function_digest, "_PLAIN", function_digest._PLAIN | {__name__.partition(".")[0]}
    )


def test_a_function_that_refers_to_itself_has_a_digest(known):
    def again(x):
        return again(x - 1) if x else 0

    assert digest(again)


class _Mangled:
    __slots__ = ("__held",)

    def __init__(self, held):
        self.__held = held


class _Word:
    __slots__ = "held"

    def __init__(self, held):
        self.held = held


class _Pair(NamedTuple("_Pair", [("first", int)])):
    def __init__(self, *_):
        self.second = 0


def test_what_an_object_holds_out_of_sight_counts(known):
    def scaled(value):
        return value * scaled.factor

    digests = set()
    for held in (1, 2):
        scaled.factor = held
        pair, partial = _Pair(1), functools.partial(adamw, 0.1)
        pair.second = partial.held = held
        digests |= set(map(digest, (_Mangled(held), _Word(held), scaled, pair, partial)))
    assert len(digests) == 10


class _Scale(float):
    pass


@functools.wraps(warmup_cosine)
def _wrapper(*values):
    return warmup_cosine(*values)


def test_what_cannot_be_described_in_full_has_no_digest(monkeypatch):
    helper = sys.modules[__name__]  # may be changed, while no version tells
    values = [object(), iter(()), lambda x: x, helper, helper._changed, (1, {"a": object()})]
    values += [
        _wrapper,
        _Scale(1),
        defaultdict(int),
        np.ma.array([1.0]),
        jax.tree_util.Partial(abs),
    ]
    for value in values:
        with pytest.raises(Nameless):
            digest(value)
    monkeypatch.setattr(function_digest, "_MOST_BYTES", 64)
    with pytest.raises(Nameless):
        digest([np.zeros(8), np.zeros(1)])


def test_a_replaced_function_is_another(monkeypatch):
    before = digest(warmup_cosine)
    monkeypatch.setattr("vfejax.training.optimizer.warmup_cosine", lambda: None)
    assert digest(warmup_cosine) != before  # no longer known by its name alone


@pytest.mark.slow
@pytest.mark.parametrize("name", table.MODELS)
def test_training_of_every_model_has_a_digest(name):
    model = table.build(name, table.MODELS[name].tiny, 11, 8, jnp.dtype("float32"), np.ones(11))
    method = trainer(model, adamw(warmup_cosine(*_RATE)), jax.random.key(1))
    step = sharding.in_scope(sharding.data_mesh(2, jax.devices()[:1]), method.step)
    assert len({digest(step), digest(method.init), digest(model.decode)}) == 3
