"""``vfejax evaluate`` and ``vfejax generate`` on a trained run, and what they say when there is
none.
"""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from helpers.tiny_run import TINY_TRAINING as TINY

from vfejax.cli import language_models
from vfejax.cli.main import main

TEXT = "the cat sat on the mat\nthe dog sat on the log\n" * 30


@pytest.fixture(scope="module")
def run(tmp_path_factory, library_promotion):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    flags = ["--synthetic.kind", "none", "--text", str(folder / "text.txt"), "--quiet"]
    assert main(["train", "--out", str(folder / "run"), *TINY, *flags]) == 0
    return folder / "run"


def _evaluate(run, out, *flags):
    assert (
        main(["evaluate", "--run", str(run), "--out", str(out), "--quiet", *map(str, flags)]) == 0
    )
    return json.loads(out.read_text())


def test_evaluation_repeats_what_the_training_reported(run, tmp_path):
    found = _evaluate(run, tmp_path / "e.json")
    summary = json.loads((run / "summary.json").read_text())
    assert {key: found[key] for key in summary["valid"]} == summary["valid"]
    assert found["step"] == summary["best_step"]


def test_the_figures_belong_together_and_are_the_models(run, tmp_path):
    found = _evaluate(run, tmp_path / "e.json", "--text", run.parent / "text.txt")
    trained = language_models.load(run)
    tokens = trained.vocabulary.encode(TEXT)
    assert found["tokens_predicted"] == len(tokens) - 1
    apply = jax.jit(trained.model.apply)
    nats = []
    for start in range(0, len(tokens) - 1, trained.config.length):
        window = tokens[start : start + trained.config.length + 1]
        logits = np.asarray(apply(trained.params, window[None, :-1], None).logits, np.float64)[0]
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        nats += list(-logits[np.arange(len(window) - 1), window[1:]])
        if len(nats) > 64:  # a piece is enough to know the formula; the whole is compared below
            break
    piece = tmp_path / "piece.txt"
    piece.write_text(TEXT[: len(nats) + 1])
    of_piece = _evaluate(run, tmp_path / "p.json", "--text", piece)
    np.testing.assert_allclose(of_piece["loss_nats_per_token"], np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], math.exp(found["loss_nats_per_token"]))
    np.testing.assert_allclose(
        found["bits_per_byte"], found["loss_nats_per_token"] / math.log(2)
    )  # ASCII


def test_fewer_windows_are_fewer_tokens(run, tmp_path):
    assert _evaluate(run, tmp_path / "e.json", "--windows", 3)["tokens_predicted"] == 24


def test_what_is_printed_is_what_is_meant(run, capsys):
    assert main(["evaluate", "--run", str(run)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["of"] == "valid"
    assert float(lines["perplexity"]) > 1


def _generate(capsys, run, *flags):
    assert main(["generate", "--run", str(run), *map(str, flags)]) == 0
    return capsys.readouterr().out


def test_a_text_is_continued_by_known_symbols_and_the_seed_decides(run, capsys, tmp_path):
    one = _generate(capsys, run, "--prompt", "the ", "--tokens", 30, "--out", tmp_path / "t.txt")
    assert one.startswith("the ")
    assert len(one) == 4 + 30 + 1
    assert set(one) <= set(TEXT)
    assert (tmp_path / "t.txt").read_text() == one
    assert one == _generate(capsys, run, "--prompt", "the ", "--tokens", 30)
    assert one != _generate(capsys, run, "--prompt", "the ", "--tokens", 30, "--seed", 1)


def test_temperature_zero_and_top_one_agree_whatever_the_seed(run, capsys):
    cold = _generate(capsys, run, "--tokens", 12, "--temperature", 0)
    assert cold == _generate(capsys, run, "--tokens", 12, "--top-k", 1, "--seed", 3)
    assert cold == _generate(capsys, run, "--tokens", 12, "--top-p", 1e-6, "--seed", 4)


@pytest.mark.parametrize(
    ("command", "flags", "pieces"),
    [
        ("evaluate", ["--run", "absent"], ["absent", "not a directory"]),
        ("generate", ["--run", "absent"], ["absent", "not a directory"]),
        ("evaluate", ["--split", "test"], ["--split test"]),
        ("evaluate", ["--windows", "-1"], ["--windows -1"]),
        ("evaluate", ["--text", "absent.txt"], ["absent.txt"]),
        ("generate", ["--prompt", ""], ["--prompt"]),
        ("generate", ["--prompt", "the X"], ["--prompt", "'X'"]),
        ("generate", ["--tokens", "0"], ["--tokens 0"]),
        ("generate", ["--temperature", "-1"], ["--temperature -1"]),
        ("generate", ["--top-k", "-1"], ["--top-k -1"]),
        ("generate", ["--top-p", "0"], ["--top-p 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_bad_input_is_one_line(command, flags, pieces, run, refused, tmp_path):
    given = flags if "--run" in flags else ["--run", str(run), *flags]
    refused(tmp_path / "out", given, *pieces, command=command)


@pytest.mark.parametrize(
    ("before", "after", "pieces"),
    [
        ("batch_size = 4", "batch_size = 0", ["config.toml: --batch-size 0", "at least 1"]),
        ("batch_size = 4", "batch_size = -4", ["config.toml: --batch-size -4"]),
        ("heads = 2", "heads = 0", ["heads 0"]),
        ("heads = 2", "heads = true", ["config.toml: 'transformer.heads'", "integer"]),
        ("heads = 2", "hats = 2", ["config.toml: unknown key 'transformer.hats'"]),
        ("max_words = 20000", "max_words = 0", ["config.toml: --max-words 0"]),
        ("length = 8", "length = ", ["config.toml is not valid TOML"]),
    ],
)
def test_an_edited_configuration_is_checked(before, after, pieces, run, refused, tmp_path):
    other = shutil.copytree(run, tmp_path / "copy")
    content = (other / "config.toml").read_text()
    assert before in content
    (other / "config.toml").write_text(content.replace(before, after))
    line = refused(tmp_path / "out", ["--run", other], *pieces, command="evaluate")
    assert "--overwrite" not in line


def test_options_of_other_models_are_neither_stored_nor_read(run, tmp_path, capsys):
    content = (run / "config.toml").read_text()
    assert "[transformer]" in content
    assert "resnet" not in content
    assert "quantum" not in content
    other = shutil.copytree(run, tmp_path / "copy")  # as runs were written at first
    (other / "config.toml").write_text(content + "\n[quantum]\nan_option_of_old = 3\n")
    assert _generate(capsys, other, "--tokens", 3) == _generate(capsys, run, "--tokens", 3)


def test_a_run_without_a_model_or_with_a_damaged_vocabulary_is_named(run, refused, tmp_path):
    other = tmp_path / "simulation"
    other.mkdir()
    (other / "config.toml").write_text("agents = 3\n")
    refused(tmp_path / "out", ["--run", other], "holds no trained model", command="generate")
    for name in ("config.toml", "vocabulary.json"):
        (other / name).write_bytes((run / name).read_bytes())
    refused(tmp_path / "out", ["--run", other], "no weights yet", command="generate")
    (other / "vocabulary.json").write_text("[]")
    refused(tmp_path / "out", ["--run", other], "vocabulary.json", command="evaluate")
