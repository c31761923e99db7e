"""Equilibrium propagation beside backpropagation: its order, handwritten digits, memory and time.

    python benchmarks/equilibrium.py --out FOLDER [--pieces order memory ...] [--report]

The order: relative error of the gradient of a polynomial energy, in float64, against implicit
differentiation, for each estimator and beta.

The digits: 1,797 images of 8 x 8 pixels that ship with scikit-learn, 1,437 to learn from and 360 to
be tested on. A Hopfield network 64-128-10, with hard or soft units, learns by equilibrium
propagation (centred) and by backpropagation through the same relaxation, and a plain network with
one layer of 128 rectified units by backpropagation and cross-entropy. All by stochastic gradient
descent in batches of 20, for equally many epochs. The rate of each is chosen from ``RATES`` at seed
0 by the accuracy on 237 images held out from those to learn from, in the last epoch. A line of
``runs.jsonl`` in the folder is one run, which is not made again; ``--out
benchmarks/measured/equilibrium --report`` prints the table that is published. Forces are gradients
of the energy in the state, for one batch, in one sweep over the layers; backpropagation counts as
many again for the way back.

Memory and time: of one gradient for a batch of 20, as the relaxation grows longer.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vfejax.dynamics.fixed_points import implicit_solution, newton_krylov
from vfejax.energy import equilibrium, hopfield, relaxation
from vfejax.types import Array, PyTree

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
SIZES = (64, 128, 10)
BATCH, EPOCHS, SEEDS, LEARNED, HELD_OUT = 20, 40, 3, 1437, 237
HARD_SWEEPS, SOFT_STEPS, BETA = 20, 40, 0.5
ENOUGH = 0.95
PIECES = ("order", "likeness", "memory", "digits")
LIKENESS_BETAS = (0.5, 0.2, 0.1, 0.05)


class Arm(NamedTuple):
    """A way to learn: parameters, ``(loss, gradient, forces)`` of a batch, outputs of images."""

    init: Callable[[Array], PyTree]
    learn: Callable[[PyTree, Array, Array], tuple[Array, PyTree, Array]]
    outputs: Callable[[PyTree, Array], Array]


def hard(iterations: int, tolerance: float = 0.0) -> relaxation.RelaxFn:
    return relaxation.alternating_descent(1.0, iterations, tolerance, project=hopfield.HARD.project)


def soft(iterations: int, tolerance: float = 0.0) -> relaxation.RelaxFn:
    return relaxation.gradient_descent(0.5, iterations, tolerance)


def network(activation: hopfield.Activation, relax: relaxation.RelaxFn, beta: float | None) -> Arm:
    """A Hopfield network that learns by equilibrium propagation, or by backpropagation (None)."""
    energy = hopfield.energy(activation)
    if beta is None:
        method = equilibrium.backpropagation(energy, hopfield.squared_error, relax)
    else:
        nudging = equilibrium.centred(beta)
        method = equilibrium.equilibrium_propagation(energy, hopfield.squared_error, relax, nudging)

    def learn(params: hopfield.Hopfield, images: Array, targets: Array) -> tuple:
        start = hopfield.rest(params, images, activation)
        loss, gradient, info = method(params, images, targets, start)
        forces = info.free.iterations
        forces = 2 * forces if info.nudged is None else forces + jnp.sum(info.nudged.iterations)
        return loss, gradient, forces

    def outputs(params: hopfield.Hopfield, images: Array) -> Array:
        force = jax.grad(lambda state: jnp.sum(energy(params, state, images)))
        return relax(force, hopfield.rest(params, images, activation)).state[-1]

    return Arm(lambda key: hopfield.init(key, SIZES), learn, outputs)


def plain() -> Arm:
    """A network that computes its output at once."""

    def init(key: Array) -> list:
        keys = jax.random.split(key, len(SIZES) - 1)
        return [
            (jnp.sqrt(2.0 / m) * jax.random.normal(k, (m, n)), jnp.zeros(n))
            for k, m, n in zip(keys, SIZES[:-1], SIZES[1:], strict=True)
        ]

    def outputs(params: list, images: Array) -> Array:
        (lower, low), (upper, up) = params
        return jax.nn.relu(images @ lower + low) @ upper + up

    def learn(params: list, images: Array, targets: Array) -> tuple:
        def loss_fn(params: list) -> Array:
            return jnp.mean(optax.softmax_cross_entropy(outputs(params, images), targets))

        loss, gradient = jax.value_and_grad(loss_fn)(params)
        return loss, gradient, jnp.ones((), jnp.int32)

    return Arm(init, learn, outputs)


EARLY = 1e-3  # residual at which equilibrium propagation stops: states are of order 1
ARMS = {
    "equilibrium, hard": network(hopfield.HARD, hard(HARD_SWEEPS, EARLY), BETA),
    "backpropagation, hard": network(hopfield.HARD, hard(HARD_SWEEPS), None),
    "equilibrium, soft": network(hopfield.SOFT, soft(SOFT_STEPS, EARLY), BETA),
    "backpropagation, soft": network(hopfield.SOFT, soft(SOFT_STEPS), None),
    "plain network": plain(),
}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images ``[n, 64]`` between 0 and 1 and one-hot labels ``[n, 10]``, shuffled."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16.0).astype(np.float32), np.eye(10, dtype=np.float32)[labels[order]]


@cache
def trainer(arm: Arm, first: int, last: int, num_epochs: int) -> Callable:
    """``(key, rate) -> (accuracies, losses and forces of the epochs, parameters)``, learning from
    images before ``first`` and tested on those from there to ``last``.
    """
    images, targets = map(jnp.asarray, digits())
    labels = jnp.argmax(targets[first:last], axis=-1)
    num_batches = first // BATCH

    def update(params: PyTree, chosen: Array, rate: Array) -> tuple[PyTree, tuple[Array, Array]]:
        loss, gradient, forces = arm.learn(params, images[chosen], targets[chosen])
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
        return params, (loss, forces)

    def epoch(params: PyTree, key: Array, rate: Array) -> tuple[PyTree, tuple]:
        order = jax.random.permutation(key, first)[: num_batches * BATCH]
        params, (losses, forces) = jax.lax.scan(
            partial(update, rate=rate), params, order.reshape(num_batches, BATCH)
        )
        found = jnp.argmax(arm.outputs(params, images[first:last]), axis=-1)
        return params, (jnp.mean(found == labels), jnp.mean(losses), jnp.sum(forces))

    def train(key: Array, rate: Array) -> tuple:
        start, *keys = jax.random.split(key, num_epochs + 1)
        return jax.lax.scan(partial(epoch, rate=rate), arm.init(start), jnp.stack(keys))[::-1]

    return jax.jit(train)


def make(job: dict, first: int, last: int) -> dict:
    """One run: its accuracies, losses and forces by epoch."""
    train = trainer(ARMS[job["arm"]], first, last, job["epochs"])
    arguments = jax.random.key(job["seed"]), jnp.float32(job["rate"])
    train.lower(*arguments).compile()
    begin = time.perf_counter()
    (accuracy, losses, forces), _ = jax.block_until_ready(train(*arguments))
    return {
        "job": job,
        "accuracy": [round(float(x), 5) for x in accuracy],
        "loss": [round(float(x), 6) for x in losses],
        "forces": [int(x) for x in forces],
        "updates": first // BATCH,
        "seconds": round(time.perf_counter() - begin, 2),
        "jax": jax.__version__,
    }


def read(folder: Path) -> list[dict]:
    path = folder / "runs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(folder: Path, job: dict, first: int, last: int) -> dict:
    """The run of a job, made where it is not in the folder."""
    for run in read(folder):
        if run["job"] == job:
            return run
    run = make(job, first, last)
    with (folder / "runs.jsonl").open("a") as file:
        file.write(json.dumps(run) + "\n")
    print(f"{job}: {run['accuracy'][-1]:.4f}, {run['seconds']} s", flush=True)
    return run


def study(folder: Path, epochs: int) -> None:
    """All runs: the rate of each arm, then its seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        job: dict[str, Any] = {"kind": "rate", "arm": arm, "seed": 0, "epochs": epochs}
        tried = {
            rate: done(folder, job | {"rate": rate}, LEARNED - HELD_OUT, LEARNED) for rate in RATES
        }
        # Of rates that are equally good, the one whose loss is lower.
        best = max(
            RATES,
            key=lambda r: (
                tried[r]["accuracy"][-1],
                -np.nan_to_num(tried[r]["loss"][-1], nan=np.inf),
            ),
        )
        for seed in range(SEEDS):
            job = {"kind": "test", "arm": arm, "seed": seed, "epochs": epochs, "rate": best}
            done(folder, job, LEARNED, len(digits()[0]))


