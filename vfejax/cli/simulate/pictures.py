"""The pictures of a simulation: the run beside what is possible, energies, populations, fields."""

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from vfejax.agents import pairwise
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import covariance
from vfejax.cli.drawing import sketched
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.simulate import meta_agents
from vfejax.cli.simulate.accuracy import References, achieved, rms, rotation_matrices
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.places import at_point, most_covered
from vfejax.cli.simulate.problem import Problem
from vfejax.geometry.transport import frames
from vfejax.problems import sensor_network
from vfejax.runs.report import Picture

__all__ = ["pictures", "prepare"]

if TYPE_CHECKING:
    from vfejax.figures import energies as energy_figures
    from vfejax.figures import fields as field_figures
    from vfejax.figures import populations as population_figures
else:
    energy_figures = sketched("vfejax.figures.energies")
    field_figures = sketched("vfejax.figures.fields")
    population_figures = sketched("vfejax.figures.populations")

_attention = compiled_once(pairwise.attention_weights)
_covariance = compiled_once(covariance)
_frames = compiled_once(frames)

# A larger population's attention matrix is no longer legible (and takes n^2 memory).
_MOST_ATTENTION = 512


class _View(NamedTuple):
    """A population at one point of the base manifold, in one common frame, for pictures."""

    means: np.ndarray
    covs: np.ndarray
    rotations: np.ndarray


