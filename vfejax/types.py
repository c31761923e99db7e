"""Aliases and Protocols shared by every layer."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
PyTree = Any


class EnergyFn(Protocol):
    """A free energy: one pure function from a pytree to a scalar in nats."""

    def __call__(self, position: PyTree, /) -> Array: ...


class ExponentialFn(Protocol):
    """A group exponential: coordinates ``[..., a]`` and generators ``[a, k, k]`` to operators
    ``[..., k, k]``.
    """

    def __call__(self, phi: Array, generators: Array, /) -> Array: ...


class Integrator(NamedTuple):
    """A dynamics as two pure functions.

    ``init(position, ...) -> state`` and ``step(state) -> (state, info)``: the state is what the
    next step needs, the info is what a reader wants.
    """

    init: Callable[..., PyTree]
    step: Callable[[PyTree], tuple[PyTree, PyTree]]


class Prediction(NamedTuple):
    """What a sequence model says about a batch.

    Attributes:
        logits: unnormalised log probabilities of the next token, ``[b, n, vocabulary]``; position i
            has read tokens 0..i and no others.
        losses: further terms of the training loss by name, scalars, already weighted, in nats.
        diagnostics: scalars that a reader may want, by name.
    """

    logits: Array
    losses: dict[str, Array]
    diagnostics: dict[str, Array]


class SequenceModel(NamedTuple):
    """A causal next-token model as pure functions; the weights are a pytree that the caller holds.

    Attributes:
        init: ``init(key) -> params``.
        apply: ``apply(params, tokens [b, n], key) -> Prediction``. The key feeds what is random in
            training (dropout, routing noise);
            without one (None) the model is deterministic.
        init_decode: ``init_decode(params, batch) -> state`` of decoding before the first token.
        decode: ``decode(params, state, tokens [b]) -> (logits [b, vocabulary], state)``: reads one
            token of each sequence, in constant
            memory. Equal to the last position of ``apply`` on all tokens so far, up to rounding.
        max_length: how many tokens a sequence may have; None for any number.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[[PyTree, Array, Array | None], Prediction]
    init_decode: Callable[[PyTree, int], PyTree]
    decode: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]]
    max_length: int | None
