"""What turns the repository into documentation pages: a hook of mkdocs and an extension of griffe.

The front page is README.md. Every module has a page from its docstrings, and the pages of the API
are listed by folder. Links between files of the repository become links between pages.
"""

import ast
import dataclasses
import inspect
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from vfejax.models.table import MODELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
COPIED = (
    "LICENSE",
    "CITATION.cff",
    "examples/*.py",
    "examples/*/*.py",
    "examples/*/*.md",
    "deploy/*",
    "benchmarks/*.py",
    "notebooks/*.ipynb",
)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
ROLE = re.compile(r":(?:func|class|mod|meth|data|attr|obj|exc):`(~?)([\w.]+)`")


def modules() -> dict[str, Path]:
    """Every module of the package by its path below the repository, packages by their folder."""
    found = {}
    for path in sorted((ROOT / "vfejax").rglob("*.py")):
        place = path.relative_to(ROOT)
        if path.stem == "__init__":
            if place.parent.name != "vfejax":
                found[place.parent.as_posix()] = path
        elif path.stem != "__main__":
            found[place.as_posix()] = path
    return found


def page_of(place: str) -> str:
    """The page of a module: ``vfejax/geometry/groups.py`` to ``api/geometry/groups.md``."""
    return (
        "api/"
        + place.removeprefix("vfejax/").removesuffix(".py")
        + (".md" if place.endswith(".py") else "/index.md")
    )


def site_place(place: str) -> str:
    """Where a file of the repository stands among the pages."""
    if place in PAGES:
        return PAGES[place]
    if place.rstrip("/") in modules():
        return page_of(place.rstrip("/"))
    return place.removeprefix("docs/")


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    line = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", line)[0]


def _module_page(place: str) -> str:
    name = place.removesuffix(".py").replace("/", ".")
    text = f"::: {name}\n"
    if place.endswith(".py"):
        return text
    inside = [other for other in modules() if posixpath.dirname(other) == place]
    rows = [
        f"- [{posixpath.basename(other).removesuffix('.py')}]"
        f"({posixpath.relpath(page_of(other), posixpath.dirname(page_of(place)))}): "
        f"{first_sentence(modules()[other])}"
        for other in inside
    ]
    options = "    options:\n      members: []\n"
    return text + options + "\n" + "\n".join(rows) + "\n"


def _index() -> str:
    rows = [
        f"- [{place.removeprefix('vfejax/').removesuffix('.py')}]"
        f"({page_of(place).removeprefix('api/')}): {first_sentence(path)}"
        for place, path in modules().items()
        if place.count("/") == 1
    ]
    return "# API\n\nFolders and single modules of `vfejax`.\n\n" + "\n".join(rows) + "\n"


def _options(config: type) -> dict[str, str]:
    """The docstring of every option of a model, in one line, those that it inherits included."""
    found = {}
    for base in reversed(config.__mro__[:-1]):
        (described,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(described, ast.ClassDef)
        for field, text in zip(described.body, described.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def _models() -> str:
    """The table of models, with the options of each."""
    text = "# Models\n\nThe sequence models of `vfejax train --model NAME`, and their options.\n"
    for name, entry in MODELS.items():
        home = entry.build.__module__.replace(".", "/") + ".py"
        about = first_sentence(ROOT / home)
        text += f"\n## {name}\n\n{about} [Module]({page_of(home)}).\n\n"
        text += "| option | default | |\n| --- | --- | --- |\n"
        helps = _options(entry.config)
        for field in dataclasses.fields(entry.config):
            option = f"--{name}.{field.name.replace('_', '-')}"
            about = helps[field.name].replace("|", "\\|")
            text += f"| `{option}` | `{field.default}` | {about} |\n"
    return text


def _navigation(folder: str) -> list:
    """The entries of a folder: its own page, then its modules and folders by name."""
    entries: list = [page_of(folder) if folder != "vfejax" else "api/index.md"]
    for place in modules():
        if posixpath.dirname(place) == folder:
            name = posixpath.basename(place).removesuffix(".py")
            entries.append({name: page_of(place) if place.endswith(".py") else _navigation(place)})
    return entries


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the API to the navigation."""
    config.nav = [*config.nav, {"API": _navigation("vfejax")}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not stand in docs/: front page, pages of the API, examples and notebooks."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "models.md", content=_models()))
    files.append(File.generated(config, "api/index.md", content=_index()))
    for place in modules():
        files.append(File.generated(config, page_of(place), content=_module_page(place)))
    for pattern in COPIED:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    if here.startswith("api/"):
        return markdown
    own = here if (ROOT / here).exists() else f"docs/{here}"
    folder = posixpath.dirname(SOURCES.get(here, own))

    def link(match: re.Match) -> str:
        target, anchor = match.group(1), match.group(2) or ""
        if ":" in target:
            return match.group()
        place = site_place(posixpath.normpath(posixpath.join(folder, target)))
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + anchor

    return LINK.sub(link, markdown)


class Docstrings(griffe.Extension):
    """Turn ``:func:`name` `` into a link to the page of the name, and examples into code blocks."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is None:
            return

        def link(match: re.Match) -> str:
            short, name = match.groups()
            return f"[`{name.rsplit('.', 1)[-1] if short else name}`][{_absolute(obj, name)}]"

        obj.docstring.value = _fenced(ROLE.sub(link, obj.docstring.value))


def _fenced(docstring: str) -> str:
    """Code blocks around examples: ``>>>`` would be a quotation in Markdown."""
    lines: list[str] = []
    fence = None
    for line in [*docstring.splitlines(), ""]:
        if fence is None and line.lstrip().startswith(">>> "):
            fence = line[: len(line) - len(line.lstrip())] + "```"
            lines.append(fence + "pycon")
        elif fence is not None and not line.strip():
            lines.append(fence)
            fence = None
        lines.append(line)
    return "\n".join(lines).rstrip()


def _absolute(obj: griffe.Object, name: str) -> str:
    """The full name of ``name`` as the docstring of ``obj`` means it."""
    if name.startswith("vfejax."):
        return name
    places = [obj, obj.module] if obj.is_class else [obj.module]
    if obj.parent is not None and obj.parent.is_class:
        places.insert(0, obj.parent)
    first, *rest = name.split(".")
    for place in places:
        member = place.members.get(first)
        if member is not None:
            # What a module imports has its page where it is defined.
            home = member.target_path if member.is_alias else member.path
            return ".".join([home, *rest])
    return name
