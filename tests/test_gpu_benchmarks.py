"""The script that runs all benchmarks on a GPU knows all of them, and goes on after one that fails
or takes too long.
"""

import ast
import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("gpu")


def test_every_benchmark_runs_or_is_left_out_with_a_reason(gpu):
    assert sorted([*gpu.BENCHMARKS, *gpu.LEFT_OUT]) == sorted(p.stem for p in FOLDER.glob("*.py"))
    assert all(gpu.LEFT_OUT.values())


def _missing(path: Path) -> list[str]:
    """Attributes of modules of the package that a script names and no module has."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    modules = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vfejax"):
            for name in node.names:
                try:
                    module = importlib.import_module(f"{node.module}.{name.name}")
                except ModuleNotFoundError:
                    continue
                modules[name.asname or name.name] = module
    return [
        ast.unparse(n)
        for n in nodes
        if isinstance(n, ast.Attribute)
        and isinstance(n.value, ast.Name)
        and n.value.id in modules.keys() - bound
        and not hasattr(modules[n.value.id], n.attr)
    ]


def test_benchmarks_name_only_what_modules_of_the_package_have():
    assert not [name for path in FOLDER.rglob("*.py") for name in _missing(path)]


def test_all_run_one_after_another_into_one_file(gpu, monkeypatch, tmp_path, capsys):
    programs = {
        "slow": "import time; print('begun', flush=True); time.sleep(60)",
        "wrong": "raise ValueError('no such device')",
        "right": "print(42)",
    }
    minutes = {"slow": 0.02, "wrong": 1.0, "right": 1.0}
    monkeypatch.setattr(gpu, "machine", lambda: ("cpu", "a small machine"))
    monkeypatch.setattr(
        gpu,
        "commands",
        lambda names, quick: {
            name: ([sys.executable, "-c", code], minutes[name]) for name, code in programs.items()
        },
    )
    out = tmp_path / "all.txt"
    assert gpu.main(["--out", str(out)]) == 2  # no GPU
    assert "no GPU" in capsys.readouterr().err
    assert not out.exists()
    assert gpu.main(["--out", str(out), "--quick"]) == 1
    text = out.read_text()
    assert text.startswith("a small machine")
    words = "begun", "ended after 0.02", "no such device", "failed with status 1", "42", "what ran"
    places = [text.index(word) for word in words]
    assert places == sorted(places)
    assert capsys.readouterr().out.count("\n") == 3


def test_whole_and_quick_runs_differ_in_their_arguments_alone(gpu):
    whole, quick = (gpu.commands([*gpu.BENCHMARKS, gpu.SUITE], x) for x in (False, True))
    assert list(whole) == [*gpu.BENCHMARKS, gpu.SUITE]
    assert set(quick) < set(whole)
    assert all(quick[name][0][1] == whole[name][0][1] for name in quick)
