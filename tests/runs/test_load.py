"""A run read back: whatever made it, at any moment, and never with another meaning."""

import json
import multiprocessing
import shutil

import chex
import jax
import numpy as np
import pytest
from helpers.blank_png import BLANK
from helpers.tiny_run import TINY_TRAINING

import vfejax
from vfejax.cli.main import main
from vfejax.errors import UserError
from vfejax.runs import checkpoint, directory, report
from vfejax.runs.load import BEST, Run, load
from vfejax.runs.metrics import append_metrics

TEXT = "the cat sat on the mat\nthe dog sat on the log\n" * 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory, library_promotion):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    flags = ["--synthetic.kind", "none", "--text", str(folder / "text.txt"), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figure_png", lambda figure: BLANK)
        assert main(["train", "--out", str(folder / "run"), *TINY_TRAINING, *flags]) == 0
    return folder / "run"


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def _edit(run, old, new):
    text = (run / "config.toml").read_text()
    assert old in text
    (run / "config.toml").write_text(text.replace(old, new))


def test_the_package_offers_the_function_and_the_module():
    assert vfejax.runs.load is load
    assert vfejax.runs.Run is Run


def test_a_training_is_read_whole(trained):
    run = load(trained)
    assert run.config["model"] == "transformer"
    assert run.metrics["step"].tolist() == [0, 2, 4, 6, 8]
    assert run.summary == json.loads((trained / "summary.json").read_text())
    assert (run.step, run.path) == (run.summary["best_step"], trained)
    np.testing.assert_array_equal(run.valid_loss, np.nanmin(run.metrics["valid_loss"]))
    assert run.vocabulary.decode(run.vocabulary.encode(TEXT)) == TEXT
    shapes = jax.eval_shape(run.model.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(run.params, shapes)
    chex.assert_tree_all_finite(run.params)
    # Weights and vocabulary belong together: what was learned is there.
    tokens = run.vocabulary.encode("the cat ")[None]
    logits = jax.jit(run.model.apply)(run.params, tokens, None).logits
    chex.assert_shape(logits, (1, 8, run.vocabulary.size))


def test_any_other_run_has_settings_metrics_and_summary(tmp_path):
    with directory.create(tmp_path / "run", {"agents": 4, "init": {"scale": 0.5}}) as held:
        append_metrics(held, ("step", "energy"), [(0, 3.0), (2, 0.1)])
    (tmp_path / "run" / "summary.json").write_text('{"steps": 2}')
    run = load(str(tmp_path / "run"))
    assert run.config == {"agents": 4, "init": {"scale": 0.5}}
    assert run.metrics["step"].tolist() == [0, 2]
    assert run.metrics["energy"].tolist() == [3.0, 0.1]
    assert run.summary == {"steps": 2}
    assert run[4:] == (*(None,) * 5, (), None)


def test_a_run_of_ones_own_has_what_it_wrote(tmp_path):
    with directory.create(tmp_path / "run", {"steps": 3}):
        run = load(tmp_path / "run")
        assert run == Run(tmp_path / "run", {"steps": 3}, {}, None)
        for content in ("", "st", "step,x\n"):
            (tmp_path / "run" / "metrics.csv").write_text(content)
            metrics = load(tmp_path / "run").metrics
            assert {name: len(values) for name, values in metrics.items()} == (
                {"step": 0, "x": 0} if content.endswith("\n") else {}
            )


@pytest.mark.parametrize("missing", [BEST, "vocabulary.json"])
def test_a_run_that_was_not_evaluated_yet_has_no_model(copy, missing):
    if missing == BEST:
        shutil.rmtree(copy / missing)
    else:
        (copy / missing).unlink()
    run = load(copy)
    assert (run.model, run.params, run.step) == (None, None, None)
    assert len(run.metrics["step"]) == 5


def test_a_model_of_ones_own_is_no_obstacle_to_settings_and_metrics(copy):
    shutil.rmtree(copy / BEST)
    _edit(copy, 'model = "transformer"', 'model = "mine"')
    run = load(copy)
    assert (run.config["model"], run.model, len(run.metrics["step"])) == ("mine", None, 5)


def test_options_of_other_models_are_not_read(copy):
    with open(copy / "config.toml", "a") as file:
        file.write("\n[of_another_model]\nwas_renamed = 3\n")
    assert load(copy).model is not None


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        ('model = "transformer"', 'model = "lstm"', ["config.toml", "'lstm'", "resnet-bk"]),
        ('model = "transformer"', "model = [1]", ["config.toml", "model"]),
        ("heads = 2", "heads = 0", ["config.toml", "heads"]),
        ("heads = 2", "heads = 3", ["config.toml", "heads"]),
        ("layers = 1", "layers = -1", ["config.toml", "layers"]),
        ("layers = 1", 'layers = "one"', ["config.toml [transformer]", "layers", "'one'"]),
        ("layers = 1", "lairs = 1", ["config.toml [transformer]", "lairs"]),
        ("length = 8", "length = 0", ["config.toml", "'length'", "got 0"]),
        ("length = 8", "length = 9.5", ["config.toml", "'length'", "got 9.5"]),
        ('compute = "float32"', 'compute = "int8"', ["config.toml", "'compute'", "int8"]),
        ("dim = 16", "dim = 18", ["best/checkpoints", "config.toml"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_edited_configuration_is_named_and_the_run_not_given_up(copy, old, new, pieces):
    _edit(copy, old, new)
    with pytest.raises(UserError) as caught:
        load(copy)
    message = str(caught.value)
    assert [piece for piece in pieces if piece not in message] == []
    assert "\n" not in message
    assert "--overwrite" not in message


@pytest.mark.parametrize("content", ["{", "[" * 100_000, b"\xff"])
def test_a_damaged_summary_is_named(copy, content):
    data = content if isinstance(content, bytes) else content.encode()
    (copy / "summary.json").write_bytes(data)
    with pytest.raises(UserError, match=r"summary.json is not readable: .*remove it"):
        load(copy)


def test_float64_is_never_switched_on_but_asked_for(copy):
    _edit(copy, 'compute = "float32"', 'compute = "float64"')
    with jax.enable_x64(False), pytest.raises(UserError, match=r"float64; .*jax_enable_x64"):
        load(copy)
    assert jax.numpy.result_type(float) == jax.numpy.float64


@pytest.mark.parametrize("path", ["absent", "empty"])
def test_what_is_no_run_is_named(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=path):
        load(tmp_path / path)


def _save_again_and_again(run, params, stop):
    step = 10
    while not stop.is_set():
        step += 1
        checkpoint.save(run / BEST, step, params, {"step": step, "valid_loss": 1.0}, keep=1)


def _read_again_and_again(run, steps):
    steps.put({load(run).step for _ in range(25)})


@pytest.mark.slow
def test_a_run_is_read_while_its_best_weights_are_replaced(copy):
    params = jax.tree.map(np.asarray, load(copy).params)
    context = multiprocessing.get_context("spawn")
    stop, steps = context.Event(), context.Queue()
    writer = context.Process(target=_save_again_and_again, args=(copy, params, stop))
    # A process of its own: orbax leaves unfinished coroutines of a failed read behind, which would
    # count as errors of this one.
    reader = context.Process(target=_read_again_and_again, args=(copy, steps))
    writer.start()
    reader.start()
    try:
        reader.join()
        assert reader.exitcode == 0
        assert len(steps.get(timeout=10)) > 3
    finally:
        stop.set()
        writer.join()
