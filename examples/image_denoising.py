"""An Ising image denoiser beside the noisy picture and beside median filters.

    python examples/image_denoising.py [--height 200] [--width 300] [--out .]

Writes OUT/image_denoising.png. A picture of 1000 x 1000 pixels is one call of loopy belief
propagation on a million variables.
"""

import argparse
import time
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vfejax.problems import image_denoising as problem

FLIPS = (0.05, 0.1, 0.2, 0.3)


def main(height: int = 200, width: int = 300, out: str | Path = ".") -> dict:
    """Print the part of wrong pixels of each method at each rate of flips, and draw one case.

    Args:
        height, width: of the picture.
        out: where the picture is written.

    Returns:
        ``{rate: {method: error}}``.
    """
    rng = np.random.default_rng(0)
    truth = problem.blobs(rng, height, width, 20)
    denoise, rows, shown, seconds = jax.jit(problem.denoise), {}, {}, {}
    for rate in FLIPS:
        noisy = problem.flip(rng, truth, rate)
        began = time.perf_counter()
        found = jax.block_until_ready(denoise(noisy.astype(np.float32), rate))
        seconds[rate] = time.perf_counter() - began
        pictures = {"noisy": noisy}
        pictures |= {f"median {n}": problem.median_filter(noisy, n) for n in (3, 5, 7)}
        pictures["Ising"] = np.asarray(found.picture)
        rows[rate] = {name: problem.error_rate(x, truth) for name, x in pictures.items()}
        best = min((n for n in pictures if "median" in n), key=rows[rate].get)
        shown[rate] = {"truth": truth, **{n: pictures[n] for n in ("noisy", best, "Ising")}}
    print("flips   " + "".join(f"{name:>12}" for name in rows[FLIPS[0]]) + "  seconds of Ising")
    for rate, errors in rows.items():
        print(
            f"{rate:<8}"
            + "".join(f"{100 * x:>10.2f} %" for x in errors.values())
            + f"{seconds[rate]:>10.1f}"
        )
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.6), layout="constrained")
    for axis, (name, picture) in zip(axes, shown[0.2].items(), strict=True):
        axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
        axis.set(title=name, xticks=[], yticks=[])
    figure.savefig(Path(out) / "image_denoising.png", dpi=120)
    plt.close(figure)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--height", type=int, default=200, help="pixels")
    parser.add_argument("--width", type=int, default=300, help="pixels")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the picture")
    options = parser.parse_args()
    main(options.height, options.width, options.out)
