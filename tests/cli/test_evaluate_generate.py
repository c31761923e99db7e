"""``vfejax evaluate`` and ``vfejax generate`` on a trained run, and what they say when there is
none.
"""

import json
import math
import os
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from helpers.counting_model import counting_model, counting_trainer
from helpers.tiny_run import TINY_TRAINING as TINY

from vfejax.cli import trained_run as trained_runs
from vfejax.cli.main import main
from vfejax.data.spelling import spelled_nats
from vfejax.models.table import MODELS

COUNTING = MODELS["transformer"]._replace(build=counting_model, trainer=counting_trainer)
TEXT = "the cat sat on the mat\nthe dog sat on the log\n" * 30


def _train(folder, *more):
    (folder / "text.txt").write_text(TEXT)
    flags = ["--synthetic.kind", "none", "--text", str(folder / "text.txt"), "--quiet", *more]
    assert main(["train", "--out", str(folder / "run"), *TINY, *flags]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory, library_promotion):
    return _train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def trained_counted(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "transformer", COUNTING)
        return _train(tmp_path_factory.mktemp("counted"))


@pytest.fixture
def counted(trained_counted, monkeypatch):
    """A run whose model counts pairs of tokens, which compiles in no time, in place of the
    transformer: for claims about the commands, whatever the model.
    """
    monkeypatch.setitem(MODELS, "transformer", COUNTING)
    return trained_counted


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
    trained = trained_runs.read(run)
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


def test_fewer_windows_are_fewer_tokens(counted, tmp_path):
    assert _evaluate(counted, tmp_path / "e.json", "--windows", 3)["tokens_predicted"] == 24


def test_what_is_printed_is_what_is_meant(counted, capsys):
    assert main(["evaluate", "--run", str(counted)]) == 0
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


def test_temperature_zero_and_top_one_agree_whatever_the_seed(counted, capsys):
    cold = _generate(capsys, counted, "--tokens", 12, "--temperature", 0)
    assert cold == _generate(capsys, counted, "--tokens", 12, "--top-k", 1, "--seed", 3)
    assert cold == _generate(capsys, counted, "--tokens", 12, "--top-p", 1e-6, "--seed", 4)


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
        ("generate", ["--tokens", "1" + 23 * "0"], ["--tokens 1000", "between 1 and 1000000"]),
        (
            "generate",
            ["--prompt", "at", "--tokens", "999999"],
            ["--prompt", "2 tokens", "more than the 1 "],
        ),
        ("evaluate", ["--seed", "-1"], ["--seed -1", "at least 0"]),
        ("evaluate", ["--seed", str(2**63)], ["--seed 9223372036854775808"]),
        ("generate", ["--seed", "-1"], ["--seed -1"]),
        ("generate", ["--seed", str(2**63)], ["--seed 9223372036854775808"]),
        ("evaluate", ["--text", "a\0b"], ["'a\\x00b'", "NUL"]),
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
        ("heads = 2", "heads = 0", ["config.toml", "heads must be at least 1, got 0"]),
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


def test_options_of_other_models_are_neither_stored_nor_read(counted, tmp_path, capsys):
    content = (counted / "config.toml").read_text()
    assert "[transformer]" in content
    assert "resnet" not in content
    assert "quantum" not in content
    other = shutil.copytree(counted, tmp_path / "copy")  # as runs were written at first
    (other / "config.toml").write_text(content + "\n[quantum]\nan_option_of_old = 3\n")
    assert _generate(capsys, other, "--tokens", 3) == _generate(capsys, counted, "--tokens", 3)


def test_a_run_without_a_model_or_with_a_damaged_vocabulary_is_named(
    counted, copy, refused, tmp_path
):
    other = tmp_path / "simulation"
    other.mkdir()
    (other / "config.toml").write_text("agents = 3\n")
    refused(tmp_path / "out", ["--run", other], "holds no trained model", command="generate")
    (other / "config.toml").write_bytes((counted / "config.toml").read_bytes())
    pieces = ("no weights yet", f"--resume --out {other}")
    refused(tmp_path / "out", ["--run", other], *pieces, command="generate")
    for content in ("[]", "[" * 100_000):
        (copy / "vocabulary.json").write_text(content)
        line = refused(tmp_path / "out", ["--run", copy], "vocabulary.json", command="evaluate")
        assert "--overwrite" not in line
    (copy / "vocabulary.json").unlink()
    pieces = ("vocabulary.json is missing", f"--resume --out {copy}")
    refused(tmp_path / "out", ["--run", copy], *pieces, command="evaluate")
    assert main(["train", "--resume", "--out", str(copy), "--quiet"]) == 0
    assert (copy / "vocabulary.json").read_bytes() == (counted / "vocabulary.json").read_bytes()


# --- the data of a run ------------------------------------------------------------------------


@pytest.fixture
def copy(counted, tmp_path):
    """The run that counts, and a text file of its own."""
    out = shutil.copytree(counted, tmp_path / "copy")
    text = tmp_path / "moved.txt"
    text.write_text(TEXT)
    _edit(out, str(counted.parent / "text.txt"), str(text))
    return out