def until(run: dict, level: float) -> tuple[int, int] | None:
    """Updates and forces until an accuracy is reached, at the end of an epoch."""
    reached = [i for i, accuracy in enumerate(run["accuracy"]) if accuracy >= level]
    if not reached:
        return None
    epochs = reached[0] + 1
    return epochs * run["updates"], sum(run["forces"][:epochs])


def table(folder: Path) -> None:
    """The digits."""
    runs = [run for run in read(folder) if run["job"]["kind"] == "test"]
    print(
        f"\n| arm | rate | test accuracy, % | updates to {100 * ENOUGH:.0f} % | "
        f"forces to {100 * ENOUGH:.0f} % | forces an update | seconds |"
    )
    print("| --- |" + " ---: |" * 6)
    for arm in ARMS:
        own = [run for run in runs if run["job"]["arm"] == arm]
        if not own:
            continue
        ends = [until(run, ENOUGH) for run in own]
        ups, forces = (
            ", ".join("-" if end is None else f"{end[i]:,}" for end in ends) for i in (0, 1)
        )
        each = np.mean([sum(r["forces"]) / (len(r["forces"]) * r["updates"]) for r in own])
        print(
            f"| {arm} | {own[0]['job']['rate']} | "
            + ", ".join(f"{100 * run['accuracy'][-1]:.1f}" for run in own)
            + f" | {ups} | {forces} | {each:.1f} | {np.median([r['seconds'] for r in own]):.1f} |"
        )


