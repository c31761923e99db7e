"""What each arm of ``adaptive_computation.py`` reads, and how it learns from it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import language_models as models
import numpy as np
import optax

from vfejax.data import batches
from vfejax.models import table
from vfejax.models.protocol import merging
from vfejax.models.resnet_bk.model import ResNetBK
from vfejax.training import step as steps
from vfejax.training.losses import next_token_loss, token_nats
from vfejax.training.optimizer import adamw
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel, TrainState

LENGTH, BATCH = models.LENGTH, models.BATCH
SMALL = {"dim": 64, "hidden": 64}  # a quarter of the weights of the default
LAYERS = table.MODELS["resnet-bk"].config().layers
CANDIDATES = 2  # windows that are looked at for each one that is read
FIRST_SHARE = 0.1  # of the windows, the easiest, at the first update
PLAIN, SELECTED, HEADS, SHALLOW = "plain", "selected", "heads", "shallow"


class Arm(NamedTuple):
    """What differs from the control.

    Attributes:
        drop: share of the updates that leave the last block out; that of the others rises to it
            linearly from 0, the first one's.
        heads: whether the head reads the stream after every block, in training.
        lengths: shares of the time, and how long windows are in them.
        easy_first: whether windows of few nats, by the pairs of characters of the training text,
            come first.
        score: by what windows are chosen from the candidates: their loss, or that loss less the
            one of a model that has learned another text.
    """

    drop: float = 0.0
    heads: bool = False
    lengths: tuple[tuple[float, int], ...] = ((1.0, LENGTH),)
    easy_first: bool = False
    score: str = ""


ARMS = {
    "control": Arm(),
    "blocks left out, to 0.2": Arm(drop=0.2),
    "blocks left out, to 0.5": Arm(drop=0.5),
    "a head after every block": Arm(heads=True),
    "short windows first": Arm(lengths=((0.25, 16), (0.25, 32), (0.5, LENGTH))),
    "easy windows first": Arm(easy_first=True),
    "highest loss of two": Arm(score="loss"),
    "highest reducible loss of two": Arm(score="reducible"),
}


class Inputs(NamedTuple):
    """What updates are made from: their rates ``[k]``, windows ``[k, b, n + 1]``, nats per token of
    each window that nobody can learn ``[k, b]``; and numbers of the blocks with those that are kept
    in front ``[k, layers]``, what their changes of the stream are multiplied by ``[k, layers]``,
    and how many are kept ``[k]``.
    """

    rate: np.ndarray
    windows: np.ndarray
    known: np.ndarray
    blocks: np.ndarray
    scales: np.ndarray
    kept: np.ndarray


def config(layers: int = LAYERS) -> Any:
    """Options of the model that learns."""
    return table.MODELS["resnet-bk"].config(**SMALL, layers=layers)


def build(text: models.Text, layers: int = LAYERS) -> SequenceModel:
    """The model that learns, for the characters of a text."""
    return table.build("resnet-bk", config(layers), text.corpus.vocabulary.size, LENGTH)


def module(config: Any, vocabulary: int) -> Callable[[PyTree], ResNetBK]:
    """The flax module of given weights."""
    return merging(lambda rngs: ResNetBK(config, vocabulary, LENGTH, dtype=jnp.float32, rngs=rngs))


def keeps(drop: float) -> np.ndarray:
    """Probability of each block to be kept, ``[layers]``."""
    return 1.0 - drop * np.arange(LAYERS) / (LAYERS - 1)


def counts(drop: float) -> np.ndarray:
    """Probability of 1, 2, ... blocks to be kept; the first one always is."""
    found = np.ones(1)
    for keep in keeps(drop)[1:]:
        found = np.convolve(found, [1.0 - keep, keep])
    return found


def kind(arm: Arm) -> str:
    """The program that an arm needs."""
    if arm.score:
        return SELECTED
    if arm.drop:
        return SHALLOW
    return HEADS if arm.heads else PLAIN


def update(text: models.Text, kind: str) -> Callable[[TrainState, Inputs], TrainState]:
    """One update by a program."""
    model, key = build(text), jax.random.key(1)

    def plain(model: SequenceModel, state: TrainState, rate: Array, windows: Array) -> TrainState:
        return steps.trainer(model, adamw(rate), key).step(state, windows)[0]

    def selected(state: TrainState, inputs: Inputs) -> TrainState:
        logits = model.apply(state.params, inputs.windows[:, :-1], None).logits
        nats, _ = token_nats(logits, inputs.windows[:, 1:])
        chosen = jax.lax.top_k(jnp.mean(nats, axis=1) - inputs.known, BATCH)[1]
        return plain(model, state, inputs.rate, inputs.windows[chosen])

    def shallower(state: TrainState, inputs: Inputs) -> TrainState:
        each = [partial(_shallow_gradient, build(text, n), n) for n in range(1, LAYERS + 1)]
        gradient = jax.lax.switch(inputs.kept - 1, each, state.params, inputs)
        changes, memory = adamw(inputs.rate).update(gradient, state.optimizer_state, state.params)
        return TrainState(state.step + 1, optax.apply_updates(state.params, changes), memory)

    if kind == SELECTED:
        return selected
    if kind == SHALLOW:
        return shallower
    learner = with_heads(model, text) if kind == HEADS else model
    return lambda state, inputs: plain(learner, state, inputs.rate, inputs.windows)


def _shallow_gradient(model: SequenceModel, count: int, params: PyTree, inputs: Inputs) -> PyTree:
    """That of a model of ``count`` blocks, whose changes of the stream are as large in the mean as
    if none was ever left out.
    """
    kept, visit = inputs.blocks[:count], model.visit
    assert visit is not None  # ResNet-BK has one stream

    def louder(number: Array, block_fn: Any, hidden: Array) -> tuple[Array, PyTree, None]:
        after, said = block_fn(hidden)
        return hidden + inputs.scales[number] * (after - hidden), said, None

    def apply(params: PyTree, batch: Batch, key: Array | None = None) -> Prediction:
        return visit(params, batch, louder, key)[0]

    def loss(params: PyTree) -> Array:
        blocks = jax.tree.map(lambda x: x[kept], params["blocks"])
        learner = model._replace(apply=apply)
        return next_token_loss(learner, params | {"blocks": blocks}, inputs.windows)[0]

    return jax.grad(loss)(params)


def with_heads(model: SequenceModel, text: models.Text) -> SequenceModel:
    """The model whose loss has that of the head after each block but the last, with weights that
    rise with the depth.
    """
    made, watch = module(config(), text.corpus.vocabulary.size), model.watch
    assert watch is not None  # ResNet-BK shows its stream

    def apply(params: PyTree, batch: Batch, key: Array | None = None) -> Prediction:
        prediction, layers = watch(params, batch, key)
        nats, _ = token_nats(made(params).logits(layers.hidden[:-1]), batch.targets[None])
        weights = jnp.arange(1, LAYERS, dtype=nats.dtype) / LAYERS
        heads = jnp.sum(weights * jnp.mean(nats, axis=(1, 2)))
        return prediction._replace(losses=prediction.losses | {"heads": heads})

    return model._replace(apply=apply)


def pair_nats(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    """Nats of each token from the counts of pairs in the same text; those of the first are 0."""
    table = np.ones((vocabulary, vocabulary))
    np.add.at(table, (tokens[:-1], tokens[1:]), 1.0)
    nats = np.log(table.sum(axis=1, keepdims=True)) - np.log(table)
    return np.append(0.0, nats[tokens[:-1], tokens[1:]])


def window_means(values: np.ndarray, length: int) -> np.ndarray:
    """Mean over the tokens that the window at each start predicts."""
    sums = np.append(0.0, np.cumsum(values))
    starts = np.arange(len(values) - length)
    return (sums[starts + length + 1] - sums[starts + 1]) / length


def chunks(
    text: models.Text, arm: Arm, length: int, seed: int, rates: np.ndarray, chunk: int,
    known: np.ndarray, first: int, ends: int,
) -> Iterator[Inputs]:  # fmt: skip
    """The inputs of updates ``first`` to ``ends`` of an arm, ``chunk`` at a time; after the last
    one come updates of rate 0, which change no weight.

    Args:
        text: what is read.
        arm: how.
        length: of the windows.
        seed: of everything random.
        rates: of all updates of the run.
        chunk: updates in each item.
        known: nats of each token of the training text that cannot be learned.
        first: number of the first update.
        ends: number after the last one.
    """
    tokens = text.corpus.train.tokens
    places = np.arange(len(tokens), dtype=np.int32)
    size = BATCH * (CANDIDATES if arm.score else 1)
    random = batches.Batches(places, size, length, seed=seed)
    easiest = means = None
    if arm.easy_first:
        nats = pair_nats(tokens, text.corpus.vocabulary.size)
        easiest = np.argsort(window_means(nats, length), kind="stable")
    if arm.score == "reducible":
        means = window_means(known, length)
    for start in range(first, ends, chunk):
        numbers = np.arange(start, start + chunk)
        if easiest is None:
            starts = random.at(start, chunk)[:, :, 0]
        else:
            starts = np.stack([_easy(easiest, seed, n, len(rates)) for n in numbers])
        found = np.zeros(starts.shape) if means is None else means[starts]
        yield Inputs(
            np.append(rates, np.zeros(chunk, rates.dtype))[numbers],
            tokens[starts[..., None] + np.arange(length + 1)],
            found.astype(np.float32),
            *_drawn(arm.drop, seed, numbers),
        )


def _easy(easiest: np.ndarray, seed: int, number: int, total: int) -> np.ndarray:
    """Starts of windows out of an easiest share that grows with the root of the number of updates,
    to all at half of them.

    Source: Platanios et al., Competence-based curriculum learning (2019).
    """
    done = min(1.0, 2 * number / total)
    share = np.sqrt(FIRST_SHARE**2 + done * (1.0 - FIRST_SHARE**2))
    draws = np.random.Generator(np.random.Philox(key=seed, counter=number)).random(BATCH)
    return easiest[(draws * share * len(easiest)).astype(int)]


def _drawn(
    drop: float, seed: int, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the blocks with those that are kept in front, in order; what their changes are
    multiplied by; and how many are kept.
    """
    draws = [np.random.default_rng([seed, n]).random(LAYERS) for n in numbers]
    gone = np.stack(draws) >= keeps(drop)
    order = np.argsort(gone, axis=1, kind="stable").astype(np.int32)
    scales = (1.0 / keeps(drop))[order].astype(np.float32)
    return order, scales, np.sum(~gone, axis=1, dtype=np.int32)
