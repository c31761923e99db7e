"""``vfejax filter --online``: rows from standard input, an estimate after each, at once.

Memory is constant, and after the first row nothing is compiled. A line that cannot be read is
reported on standard error with its number and skipped: a stream should not end by one bad line.
"""

import codecs
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from vfejax.cli.filter import koopman, local_models, models
from vfejax.cli.filter.config import LOCAL, FilterConfig, columns_of
from vfejax.cli.filter.emissions import GaussianStates, Symbols
from vfejax.cli.filter.estimates import Measure, cell, half_width
from vfejax.cli.filter.generalized import KIND, Smooth
from vfejax.cli.filter.lifting import KoopmanModel
from vfejax.cli.filter.local_models import Times
from vfejax.cli.filter.model_file import ModelFile
from vfejax.cli.filter.paths import path_stream
from vfejax.cli.filter.stream import Stream, free_stream, hidden_stream, local_stream
from vfejax.cli.input_lines import lines
from vfejax.data.files import UTF_16
from vfejax.data.series_rows import BadRow, Layout, Row, cells, layout, read_row
from vfejax.data.timestamps import clock_for
from vfejax.errors import UserError
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.inference.chains.local_models import LocalModel
from vfejax.runs.interrupt import Interrupt
from vfejax.runs.latency import Latencies

__all__ = ["run"]


class _Counts(NamedTuple):
    """What is told in the end."""

    latencies: Latencies
    skipped: list[int]  # a number: how many lines were skipped

    def skip(self, number: int, reason: object) -> None:
        self.skipped[0] += 1
        print(f"vfejax filter: line {number}: {reason}; skipped", file=sys.stderr, flush=True)


def run(config: FilterConfig) -> int:
    """Read standard input to its end, or to Ctrl-C, and return the exit status.

    Raises:
        UserError: when there is nothing to read, or the first lines do not fit the options.
    """
    given = models.given_file(config)
    if given is not None and given.kind == koopman.KIND:
        raise UserError(
            f"--online: {config.model} is of koopman, whose intervals need rows that are held out; "
            "give the rows as a file, or take another model"
        )
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        raise UserError("--online: standard input is closed; give it lines to read") from None
    counts = _Counts(Latencies(), [0])
    with Interrupt("vfejax filter: interrupted") as interrupt, interrupt.graceful():
        rows = _rows(config, given, lines(descriptor, lambda: interrupt.requested), counts)
        measure, value = _answer(config, given, rows, counts)
    if not config.quiet:
        _tell(counts, measure, value)
    return 0


class _Line(NamedTuple):
    """A row that was read, its number and when it came, and what the cells mean."""

    number: int
    came: float
    row: Row
    table: Layout


def _rows(
    config: FilterConfig,
    given: ModelFile | None,
    source: Iterator[bytes | None],
    counts: _Counts,
) -> Iterator[_Line]:
    """The rows that can be read, each with the table's layout; the others are reported."""
    table: Layout | None = None
    last: Row | None = None
    for number, line in enumerate(source, 1):
        came = time.perf_counter()
        try:
            found = cells(_text(line))
            if not any(found) and (table is None or table.width > 1):
                continue  # a blank line
            if table is None:
                table = _layout(config, given, found)
                if table.header is not None:
                    continue
            table = _with_clock(table, found)
            row = read_row(table, found or [""])
            if last is not None and row.time is not None and not row.time > (last.time or 0.0):
                raise BadRow(f"the time {row.stamp} does not come after {last.stamp}")
        except BadRow as error:
            counts.skip(number, error)
            continue
        last = row
        yield _Line(number, came, row, table)


def _text(line: bytes | None) -> str:
    if line is None:
        raise BadRow("is longer than 1 MiB")
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError:
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"standard input is {UTF_16}") from None
        raise BadRow("is not UTF-8 text") from None


def _layout(config: FilterConfig, given: ModelFile | None, first: list[str]) -> Layout:
    columns = columns_of(config) or (() if given is None else given.columns or ())
    try:
        table = layout(first, columns=columns, time=config.time)
    except UserError as error:
        if given is None or given.columns is None or config.columns or config.time:
            raise UserError(f"standard input: {error}") from None
        table = layout(first)  # numbers without a header, in the order of the model
        if table.header is None and len(table.names) == len(given.columns):
            table = table._replace(names=given.columns)
    if given is not None and given.num_series != len(table.names):
        remedy = "choose with --columns" if table.header else "begin with a line of their names"
        raise UserError(
            f"--model {config.model}: is for {given.num_series} series, and standard input has "
            f"{len(table.names)}; {remedy}"
        )
    return table


def _with_clock(table: Layout, row: list[str]) -> Layout:
    """How times are read is told by the first of them."""
    index = table.time_index
    if index is None or table.clock is not None or index >= len(row):
        return table
    return table._replace(clock=clock_for(row[index]))


