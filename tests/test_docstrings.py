"""The examples of the docstrings run, what they call is a program for CUDA, and public functions
explain their arguments.

Examples run as a reader would type them: in JAX's default configuration (float32, standard
promotion), not in the strict one of the other tests. A call from arrays to arrays runs as
one program, which is the same, and compiled in a third of the time.
"""

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import jax
import pytest
from helpers.lowering import Recorder, complaints, public_functions

import vfejax

PACKAGE = Path(vfejax.__file__).parent
MODULES = {
    ".".join(("vfejax", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
}
CENTRAL = re.compile(
    r"vfejax\.((geometry|beliefs|attention|dynamics|energy|agents|inference|problems|spectral|quantum)\..*"
    r"|(koopman|routing|compression|training)\..*|numerics\..*|models\.sampling)"
)
EFFECTS = ("vfejax.data.", "vfejax.figures.", "vfejax.runs.", "vfejax.cli.")  # on the host
MANY = 3  # from so many arguments on, a function, a method or a constructor has an Args section
Definition = TypeVar("Definition", ast.FunctionDef, ast.ClassDef)


def _functions(node: ast.Module | ast.ClassDef) -> list[ast.FunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef)]


def _public(nodes: Iterable[Definition]) -> list[Definition]:
    return [node for node in nodes if not node.name.startswith("_")]


def _arguments(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named]


def _method_arguments(method: ast.FunctionDef) -> list[str]:
    """Those that a caller gives: not the object or the class."""
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in method.decorator_list)
    return _arguments(method)[0 if is_static else 1 :]


def _section(docstring: str, title: str) -> str:
    """The text of one section of a docstring, up to the next title or the end."""
    found = re.search(rf"^{title}:$\n(.*?)(?=^\w[\w ]*:|\Z)", docstring, re.DOTALL | re.MULTILINE)
    return found.group(1) if found else ""


def _unexplained(name: str, arguments: list[str], *docstrings: str) -> list[str]:
    """Arguments that no Args section of the docstrings names, in words; fewer than MANY need
    none.
    """
    if len(arguments) < MANY:
        return []
    section = "".join(_section(docstring, "Args") for docstring in docstrings)
    if not section:
        return [f"{name} has no Args section"]
    return [
        f"Args of {name} do not name {argument}"
        for argument in arguments
        if not re.search(rf"\b{argument}\b", section)
    ]


def _problems_of_class(node: ast.ClassDef) -> list[str]:
    """What the docstrings of a class lack: of its constructor, its call and its public methods.

    The docstring of the class may explain the constructor, or the call where there is no
    constructor.
    """
    own, methods = ast.get_docstring(node) or "", {f.name: f for f in _functions(node)}
    explained = "__init__" if "__init__" in methods else "__call__"
    missing = []
    for name, method in methods.items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        docstrings = [ast.get_docstring(method) or "", *([own] if name == explained else [])]
        title = node.name if name == "__init__" else f"{node.name}.{name}"
        missing += _unexplained(title, _method_arguments(method), *docstrings)
    return missing


def problems(source: str, central: bool) -> list[str]:
    """What the docstrings of a module lack, in words; empty when it is complete."""
    tree, missing = ast.parse(source), []
    for function in _public(_functions(tree)):
        docstring = ast.get_docstring(function) or ""
        if central and ">>>" not in docstring:
            missing.append(f"{function.name} has no example")
        missing += _unexplained(function.name, _arguments(function), docstring)
    for node in _public(child for child in tree.body if isinstance(child, ast.ClassDef)):
        missing += _problems_of_class(node)
    return missing


def _examples(module: object) -> list[doctest.DocTest]:
    """Examples of a module, of functions with custom derivatives too."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(module, module.__name__) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_explained(name):
    assert problems(MODULES[name].read_text(), bool(CENTRAL.fullmatch(name))) == []


@pytest.mark.slow  # a minute and a half of compilation, of functions that have tests of their own
@pytest.mark.parametrize(
    "name", [name for name, path in MODULES.items() if ">>>" in path.read_text()]
)
def test_examples_run_and_what_they_call_is_a_program_for_cuda(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    tests = _examples(module)
    # An example that doctest cannot find would never fail.
    assert sum(len(test.examples) for test in tests) == _prompts(module)
    report: list[str] = []
    recorder = Recorder()
    functions = public_functions(module).items()
    recorded = {name: recorder.wrap(name, function) for name, function in functions}
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        for test in tests:
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            if not name.startswith(EFFECTS):
                test.globs |= recorded
            runner.run(test, out=report.append, clear_globs=False)
        assert "".join(report) == ""
        assert complaints(module, recorder, complete=bool(CENTRAL.fullmatch(name))) == {}


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
        ("class C:\n def f(self, a, b, c): 0", True, ["C.f has no Args section"]),
        ("class C:\n def f(self, a, b): 0", True, []),
        ("class C:\n def _f(self, a, b, c): 0", True, []),
        ("class C:\n def __exit__(self, a, b, c): 0", True, []),
        ("class _C:\n def f(self, a, b, c): 0", True, []),
        ("class C:\n @staticmethod\n def f(a, b, c): 0", False, ["C.f has no Args section"]),
        ("class C:\n def __init__(self, a, *, dtype, rngs): 0", False, ["C has no Args section"]),
        (
            "class C:\n '''A sum.\n\n Args:\n  a: Term.\n  dtype: Its dtype.\n '''\n"
            " def __init__(self, a, *, dtype, rngs): 0\n def __call__(self, a, dtype, key): 0",
            False,
            ["Args of C do not name rngs", "C.__call__ has no Args section"],
        ),
        (
            "class C:\n '''A sum.\n\n Args:\n  a, b, c: Terms.\n '''\n"
            " def __call__(self, a, b, c): 0",
            False,
            [],
        ),
        (
            "class C:\n 'A sum.'\n def __init__(self, a, b, c):\n  '''Take terms.\n\n"
            "  Args:\n   a, b, c: Terms.\n  '''",
            False,
            [],
        ),
    ],
)
def test_checker_reports_what_is_missing(source, central, expected):
    assert problems(source, central) == expected