def _edit(out, old, new):
    content = (out / "config.toml").read_text()
    assert old in content
    (out / "config.toml").write_text(content.replace(old, new))


def test_a_text_that_has_moved_is_the_same_text(counted, copy, tmp_path):
    found = _evaluate(copy, tmp_path / "e.json")
    assert found | {"run": ""} == _evaluate(counted, tmp_path / "f.json") | {"run": ""}


@pytest.mark.parametrize(
    "changed",
    ["!" + TEXT, TEXT.replace("c", "z"), TEXT[:-1] + "!"],
    ids=["shifted", "same size", "valid"],
)
def test_changed_data_are_named_and_the_vocabulary_stays(changed, copy, refused, tmp_path):
    text = tmp_path / "moved.txt"
    text.write_text(changed)
    vocabulary = (copy / "vocabulary.json").read_bytes()
    pieces = (str(text), "changed", "--text")
    refused(tmp_path / "out", ["--run", copy], *pieces, command="evaluate")
    line = refused(copy, ["--resume", "--steps", "10"], str(text), "changed", command="train")
    assert "--overwrite" not in line
    text.unlink()
    refused(tmp_path / "out", ["--run", copy], str(text), "does not exist", command="evaluate")
    assert (copy / "vocabulary.json").read_bytes() == vocabulary


def test_any_text_is_read_with_the_vocabulary_of_the_run(counted, copy, tmp_path):
    # Without a record of the data, as in a run of the first version, there is nothing to compare.
    (copy / "inputs.json").unlink()
    (tmp_path / "moved.txt").write_text("!" + TEXT)
    found = _evaluate(copy, tmp_path / "e.json")
    before = _evaluate(counted, tmp_path / "f.json")
    # One more character shifts the validation text by one: the same model, nearly the same text.
    np.testing.assert_allclose(
        found["loss_nats_per_token"], before["loss_nats_per_token"], rtol=0.05
    )
    assert found["unknown_tokens"] == 0


def test_unknown_characters_are_counted_and_paid_for(counted, tmp_path):
    (tmp_path / "known.txt").write_text(TEXT)
    (tmp_path / "strange.txt").write_text(TEXT.replace("c", "z"))
    known, strange = (
        _evaluate(counted, tmp_path / f"{name}.json", "--text", tmp_path / f"{name}.txt")
        for name in ("known", "strange")
    )
    assert known["unknown_tokens"] == 0
    np.testing.assert_allclose(strange["unknown_tokens"], TEXT.count("c") / len(TEXT))
    # All unknown ones are z: the first costs 8 bits, and soon they cost almost nothing.
    spelled = spelled_nats(["z"] * TEXT.count("c"), ends=False)
    found = strange["bits_per_byte"] - strange["loss_nats_per_token"] / math.log(2)
    np.testing.assert_allclose(found, spelled / math.log(2) / len(TEXT), rtol=1e-9)


def test_a_text_shorter_than_a_window_is_scored(counted, tmp_path):
    (tmp_path / "short.txt").write_text("cat")
    found = _evaluate(counted, tmp_path / "e.json", "--text", tmp_path / "short.txt")
    assert found["tokens_predicted"] == 2


# --- prompts and outputs -------------------------------------------------------------------------


def test_without_a_prompt_a_text_begins_with_what_the_vocabulary_has(copy, capsys):
    assert _generate(capsys, copy, "--tokens", 12).startswith("\n")
    content = (copy / "vocabulary.json").read_text()
    (copy / "vocabulary.json").write_text(content.replace("\\n", "\\u0001"))
    assert _generate(capsys, copy, "--tokens", 12).startswith("\u0001")


def test_a_file_is_replaced_only_when_asked(counted, refused, tmp_path):
    for command in ("evaluate", "generate"):
        out = tmp_path / command
        out.write_text("mine")
        refused(out, ["--run", run], "exists already", "--overwrite", command=command)
        assert out.read_text() == "mine"
        assert (
            main([command, "--run", str(counted), "--out", str(out), "--overwrite", "--quiet"]) == 0
        )
        assert out.read_text() != "mine"
        assert main([command, "--run", str(counted), "--out", os.devnull, "--quiet"]) == 0
        assert os.path.exists(os.devnull)
        assert not os.path.isfile(os.devnull)


# --- tokenizers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_subword_run(tmp_path_factory):
    """A run with a byte-level pair encoding, whose file has gone since."""
    folder = tmp_path_factory.mktemp("subwords")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "transformer", COUNTING)
        run = _train(folder, "--vocabulary", str(folder / "tokenizer.json"), "--steps", "4")
    (folder / "tokenizer.json").unlink()
    return run


@pytest.fixture
def subword_run(trained_subword_run, monkeypatch):
    """The model of this one counts pairs of tokens too."""
    monkeypatch.setitem(MODELS, "transformer", COUNTING)
    return trained_subword_run


