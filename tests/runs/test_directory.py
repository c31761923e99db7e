import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vfejax.errors import UserError
from vfejax.runs import directory as run_directory
from vfejax.runs.metrics import append_metrics, read_metrics

CONFIG = {"seed": 3, "steps": 10, "dynamics": {"step_size": 0.1, "mass": None}, "irreps": (1, 1, 1)}
COLUMNS = ("step", "total")


def python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


@pytest.fixture
def run(tmp_path):
    with run_directory.create(tmp_path / "run", CONFIG) as run:
        yield run


def test_create_writes_a_config_that_reads_back(run):
    expected = {"seed": 3, "steps": 10, "dynamics": {"step_size": 0.1}, "irreps": [1, 1, 1]}
    assert run_directory.read_config(run) == expected
    assert (run.path / "checkpoints").is_dir()


def test_config_values_survive_exactly(run):
    config = {
        "path": Path("a/b"),
        "tiny": 5e-324,
        "third": 1 / 3,
        "negative_zero": -0.0,
        "infinite": float("inf"),
        "flag": True,
        "text": 'é "quoted"\n',
        "numpy": np.float32(0.1),
        "count": np.int64(7),
        "nested": {"empty": {}, "list": [[1, 2], [3.5]]},
    }
    run_directory.write_config(run, config)
    expected = {**config, "path": "a/b", "numpy": float(np.float32(0.1)), "count": 7}
    read = run_directory.read_config(run)
    assert read == expected
    assert np.signbit(read["negative_zero"])


@pytest.mark.parametrize(
    ("value", "name"), [(object(), "config.a.b"), ([1, None], r"config.a.b\[1\]")]
)
def test_setting_without_toml_type_is_refused_by_name(tmp_path, value, name):
    with pytest.raises(TypeError, match=name):
        run_directory.create(tmp_path / "run", {"a": {"b": value}})
    assert not (tmp_path / "run").exists()


def test_environment_tells_versions_device_and_seed(run):
    import jax

    found = json.loads((run.path / "environment.json").read_text())
    assert found["jax"] == jax.__version__
    assert found["numpy"] == np.__version__
    assert found["device_platform"] == jax.devices()[0].platform
    assert found["device_kind"] == jax.devices()[0].device_kind
    assert found["seed"] == 3
    assert {"python", "vfejax", "jaxlib"} <= set(found)


def test_environment_does_without_git_and_seed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = run_directory.environment({})
    assert "git_revision" not in found
    assert "seed" not in found


def test_git_revision_is_a_commit_of_the_sources(monkeypatch):
    answers = {"ls-files": "__init__.py\n", "status": " M a.py\n", "rev-parse": "01234567\n"}

    def git(command, **options):
        assert command[3] == "--no-optional-locks"  # it writes nothing into the repository
        return subprocess.CompletedProcess(command, 0, answers[command[4]], "")

    monkeypatch.setattr(subprocess, "run", git)
    assert run_directory.environment({})["git_revision"] == "01234567-dirty"
    answers["status"] = ""
    assert run_directory.environment({})["git_revision"] == "01234567"


def test_empty_directory_is_used(tmp_path):
    run_directory.create(tmp_path, CONFIG).close()
    assert (tmp_path / "config.toml").exists()


def test_existing_run_is_not_overwritten_and_no_message_advises_it(run):
    run.close()
    before = sorted(os.listdir(run.path))
    with pytest.raises(UserError, match=r"run already holds a run; .*--resume.*--out$") as caught:
        run_directory.create(run.path, {"seed": 4})
    assert "--overwrite" not in str(caught.value)
    assert sorted(os.listdir(run.path)) == before
    assert run_directory.read_config(run)["seed"] == 3


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(run):
    for name in ("trajectory.npy", "figures/a.png", "tables/b/c.csv"):
        run.file(name).write_text("old")
    (run.path / "figures" / ".a.png.12.tmp").write_text("left by a kill")
    (run.path / "checkpoints" / "00000001").mkdir()
    mine = ["mine.npz", ".notes.tmp", "lock", "figures/mine.svg", "checkpoints/mine.txt"]
    for name in mine:
        (run.path / name).write_text("keep")
    run.close()
    with run_directory.create(run.path, {"seed": 4}, overwrite=True):
        left = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*")}
        own = {".vfejax", ".vfejax/lock", ".vfejax/files", "config.toml", "environment.json"}
        assert left == {*own, *mine, "figures", "checkpoints"}
        assert all((run.path / name).read_text() == "keep" for name in mine)
        assert run_directory.read_config(run) == {"seed": 4}


