"""Learning a vector field from derivatives: the mean square error of a network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.models.hamiltonian.networks import PhaseModel
from vfejax.problems.mechanics import Samples
from vfejax.types import Array, PyTree

__all__ = ["Fitted", "derivative_loss", "fit"]


class Fitted(NamedTuple):
    """Weights, and the loss of every step before it, ``[num_steps]``."""

    params: PyTree
    losses: Array


def derivative_loss(model: PhaseModel, params: PyTree, samples: Samples) -> Array:
    """``mean (dz/dt - f(z))^2`` over samples and components.

    Args:
        model: of states as long as those of the samples.
        params: its weights.
        samples: states and derivatives ``[m, d]``.

    Returns:
        A scalar, in squared units of the derivatives.

    >>> from vfejax.models.hamiltonian.networks import HamiltonianConfig, plain
    >>> model = plain(2, HamiltonianConfig(hidden=4))
    >>> params = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    >>> float(derivative_loss(model, params, Samples(jnp.ones((3, 2)), jnp.full((3, 2), 2.0))))
    4.0
    """
    samples = _checked(model, samples)
    moved = jax.vmap(lambda z: model.vector_field(params, z))(samples.states)
    return jnp.mean((samples.derivatives - moved) ** 2)


def fit(
    model: PhaseModel,
    optimizer: optax.GradientTransformation,
    samples: Samples,
    key: Array,
    num_steps: int,
    batch_size: int,
) -> Fitted:
    """Minimise the loss on random batches; compile it with ``jax.jit``.

    Args:
        model: the network.
        optimizer: any optax transformation.
        samples: to learn from.
        key: of first weights and batches.
        num_steps: updates.
        batch_size: samples per update, drawn with replacement; 0 for all of them, every time.

    Returns:
        The last weights, and the losses.

    Raises:
        ValueError: for samples of another shape or dtype than the model's states, of no more than
            0 rows, or, where they are not traced, with a number that is not finite; for a negative
            number of steps or size of a batch.

    >>> from functools import partial
    >>> from vfejax.models.hamiltonian.networks import HamiltonianConfig, general
    >>> model, data = general(2, HamiltonianConfig(4)), jnp.ones((5, 2))
    >>> run = partial(fit, model, optax.sgd(0.1), Samples(data, data), num_steps=2, batch_size=3)
    >>> jax.eval_shape(run, jax.random.key(0)).losses.shape
    (2,)
    """
    for name, count in (("num_steps", num_steps), ("batch_size", batch_size)):
        if count < 0:
            raise ValueError(f"{name} must be at least 0, got {count}")
    samples = _checked(model, samples)
    num = samples.states.shape[0]
    first, draws = jax.random.split(key)
    params = model.init(first)

    def step(carry: tuple[PyTree, PyTree], key: Array) -> tuple[tuple[PyTree, PyTree], Array]:
        params, state = carry
        rows = jax.random.randint(key, (batch_size,), 0, num)
        batch = jax.tree.map(lambda x: x[rows], samples) if batch_size else samples
        loss, slope = jax.value_and_grad(lambda p: derivative_loss(model, p, batch))(params)
        moves, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, moves), state), loss

    keys = jax.random.split(draws, num_steps)
    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return Fitted(params, losses)


def _checked(model: PhaseModel, samples: Samples) -> Samples:
    """Samples that the model can learn from, as arrays of JAX."""
    shape = jnp.shape(samples.states)
    if len(shape) != 2 or shape[1] != model.dim or not shape[0]:
        raise ValueError(f"samples.states must be [m, {model.dim}] with m >= 1, got {shape}")
    if jnp.shape(samples.derivatives) != shape:
        raise ValueError(
            f"samples.derivatives must have the shape of the states, {shape}, got "
            f"{jnp.shape(samples.derivatives)}"
        )
    for name, x in zip(Samples._fields, samples, strict=True):
        if not isinstance(x, jax.core.Tracer) and not np.all(np.isfinite(x)):
            raise ValueError(
                f"samples.{name} must be finite, got {np.sum(~np.isfinite(x))} numbers that are not"
            )
    return Samples(*map(jnp.asarray, samples))
