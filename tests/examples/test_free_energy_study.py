"""The study of free-energy language models: its arms have equal parameters, and a run that was
stopped goes on.
"""

import importlib
import json
import sys
from pathlib import Path

import matplotlib.image
import pytest

from vfejax.models import table

FOLDER = Path(__file__).parents[2] / "examples" / "free_energy_study"
TINY = {"layers": 1, "dim": 8, "heads": 2, "hidden": 8}


@pytest.fixture(scope="module")
def load():
    """Import a file of the study by its name; the names are free again afterwards."""
    path = list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module
    sys.path[:] = path
    for name in [file.stem for file in FOLDER.glob("*.py")] + ["language_models"]:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_arms_have_equal_parameters(load):
    arms = load("arms")
    sizes = {}
    for name, arm in arms.ARMS.items():
        config = table.MODELS[arm.model].config(**arms.options_of(arm))
        sizes[name] = arms.count(arm.model, config)
    assert sizes.pop("no feed-forward") < 0.3 * arms.SMALL
    assert sizes["gpt-modern"] == arms.PARAMETERS
    for name, size in sizes.items():
        aim = arms.PARAMETERS if name in arms.MODELS else arms.SMALL
        assert abs(size - aim) < 0.005 * aim, name


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_a_run_that_was_stopped_goes_on_and_shows_all_arms(load, tmp_path, monkeypatch, capsys):
    run, arms = load("run"), load("arms")
    tiny = {
        "gpt-modern": arms.Arm("gpt-modern", TINY),
        "transformer": arms.Arm("transformer", TINY),
    }
    monkeypatch.setattr(run, "ARMS", tiny)
    monkeypatch.setattr(run, "ROUNDS", 1)
    text = tmp_path / "text"
    text.write_text("to be or not to be, that is the question. " * 60)
    out = tmp_path / "study"
    common = ["--text", f"words={text}", "--seeds", "2", "--steps", "200", "--out", str(out)]

    run.main([*common, "--arms", "gpt-modern"])
    lines = (out / "runs.jsonl").read_text().splitlines()
    assert len(lines) == 4 + 2
    tables = run.main([*common, "--arms", "gpt-modern", "transformer", "--lanes", "2"])
    rows = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [json.dumps(row) for row in rows[: len(lines)]] == lines
    assert [row["job"]["arm"] for row in rows[len(lines) :]] == ["transformer"] * 6
    final = [row["loss"] for row in rows if row["job"]["stage"] == "final"]
    assert len(final) == 4
    assert all(0 < loss < 4 for loss in final)
    assert "| transformer | " in tables
    assert (out / "models.md").read_text() == tables
    assert matplotlib.image.imread(out / "models.png").std() > 0

    assert run.main([*common, "--arms", "gpt-modern", "transformer", "--report"]) == tables
    timed = run.main([*common, "--arms", "gpt-modern", "transformer", "--pace"])
    assert timed.startswith(tables)
    assert "| gpt-modern | " in timed[len(tables) :]
    assert json.loads((out / "pace.json").read_text()).keys() == {"gpt-modern", "transformer"}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run.main([*common, "--steps", "100"])
    assert "--steps must be a positive multiple of 200, got 100" in capsys.readouterr().err