def test_overwrite_follows_no_link(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("keep")
    (tmp_path / "elsewhere" / "00000001").mkdir()
    run.file("report.html")
    (run.path / "report.html").symlink_to(tmp_path / "elsewhere" / "a")
    (run.path / "checkpoints").rmdir()
    (run.path / "checkpoints").symlink_to(tmp_path / "elsewhere")
    run.close()
    run_directory.create(run.path, CONFIG, overwrite=True).close()
    assert (tmp_path / "elsewhere" / "a").read_text() == "keep"
    assert (tmp_path / "elsewhere" / "00000001").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["config.toml", "thesis.tex", "lock", ".notes.tmp"])
def test_directory_of_somebody_else_is_never_touched(tmp_path, name, overwrite):
    (tmp_path / name).write_text("a = 1\n")
    with pytest.raises(UserError, match=r"is not empty and holds no run, .*--out$"):
        run_directory.create(tmp_path, CONFIG, overwrite=overwrite)
    assert os.listdir(tmp_path) == [name]


def test_file_in_the_way(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(UserError, match=r"a is not a directory"):
        run_directory.create(tmp_path / "a", CONFIG)
    with pytest.raises(UserError, match=r"cannot write .*a/b: "):
        run_directory.create(tmp_path / "a" / "b", CONFIG)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no run"),
        ("a = \nb = 1\n", "config.toml is not valid TOML: .*line 1"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_unusable_run_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        run_directory.open_existing(tmp_path)
    assert not (tmp_path / "lock").exists()


def test_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a directory"):
        run_directory.open_existing(tmp_path / "nowhere")


HOLD = """
import sys, time
from vfejax.runs import directory as run_directory
run = run_directory.open_existing(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


@pytest.mark.slow  # the next test holds the lock within one process
def test_second_process_is_told_and_a_killed_one_leaves_no_lock(run):
    code = (
        "import sys; from vfejax.runs import directory as r\n"
        "try: r.open_existing(sys.argv[1])\nexcept Exception as e: print(type(e).__name__, e)"
    )
    answer = python(code, run.path)
    assert answer.stdout.startswith("UserError ")
    assert f"is in use by another process (pid {os.getpid()})" in answer.stdout
    run.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=rf"in use by another process \(pid {holder.pid}\)"):
                run_directory.open_existing(run.path)
            with pytest.raises(UserError, match="in use"):
                run_directory.create(run.path, CONFIG, overwrite=True)
        finally:
            holder.send_signal(signal.SIGKILL)
    with run_directory.open_existing(run.path) as again:
        assert again.path == run.path


def test_lock_holds_within_one_process_and_closing_twice_is_harmless(run):
    with pytest.raises(UserError, match="in use"):
        run_directory.open_existing(run.path)
    run.close()
    run.close()
    run_directory.open_existing(run.path).close()


FULL_DISK = """
import resource, sys
from vfejax.runs import directory as r
from vfejax.runs.metrics import append_metrics
with r.create(sys.argv[1], {"seed": 1}) as run:
    append_metrics(run, ("step", "total"), [(i, i / 3) for i in range(100)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    for act in (
        lambda: append_metrics(run, ("step", "total"), [(i, i / 3) for i in range(100, 300)]),
        lambda: r.atomic_write(run.path / "report.html", "x" * 5000),
    ):
        try:
            act()
        except Exception as error:
            print(type(error).__name__, error)
"""


def test_full_disk_is_one_line_and_keeps_what_was_written(tmp_path):
    answer = python(FULL_DISK, tmp_path / "run")
    assert answer.stderr == ""
    lines = answer.stdout.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("metrics.csv", "report.html"), strict=True):
        assert line.startswith(
            f"UserError cannot write {tmp_path}/run/{name}: File too large; free some space"
        )
    assert read_metrics(tmp_path / "run")["step"].shape == (100,)
    assert (tmp_path / "run" / "metrics.csv").read_text().endswith("\n")
    assert not (tmp_path / "run" / "report.html").exists()


class _Killed(BaseException):
    """The process died: from then on nothing it asks of the file system happens."""


def _killed_after(num_calls, patch):
    """Let this many calls that change the file system through, and no more."""
    left = [num_calls]

    def limited(true):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise _Killed
            return true(*arguments, **options)

        return call

    for name in ("mkdir", "open", "replace", "unlink", "rename", "rmdir"):
        patch.setattr(os, name, limited(getattr(os, name)))
    patch.setattr("builtins.open", limited(open))
    return left


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_any_moment_of_creation_leaves_what_every_command_accepts(
    overwrite, tmp_path, monkeypatch
):
    surroundings = {"jax": "1"}  # asking for them takes long, and writes nothing
    monkeypatch.setattr(run_directory, "environment", lambda config: surroundings)
    path = tmp_path / "run"
    for num_calls in range(1000):
        shutil.rmtree(path, ignore_errors=True)
        if overwrite:
            with run_directory.create(path, {"seed": 1}) as run:
                for name in ("figures/a.png", "report.html"):
                    run.file(name).write_text("old")
                append_metrics(run, COLUMNS, [(0, 1.0)])
            (path / "figures" / "mine.svg").write_text("mine")
        with pytest.MonkeyPatch.context() as patch:
            left = _killed_after(num_calls, patch)
            with contextlib.suppress(_Killed):
                run_directory.create(path, {"seed": 2}, overwrite=overwrite).close()
        if left[0] >= 0:
            break
        if (path / "config.toml").exists():
            seed = run_directory.read_config(path)["seed"]
            assert seed == (1 if overwrite and seed == 1 else 2)
            run_directory.open_existing(path).close()
        else:
            assert not overwrite
            run_directory.create(path, {"seed": 3}).close()  # as though nothing had happened
        with run_directory.create(path, {"seed": 4}, overwrite=True):
            assert run_directory.read_config(path) == {"seed": 4}
            assert not (path / "report.html").exists()
            assert (path / "figures" / "mine.svg").exists() == overwrite
            assert not [name for name in os.listdir(path) if name.endswith(".tmp")]
    assert 10 < num_calls < 900


def test_a_run_of_the_first_version_is_read_continued_and_replaced(tmp_path):
    for name in ("config.toml", "metrics.csv", "report.html", "figures/loss.png", "figures/my.svg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("seed = 1\n")
    (tmp_path / "lock").write_text("123\n")
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    run_directory.open_existing(tmp_path).close()
    with pytest.raises(UserError, match="already holds a run"):
        run_directory.create(tmp_path, CONFIG)
    run_directory.create(tmp_path, CONFIG, overwrite=True).close()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    own = {".vfejax", ".vfejax/lock", ".vfejax/files", "config.toml", "environment.json"}
    assert left == {*own, "checkpoints", "figures", "figures/my.svg"}


@pytest.mark.parametrize("content", ["notes\n", None], ids=["file", "link"])
def test_a_lock_of_somebody_else_is_never_written(content, tmp_path):
    target = tmp_path / "target"
    target.write_text("mine")
    path = tmp_path / "run"
    path.mkdir()
    if content is None:
        (path / "lock").symlink_to(target)
    else:
        (path / "lock").write_text(content)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds no run, so nothing there is touched"):
            run_directory.create(path, CONFIG, overwrite=overwrite)
    (path / "config.toml").write_text("a = 1\n")
    with pytest.raises(UserError, match="holds no run, so nothing there is touched"):
        run_directory.create(path, CONFIG, overwrite=True)
    assert (path / "lock").read_text() == (content or "mine")
    # Our own lock follows no link either.
    (path / ".vfejax").mkdir()
    (path / ".vfejax" / "lock").symlink_to(target)
    with pytest.raises(UserError, match=r"cannot write .*\.vfejax/lock"):
        run_directory.open_existing(path)
    assert target.read_text() == "mine"


def test_a_directory_that_may_not_be_entered_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(run_directory.os, "listdir", refuse)
    with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
        run_directory.read_config(tmp_path)


def test_a_setting_that_is_no_text_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match=r"UTF-8"):
        run_directory.create(tmp_path / "run", {"text": os.fsdecode(b"caf\xe9.txt")})
    assert not (tmp_path / "run").exists()


def test_required_columns_are_named(run):
    append_metrics(run, COLUMNS, [(1, 2.0)])
    read_metrics(run, required=COLUMNS)
    with pytest.raises(UserError, match=r"metrics.csv has no column loss, valid_loss"):
        read_metrics(run, required=("step", "loss", "valid_loss"))


def test_a_renewed_environment_keeps_the_earlier_one_when_it_differs(run):
    path = run.path / "environment.json"
    run_directory.renew_environment(run, {"seed": 3}, 10)
    assert "earlier" not in json.loads(path.read_text())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"jax": "0.0.1"}))
    run_directory.renew_environment(run, {"seed": 3}, 20)
    found = json.loads(path.read_text())
    assert found["resumed_from_step"] == 20
    assert [entry["jax"] for entry in found["earlier"]] == ["0.0.1"]
    for damaged in ("[]", "{", "[" * 100_000):
        path.write_text(damaged)
        run_directory.renew_environment(run, {"seed": 3}, 30)
        assert json.loads(path.read_text())["seed"] == 3
