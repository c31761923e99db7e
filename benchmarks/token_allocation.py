"""The textures of a 4K picture, beside a plain NumPy form, and what follows from them.

    python benchmarks/token_allocation.py [--width 3840] [--height 2160] [--patch 28] [--repeat 5]

Thirteen numbers for each of 10,764 patches of 28 x 28 pixels; messages, belief and whole tokens.
Both forms take turns in one process and are compared before they are timed; a time is the best of
the repeats, on the wall and of the processor, which others on the machine disturb less. A ratio is
theirs / ours. Compiling is timed apart.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.allocation import budgets, messages, posteriors, queries, textures

TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def plain(picture: np.ndarray, patch: int) -> np.ndarray:
    """The same in NumPy, as one would write it down."""
    picture = np.asarray(picture)
    rows, columns = (-(-size // patch) for size in picture.shape[:2])
    extra = (rows * patch - picture.shape[0], columns * patch - picture.shape[1])
    picture = np.pad(picture, [(0, extra[0]), (0, extra[1]), (0, 0)], mode="edge")
    light = np.where(picture <= 0.04045, picture / 12.92, ((picture + 0.055) / 1.055) ** 2.4)
    white = (TO_XYZ / TO_XYZ.sum(axis=1, keepdims=True)).astype(picture.dtype)
    xyz = light @ white.T
    x, y, z = np.moveaxis(
        np.where(xyz <= (6 / 29) ** 3, xyz * (29 / 6) ** 2 / 3 + 4 / 29, np.cbrt(xyz)), -1, 0
    )
    lightness = 116 * y - 16
    wide = np.pad(lightness, 1, mode="edge")
    smooth = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    rise = wide[2:] - wide[:-2]
    right = (smooth[:, 2:] - smooth[:, :-2]) / 8
    down = (rise[:, :-2] + 2 * rise[:, 1:-1] + rise[:, 2:]) / 8
    pixels = (*np.moveaxis(picture, -1, 0), lightness, 500 * (x - y), 200 * (y - z), right, down)
    pixels = (*pixels, np.hypot(right, down))
    means = [p.reshape(rows, patch, columns, patch).mean(axis=(1, 3)) for p in pixels]
    bins = np.clip(lightness * 0.16, 0, 15).astype(np.int64)
    own = np.arange(rows * columns).reshape(rows, 1, columns, 1)
    flat = bins.reshape(rows, patch, columns, patch) + 16 * own
    counts = np.bincount(flat.ravel(), minlength=16 * rows * columns).reshape(rows, columns, 16)
    parts = counts / patch**2
    entropy = -np.sum(np.where(parts == 0, 0, parts * np.log(np.where(parts == 0, 1, parts))), -1)
    row, column = np.meshgrid(
        (np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij"
    )
    away = np.hypot(row - 0.5, column - 0.5) / np.hypot(0.5, 0.5)
    return np.stack([*means, row, column, away, entropy], axis=-1)


def best(calls: dict[str, Callable], repeat: int) -> dict[str, np.ndarray]:
    """Seconds of each, on the wall and of the processor: the best of rounds in turns."""
    found = {name: np.full(2, np.inf) for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            start = np.array([time.perf_counter(), time.process_time()])
            jax.block_until_ready(call())
            taken = np.array([time.perf_counter(), time.process_time()]) - start
            found[name] = np.minimum(found[name], taken)
    return found


def main(argv: list[str] | None = None) -> dict:
    """Compare, time and print.

    Returns:
        Seconds by what was timed, and the largest difference of the two forms.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=3840)
    parser.add_argument("--height", type=int, default=2160)
    parser.add_argument("--patch", type=int, default=28)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args(argv)
    shape, patch = (options.height, options.width, 3), options.patch
    picture = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
    start = time.perf_counter()
    look = jax.jit(lambda x: textures.patch_textures(x, patch)).lower(picture).compile()
    compiled = time.perf_counter() - start
    found = look(picture)
    rows, columns, _ = found.shape
    query = jax.jit(queries.colour_query)(jnp.asarray([1.0, 0.0, 0.0]))
    ask = jax.jit(lambda x: queries.colour_information(x, query, patch))
    told, budget = ask(picture), 128 * rows * columns

    @jax.jit
    def allocate(found: jax.Array, told: jax.Array) -> budgets.Allocation:
        own = messages.picture_messages(found, told)
        log_pi = posteriors.posterior(messages.score(own, jnp.array([1.0, 1.0, 5.0])))
        return budgets.allocate(log_pi, budget)

    tokens = allocate(found, told).tokens
    assert int(tokens.sum()) == budget
    theirs = plain(np.asarray(picture), patch)
    gap = np.abs(np.asarray(found) - theirs)
    seconds = best(
        {
            "textures": lambda: look(picture),
            "textures, plain NumPy": lambda: plain(picture, patch),
            "information about a colour": lambda: ask(picture),
            "messages, belief and tokens": lambda: allocate(found, told),
        },
        options.repeat,
    )
    print(f"picture {options.width} x {options.height}, {rows * columns} patches, float32")
    print(f"largest difference {gap[..., :12].max():.1e}, of entropies {gap[..., 12].max():.1e}")
    print(f"compilation {compiled:.1f} s")
    print(f"{'':<28}{'wall':>10}{'processor':>13}")
    for name, value in seconds.items():
        print(f"{name:<28}{1e3 * value[0]:>7.0f} ms{1e3 * value[1]:>10.0f} ms")
    ratio = seconds["textures, plain NumPy"] / seconds["textures"]
    print(f"ratio of the textures {ratio[0]:.1f}, of processor time {ratio[1]:.1f}")
    print(f"jax {jax.__version__}, {os.cpu_count()} cores, {platform.machine()}")
    return {**seconds, "gap": float(gap[..., :12].max())}


if __name__ == "__main__":
    main()
