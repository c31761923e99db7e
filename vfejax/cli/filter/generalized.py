"""The linear model in continuous time with smooth noise: from a file, and its learning.

    dx/dt = drift x + gain v + w,    series = emission x + z

The causes v and both kinds of noise are smooth. A path is a value with its derivatives; what is
observed of it is the polynomial through as many rows as it has derivatives.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.generalized_filtering.dynamic_expectation_maximization import (
    Learner,
    LearningState,
    Prior,
    by_mode,
    dynamic_expectation_maximization,
)
from vfejax.inference.generalized_filtering.embedded_samples import (
    embedded_covariance,
    embedding_operator,
)
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Level,
    Model,
    check_model,
    zero_hyperparameters,
)
from vfejax.types import Array

__all__ = ["KIND", "MATRICES", "Smooth", "check", "check_window", "learner", "start"]

KIND = "generalized"
MATRICES = ("drift", "gain", "emission")
# Logarithms of the scales of precisions are learned from a prior of this standard deviation.
_LOG_PRECISION_STD = 4.0
_LARGEST_ORDER = 12
# The covariance of the rows of a window may have this condition number: its square root is what
# float64 loses of its digits.
_LARGEST_CONDITION = 1e11


class Smooth(NamedTuple):
    """A model file with every default filled in.

    Attributes:
        fields: arrays by name; those of causes have an axis of length 0 without any.
        dt: time between rows.
        order, cause_order: numbers of derivatives, the value included.
        noise_smoothness: s of the noise of the series; 0 for white noise.
    """

    fields: dict[str, np.ndarray]
    dt: float
    order: int
    cause_order: int
    noise_smoothness: float

    @classmethod
    def of(cls, fields: dict[str, np.ndarray], dt: float) -> "Smooth":
        """From the fields of a file, and the time between rows when it does not say."""
        n, order = len(fields["drift"]), int(fields["order"])
        gain = fields.get("gain", np.zeros((n, 0)))
        filled = {
            "gain": gain,
            "cause_precision": np.zeros((gain.shape[1], gain.shape[1])),
            "cause_smoothness": fields["smoothness"],
            **{f"{name}_std": np.zeros_like({"gain": gain, **fields}[name]) for name in MATRICES},
            **fields,
        }
        cause_order = int(fields.get("cause_order", min(3, order)))
        white = float(fields.get("output_smoothness", fields["smoothness"]))
        return cls(filled, float(fields.get("dt", dt)), order, cause_order, white)

    def matrices(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Drift, gain and emission, whose learned entries are given."""
        found = {}
        for name in MATRICES:
            whole, free = jnp.asarray(self.fields[name]), np.nonzero(self.fields[f"{name}_std"])
            found[name] = whole.at[free].set(parameters[name])
        return found

    def position(self, index: int) -> tuple[Array, Array]:
        """From a window of rows to the path at its row ``index``: the operator, and the covariance
        in time of the noise behind it."""
        offsets = (np.arange(self.order) - index) * self.dt
        operator = embedding_operator(self.order, offsets)
        lag = self.order - 1 - index
        covariance = embedded_covariance(self.order, self.dt, self.noise_smoothness, lag=lag)
        return jnp.asarray(operator), jnp.asarray(covariance)

    def model(self, covariance: Array | np.ndarray) -> Model:
        """The model of the path at a row of the window, with the covariance of its position."""

        def motion(x: Array, v: Array, parameters: dict[str, Array]) -> Array:
            found = self.matrices(parameters)
            return found["drift"] @ x + found["gain"] @ v

        def output(x: Array, v: Array, parameters: dict[str, Array]) -> Array:
            return self.matrices(parameters)["emission"] @ x

        noise, force = (self.fields[f"{name}_precision"][None] for name in ("output", "state"))
        return Model(
            (Level(motion, output, noise, force),),
            self.fields["cause_precision"],
            self.order,
            self.cause_order,
            float(self.fields["smoothness"]),
            cause_smoothness=float(self.fields["cause_smoothness"]),
            sensed_covariance=covariance,
        )

    def document(self, state: LearningState, names: tuple[str, ...]) -> dict[str, Any]:
        """The parameters as a file of ``--model`` has them."""
        found = jax.jit(self.matrices)(state.parameters[0])
        learned = {k: np.asarray(v) for k, v in found.items()}
        for name, weights in (("output", state.hyper.output), ("state", state.hyper.state)):
            scale = np.exp(np.asarray(weights[0])[0])
            learned[f"{name}_precision"] = scale * self.fields[f"{name}_precision"]
        fields = {**self.fields, **learned, "cause_order": np.array(self.cause_order)}
        fields |= {"dt": np.array(self.dt), "output_smoothness": np.array(self.noise_smoothness)}
        values = {k: v.tolist() for k, v in fields.items() if v.size}
        for name in ("order", "cause_order"):
            values[name] = int(values[name])
        return {"model": KIND, "columns": list(names), **values}