def _view(problem: Problem, population: Population, index: int, agents: np.ndarray) -> _View:
    """Beliefs pulled back to the common frame; turned onto the truth, where there is one, by one
    global rotation for each scene.
    """
    belief, phi = at_point(population, index)
    inward = np.asarray(_frames(-phi, problem.group))[agents]
    means = np.einsum("nij,nj->ni", inward, np.asarray(belief.mean)[agents])
    covs = np.einsum("nij,njk,nlk->nil", inward, np.asarray(_covariance(belief))[agents], inward)
    if phi.shape[-1] != 3:
        return _View(means, covs, np.broadcast_to(np.eye(3), (len(means), 3, 3)))
    rotations = np.asarray(rotation_matrices(phi))[agents]
    if problem.truth is not None:
        true = problem.truth.rotations[agents]
        scene = np.zeros(len(agents), int) if problem.scene is None else problem.scene
        for same in (scene[agents] == s for s in np.unique(scene[agents])):
            turned = np.einsum("nji,njk->nik", true[same], rotations[same])
            gauge = sensor_network.nearest_rotation(turned.sum(axis=0))
            blocks = np.kron(np.eye(means.shape[-1] // 3), gauge)
            means[same], covs[same] = means[same] @ blocks.T, blocks @ covs[same] @ blocks.T
            rotations[same] = np.einsum("nik,lk->nil", turned, gauge)
    return _View(means, covs, rotations)


def prepare(config: SimulateConfig, problem: Problem) -> None:
    """Compile what the pictures need, before there is anything to show.

    Args:
        config: the command's options.
        problem: what is computed.
    """
    problem = problem._replace(population=jax.tree.map(np.asarray, problem.population))
    index, agents, _ = _shown(problem)
    if config.group == "so3":
        _view(problem, problem.population, index, agents)
    if _has_attention(problem, agents):
        _weights(problem, problem.population, index, np.flatnonzero(agents), config.temperature)


def _shown(problem: Problem) -> tuple[int, np.ndarray, str]:
    """The point whose agents are shown, who is there, and a word on where that is."""
    if problem.supports is None:
        return 0, np.ones(problem.population.phi.shape[0], bool), ""
    return *most_covered(problem), " at the point that most agents cover"


def _has_attention(problem: Problem, agents: np.ndarray) -> bool:
    return bool(1 < agents.sum() <= _MOST_ATTENTION and problem.edges is None)


def _weights(
    problem: Problem, population: Population, index: int, chosen: np.ndarray, temperature: float
) -> np.ndarray:
    """Attention of chosen agents to one another at a point."""
    picked = jax.tree.map(lambda x: x[chosen], at_point(population, index))
    return np.asarray(_attention(*picked, problem.group, temperature))


def _truth_pictures(
    references: References, reached: tuple[float, np.ndarray], metrics: dict, who: str
) -> Iterator[Picture]:
    """The run beside what is possible; ``who`` are those whose relative rotations count."""
    rows = {
        "an agent alone": references.alone,
        "two agents": references.pairs,
        "this run": reached,
        "best possible": references.best,
    }
    levels = {name: (place, math.degrees(rms(turns))) for name, (place, turns) in rows.items()}
    caption = (
        "Root-mean-square errors against the truth. Alone, an agent measures its landmarks but "
        "knows nothing of the others' orientation; two agents can register their raw data; the "
        "best possible is the maximum-likelihood registration of all data."
    )
    bars = [(name, *level) for name, level in levels.items()]
    yield Picture(
        "errors", "Accuracy with and without alignment", caption, energy_figures.error_bars(bars)
    )
    for index, (column, what) in enumerate(
        (("landmark_error_m", "landmarks (m)"), ("rotation_error_deg", "relative rotations (deg)"))
    ):
        floors = {name: levels[name][index] for name in ("an agent alone", "best possible")}
        figure = energy_figures.convergence(
            metrics["step"],
            {"this run": metrics[column]},
            floors=floors,
            ylabel=f"rms error, {what}",
        )
        caption = (
            "Error against the truth over the run; maximum likelihood reaches the lower line with "
            "the same data."
        )
        yield Picture(
            f"convergence_{column.split('_')[0]}", f"Convergence: {what}", caption, figure
        )
    degrees = {name: np.degrees(turns) for name, (_, turns) in rows.items() if name != "two agents"}
    caption = f"Share of pairs of {who} whose relative rotation is wrong by less than x degrees."
    yield Picture(
        "rotation_errors", "Relative rotations", caption, energy_figures.rotation_errors(degrees)
    )


def _energy_pictures(metrics: dict) -> Iterator[Picture]:
    names = ("self_coupling", "hyperprior", "belief_alignment", "prior_alignment", "observation")
    terms = {name: metrics[name] for name in names if np.any(metrics.get(name, 0) != 0)}
    figure = energy_figures.energy_terms(metrics["step"], {**terms, "total": metrics["total"]})
    yield Picture(
        "energy", "Free energy", "Weighted terms of the free energy and their total.", figure
    )
    if "hamiltonian" in metrics:
        figure = energy_figures.energy_drift(
            metrics["step"], metrics["total"], metrics["kinetic"], metrics["hamiltonian"]
        )
        caption = (
            "Potential (free) and kinetic energy, and how far their sum strays. Friction, if any, "
            "takes energy out on purpose."
        )
        yield Picture("energy_drift", "Hamiltonian energies", caption, figure)


def _population_pictures(
    config: SimulateConfig, problem: Problem, population: Population, last: int
) -> Iterator[Picture]:
    """Beliefs, frames and attention before and after, at the point that most agents cover; ``last``
    is the last step.
    """
    index, agents, where = _shown(problem)
    if config.group == "so3":
        before = _view(problem, problem.population, index, agents)
        after = _view(problem, population, index, agents)
        if set(config.irreps) == {1}:
            yield _beliefs(config, problem, before, after, (index, where))
        yield _axes(problem, before, after, where)
    if _has_attention(problem, agents):
        yield from _attention_pictures(config, problem, population, last)


def _beliefs(
    config: SimulateConfig, problem: Problem, before: _View, after: _View, place: tuple[int, str]
) -> Picture:
    """Ellipses of the beliefs about landmarks, which are vectors; ``place`` is the point, and a
    word on it.
    """
    index, where = place
    truth, cross = None, ""
    if problem.truth is not None:
        points = problem.truth.landmarks.reshape(-1, len(config.irreps), 3)
        truth = points[index] if problem.scene is None else points.reshape(-1, 3)
        each = "" if problem.scene is None else " of each scene"
        cross = f" Crosses: the truth, up to a global rotation{each} that the data leave open."
    caption = (
        f"Every agent's belief about each landmark{where}, transported to the common frame and "
        "projected to the x-y plane, with 1 and 2 sigma ellipses, before the run and after it. "
        f"Those of agents that share a frame and agree lie on one another.{cross}"
    )
    panels = [("before", before.means, before.covs), ("after", after.means, after.covs)]
    figure = population_figures.belief_ellipses(panels, truth=truth)
    return Picture("beliefs", "Beliefs in the common frame", caption, figure)


def _axes(problem: Problem, before: _View, after: _View, where: str) -> Picture:
    """Where frames send the unit axes."""
    relative = " relative to the truth" if problem.truth is not None else ""
    caption = f"Where each agent's frame{relative} sends the three unit axes{where}."
    figure = population_figures.frames([("before", before.rotations), ("after", after.rotations)])
    return Picture("frames", "Frames", caption, figure)


def _attention_pictures(
    config: SimulateConfig, problem: Problem, population: Population, last: int
) -> Iterator[Picture]:
    """Attention at the start and at the end, each at the temperature of that step."""
    index, agents, where = _shown(problem)
    chosen, order = np.flatnonzero(agents), ""
    if problem.scene is not None:
        chosen = chosen[np.argsort(problem.scene[chosen], kind="stable")]
        order = "; agents are sorted by the scene they see"
    final = config.temperature
    if config.emergence:
        step = np.asarray(last, population.phi.dtype)
        final = float(meta_agents.temperature(config.meta, config.temperature, step))
    moments = (("start", problem.population, config.temperature), ("end", population, final))
    for when, state, temperature in moments:
        figure = population_figures.attention_matrix(
            _weights(problem, state, index, chosen, temperature)
        )
        caption = (
            f"Attention beta_ij of receiver i (rows) to sender j (columns){where} at the "
            f"{when}{order}."
        )
        yield Picture(f"attention_{when}", f"Attention at the {when}", caption, figure)


def _field_pictures(
    config: SimulateConfig, problem: Problem, population: Population
) -> Iterator[Picture]:
    lengths = [2 * math.pi if config.base in ("ring", "torus") else 1.0] * len(config.grid)
    chi = (
        np.ones(population.phi.shape[:-1])
        if problem.supports is None
        else np.asarray(problem.supports)
    )
    covered = np.where(chi.sum(axis=0) > 0, chi.sum(axis=0), np.nan)

    def average(field: np.ndarray) -> np.ndarray:
        return (chi * field).sum(axis=0) / covered

    spread = np.sqrt(np.trace(np.asarray(_covariance(population.belief)), axis1=-2, axis2=-1))
    maps = {
        "mean frame angle (rad)": average(np.linalg.norm(np.asarray(population.phi), axis=-1)),
        "mean belief spread (m)": average(spread),
    }
    if problem.truth is not None:
        means = np.asarray(population.belief.mean)
        means = means.reshape(*means.shape[:-1], -1, 3)
        maps["mean landmark error (m)"] = average(
            sensor_network.landmark_errors(means, problem.truth.landmarks)
        )
    caption = "Averages over the agents present at each point of the base manifold."
    yield Picture(
        "fields",
        "Fields",
        caption,
        field_figures.field_maps(maps, kind=config.base, lengths=lengths),
    )
    if problem.supports is not None:
        figure = field_figures.supports(chi, kind=config.base, lengths=lengths)
        yield Picture(
            "supports", "Supports", "Where each agent lives, and how many cover each point.", figure
        )


def pictures(
    config: SimulateConfig,
    problem: Problem,
    references: References | None,
    population: Population,
    metrics: dict,
    grouped: Iterable[Picture] = (),
) -> Iterator[Picture]:
    """Every picture of the run, in the order of the report.

    Args:
        config: the command's options.
        problem: what was computed.
        references: errors to compare with; None when the truth is unknown.
        population: the last state.
        metrics: the columns of the run's metrics.
        grouped: pictures of meta-agents, which come first.
    """
    # On the host, where taking an agent or a point out of an array compiles nothing.
    population, start = jax.tree.map(np.asarray, (population, problem.population))
    problem = problem._replace(population=start)
    yield from grouped
    about_population = list(
        _population_pictures(config, problem, population, int(metrics["step"][-1]))
    )
    yield from about_population[:1]
    if references is not None:
        who = "agents" if problem.scene is None else "agents that see the same scene"
        yield from _truth_pictures(references, achieved(problem, population), metrics, who)
    yield from _energy_pictures(metrics)
    yield from about_population[1:]
    if config.base != "point":
        yield from _field_pictures(config, problem, population)
