"""A block as one kick and one drift of the energy that it has learned."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.dynamics.reversible import Pair
from vfejax.models.blocks import dropout
from vfejax.models.resnet_bk.gates import GateOperator
from vfejax.models.reversible.config import ReversibleConfig
from vfejax.models.reversible.energies import Energy
from vfejax.numerics import at_least_float32
from vfejax.types import Array, PyTree

__all__ = ["Block", "EnergySums", "energy_sums"]


class EnergySums(NamedTuple):
    """Sums over real tokens, scalars of each layer: the squared change of a token's energy in the
    block, the energy after it, its square, and the number of tokens.
    """

    squared_change: Array
    energy: Array
    squared_energy: Array
    tokens: Array


def energy_sums(before: Array, after: Array, mask: Array | None) -> EnergySums:
    """Sums over the tokens at which the mask is True.

    Args:
        before: energies of tokens before a block, ``[b, n]``.
        after: those after it; no gradient flows to them but from the squared change.
        mask: ``[b, n]``; None when all tokens count.

    >>> sums = energy_sums(jnp.zeros((1, 2)), jnp.asarray([[1.0, 3.0]]), None)
    >>> [x.item() for x in sums]
    [10.0, 4.0, 10.0, 2.0]
    """
    keep = jnp.ones(before.shape, bool) if mask is None else mask

    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(keep, x, jnp.zeros((), x.dtype)))

    seen = jax.lax.stop_gradient(after)
    return EnergySums(
        total((after - before) ** 2),
        total(seen),
        total(seen * seen),
        jnp.sum(keep, dtype=before.dtype),
    )


class Block(nnx.Module):
    """The energy ``H_t(q, p) = T(p) + V(q; c_t)`` of token t, and one step of its flow,

        p <- p - dt dV/dq (q; c_t),    q <- q + dt dT/dp (p),    V(q; c) = U(q) - c . q.

    What the token hears, ``c_t``, comes from a causal mixer of the positions q, and is held fixed
    in the gradient: each token descends a potential of its own. The gradient of one potential of
    the whole text would pull on the tokens that were heard too, and tell them of their future. The
    two halves are shears, which can be undone whatever was learned. At fixed c the step is
    symplectic for each token; of the text as a whole it keeps the volume.

    Args:
        config: the model's options.
        dtype: that of the products.
        rngs: where first weights come from.
    """

    def __init__(self, config: ReversibleConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dim, self.rate = config.dim // 2, config.dropout
        real = at_least_float32(dtype)
        self.norm = nnx.RMSNorm(dim, epsilon=1e-6, dtype=dtype, param_dtype=real, rngs=rngs)
        self.mixer = GateOperator(
            dim,
            config.heads,
            convolution=config.convolution,
            out_scale=0.02 / config.layers**0.5,
            dtype=dtype,
            rngs=rngs,
        )
        self.potential = Energy(dim, config.hidden, dtype=dtype, rngs=rngs)
        self.kinetic = Energy(dim, config.hidden, dtype=dtype, rngs=rngs)
        self.step_size = nnx.Param(jnp.full((), config.step_size, real))

    def hear(self, position: Array) -> Array:
        """The context of every token, ``[b, n, dim / 2]``, in the dtype of the positions."""
        return self.mixer(self.norm(position))[0].astype(position.dtype)

    def hear_next(self, position: Array, memory: PyTree) -> tuple[Array, PyTree]:
        """The context of the next token at ``position [b, dim / 2]``, and the memory with it."""
        heard, memory = self.mixer.decode(memory, self.norm(position))
        return heard.astype(position.dtype), memory

    def kick(self, position: Array, heard: Array, key: Array | None = None) -> Array:
        """The change of the momenta: ``-dt dV/dq``.

        Args:
            position: q, ``[..., dim / 2]``.
            heard: c, of the same shape.
            key: source of dropout; None outside training.
        """
        force = heard - self.potential.gradient(position)
        return self._step(force, key)

    def drift(self, momentum: Array, key: Array | None = None) -> Array:
        """The change of the positions: ``dt dT/dp``."""
        return self._step(self.kinetic.gradient(momentum), key)

    def _step(self, slope: Array, key: Array | None) -> Array:
        return dropout(self.step_size[...].astype(slope.dtype) * slope, self.rate, key)

    def energy(self, pair: Pair, heard: Array) -> Array:
        """H of every token ``[b, n]``, given what it hears."""
        potential = self.potential(pair.position) - jnp.sum(heard * pair.position, axis=-1)
        return self.kinetic(pair.momentum) + potential
