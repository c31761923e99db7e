"""The resumable loop: what it writes and when, and that a stopped run goes on bit for bit."""

import math
import shutil
import signal
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.errors import UserError
from vfejax.runs import checkpoint, loop
from vfejax.runs import directory as run_directory
from vfejax.runs.interrupt import Interrupt
from vfejax.runs.metrics import read_metrics


def _walk(state, inputs):
    """A random walk whose keys are part of the state: any lost or repeated step shows."""
    key, draw = jax.random.split(state["key"])
    position = state["x"] + jax.random.normal(draw, dtype=jnp.float32)
    return {"x": position, "key": key}, {"x": position, "input": inputs}


def _observe(step, state, infos, memory):
    lowest = min(float(memory), float(state["x"]))
    last = math.nan if infos is None else float(infos["input"][-1])
    row = {"x": float(state["x"]), "lowest": lowest, "input": last}
    return loop.Observation(row, np.float64(lowest))


WALK = loop.Program(
    init=lambda: {"x": jnp.float32(0), "key": jax.random.key(3)},
    step=_walk,
    observe=_observe,
    memory=np.float64(math.inf),
    inputs=lambda step, num: jnp.arange(step, step + num, dtype=jnp.float32),
    watched=lambda infos: {"x": infos["x"]},
)


def _new(path, program=WALK, cadence=(14, 2, 4), **options):
    with run_directory.create(path, {"seed": 3}) as run:
        return loop.run(run, program, loop.Cadence(*cadence), quiet=True, **options)


def _on(path, program=WALK, cadence=(14, 2, 4), **options):
    with run_directory.open_existing(path) as run:
        cadence = loop.Cadence(*cadence)
        return loop.run(run, program, cadence, resume=True, quiet=True, **options)


def _steps(path):
    return read_metrics(path)["step"].tolist()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken") / "run"
    outcome = _new(path)
    assert (outcome.step, outcome.stop, outcome.interrupted) == (14, "", False)
    return path, outcome


def _same(path, outcome, unbroken):
    assert (path / "metrics.csv").read_bytes() == (unbroken[0] / "metrics.csv").read_bytes()
    chex.assert_trees_all_equal(outcome.state["x"], unbroken[1].state["x"])
    chex.assert_trees_all_equal(outcome.memory, unbroken[1].memory)
    assert checkpoint.steps(path) == checkpoint.steps(unbroken[0])


def test_rows_and_checkpoints_keep_their_rhythm(unbroken):
    path, outcome = unbroken
    metrics = read_metrics(path)
    assert metrics["step"].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert checkpoint.steps(path) == [8, 12, 14]
    # The inputs of step s are s; the last of a chunk that ends at step s was s - 1.
    np.testing.assert_array_equal(metrics["input"][1:], metrics["step"][1:] - 1.0)
    assert metrics["lowest"][-1] == float(outcome.memory) == metrics["x"].min()


def test_what_was_saved_can_be_looked_at_without_holding_the_run(unbroken, tmp_path):
    path, outcome = unbroken
    with run_directory.open_existing(path):  # somebody else's
        found, earlier = loop.restore(path, WALK), loop.restore(path, WALK, step=12)
    assert (found.step, found.interrupted) == (14, False)
    assert 0 < earlier.seconds < found.seconds <= outcome.seconds
    chex.assert_trees_all_equal(found.state, outcome.state)
    metrics = read_metrics(path)
    at = metrics["step"].tolist().index(12)
    assert earlier.step == 12
    assert float(earlier.state["x"]) == metrics["x"][at]
    assert float(earlier.memory) == metrics["lowest"][at]
    with pytest.raises(UserError, match="has no checkpoint of step 3; it has steps 8, 12, 14"):
        loop.restore(path, WALK, step=3)
    with pytest.raises(UserError, match="has no checkpoint"):
        loop.restore(tmp_path, WALK)


def test_a_checkpoint_that_newer_ones_replace_meanwhile_is_not_missed(unbroken, monkeypatch):
    found = iter([4, 14, 14])  # 4 has gone when it is to be read
    monkeypatch.setattr(checkpoint, "latest_step", lambda run: next(found))
    chex.assert_trees_all_equal(loop.restore(unbroken[0], WALK).state, unbroken[1].state)


def test_a_chunk_is_compiled_once(tmp_path):
    chex.clear_trace_counter()
    step = chex.assert_max_traces(_walk, n=1)
    _new(tmp_path / "run", WALK._replace(step=step, template=WALK.init))


