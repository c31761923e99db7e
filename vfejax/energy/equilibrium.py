"""Equilibrium propagation: the gradient of a loss at the minimum of an energy, from minima alone.

A state relaxes to ``s* = argmin_s E(theta, s, x)``, and the loss is a cost ``C(s*, y)``. Nudged by
the cost, it relaxes to ``s^beta = argmin_s E + beta C`` instead, and

    d C(s*, y) / d theta = d/dbeta [ dE/dtheta (theta, s^beta, x) ] at beta = 0

with s held in the inner derivative. An estimator is a finite difference in beta: nothing is
differentiated through the relaxation, which keeps no history and need not be differentiable.

Samples are independent. An energy is a number, or one number for each sample ``[...]``; the states
of all samples relax together, and loss and gradient are their means.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.energy.relaxation import Relaxation, RelaxFn
from vfejax.types import Array, PyTree

__all__ = [
    "CostFn",
    "EquilibriumInfo",
    "LearningFn",
    "Nudging",
    "StateEnergyFn",
    "backpropagation",
    "centred",
    "equilibrium_propagation",
    "holomorphic",
    "one_sided",
]


class StateEnergyFn(Protocol):
    """``E(params, state, inputs)``: a scalar, or one number for each sample ``[...]``.

    Args:
        params: what is learned.
        state: what relaxes.
        inputs: what is given.
    """

    def __call__(self, params: PyTree, state: PyTree, inputs: PyTree, /) -> Array: ...


class CostFn(Protocol):
    """``C(state, targets)``, of the shape of the energy."""

    def __call__(self, state: PyTree, targets: PyTree, /) -> Array: ...


class EquilibriumInfo(NamedTuple):
    """How the relaxations went.

    Attributes:
        free: without a cost; its state is what a prediction is read from.
        nudged: with it, an axis for the values of beta in front; None where there are none.
    """

    free: Relaxation
    nudged: Relaxation | None


LearningFn = Callable[[PyTree, PyTree, PyTree, PyTree], tuple[Array, PyTree, EquilibriumInfo]]
"""``(params, inputs, targets, start) -> (loss, gradient in params, info)``."""


class Nudging(NamedTuple):
    """A finite difference in beta: ``d/dbeta f(0)`` is about ``Re sum_k weights_k f(points_k)``."""

    points: tuple[complex, ...]
    weights: tuple[complex, ...]


def _check_beta(beta: float) -> None:
    if not (beta > 0 and math.isfinite(beta)):
        raise ValueError(f"beta must be above 0 and finite, got {beta}")


def one_sided(beta: float) -> Nudging:
    """``(f(beta) - f(0)) / beta``: one nudged relaxation, an error of order beta.

    Args:
        beta: strength of the cost, above 0.

    Raises:
        ValueError: for another beta.

    >>> one_sided(0.5)
    Nudging(points=(0.5, 0.0), weights=(2.0, -2.0))
    """
    _check_beta(beta)
    return Nudging((beta, 0.0), (1 / beta, -1 / beta))


def centred(beta: float) -> Nudging:
    """``(f(beta) - f(-beta)) / (2 beta)``: two nudged relaxations, an error of order beta^2.

    Args:
        beta: strength of the cost, above 0. ``E - beta C`` must still have a minimum.

    Raises:
        ValueError: for another beta.

    Source: Laborieux et al., Front. Neurosci. 15 (2021) 633674.

    >>> centred(0.5)
    Nudging(points=(0.5, -0.5), weights=(1.0, -1.0))
    """
    _check_beta(beta)
    return Nudging((beta, -beta), (0.5 / beta, -0.5 / beta))


def holomorphic(beta: float, num_points: int) -> Nudging:
    """``1 / (N beta) sum_k exp(-2 pi i k / N) f(beta exp(2 pi i k / N))``: an error of order
    beta^N.

    States and nudges are complex. Energy and cost must be holomorphic in the state: without
    ``abs``, conjugates or projections. Points below the real axis mirror those above it and are not
    relaxed, which leaves N / 2 + 1 relaxations.

    Args:
        beta: radius, above 0. Below the distance of 0 from the nearest beta at which the
            equilibrium is not analytic: beyond it no N helps.
        num_points: N, even and at least 2. Two points are :func:`centred`, without complex numbers.

    Raises:
        ValueError: for another beta or N.

    Source: Laborieux and Zenke, Adv. Neural Inf. Process. Syst. 35 (2022) 12950.

    >>> len(holomorphic(0.5, 4).points)  # 0.5, 0.5 i, -0.5
    3
    """
    _check_beta(beta)
    if num_points < 2 or num_points % 2:
        raise ValueError(f"num_points must be even and at least 2, got {num_points}")
    if num_points == 2:
        return centred(beta)
    half = num_points // 2
    turns = [cmath.exp(1j * cmath.pi * k / half) for k in range(half + 1)]
    # The real part of a point above the axis is that of its mirror image.
    share = [1.0 if k % half == 0 else 2.0 for k in range(half + 1)]
    return Nudging(
        tuple(beta * turn for turn in turns),
        tuple(w / (num_points * beta * turn) for w, turn in zip(share, turns, strict=True)),
    )


def equilibrium_propagation(
    energy_fn: StateEnergyFn, cost_fn: CostFn, relax: RelaxFn, nudging: Nudging
) -> LearningFn:
    """The gradient of the mean cost at equilibrium, from relaxations alone.

    The energy relaxes freely from ``start``, then with each beta from where it came to rest: so all
    belong to one branch of equilibria. The gradient is that of ``Re sum_k w_k E(theta, s^{beta_k},
    x)`` with the states held. Memory does not depend on how long a relaxation takes.

    Args:
        energy_fn: ``(params, state, inputs) -> [...]``.
        cost_fn: ``(state, targets) -> [...]``, of the same shape.
        relax: solver, such as :func:`vfejax.energy.relaxation.gradient_descent`. It gets the
            gradient of ``E + beta C`` in the state, which has an axis for beta under ``vmap``.
        nudging: :func:`one_sided`, :func:`centred` or :func:`holomorphic`. In float32 the
            difference of two equilibria loses ``eps / beta``: take beta of 0.05 to 0.5.

    Returns:
        ``(params, inputs, targets, start) -> (loss, gradient, info)``. The loss is the mean cost of
        the free state; the gradient has the tree of params, for any optax optimiser.

    Raises:
        ValueError: when called without targets, with a state that is not real or of several dtypes,
            with an energy and a cost of different shapes or of no sample, with params that are not
            real floating arrays, with complex inputs or targets, with half precision for a
            holomorphic estimator, or with concrete inputs or targets that are not finite. Traced
            ones make NaN, and no relaxation with a NaN converges.

    Source: Scellier and Bengio, Front. Comput. Neurosci. 11 (2017) 24.

    >>> from vfejax.energy.relaxation import newton
    >>> energy = lambda w, s, x: 0.5 * s**2 - w * x * s  # at rest s = w x
    >>> cost = lambda s, y: 0.5 * (s - y) ** 2
    >>> learn = jax.jit(equilibrium_propagation(energy, cost, newton(), holomorphic(0.2, 8)))
    >>> loss, gradient, info = learn(jnp.array(2.0), jnp.array(3.0), jnp.array(5.0), jnp.array(0.0))
    >>> float(loss), round(float(gradient), 4), bool(info.free.converged)  # (w x - y) x
    (0.5, 3.0, True)
    """
    points, weights = (np.asarray(numbers) for numbers in nudging)

    def learn(
        params: PyTree, inputs: PyTree, targets: PyTree, start: PyTree
    ) -> tuple[Array, PyTree, EquilibriumInfo]:
        dtype = _checked(energy_fn, cost_fn, params, inputs, targets, start)
        free = relax(_force(energy_fn, cost_fn, params, inputs), start)
        lift = _complex if np.iscomplexobj(points) else _unchanged
        known = lift((params, inputs, targets, free.state))
        betas = jnp.asarray(points.real, dtype)
        if np.iscomplexobj(points):
            betas = jax.lax.complex(betas, jnp.asarray(points.imag, dtype))

        def nudged(beta: Array) -> Relaxation:
            params, inputs, targets, state = known
            return relax(_force(energy_fn, cost_fn, params, inputs, targets, beta), state)

        found = jax.vmap(nudged)(betas)
        states = found.state

        def contrast(params: PyTree) -> Array:
            theta, x = lift((params, inputs))
            energies = jax.vmap(lambda s: jnp.mean(energy_fn(theta, s, x)))(states)
            return jnp.real(jnp.sum(jnp.asarray(weights, energies.dtype) * energies))

        loss = jnp.mean(cost_fn(free.state, targets))
        return loss, jax.grad(contrast)(params), EquilibriumInfo(free, found)

    return learn


def backpropagation(energy_fn: StateEnergyFn, cost_fn: CostFn, relax: RelaxFn) -> LearningFn:
    """The same gradient by reverse mode through the free relaxation, as a reference.

    It is the exact gradient of the cost after so many steps, and keeps every one of them.

    Args:
        energy_fn: ``(params, state, inputs) -> [...]``.
        cost_fn: ``(state, targets) -> [...]``, of the same shape.
        relax: a solver that can be differentiated: descent with a tolerance of 0.

    Returns:
        ``(params, inputs, targets, start) -> (loss, gradient, info)``, as
        :func:`equilibrium_propagation`.

    Raises:
        ValueError: as :func:`equilibrium_propagation`.

    >>> from vfejax.energy.relaxation import gradient_descent
    >>> energy = lambda w, s, x: 0.5 * s**2 - w * x * s
    >>> cost = lambda s, y: 0.5 * (s - y) ** 2
    >>> learn = jax.jit(backpropagation(energy, cost, gradient_descent(0.5, 30, 0)))
    >>> loss, gradient, _ = learn(jnp.array(2.0), jnp.array(3.0), jnp.array(5.0), jnp.array(0.0))
    >>> round(float(loss), 4), round(float(gradient), 4)
    (0.5, 3.0)
    """

    def learn(
        params: PyTree, inputs: PyTree, targets: PyTree, start: PyTree
    ) -> tuple[Array, PyTree, EquilibriumInfo]:
        _checked(energy_fn, cost_fn, params, inputs, targets, start)

        def loss_fn(params: PyTree) -> tuple[Array, Relaxation]:
            free = relax(_force(energy_fn, cost_fn, params, inputs), start)
            return jnp.mean(cost_fn(free.state, targets)), free

        (loss, free), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return loss, gradient, EquilibriumInfo(free, None)

    return learn


def _force(
    energy_fn: StateEnergyFn,
    cost_fn: CostFn,
    params: PyTree,
    inputs: PyTree,
    targets: PyTree = None,
    beta: Array | None = None,
) -> Callable[[PyTree], PyTree]:
    """The gradient of ``E + beta C`` in the state, of all samples at once."""

    def total(state: PyTree) -> Array:
        energy = jnp.sum(energy_fn(params, state, inputs))
        return energy if beta is None else energy + beta * jnp.sum(cost_fn(state, targets))

    def force(state: PyTree) -> PyTree:
        is_complex = any(jnp.iscomplexobj(x) for x in jax.tree.leaves(state))
        return jax.grad(total, holomorphic=is_complex)(state)

    return force


def _unchanged(tree: PyTree) -> PyTree:
    return tree


def _complex(tree: PyTree) -> PyTree:
    """Every floating leaf as a complex one of the same precision."""

    def lifted(x: Array) -> Array:
        if not _is_floating(x):
            return x
        if jnp.finfo(x.dtype).bits < 32:
            raise ValueError(
                "params, inputs, targets and start must be float32 or float64 for a holomorphic "
                f"estimator, as no complex numbers are half as wide, got {x.dtype}"
            )
        return jax.lax.complex(x, jnp.zeros_like(x))

    return jax.tree.map(lifted, jax.tree.map(jnp.asarray, tree))


def _is_floating(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _checked(
    energy_fn: StateEnergyFn,
    cost_fn: CostFn,
    params: PyTree,
    inputs: PyTree,
    targets: PyTree,
    start: PyTree,
) -> jnp.dtype:
    """The dtype of the state, once everything fits."""
    if not jax.tree.leaves(targets):
        raise ValueError(f"targets must hold what the cost compares the state with, got {targets}")
    _check_learned(params)
    _check_given(inputs, "inputs")
    _check_given(targets, "targets")
    dtypes = {jnp.result_type(x) for x in jax.tree.leaves(start)}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        found = ", ".join(sorted(str(dtype) for dtype in dtypes)) or "no array"
        raise ValueError(f"start must hold arrays of one real floating dtype, got {found}")
    energy = jax.eval_shape(energy_fn, params, start, inputs)
    cost = jax.eval_shape(cost_fn, start, targets)
    if energy.shape != cost.shape:
        raise ValueError(
            "energy and cost must have one shape, a number for each sample, got "
            f"{energy.shape} and {cost.shape}"
        )
    if 0 in energy.shape:
        raise ValueError(f"start must hold at least one sample, got energies {energy.shape}")
    return next(iter(dtypes))


def _check_learned(params: PyTree) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if not _is_floating(x):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} must be real and floating, got "
                f"{jnp.result_type(x)}"
            )


def _check_given(tree: PyTree, name: str) -> None:
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name_of = f"{name}{jax.tree_util.keystr(path)}"
        if jnp.iscomplexobj(x):
            raise ValueError(f"{name_of} must be real, got {jnp.result_type(x)}")
        if isinstance(x, jax.core.Tracer) or not _is_floating(x):
            continue
        if not np.all(np.isfinite(np.asarray(x))):
            raise ValueError(f"{name_of} must be finite, got NaN or inf")