def test_a_tokenizer_of_the_library_is_kept_in_the_run(subword_run, tmp_path):
    found = _evaluate(subword_run, tmp_path / "e.json")
    assert (
        found["loss_nats_per_token"]
        == json.loads((subword_run / "summary.json").read_text())["valid"]["loss_nats_per_token"]
    )
    # A byte-level encoding spells everything: bits per byte are those of its tokens, and none of
    # them is unknown.
    assert "unknown_tokens" not in found
    text = TEXT[int(len(TEXT) * 0.9) :]
    num_tokens = len(trained_runs.read(subword_run).vocabulary.encode(text))
    assert num_tokens < 0.7 * len(text)
    expected = found["loss_nats_per_token"] * num_tokens / len(text) / math.log(2)
    np.testing.assert_allclose(found["bits_per_byte"], expected, rtol=1e-12)


def test_bytes_of_a_prompt_come_back_as_they_came(subword_run, tmp_path):
    out = tmp_path / "g.txt"
    flags = ["--prompt", "caf\udce9 the ", "--tokens", "5", "--out", str(out), "--quiet"]
    assert main(["generate", "--run", str(subword_run), *flags]) == 0
    assert out.read_bytes().startswith(b"caf\xe9 the ")


def test_a_run_with_a_tokenizer_goes_on(subword_run, tmp_path):
    out = shutil.copytree(subword_run, tmp_path / "copy")
    before = (out / "vocabulary.json").read_bytes()
    assert main(["train", "--resume", "--out", str(out), "--steps", "8", "--quiet"]) == 0
    assert (out / "vocabulary.json").read_bytes() == before
    assert json.loads((out / "summary.json").read_text())["steps"] == 8


def test_another_tokenizer_in_the_place_of_the_lost_one_is_refused(subword_run, refused, tmp_path):
    out = shutil.copytree(subword_run, tmp_path / "copy")
    path = subword_run.parent / "tokenizer.json"
    vocabulary = json.loads((out / "vocabulary.json").read_text())
    (out / "vocabulary.json").unlink()
    path.write_text(json.dumps(vocabulary)[::-1])  # as long as the first, and another
    try:
        refused(out, ["--resume"], f"--vocabulary {path}", "changed", command="train")
        assert not (out / "vocabulary.json").exists()
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("content", "pieces"),
    [(None, ["does not exist"]), ("{}", ["holds no tokenizer"]), ("[" * 10**5, ["too deeply"])],
    ids=["absent", "empty", "deep"],
)
def test_a_file_that_is_no_tokenizer_is_named(content, pieces, run, refused, tmp_path):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    flags = [*TINY, "--synthetic.kind", "none", "--text", run.parent / "text.txt"]
    flags += ["--vocabulary", path]
    refused(tmp_path / "run", flags, str(path), *pieces, command="train")
    refused(tmp_path / "run", [*flags, "--vocabulary", "letters"], "letters", command="train")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_a_full_disk_costs_no_result(command, counted, capfd):
    assert main([command, "--run", str(counted), "--out", "/dev/full"]) == 2
    captured = capfd.readouterr()
    assert "cannot write /dev/full" in captured.err
    assert ("loss_nats_per_token" if command == "evaluate" else "\n") in captured.out


def test_an_ablation_of_the_model_is_evaluated_beside_it(run, tmp_path, monkeypatch):
    """The weights of two heads fit one head, whose attention is another."""
    entry = MODELS["transformer"]._replace(ablations={"one_head": {"heads": 1}})
    monkeypatch.setitem(MODELS, "transformer", entry)
    found = _evaluate(run, tmp_path / "e.json")
    assert abs(found["one_head_loss_nats_per_token"] - found["loss_nats_per_token"]) > 1e-6


@pytest.mark.slow
def test_blocks_are_replaced_by_linear_maps_beside_skipping_them(run, tmp_path, capsys):
    """The model has one block, which a map predicts on the text that it was fitted on."""
    out = tmp_path / "e.json"
    flags = ["--koopman", "--split", "train", "--windows", "8"]
    assert main(["evaluate", "--run", str(run), "--out", str(out), *flags]) == 0
    found = json.loads(out.read_text())
    table, cost = found["koopman"], found["koopman"]["flops_per_token"]
    assert table["untouched"] == found["loss_nats_per_token"]
    (row,) = table["spans"]
    assert row["blocks"] == [0]
    assert 0 < row["explained_affine"] <= row["explained_delay"] <= 1
    lost = {name: abs(row[name] - table["untouched"]) for name in ("identity", "affine", "delay")}
    assert max(lost["affine"], lost["delay"]) < lost["identity"] / 2
    assert cost["delay"] == 4 * cost["affine"] < 4 * cost["block"]
    shown = capsys.readouterr().out
    assert f"{row['one_operator']:.4f}" in shown
    assert f"a block {cost['block']:,.0f}" in shown


def test_a_model_without_one_stream_has_no_table(counted, refused, tmp_path):
    flags = ["--run", counted, "--koopman"]
    pieces = ("--koopman: the blocks of transformer", "another model")
    refused(tmp_path / "e.json", flags, *pieces, command="evaluate")
