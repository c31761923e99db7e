"""Messages: scores of the patches of a picture, as natural parameters that add.

Three messages, all in nats:

- *propositional*: the entropy of a patch's texture, what there is to tell;
- *perspectival*: precision times salience, how surely it stands out from its surroundings;
- *participatory*: the information about what was asked, a mutual information.

A score is their weighted sum; the weights are what is learned. A picture's messages depend on that
picture alone: nothing is normalised over a batch.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.numerics import as_floating, cast_like
from vfejax.types import Array

__all__ = ["Messages", "perspectival", "picture_messages", "score"]

# CIELAB distance: contrasts below it drown in the noise of colours.
_NOISE = 10.0


class Messages(NamedTuple):
    """What speaks for each patch, ``[p]`` each, in nats."""

    propositional: Array
    perspectival: Array
    participatory: Array


def _neighbours(x: Array) -> tuple[Array, np.ndarray]:
    """Sums over the up to eight neighbours of ``[r, c, k]``, and how many there are, ``[r, c,
    1]``.
    """
    rows, columns = x.shape[:2]

    def around(y: Array) -> Array:
        wide = jnp.pad(y, ((1, 1), (1, 1), (0, 0)))
        three = wide[:-2] + wide[1:-1] + wide[2:]
        return three[:, :-2] + three[:, 1:-1] + three[:, 2:] - y

    down = np.minimum(np.arange(rows), 1) + np.minimum(np.arange(rows)[::-1], 1) + 1
    across = np.minimum(np.arange(columns), 1) + np.minimum(np.arange(columns)[::-1], 1) + 1
    return around(x), (np.outer(down, across) - 1)[..., None]


def perspectival(textures: Array) -> Array:
    """Precision times salience of each patch.

    Salience is what a Gaussian channel with noise of 10 CIELAB units tells about the contrast d of
    a patch with the mean colour of its neighbours, ``1/2 log(1 + d^2 / 10^2)`` nats. The precision
    of that mean, ``1 / (1 + v / 10^2)`` in units of the noise's, falls with the variance v of the
    neighbours: among clutter nothing stands out.

    Args:
        textures: of :func:`vfejax.inference.allocation.textures.patch_textures`, ``[r, c, 13]``.

    Returns:
        ``[r, c]`` in nats; 0 for a patch without neighbours.

    Raises:
        ValueError: for another shape.

    >>> textures = jnp.zeros((3, 3, 13)).at[1, 1, 3].set(50.0)  # one light patch
    >>> perspectival(textures).argmax().item()
    4
    """
    textures = _textures(textures)
    colour = textures[..., 3:6]
    sums, count = _neighbours(colour)
    mean = sums / jnp.asarray(np.maximum(count, 1), colour.dtype)
    squares, _ = _neighbours(colour * colour)
    # Rounding may leave less than nothing of a variance.
    spread = squares / jnp.asarray(np.maximum(count, 1), colour.dtype) - mean * mean
    variance = jnp.sum(jnp.where(spread < 0, 0.0, spread), axis=-1)
    contrast = jnp.sum((colour - mean) ** 2, axis=-1)
    salience = 0.5 * jnp.log1p(contrast / _NOISE**2)
    alone = jnp.asarray(count[..., 0] == 0)
    return jnp.where(alone, 0.0 * salience, salience / (1 + variance / _NOISE**2))


def picture_messages(textures: Array, information: Array | None = None) -> Messages:
    """The three messages of the patches of a picture, in rows.

    Args:
        textures: of :func:`vfejax.inference.allocation.textures.patch_textures`, ``[r, c, 13]``.
        information: about what was asked, ``[r, c]`` in nats, as of
            :mod:`vfejax.inference.allocation.queries`; None when nothing was asked.

    Returns:
        ``[r c]`` each.

    Raises:
        ValueError: when the shapes do not fit.

    >>> picture_messages(jnp.zeros((2, 3, 13))).propositional.shape
    (6,)
    """
    textures = _textures(textures)
    told = jnp.zeros_like(textures[..., 0]) if information is None else information
    if told.shape != textures.shape[:2]:
        raise ValueError(
            f"information must have shape {list(textures.shape[:2])}, got {list(told.shape)}"
        )
    found = (textures[..., 12], perspectival(textures), told)
    return Messages(*(x.reshape(-1) for x in found))


def score(messages: Messages, weights: Array) -> Array:
    """The weighted sum of the messages, ``[p]`` in nats.

    Args:
        messages: the messages, ``[p]`` each.
        weights: one for each message, ``[3]``; what is learned.

    Raises:
        ValueError: for another number of weights.

    >>> score(Messages(jnp.ones(1), jnp.zeros(1), jnp.ones(1)), jnp.array([1.0, 5.0, 2.0])).tolist()
    [3.0]
    """
    if weights.shape != (3,):
        raise ValueError(f"weights must have shape [3], got {list(weights.shape)}")
    return sum(
        (cast_like(w, x) * x for w, x in zip(weights, messages, strict=True)),
        jnp.zeros_like(messages.propositional),
    )


def _textures(textures: Array) -> Array:
    textures = as_floating(textures, "textures")
    if textures.ndim != 3 or textures.shape[-1] != 13 or 0 in textures.shape:
        raise ValueError(f"textures must have shape [r, c, 13], got {list(textures.shape)}")
    return textures
