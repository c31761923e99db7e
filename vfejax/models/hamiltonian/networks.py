"""Networks of states ``z = (q, p)``: a learned Hamiltonian whose gradients are the vector field, or
the vector field itself.

Source: Greydanus, Dzamba, Yosinski, Hamiltonian neural networks (2019); the separable form as in
Chen, Zhang, Arjovsky, Bottou, Symplectic recurrent neural networks (2020).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx

from vfejax.dynamics.implicit import no_potential
from vfejax.dynamics.phase_space import Hamiltonian, vector_field
from vfejax.models.blocks import check_options
from vfejax.models.perceptron import Perceptron
from vfejax.models.protocol import first_weights, merging
from vfejax.types import Array, PyTree

__all__ = ["HamiltonianConfig", "PhaseModel", "general", "plain", "separable"]


@dataclass(frozen=True)
class HamiltonianConfig:
    """Sizes of every perceptron of a network."""

    hidden: int = 128
    """Units of a hidden layer."""
    layers: int = 2
    """Hidden layers."""


class PhaseModel(NamedTuple):
    """A network of states as pure functions; the weights are a pytree that the caller holds.

    Attributes:
        init: ``init(key) -> params``.
        vector_field: ``vector_field(params, z [2 n]) -> dz/dt [2 n]``; z in the dtype of the
            weights.
        hamiltonian: ``hamiltonian(params) ->``
            :class:`vfejax.dynamics.phase_space.Hamiltonian`; None for a network that has none.
        dim: length of a state.
    """

    init: Callable[[Array], PyTree]
    vector_field: Callable[[PyTree, Array], Array]
    hamiltonian: Callable[[PyTree], Hamiltonian] | None
    dim: int


_Module = TypeVar("_Module", bound=nnx.Module)


class _Separable(nnx.Module):
    def __init__(self, sizes: list[int], *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.potential = Perceptron(sizes, dtype=dtype, rngs=rngs)
        self.kinetic = Perceptron(sizes, dtype=dtype, rngs=rngs)


def separable(
    dim: int, config: HamiltonianConfig = HamiltonianConfig(), dtype: jnp.dtype | type = jnp.float32
) -> PhaseModel:
    """``H = V(q) + T(p)``, a network for each: what Stoermer-Verlet can integrate.

    Args:
        dim: length of a state, even.
        config: sizes of both networks.
        dtype: of weights and arithmetic.

    Raises:
        ValueError: for an odd length, or a size below 1.

    >>> import jax
    >>> model = separable(4, HamiltonianConfig(hidden=8))
    >>> params = model.init(jax.random.key(0))
    >>> model.vector_field(params, jnp.ones(4)).shape, model.hamiltonian(params).separable
    ((4,), True)
    """
    sizes = [_coordinates(dim), *_hidden(config), 1]

    def create(rngs: nnx.Rngs) -> _Separable:
        return _Separable(sizes, dtype=jnp.dtype(dtype), rngs=rngs)

    def energies(module: _Separable) -> Hamiltonian:
        return Hamiltonian(
            lambda q: module.potential(q)[0], lambda q, p: module.kinetic(p)[0], separable=True
        )

    return _with_energy(create, energies, dim, dtype)


def general(
    dim: int, config: HamiltonianConfig = HamiltonianConfig(), dtype: jnp.dtype | type = jnp.float32
) -> PhaseModel:
    """``H(q, p)``, one network: for energies that do not separate, by the implicit midpoint rule.

    Args:
        dim: length of a state, even.
        config: sizes of the network.
        dtype: of weights and arithmetic.

    Raises:
        ValueError: for an odd length, or a size below 1.

    >>> import jax
    >>> model = general(2, HamiltonianConfig(hidden=8))
    >>> model.vector_field(model.init(jax.random.key(0)), jnp.ones(2)).shape
    (2,)
    """
    sizes = [2 * _coordinates(dim), *_hidden(config), 1]

    def create(rngs: nnx.Rngs) -> Perceptron:
        return Perceptron(sizes, dtype=jnp.dtype(dtype), rngs=rngs)

    def energies(module: Perceptron) -> Hamiltonian:
        return Hamiltonian(no_potential, lambda q, p: module(jnp.concatenate([q, p]))[0])

    return _with_energy(create, energies, dim, dtype)


def _with_energy(
    create: Callable[[nnx.Rngs], _Module],
    energies: Callable[[_Module], Hamiltonian],
    dim: int,
    dtype: jnp.dtype | type,
) -> PhaseModel:
    """The model whose vector field is that of the energies of a module."""
    merged = merging(create)

    def hamiltonian(params: PyTree) -> Hamiltonian:
        return energies(merged(params))

    def vector_field_fn(params: PyTree, z: Array) -> Array:
        return vector_field(hamiltonian(params), _checked(z, dim, dtype))

    return PhaseModel(first_weights(create), vector_field_fn, hamiltonian, dim)


def plain(
    dim: int, config: HamiltonianConfig = HamiltonianConfig(), dtype: jnp.dtype | type = jnp.float32
) -> PhaseModel:
    """The vector field itself, one network without an energy: what the others are compared with.

    Args:
        dim: length of a state, even.
        config: sizes of the network.
        dtype: of weights and arithmetic.

    Raises:
        ValueError: for an odd length, or a size below 1.

    >>> import jax
    >>> model = plain(2, HamiltonianConfig(hidden=8))
    >>> model.vector_field(model.init(jax.random.key(0)), jnp.ones(2)).shape
    (2,)
    """
    length = 2 * _coordinates(dim)
    sizes = [length, *_hidden(config), length]

    def create(rngs: nnx.Rngs) -> Perceptron:
        return Perceptron(sizes, dtype=jnp.dtype(dtype), rngs=rngs)

    merged = merging(create)

    def vector_field_fn(params: PyTree, z: Array) -> Array:
        return merged(params)(_checked(z, dim, dtype))

    return PhaseModel(first_weights(create), vector_field_fn, None, dim)


def _coordinates(dim: int) -> int:
    if dim < 2 or dim % 2:
        raise ValueError(f"dim must be even and at least 2: coordinates and momenta, got {dim}")
    return dim // 2


def _checked(z: Array, dim: int, dtype: jnp.dtype | type) -> Array:
    """A state, once it is one of the network's: weights round no state of another precision."""
    shape, found = jnp.shape(z), jnp.result_type(z)
    needed = jnp.dtype(dtype)
    if shape != (dim,) or found != needed:
        raise ValueError(
            f"z must be {needed.name} of shape ({dim},), got {found.name} of shape {shape}"
        )
    return jnp.asarray(z)


def _hidden(config: HamiltonianConfig) -> list[int]:
    check_options(config, hidden=1, layers=1)
    return [config.hidden] * config.layers
