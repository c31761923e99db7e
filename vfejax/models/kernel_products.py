"""Products with kernels whose gradients suit a CPU."""

from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.custom_derivatives import SymbolicZero, zero_from_primal
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from vfejax.devices import alike
from vfejax.types import Array

__all__ = ["kernel_product", "linear"]

_Options = tuple[tuple[str, Any], ...]


def _dimensions(rank: int) -> tuple[tuple[tuple[int], tuple[int]], tuple[tuple[()], tuple[()]]]:
    return ((rank - 1,), (0,)), ((), ())


def _plain(x: Array, kernel: Array, *, options: _Options) -> Array:
    return jax.lax.dot_general(x, kernel, _dimensions(x.ndim), **dict(options))


def _shape(x: Any, kernel: Any, *, options: _Options) -> Any:
    chosen = {"precision": None, "preferred_element_type": None, "out_sharding": None}
    return jax.lax.dot_general_p.abstract_eval(
        x, kernel, dimension_numbers=_dimensions(x.ndim), **chosen | dict(options)
    )[0]


def _by_kernel(x: Array, kernel: Array, options: _Options) -> Array:
    """The product as linear in the kernel, whose gradient is summed over devices that share it."""
    return _BY_KERNEL.bind(*alike(x, kernel), options=options)


def _derivative(primals: tuple, tangents: tuple, *, options: _Options) -> tuple[Any, Any]:
    (x, kernel), parts = primals, []
    if type(tangents[0]) is not ad.Zero:
        parts.append(_plain(tangents[0], kernel, options=options))
    if type(tangents[1]) is not ad.Zero:
        parts.append(_by_kernel(x, tangents[1], options))
    return _by_kernel(x, kernel, options), sum(parts[1:], parts[0])


def _transpose(ct: Any, x: Any, kernel: Any, *, options: _Options) -> tuple[Any, Any]:
    if type(ct) is ad.Zero:
        return None, None
    if ad.is_undefined_primal(x):
        axes = ((ct.ndim - 1,), (1,))
        return _gradient(ct, kernel, axes, options, x.aval.dtype, _place(x.aval.sharding)), None
    dtype, place = kernel.aval.dtype, _place(kernel.aval.sharding)
    rows = tuple(range(ct.ndim - 1))
    if x.shape[-1] <= ct.shape[-1]:
        return None, _gradient(x, ct, (rows, rows), options, dtype, place)
    if place is not None:
        place = NamedSharding(place.mesh, PartitionSpec(*reversed((*place.spec, None, None)[:2])))
    found = _gradient(ct, x, (rows, rows), options, dtype, place)
    return None, jax.lax.transpose(found, (1, 0))


def _place(place: NamedSharding) -> NamedSharding | None:
    """Where a gradient is to be, by the sharding that the type of its argument states."""
    mesh = jax.sharding.get_abstract_mesh()
    if not place.mesh.empty:
        return place
    return None if mesh.empty else NamedSharding(mesh, PartitionSpec())


def _gradient(
    left: Array,
    right: Array,
    axes: tuple[tuple[int, ...], tuple[int, ...]],
    options: _Options,
    dtype: Any,
    place: NamedSharding | None,
) -> Array:
    chosen = dict(options) | {"out_sharding": place}
    return jax.lax.dot_general(left, right, (axes, ((), ())), **chosen).astype(dtype)


def _batched(arguments: tuple, axes: tuple, *, options: _Options) -> tuple[Array, int]:
    return jax.vmap(partial(_plain, options=options), axes)(*arguments), 0


_BY_KERNEL = Primitive("product_by_kernel")
_BY_KERNEL.def_impl(_plain)
_BY_KERNEL.def_abstract_eval(_shape)
ad.primitive_jvps[_BY_KERNEL] = _derivative
ad.primitive_transposes[_BY_KERNEL] = _transpose
batching.primitive_batchers[_BY_KERNEL] = _batched
mlir.register_lowering(_BY_KERNEL, mlir.lower_fun(_plain, multiple_results=False))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(x: Array, kernel: Array, options: _Options) -> Array:
    return _plain(x, kernel, options=options)


@partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(options: _Options, primals: tuple, tangents: tuple) -> tuple[Array, Any]:
    (x, kernel), (x_change, kernel_change) = primals, tangents
    # A plain product, which policies of jax.checkpoint know as one.
    product, parts = _plain(x, kernel, options=options), []
    if type(x_change) is not SymbolicZero:
        parts.append(_plain(x_change, kernel, options=options))
    if type(kernel_change) is not SymbolicZero:
        parts.append(_by_kernel(x, kernel_change, options))
    if not parts:
        return product, zero_from_primal(product, symbolic_zeros=True)
    return product, sum(parts[1:], parts[0])


def kernel_product(x: Array, kernel: Array, dimension_numbers: Any = None, **options: Any) -> Array:
    """``x K``, for ``nnx.Linear(dot_general=kernel_product)``.

    XLA on a CPU transposes the left factor of a product that sums over rows, in one loop with all
    that the factor is made of, and such a loop is slow. JAX's gradient of K is ``(ct^T x)^T``, and
    the cotangent of what an activation reads is a long formula: one layer of 256 takes 2 ms for
    768 rows. Here it is ``x^T ct``, which takes a tenth to a quarter off an update of a GPT; and
    ``(ct^T x)^T`` where x is the wider one, what an activation gave, which takes off a fifth more.

    Args:
        x: ``[..., m]``.
        kernel: ``[m, n]``.
        dimension_numbers: those of a product over m, which is what it does.
        options: others of ``jax.lax.dot_general``.

    Returns:
        ``[..., n]``.

    >>> import jax.numpy as jnp
    >>> kernel_product(jnp.ones((3, 2)), jnp.ones((2, 4))).shape
    (3, 4)
    """
    place = options.get("out_sharding")
    if place is not None:  # as rules of shapes want it
        named = isinstance(place, NamedSharding)
        mesh = place.mesh.abstract_mesh if named else jax.sharding.get_abstract_mesh()
        options["out_sharding"] = NamedSharding(mesh, place.spec if named else place)
    return _product(x, kernel, tuple(options.items()))


linear = partial(nnx.Linear, dot_general=kernel_product)
"""A layer of flax that multiplies by :func:`kernel_product`."""