def polynomial(params: tuple, state: tuple, inputs: Array) -> Array:
    """A strongly convex energy, holomorphic in the state."""
    (lower, upper), (h, y) = params, state
    own = 0.5 * jnp.sum(h**2) + 0.25 * jnp.sum(h**4) + 0.5 * jnp.sum(y**2)
    return own - jnp.sum((inputs @ lower + y @ upper.T) * h)


def polynomial_cost(state: tuple, target: Array) -> Array:
    return 0.5 * jnp.sum((state[1] - target) ** 2)


def order() -> None:
    """Error of the gradient by estimator and beta, in float64."""
    rng = np.random.default_rng(3)
    lower, upper = rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    upper *= 0.6 / np.linalg.norm(upper, 2)
    arguments = (lower, upper), 0.5 * rng.normal(size=4), rng.normal(size=3)
    arguments = (*arguments, (np.zeros(5), np.zeros(3)))

    def exact(params: tuple, inputs: Array, target: Array, start: tuple) -> PyTree:
        def loss(params: tuple) -> Array:
            force = jax.grad(lambda s: polynomial(params, s, inputs))
            found = implicit_solution(
                newton_krylov(1e-14, linear_tolerance=1e-8),
                lambda s: jax.tree.map(jnp.subtract, s, force(s)),
                start,
            )
            return polynomial_cost(found.value, target)

        return jax.grad(loss)(params)

    ways = {
        "one-sided": equilibrium.one_sided,
        "centred": equilibrium.centred,
        "4 points": partial(equilibrium.holomorphic, num_points=4),
        "8 points": partial(equilibrium.holomorphic, num_points=8),
    }
    print("\n| beta | " + " | ".join(ways) + " |\n| ---: |" + " ---: |" * len(ways))
    arguments = jax.tree.map(jnp.asarray, arguments)
    truth = np.concatenate([x.ravel() for x in jax.tree.leaves(jax.jit(exact)(*arguments))])
    errors = {}
    for beta in (0.2, 0.1, 0.05, 0.025):
        errors[beta] = []
        for way in ways.values():
            learn = equilibrium.equilibrium_propagation(
                polynomial, polynomial_cost, relaxation.newton(1e-15), way(beta)
            )
            found = jax.tree.leaves(jax.jit(learn)(*arguments)[1])
            found = np.concatenate([x.ravel() for x in found])
            errors[beta].append(np.linalg.norm(found - truth) / np.linalg.norm(truth))
        print(f"| {beta} | " + " | ".join(f"{error:.1e}" for error in errors[beta]) + " |")
    slopes = np.log2(np.array(errors[0.05]) / np.array(errors[0.025]))
    print("| slope | " + " | ".join(f"{slope:.2f}" for slope in slopes) + " |")


