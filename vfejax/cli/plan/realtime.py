"""``vfejax plan --realtime``: one agent that acts at a fixed rate, with deadlines."""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vfejax.cli import session as sessions
from vfejax.cli.plan import agents, size_limits
from vfejax.cli.plan import problem as plan_problem
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.problem import Problem
from vfejax.cli.plan.sensors import Lines, Observed, World
from vfejax.cli.session import Session
from vfejax.errors import UserError
from vfejax.figures.latencies import latency_histogram
from vfejax.inference.anytime import AnytimeAgent, AnytimeState, Choice, anytime_agent
from vfejax.runs import loop, real_time
from vfejax.runs.ladder import Ladder, compile_ladder
from vfejax.runs.real_time import Record
from vfejax.runs.report import Picture, Report
from vfejax.runs.seeds import random_key
from vfejax.runs.status import StatusFile, finite
from vfejax.types import Array

__all__ = ["run"]

Sensor = World | Lines
_STATUS = "status.json"
_DENSE = 6  # up to here every depth can be chosen


def run(config: PlanConfig) -> int:
    """Act until the duration is over, standard input ends, or a signal comes; write the run.

    Raises:
        UserError: when there is too much to look at, or nothing could be read from standard input.
    """
    assert config.realtime is not None
    inputs = {"map": config.map}
    sessions.compare(config, inputs)
    problem = plan_problem.build(config)
    size_limits.check(dataclasses.replace(config, batch=1), problem)
    with sessions.begin(config, "plan", inputs) as session:
        session.say("compiling")
        of_world, of_agent = jax.random.split(random_key(config.seed))
        sensor = _sensor(config, problem, session, of_world)
        ladder = _ladder(config, problem, sensor, of_agent)
        until = "Ctrl-C" if config.duration is None else f"{config.duration:g} s are over"
        session.say(f"{config.realtime:g} cycles a second until {until}; {config.out / _STATUS}")
        with contextlib.ExitStack() as stack:
            status = stack.enter_context(StatusFile(session.run.file(_STATUS)))
            stack.enter_context(session.interrupt.graceful())
            if isinstance(sensor, Lines):
                stack.enter_context(sensor)
            record = real_time.run(
                ladder,
                sensor.sense,
                sensor.act,
                rate=config.realtime,
                duration=math.inf if config.duration is None else config.duration,
                max_age=config.max_age,
                watch=_watched,
                publish=status.publish,
                stopped=lambda: session.interrupt.requested,
            ).record
        if status.error is not None:
            session.note(f"{_STATUS}: {status.error}")
        return _finish(session, config, record, sensor)


def _sensor(config: PlanConfig, problem: Problem, session: Session, key: Array) -> Sensor:
    if config.sensor == "stdin":
        return Lines(problem, lambda: session.interrupt.requested)
    return World(config, problem, key)


def _ladder(config: PlanConfig, problem: Problem, sensor: Sensor, key: Array) -> Ladder:
    """Planning of every depth from the horizon to none."""
    depths = _depths(1 if config.planner == "greedy" else config.horizon)
    planners = [
        agents.planner(dataclasses.replace(config, horizon=h), problem, config.planner)
        for h in depths
    ]
    agent = anytime_agent(problem.model, planners, temperature=config.temperature)
    steps = {d: _in_episodes(agent, s) for d, s in zip((*depths, 0), agent.steps, strict=True)}
    observed, mask = sensor.example
    return compile_ladder(steps, agent.init(), observed, mask, key)


def _depths(horizon: int) -> list[int]:
    """Falling depths from the horizon to 1; far ones in halves, as each must be compiled.

    >>> _depths(3), _depths(30)
    ([3, 2, 1], [30, 15, 7, 6, 5, 4, 3, 2, 1])
    """
    depths = [horizon]
    while (depth := depths[-1]) > 1:
        depths.append(max(depth // 2, _DENSE) if depth > _DENSE else depth - 1)
    return depths


def _in_episodes(agent: AnytimeAgent, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step that knows nothing at the beginning of an episode."""

    def within(
        state: AnytimeState, observed: Observed, key: Array, mask: Array
    ) -> tuple[AnytimeState, Choice]:
        fresh = agent.init()
        state = jax.tree.map(lambda a, b: jnp.where(observed.begins, a, b), fresh, state)
        return step(state, observed.seen, key, mask)

    return within


def _watched(choice: Choice) -> Mapping[str, float]:
    """What a supervisor sees of inference."""
    return {"free_energy": float(choice.free_energy), "free_energy_fall": float(choice.fall)}


def _finish(session: Session, config: PlanConfig, record: Record, sensor: Sensor) -> int:
    """Report, summary and exit status."""
    told: dict[str, float]
    if isinstance(sensor, Lines):
        if not sensor.read:
            raise UserError("--sensor stdin: standard input has no observation")
        told = {
            "lines": sensor.read,
            "lines_skipped": sensor.skipped,
            "lines_replaced": sensor.mailbox.replaced,
        }
    else:
        share = sensor.successes / sensor.episodes if sensor.episodes else math.nan
        told = {"episodes": sensor.episodes, "success_rate": share}
    rate = record.cycles / record.seconds if record.seconds else math.nan
    head = {"world": config.env, "planner": config.planner, "rate": rate}
    summary = finite({**head, **record.summary(), **told})
    interrupted = session.interrupt.requested and config.duration is not None
    outcome = loop.Outcome((), (), record.cycles, record.seconds, "", interrupted)
    with contextlib.ExitStack() as stack:
        if isinstance(sensor, Lines):  # standard output belongs to the actions
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        return session.finish(outcome, _report(config, record, summary), summary, _text)


def _report(config: PlanConfig, record: Record, summary: dict[str, Any]) -> Report:
    rows = [(name.replace("_", " "), value) for name, value in summary.items()]
    notes = [
        "A latency is the time from the tick of the clock to the moment at which the action had "
        "been handed over; a miss is an action that came after the next tick."
    ]
    if not record.cycles:
        return Report("vfejax plan", rows, notes=notes)
    assert config.realtime is not None
    edges, counts = record.latencies.histogram()
    figure = latency_histogram(
        1e3 * edges,
        counts,
        deadline=1e3 / config.realtime,
        quantiles={
            "median": 1e3 * record.latencies.quantile(0.5),
            "99.9 %": 1e3 * record.latencies.quantile(0.999),
        },
        depths=record.depths,
    )
    caption = (
        "Cycles by the latency of their action, and by how many steps they planned ahead; 0 "
        "repeats the last action, where planning would have been late."
    )
    picture = Picture("latency", "Latencies", caption, figure)
    return Report("vfejax plan", rows, pictures=[picture], notes=notes)


def _text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    if not summary["cycles"]:
        return "no cycle"
    depths = summary["cycles_by_depth"]
    shown = ", ".join(
        f"{100 * count / summary['cycles']:.3g} % at {depth}" for depth, count in depths.items()
    )
    success = summary.get("success_rate")
    more = (
        "" if success is None else f"\n{summary['episodes']} episodes, success rate {success:.3g}"
    )
    return (
        f"{summary['cycles']} cycles at {summary['rate']:.4g} Hz, "
        f"{100 * summary['in_time']:.4g} % in time; {summary['misses']} late, "
        f"{summary['skipped']} skipped, {summary['missing']} without an observation\n"
        f"latency: median {summary['latency_p50_ms']:.2f} ms, 99.9 % within "
        f"{summary['latency_p99_9_ms']:.2f} ms, longest {summary['latency_max_ms']:.2f} ms\n"
        f"planning depth: {shown}{more}"
    )
