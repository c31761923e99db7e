"""Where tokens go: weights of a scorer that learns from what is done with the tokens.

A picture is cut into patches, and the first tokens of a patch are its coarsest cosine coefficients.
A loss downstream wants the red sign sharp, and nothing else: it is the error of the picture from
the tokens that were allocated, on the sign alone. Three messages score each patch: the entropy of
its texture, how surely it stands out, and what its colours tell about the query "red". Their
weights are learned by the gradient of that loss, through the budgets.

The table compares the error on the sign, on pictures that were not learned from. Even budgets waste
most tokens; entropy alone spends them on the grey noise of the ground; the learned weights find the
sign. Whole numbers of tokens sum to the same budget everywhere.

    python examples/token_allocation.py [PICTURE]      (a picture of your own is drawn with them)
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.data.pictures import load_picture
from vfejax.figures.pictures import token_map
from vfejax.inference.allocation import budgets, messages, posteriors, queries, textures
from vfejax.problems.important_region import draw_scene

PATCH = 16
K_MIN, K_MAX = 4, 192
TOKENS_PER_PATCH = 16
RED = (0.85, 0.12, 0.1)


class Picture(NamedTuple):
    """What the loss needs of a picture: messages ``[p]``, squared cosine coefficients ``[p,
    patch^2]`` from coarse to fine, and the share of each patch that matters ``[p]``.
    """

    messages: messages.Messages
    energies: jax.Array
    important: jax.Array


def cosines(size: int) -> np.ndarray:
    """The orthogonal cosine transform, ``[size, size]``."""
    angles = np.pi * np.arange(size)[:, None] * (np.arange(size) + 0.5) / size
    return np.cos(angles) * np.where(np.arange(size) == 0, 1, 2)[:, None] ** 0.5 / size**0.5


def coefficients(picture: jax.Array) -> jax.Array:
    """Cosine coefficients of the mean of red, green and blue in each patch, from coarse to fine,
    ``[p, patch^2]``.
    """
    rows, columns = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    grey = jnp.mean(picture, axis=-1).reshape(rows, PATCH, columns, PATCH)
    matrix = jnp.asarray(cosines(PATCH), picture.dtype)
    found = jnp.einsum("ai,bj,ricj->rcab", matrix, matrix, grey, precision="highest")
    along, down = np.indices((PATCH, PATCH)).reshape(2, -1)
    order = np.argsort(along + down, kind="stable")
    return found.reshape(rows * columns, -1)[:, order]


def read(picture: jax.Array, important: jax.Array, query: jax.Array) -> Picture:
    """A picture, whose sides are multiples of the patch, as the loss needs it."""
    told = queries.colour_information(picture, query, PATCH)
    found = messages.picture_messages(textures.patch_textures(picture, PATCH), told)
    share = textures.patch_means(important, PATCH).reshape(-1)
    return Picture(found, coefficients(picture) ** 2, share)


def log_pi(given: messages.Messages, weights: jax.Array) -> jax.Array:
    """The belief where to look."""
    return posteriors.posterior(messages.score(given, weights))


def error(tokens: jax.Array, picture: Picture) -> jax.Array:
    """Root mean square of what the tokens leave out, over the pixels that matter."""
    kept = budgets.token_mask(tokens, PATCH**2)
    left = jnp.sum((1 - kept) ** 2 * picture.energies, axis=1) / PATCH**2
    return jnp.sqrt(jnp.sum(picture.important * left) / jnp.sum(picture.important))


def train(pictures: Picture, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Weights ``[3]`` from equal ones by Adam, and the loss along the way."""
    num = pictures.important.shape[1]

    def loss(weights: jax.Array) -> jax.Array:
        def one(picture: Picture) -> jax.Array:
            belief = log_pi(picture.messages, weights)
            tokens = budgets.relaxed_tokens(belief, TOKENS_PER_PATCH * num, K_MIN, K_MAX)
            return error(tokens, picture)

        return jnp.mean(jax.vmap(one)(pictures))

    optimizer = optax.adam(0.05)

    def step(carry, _):
        weights, state = carry
        value, slope = jax.value_and_grad(loss)(weights)
        updates, state = optimizer.update(slope, state)
        return (optax.apply_updates(weights, updates), state), value

    start = np.ones(3, np.float32)
    (weights, _), losses = jax.jit(
        lambda s: jax.lax.scan(step, (s, optimizer.init(s)), None, length=num_steps)
    )(start)
    return weights, losses


def main(num_pictures: int = 8, num_steps: int = 200, file: str | None = None, out=None) -> dict:
    """Learn from some pictures, and compare ways to allocate on others.

    Args:
        num_pictures: to learn from, and as many again to compare on.
        num_steps: of the optimiser.
        file: a picture to draw instead of one of those.
        out: directory of ``token_allocation.png``; the working directory by default.

    Returns:
        The weights, and error and share of tokens on the sign by the way to allocate.
    """
    rng = np.random.default_rng(0)
    halves = slice(num_pictures), slice(num_pictures, None)
    scenes = [draw_scene(rng) for _ in range(2 * num_pictures)]
    pixels = jnp.asarray(np.stack([s.picture for s in scenes]))
    important = jnp.asarray(np.stack([s.important for s in scenes]).astype(np.float32))
    query = jax.jit(queries.colour_query)(jnp.asarray(RED))
    every = jax.jit(jax.vmap(lambda x, y: read(x, y, query)))(pixels, important)
    first, second = (jax.tree.map(lambda x, p=part: x[p], jax.device_get(every)) for part in halves)
    weights, losses = train(first, num_steps)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, weights", np.round(np.asarray(weights), 2))

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def measure(picture: Picture, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        belief = log_pi(picture.messages, weights)
        num = belief.size
        tokens = budgets.straight_through(belief, TOKENS_PER_PATCH * num, K_MIN, K_MAX)
        there = jnp.sum(tokens * picture.important) / jnp.sum(tokens)
        return error(tokens, picture), there

    ways = {
        "even": np.zeros(3, np.float32),
        "entropy": np.array([1.0, 0.0, 0.0], np.float32),
        "equal weights": np.ones(3, np.float32),
        "learned weights": weights,
    }
    rows = {}
    print(f"{'':<17}{'error on the sign':>20}{'tokens on the sign':>20}")
    for name, w in ways.items():
        rows[name] = tuple(float(np.mean(x)) for x in measure(second, w))
        print(f"{name:<17}{rows[name][0]:>20.4f}{100 * rows[name][1]:>18.1f} %")

    @jax.jit
    def spend(picture: jax.Array) -> jax.Array:
        told = queries.colour_information(picture, query, PATCH)
        texture = textures.patch_textures(picture, PATCH)
        belief = log_pi(messages.picture_messages(texture, told), weights)
        tokens = budgets.allocate(belief, TOKENS_PER_PATCH * belief.size, K_MIN, K_MAX).tokens
        return tokens.reshape(texture.shape[:2])

    shown = scenes[-1].picture if file is None else load_picture(file)
    figure = token_map(shown, spend(shown), PATCH)
    figure.savefig(Path(out or ".") / "token_allocation.png")
    return {"weights": weights, "rows": rows}


if __name__ == "__main__":
    main(file=sys.argv[1] if len(sys.argv) > 1 else None)
