"""A linear Gaussian chain in the form that its algorithms use: checked, offsets removed,
observations whitened, and time as the last axis.

Missing entries leave their row of the emission 0, and the noise that is left is whitened. An entry
of the whitened observation then has noise of variance 1, so it can be taken in alone, and a missing
one says nothing.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from vfejax import lanes
from vfejax.inference._semidefinite import semidefinite
from vfejax.numerics import (
    as_floating,
    cholesky,
    common_dtype,
    log_det_cholesky,
    matmul,
    matmul_nt,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = ["Chain", "Passes", "checked", "emission_offsets", "prepare", "time_last", "whitened"]


class Chain(NamedTuple):
    """``x_{i+1} = A_i x_i + b_i + N(0, Q_i)`` and ``y_i = C_i x_i + N(0, 1)``, time last.

    An array that does not change has 1 as its last axis. The last transition leads beyond the
    observations.
    """

    initial_mean: Array  # [n]
    initial_cov: Array  # [n, n]
    transition: Array  # [n, n, t or 1]
    noise: Array  # [n, n, t or 1]
    drift: Array  # [n, t or 1]
    emission: Array  # [o, n, t or 1]
    values: Array  # [o, t]
    constant: Array  # [t]: what the whitening adds to the log density of each observation


class Passes(NamedTuple):
    """An algorithm for chains as two pure functions of a :class:`Chain`.

    Attributes:
        filter: ``filter(chain) -> (predicted means [t, n], covs [t, n, n], filtered means, covs,
            log evidence of each step [t])``.
        smooth: ``smooth(chain) -> (the same five, smoothed means, covs, cross covariances [t - 1,
            n, n])``.
    """

    filter: Any
    smooth: Any


def _shape(name: str, x: Array, core: tuple[int, ...], length: int | None, axis: str) -> None:
    allowed = [core] if length is None else [core, (length, *core)]
    if x.shape not in allowed:
        wanted = str(list(core)) + (
            f", or with a leading axis of {axis} {length}" if length else ""
        )
        raise ValueError(f"{name} must have shape {wanted}; got {list(x.shape)}")


def checked(
    model: Any,
    observations: Array,
    mask: Array | None,
    controls: Array | None,
    num_moves: int | None = None,
) -> tuple[Any, Array, Array | None, Array | None]:
    """All arrays floating, of one dtype and fitting shapes.

    Args:
        model: a ``LinearGaussian``.
        observations: ``[t, o]``.
        mask: booleans ``[t, o]``, or None.
        controls: ``[t, u]``, or None.
        num_moves: how many transitions there are; None for t - 1.

    Returns:
        The four of them, converted.

    Raises:
        ValueError: naming the argument that does not fit.

    >>> from vfejax.inference.chains.linear_gaussian import LinearGaussian
    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, 4 * one)
    >>> checked(model, jnp.zeros((3, 1), int), None, None)[1].dtype.kind
    'f'
    """
    fields = {k: as_floating(v, f"model.{k}") for k, v in _given(model).items()}
    y = as_floating(observations, "observations")
    u = None if controls is None else as_floating(controls, "controls")
    if fields["initial_mean"].ndim != 1:
        raise ValueError(
            f"model.initial_mean must be [n], got shape {list(fields['initial_mean'].shape)}"
        )
    if fields["emission"].ndim not in (2, 3):
        raise ValueError(
            f"model.emission must be [o, n] or [t, o, n], got {list(fields['emission'].shape)}"
        )
    n, o = fields["initial_mean"].shape[0], fields["emission"].shape[-2]
    if y.ndim != 2 or y.shape[1] != o or not y.shape[0]:
        raise ValueError(f"observations must be [t, {o}] with t >= 1, got shape {list(y.shape)}")
    t = y.shape[0]
    _check_fields(fields, n, o, t, t - 1 if num_moves is None else num_moves)
    _check_controls(fields, u, n, o, t)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.shape != y.shape or mask.dtype != bool:
            raise ValueError(
                f"mask must be booleans {list(y.shape)}, one for every entry of observations; got "
                f"{mask.dtype} {list(mask.shape)}"
            )
    dtype = common_dtype(*fields.values(), y, *(() if u is None else (u,)))
    model = model._replace(**{k: v.astype(dtype) for k, v in fields.items()})
    return model, y.astype(dtype), mask, None if u is None else u.astype(dtype)


def _given(model: Any) -> dict[str, Any]:
    return {k: v for k, v in model._asdict().items() if v is not None}


def _check_fields(fields: dict[str, Array], n: int, o: int, t: int, steps: int) -> None:
    times = "length t - 1 =" if steps == t - 1 else "length e ="
    shapes = {
        "initial_cov": ((n, n), None, ""),
        "transition": ((n, n), steps, times),
        "transition_cov": ((n, n), steps, times),
        "transition_offset": ((n,), steps, times),
        "emission": ((o, n), t, "length t ="),
        "emission_cov": ((o, o), t, "length t ="),
        "emission_offset": ((o,), t, "length t ="),
    }
    for name, (core, length, axis) in shapes.items():
        if name in fields:
            _shape(f"model.{name}", fields[name], core, length, axis)


def _check_controls(fields: dict[str, Array], u: Array | None, n: int, o: int, t: int) -> None:
    named = {k: fields[k] for k in ("transition_control", "emission_control") if k in fields}
    if u is None and named:
        raise ValueError(f"controls [{t}, u] are missing: the model has {', '.join(named)}")
    if u is None:
        return
    if not named:
        raise ValueError("controls are given, but the model has no matrix that uses them")
    if u.ndim != 2 or u.shape[0] != t:
        raise ValueError(f"controls must be [{t}, u] for {t} observations, got {list(u.shape)}")
    for name, size in (("transition_control", n), ("emission_control", o)):
        if name in named:
            _shape(f"model.{name}", named[name], (size, u.shape[1]), None, "")


def prepare(model: Any, observations: Array, mask: Array | None, controls: Array | None) -> Chain:
    """The chain of a checked model.

    Args:
        model, observations, mask, controls: as :func:`checked` returns them.

    Returns:
        The chain.

    >>> from vfejax.inference.chains.linear_gaussian import LinearGaussian
    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, 4 * one)
    >>> prepare(model, jnp.full((3, 1), 4.0), None, None).values.tolist()
    [[2.0, 2.0, 2.0]]
    """
    emission, values, constant = whitened(
        model, observations - emission_offsets(model, observations, controls), mask
    )
    eye = jnp.eye(model.initial_mean.shape[0], dtype=observations.dtype)
    return Chain(
        initial_mean=model.initial_mean,
        initial_cov=semidefinite(model.initial_cov[..., None])[..., 0],
        transition=time_last(model.transition, 2, eye),
        noise=semidefinite(time_last(model.transition_cov, 2, jnp.zeros_like(eye))),
        drift=_drift(model, controls),
        emission=emission,
        values=values,
        constant=constant,
    )


def time_last(x: Array, core: int, last: Array) -> Array:
    """``[*item]`` or ``[t - 1, *item]`` to ``[*item, 1]`` or ``[*item, t]``, ending in ``last``.

    Args:
        x: an array of the model.
        core: number of axes of an item.
        last: the item of the last time.

    >>> time_last(jnp.ones((2, 1)), 1, jnp.zeros(1)).tolist()
    [[1.0, 1.0, 0.0]]
    """
    if x.ndim == core:
        return x[..., None]
    return jnp.moveaxis(jnp.concatenate([x, last[None]]), 0, -1)


def _drift(model: Any, controls: Array | None) -> Array:
    zero = jnp.zeros_like(model.initial_mean)
    offset = zero if model.transition_offset is None else model.transition_offset
    drift = time_last(offset, 1, zero)
    if controls is None or model.transition_control is None:
        return drift
    pushed = matmul_nt(model.transition_control, controls)
    return pushed + jnp.broadcast_to(drift, pushed.shape)


def emission_offsets(model: Any, observations: Array, controls: Array | None) -> Array:
    """``D u + c`` of a checked model.

    Args:
        model, observations, controls: as :func:`checked` returns them.

    Returns:
        ``[t, o]``.

    >>> from vfejax.inference.chains.linear_gaussian import LinearGaussian
    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, 4 * one)
    >>> emission_offsets(model._replace(emission_offset=jnp.ones(1)), jnp.zeros((2, 1)), None)[:, 0]
    Array([1., 1.], dtype=float32)
    """
    offset = jnp.zeros_like(observations)
    if model.emission_offset is not None:
        rank = observations.ndim - model.emission_offset.ndim
        offset = offset + jnp.expand_dims(model.emission_offset, tuple(range(rank)))
    if controls is not None and model.emission_control is not None:
        offset = offset + matmul_nt(controls, model.emission_control)
    return offset


def whitened(model: Any, values: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Whitened emission ``[o, n, t or 1]`` and values ``[o, t]``, and what that adds to each log
    density ``[t]``.

    Args:
        model: checked.
        values: observations without their offsets, ``[t, o]``.
        mask: booleans ``[t, o]``, or None.

    >>> from vfejax.inference.chains.linear_gaussian import LinearGaussian
    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, 4 * one)
    >>> whitened(model, jnp.full((3, 1), 4.0), None)[0].tolist()
    [[[0.5]]]
    """
    emission, cov = model.emission, model.emission_cov
    t, o = values.shape
    count = jnp.full((t,), float(o), values.dtype)
    if mask is None and cov.ndim == 2 and emission.ndim == 2:
        chol = cholesky(cov)
        inverse = triangular_inverse(chol)
        constant = -0.5 * (count * math.log(2 * math.pi) + log_det_cholesky(chol))
        return matmul(inverse, emission)[..., None], matmul_nt(inverse, values), constant
    emission = jnp.broadcast_to(emission, (t, *emission.shape[-2:]))
    cov = jnp.broadcast_to(cov, (t, *cov.shape[-2:]))
    if mask is not None:
        both = mask[:, :, None] & mask[:, None, :]
        eye = jnp.broadcast_to(jnp.eye(o, dtype=cov.dtype), cov.shape)
        cov = jnp.where(both, cov, eye)
        emission = jnp.where(jnp.broadcast_to(mask[..., None], emission.shape), emission, 0.0)
        values = jnp.where(mask, values, 0.0)
        count = jnp.sum(mask, axis=1, dtype=values.dtype)
    chol = lanes.cholesky(jnp.moveaxis(cov, 0, -1))
    rows = jnp.concatenate([emission, values[..., None]], axis=-1)
    rows = lanes.triangular_solve(chol, jnp.moveaxis(rows, 0, -1))
    log_det = 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=0, axis2=1)), axis=-1)
    constant = -0.5 * (count * math.log(2 * math.pi) + log_det)
    return rows[:, :-1], rows[:, -1], constant
