"""What a run shows in the end: pictures as PNG files, and one self-contained HTML page with
summary, pictures, text, settings and notes.
"""

import base64
import decimal
import html
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vfejax.data.files import atomic_write
from vfejax.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Report", "figure_png", "in_turn", "write_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6577; --page: #f6f7f9;
  --card: #ffffff; --line: #e1e5eb; --accent: #2f5fd0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa5b8; --page: #12151b; --card: #1b2029; --line: #2c3340;
    --accent: #86a9ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .9rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.word { text-align: right; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; } li { margin: .3rem 0; }
figure { margin: 0 0 1.5rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; overflow: hidden; }
figure .sheet { background: #ffffff; padding: .75rem; text-align: center; }
figure img { max-width: 100%; height: auto; display: inline-block; }
figcaption { padding: .8rem 1rem; border-top: 1px solid var(--line); color: var(--soft); }
figcaption strong { display: block; color: var(--ink); }
summary { cursor: pointer; padding: .6rem .9rem; color: var(--accent); }
pre { margin: 0; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .88em/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, monospace; }
@media print { body { background: #ffffff; } figure { break-inside: avoid; } }
""".strip()


class Picture(NamedTuple):
    """File name without suffix, title and caption in the report, and the figure, or a function that
    makes it.
    """

    name: str
    title: str
    caption: str
    figure: "Figure | Callable[[], Figure]"


class Report(NamedTuple):
    """What a command tells about a run.

    Attributes:
        title: heading of the page.
        rows: the summary, one row per quantity, each as long as the header.
        pictures: in the order of the page; drawn one by one, so that a generator holds one figure
            at a time.
        texts: ``(caption, text)`` each.
        notes: one remark each.
        header: names of the summary's columns.
    """

    title: str
    rows: Sequence[Sequence[Any]] = ()
    pictures: Iterable[Picture] = ()
    texts: Iterable[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    header: Sequence[str] = ("quantity", "value")

    def write(
        self,
        run: RunDirectory,
        config: Mapping[str, Any],
        drawn_fn: "Callable[[Iterable[Picture]], Iterable[tuple[Picture, bytes]]] | None" = None,
    ) -> None:
        """Write ``figures/*.png`` and ``report.html``.

        Args:
            run: the run, held.
            config: its settings, shown at the end of the page.
            drawn_fn: the pictures in their order, each with its PNG; by default :func:`in_turn`.

        Raises:
            UserError: when a file cannot be written.
        """
        figures = []
        for picture, png in (drawn_fn or in_turn)(self.pictures):
            atomic_write(run.file(f"figures/{picture.name}.png"), png)
            figures.append((picture.title, picture.caption, png))
        write_report(
            run.file("report.html"),
            title=self.title,
            summary_rows=self.rows,
            summary_header=self.header,
            figures=figures,
            texts=self.texts,
            config=config,
            notes=self.notes,
        )


def figure_png(figure: "Figure | Callable[[], Figure]", *, dpi: int = 150) -> bytes:
    """A matplotlib figure, or what a function makes, as PNG; see
    :func:`vfejax.figures.png.figure_png`.
    """
    from vfejax.figures import png  # here, since Matplotlib takes long to import

    return png.figure_png(figure() if callable(figure) else figure, dpi=dpi)


def in_turn(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes]]:
    """Each picture with its PNG.

    Args:
        pictures: what is drawn.
    """
    for picture in pictures:
        yield picture, figure_png(picture.figure)


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    summary_rows: Sequence[Sequence[Any]],
    summary_header: Sequence[str] = ("quantity", "value"),
    figures: Iterable[tuple[str, str, bytes]] = (),
    texts: Iterable[tuple[str, str]] = (),
    config: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page. It needs no other file and no network, follows the reader's light or dark
    setting, and escapes all text.

    Args:
        path: the ``.html`` file.
        title: heading.
        summary_rows: one row per quantity, each as long as the header. Numbers are right-aligned
            and shown with six digits, a ``decimal.Decimal`` with its own.
        summary_header: names of the columns.
        figures: ``(title, caption, png)`` each, in order; shown on white.
        texts: ``(caption, text)`` each, in order, line breaks kept; such as what a language model
            wrote.
        config: the settings; nested ones are shown as ``outer.inner``.
        notes: one remark each, such as what a reader should know or doubt.

    Raises:
        ValueError: when a row does not fit the header, or a picture is no PNG.
        UserError: when the file cannot be written.
    """
    if any(len(row) != len(summary_header) for row in summary_rows):
        raise ValueError(
            f"every summary row must have {len(summary_header)} entries to fit the header "
            f"{tuple(summary_header)}"
        )
    sections = [
        _section("Summary", _table(summary_header, summary_rows) if summary_rows else ""),
        _section("Notes", _list(notes) if notes else ""),
        _section("Figures", "".join(_figure(*figure) for figure in figures)),
        _section("Text", "".join(_passage(*text) for text in texts)),
        _section("Settings", _settings(config) if config else ""),
    ]
    atomic_write(path, _page(title, "".join(sections)))


def _page(title: str, body: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{html.escape(title)}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}</section>\n" if body else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | decimal.Decimal) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return html.escape(f"{float(value):.6g}")
    return html.escape(str(value))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    # A column is aligned by its entries, so that its heading stands above them. Words in a column
    # of numbers may wrap: a long path must not push the numbers out of the page.
    right = [any(_is_number(row[i]) for row in rows) for i in range(len(header))]

    def cell(value: Any, aligned: bool) -> str:
        kind = "number" if _is_number(value) else "word"
        return f'<td class="{kind}">{_text(value)}</td>' if aligned else f"<td>{_text(value)}</td>"

    heads = (
        f'<th class="number">{html.escape(name)}</th>'
        if aligned
        else f"<th>{html.escape(name)}</th>"
        for name, aligned in zip(header, right, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(cell, row, right))}</tr>\n" for row in rows)
    return f'<div class="card"><table>\n<tr>{"".join(heads)}</tr>\n{body}</table></div>\n'


def _list(notes: Sequence[str]) -> str:
    return "<ul>\n" + "".join(f"<li>{html.escape(note)}</li>\n" for note in notes) + "</ul>\n"


def _figure(title: str, caption: str, png: bytes) -> str:
    if not png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"figure {title!r} is not a PNG picture")
    data, title = base64.b64encode(png).decode(), html.escape(title)
    return (
        '<figure><div class="sheet">'
        f'<img alt="{title}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption><strong>{title}</strong>{html.escape(caption)}</figcaption></figure>\n"
    )


def _passage(caption: str, text: str) -> str:
    return (
        f"<figure><pre>{html.escape(text)}</pre>\n<figcaption>{html.escape(caption)}</figcaption>"
        "</figure>\n"
    )


def _settings(config: Mapping[str, Any]) -> str:
    rows = [(name, f"{value}") for name, value in _flat(config)]
    body = "".join(
        f"<tr><td><code>{html.escape(n)}</code></td><td><code>{html.escape(v)}</code></td></tr>\n"
        for n, v in rows
    )
    return (
        f'<details class="card"><summary>{len(rows)} settings</summary><table>\n{body}</table>'
        "</details>\n"
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
