"""What a simulation tells its reader: errors against the truth and the yardsticks, figures, report."""

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import pairwise, sensor_network
from vfejax.agents.population import Population
from vfejax.agents.sensor_network import Registration
from vfejax.beliefs.gaussian import Gaussian, covariance
from vfejax.cli.simulate_problem import Problem
from vfejax.geometry.irreps import so3_exponential, so3_generators
from vfejax.io import field_plots, plots, population_plots, report, run_directory
from vfejax.io.files import atomic_write
from vfejax.io.run_directory import RunDirectory
from vfejax.types import Array

if TYPE_CHECKING:
    from vfejax.cli.simulate import SimulateConfig

__all__ = ["Yardsticks", "errors", "summary_text", "write", "yardsticks"]

# A larger population's attention matrix is no longer legible (and takes n^2 memory).
_MOST_ATTENTION = 512
# Errors against the truth are taken at no more points of the base manifold than this, evenly spread.
_MOST_POINTS = 64


class _Point(NamedTuple):
    """One point of the base manifold: who is there, what they measured, and the true landmarks."""

    index: int
    agents: np.ndarray
    measured: np.ndarray
    landmarks: np.ndarray


class Yardsticks(NamedTuple):
    """What is possible without alignment, and at best: ``(landmark error in m, rotation errors in rad)`` pooled over points."""

    alone: tuple[float, np.ndarray]
    pairs: tuple[float, np.ndarray]
    best: tuple[float, np.ndarray]
    registrations: dict[int, Registration]


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if np.size(values) else math.nan


@jax.jit
def _rotations(phi: Array) -> Array:
    return so3_exponential(1)(phi, jnp.asarray(so3_generators((1,)), phi.dtype))


def _points(problem: Problem) -> list[_Point]:
    """Points with at least two agents, at most 64 of them."""
    measured = sensor_network.mean_observations(problem.observations)
    measured = measured.reshape(measured.shape[0], -1, *measured.shape[-2:])
    landmarks = np.asarray(problem.truth.landmarks).reshape(-1, *measured.shape[-2:])
    num_agents, num_points = measured.shape[:2]
    present = np.ones((num_agents, num_points), bool)
    if problem.supports is not None:
        present = np.asarray(problem.supports).reshape(num_agents, -1) > 0
    crowded = np.flatnonzero(present.sum(axis=0) >= 2)
    chosen = crowded[np.unique(np.linspace(0, len(crowded) - 1, min(len(crowded), _MOST_POINTS)).astype(int))]
    return [_Point(int(c), present[:, c], measured[present[:, c], c], landmarks[c]) for c in chosen]


def yardsticks(problem: Problem) -> Yardsticks | None:
    """Errors of an agent alone, of two agents, and of the maximum-likelihood registration; None when the truth is unknown."""
    if problem.truth is None:
        return None
    truth = np.asarray(problem.truth.rotations)
    points = _points(problem)
    fits = {p.index: sensor_network.maximum_likelihood(p.measured) for p in points}
    own = _rms(np.concatenate([sensor_network.landmark_errors(p.measured, p.landmarks) for p in points]))
    best = _rms(np.array([sensor_network.landmark_errors(fits[p.index].landmarks, p.landmarks) for p in points]))

    def pooled(errors_fn: Any) -> np.ndarray:
        return np.concatenate([errors_fn(p, truth[p.agents]) for p in points])

    def alone(p: _Point, true: np.ndarray) -> np.ndarray:
        return sensor_network.relative_rotation_errors(np.broadcast_to(np.eye(3), true.shape), true)

    return Yardsticks(
        (own, pooled(alone)),
        (own, pooled(lambda p, true: sensor_network.pairwise_registration_errors(p.measured, true))),
        (best, pooled(lambda p, true: sensor_network.relative_rotation_errors(fits[p.index].rotations, true))),
        fits,
    )