@pytest.mark.parametrize("lost", [(), (14,), (12, 14), (8, 12, 14)], ids=str)
def test_a_killed_run_goes_on_bit_for_bit_from_whatever_checkpoint_is_left(
    lost, unbroken, tmp_path
):
    path = shutil.copytree(unbroken[0], tmp_path / "run")
    for step in lost:
        shutil.rmtree(path / "checkpoints" / f"{step:08d}")
    with open(path / "metrics.csv", "a") as file:
        file.write("15,0.")
    outcome = _on(path)
    _same(path, outcome, unbroken)
    assert outcome.seconds > 0


def test_a_run_without_its_folder_of_checkpoints_begins_again(unbroken, tmp_path):
    path = shutil.copytree(unbroken[0], tmp_path / "run")
    shutil.rmtree(path / "checkpoints")
    started = []
    outcome = _on(path, opened=lambda start, stop: started.append((start, stop)))
    assert started == [(None, "")]
    _same(path, outcome, unbroken)


def test_a_resumed_run_keeps_its_rhythm_whatever_step_it_had_ended_at(unbroken, tmp_path):
    path = tmp_path / "run"
    _new(path, cadence=(5, 2, 4))
    assert checkpoint.steps(path) == [0, 4, 5]
    outcome = _on(path)
    assert _steps(path) == [0, 2, 4, 5, 6, 8, 10, 12, 14]
    assert checkpoint.steps(path) == [8, 12, 14]
    chex.assert_trees_all_equal(outcome.state["x"], unbroken[1].state["x"])


def test_a_checkpoint_is_read_onto_the_places_of_the_state(unbroken, tmp_path):
    path = shutil.copytree(unbroken[0], tmp_path / "run")
    place = jax.NamedSharding(jax.make_mesh((1,), ("data",)), jax.P())
    read = []
    program = WALK._replace(
        place=lambda state: read.append(state) or state,
        shardings=lambda shapes: jax.tree.map(lambda _: place, shapes),
    )
    outcome = _on(path, program)
    assert [leaf.sharding for leaf in jax.tree.leaves(read)] == [place, place]
    _same(path, outcome, unbroken)


def test_fewer_steps_than_are_done_are_refused(unbroken):
    with pytest.raises(UserError, match=r"--steps 10: .* is at step 14 already"):
        _on(unbroken[0], cadence=(10, 2, 4))


def test_seconds_count_every_session(tmp_path):
    path = tmp_path / "run"
    _new(path, cadence=(4, 2, 4))
    before = loop.restore(path, WALK).seconds  # without the time of its last write
    assert _on(path, cadence=(8, 2, 4)).seconds > before > 0


def test_a_signal_ends_the_loop_after_its_chunk_with_a_checkpoint(unbroken, tmp_path):
    path = tmp_path / "run"

    def observe(step, *rest):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
        return _observe(step, *rest)

    with Interrupt(ends_process=False) as interrupt:
        outcome = _new(path, WALK._replace(observe=observe), interrupt=interrupt)
    assert (outcome.step, outcome.interrupted) == (6, True)
    assert checkpoint.latest_step(path) == 6
    _same(path, _on(path), unbroken)


def test_a_second_signal_stops_at_once_and_the_run_goes_on(unbroken, tmp_path):
    path = tmp_path / "run"

    def observe(step, *rest):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return _observe(step, *rest)

    with pytest.raises(KeyboardInterrupt), Interrupt(ends_process=False) as interrupt:
        _new(path, WALK._replace(observe=observe), interrupt=interrupt)
    assert checkpoint.latest_step(path) == 4
    _same(path, _on(path), unbroken)


def test_an_early_stop_is_told_and_stays_on_resume(tmp_path):
    path = tmp_path / "run"

    def observe(step, *rest):
        return _observe(step, *rest)._replace(stop="enough" if step == 6 else "")

    program = WALK._replace(observe=observe, ended=lambda step, memory: "enough")
    assert _new(path, program).stop == "enough"
    assert _steps(path) == [0, 2, 4, 6]
    assert checkpoint.latest_step(path) == 6
    outcome = _on(path, program)
    assert (outcome.step, outcome.stop) == (6, "enough")
    assert _steps(path) == [0, 2, 4, 6]


def test_divergence_names_step_and_quantity_and_keeps_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "run"

    def step(state, _):
        x = jnp.where(state >= 6, jnp.inf, state + 1)
        return x, {"energy": x, "total": x, "fine": state * 0}

    program = loop.Program(
        init=lambda: jnp.float32(0),
        step=step,
        observe=lambda step, state, infos, _: loop.Observation({"x": float(state)}),
        watched=lambda infos: infos,
        advice="do something",
    )
    message = r"^diverged: energy not finite at step 7\. .* is step 4 in .*run; do something$"
    with pytest.raises(UserError, match=message):
        _new(path, program)
    assert checkpoint.steps(path) == [0, 4]
    assert _steps(path) == [0, 2, 4, 6]


