"""``vfejax compress``: the file is what the student read, the teacher stays as it is, and a run
that was stopped makes the same file.
"""

import hashlib
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.tiny_run import TINY_TRAINING

from vfejax import runs
from vfejax.cli.compress import command
from vfejax.cli.compress import config as compress_config
from vfejax.cli.compress import report as compress_report
from vfejax.cli.main import main
from vfejax.runs import checkpoint, directory
from vfejax.runs.metrics import read_metrics
from vfejax.training import sharding

TEXT = "the cat sat on the mat\nthe dog sat on the log\n" * 30
EXPERTS = ["--model", "resnet-bk", "--resnet-bk.layers=2", "--resnet-bk.dim=16"]
EXPERTS += ["--resnet-bk.heads=2", "--resnet-bk.hidden=16"]
FLAGS = [
    *("--steps", "4", "--log-every", "2", "--checkpoint-every", "2", "--eval-every", "2"),
    *("--group", "8", "--calibration-windows", "8", "--quiet"),
]


def _train(folder, *flags):
    (folder / "text.txt").write_text(TEXT)
    data = ["--synthetic.kind", "none", "--text", str(folder / "text.txt"), "--quiet"]
    data += ["--sample-tokens", "0"]
    assert main(["train", "--out", str(folder / "run"), *TINY_TRAINING, *data, *flags]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, library_promotion):
    return _train(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory, library_promotion):
    """A teacher of two blocks, which have experts."""
    return _train(tmp_path_factory.mktemp("experts"), *EXPERTS)


@pytest.fixture(scope="module", autouse=True)
def same_process(library_promotion):
    """Files are evaluated in this process: a fresh one takes seconds, and has a test of its own;
    gives the true function.
    """

    def evaluated(config, file):
        out = file.with_suffix(".json")
        words = ["--out", str(out), "--quiet", "--overwrite", "--windows", "0"]
        assert main(["evaluate", "--run", str(file), *words]) == 0
        return json.loads(out.read_text())["loss_nats_per_token"]

    true = compress_report._afresh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress_report, "_afresh", evaluated)
        yield true


def _compress(teacher, out, *flags):
    assert main(["compress", "--run", str(teacher), "--out", str(out), *FLAGS, *flags]) == 0
    folder = out.with_suffix("") if out.suffix else out
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    place = tmp_path_factory.mktemp("compressed") / "small.safetensors"
    before = _contents(teacher)
    summary = _compress(teacher, place, "--hidden", "8")
    assert _contents(teacher) == before  # the teacher is not touched
    return place, summary