def _achieved(problem: Problem, population: Population) -> tuple[float, np.ndarray]:
    """Landmark error (m) and rotation errors (rad) of a population, pooled over points."""
    truth = np.asarray(problem.truth.rotations)
    num_agents = len(truth)
    rotations = np.asarray(_rotations(population.phi)).reshape(num_agents, -1, 3, 3)
    means = np.asarray(population.belief.mean)
    means = means.reshape(num_agents, -1, means.shape[-1] // 3, 3)
    points = _points(problem)
    turns = [sensor_network.relative_rotation_errors(rotations[p.agents, p.index], truth[p.agents]) for p in points]
    places = [sensor_network.landmark_errors(means[p.agents, p.index], p.landmarks) for p in points]
    return _rms(np.concatenate(places)), np.concatenate(turns)


def errors(problem: Problem, population: Population) -> dict[str, float]:
    """Columns of the metrics that compare with the truth: none when it is unknown."""
    if problem.truth is None:
        return {}
    place, turns = _achieved(problem, population)
    return {"landmark_error_m": place, "rotation_error_deg": math.degrees(_rms(turns))}


def _summary(
    config: "SimulateConfig", problem: Problem, marks: Yardsticks | None, population: Population, metrics: dict
) -> dict[str, Any]:
    last = {name: float(values[-1]) for name, values in metrics.items()}
    summary: dict[str, Any] = {
        "agents": population.phi.shape[0],
        "steps": int(last["step"]),
        "initial_energy_nats": float(metrics["total"][0]),
        "final_energy_nats": last["total"],
    }
    if config.dynamics == "hamiltonian":
        drift = np.abs(metrics["hamiltonian"] - metrics["hamiltonian"][0]).max()
        summary["largest_energy_drift_nats"] = float(drift)
    if marks is not None:
        rows = {
            "an agent alone": marks.alone,
            "two agents, raw data": marks.pairs,
            "this run": _achieved(problem, population),
            "best possible (maximum likelihood)": marks.best,
        }
        summary["errors"] = {
            name: {"landmark_error_m": place, "rotation_error_deg": math.degrees(_rms(turns))}
            for name, (place, turns) in rows.items()
        }
    return summary


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        f"{summary['agents']} agents, {summary['steps']} steps, {summary['seconds']} s: free energy "
        f"{summary['initial_energy_nats']:.6g} -> {summary['final_energy_nats']:.6g} nats"
    ]
    if "errors" in summary:
        lines.append(f"{'rms error against the truth':<36} {'landmarks':>12} {'relative rotations':>20}")
        for name, row in summary["errors"].items():
            lines.append(f"{name:<36} {1e3 * row['landmark_error_m']:>9.1f} mm {row['rotation_error_deg']:>16.2f} deg")
    return "\n".join(lines)


class _View(NamedTuple):
    """A population at one point of the base manifold, in one common frame, for pictures."""

    means: np.ndarray
    covs: np.ndarray
    rotations: np.ndarray


def _at_point(population: Population, index: int) -> tuple[Gaussian, Array]:
    def pick(x: Array, tail: int) -> Array:
        return x.reshape(x.shape[0], -1, *x.shape[x.ndim - tail :])[:, index]

    belief = Gaussian(pick(population.belief.mean, 1), pick(population.belief.chol, 2))
    return belief, pick(population.phi, 1)


