"""The study of free-energy language models: its arms have equal parameters, and a run that was
stopped goes on.
"""

import importlib
import json
import math
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


@pytest.mark.parametrize(
    ("losses", "tried", "chosen"),
    [
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.5, 8.0: 1.6}, [1, 2, 4, 8], 4),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 2.5}, [0.5, 1, 2], 1),
        ({1.0: 3.0, 2.0: 2.0}, [1, 2, 4], None),
        ({1.0: math.nan, 2.0: math.nan}, [1, 2], 1),
    ],
    ids=["upwards", "downwards", "still to be run", "all diverged"],
)
def test_a_grid_goes_on_outward_until_its_best_rate_is_inside(load, losses, tried, chosen):
    load("run")

    class Told(load("language_models").Plan):
        def rate_loss(self, arm, text, rate, results):
            return losses.get(rate)

    plan = Told([], [], range(1), [1.0, 2.0], range(1), 200, outward=True)
    assert list(plan.tried("arm", None, None)) == tried
    assert plan.rate("arm", None, None) == chosen
    assert list(plan._replace(outward=False).tried("arm", None, None)) == [1, 2]


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
    monkeypatch.setattr(run.benchmark, "BATCH", 2)
    monkeypatch.setattr(run.benchmark, "LENGTH", 16)
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
