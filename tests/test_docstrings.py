"""The examples of the docstrings run, and public functions explain their arguments.

Examples run as a reader would type them: in JAX's default configuration (float32, standard
promotion), not in the strict one of the other tests.
"""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest

import vfejax

PACKAGE = Path(vfejax.__file__).parent
MODULES = {
    ".".join(("vfejax", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}
CENTRAL = re.compile(
    r"vfejax\.((geometry|beliefs|attention|dynamics|agents|problems|spectral|quantum)\..*"
    r"|(routing|training)\..*|numerics|models\.sampling)"
)
MANY = 3  # from so many arguments on, a function has an Args section


def _public_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def _arguments(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named]


def _section(docstring: str, title: str) -> str:
    """The text of one section of a docstring, up to the next title or the end."""
    found = re.search(rf"^{title}:$\n(.*?)(?=^\w[\w ]*:|\Z)", docstring, re.DOTALL | re.MULTILINE)
    return found.group(1) if found else ""


def problems(source: str, central: bool) -> list[str]:
    """What the docstrings of a module lack, in words; empty when it is complete."""
    missing = []
    for function in _public_functions(ast.parse(source)):
        docstring, arguments = ast.get_docstring(function) or "", _arguments(function)
        if central and ">>>" not in docstring:
            missing.append(f"{function.name} has no example")
        if len(arguments) < MANY:
            continue
        section = _section(docstring, "Args")
        if not section:
            missing.append(f"{function.name} has no Args section")
        else:
            missing += [
                f"Args of {function.name} do not name {argument}"
                for argument in arguments
                if not re.search(rf"\b{argument}\b", section)
            ]
    return missing


def _examples(module: object) -> list[doctest.DocTest]:
    """Examples of a module, of functions with custom derivatives too."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(module, module.__name__) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_explained(name):
    assert problems(MODULES[name].read_text(), bool(CENTRAL.fullmatch(name))) == []


# Whole layers compile for seconds: their examples wait for the slow tests.
LAYERS = re.compile(r"vfejax\.models\.\w+\..*")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if LAYERS.fullmatch(name) else name
        for name, path in MODULES.items()
        if ">>>" in path.read_text()
    ],
)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    tests = _examples(module)
    # An example that doctest cannot find would never fail.
    assert sum(len(test.examples) for test in tests) == _prompts(module)
    report: list[str] = []
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for test in tests:
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            runner.run(test, out=report.append)
    assert "".join(report) == ""


def _prompts(module: object) -> int:
    """Number of examples in the docstrings of a module, read from its source."""
    tree = ast.parse(inspect.getsource(module))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    docstrings = [
        ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)
    ]
    return sum(len(re.findall(r"^\s*>>> ", text, re.MULTILINE)) for text in docstrings if text)


@pytest.mark.parametrize(
    ("source", "central", "expected"),
    [
        ("def f(a, b, c):\n    'A sum.'", False, ["f has no Args section"]),
        ("def f(a, b):\n    'A sum.'", False, []),
        ("def _f(a, b, c):\n    'A sum.'", True, []),
        ("def f(a):\n    'A sum.'", True, ["f has no example"]),
        ("def f(a):\n    '''A sum.\n\n    >>> f(1)\n    1\n    '''", True, []),
        (
            "def f(a, b, *, c):\n    '''A sum.\n\n    Args:\n        a, b: Terms.\n\n"
            "    Returns:\n        The sum c.\n    '''",
            False,
            ["Args of f do not name c"],
        ),
    ],
)
def test_checker_reports_what_is_missing(source, central, expected):
    assert problems(source, central) == expected