def _view(problem: Problem, population: Population, index: int, agents: np.ndarray) -> _View:
    """Beliefs pulled back to the common frame; turned onto the truth, where there is one, by one global rotation."""
    belief, phi = _at_point(population, index)
    inward = np.asarray(problem.exponential(-phi, problem.generators))[agents]
    means = np.einsum("nij,nj->ni", inward, np.asarray(belief.mean)[agents])
    covs = np.einsum("nij,njk,nlk->nil", inward, np.asarray(covariance(belief))[agents], inward)
    if phi.shape[-1] != 3:
        return _View(means, covs, np.broadcast_to(np.eye(3), (len(means), 3, 3)))
    rotations = np.asarray(_rotations(phi))[agents]
    if problem.truth is not None:
        true = np.asarray(problem.truth.rotations)[agents]
        gauge = sensor_network.nearest_rotation(np.einsum("nji,njk->ik", true, rotations))
        blocks = np.kron(np.eye(means.shape[-1] // 3), gauge)
        means, covs = means @ blocks.T, blocks @ covs @ blocks.T
        rotations = np.einsum("nji,njk,lk->nil", true, rotations, gauge)
    return _View(means, covs, rotations)


def _figures(
    config: "SimulateConfig", problem: Problem, marks: Yardsticks | None, population: Population, metrics: dict
) -> list[tuple[str, str, str, Any]]:
    """``(file name, title, caption, figure)`` of every picture of the run."""
    pictures = []
    steps = metrics["step"]
    index, agents = 0, np.ones(population.phi.shape[0], bool)
    where = ""
    if problem.supports is not None:
        chi = np.asarray(problem.supports).reshape(len(agents), -1)
        index = int(chi.sum(axis=0).argmax())
        agents = chi[:, index] > 0
        where = " at the point that most agents cover"
    before = _view(problem, problem.population, index, agents)
    after = _view(problem, population, index, agents)
    if config.group == "so3" and set(config.irreps) == {1}:
        truth = None
        if problem.truth is not None:
            truth = np.asarray(problem.truth.landmarks).reshape(-1, len(config.irreps), 3)[index]
        panels = [("before", before.means, before.covs), ("after", after.means, after.covs)]
        figure = population_plots.belief_ellipses(panels, truth=truth)
        caption = (
            f"Every agent's belief about each landmark{where}, carried to the common frame and projected to the x-y plane, with "
            "1 and 2 sigma ellipses. Before, nobody knows how the others are turned; after, all agree"
            + (
                " (crosses: the truth, up to the one global rotation that nobody can know)."
                if truth is not None
                else "."
            )
        )
        pictures.append(("beliefs", "Beliefs in the common frame", caption, figure))
    if marks is not None:
        place, turns = _achieved(problem, population)
        rows = {
            "an agent alone": marks.alone,
            "two agents": marks.pairs,
            "this run": (place, turns),
            "best possible": marks.best,
        }
        bars = [(name, p, math.degrees(_rms(t))) for name, (p, t) in rows.items()]
        caption = (
            "Root-mean-square errors against the truth. Alone, an agent measures its landmarks but knows nothing of the others' orientation; two "
            "agents can register their raw data; the best possible is the maximum-likelihood registration of all data at once."
        )
        pictures.append(("errors", "What alignment buys", caption, plots.error_bars(bars)))
        curves = {
            "landmarks (m)": metrics["landmark_error_m"],
            "rotations (rad)": np.radians(metrics["rotation_error_deg"]),
        }
        floors = {"best landmarks (m)": marks.best[0], "best rotations (rad)": _rms(marks.best[1])}
        figure = plots.convergence(steps, curves, floors=floors, ylabel="rms error (m, rad)")
        caption = "Errors against the truth over the run, and what maximum likelihood reaches with the same data."
        pictures.append(("convergence", "Convergence to the truth", caption, figure))
        degrees = {name: np.degrees(t) for name, (_, t) in rows.items() if name != "two agents"}
        caption = "Share of pairs of agents whose relative rotation is wrong by less than x degrees."
        pictures.append(("rotation_errors", "Relative rotations", caption, plots.rotation_errors(degrees)))
    names = ("self_coupling", "belief_alignment", "prior_alignment", "observation")
    terms = {name: metrics[name] for name in names if np.any(metrics[name] != 0)}
    figure = plots.energy_terms(steps, {**terms, "total": metrics["total"]})
    pictures.append(("energy", "Free energy", "Weighted terms of the free energy and their total.", figure))
    if config.dynamics == "hamiltonian":
        figure = plots.energy_drift(steps, metrics["total"], metrics["kinetic"], metrics["hamiltonian"])
        caption = "Potential (free) and kinetic energy, and how far their sum strays. Friction, if any, takes energy out on purpose."
        pictures.append(("energy_drift", "Hamiltonian energies", caption, figure))
    if agents.sum() <= _MOST_ATTENTION and problem.edges is None and agents.sum() > 1:
        belief, phi = _at_point(population, index)
        picked = jax.tree.map(lambda x: x[np.flatnonzero(agents)], (belief, phi))
        weights = jax.jit(functools.partial(pairwise.attention_weights, exponential=problem.exponential))(
            *picked, problem.generators, config.temperature
        )
        caption = f"Attention beta_ij of receiver i (rows) to sender j (columns){where} at the end."
        pictures.append(("attention", "Attention", caption, population_plots.attention_matrix(np.asarray(weights))))
    if config.group == "so3":
        relative = " relative to the truth" if problem.truth is not None else ""
        figure = population_plots.frames([("before", before.rotations), ("after", after.rotations)])
        caption = f"Where each agent's frame{relative} sends the three unit axes{where}."
        pictures.append(("frames", "Frames", caption, figure))
    if config.base != "point":
        pictures += _field_figures(config, problem, population)
    return pictures


def _field_figures(
    config: "SimulateConfig", problem: Problem, population: Population
) -> list[tuple[str, str, str, Any]]:
    shape = problem.grid.quadrature.shape
    lengths = [2 * math.pi if config.base in ("ring", "torus") else 1.0] * len(shape)
    chi = np.ones(population.phi.shape[:-1]) if problem.supports is None else np.asarray(problem.supports)
    covered = np.where(chi.sum(axis=0) > 0, chi.sum(axis=0), np.nan)
    scale = np.sqrt(np.trace(np.asarray(covariance(population.belief)), axis1=-2, axis2=-1))
    angle = np.linalg.norm(np.asarray(population.phi), axis=-1)
    maps = {
        "mean frame angle (rad)": (chi * angle).sum(axis=0) / covered,
        "mean belief spread (m)": (chi * scale).sum(axis=0) / covered,
    }
    if problem.truth is not None:
        means = np.asarray(population.belief.mean)
        means = means.reshape(*means.shape[:-1], -1, 3)
        truth = np.asarray(problem.truth.landmarks)
        wrong = sensor_network.landmark_errors(means, np.broadcast_to(truth[None], means.shape))
        maps["mean landmark error (m)"] = (chi * wrong).sum(axis=0) / covered
    caption = "Averages over the agents present at each point of the base manifold."
    pictures = [("fields", "Fields", caption, field_plots.field_maps(maps, kind=config.base, lengths=lengths))]
    if problem.supports is not None:
        figure = field_plots.supports(chi, kind=config.base, lengths=lengths)
        pictures.append(("supports", "Supports", "Where each agent lives, and how many cover each point.", figure))
    return pictures


def write(
    config: "SimulateConfig",
    problem: Problem,
    marks: Yardsticks | None,
    population: Population,
    run: RunDirectory,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Draw the figures, write ``figures/*.png`` and ``report.html``, and return the summary."""
    metrics = run_directory.read_metrics(run)
    summary = _summary(config, problem, marks, population, metrics)
    figures = []
    for name, title, caption, figure in _figures(config, problem, marks, population, metrics):
        png = report.figure_png(figure)
        atomic_write(run.path / "figures" / f"{name}.png", png)
        figures.append((title, caption, png))
    rows = [
        (name, 1e3 * row["landmark_error_m"], row["rotation_error_deg"])
        for name, row in summary.get("errors", {}).items()
    ]
    header = ("rms error against the truth", "landmarks (mm)", "relative rotations (degrees)")
    notes = [
        f"{summary['agents']} agents, {summary['steps']} steps of {config.dynamics} dynamics; free energy "
        f"{summary['initial_energy_nats']:.6g} -> {summary['final_energy_nats']:.6g} nats."
    ]
    if not rows:
        header = ("quantity", "value")
        rows = [(name.replace("_", " "), value) for name, value in summary.items()]
    report.write_report(
        run.path / "report.html",
        title="vfejax simulate",
        summary_rows=rows,
        summary_header=header,
        figures=figures,
        config=settings,
        notes=notes,
    )
    return summary
