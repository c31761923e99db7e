"""What sequence models share: a stack of equal blocks compiled once, an output by divergences,
dropout, initialisers, and checks of options.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.attention.softmax import softmax
from vfejax.devices import whole
from vfejax.numerics import at_least_float32, cast_like, matmul
from vfejax.routing import dispatch
from vfejax.types import Array, PyTree

__all__ = [
    "OptionError",
    "Stack",
    "attend",
    "bank_logits",
    "check_choice",
    "check_dropout",
    "check_options",
    "check_positive",
    "dropout",
    "embedding",
    "normal",
]


_policies = jax.checkpoint_policies
_DEAR = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable,
    _policies.save_only_these_names("eigh", "populations", dispatch.KEPT),
)
"""What gradients keep of a block, as it costs most to compute: products with weights, those of
experts with the places of their rows, eigenvectors, and populations of states, in place of the
states."""


class _Apart:
    """Blocks one by one; not a pytree, so that flax does not look into it."""

    def __init__(self, blocks: list[Any]):
        self.blocks = blocks


class Stack(nnx.Module):
    """``num_layers`` equal blocks whose parameters are stacked along a leading axis, so that depth
    costs no compile time.

    A gradient keeps of each block what it was given, its products with weights and eigenvectors,
    and computes the rest again. That is faster than writing everything for every layer and reading
    it back, and takes a fraction of the memory; docs/results/devices.md has figures.

    Args:
        create: ``rngs -> block``; every block has first weights of its own.
        num_layers: number of blocks.
        rngs: where first weights come from.

    Attributes:
        recomputed: whether the gradient computes the products with weights again too, and keeps
            only what each block was given.
        apart: the blocks one by one, to run in place of the stacked ones; None for none.
    """

    recomputed = False
    apart: "_Apart | None" = None

    def __init__(
        self, create: Callable[[nnx.Rngs], nnx.Module], num_layers: int, *, rngs: nnx.Rngs
    ):
        self.num_layers = num_layers
        self.block = nnx.vmap(create)(rngs.split(num_layers))

    def scan(
        self,
        step: Callable[[Any, Any, Any], tuple[Any, Any]],
        carry: Any,
        inputs: Any = None,
        span: slice | None = None,
    ) -> tuple[Any, Any]:
        """Run through the blocks in order: ``carry, output = step(block, carry, input)``.

        Args:
            step: what one block does, pure.
            carry: what the first block is given, a pytree of arrays; a step returns the same shapes
                and dtypes.
            inputs: the blocks' own inputs, a pytree of arrays ``[num_layers, ...]``; None when they
                have none.
            span: which blocks; all by default.

        Returns:
            The last carry, and the outputs stacked by layer, ``[num_layers, ...]``.
        """
        if self.apart is not None:
            blocks = self.apart.blocks[slice(None) if span is None else span]
            return _one_by_one(blocks, step, carry, inputs)
        graphdef, params = nnx.split(self.block)
        if span is not None:
            params = jax.tree.map(lambda x: x[span], params)

        def body(carry: Any, layer: tuple[Any, Any]) -> tuple[Any, Any]:
            return step(nnx.merge(graphdef, whole(layer[0])), carry, layer[1])

        kept = None if self.recomputed else _DEAR
        # No barriers against merging what is computed again: a scan keeps the passes apart.
        body = jax.checkpoint(body, prevent_cse=False, policy=kept)
        return jax.lax.scan(body, carry, (params, inputs))

    def one(self, number: int) -> Any:
        """The block of this number, which may count from the end."""
        if self.apart is not None:
            return self.apart.blocks[number]
        graphdef, params = nnx.split(self.block)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x[number], params))

    def repeat(self, make: Callable[[Any], PyTree]) -> PyTree:
        """``make(block)``, the same for every block, stacked by layer."""
        made = make(self.one(0))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_layers, *x.shape)), made)

    def take(self, blocks: tuple[PyTree, ...]) -> None:
        """Run blocks with these parameters, one after the other, in place of the stacked ones."""
        graphdef = nnx.graphdef(self.block)
        self.apart = _Apart([nnx.merge(graphdef, block) for block in blocks])


def _one_by_one(
    blocks: list[Any], step: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, inputs: Any
) -> tuple[Any, Any]:
    outputs = []
    for number, block in enumerate(blocks):
        carry, output = step(block, carry, jax.tree.map(lambda x: x[number], inputs))  # noqa: B023
        outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)


def attend(query: Array, keys: Array, values: Array, mask: Array) -> Array:
    """Softmax attention of every head, with scores divided by the root of the number of channels.

    Written out because ``jax.nn.dot_product_attention`` takes its softmax in float32 even for
    float64, and gives a row without anything to read the mean of all values.

    Args:
        query: ``[b, n, heads, c]``.
        keys: ``[b, m, heads, c]``.
        values: ``[b, m, heads, c]``.
        mask: booleans ``[n, m]``, True where token n may read token m.

    Returns:
        ``[b, n, heads, c]``.
    """
    scores = jnp.einsum("bnhc,bmhc->bhnm", query, keys) / query.shape[-1] ** 0.5
    weights = softmax(scores, mask[None, None])
    return jnp.einsum("bhnm,bmhc->bnhc", weights.astype(values.dtype), values)


def bank_logits(rows: Array, columns: Array, temperature: float | Array) -> Array:
    """``-KL(q || pi_v) / temperature`` from a bank of Gaussians, one for each token, where a
    divergence is a product of a row of the belief and one of the Gaussian, ``KL = a . b``.

    The families of Gaussians know their rows. Divergences of heads are summed by the product, and
    no array with two axes of channels per pair is formed.

    Args:
        rows: a of beliefs, ``[..., heads, r]``.
        columns: b of the bank, ``[v, heads, r]``.
        temperature: in nats, positive.

    Returns:
        ``[..., v]``.

    >>> bank_logits(jnp.ones((3, 2, 4)), jnp.ones((5, 2, 4)), 0.5)[0, 0].item()
    -16.0
    """
    width = rows.shape[-2] * rows.shape[-1]
    divergence = matmul(rows.reshape(-1, width), columns.reshape(-1, width).T)
    logits = -divergence / cast_like(temperature, divergence)
    return logits.reshape(*rows.shape[:-2], -1)


def normal(scale: float) -> Callable[..., Array]:
    """Initialiser: independent normal numbers of this standard deviation."""
    return nnx.initializers.normal(scale)


def embedding(num: int, dim: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Embed:
    """Vectors ``[num, dim]`` to be looked up, kept in at least single precision.

    Args:
        num: number of entries.
        dim: width of each.
        dtype: that of what is looked up.
        rngs: where first weights come from.
    """
    return nnx.Embed(
        num,
        dim,
        embedding_init=normal(0.02),
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        rngs=rngs,
    )


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zero a share ``rate`` of the entries and scale up the rest; the identity without a key or at
    rate 0.

    Args:
        x: activations of any shape.
        rate: from 0 to below 1.
        key: source of the choice; None outside training.

    >>> dropout(jnp.ones(3), 0.5, None).tolist()
    [1.0, 1.0, 1.0]
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


class OptionError(ValueError):
    """A model's option with a value that does not fit: ``name must be requirement, got value``.

    Args:
        name: the option.
        value: what it was set to.
        requirement: what it must be, such as ``at least 1``.
    """

    def __init__(self, name: str, value: Any, requirement: str):
        super().__init__(f"{name} must be {requirement}, got {value!r}")
        self.name, self.value, self.requirement = name, value, requirement


def check_options(config: Any, **least: float) -> None:
    """Refuse the first option below its least value, or not a finite number.

    Args:
        config: a model's options.
        least: for each option its least sensible value.

    Raises:
        OptionError: naming option, limit and value.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not bound <= value < float("inf"):
            finite = " and finite" if isinstance(value, float) else ""
            raise OptionError(name, value, f"at least {bound}{finite}")
        if isinstance(value, float) and value > 3.4e38:
            raise OptionError(name, value, "at most 3.4e38, which float32 holds")


def check_positive(config: Any, *names: str) -> None:
    """Refuse the first option that is not positive and finite.

    Args:
        config: a model's options.
        names: those to check.

    Raises:
        OptionError: naming option and value.
    """
    for name in names:
        value = getattr(config, name)
        if not 0 < value < float("inf"):
            raise OptionError(name, value, "positive and finite")
        if not 1.2e-38 <= value <= 3.4e38:
            raise OptionError(name, value, "from 1.2e-38 to 3.4e38, which float32 holds")


def check_dropout(rate: float) -> None:
    """Refuse a share of activations that cannot be left out: unless ``0 <= rate < 1``."""
    if not 0 <= rate < 1:
        raise OptionError("dropout", rate, "at least 0 and below 1")


def check_choice(config: Any, name: str, choices: Iterable[str]) -> None:
    """Refuse an option that is none of its choices.

    Args:
        config: a model's options.
        name: the one to check.
        choices: what it may be.

    Raises:
        OptionError: naming option, choices and value.
    """
    value, choices = getattr(config, name), list(choices)
    if value not in choices:
        raise OptionError(name, value, f"one of {', '.join(choices)}")
