"""Learned scalar energies of a token, whose gradients are layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.models.kernel_products import kernel_product
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


@jax.custom_jvp
def _units(x: Array) -> tuple[Array, Array]:
    """``gelu(x)``, and ``g(x) - x gelu(x)`` of its integral g."""
    distribution = _normal_distribution(x)
    along = x * _normal_density(x) - (x * x + 1) * distribution
    return x * distribution, 0.5 * along


@_units.defjvp
def _units_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    (x,), (tangent,) = primals, tangents
    change = (_normal_distribution(x) + x * _normal_density(x)) * tangent
    return _units(x), (change, -x * change)


class Energy(nnx.Module):
    """``E(x) = r sum_j a_j g(w_j . x / r)`` of every token, with ``g' = gelu`` and r the root mean
    square of x.

    Its gradient in x is a feed-forward layer whose output weights are those of its input, and a
    part along x. With ``u = x / r`` and ``h = W^T u`` it is

        W (a * gelu(h)) + u a . (g(h) - h gelu(h)) / dim.

    Like a layer behind a norm it does not depend on the length of x.

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
        _, length, units = self._read(x)
        units = gelu_integral(units) @ self.scale[...].astype(self.dtype)
        return length[..., 0] * units.astype(self.real)

    def _read(self, x: Array) -> tuple[Array, Array, Array]:
        """``x / r``, r and ``W^T x / r``."""
        x = x.astype(self.real)
        length = jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPSILON)
        unit = x / length
        return unit, length, kernel_product(unit.astype(self.dtype), self._kernel())

    def _kernel(self) -> Array:
        return self.kernel[...].astype(self.dtype)

    def gradient(self, x: Array) -> Array:
        """The energy's gradient at ``x [..., dim]``, written out: the derivative of a derivative
        that JAX makes has one loop for every product of its terms.
        """
        unit, _, units = self._read(x)
        scale, (outputs, along) = self.scale[...].astype(self.dtype), _units(units)
        found = jnp.einsum("...h,dh->...d", scale * outputs, self._kernel()).astype(self.real)
        share = (along @ scale).astype(self.real) / x.shape[-1]
        return (found + share[..., None] * unit).astype(x.dtype)