def check(fields: dict[str, np.ndarray]) -> Smooth:
    """The model of a file's fields, for rows one unit of time apart where it does not say.

    Raises:
        ValueError: naming the field whose values cannot be right.
    """
    _check_orders(fields)
    _check_times(fields)
    _check_matrices(fields)
    found = Smooth.of(fields, 1.0)
    check_model(found.model(np.eye(found.order)))
    return found


def _check_orders(fields: dict[str, np.ndarray]) -> None:
    """Causes have no more derivatives than states."""
    for name, least in (("order", 2), ("cause_order", 1)):
        if name in fields:
            most = _LARGEST_ORDER if name == "order" else int(fields["order"])
            value = float(fields[name])
            if not (value == int(value) and least <= value <= most):
                raise ValueError(
                    f"'{name}' must be a whole number from {least} to {most}, got {value:g}"
                )


def _check_times(fields: dict[str, np.ndarray]) -> None:
    """Only the noise of the series may be white."""
    for name in ("dt", "smoothness", "cause_smoothness", "output_smoothness"):
        white = name == "output_smoothness"
        if name in fields and not (fields[name] >= 0 if white else fields[name] > 0):
            limit = "at least 0" if white else "above 0"
            raise ValueError(f"'{name}' must be {limit}, got {fields[name]:g}")


def _check_matrices(fields: dict[str, np.ndarray]) -> None:
    if ("gain" in fields) != ("cause_precision" in fields):
        raise ValueError("'gain' and 'cause_precision' belong together; give both or neither")
    for name in MATRICES:
        std = fields.get(f"{name}_std")
        if std is not None and (name not in fields or np.any(std < 0)):
            needed = "at least 0" if name in fields else f"left out without '{name}'"
            raise ValueError(f"'{name}_std' must be {needed}")
    for name in ("output_precision", "state_precision", "cause_precision"):
        if name in fields and not np.all(np.linalg.eigvalsh(fields[name]) > 0):
            raise ValueError(f"'{name}' must be positive definite")


def check_window(found: Smooth) -> None:
    """Refuse a window whose rows are so alike that float64 cannot tell them apart.

    Raises:
        ValueError: with what to change.
    """
    if found.noise_smoothness == 0:
        return
    times = np.arange(found.order) * found.dt
    apart = (times[:, None] - times[None, :]) ** 2
    condition = np.linalg.cond(np.exp(-apart / (4.0 * found.noise_smoothness**2)))
    if not condition <= _LARGEST_CONDITION:
        raise ValueError(
            f"'output_smoothness' {found.noise_smoothness:g} is too long for windows of 'order' "
            f"{found.order} rows that are {found.dt:g} apart: their noise is all alike; take a "
            "lower order, or fewer rows"
        )


def start(found: Smooth) -> LearningState:
    """The parameters of the file."""
    free = {
        name: jnp.asarray(found.fields[name][np.nonzero(found.fields[f"{name}_std"])])
        for name in MATRICES
    }
    return LearningState((free,), zero_hyperparameters(found.model(np.eye(found.order))))


def learner(found: Smooth) -> Learner:
    """Dynamic expectation maximisation on paths at the middle of every window."""
    begin = start(found)
    precision = {
        name: jnp.asarray(std[np.nonzero(std)] ** -2.0)
        for name, std in ((name, found.fields[f"{name}_std"]) for name in MATRICES)
    }
    prior = Prior(
        begin.parameters,
        (precision,),
        Hyperparameters(*begin.hyper),
        jnp.asarray(_LOG_PRECISION_STD**-2),
    )
    model = found.model(found.position(found.order // 2)[1])
    return dynamic_expectation_maximization(model, prior, by_mode(model))
