"""Layered Hopfield networks: layers of units that settle between a clamped input and each other.

    E(theta, s, x) = sum_l |s_l|^2 / 2 - sum_l <rho(s_{l-1}) W_l + b_l, rho(s_l)>,   rho(s_0) = x

Couplings are symmetric: layer l feels ``rho(s_{l-1}) W_l`` from below and ``W_{l+1} rho(s_{l+1})``
from above, with the same weights. The last layer is the output. Energies and costs are in units of
the squared activity.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import expand_leading
from vfejax.types import Array, PyTree

__all__ = ["HARD", "SOFT", "Activation", "Hopfield", "energy", "init", "rest", "squared_error"]

State = tuple[Array, ...]


class Hopfield(NamedTuple):
    """Parameters of a network with layers of ``n_0`` (the input), ``n_1``, ... units.

    Attributes:
        weights: W_l ``[n_{l-1}, n_l]``, from the input up.
        biases: b_l ``[n_l]``.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]


class Activation(NamedTuple):
    """What units show of their state.

    Attributes:
        function: rho, of one number.
        project: from a state to the nearest allowed one, for solvers.
        middle: the state at which a unit answers best, and where relaxations start.
    """

    function: Callable[[Array], Array]
    project: Callable[[PyTree], PyTree]
    middle: float


def _into_box(state: PyTree) -> PyTree:
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(state)):
        raise ValueError(
            "state must be real for hard units, which no holomorphic estimator serves, got complex "
            "numbers; use SOFT"
        )
    return jax.tree.map(lambda s: jnp.clip(s, 0.0, 1.0), state)


def _unchanged(state: PyTree) -> PyTree:
    return state


HARD = Activation(lambda s: s, _into_box, 0.5)
"""The hard sigmoid: states between 0 and 1 that are shown as they are. The limits belong to the
solver (``project``), so that a unit at a limit still feels what would bring it back."""

SOFT = Activation(lambda s: jax.nn.sigmoid(4.0 * s - 2.0), _unchanged, 0.5)
"""The logistic function of slope 1 at 1/2: smooth, and holomorphic near the real line."""


def init(
    key: Array,
    sizes: Sequence[int],
    *,
    gain: float = 1.0,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Hopfield:
    """Random weights of zero mean with a spectral norm of about ``gain``, and biases of 0.

    Then half of the units are pushed off their lower limit, whatever the input. At a limit that a
    unit is pushed against, a nudge does not move it, and it learns nothing.

    Args:
        key: of ``jax.random``.
        sizes: units ``n_0`` of the input, then of each layer.
        gain: spectral norm, no unit. With one hidden layer the energy has a single minimum while
            the norm of its upper weights is below 1.
        dtype: floating.

    Returns:
        The parameters.

    Raises:
        ValueError: for less than an input and a layer, or a layer without units.

    >>> [w.shape for w in init(jax.random.key(0), (64, 32, 10)).weights]
    [(64, 32), (32, 10)]
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"sizes must name an input and at least one layer, of 1 unit or more, got {sizes}"
        )

    def matrix(key: Array, below: int, above: int) -> Array:
        # Entries of variance v have a spectral norm of about sqrt(v) (sqrt(m) + sqrt(n)).
        limit = gain * math.sqrt(3.0) / (math.sqrt(below) + math.sqrt(above))
        return jax.random.uniform(key, (below, above), dtype, -limit, limit)

    keys = jax.random.split(key, len(sizes) - 1)
    weights = map(matrix, keys, sizes[:-1], sizes[1:])
    return Hopfield(tuple(weights), tuple(jnp.zeros(n, dtype) for n in sizes[1:]))


def energy(activation: Activation = HARD) -> Callable[[Hopfield, State, Array], Array]:
    """The energy of a network as a function for :mod:`vfejax.energy.equilibrium`.

    Products ask for full precision, as the contrast of two equilibria is a small difference.

    Args:
        activation: rho: :data:`HARD`, :data:`SOFT` or your own.

    Returns:
        ``(params, state, inputs) -> [...]`` for inputs ``[..., n_0]`` and a state of one array
        ``[..., n_l]`` for each layer. It raises ValueError for a state of other shapes.

    Source: Scellier and Bengio, Front. Comput. Neurosci. 11 (2017) 24, with the input clamped.

    >>> params, x = init(jax.random.key(0), (3, 2)), jnp.ones((5, 3))
    >>> energy()(params, rest(params, x), x).shape
    (5,)
    """

    def energy_fn(params: Hopfield, state: State, inputs: Array) -> Array:
        _check(params, state, inputs)
        shown = [inputs, *map(activation.function, state)]
        total = jnp.zeros(inputs.shape[:-1], state[-1].dtype)
        for s in state:
            total = total + 0.5 * jnp.sum(s * s, axis=-1)
        for below, above, w, b in zip(shown, shown[1:], *params, strict=False):
            total = total - jnp.sum((_matvec(below, w) + _expand(b, below)) * above, axis=-1)
        return total

    return energy_fn


def _matvec(rows: Array, weights: Array) -> Array:
    return jnp.einsum("...i,ij->...j", rows, weights, precision="highest")


def _expand(bias: Array, like: Array) -> Array:
    return expand_leading(bias, like.ndim)


def _check(params: Hopfield, state: State, inputs: Array) -> None:
    layers = [w.shape[1:] for w in params.weights]
    if [b.shape for b in params.biases] != layers:
        raise ValueError(
            f"biases must have shapes {layers}, got {[b.shape for b in params.biases]}"
        )
    _check_width(params, inputs)
    expected = [(*inputs.shape[:-1], w.shape[1]) for w in params.weights]
    if [s.shape for s in state] != expected:
        raise ValueError(f"state must have shapes {expected}, got {[s.shape for s in state]}")


def _check_width(params: Hopfield, inputs: Array) -> None:
    width = params.weights[0].shape[0]
    if inputs.shape[-1:] != (width,):
        raise ValueError(f"inputs must have shape [..., {width}], got {inputs.shape}")


def rest(params: Hopfield, inputs: Array, activation: Activation = HARD) -> State:
    """The state from which a relaxation starts: every unit at its middle.

    Args:
        params: the network.
        inputs: ``[..., n_0]``.
        activation: that of the energy.

    Returns:
        One array ``[..., n_l]`` for each layer, in the dtype of the weights.

    Raises:
        ValueError: for inputs of another width.

    >>> [s.tolist() for s in rest(init(jax.random.key(0), (3, 2, 1)), jnp.ones(3))]
    [[0.5, 0.5], [0.5]]
    """
    _check_width(params, inputs)
    return tuple(
        jnp.full((*inputs.shape[:-1], *b.shape), activation.middle, b.dtype) for b in params.biases
    )


def squared_error(state: State, targets: Array) -> Array:
    """``|s_L - y|^2 / 2``, a cost for the output layer.

    Args:
        state: of the network; its last array ``[..., n_L]`` counts.
        targets: y ``[..., n_L]``, in the range of the units.

    Returns:
        ``[...]``.

    Raises:
        ValueError: for targets of another shape.

    >>> float(squared_error((jnp.zeros(3), jnp.ones(2)), jnp.zeros(2)))
    1.0
    """
    output = state[-1]
    if output.shape != targets.shape:
        raise ValueError(f"targets must have shape {output.shape}, got {targets.shape}")
    return 0.5 * jnp.sum((output - targets) ** 2, axis=-1)
