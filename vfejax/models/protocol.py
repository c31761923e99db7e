"""From a flax module to pure functions of its weights, with padding taken care of once for all
models.

A causal model never hears of what stands after a token. So padding is moved behind the real tokens
of each row before a module sees them, and predictions are moved back: left, right and scattered
padding then leave every real token's prediction as it is without padding, and positions count real
tokens. All that a module does about padding is to leave it out of its statistics.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vfejax.devices import whole
from vfejax.models import unstacked
from vfejax.models.activation_statistics import activations
from vfejax.models.block_hooks import visited
from vfejax.models.recomputed import recomputed, stack_paths
from vfejax.types import Array, Batch, Layers, Prediction, PyTree, SequenceModel, VisitFn

__all__ = [
    "Packing",
    "SequenceModule",
    "as_batch",
    "check_batch",
    "first_weights",
    "merging",
    "pack",
    "packed_batch",
    "packing",
    "permute",
    "positions_of",
    "pure",
    "unpacked",
    "unpacked_layers",
]


class SequenceModule(Protocol):
    """What a flax module offers to become a :class:`vfejax.types.SequenceModel`.

    A module may also have ``read(state, tokens [b, n]) -> (logits [b, v], state)``, which decodes
    several tokens at once, and ``watch(batch, key) -> (Prediction, Layers)``, which shows what its
    blocks do (:class:`vfejax.models.intermediates.Watched`). One with ``residual = True`` has a
    stack ``blocks`` that hands on one stream, whose blocks can be visited
    (:mod:`vfejax.models.block_hooks`).
    """

    @property
    def max_length(self) -> int | None:
        """How many tokens a sequence may have; None for any number."""
        ...

    def __call__(self, batch: Batch, key: Array | None) -> Prediction:
        """Predictions for a batch whose padding, if it has any, stands behind the real tokens of
        each row.

        A module with ``summarize`` leaves ``losses`` and ``diagnostics`` empty: they are made from
        its statistics.
        """
        ...

    def init_decode(self, batch_size: int) -> PyTree:
        """Memory before the first token."""
        ...

    def decode(self, state: PyTree, tokens: Array) -> tuple[Array, PyTree]:
        """Logits ``[b, v]`` after one more token ``[b]`` of each sequence, and the memory with
        it.
        """
        ...


class Packing(NamedTuple):
    """Real tokens to the front of each row: ``order [b, n]`` says which one comes at each place,
    and ``place [b, n]`` where each one goes.
    """

    order: Array
    place: Array


def packing(mask: Array) -> Packing:
    """The permutation of each row that moves real tokens to the front, in their order, and padding
    behind them.

    >>> packing(jnp.asarray([[False, True, False, True]])).order.tolist()
    [[1, 3, 0, 2]]
    """
    order = jnp.argsort(~mask, axis=-1, stable=True).astype(jnp.int32)
    return Packing(order, jnp.argsort(order, axis=-1).astype(jnp.int32))


@jax.custom_vjp
def permute(x: Array, order: Array, place: Array) -> Array:
    """``y[b, i] = x[b, order[b, i]]`` along the second axis, for a permutation and its inverse.

    Its gradient is the inverse permutation, a gather too (autodiff would scatter). Reverse mode
    only.

    Args:
        x: ``[b, n, ...]``.
        order: permutations of the rows, ``[b, n]``.
        place: their inverses, ``[b, n]``.

    Returns:
        ``[b, n, ...]``.

    >>> order, place = packing(jnp.asarray([[False, True, True]]))
    >>> y = permute(jnp.asarray([[7, 8, 9]]), order, place)
    >>> y.tolist(), permute(y, place, order).tolist()
    ([[8, 9, 7]], [[7, 8, 9]])
    """
    del place
    rows = jnp.arange(x.shape[0], dtype=order.dtype)[:, None]
    return x.at[rows, order].get(mode="promise_in_bounds", unique_indices=True)


def _permute_forward(x: Array, order: Array, place: Array) -> tuple[Array, tuple[Array, Array]]:
    return permute(x, order, place), (order, place)


def _permute_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Any, ...]:
    order, place = residuals
    none = (np.zeros(index.shape, jax.dtypes.float0) for index in residuals)
    return permute(cotangent, place, order), *none


permute.defvjp(_permute_forward, _permute_backward)


def as_batch(batch: Batch | Array) -> Batch:
    """``batch`` itself, or bare tokens as a batch of real tokens."""
    return batch if isinstance(batch, Batch) else Batch(jnp.asarray(batch))


def check_batch(batch: Batch, max_length: int | None) -> None:
    """Raise ValueError unless tokens are integers ``[b, n]`` with ``1 <= n <= max_length`` and the
    other arrays fit them.

    Args:
        batch: what a model is asked to read.
        max_length: the most tokens a row may have; None for any number.

    Raises:
        ValueError: naming the array, what it is and what it should be.
    """
    tokens = batch.tokens
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(
            f"tokens must be integers of shape [b, n], got {jnp.result_type(tokens)} of shape "
            f"{jnp.shape(tokens)}"
        )
    if tokens.shape[0] < 1:
        raise ValueError("tokens must hold at least 1 sequence, got 0")
    if tokens.shape[1] < 1:
        raise ValueError("tokens must hold at least 1 position, got 0")
    if max_length is not None and tokens.shape[1] > max_length:
        raise ValueError(f"tokens must hold 1 to {max_length} positions, got {tokens.shape[1]}")
    wanted = {"mask": jnp.bool_, "positions": jnp.integer, "targets": jnp.integer}
    for name, kind in wanted.items():
        array = getattr(batch, name)
        if array is None:
            continue
        if jnp.shape(array) != tokens.shape or not jnp.issubdtype(jnp.result_type(array), kind):
            noun = "booleans" if name == "mask" else "integers"
            raise ValueError(
                f"{name} must be {noun} of the tokens' shape {tokens.shape}, got "
                f"{jnp.result_type(array)} of shape {jnp.shape(array)}"
            )


def pack(batch: Batch) -> tuple[Batch, Packing | None]:
    """The batch with the padding of each row behind its real tokens, and how to go back; a batch
    without a mask as it is.

    Padding becomes token 0, whatever it was, so that an id outside the vocabulary does no harm.

    >>> batch = Batch(jnp.asarray([[-1, 5, 6]]), jnp.asarray([[False, True, True]]))
    >>> packed, _ = pack(batch)
    >>> packed.tokens.tolist(), packed.mask.tolist()
    ([[5, 6, 0]], [[True, True, False]])
    """
    if batch.mask is None:
        return batch, None
    order, place = packing(jnp.asarray(batch.mask))

    def front(array: Array) -> Array:
        return jnp.take_along_axis(jnp.asarray(array), order, axis=1)

    mask, tokens = front(batch.mask), front(batch.tokens)
    tokens = jnp.where(mask, tokens, jnp.zeros((), tokens.dtype))
    positions = None if batch.positions is None else front(batch.positions)
    targets = None if batch.targets is None else front(batch.targets)
    return Batch(tokens, mask, positions, targets), Packing(order, place)


def packed_batch(batch: Batch | Array, max_length: int | None) -> tuple[Batch, Packing | None]:
    """:func:`pack` of what a model is asked to read, once it is known to fit.

    Args:
        batch: a batch, or bare tokens.
        max_length: the most tokens a row may have; None for any number.

    Raises:
        ValueError: for arrays that do not fit, see :func:`check_batch`.
    """
    batch = as_batch(batch)
    check_batch(batch, max_length)
    return pack(batch)


def unpacked(x: Array, packed: Packing | None) -> Array:
    """What was said of the tokens of a packed batch, ``[b, n, ...]``, each back in its place; as it
    is for a batch that was not packed.

    >>> batch, packed = pack(Batch(jnp.asarray([[-1, 5]]), jnp.asarray([[False, True]])))
    >>> unpacked(batch.tokens, packed).tolist()
    [[0, 5]]
    """
    return x if packed is None else permute(x, packed.place, packed.order)


def unpacked_layers(layers: Layers, packed: Packing | None) -> Layers:
    """What blocks did with a packed batch, each token back in its place."""
    if packed is None:
        return layers
    return jax.tree.map(jax.vmap(lambda x: unpacked(x, packed)), layers)


def positions_of(batch: Batch) -> Array:
    """Positions of a batch as a module sees it: those given, ``[b, n]``, else 0, 1, 2, ... as
    ``[1, n]``.
    """
    if batch.positions is not None:
        return batch.positions
    return jnp.arange(batch.tokens.shape[1], dtype=jnp.int32)[None]


_Module = TypeVar("_Module", bound=nnx.Module)


def merging(create: Callable[[nnx.Rngs], _Module]) -> Callable[[PyTree], _Module]:
    """A function from parameters, a nested dict of arrays, to the module that has them.

    Args:
        create: makes such a module; called once, without computing anything.

    >>> layer = merging(lambda rngs: nnx.Linear(2, 1, use_bias=False, rngs=rngs))
    >>> layer({"kernel": jnp.ones((2, 1))})(jnp.ones(2)).tolist()
    [2.0]
    """
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: create(nnx.Rngs(0))))
    return lambda params: nnx.merge(graphdef, params)


def first_weights(create: Callable[[nnx.Rngs], Any]) -> Callable[[Array], PyTree]:
    """A function from a random key to the first parameters of a module, a nested dict of arrays.

    Args:
        create: makes the module from streams of random numbers.

    >>> init = first_weights(lambda rngs: nnx.Linear(2, 1, use_bias=False, rngs=rngs))
    >>> init(jax.random.key(0))["kernel"].shape
    (2, 1)
    """

    def init(key: Array) -> PyTree:
        return nnx.to_pure_dict(nnx.state(create(nnx.Rngs(key)), nnx.Param))

    return init


def pure(
    create: Callable[[nnx.Rngs], SequenceModule],
    summarize: Callable[[PyTree], tuple[dict[str, Array], dict[str, Array]]] | None = None,
) -> SequenceModel:
    """The module that ``create(rngs)`` makes, as pure functions of its parameters (a nested dict of
    arrays).

    Args:
        create: makes the module; called once without computing anything, and once per ``init``.
        summarize: losses and diagnostics from the statistics of the module's predictions; None for
            a module that states them itself.

    Returns:
        The model. Its ``apply`` takes a batch, or bare tokens.
    """
    abstract = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    graphdef, max_length = nnx.graphdef(abstract), abstract.max_length
    stacks = stack_paths(abstract)
    merged, decoding = (partial(way, graphdef, stacks) for way in (_merged, unstacked.merged))

    def finished(prediction: Prediction, packed: Packing | None) -> Prediction:
        prediction = prediction._replace(logits=unpacked(prediction.logits, packed))
        if summarize is None:
            return prediction
        losses, diagnostics = summarize(prediction.statistics)
        return prediction._replace(losses=losses, diagnostics=diagnostics)

    def apply(params: PyTree, batch: Batch | Array, key: Array | None = None) -> Prediction:
        batch, packed = packed_batch(batch, max_length)
        return finished(merged(params)(batch, key), packed)

    def recompute(params: PyTree, batch: Batch | Array, key: Array | None = None) -> Prediction:
        batch, packed = packed_batch(batch, max_length)
        return finished(recomputed(merged(params))(batch, key), packed)

    def watch(
        params: PyTree, batch: Batch | Array, key: Array | None = None
    ) -> tuple[Prediction, Layers]:
        batch, packed = packed_batch(batch, max_length)
        prediction, layers = merged(params).watch(batch, key)
        return finished(prediction, packed), unpacked_layers(layers, packed)

    def visit(
        params: PyTree, batch: Batch | Array, visit_fn: VisitFn, key: Array | None = None
    ) -> tuple[Prediction, PyTree]:
        batch, packed = packed_batch(batch, max_length)
        prediction, said = visited(merged(params), batch, visit_fn, key)
        return finished(prediction, packed), said

    def gather(params: PyTree, batch: Batch | Array) -> dict[str, Array]:
        batch = as_batch(batch)
        check_batch(batch, max_length)
        return activations(nnx.merge(graphdef, params), batch)

    def init_decode(params: PyTree, batch_size: int) -> PyTree:
        return decoding(params).init_decode(batch_size)

    def decode(params: PyTree, state: PyTree, tokens: Array) -> tuple[Array, PyTree]:
        return decoding(params).decode(state, tokens)

    def read(params: PyTree, state: PyTree, tokens: Array) -> tuple[Array, PyTree]:
        return decoding(params).read(state, tokens)

    return SequenceModel(
        first_weights(create),
        apply,
        init_decode,
        decode,
        max_length,
        summarize,
        read=read if hasattr(abstract, "read") else None,
        watch=watch if hasattr(abstract, "watch") else None,
        activations=gather,
        visit=visit if getattr(abstract, "residual", False) else None,
        recompute=recompute if stacks else None,
        prepare=partial(unstacked.taken_apart, stacks=stacks) if stacks else None,
    )


def _merged(graphdef: Any, stacks: Collection[tuple[Any, ...]], params: PyTree) -> Any:
    """The module that has these weights. Those of blocks become whole when their block is run."""

    def gathered(path: tuple[Any, ...], weight: Array) -> Array:
        keys = tuple(getattr(step, "key", None) for step in path)
        return weight if any(keys[: len(stack)] == stack for stack in stacks) else whole(weight)

    return nnx.merge(graphdef, jax.tree.map_with_path(gathered, params))
