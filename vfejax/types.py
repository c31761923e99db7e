"""Aliases and Protocols shared by every layer."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
PyTree = Any


class EnergyFn(Protocol):
    """A free energy: one pure function from a pytree to a scalar in nats."""

    def __call__(self, position: PyTree, /) -> Array: ...


class ExponentialFn(Protocol):
    """A group exponential: coordinates ``[..., a]`` and generators ``[a, k, k]`` to operators
    ``[..., k, k]``.
    """

    def __call__(self, phi: Array, generators: Array | np.ndarray, /) -> Array: ...


class LogarithmFn(Protocol):
    """A group logarithm: operators ``[..., k, k]`` and generators ``[a, k, k]`` to coordinates
    ``[..., a]``.
    """

    def __call__(self, frame: Array, generators: Array | np.ndarray, /) -> Array: ...


class StepFn(Protocol):
    """One step of a dynamics: ``(state, key) -> (state, info)``."""

    def __call__(self, state: PyTree, key: Array | None = None, /) -> tuple[PyTree, PyTree]: ...


class Integrator(NamedTuple):
    """A dynamics as two pure functions.

    The state is what the next step needs, the info is what a reader wants. A deterministic dynamics
    ignores the key; a stochastic one raises ValueError without it.

    Attributes:
        init: ``init(position, ...) -> state``.
        step: ``step(state, key=None) -> (state, info)``, jittable; the key is one of ``jax.random``
            and is used for this step alone.
    """

    init: Callable[..., PyTree]
    step: StepFn


class Batch(NamedTuple):
    """Token sequences of unequal length in one array.

    Attributes:
        tokens: integers ``[b, n]``.
        mask: booleans ``[b, n]``, True at real tokens; None when all are real. Padding may stand
            before, after or between them.
        positions: integers ``[b, n]``: the place of each token in its text, for models that use it;
            None to count the real tokens of each row from 0.
        targets: integers ``[b, n]``, the token that follows each token: for models that observe it
            in training. No prediction may depend on it; None outside training.
    """

    tokens: Array
    mask: Array | None = None
    positions: Array | None = None
    targets: Array | None = None


class Prediction(NamedTuple):
    """What a sequence model says about a batch.

    Attributes:
        logits: unnormalised log probabilities of the next token, ``[b, n, vocabulary]``; position i
            has read tokens 0..i and no others. Finite but meaningless at padding.
        losses: further terms of the training loss by name, scalars, already weighted, in nats.
        diagnostics: scalars that a reader may want, by name.
        statistics: sums over the real tokens of which ``losses`` and ``diagnostics`` are functions
            (``SequenceModel.summarize``): those of a batch are the sums of those of its parts.
    """

    logits: Array
    losses: dict[str, Array]
    diagnostics: dict[str, Array]
    statistics: PyTree = ()


class Layers(NamedTuple):
    """What the blocks of a sequence model do with a batch, for who wants to look inside.

    Attributes:
        hidden: the residual stream after each block, ``[layers, b, n, d]``; for layers of beliefs,
            their means. Finite but meaningless at padding.
        resolvent: modulus of the diagonal of each head's resolvent in units of its inverse hopping,
            the factor by which a token multiplies what the head remembers, ``[layers, b, n,
            heads]``; None for a model without resolvents.
    """

    hidden: Array
    resolvent: Array | None = None


class VisitFn(Protocol):
    """What is done in place of each block of a sequence model."""

    def __call__(
        self, number: Array, block_fn: Callable[[Array], tuple[Array, PyTree]], hidden: Array, /
    ) -> tuple[Array, PyTree, PyTree]:
        """The stream after a block, what the block says, and a pytree of the function's own.

        Args:
            number: of the block, an integer scalar.
            block_fn: ``block_fn(hidden) -> (hidden, said)`` runs the block, and gives what it says
                of itself, such as statistics for the loss. For a block that is not run,
                :func:`vfejax.models.block_hooks.silent` has zeros instead.
            hidden: the stream that the block is given, ``[b, n, d]``.
        """
        ...


class SequenceModel(NamedTuple):
    """A causal next-token model as pure functions; the weights are a pytree that the caller holds.

    Attributes:
        init: ``init(key) -> params``.
        apply: ``apply(params, batch, key) -> Prediction`` of a :class:`Batch`, or of bare tokens
            ``[b, n]``. The key feeds what is random in training (dropout, routing noise); without
            one (None) the model is deterministic.
        init_decode: ``init_decode(params, batch_size) -> state`` of decoding before the first
            token.
        decode: ``decode(params, state, tokens [b]) -> (logits [b, vocabulary], state)``: reads one
            token of each sequence, in constant memory. Equal to the last position of ``apply`` on
            all tokens so far, up to rounding.
        max_length: how many tokens a sequence may have; None for any number.
        summarize: ``summarize(statistics) -> (losses, diagnostics)`` of a prediction. None for a
            model without statistics. Losses that it does not make count as means over the real
            tokens.
        read: ``read(params, state, tokens [b, n]) -> (logits [b, vocabulary], state)``: decodes n
            tokens at once, and predicts what follows the last. None for a model that reads them one
            by one.
        config: what the model was built from, for functions that build a variant of it; None where
            there is no such function.
        watch: ``watch(params, batch, key) -> (Prediction, Layers)``: that of ``apply``, and what
            the blocks did. None for a model that does not show them.
        activations: ``activations(params, batch) -> {name: statistics}`` of what its kernels and
            norms read, by the names of their leaves; see
            :mod:`vfejax.models.activation_statistics`. None for a model that is not made of such
            layers.
        visit: ``visit(params, batch, visit_fn, key=None) -> (Prediction, outputs)``: that of
            ``apply`` with every block in the hands of a :class:`VisitFn`, and the function's own
            outputs, stacked by layer. None for a model whose blocks are of several kinds, or hand
            on more than one stream.
        recompute: as ``apply``, but its gradient keeps only what each block was given and computes
            its products with weights again too: less memory for a little time. None for a model
            that is no stack of blocks, or has its own way to save that memory.
        prepare: ``prepare(params) -> params`` for ``init_decode``, ``decode`` and ``read`` alone:
            the same weights with every block on its own. Decoding with them is faster, takes longer
            to compile, and is the same up to rounding. None for a model that is no stack of blocks.
    """

    init: Callable[[Array], PyTree]
    apply: Callable[..., Prediction]
    init_decode: Callable[[PyTree, int], PyTree]
    decode: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]]
    max_length: int | None
    summarize: Callable[[PyTree], tuple[dict[str, Array], dict[str, Array]]] | None = None
    read: Callable[[PyTree, PyTree, Array], tuple[Array, PyTree]] | None = None
    config: Any = None
    watch: Callable[..., tuple[Prediction, Layers]] | None = None
    activations: Callable[..., dict[str, Array]] | None = None
    visit: Callable[..., tuple[Prediction, PyTree]] | None = None
    recompute: Callable[..., Prediction] | None = None
    prepare: Callable[[PyTree], PyTree] | None = None


class Maps(NamedTuple):
    """Images of what a model does with a text, for a report to draw.

    Attributes:
        values: ``values(params, tokens [b, n]) -> {panel: [rows, columns]}``, pure: not negative,
            with 0 where there is nothing.
        name: file name of the picture, without suffix.
        title: its heading.
        caption: what a reader should know.
        xlabel: what the columns are, numbered from 0.
        ylabel: what the rows are, numbered from 0.
        label: what the values are, with their unit.
        columns: panels side by side.
        further: more pictures of the same model, none of which has further ones.
    """

    values: Callable[[PyTree, Array], dict[str, Array]]
    name: str
    title: str
    caption: str
    xlabel: str
    ylabel: str
    label: str
    columns: int = 1
    further: tuple[Any, ...] = ()


class LossInfo(NamedTuple):
    """Cross-entropy in nats per token, number of tokens that counted, the model's further loss
    terms and its diagnostics.
    """

    cross_entropy: Array
    num_tokens: Array
    losses: dict[str, Array]
    diagnostics: dict[str, Array]


class TrainState(NamedTuple):
    """Number of updates done, weights, and whatever else the method of learning remembers."""

    step: Array
    params: PyTree
    optimizer_state: PyTree


class TrainInfo(NamedTuple):
    """Before the update: the loss that was minimised (nats), its parts, and the norm of its
    gradient (of the change of the weights, for a method that has no gradient).
    """

    loss: Array
    parts: LossInfo
    gradient_norm: Array


def _own_weights(state: TrainState) -> PyTree:
    return state.params


class Trainer(NamedTuple):
    """A method of learning as pure functions.

    Attributes:
        init: ``init(key) -> TrainState``.
        step: ``step(state, windows [b, n + 1]) -> (TrainState, TrainInfo)``.
        weights: ``weights(state) -> params``: those to evaluate and to keep. They are not the
            state's own where a method takes its gradients at other points.
    """

    init: Callable[[Array], TrainState]
    step: Callable[[TrainState, Array], tuple[TrainState, TrainInfo]]
    weights: Callable[[TrainState], PyTree] = _own_weights