def _contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_stage_has_its_bytes_and_its_loss(made):
    place, summary = made
    stages = {stage["stage"]: stage for stage in summary["stages"]}
    assert list(stages) == [
        *("teacher", "pruned", "distilled", "rounded and packed", "file, read again")
    ]
    sizes = [stage["bytes"] for stage in stages.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == place.stat().st_size
    assert summary["bit_for_bit"]
    assert summary["weights"] < summary["teacher_weights"]
    for stage in stages.values():
        assert stage["ratio_to_float32"] == sizes[0] / stage["bytes"]
        assert stage["ratio_to_bfloat16"] < stage["ratio_to_float32"]
    last = stages["file, read again"]
    assert last["loss"] == runs.load(place).valid_loss != stages["distilled"]["loss"]


def test_the_run_beside_the_file_is_one_as_of_every_command(made):
    folder = made[0].with_suffix("")
    metrics = read_metrics(folder)
    assert metrics["step"].tolist() == [0, 2, 4]
    assert metrics["rounded"].tolist() == [0, 0, 1]
    assert np.isfinite(metrics["valid_loss"]).all()
    assert {path.name for path in (folder / "figures").iterdir()} == {"bytes.png", "loss.png"}
    assert "rounded and packed" in (folder / "report.html").read_text()
    assert runs.load(folder).config["bits"] == 4


def test_a_run_that_was_stopped_makes_the_same_file(teacher, made, tmp_path, refused):
    first = made[0]
    folder = shutil.copytree(first.with_suffix(""), tmp_path / "small")
    checkpoint.discard_after(folder, 2)
    again = tmp_path / "small.safetensors"
    beside = ["--beside", str(first.with_suffix(""))]
    assert main(["compress", "--out", str(again), "--resume", "--quiet", *beside]) == 0
    other = json.loads((folder / "summary.json").read_text())["beside"]
    assert other == [made[1]["stages"][-1] | {"stage": "beside, prune-first"}]
    assert main(["compress", "--out", str(again), "--resume", "--quiet"]) == 0  # replaces its own
    assert again.read_bytes() == first.read_bytes()
    again.write_text("a letter")
    refused(again, ["--resume"], "exists already", command="compress")
    losses = [read_metrics(place)["loss"].tolist() for place in (folder, first.with_suffix(""))]
    assert losses[0][1:] == losses[1][1:]


def test_the_file_is_evaluated_and_generates_like_a_run(made, tmp_path, capsys):
    place, summary = made
    assert main(["generate", "--run", str(place), "--tokens", "5", "--prompt", "the "]) == 0
    assert capsys.readouterr().out.startswith("the ")
    assert main(["evaluate", "--run", str(place), "--out", str(tmp_path / "e.json")]) == 0
    figures = json.loads((tmp_path / "e.json").read_text())
    assert figures["loss_nats_per_token"] == summary["stages"][-1]["loss"]
    assert figures["run"] == str(place)


@pytest.mark.parametrize(
    ("flags", "stages"),
    [
        (["--order", "quantise-first", "--merge"], ["teacher", "rounded", "pruned"]),
        (["--low-rank", "4", "--experts", "4", "--bits", "16"], ["teacher", "pruned"]),
        (["--sparsity", "0.5", "--bits", "3"], ["teacher", "pruned"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
@pytest.mark.slow
def test_without_updates_each_further_stage_makes_a_file(experts, tmp_path, flags, stages):
    summary = _compress(experts, tmp_path / "out", *flags, "--steps", "0")
    last = ["rounded and packed", "file, read again"]
    assert [stage["stage"] for stage in summary["stages"]] == [*stages, *last]
    assert summary["bit_for_bit"]
    assert summary["file"] == str(tmp_path / "out" / "model.safetensors")


@pytest.mark.slow
def test_a_block_becomes_an_operator_that_is_taught_and_kept(experts, tmp_path):
    summary = _compress(experts, tmp_path / "out", "--operators", "1", "--operator-rank", "4")
    assert summary["model"] == "koopman"
    stages = [stage["stage"] for stage in summary["stages"]]
    assert stages == ["teacher", "pruned", "distilled", "rounded and packed", "file, read again"]
    assert summary["bit_for_bit"]


@pytest.mark.slow
def test_what_a_teacher_with_experts_cannot_do_is_said_in_one_line(experts, tmp_path, refused):
    for flags, pieces in (
        (["--experts", "5"], ["--experts 5", "must be between 1 and 4"]),
        (["--low-rank", "100"], ["--low-rank 100", "no kernel becomes smaller"]),
        (
            ["--operators", "7", "--operator-rank", "4"],
            ["--operators (7,)", "numbers of blocks below"],
        ),
        (["--operators", "0", "--operator-rank", "99"], ["--operator-rank 99", "at most dim"]),
    ):
        refused(tmp_path / "out", [*FLAGS, "--run", experts, *flags], *pieces, command="compress")


@pytest.mark.slow
def test_a_fresh_student_of_another_kind_learns_and_is_read_in_a_fresh_process(
    teacher, tmp_path, monkeypatch, same_process
):
    monkeypatch.setattr(compress_report, "_afresh", same_process)
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.chdir(tmp_path)
    flags = ["--student", "transformer", "--dim", "8", "--heads", "2", "--hidden", "8"]
    summary = _compress(teacher, tmp_path / "out", *flags, "--layers", "1", "--steps", "2")
    assert summary["model"] == "transformer"
    assert [stage["stage"] for stage in summary["stages"]][1] == "distilled"


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        (["--bits", "9"], ["--bits 9", "one of 2, 3, 4, 5, 6, 7, 8, 16"]),
        (["--embedding-bits", "1"], ["--embedding-bits 1", "one of"]),
        (["--experts", "2"], ["--experts: transformer has no such option"]),
        (["--experts", "0"], ["--experts 0", "at least 1"]),
        (["--dim", "12"], ["--dim 12", "must be"]),
        (["--heads", "2"], ["--heads 2", "left out without --student"]),
        (["--hidden", "17"], ["--hidden 17", "must be"]),
        (["--student", "gpt-modern", "--experts", "2"], ["--experts: gpt-modern has no such"]),
        (["--student", "gpt-modern", "--dim", "30"], ["--student: dim must be a multiple"]),
        (["--student", "transformer", "--dim", "2000000000"], ["--student transformer", "weights"]),
        (["--student", "transformer", "--steps", "0"], ["--steps 0", "at least 1"]),
        (["--low-rank", "2", "--sparsity", "0.5"], ["--sparsity 0.5", "0 with --low-rank"]),
        (["--sparsity", "1"], ["--sparsity 1.0", "below 1"]),
        (["--operators", "0"], ["--operators: transformer has no such option"]),
        (["--merge"], ["--merge", "no experts of this transformer would go"]),
        (
            ["--student", "koopman", "--dim", "16", "--heads", "2"],
            ["--student koopman: has rank 32, which must be at most dim 16", "--dim"],
        ),
        (["--weight", "1.5"], ["--weight 1.5", "between 0 and 1"]),
        (["--temperature", "0"], ["--temperature 0.0", "positive"]),
        (["--order", "pack-first"], ["--order", "prune-first"]),
        (["--run", "absent"], ["absent", "not a directory"]),
        (["--beside", "absent"], ["absent", "not a directory"]),
        (["--file", "config.toml"], ["--file", "ends in .safetensors"]),
        (["--out", ".safetensors"], ["--out .safetensors", "a name with more than"]),
        (["--out", "x.safetensors", "--file", "y.safetensors"], ["--file", "left out when --out"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_said_in_one_line(teacher, tmp_path, refused, flags, pieces):
    flags = [*FLAGS, "--run", str(teacher), *flags]
    refused(tmp_path / "out", flags, *pieces, command="compress")
    assert not (tmp_path / "out").exists()


def test_what_is_no_finished_run_of_a_language_model_is_refused(teacher, made, tmp_path, refused):
    def expect(run, *pieces):
        refused(tmp_path / "out", [*FLAGS, "--run", str(run)], *pieces, command="compress")

    expect(made[0], "is a compressed model already")
    (tmp_path / "notes.txt").write_text("a letter")
    expect(tmp_path / "notes.txt", "not a directory")
    expect(made[0].with_suffix(""), "is a compression; give the run that it was made from")
    flags, command = [*FLAGS, "--run", str(teacher), "--beside"], {"command": "compress"}
    refused(tmp_path / "out", [*flags, str(teacher)], "is no finished run of vfejax", **command)
    other = made[0].with_suffix("")
    refused(tmp_path / "out", [*flags, str(other), "--final-windows", "9"], "windows", **command)
    inputs = (other / "inputs.json").read_text()
    (other / "inputs.json").write_text(inputs.replace('"sha256": "', '"sha256": "0'))
    refused(tmp_path / "out", [*flags, str(other)], "another teacher", **command)
    (other / "inputs.json").write_text(inputs)
    directory.create(tmp_path / "agents", {"agents": 4}).close()
    expect(tmp_path / "agents", "holds no trained model")
    copy = shutil.copytree(teacher, tmp_path / "copy")
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace("steps = 8", "steps = 12"))
    expect(copy, "has not ended", "--resume")
    (copy / "config.toml").write_text(text)
    (teacher.parent / "text.txt").write_text(TEXT + "more")
    expect(copy, "changed since")
    (teacher.parent / "text.txt").write_text(TEXT)
    shutil.rmtree(copy / "best")
    expect(copy, "holds no weights yet")


@pytest.mark.parametrize("name", ["run", "run.safetensors"])
def test_the_teacher_is_never_replaced(teacher, tmp_path, refused, name):
    copy = shutil.copytree(teacher, tmp_path / "run")
    before = _contents(copy)
    flags = [*FLAGS, "--run", str(copy), "--overwrite"]
    refused(tmp_path / name, flags, "is the run directory of the teacher", command="compress")
    assert _contents(copy) == before


def test_a_file_may_be_named_in_the_configuration(tmp_path):
    (tmp_path / "c.toml").write_text(f'out = "{tmp_path}/x.safetensors"\nbits = 3\n')
    config = compress_config.parse(["--config", str(tmp_path / "c.toml")])
    assert (config.out, config.file) == (tmp_path / "x", tmp_path / "x.safetensors")
    assert config.bits == 3
    config = compress_config.parse(["--out", str(tmp_path / "runs")])
    assert config.file == tmp_path / "runs" / "model.safetensors"


def test_a_file_that_exists_is_kept(teacher, tmp_path, refused):
    place = tmp_path / "mine.safetensors"
    place.write_text("a letter")
    flags = [*FLAGS, "--run", str(teacher)]
    refused(place, flags, "exists already", "--overwrite", command="compress")
    assert place.read_text() == "a letter"
    refused(tmp_path / "no" / "x.safetensors", flags, "there is no folder", command="compress")


def test_updates_see_the_devices_that_share_a_batch():
    def step(state, windows):
        return state, jax.sharding.get_abstract_mesh().axis_names == ("data",)

    teacher = SimpleNamespace(
        config=SimpleNamespace(length=4),
        corpus=SimpleNamespace(train=SimpleNamespace(tokens=np.zeros(20, np.int32))),
        valid_windows=lambda limit: None,
    )
    task = SimpleNamespace(
        config=compress_config.CompressConfig(),
        teacher=teacher,
        batch_size=4,
        mesh=sharding.data_mesh(4, jax.devices()[:1]),
        trainer=SimpleNamespace(step=step),
    )
    assert command._program(task).step(None, None)[1]
