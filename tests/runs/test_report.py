import base64
import html.parser
import re
import struct
from decimal import Decimal

import numpy as np
import pytest
from matplotlib.figure import Figure

from vfejax.errors import UserError
from vfejax.runs import directory as run_directory
from vfejax.runs.report import Picture, Report, figure_png, write_report

VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text in them, and a check that all are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    def text(self, name):
        return [data for tag, data in self.texts if tag == name]


@pytest.fixture(scope="module")
def png():
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    return figure_png(figure, dpi=100)


@pytest.fixture
def write(tmp_path):
    def build(**options):
        path = tmp_path / "report.html"
        write_report(path, **{"title": "Run", "summary_rows": [("energy", 1.5)], **options})
        return Page(path.read_text(encoding="utf-8"))

    return build


def test_figure_png_is_a_picture_of_that_size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (200, 100)


def test_same_figure_gives_the_same_bytes():
    def draw():
        figure = Figure(figsize=(1, 1))
        figure.add_subplot().plot([0, 1])
        return figure_png(figure)

    assert draw() == draw()
    assert b"atplotlib" not in draw()


def test_pictures_are_inline_with_title_and_caption(write, png):
    page = write(figures=[("Energy", "Falls.", png), ("Beliefs", "Meet.", png)])
    images = page.named("img")
    assert [image["alt"] for image in images] == ["Energy", "Beliefs"]
    for image in images:
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == png
    assert page.text("strong") == ["Energy", "Beliefs"]
    assert page.text("figcaption") == ["Falls.", "Meet."]


def test_page_is_complete_and_needs_nothing_else(write, png):
    page = write(figures=[("a", "b", png)], config={"seed": 1}, notes=["x"])
    assert page.open == []
    assert page.text("h2") == ["Summary", "Notes", "Figures", "Settings"]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert all(
        value.startswith("data:")
        for _, found in page.elements
        for name, value in found.items()
        if name in ("src", "href")
    )
    style = "".join(page.text("style"))
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style
    assert "@import" not in style
    assert re.search(r"figure \.sheet \{[^}]*background: #ffffff", style)


def test_empty_parts_are_left_out(write):
    assert write(summary_rows=[]).text("h2") == []


def test_numbers_are_short_and_right_aligned(write):
    rows = [("error", np.float32(0.125), 1 / 3), ("agents", 64, float("nan")), ("note", "none", "")]
    page = write(summary_rows=rows, summary_header=("quantity", "run", "alone"))
    assert page.text("th") == ["quantity", "run", "alone"]
    assert [attributes.get("class") for attributes in page.named("th")] == [
        None,
        "number",
        "number",
    ]
    classes = [attributes.get("class") for attributes in page.named("td")]
    assert classes == [None, "number", "number"] * 2 + [None, "word", "word"]
    assert page.text("td") == ["error", "0.125", "0.333333", "agents", "64", "nan", "note", "none"]


def test_settings_are_flat_and_complete(write):
    page = write(
        config={"seed": 1, "dynamics": {"step": {"size": 0.1}}, "irreps": [1, 1], "flag": True}
    )
    names_and_values = [
        "seed",
        "1",
        "dynamics.step.size",
        "0.1",
        "irreps",
        "[1, 1]",
        "flag",
        "True",
    ]
    assert page.text("code") == names_and_values
    assert page.text("summary") == ["4 settings"]


def test_texts_keep_their_lines_and_captions(write):
    page = write(texts=[("First.", "To be,\n  or not"), ("Second.", "x")])
    assert page.text("pre") == ["To be,\n  or not", "x"]
    assert page.text("figcaption") == ["First.", "Second."]


def test_all_text_is_escaped(write, png):
    evil = "<script>alert('x')</script> & \"quotes\""
    page = write(
        title=evil,
        summary_rows=[(evil, evil)],
        summary_header=(evil, evil),
        figures=[(evil, evil, png)],
        texts=[(evil, evil)],
        config={evil: evil},
        notes=[evil],
    )
    assert page.named("script") == []
    assert page.open == []
    assert page.named("img")[0]["alt"] == evil
    for tag in ("title", "h1", "th", "td", "strong", "figcaption", "li", "code", "pre"):
        assert evil in "".join(page.text(tag))


def test_misuse_is_refused(write):
    with pytest.raises(ValueError, match="2 entries"):
        write(summary_rows=[("a", 1, 2)])
    with pytest.raises(ValueError, match="'Energy' is not a PNG"):
        write(figures=[("Energy", "", b"GIF89a")])


def test_unwritable_report_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*nowhere/report.html"):
        write_report(tmp_path / "nowhere" / "report.html", title="Run", summary_rows=[])


def test_words_in_a_column_of_numbers_may_wrap_and_decimals_keep_their_digits(write):
    path = "/a/very/long/path" * 20
    page = write(summary_rows=[("data", path), ("error", Decimal("21.40"))])
    classes = [attributes.get("class") for attributes in page.named("td")]
    assert classes == [None, "word", None, "number"]
    assert page.text("td") == ["data", path, "error", "21.40"]
    style = "".join(page.text("style"))
    assert re.search(r"td\.word \{[^}]*overflow-wrap: anywhere", style)


def test_a_report_of_a_run_writes_its_pictures_and_notes_them(tmp_path):
    pictures = [Picture("energy", "Energy", "Falls.", Figure(figsize=(1, 1)))]
    report = Report("Run", [("x", 1.0)], pictures, [("Said.", "hello")], ["Doubt it."])
    with run_directory.create(tmp_path / "run", {"seed": 3}) as run:
        report.write(run, {"seed": 3})
    assert (tmp_path / "run/figures/energy.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run/report.html").read_text()
    assert all(piece in page for piece in ("Falls.", "hello", "Doubt it.", "seed"))
    run_directory.create(tmp_path / "run", {}, overwrite=True).close()
    assert not (tmp_path / "run/figures").exists()
