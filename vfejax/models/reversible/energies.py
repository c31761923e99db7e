"""Learned scalar energies of a token, whose gradients are layers."""

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["Energy", "gelu_integral"]

_EPSILON = 1e-6  # added to mean squares


def _normal_density(x: Array) -> Array:
    return jnp.exp(-0.5 * x * x) * (0.5 / jnp.pi) ** 0.5


@jax.custom_jvp
def _normal_distribution(x: Array) -> Array:
    """Its derivative is written out: jax 0.12 refuses that of ``erfc`` inside ``jax.shard_map``."""
    return 0.5 * jax.lax.erfc(-x * 0.5**0.5)


@_normal_distribution.defjvp
def _normal_distribution_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return _normal_distribution(x), _normal_density(x) * tangent


@jax.custom_jvp
def gelu_integral(x: Array) -> Array:
    """The function whose derivative is ``gelu``: ``((x^2 - 1) Phi(x) + x phi(x)) / 2`` with the
    distribution Phi and the density phi of a normal number.

    >>> jax.grad(gelu_integral)(1.0).item() == nnx.gelu(1.0, approximate=False).item()
    True
    """
    return 0.5 * ((x * x - 1) * _normal_distribution(x) + x * _normal_density(x))


@gelu_integral.defjvp
def _gelu_integral_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return gelu_integral(x), x * _normal_distribution(x) * tangent


class Energy(nnx.Module):
    """``E(x) = r sum_j a_j g(w_j . x / r)`` of every token, with ``g' = gelu`` and r the root mean
    square of x.

    Its gradient in x is a feed-forward layer ``W (a * gelu(W^T x / r))`` whose output
    weights are those of its input, and a part along x. Like a layer behind a norm it does not
    depend on the length of x.

    Args:
        dim: width of x.
        hidden: number of units.
        dtype: that of the products; sums are at least single precision.
        rngs: where first weights come from.

    >>> energy = Energy(4, 8, rngs=nnx.Rngs(0))
    >>> x = jnp.arange(12.0).reshape(3, 4)
    >>> energy(x).shape, energy.gradient(2 * x)[0, 0] == energy.gradient(x)[0, 0]
    ((3,), Array(True, dtype=bool))
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.real = dtype, at_least_float32(dtype)
        self.kernel = nnx.Param(normal(0.02)(rngs.params(), (dim, hidden), self.real))
        self.scale = nnx.Param(normal(1.0)(rngs.params(), (hidden,), self.real))

    def __call__(self, x: Array) -> Array:
        """``x [..., dim]`` to energies ``[...]``."""
        x = x.astype(self.real)
        length = jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPSILON)
        units = (x / length).astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        units = gelu_integral(units) @ self.scale[...].astype(self.dtype)
        return length[..., 0] * units.astype(self.real)

    def gradient(self, x: Array) -> Array:
        """The energy's gradient at ``x [..., dim]``."""
        return jax.grad(lambda x: jnp.sum(self(x)))(x)
