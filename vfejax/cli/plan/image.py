"""``vfejax plan --image``: tokens for the patches of a picture, from what it holds and what is
asked.

A step of the loop is one iteration of message combination, so that ``metrics.csv`` has the bound of
each.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli import session as sessions
from vfejax.cli.plan import query as asked
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.image_options import chosen
from vfejax.data.pictures import load_picture
from vfejax.data.population_arrays import save_npz
from vfejax.errors import UserError
from vfejax.figures import pictures as figures
from vfejax.inference.allocation import budgets, messages, posteriors, queries, textures
from vfejax.inference.allocation.messages import Messages
from vfejax.runs import loop
from vfejax.runs.report import Picture, Report
from vfejax.types import Array, PyTree

__all__ = ["run"]

_MESSAGES = {
    "propositional": "entropy of the texture (nats)",
    "perspectival": "precision x salience (nats)",
    "participatory": "information about the query (nats)",
}


class Task(NamedTuple):
    """What is to be allocated.

    Attributes:
        config: the command's options.
        words: what is asked, for a reader.
        picture: ``[h, w, 3]``.
        textures: of its patches, ``[rows, columns, 13]``.
        messages: of its patches, ``[p]`` each.
        score: their weighted sum, ``[p]``.
        log_prior: of the patches, ``[p]``.
        budget, k_min, k_max, patch: as the options say, or by default.
    """

    config: PlanConfig
    words: str
    picture: np.ndarray
    textures: Array
    messages: Messages
    score: Array
    log_prior: Array
    budget: int
    k_min: int
    k_max: int
    patch: int

    def elbo(self, added: Array) -> Array:
        """The bound of the belief that adds these natural parameters to the prior's."""
        log_pi = jax.nn.log_softmax(self.log_prior + added)
        return posteriors.elbo(log_pi, self.score, self.config.temperature, self.log_prior)

    def end(self, added: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the last belief allocates, ``[p]`` each, and its bound between the prior's and the
        largest, in nats.
        """
        log_pi = jax.nn.log_softmax(self.log_prior + added)
        found = budgets.allocate(log_pi, self.budget, self.k_min, self.k_max)
        arrays = {**found._asdict(), "probability": jnp.exp(log_pi)}
        bounds = {
            "elbo_before_nats": self.elbo(jnp.zeros_like(added)),
            "elbo_nats": self.elbo(added),
            "elbo_optimum_nats": posteriors.optimum(
                self.score, self.config.temperature, self.log_prior
            ),
        }
        return arrays, bounds


def run(config: PlanConfig) -> int:
    """Read the picture, allocate, write the run, and return the exit status."""
    assert config.image is not None
    inputs = {"image": config.image, "query": asked.file_of(config.query)}
    sessions.compare(config, inputs)
    task = _task(config, load_picture(config.image, "--image"))
    with sessions.begin(config, "plan", inputs) as session:
        outcome = session.advance(_program(task), unit="iterations")
        found, bounds = jax.jit(task.end)(outcome.state)
        arrays = {**found, "score": task.score, **task.messages._asdict()}
        shape = task.textures.shape[:2]
        arrays = {name: np.asarray(x).reshape(shape) for name, x in arrays.items()}
        whole = {**arrays, "textures": np.asarray(task.textures)}
        save_npz(session.run.file("allocation.npz"), whole)
        summary = _summary(task, arrays, outcome.step)
        summary |= {name: float(value) for name, value in bounds.items()}
        rows = [(name.replace("_", " "), value) for name, value in summary.items()]
        report = Report("vfejax plan", rows, _pictures(task, arrays), notes=[_first_line(summary)])
        return session.finish(outcome, report, summary, _text)


def _task(config: PlanConfig, picture: np.ndarray) -> Task:
    """Messages and prior of the picture, once the budget is known to be possible."""
    options = chosen(config)
    height, width, _ = picture.shape
    patch = options.patch
    rows, columns = textures.patch_grid(height, width, patch)
    budget = options.budget
    if budget is None:
        budget = rows * columns * min(2 * options.k_min, options.k_max)
    try:
        budgets.check_budget(rows * columns, budget, options.k_min, options.k_max)
    except ValueError as error:
        raise UserError(f"--budget {budget}: {error}") from None
    query = asked.read(config.query, width, height)
    dtype = np.dtype(config.precision)
    prior = np.full(rows * columns, -np.log(rows * columns), dtype)
    if query.region is not None:
        prior = np.asarray(queries.region_prior(height, width, query.region, patch, dtype=dtype))
    example = None if query.example is None else np.asarray(query.example, dtype)
    weights = np.asarray(options.weights, dtype)
    found, made, score = jax.jit(_look, static_argnums=3)(
        np.asarray(picture, dtype), example, weights, patch
    )
    sizes = (budget, options.k_min, options.k_max, patch)
    return Task(config, query.words, picture, found, made, score, jnp.asarray(prior), *sizes)


def _look(
    picture: Array, example: Array | None, weights: Array, patch: int
) -> tuple[Array, Messages, Array]:
    """Textures, messages, with those about what looks like the example, and their sum."""
    information = None
    if example is not None:
        information = queries.colour_information(picture, queries.colour_query(example), patch)
    found = textures.patch_textures(picture, patch)
    made = messages.picture_messages(found, information)
    return found, made, messages.score(made, weights)


def _program(task: Task) -> loop.Program:
    temperature = task.config.temperature
    first_elbo = jax.jit(task.elbo)

    def step(added: Array, _: PyTree) -> tuple[Array, Array]:
        after = posteriors.iterate(added, task.score, temperature)
        return after, task.elbo(after)

    def observe(step: int, added: Array, infos: Any, memory: PyTree) -> loop.Observation:
        value = first_elbo(added) if infos is None else infos[-1]
        return loop.Observation({"elbo": float(value)}, memory)

    return loop.Program(
        init=lambda: jnp.zeros_like(task.score),
        step=step,
        observe=observe,
        watched=lambda infos: {"elbo": infos},
        advice="choose a larger --temperature",
    )


def _summary(task: Task, arrays: Mapping[str, np.ndarray], iterations: int) -> dict[str, Any]:
    height, width, _ = task.picture.shape
    tokens = arrays["tokens"]
    rows, columns = tokens.shape
    spare = np.sort(tokens.ravel() - task.k_min)[::-1]
    half = int(np.searchsorted(np.cumsum(spare), spare.sum() / 2)) + 1
    return {
        "picture": task.config.image.name if task.config.image else "",
        "width": width,
        "height": height,
        "query": task.words,
        "patches": rows * columns,
        "rows": rows,
        "columns": columns,
        "budget": int(tokens.sum()),
        "fewest_tokens": int(tokens.min()),
        "most_tokens": int(tokens.max()),
        "patches_with_the_most_allowed": int(np.sum(tokens == task.k_max)),
        "patches_with_half_of_the_tokens_to_spare": half if spare.any() else 0,
        "iterations": iterations,
    }


def _pictures(task: Task, arrays: Mapping[str, np.ndarray]) -> Iterator[Picture]:
    yield Picture(
        "allocation",
        "Tokens of the patches",
        f"Asked for: {task.words}. Each patch of {task.patch} x {task.patch} pixels has "
        f"{task.k_min} to {task.k_max} tokens, {task.budget} in all.",
        figures.token_map(task.picture, arrays["tokens"], task.patch),
    )
    shown = {title: arrays[name] for name, title in _MESSAGES.items()}
    yield Picture(
        "messages",
        "What speaks for each patch",
        "The messages that are added, each times its weight, to the logarithm of the prior.",
        figures.patch_maps(shown),
    )


def _first_line(summary: Mapping[str, Any]) -> str:
    half = summary["patches_with_half_of_the_tokens_to_spare"]
    return (
        f"{summary['budget']} tokens for {_patches(summary['patches'])}, "
        f"{summary['fewest_tokens']} to {summary['most_tokens']} each, asked for "
        f"{summary['query']}; half of those beyond the minimum are on {_patches(half)}."
    )


def _patches(number: int) -> str:
    return "1 patch" if number == 1 else f"{number} patches"


def _text(summary: Mapping[str, Any]) -> str:
    return (
        f"{_first_line(summary)}\nELBO {summary['elbo_before_nats']:.4f} -> "
        f"{summary['elbo_nats']:.4f} nats in {summary['iterations']} iterations, at most "
        f"{summary['elbo_optimum_nats']:.4f}. {summary['seconds']} s"
    )
