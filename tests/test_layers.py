"""Direction of the architecture, read from the source with ``ast``: imports go one way, effects
stay at the border.
"""

import ast
from pathlib import Path, PurePosixPath

import pytest

import vfejax

PACKAGE = Path(vfejax.__file__).parent
FILES = sorted(
    PurePosixPath(path.relative_to(PACKAGE).as_posix()) for path in PACKAGE.rglob("*.py")
)

ORDER = (
    {"types", "numerics", "stack_product", "lanes", "devices", "rings", "errors"},
    {"geometry"},
    {"spectral", "koopman"},
    {"quantum"},
    {"beliefs"},
    {"attention"},
    {"dynamics"},
    {"energy"},
    {"agents"},
    {"inference"},
    {"problems"},
    {"routing", "compression"},
    {"models"},
    {"training"},
    {"data"},
    {"figures"},
    {"runs"},
    {"cli", "__main__"},
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
STRANGERS = {"dynamics", "agents", "energy", "inference"}

BORDER = {"data", "figures", "runs", "cli", "__main__"}
HOME = {
    "flax": {"models"},
    "gymnasium": {"problems"},
    "mctx": {"inference"},
    **dict.fromkeys(("matplotlib", "rich", "orbax", "tyro", "time", "datetime"), BORDER),
}
# A pretrained model is its directory, so `models.phi.load(directory)` belongs to the model. One
# module reads and writes it through `data`, which knows no model, and calls no effect itself.
EXEMPT = {"models/phi/directory.py": {"data"}}
EFFECTS = {
    *("open", "print", "read_text", "read_bytes", "write_text", "write_bytes"),
    *("savez", "savez_compressed", "savetxt", "loadtxt", "genfromtxt"),
}


def _unit(path: PurePosixPath) -> str:
    """The folder of a file, or its stem at the top of the package."""
    return path.parts[0] if len(path.parts) > 1 else path.stem


def _for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _imported(source: str, path: PurePosixPath) -> list[str]:
    """Dotted names of everything a file imports, relative imports resolved, in functions and
    conditions too.
    """
    names = []
    tree = ast.parse(source)
    # What only a type checker reads is no import: the package's front door names its folders so.
    tree.body = [node for node in tree.body if not _for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ("vfejax", *path.parts[:-1])
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = [*base, *([node.module] if node.module else [])]
            names += [".".join([*prefix, alias.name]) for alias in node.names]
    return names


def _called(source: str) -> list[str]:
    """Last names of everything a file calls: ``print`` for both ``print(x)`` and
    ``jax.debug.print(x)``.
    """
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f.id if isinstance(f, ast.Name) else f.attr
        for f in calls
        if isinstance(f, ast.Name | ast.Attribute)
    ]


def _internal_problem(unit: str, target: str) -> str | None:
    if target == unit or (target.startswith("__") and target != "__main__"):
        return None
    if target not in RANK:
        return f"{target} has no place in the order"
    if unit not in RANK:
        return f"{unit} imports {target} but has no place in the order"
    if {unit, target} <= STRANGERS:
        return f"{unit} and {target} must not know each other"
    if RANK[target] > RANK[unit]:
        return f"{unit} imports {target}, which stands after it"
    return None


def _private_problem(path: PurePosixPath, parts: list[str]) -> str | None:
    """What begins with ``_`` is known to its own folder, and to the folders in it."""
    private = [name.startswith("_") and not name.startswith("__") for name in parts]
    owner = tuple(parts[1 : private.index(True)]) if any(private) else ()
    if path.parts[: len(owner)] == owner:
        return None
    return f"{path} imports {'.'.join(parts)}, which is private to {'/'.join(owner)}"


def violations(source: str, path: PurePosixPath) -> list[str]:
    """What a file does against the architecture, in words; empty when it is in order."""
    unit, allowed = _unit(path), EXEMPT.get(path.as_posix(), set())
    found = []
    for parts in (name.split(".") for name in _imported(source, path)):
        if parts[0] == "vfejax":
            if len(parts) == 1:
                found.append(f"{unit} imports the whole package")
            elif parts[1] not in allowed:
                found.append(_internal_problem(unit, parts[1]) or _private_problem(path, parts))
        elif unit not in HOME.get(parts[0], {unit}):
            found.append(f"{unit} imports {parts[0]}")
    if unit not in BORDER:
        found += [f"{unit} calls {name}()" for name in _called(source) if name in EFFECTS]
    return [problem for problem in found if problem is not None]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_file_keeps_to_its_layer(path):
    assert violations((PACKAGE / path).read_text(), path) == []


def test_every_part_of_the_package_has_a_place_in_the_order():
    assert {_unit(path) for path in FILES} - {"__init__"} <= set(RANK)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("geometry/groups.py", "import vfejax.beliefs.gaussian", "geometry imports beliefs"),
        ("geometry/groups.py", "from vfejax.beliefs import gaussian", "geometry imports beliefs"),
        ("geometry/groups.py", "from vfejax import numerics, beliefs", "geometry imports beliefs"),
        (
            "geometry/groups.py",
            "from ..beliefs.gaussian import Gaussian",
            "geometry imports beliefs",
        ),
        ("geometry/groups.py", "from .. import beliefs", "geometry imports beliefs"),
        (
            "geometry/groups.py",
            "def f():\n    from vfejax.cli import main\n    return main",
            "geometry imports cli",
        ),
        ("geometry/groups.py", "import vfejax", "whole package"),
        ("numerics/norms.py", "from vfejax.geometry import groups", "numerics imports geometry"),
        ("lanes.py", "from .geometry import groups", "lanes imports geometry"),
        ("__init__.py", "from vfejax.beliefs import gaussian", "__init__ imports beliefs"),
        (
            "agents/free_energy.py",
            "from vfejax.dynamics import hamiltonian",
            "must not know each other",
        ),
        (
            "dynamics/hamiltonian.py",
            "from vfejax.agents import population",
            "must not know each other",
        ),
        ("inference/elbo.py", "from vfejax.agents import population", "must not know each other"),
        ("inference/elbo.py", "from vfejax.dynamics import rollout", "must not know each other"),
        (
            "inference/trees.py",
            "from vfejax.inference.chains._discrete import forward",
            "private to inference/chains",
        ),
        ("inference/trees.py", "from vfejax.numerics.norms import _root", "private to numerics"),
        ("runs/report.py", "from vfejax.cli import main", "runs imports cli"),
        ("training/step.py", "from vfejax.novelty import thing", "novelty has no place"),
        (
            "novelty/thing.py",
            "from vfejax.types import Array",
            "novelty imports types but has no place",
        ),
        ("training/step.py", "from flax import nnx", "training imports flax"),
        ("agents/pairwise.py", "import flax.nnx as nnx", "agents imports flax"),
        ("models/phi/model.py", "from vfejax.data import tensors", "models imports data"),
        ("models/phi/directory.py", "from vfejax.runs import report", "models imports runs"),
        ("models/phi/directory.py", "open('x')", "models calls open()"),
        ("models/gpt/model.py", "import matplotlib.pyplot as plt", "models imports matplotlib"),
        ("training/step.py", "import orbax.checkpoint", "training imports orbax"),
        ("dynamics/rollout.py", "from rich.progress import Progress", "dynamics imports rich"),
        ("training/schedules.py", "import tyro", "training imports tyro"),
        ("dynamics/rollout.py", "import time", "dynamics imports time"),
        ("agents/pairwise.py", "print(1)", "agents calls print()"),
        ("agents/pairwise.py", "import jax\njax.debug.print('x')", "agents calls print()"),
        ("agents/pairwise.py", "with open('x') as f:\n    pass", "agents calls open()"),
        ("beliefs/gaussian.py", "import numpy as np\nnp.savez('x')", "beliefs calls savez()"),
    ],
)
def test_checker_reports_a_violation(path, source, expected):
    found = violations(source, PurePosixPath(path))
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lanes.py", "from vfejax.types import Array"),
        (
            "beliefs/coordinates.py",
            "from vfejax.beliefs.gaussian import Gaussian\nfrom . import gaussian",
        ),
        ("beliefs/coordinates.py", "from ..numerics import matvec\nfrom ..geometry import groups"),
        (
            "cli/main.py",
            "from vfejax import __version__\nfrom vfejax.agents import population\n"
            "print(__version__)",
        ),
        ("models/gpt/model.py", "from flax import nnx\nfrom vfejax import routing"),
        ("models/phi/directory.py", "from vfejax.data.tensors import read_tensors"),
        ("figures/energies.py", "import time\nimport matplotlib\nopen('x')"),
        ("cli/main.py", "import tyro, rich, orbax.checkpoint\nfrom vfejax.runs import report"),
        (
            "agents/pairwise.py",
            "import optax\nimport numpy as np\nfrom vfejax.beliefs import gaussian",
        ),
    ],
)
def test_checker_accepts_what_is_allowed(path, source):
    assert violations(source, PurePosixPath(path)) == []