def lengths() -> None:
    """Memory and time of one gradient as the relaxation grows, soft units."""
    images, targets = (jnp.asarray(x[:BATCH]) for x in digits())
    params = ARMS["equilibrium, soft"].init(jax.random.key(0))
    print(
        "\n| steps | equilibrium, KiB | backpropagation, KiB | ratio | equilibrium, ms | "
        "backpropagation, ms | ratio |\n|" + " ---: |" * 7
    )
    for steps in (10, 30, 100, 300):
        found = []
        for beta in (BETA, None):
            learn = jax.jit(network(hopfield.SOFT, soft(steps), beta).learn)
            compiled = learn.lower(params, images, targets).compile()
            size = compiled.memory_analysis().temp_size_in_bytes / 2**10
            found.append((size, compiled))
        times: list[list[float]] = [[], []]
        for _ in range(100):
            for own, (_, compiled) in zip(times, found, strict=True):
                begin = time.perf_counter()
                jax.block_until_ready(compiled(params, images, targets))
                own.append(1e3 * (time.perf_counter() - begin))
        (few, _), (many, _) = found
        fast, slow = map(min, times)
        print(
            f"| {steps} | {few:,.0f} | {many:,.0f} | {many / few:.1f} | {fast:.1f} | {slow:.1f} | "
            f"{fast / slow:.2f} |"
        )


def likeness() -> None:
    """Cosine of equilibrium propagation with backpropagation, image by image and of the mean
    gradient of 200 images, for networks of soft units that have learned and settle to the end.
    """
    arm = ARMS["equilibrium, soft"]
    images, targets = (jnp.asarray(x[:200]) for x in digits())
    relax = relaxation.alternating_descent(0.1, 1000, 0)

    def gradients(beta: float | None) -> Callable:
        learn = network(hopfield.SOFT, relax, beta).learn

        def each(params: PyTree, image: Array, target: Array) -> Array:
            gradient = learn(params, image, target)[1]
            return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(gradient)])

        return jax.jit(jax.vmap(each, (None, 0, 0)))

    ways = {beta: gradients(beta) for beta in (None, *LIKENESS_BETAS)}
    print("\n| epochs | beta | median image | worst tenth | mean gradient |")
    print("|" + " ---: |" * 5)
    for epochs in (2, 10, 40):
        train = trainer(arm, LEARNED, LEARNED + 1, epochs)
        *_, params = train(jax.random.key(0), jnp.float32(0.2))
        found = {beta: np.asarray(way(params, images, targets)) for beta, way in ways.items()}
        exact = found.pop(None)
        for beta, own in found.items():
            each = cosine(own, exact)
            print(
                f"| {epochs} | {beta} | {np.median(each):.5f} | {np.quantile(each, 0.1):.4f} | "
                f"{cosine(own.mean(axis=0), exact.mean(axis=0)):.4f} |",
                flush=True,
            )


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    sizes = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.sum(left * right, axis=-1) / sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/equilibrium"))
    parser.add_argument(
        "--report", action="store_true", help="print the table of runs in the folder"
    )
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=PIECES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    pieces = () if options.report else options.pieces
    if "order" in pieces:
        with jax.enable_x64(True):
            order()
    if "likeness" in pieces:
        likeness()
    if "memory" in pieces:
        lengths()
    if "digits" in pieces:
        study(options.out, options.epochs)
    table(options.out)


if __name__ == "__main__":
    main()
