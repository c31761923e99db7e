"""Is attention on a torus better on periodic data? The study that README.md describes.

    python examples/periodic_study/run.py [--quick] [--report] [--seeds 8] [--out FOLDER]

Every finished cell, one arm on one task, is a line of ``cells.jsonl`` in the folder; a run that was
stopped goes on after the last one. Tables and picture are made of what is there.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from analysis import draw, report
from arms import ARMS
from tasks import TASKS
from train import Settings, first_params, make_lanes, make_world

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SELECTION_SEED = 1000  # evaluated seeds count from 0
QUICK = Settings(num_train=64, num_test=16, num_steps=10, batch_size=2)
# The quick run is nearly all compilation.
QUICK_COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def run_cell(
    lanes_fn: Callable, arm: str, task: str, lanes: list[list], settings: Settings
) -> dict:
    """Train one arm on one task and evaluate it, for all lanes [seed, learning rate] at once."""
    began = time.process_time()
    seeds, rates = zip(*lanes, strict=True)
    worlds = {seed: make_world(TASKS[task], seed, settings) for seed in set(seeds)}
    world = jax.tree.map(lambda *x: np.stack(x), *(worlds[seed] for seed in seeds))
    params = first_params(arm, seeds, TASKS[task].num_symbols)
    losses, excess = lanes_fn(params, world, jnp.asarray(rates, jnp.float32))
    curves = np.asarray(losses).reshape(len(lanes), 10, -1).mean(axis=-1)
    optimal = np.where(world.test_hidden[..., None], world.optimal, 1.0)
    counts = world.test_hidden.sum(axis=1)
    least = -np.sum(optimal * np.log(optimal), axis=(1, 2, 3)) / counts.sum(axis=1)
    return {
        "task": task,
        "arm": arm,
        "settings": settings._asdict(),
        "lanes": lanes,
        "excess": np.asarray(excess, float).round(5).tolist(),
        "counts": counts.tolist(),
        "bayes": least.round(5).tolist(),
        "training": curves.astype(float).round(4).tolist(),
        "seconds": round(time.process_time() - began, 2),
    }


def read_cells(path: Path, settings: Settings) -> list[dict]:
    """Finished cells; a last line that was cut off is not one.

    Raises:
        ValueError: for cells of other settings.
    """
    cells = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            cells.append(json.loads(line))
        except json.JSONDecodeError:
            break
    if any(cell["settings"] != settings._asdict() for cell in cells):
        raise ValueError(f"{path} holds cells of other settings; choose another folder with --out")
    return cells


def best_rate(cell: dict) -> float:
    """The rate of least excess on the validation stream; NaN never wins."""
    excess = np.sum(cell["excess"], axis=1)
    return cell["lanes"][int(np.argmin(np.where(np.isfinite(excess), excess, np.inf)))][1]


def study(
    out: Path, settings: Settings, num_seeds: int, compiler_options: dict | None = None
) -> list[dict]:
    """Train and evaluate what is missing in the folder.

    Args:
        out: folder of ``cells.jsonl``.
        settings: sizes.
        num_seeds: evaluated seeds, side by side.
        compiler_options: XLA's.

    Returns:
        All cells.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cells.jsonl"
    cells = read_cells(path, settings)
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    programs = {arm: make_lanes(ARMS[arm], settings, compiler_options) for arm in ARMS}

    def cell(arm: str, task: str, lanes: list[list]) -> dict:
        known = [c for c in cells if (c["task"], c["arm"], c["lanes"]) == (task, arm, lanes)]
        if known:
            return known[0]
        made = run_cell(programs[arm], arm, task, lanes, settings)
        cells.append(made)
        with path.open("a") as file:
            file.write(json.dumps(made) + "\n")
        mean = np.sum(made["excess"]) / np.sum(made["counts"])
        print(f"{task:9} {arm:16} excess {mean:.4f} nats  {made['seconds']} s", flush=True)
        return made

    for task in TASKS:
        for arm in ARMS:
            rate = best_rate(cell(arm, task, [[SELECTION_SEED, rate] for rate in RATES]))
            cell(arm, task, [[seed, rate] for seed in range(num_seeds)])
    return cells


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    """Run the study from the command line; returns its cells."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--report", action="store_true", help="show what is there, train nothing")
    parser.add_argument("--seeds", type=int, default=None, help="evaluated seeds (8; quick: 4)")
    parser.add_argument("--out", type=Path, default=Path("runs/periodic_study"))
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else Settings()
    num_seeds = options.seeds or (len(RATES) if options.quick else 8)
    if options.report:
        cells = read_cells(options.out / "cells.jsonl", settings)
    else:
        cells = study(options.out, settings, num_seeds, QUICK_COMPILER if options.quick else None)
    text = report(cells)
    (options.out / "table.md").write_text(text)
    draw(cells).savefig(options.out / "periodic_study.png")
    print(text)
    return cells


if __name__ == "__main__":
    main()
