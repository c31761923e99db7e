"""``vfejax train``: what a run leaves, what it learns, what it refuses, and that it goes on bit for
bit.
"""

import json
import math
import os
import re
import shutil
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.counting_model import counting_model, counting_trainer
from helpers.tiny_run import TINY_TRAINING as TINY

from vfejax.cli import background
from vfejax.cli.function_digest import signature
from vfejax.cli.main import main
from vfejax.cli.train import best as train_best
from vfejax.cli.train import command as train_command
from vfejax.data import ngrams
from vfejax.errors import UserError
from vfejax.models.table import MODELS
from vfejax.runs import checkpoint, loop_state
from vfejax.runs import directory as run_directory
from vfejax.runs.load import BEST, load
from vfejax.runs.metrics import read_metrics
from vfejax.training.momentum import eval_params, relativistic
from vfejax.types import Maps, TrainState

pytestmark = pytest.mark.usefixtures("library_promotion")


def _train(out, *flags):
    return main(["train", "--out", str(out), *TINY, "--quiet", *map(str, flags)])


def _resume(out, *flags):
    return main(["train", "--out", str(out), "--resume", "--quiet", *map(str, flags)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, library_promotion):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert _train(out) == 0
    return out


COUNTING = MODELS["transformer"]._replace(build=counting_model, trainer=counting_trainer)


@pytest.fixture
def counting(monkeypatch):
    """Runs train a model that compiles in no time in place of the transformer: for claims about the
    run, whatever its model.
    """
    monkeypatch.setitem(MODELS, "transformer", COUNTING)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Such a run."""
    out = tmp_path_factory.mktemp("counted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "transformer", COUNTING)
        assert _train(out) == 0
    return out


def test_what_a_thread_compiles_is_what_the_loop_will_call(counting, monkeypatch, tmp_path):
    begun, called = [], []

    def begin(step, state, num_steps, jit_fn, inputs, shardings):
        begun.append((jax.tree.map(background._placed, state, shardings), inputs, num_steps))

    def compiled(*arguments):
        def call(*arguments):
            called.append((signature(arguments[:2]), arguments[2]))
            raise UserError("no more is needed")

        return call

    monkeypatch.setattr(train_command, "compile_beside", begin)
    monkeypatch.setattr(loop_state, "compiled", compiled)
    assert _train(tmp_path / "run") == 2
    assert [(signature((state, inputs)), count) for state, inputs, count in begun] == called


def test_a_run_leaves_everything_a_reader_needs(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.toml",
        "environment.json",
        "metrics.csv",
        "report.html",
        "summary.json",
        "vocabulary.json",
    }
    assert {path.name for path in (finished / "figures").iterdir()} == {
        "loss.png",
        "diagnostics.png",
    }
    assert checkpoint.steps(finished) == [0, 4, 8]
    metrics = read_metrics(finished)
    assert metrics["step"].tolist() == [0, 2, 4, 6, 8]
    assert np.isfinite(metrics["valid_loss"]).tolist() == [True, False, True, False, True]
    assert np.isfinite(metrics["loss"]).tolist() == [False, True, True, True, True]
    page = (finished / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "<pre>" in page


def test_the_summary_is_of_the_best_weights(finished):
    summary = json.loads((finished / "summary.json").read_text())
    metrics = read_metrics(finished)
    assert summary["best_step"] == metrics["step"][np.nanargmin(metrics["valid_loss"])]
    assert checkpoint.steps(finished / BEST) == [summary["best_step"]]
    assert summary["tokens_trained"] == 8 * 4 * 8
    assert metrics["valid_loss"][-1] < metrics["valid_loss"][0] - 0.05  # nats: it learns
    valid = summary["valid"]
    np.testing.assert_allclose(valid["perplexity"], math.exp(valid["loss_nats_per_token"]))
    assert "bits_per_byte" not in valid  # synthetic tokens have no bytes
    baselines = summary["baselines_nats_per_token"]
    assert baselines["entropy rate"] == 0
    assert baselines["bigrams"] < baselines["unigrams"] <= baselines["uniform"] + 0.1


def test_the_configuration_can_be_run_again(counting, counted, tmp_path):
    assert (
        main(
            [
                "train",
                "--config",
                str(counted / "config.toml"),
                "--out",
                str(tmp_path / "run"),
                "--quiet",
            ]
        )
        == 0
    )
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (counted / "metrics.csv").read_bytes()
    assert (tmp_path / "run" / "config.toml").read_bytes() == (counted / "config.toml").read_bytes()


@pytest.mark.slow
def test_a_pattern_is_learned_and_uniform_tokens_are_not(tmp_path):
    flags = (
        "--steps",
        200,
        "--log-every",
        50,
        "--eval-every",
        50,
        "--checkpoint-every",
        200,
        "--learning-rate",
        0.03,
        "--sample-tokens",
        0,
    )
    assert _train(tmp_path / "pattern", *flags) == 0
    losses = json.loads((tmp_path / "pattern" / "summary.json").read_text())["valid"]
    assert losses["loss_nats_per_token"] < 0.1
    noise = ("--synthetic.kind", "uniform", "--synthetic.tokens", 4000)
    assert _train(tmp_path / "noise", *flags, *noise) == 0
    losses = read_metrics(tmp_path / "noise")["valid_loss"]
    # 48 windows' tokens at most: their own frequencies stray from uniform by a few hundredths of a
    # nat, a leak by ln 5.
    assert np.nanmin(losses) > math.log(5) - 0.1


def _counted_pairs(seen):
    """Maps of a model: how often each token followed each other one."""

    def maps(config, vocab_size, length, dtype):
        assert (vocab_size, length, dtype) == (7, 8, np.float32)  # five symbols and two more

        def values(params, tokens):
            seen.append(tokens.shape)
            return {"all": params["counts"], "none": 0 * params["counts"]}

        words = {"xlabel": "next", "ylabel": "token", "label": "count", "columns": 2}
        return Maps(values, "pairs", "Pairs of tokens", "What followed what.", **words)

    return maps


def test_the_report_shows_what_a_model_offers_of_itself(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setitem(MODELS, "transformer", COUNTING._replace(maps=_counted_pairs(seen)))
    assert _train(tmp_path / "run") == 0
    assert seen == [(5, 8)]  # all whole windows of the 40 tokens of validation
    picture = (tmp_path / "run" / "figures" / "pairs.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "What followed what." in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow  # tests/models has the model
def test_a_toroidal_model_trains_resumes_and_writes_beyond_its_ring(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ("model", "toroidal"), ("toroidal.dim", 16), ("toroidal.layers", 1)
    flags += ("toroidal.window", 6), ("toroidal.rank", 2), ("toroidal.hidden", 8)
    named = [part for name, value in flags for part in (f"--{name}", value)]
    slopes = ("--toroidal.slopes", 4, 1)
    assert _train(out, *named, *slopes, "--steps", 4, "--sample-tokens", 0) == 0
    assert _resume(out, "--steps", 8) == 0
    assert load(out).config["toroidal"]["slopes"] == [4.0, 1.0]
    assert (out / "figures" / "attention.png").exists()
    assert main(["generate", "--run", str(out), "--tokens", "30", "--prompt", "a"]) == 0
    bad = ("--toroidal.depth", 3)
    capsys.readouterr()
    assert _train(tmp_path / "bad", *named, *bad) == 2
    message = "--toroidal.depth 3: must be a divisor of the heads 4 (one of 1, 2, 4)"
    assert message in capsys.readouterr().err


@pytest.mark.slow  # tests/models has the model
def test_a_model_without_an_optimizer_trains_goes_on_bit_for_bit_and_writes(tmp_path, capsys):
    flags = ("model", "pure-fep"), ("pure-fep.dim", 8), ("pure-fep.hidden", 8)
    flags += ("pure-fep.layers", 1), ("pure-fep.max-layers", 2)
    flags += ("pure-fep.spawn-pressure", 1e-6), ("pure-fep.cool-down", 2)
    named = [part for name, value in flags for part in (f"--{name}", value)]
    named += ["--pure-fep.spins", 0, 1, "--warmup-steps", 0, "--final-rate", 1]
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert _train(whole, *named, "--sample-tokens", 0) == 0
    shutil.copytree(whole, out)
    checkpoint.discard_after(out, 4)
    assert _resume(out) == 0
    assert (out / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    chex.assert_trees_all_equal(load(out).params, load(whole).params)
    metrics = read_metrics(out)
    assert metrics["layers"][-1] == 2  # one was added, before or after the break
    assert np.all(np.isfinite(metrics["free_energy"][1:]))
    assert (out / "figures" / "attention.png").exists()
    assert main(["generate", "--run", str(out), "--tokens", "30", "--prompt", "a"]) == 0
    capsys.readouterr()
    assert _train(tmp_path / "bad", *named, "--pure-fep.dim", 10) == 2
    assert "--pure-fep.dim 10: must be a multiple of 4" in capsys.readouterr().err


@pytest.mark.slow  # the next test trains on a text by default, and tests/models has the models
@pytest.mark.parametrize(
    "flags",
    [
        ("--vocabulary", "word", "--max-words", 20, "--length", 4),
        ("--vocabulary", "byte", "--compute", "bfloat16"),
        ("--accumulation", 2, "--sample-tokens", 0),
        (
            *(
                "--model",
                "resnet-bk",
                "--resnet-bk.layers",
                1,
                "--resnet-bk.dim",
                8,
                "--resnet-bk.heads",
                2,
            ),
            *("--resnet-bk.hidden", 8, "--resnet-bk.experts", 2, "--sample-tokens", 0),
        ),
    ],
    ids=["word", "byte-bf16", "accumulated-dropout", "resnet-bk"],
)
def test_texts_vocabularies_and_models(flags, tmp_path):
    text = tmp_path / "poem.txt"
    text.write_text("the rose is red, the violet blue\nand so are you, and so am I\n" * 40)
    own = ("--synthetic.kind", "none", "--text", text, "--steps", 4)
    assert _train(tmp_path / "run", *own, *flags) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"] == str(text)
    valid = summary["valid"]
    assert valid["bits_per_byte"] > 0
    if "resnet-bk" in flags:
        metrics = read_metrics(tmp_path / "run")
        assert np.all(metrics["load_balance"][1:] > 0)
        assert np.all(metrics["longest_reach_tokens"][1:] > 0)


def test_a_validation_text_that_begins_with_an_unseen_symbol_still_has_its_report(
    counting, tmp_path, refused
):
    text = tmp_path / "text.txt"
    content = "ab" * 90 + "?" + "ab" * 10 + "\n"
    assert content[int(len(content) * (1 - 0.1085))] == "?"
    text.write_text(content)
    own = (
        "--synthetic.kind",
        "none",
        "--text",
        text,
        "--steps",
        2,
        "--eval-every",
        2,
        "--valid-fraction",
        0.1085,
    )
    out = tmp_path / "run"
    assert _train(out, *own) == 0
    assert "?" not in (out / "vocabulary.json").read_text()
    assert "<pre>" in (out / "report.html").read_text()
    # Another text is refused, and what the weights mean is kept.
    before = (out / "vocabulary.json").read_bytes()
    text.write_text(content.replace("a", "c"))
    line = refused(out, ["--resume", "--steps", 4], f"--text {text}", "changed", command="train")
    assert "--overwrite" not in line
    assert (out / "vocabulary.json").read_bytes() == before
    assert checkpoint.latest_step(out) == 2


@pytest.mark.slow  # tests/training/test_sharding.py divides batches and states by default
def test_eight_devices_train_as_one_does_and_one_goes_on(
    finished, start_process, tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8", prepend=" ")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out = tmp_path / "run"
    process = start_process("--out", out, *TINY, "--shard", "zero3", "--remat", command="train")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "uses 4 of 8 devices, since no more of them have equal shares" in errors
    assert "--batch-size 8, or another multiple of 8, uses all; --shard zero3: each" in errors
    assert json.loads((out / "environment.json").read_text())["num_devices"] == 8
    wanted = read_metrics(finished)

    def equal():
        found = read_metrics(out)
        # float32 sums over a batch in another order, amplified by eight steps of Adam.
        np.testing.assert_allclose(found["valid_loss"], wanted["valid_loss"], rtol=1e-4)
        np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-4)

    equal()
    checkpoint.discard_after(out, 4)
    assert _resume(out, "--shard", "zero1") == 0
    equal()
    assert "--shard was zero3, is zero1 now" in (out / "report.html").read_text()


@pytest.mark.parametrize("text", ["a" * 400, "ab" * 200])
def test_a_text_of_one_character_is_told_that_it_teaches_nothing(counting, tmp_path, capsys, text):
    path, out = tmp_path / "text.txt", tmp_path / "run"
    path.write_text(text)
    flags = ("--text", path, "--synthetic.kind", "none", "--steps", 0)
    assert main(["train", "--out", str(out), *TINY, *map(str, flags)]) == 0
    said = "all 360 training tokens are the same, so that there is nothing to learn"
    assert (said in capsys.readouterr().err) == (text[1] == "a")
    assert (said in (out / "report.html").read_text()) == (text[1] == "a")


def test_training_stops_early_when_it_gets_no_better(counting, tmp_path, capsys):
    out = tmp_path / "run"
    flags = (
        "--learning-rate",
        1e-30,
        "--patience",
        2,
        "--steps",
        100,
        "--eval-every",
        2,
        "--checkpoint-every",
        100,
    )
    assert _train(out, *flags) == 0
    # The first evaluation is the best; two more without a better one are enough.
    assert read_metrics(out)["step"].tolist() == [0, 2, 4]
    assert checkpoint.latest_step(out) == 4
    assert checkpoint.latest_step(out / BEST) == 0
    assert json.loads((out / "summary.json").read_text())["stopped_early"] is True
    before = {name: (out / name).read_bytes() for name in ("metrics.csv", "config.toml")}
    assert main(["train", "--out", str(out), "--resume", "--steps", "200"]) == 0
    # It says why nothing happened, and changes nothing.
    printed = capsys.readouterr().out
    assert "stopped early at step 4: 2 evaluations without a better loss" in printed
    assert "--resume with a larger --patience than 2 goes on" in printed
    assert before == {name: (out / name).read_bytes() for name in before}
    assert _resume(out, "--patience", 3, "--steps", 100) == 0  # the remedy
    assert read_metrics(out)["step"].tolist() == [0, 2, 4, 6]


def test_divergence_names_the_step_and_the_remedy(counting, tmp_path, refused):
    refused(
        tmp_path / "run",
        [*TINY, "--learning-rate", "3e38", "--warmup-steps", "0"],
        "diverged",
        "--learning-rate",
        "step 0",
        command="train",
    )


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        (["--steps", "-1"], ["--steps -1", "at least 0"]),
        (["--batch-size", "0"], ["--batch-size 0"]),
        (["--accumulation", "3"], ["--accumulation 3", "divisor of --batch-size 4"]),
        (["--model", "pure-fep", "--beta2", "0.9"], ["--beta2 0.9", "its own method"]),
        (["--model", "pure-fep", "--optimizer", "momentum"], ["--optimizer", "its own method"]),
        (["--optimizer", "momentum", "--delta", "2"], ["--delta 2.0", "--optimizer momentum"]),
        (["--optimizer", "momentum", "--momentum", "1"], ["--momentum 1.0", "below 1"]),
        (["--optimizer", "relativistic", "--delta", "-1"], ["--delta -1.0"]),
        (["--gradients", "koopman", "--accumulation", "2"], ["--accumulation 2", "--gradients"]),
        (["--gradients", "readout", "--remat"], ["--remat True", "--gradients readout"]),
        (["--model", "pure-fep", "--remat"], ["--remat True", "its own method"]),
        (
            ["--model", "reversible", "--remat"],
            ["--remat True", "left out with --model reversible"],
        ),
        (["--model", "vfe", "--gradients", "identity"], ["--gradients identity", "must be exact"]),
        (["--momentum", "0.5"], ["--momentum 0.5", "--optimizer adamw"]),
        (["--eval-every", "3"], ["--eval-every 3", "multiple of --log-every 2"]),
        (["--learning-rate", "nan"], ["--learning-rate nan"]),
        (["--valid-fraction", "1"], ["--valid-fraction 1"]),
        (["--synthetic.noise", "2"], ["--synthetic.noise 2.0"]),
        (["--transformer.dim", "15"], ["--transformer", "dim 15", "heads 2"]),
        (["--model", "resnet-bk", "--resnet-bk.top-k", "9"], ["--resnet-bk", "top_k", "9"]),
        (
            ["--model", "resnet-bk", "--resnet-bk.z-floor", "0"],
            ["--resnet-bk.z-floor 0.0", "positive"],
        ),
        (["--transformer.dim", "1000000000"], ["--transformer", "weights", "smaller"]),
        (["--transformer.layers", "0"], ["--transformer.layers 0", "at least 1"]),
        (["--transformer.dropout", "1"], ["--transformer.dropout 1.0", "below 1"]),
        (
            ["--model", "resnet-bk", "--resnet-bk.balance-weight", "nan"],
            ["--resnet-bk.balance-weight nan"],
        ),
        (["--seed", "-1"], ["--seed -1", "at least 0"]),
        (["--batch-size", "9" * 30], ["--batch-size 9", "at most 2147483647"]),
        (["--length", "500"], ["periodic", "501", "--length"]),
        (["--synthetic.kind", "none", "--text", "absent.txt"], ["absent.txt", "does not exist"]),
        (["--text", "absent.txt"], ["--synthetic.kind", "--text"]),
        (["--config", "absent.toml"], ["absent.toml"]),
        (["--resume"], ["is not a directory"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_makes_no_run(flags, pieces, refused, tmp_path):
    out = tmp_path / "run"
    refused(out, [*TINY, *flags], *pieces, command="train")
    assert not (out / "config.toml").exists()


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        (b"", ["is empty"]),
        (b"ab\0cd", ["byte 2 is NUL"]),
        (b"abc\xff" * 50, ["byte 3 is 0xff"]),
        (b"short", ["fewer than the 9 of one window"]),
    ],
    ids=["empty", "binary", "encoding", "short"],
)
def test_bad_texts_are_named(content, pieces, refused, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(content)
    flags = [*TINY, "--synthetic.kind", "none", "--text", text]
    refused(tmp_path / "run", flags, str(text), *pieces, command="train")


def test_an_earlier_run_is_kept_unless_told_otherwise(finished, refused, tmp_path):
    out = shutil.copytree(finished, tmp_path / "copy")
    before = (out / "metrics.csv").read_bytes()
    line = refused(out, TINY, "already holds a run", "--resume", command="train")
    assert "--overwrite" not in line
    assert (out / "metrics.csv").read_bytes() == before
    with run_directory.create(out, {"seed": 1}, overwrite=True):
        left = {path.name for path in out.iterdir()}
    assert left == {".vfejax", "config.toml", "environment.json", "checkpoints"}


# --- a method of learning without gradients ---


def test_a_model_brings_its_own_method_of_learning(counting, tmp_path, capsys):
    flags = ("--learning-rate", 1, "--warmup-steps", 0, "--final-rate", 1)
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert _train(whole, *flags) == 0
    # A rate of 1 for every pair: the weights are counts, of all pairs that the batches hold.
    found = load(whole)
    counts = np.asarray(found.params["counts"])
    assert counts.sum() == 8 * 4 * 8
    assert np.all(counts == np.round(counts))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["valid"]["loss_nats_per_token"] < 0.5  # the pattern is a cycle of three pairs
    # Stopped half way and resumed, it is the same run; other commands read it.
    assert _train(out, *flags, "--steps", 4) == 0
    assert _resume(out, "--steps", 8) == 0
    assert (out / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert np.array_equal(load(out).params["counts"], counts)
    assert main(["evaluate", "--run", str(out)]) == 0
    assert f"{summary['valid']['loss_nats_per_token']:.5g}"[:5] in capsys.readouterr().out
    assert main(["generate", "--run", str(out), "--tokens", "3", "--temperature", "0"]) == 0


AHEAD = ("--optimizer", "relativistic", "--learning-rate", 0.02, "--sample-tokens", 0)
AHEAD += ("--accumulation", 2, "--warmup-steps", 0, "--final-rate", 1)


DESCENDING = COUNTING._replace(trainer=None)


@pytest.fixture
def descending(monkeypatch):
    """The same model, learning by gradients."""
    monkeypatch.setitem(MODELS, "transformer", DESCENDING)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory, library_promotion):
    """A run whose optimiser takes gradients ahead of the weights."""
    out = tmp_path_factory.mktemp("ahead") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "transformer", DESCENDING)
        assert _train(out, *AHEAD) == 0
    return out


def test_an_optimizer_that_looks_ahead_keeps_the_weights_it_evaluates(descending, ahead):
    found = load(ahead)
    # The checkpoint holds where the next gradient is taken.
    states = (optax.EmptyState(), optax.EmptyState(), relativistic(0.1).init(found.params))
    state = TrainState(jnp.int32(0), found.params, states)
    saved = loop_state.Saved(state, train_best.record(math.inf, 0, 0))
    state = checkpoint.restore(ahead, saved)[0].state
    assert found.step == int(state.step) == 8
    weights = jax.jit(eval_params)(state.params, state.optimizer_state)
    chex.assert_trees_all_equal(found.params, weights)
    assert np.abs(weights["counts"] - state.params["counts"]).max() > 1e-3


@pytest.mark.slow  # two more runs
def test_an_optimizer_that_looks_ahead_goes_on_bit_for_bit(descending, ahead, tmp_path):
    out = tmp_path / "run"
    assert _train(out, *AHEAD, "--steps", 4) == 0
    assert _resume(out, "--steps", 8) == 0
    assert (out / "metrics.csv").read_bytes() == (ahead / "metrics.csv").read_bytes()
    chex.assert_trees_all_equal(load(out).params, load(ahead).params)


# --- going on ---

LONG = ["--steps", "60", "--sample-tokens", "0"]


def _same(out, unbroken):
    """Metrics byte for byte, and every weight, the best ones too."""
    assert (out / "metrics.csv").read_bytes() == (unbroken / "metrics.csv").read_bytes()
    assert (out / "config.toml").read_bytes() == (unbroken / "config.toml").read_bytes()
    assert checkpoint.steps(out / BEST) == checkpoint.steps(unbroken / BEST)
    chex.assert_trees_all_equal(load(out).params, load(unbroken).params)
    keys = ("valid", "best_step", "steps")
    summaries = [json.loads((path / "summary.json").read_text()) for path in (out, unbroken)]
    assert [summaries[0][key] for key in keys] == [summaries[1][key] for key in keys]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, library_promotion):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert _train(out, *LONG) == 0
    return out


def _wait_for_checkpoint(out, process):
    deadline = time.monotonic() + 120
    while not (checkpoint.latest_step(out) or 0) > 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow  # tests/runs and tests/cli/simulate stop runs by default
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill-9", "ctrl-c"])
def test_a_stopped_run_goes_on_bit_for_bit(how, unbroken, start_process, tmp_path):
    out = tmp_path / "run"
    process = start_process("--out", out, *TINY, *LONG, "--quiet", command="train")
    _wait_for_checkpoint(out, process)
    os.kill(process.pid, how)
    output, errors = process.communicate(timeout=120)
    assert 0 < checkpoint.latest_step(out) < 60
    if how == signal.SIGINT:
        assert (process.returncode, output, errors) == (130, "", "vfejax train: interrupted\n")
        assert (out / "report.html").is_file()
    assert _resume(out) == 0
    _same(out, unbroken)


def test_an_interrupted_run_is_not_kept_waiting_for_its_baselines(counting, monkeypatch, tmp_path):
    out, row = tmp_path / "run", train_command._row

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)  # a thread heeds the signal
        return row(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_command, "_row", interrupted)
        patch.setattr(ngrams, "_BLOCK", 64)  # the text has six of them
        assert _train(out) == 130
    assert checkpoint.latest_step(out) == 0
    losses = json.loads((out / "summary.json").read_text())["baselines_nats_per_token"]
    assert set(losses) == {"uniform", "entropy rate"}
    assert "The run was interrupted" in (out / "report.html").read_text()
    assert _resume(out) == 0
    losses = json.loads((out / "summary.json").read_text())["baselines_nats_per_token"]
    assert {"unigrams", "bigrams"} < set(losses)


def test_a_best_that_is_later_than_the_checkpoint_is_made_again(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "copy")
    # As after a kill between the evaluation at step 8 and the checkpoint of step 8.
    assert checkpoint.latest_step(out / BEST) == 8
    shutil.rmtree(out / "checkpoints" / f"{8:08d}")
    assert _resume(out) == 0
    _same(out, finished)


def test_a_run_without_checkpoints_begins_again_without_the_old_best(counting, counted, tmp_path):
    out = shutil.copytree(counted, tmp_path / "copy")
    shutil.rmtree(out / "checkpoints")
    # The best of another life, later than any step of this one.
    best = out / BEST / "checkpoints"
    shutil.copytree(next(best.iterdir()), best / f"{50:08d}")
    assert _resume(out) == 0
    assert (out / "metrics.csv").read_bytes() == (counted / "metrics.csv").read_bytes()
    assert checkpoint.steps(out / BEST) == checkpoint.steps(counted / BEST)


def test_more_steps_keep_the_rhythm_and_the_jump_of_the_learning_rate_is_told(
    counting, counted, tmp_path, capsys
):
    out = shutil.copytree(counted, tmp_path / "copy")
    shutil.rmtree(out / BEST)  # lost: those of the checkpoint take their place
    assert main(["train", "--out", str(out), "--resume", "--steps", "13"]) == 0
    said = capsys.readouterr().err
    jump = r"the learning rate goes from 0.0002 to 0.00\d+ at step 8, since .* ends at step 13"
    assert re.search(jump, said)
    assert "resumed at step 8: --steps was 8, is 13 now" in said
    page = (out / "report.html").read_text()
    assert re.search(jump, page)
    metrics = read_metrics(out)
    assert metrics["step"].tolist() == [0, 2, 4, 6, 8, 10, 12, 13]
    assert np.isfinite(metrics["valid_loss"][-3:]).tolist() == [False, True, True]
    assert checkpoint.steps(out) == [8, 12, 13]
    best = int(np.nanargmin(metrics["valid_loss"][4:])) + 4
    assert checkpoint.steps(out / BEST) == [metrics["step"][best]]


def test_the_best_weights_of_the_newest_checkpoint_stay_until_a_newer_one_is_complete(tmp_path):
    params = {"x": np.arange(3.0)}
    with run_directory.create(tmp_path / "run", {}) as run:
        weights = train_best.BestWeights(run)
        folder = run.path / BEST
        weights.save(0, params, 3.0)
        weights.saved(train_best.record(3.0, 0, 0))
        for step, kept in ((2, [0, 2]), (4, [0, 4])):
            weights.save(step, params, 2.0)
            assert checkpoint.steps(folder) == kept
        # A kill now: the run goes on from the checkpoint of step 0, whose best are there.
        again = train_best.BestWeights(run)
        assert again.restored(0, train_best.record(3.0, 0, 0))
        assert checkpoint.steps(folder) == [0]
        again.save(4, params, 2.0)
        again.saved(train_best.record(2.0, 4, 0))
        assert checkpoint.steps(folder) == [4]
        assert not again.restored(2, train_best.record(3.0, 0, 0))


def test_other_settings_are_refused_by_name(finished, refused):
    refused(
        finished,
        ["--resume", "--batch-size", "8"],
        "--batch-size was 4",
        command="train",
    )
    refused(finished, ["--resume", "--steps", "6"], "--steps 6", "step 8", command="train")
