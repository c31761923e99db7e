"""The optimisers of ``vfejax train``: what makes them, and their rates where none is given."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from vfejax.training.momentum import leapfrog, relativistic
from vfejax.training.optimizer import adamw, decays

__all__ = ["DESCENTS", "Descent"]

Rate = Callable[[Any], Any]


class Descent(NamedTuple):
    """An optimiser.

    Attributes:
        build: ``(config, learning rate of an update) -> optax transformation``.
        learning_rate: the largest, where none is given.
        weight_decay: where none is given.
        options: that are its own.
    """

    build: Callable[[Any, Rate], optax.GradientTransformation]
    learning_rate: float
    weight_decay: float
    options: tuple[str, ...]


def _adamw(config: Any, rate: Rate) -> optax.GradientTransformation:
    return adamw(
        rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm, b2=config.beta2
    )


def _momentum(config: Any, rate: Rate) -> optax.GradientTransformation:
    return _following(config, leapfrog(rate, momentum=config.momentum))


def _relativistic(config: Any, rate: Rate) -> optax.GradientTransformation:
    return _following(config, relativistic(rate, momentum=config.momentum, delta=config.delta))


def _following(config: Any, descent: optax.GradientTransformation) -> optax.GradientTransformation:
    """Descent along the gradient of the loss, clipped, and of the energy of weight decay."""
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, optax.add_decayed_weights(config.weight_decay, mask=decays), descent)


DESCENTS = {
    "adamw": Descent(_adamw, 2e-3, 0.1, ("beta2",)),
    "momentum": Descent(_momentum, 0.2, 1e-4, ("momentum",)),
    "relativistic": Descent(_relativistic, 0.2, 1e-4, ("momentum", "delta")),
}
"""The optimisers by name."""
