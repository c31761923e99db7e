"""``vfejax plan``: what a run leaves behind, what its numbers are, every bad input as one line."""

import functools
import json
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_run import TINY_PLAN
from PIL import Image

from vfejax.cli.function_digest import digest
from vfejax.cli.main import main
from vfejax.cli.options import essentials
from vfejax.cli.plan import agents, references
from vfejax.cli.plan import pictures as plan_pictures
from vfejax.cli.plan import problem as plan_problem
from vfejax.cli.plan.config import PlanConfig, parse
from vfejax.cli.plan.episodes import COLUMNS, play
from vfejax.inference.active_inference import agent, policy_planner
from vfejax.inference.policies import enumerate_policies
from vfejax.problems.environments import process, t_maze
from vfejax.problems.episodes import run_episode
from vfejax.runs import checkpoint
from vfejax.runs.load import load
from vfejax.runs.metrics import read_metrics
from vfejax.runs.seeds import random_key

LENGTH, BATCH = 3, 2


def _run(out, *arguments):
    return main(["plan", "--out", str(out), *TINY_PLAN, *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawn, blank_film):
    """A run with its pictures drawn, coarsely; nothing changes it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with drawn(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_pictures, "_gif", blank_film)
        # Uncertain cues and drawn actions, so that agents differ.
        assert _run(out, "--validity", 0.9, "--gamma", 0.5) == 0
    return out


def test_run_directory_holds_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.toml", "metrics.csv", "report.html", "summary.json", "episode.npz"} <= names
    assert checkpoint.steps(finished) == [0, 2, 4]
    pictures = {path.stem for path in (finished / "figures").glob("*.png")}
    assert pictures == {"walks", "beliefs", "choices", "expectations", "success"}
    with Image.open(finished / "figures" / "episode.gif") as film:
        assert film.n_frames == LENGTH


def test_metrics_have_every_term_and_they_are_the_expected_free_energy(finished):
    metrics = read_metrics(finished)
    assert set(metrics) == {"step", *COLUMNS}
    assert metrics["step"].tolist() == [0, 2, 4]
    chex.assert_tree_all_finite({name: x[1:] for name, x in metrics.items() if "steps" not in name})
    both = sum(metrics[name][1:] for name in ("utility", "state_information_gain"))
    cost = sum(metrics[name][1:] for name in ("risk", "ambiguity"))
    constant = sum(float(jax.nn.logsumexp(c)) for c in t_maze(validity=0.9).C)
    # Means of float32 numbers below 10.
    np.testing.assert_allclose(both + cost, constant, rtol=1e-5)
    assert np.all(metrics["parameter_information_gain"][1:] == 0)


def test_rewards_are_those_of_the_library_with_the_same_keys(finished):
    maze = t_maze(validity=0.9)
    player = agent(maze, policy_planner(enumerate_policies(maze, 2), gamma=0.5))

    @jax.jit
    def rewards(number):
        keys = jax.random.split(jax.random.fold_in(random_key(0), number), BATCH)
        seen = jax.vmap(lambda key: run_episode(player, process(maze), key, LENGTH).observations)
        return jnp.sum(maze.C[1][seen(keys)[:, 1:, 1]], axis=1)

    found = np.stack([np.asarray(rewards(jnp.uint32(i))) for i in range(4)])
    wanted = read_metrics(finished)["reward"][1:]
    np.testing.assert_allclose(found.reshape(2, -1).mean(axis=1), wanted, rtol=1e-6)


def test_a_run_is_read_in_python(finished):
    run = load(finished)
    assert run.config["planner"] == "policies"
    episode = run.episode
    chex.assert_shape(episode["states"], (BATCH, LENGTH, 2))
    chex.assert_shape(episode["observations"], (BATCH, LENGTH, 3))
    assert episode["beliefs_1"][0].tolist() == [0.5, 0.5]
    # Sums of a few float32 probabilities.
    np.testing.assert_allclose(episode["beliefs_0"].sum(axis=1), 1.0, rtol=1e-6)
    assert run.summary["fares"]["this run"]["reward_nats"] == pytest.approx(
        run.metrics["reward"][1:].mean()
    )


def test_the_summary_has_the_best_possible_and_a_greedy_agent(tmp_path):
    out = tmp_path / "run"
    assert _run(out, "--env", "cue-chain", "--horizon", 4, "--length", 5, "--quiet") == 0
    fares = json.loads((out / "summary.json").read_text())["fares"]
    # Two steps to the cue, one to the reward, one that stays there: rewards of 3 nats. One step
    # ahead there is nothing to be seen at the start.
    best = {"success_rate": 1.0, "reward_nats": 6.0, "steps_to_goal": 3.0}
    assert fares["best possible"] == pytest.approx(best)
    assert fares["this run"] == pytest.approx(best)
    assert fares["greedy agent"]["reward_nats"] < 6.0


def test_report_needs_no_other_file_and_has_every_figure(finished):
    page = (finished / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert page.count("data:image/png;base64,") == 5
    assert all(piece in page for piece in ("belief MDP", "greedy agent", "episode.gif"))


def test_prints_summary_and_place_of_the_report(finished, printed):
    output, errors = (text.getvalue() for text in printed)
    assert str(finished / "report.html") in output
    assert all(piece in output for piece in ("this run", "best possible", "greedy agent", "nats"))
    assert "4/4" in errors


def test_zero_episodes_write_a_whole_run(tmp_path):
    assert _run(tmp_path / "run", "--episodes", 0, "--quiet") == 0
    metrics = read_metrics(tmp_path / "run")
    assert metrics["step"].tolist() == [0]
    assert math.isnan(metrics["reward"][0])
    assert (tmp_path / "run" / "report.html").is_file()
    assert load(tmp_path / "run").episode is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--planner sophisticated --outcomes 4",
        "--planner utility --env bandit",
        "--planner gradient --precision float64",
        "--planner induction --env grid --horizon 1",
        "--planner greedy --env random",
        "--planner mcts --simulations 8 --horizon 20",
        "--learn A,B,C,E --forgetting 0.1",
    ],
)
def test_every_planner_and_world_runs(flags, tmp_path):
    assert _run(tmp_path / "run", "--quiet", *flags.split()) == 0
    assert np.isfinite(read_metrics(tmp_path / "run")["reward"][-1])


@pytest.mark.slow  # twelve seconds of planning five steps ahead
def test_without_arguments_agents_look_for_the_cue_and_a_greedy_agent_fails(tmp_path):
    out = tmp_path / "run"
    assert main(["plan", "--out", str(out), "--episodes", "2", "--batch", "4", "--quiet"]) == 0
    fares = json.loads((out / "summary.json").read_text())["fares"]
    assert fares["this run"] == pytest.approx(fares["best possible"])
    assert fares["this run"]["success_rate"] == 1.0
    assert fares["greedy agent"]["success_rate"] <= 0.5


def test_agents_that_learn_know_a_little_and_that_what_is_hidden_stays():
    config = PlanConfig(env="tmaze", learn="A,B", horizon=1, prior_knowledge=0.2, prior_counts=3)
    problem = plan_problem.build(config)
    prior = agents.build(config, problem, "policies").prior
    for f, wanted in enumerate(problem.model.B):
        blurred = 0.2 * wanted + 0.8 / len(wanted) if f == 0 else wanted
        np.testing.assert_allclose(prior.B[f], 3 * blurred, rtol=1e-6)  # float32
    for counts, wanted in zip(prior.A, problem.model.A, strict=True):
        np.testing.assert_allclose(counts, 3 * (0.2 * wanted + 0.8 / len(wanted)), rtol=1e-6)
    assert prior.D is None


def test_means_over_rows_count_episodes_and_successes():
    metrics = {
        "step": np.array([0, 2, 3, 7]),
        "success_rate": np.array([np.nan, 0.5, 0.0, 1.0]),
        "reward": np.array([np.nan, 1.0, 2.0, 4.0]),
        "steps_to_goal": np.array([np.nan, 6.0, np.nan, 1.0]),
    }
    found = references.of_run(metrics, 0)
    assert found == pytest.approx((5 / 7, 20 / 7, 2.0))
    assert references.of_run(metrics, 3) == pytest.approx((1.0, 4.0, 1.0))
    assert references.since(PlanConfig(), 7) == 0
    assert references.since(PlanConfig(learn="A"), 7) == 5


# Bad input: one line that names the option or the file, status 2, nothing written.


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        ("--length 0", ("--length 0", "at least 1")),
        ("--batch 0", ("--batch 0", "at least 1")),
        ("--horizon 0", ("--horizon 0", "at most 100")),
        ("--gamma nan", ("--gamma nan", "at least 0")),
        ("--temperature -1", ("--temperature -1", "at least 0")),
        ("--checkpoint-every 3", ("--checkpoint-every 3", "--log-every 2")),
        ("--slip 0.1", ("--slip 0.1", "left out with --env tmaze", "grid")),
        ("--map m.txt", ("--map", "left out with --env tmaze")),
        ("--validity 2", ("--validity 2", "probability")),
        ("--env bandit --chances 0.5", ("--chances 0.5", "two or more")),
        ("--env random --states 1", ("--states 1", "at least 2")),
        ("--env cue-chain --sides 1000", ("--cues 2, --sides 1000", "1008021018 transitions")),
        ("--env random --states 1000 --controls 1000", ("--states 1000", "1000000000 transitions")),
        ("--env random --fixed", ("--env random", "--fixed")),
        ("--outcomes 2", ("--outcomes 2", "sophisticated")),
        ("--simulations 9", ("--simulations 9", "mcts")),
        ("--learn A,x", ("--learn 'A,x'", "letters of ABCDE")),
        ("--learn ,", ("--learn ','", "letters of ABCDE")),
        ("--learn E --planner greedy", ("--learn E", "--planner greedy")),
        ("--learning-rate 2", ("--learning-rate 2", "without --learn")),
        ("--learn A --forgetting 1.5", ("--forgetting 1.5", "from 0 to 1")),
        ("--planner chess", ("chess",)),
        ("--horizon 12", ("--horizon 12", "4^12", "smaller --horizon")),
        ("--horizon 12", ("choose a smaller --horizon, or --planner gradient or mcts\n",)),
        ("--planner sophisticated --horizon 6", ("--horizon 6", "fewer --outcomes")),
        (
            "--planner sophisticated --horizon 12 --outcomes 1",
            ("choose a smaller --horizon, or --planner mcts\n",),
        ),
        ("--reward 1e39", ("--reward 1e+39", "at most 3.4e38")),
        ("--batch 2000000000", ("GiB", "--batch, --horizon or --length")),
        ("--planner mcts --simulations 2000000000", ("--batch, --simulations or --length",)),
        ("--env grid --slip 0.95 --planner induction", ("--slip 0.95", "at most 0.89")),
        ("--env grid --map none.txt", ("none.txt", "does not exist")),
    ],
)
def test_options_that_do_not_fit_are_refused(flags, pieces, refused, tmp_path):
    refused(tmp_path / "run", [*TINY_PLAN, *flags.split()], *pieces, command="plan")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (b"S.1\n.x.\n", ("row 2, column 2", "'x'")),
        (b"..1\n", ("one S", "got 0")),
        (b"S..\n", ("1 to 9",)),
        (b"S.1.1\n", ("one 1", "got 2")),
        (b"\xff\xfe\x00", ("UTF-16",)),
        (b"S1" + b"." * 3000, ("3002 places", "2000")),
    ],
    ids=["mark", "start", "goal", "twice", "encoding", "size"],
)
def test_bad_maps_are_refused_by_file_and_place(content, pieces, refused, tmp_path):
    (tmp_path / "m.txt").write_bytes(content)
    flags = ["--map", tmp_path / "m.txt"]
    refused(tmp_path / "run", flags, "m.txt", *pieces, command="plan")
    assert not (tmp_path / "run").exists()


def test_help_explains_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["plan", "--help"]) == 0
    text = capsys.readouterr().out
    for name in ("--env", "--map", "--episodes", "--planner", "--learn"):
        assert name in text


def test_runs_that_differ_in_place_and_number_of_episodes_share_their_programs():
    def found(*arguments):
        config = essentials(parse([*TINY_PLAN, *arguments]))
        problem = plan_problem.build(config)
        player = agents.build(config, problem, config.planner)
        return digest(functools.partial(play, config, problem, player))

    here = found("--out", "here", "--quiet")
    assert here == found("--out", "there", "--episodes", "8")
    assert here != found("--gamma", "2")
