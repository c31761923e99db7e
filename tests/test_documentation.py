"""Links between the pages of the repository lead somewhere, and nothing is left out."""

import importlib
import re
from pathlib import Path

import pytest

import vfejax

ROOT = Path(__file__).parents[1]
PACKAGE = Path(vfejax.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__"))
FOLDERS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as renderers of Markdown make them."""
    titles = re.findall(r"^#+ (.+)$", _without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = _without_code(page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if ":" in target:
            continue
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(place), f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_in_pages_exist(page):
    folders = "examples|notebooks|benchmarks|tests|docs|vfejax"
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_the_package_in_pages_exist(page):
    """But in the changelog, which has names of the past."""
    if page.name == "CHANGELOG.md":
        return
    folders = "|".join(folder.name for folder in FOLDERS)
    names = re.findall(rf"`(?:vfejax\.)?((?:{folders})(?:\.\w+)+)[`(]", page.read_text("utf-8"))
    assert [x for x in names if not x.endswith(".py") and not _found(f"vfejax.{x}")] == []


def test_readme_names_every_folder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [folder.name for folder in FOLDERS if not re.search(rf"\b{folder.name}\b", readme)] == []


def test_architecture_names_every_module():
    """But those of a model or a command, whose folder is enough to add one."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    parts = re.split(r"^## `(\w+)/`", text, flags=re.MULTILINE)
    sections = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    missing = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES
        if path.relative_to(PACKAGE).parts[:-2] not in (("models",), ("cli",))
        and not _names(sections.get(_folder(path), ""), path.relative_to(PACKAGE / _folder(path)))
    ]
    assert missing == []
    for folder, section in sections.items():
        for name in re.findall(r"^- `([\w/]+\.py)`", section, re.MULTILINE):
            assert (PACKAGE / folder / name).exists(), f"{folder}: {name}"


def _folder(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def _names(section: str, place: Path) -> bool:
    return f"`{place.as_posix()}`" in section


def test_every_page_of_an_example_is_in_the_navigation():
    """The site is built strictly: a page that no entry leads to fails it."""
    entries = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*/*.md")}
    assert pages <= entries, sorted(pages - entries)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_references_in_docstrings_lead_somewhere(module):
    roles = r":(?:func|class|mod|meth|data|attr|obj|exc):`~?([^`]+)`"
    names = set(re.findall(roles, module.read_text(encoding="utf-8")))
    own = ".".join(("vfejax", *module.relative_to(PACKAGE).with_suffix("").parts))
    lost = [name for name in sorted(names) if not (_found(name) or _known(own, name))]
    assert lost == []


def _found(name: str) -> bool:
    """Whether a full name leads to a module or to what one holds."""
    parts = name.split(".")
    if parts[0] != "vfejax":
        return False
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        return _holds(found, parts[cut:])
    return False


def _known(module: str, name: str) -> bool:
    """Whether a module, or a class of it, knows a short name."""
    found = importlib.import_module(module)
    places = [found, *(item for item in vars(found).values() if isinstance(item, type))]
    return any(_holds(place, name.split(".")) for place in places)


def _holds(place: object, path: list[str]) -> bool:
    for name in path:
        annotations = getattr(place, "__annotations__", {})
        if not hasattr(place, name) and name not in annotations:
            return False
        place = getattr(place, name, None)
    return True


def test_citation_and_package_have_one_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {vfejax.__version__}\n" in citation
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == vfejax.__version__