def test_a_step_that_failed_ends_the_run_though_its_numbers_are_finite(tmp_path):
    """And it explains what is not finite in the same step, but not what was before it."""
    path = tmp_path / "run"

    def step(state, _):
        x = jnp.where(state >= 6, jnp.inf, state + 1)
        return x, {"energy": x, "lost": state >= 5}

    program = loop.Program(
        init=lambda: jnp.float32(0),
        step=step,
        observe=lambda step, state, infos, _: loop.Observation({"x": float(state)}),
        watched=lambda infos: {"energy": infos["energy"]},
        failed=lambda infos: {"the way was lost": infos["lost"]},
        advice="do something",
    )
    message = r"^the way was lost at step 6\. .* is step 4 in .*run; do something$"
    with pytest.raises(UserError, match=message):
        _new(path, program)
    assert checkpoint.steps(path) == [0, 4]


def test_a_run_with_checkpoints_is_not_begun_again_in_their_midst(unbroken, tmp_path):
    """Their steps are later than its own: they would stay, and be what is resumed."""
    path = shutil.copytree(unbroken[0], tmp_path / "run")
    message = r"checkpoint of step 14; resume=True goes on .* overwrite=True begins again"
    with run_directory.open_existing(path) as run, pytest.raises(UserError, match=message):
        loop.run(run, WALK, loop.Cadence(14, 2, 4), quiet=True)
    assert checkpoint.steps(path) == [8, 12, 14]
    assert _steps(path) == _steps(unbroken[0])
    with run_directory.create(path, {"seed": 3}, overwrite=True) as run:  # the remedy
        outcome = loop.run(run, WALK, loop.Cadence(14, 2, 4), quiet=True)
    _same(path, outcome, unbroken)


@pytest.mark.parametrize(
    ("cadence", "message"),
    [
        ((-1, 1, 1), "num_steps must be a whole number of at least 0, got -1"),
        ((2.5, 1, 1), "num_steps must be a whole number of at least 0, got 2.5"),
        ((4, 0, 1), "log_every must be a whole number of at least 1, got 0"),
        ((4, 1, 0), "checkpoint_every must be a whole number of at least 1, got 0"),
        ((4, 2, 3), "checkpoint_every must be a multiple of log_every 2, got 3"),
    ],
)
def test_a_cadence_that_is_none_is_named_before_anything_is_written(cadence, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}$"):
        _new(tmp_path / "run", cadence=cadence)
    assert checkpoint.steps(tmp_path / "run") == []


@pytest.mark.parametrize("kind", ["watched", "failed"])
def test_what_is_not_said_of_every_step_is_named(kind, tmp_path):
    program = WALK._replace(**{kind: lambda infos: {"x": np.zeros((2, 3), bool)}})
    message = r"one thing of every step, \[num_steps\], got 'x' of shape \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        _new(tmp_path / "run", program)


def test_a_row_cannot_name_its_own_step(tmp_path):
    def observe(*arguments):
        return loop.Observation({"step": 1.0}, np.float64(0.0))

    with pytest.raises(ValueError, match=r"a name of their own each, got .'step', 'step'"):
        _new(tmp_path / "run", WALK._replace(observe=observe))


def test_metrics_of_other_columns_are_refused_without_harm(unbroken, tmp_path):
    path = shutil.copytree(unbroken[0], tmp_path / "run")
    (path / "metrics.csv").write_text("step,y\n0,1.0\n")
    with pytest.raises(UserError, match=r"other columns.*move the file.*--resume") as caught:
        _on(path, cadence=(20, 2, 4))
    assert "--overwrite" not in str(caught.value)
    assert checkpoint.latest_step(path) == 14
    (path / "metrics.csv").rename(tmp_path / "mine.csv")  # the remedy
    _on(path, cadence=(20, 2, 4))
    assert _steps(path) == [16, 18, 20]


def test_a_loop_runs_outside_the_main_thread(tmp_path, unbroken):
    results = []
    thread = threading.Thread(target=lambda: results.append(_new(tmp_path / "run")))
    thread.start()
    thread.join()
    _same(tmp_path / "run", results[0], unbroken)


def test_arrays_that_the_state_began_with_survive(tmp_path):
    start = {"x": jnp.float32(0), "key": jax.random.key(3)}
    _new(tmp_path / "run", WALK._replace(init=lambda: start), cadence=(2, 2, 2))
    assert float(start["x"]) == 0.0
    assert start["key"] == jax.random.key(3)


def test_every_row_reaches_the_other_writers(tmp_path):
    rows = []
    _new(tmp_path / "run", writers=[lambda step, row: rows.append((step, row["x"]))])
    metrics = read_metrics(tmp_path / "run")
    assert rows == list(zip(metrics["step"].tolist(), metrics["x"].tolist(), strict=True))
