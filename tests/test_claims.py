"""The page of claims and the script that measures them agree."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/claims.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def claims():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("claims")


def test_the_page_has_a_row_for_every_claim_in_order(claims):
    rows = [row.split(" | ") for row in claims.parts(PAGE)[1].values()]
    expected = [(c.claim, c.system, c.done, claims.command(c)) for c in claims.ROWS.values()]
    assert [(r[0].strip("| "), r[1], r[2], r[4].strip("`")) for r in rows] == expected
    verdicts = [row[5].rstrip(" |").partition(":")[0] for row in rows]
    assert set(verdicts) <= {"kept", "in part", "refuted", "cannot be tested here"}


def test_every_row_has_a_name_and_a_function_of_its_own(claims):
    rows = claims.table.ROWS
    assert len({row.name for row in rows}) == len({row.claim for row in rows}) == len(rows)
    for row in rows:
        module, _, name = row.function.partition(".")
        source = (ROOT / f"benchmarks/claim_rows/{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), row.function


def test_what_a_row_reads_on_the_page_of_results_is_there_once(claims):
    measure = importlib.import_module("claim_rows.measure")
    sources = [path.read_text() for path in (ROOT / "benchmarks/claim_rows").glob("*.py")]
    read = re.findall(r'published\("([^"]+)", "([^"]+)", "([^"]+)"\)', "".join(sources))
    assert read
    assert all(measure.published(page, heading, row) for page, heading, row in read)


def test_every_command_on_the_page_exists(claims):
    commands = re.findall(r"^ {4}(python .*?)(?: +#.*)?$|`(python [^`]*)`", PAGE, re.MULTILINE)
    assert len(commands) > len(claims.ROWS)
    for command in map("".join, commands):
        _, script, *arguments = command.split()
        source = (ROOT / script).read_text(encoding="utf-8")
        options = [x for x in arguments if x.startswith("--")]
        assert all(f'"{option}"' in source for option in options), command
        if "--rows" in arguments:
            names = arguments[arguments.index("--rows") + 1 :]
            names = names[: names.index("--write")] if "--write" in names else names
            assert set(names) <= {*claims.ROWS, "all"}, command


def test_writing_a_row_leaves_the_others_as_they_are(claims):
    name = next(iter(claims.ROWS))
    row = claims.line(claims.ROWS[name], claims.Found("1 time", "refuted"))
    page = claims.written(PAGE, {name: row})
    (before, rows, _), (same, changed, _) = claims.parts(PAGE), claims.parts(page)
    assert same == before
    assert changed == rows | {claims.ROWS[name].claim: row}
    assert claims.written(page, {name: row}) == page