def _answer(
    config: FilterConfig, given: ModelFile | None, rows: Iterator[_Line], counts: _Counts
) -> tuple[Measure, float]:
    """Print an estimate after every row; the log evidence of all of them, or what stands for it."""
    held = _warm_up(config, given, rows)
    if not held:
        raise UserError("--online: standard input has no row of numbers")
    stream, measured = _stream(config, given, held)
    table = held[0].table
    step = jax.jit(stream.step)
    missing = np.zeros(len(table.names)), np.zeros(len(table.names), bool)
    jax.block_until_ready(step(stream.init, np.float64(0.0), *missing))  # compiles it
    print(",".join(["time" if table.time_index is not None else "row", *stream.columns]))
    state, total, last, count = stream.init, 0.0, None, 0
    for line in _chained(held, rows):
        known = measured and line.row.time is not None
        elapsed = (line.row.time or 0.0) - (last or 0.0) if known else stream.usual
        values = line.row.values
        state, answer = step(
            state,
            np.float64(elapsed if count else 0.0),
            np.nan_to_num(values),
            ~np.isnan(values),
        )
        numbers = np.asarray(answer.numbers)
        stamp = line.row.stamp or str(count)
        print(",".join([stamp, *map(cell, numbers.tolist())]), flush=True)
        counts.latencies.add(time.perf_counter() - line.came)
        total += float(answer.log_evidence)
        if answer.impossible:
            said = f"vfejax filter: line {line.number}: {stream.impossible}"
            print(said, file=sys.stderr, flush=True)
        last, count = line.row.time, count + 1
    return stream.measure, stream.measure.sign * total


def _chained(held: list[_Line], rows: Iterator[_Line]) -> Iterator[_Line]:
    """The rows that waited, from now on, and those to come."""
    while held:
        yield held.pop(0)._replace(came=time.perf_counter())
    yield from rows


def _warm_up(config: FilterConfig, given: ModelFile | None, rows: Iterator[_Line]) -> list[_Line]:
    """The rows that are read before the first estimate."""
    known = given is not None or (config.noise_std is not None and config.drift_std is not None)
    # A step that the file does not name is that of the first two rows.
    first = 2 if given is not None and given.kind == KIND and "dt" not in given.fields else 1
    wanted = first if known else config.warm_up
    if not known and not config.quiet:
        print(
            f"vfejax filter: the first {wanted} rows set the scales; --noise-std and --drift-std, "
            "or a model file, give estimates from the first row on",
            file=sys.stderr,
            flush=True,
        )
    held: list[_Line] = []
    for line in rows:
        held.append(line)
        if len(held) >= wanted:
            break
    return held


def _stream(
    config: FilterConfig, given: ModelFile | None, held: list[_Line]
) -> tuple[Stream, bool]:
    """The filter, and whether it follows measured times."""
    kind = given.kind if given is not None else config.model or "local-level"
    measured = kind in (*LOCAL, KIND) and config.spacing == "measured"
    if given is not None:
        return _of_file(config, given, held, measured), measured
    return _of_rows(config, kind, held, measured), measured


def _of_file(config: FilterConfig, given: ModelFile, held: list[_Line], measured: bool) -> Stream:
    """The filter of a model file. A step that it does not name is that of the first two rows."""
    names = held[0].table.names
    width, which = half_width(config.interval), config.estimate or "filtered"
    elapsed = [line.row.time or 0.0 for line in held[:2]] if measured else []
    dt = elapsed[1] - elapsed[0] if len(elapsed) == 2 and elapsed != [0.0, 0.0] else 1.0
    parameters = models.file_model(given, dt)
    match parameters:
        case Smooth():
            models.check_window(config, parameters)
            return path_stream(parameters, names, width, which)
        case LocalModel():
            return local_stream(given.kind, parameters, names, width, which)
        case LinearGaussian():
            return free_stream(parameters, names, width, which)
        case GaussianStates() | Symbols():
            return hidden_stream(parameters, names, which)
        case KoopmanModel():
            raise AssertionError("koopman is refused before a row is read")


def _of_rows(config: FilterConfig, kind: str, held: list[_Line], measured: bool) -> Stream:
    """The filter of a local model, whose scales the first rows set."""
    names = held[0].table.names
    width, which = half_width(config.interval), config.estimate or "filtered"
    values = np.stack([line.row.values for line in held])
    times = [line.row.time for line in held]
    steps = np.ones(len(held) - 1)
    if measured and times[0] is not None:
        steps = np.diff(np.array(times, np.float64))
    usual = float(np.median(steps)) if len(steps) else 1.0
    model = local_models.begin(config, kind, names, values, Times(steps, usual))
    return local_stream(kind, model, names, width, which)


def _tell(counts: _Counts, measure: Measure, value: float) -> None:
    skipped, latencies = counts.skipped[0], counts.latencies
    more = f", {skipped} skipped" if skipped else ""
    print(
        f"vfejax filter: {latencies.count} rows{more}; {measure.name} {value:.6g} nats; "
        f"latency of an estimate: median {1e3 * latencies.quantile(0.5):.2f} ms, 99 % within "
        f"{1e3 * latencies.quantile(0.99):.2f} ms",
        file=sys.stderr,
        flush=True,
    )
