"""Times as tables write them: numbers, ISO dates, and ISO dates with a time of day."""

import datetime
import math
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["DATES", "MOMENTS", "NUMBERS", "Clock", "clock_for"]

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Clock(NamedTuple):
    """How times are read and written.

    Attributes:
        parse: text to a number; None for what is no such time.
        write: a number back to text.
        unit: of the numbers; "" when the table does not say.
        wanted: what a time must be, for messages.
        days: a number in days since 1970; None for numbers, which are no dates.
    """

    parse: Callable[[str], float | None]
    write: Callable[[float], str]
    unit: str
    wanted: str
    days: Callable[[float], float] | None = None


def _number(text: str) -> float | None:
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) <= 1e100 else None


def _date(text: str) -> float | None:
    try:
        return float(datetime.date.fromisoformat(text).toordinal())
    except ValueError:
        return None


def _write_date(value: float) -> str:
    return _written(lambda: datetime.date.fromordinal(round(value)).isoformat(), value)


def _moment(text: str) -> float | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH).total_seconds()


def _write_moment(value: float) -> str:
    moment = datetime.timedelta(seconds=round(value, 6))
    return _written(lambda: (_EPOCH + moment).replace(tzinfo=None).isoformat(), value)


def _written(write: Callable[[], str], value: float) -> str:
    try:
        return write()
    except (OverflowError, ValueError):  # beyond the year 9999
        return f"{value:.15g}"


NUMBERS = Clock(_number, lambda value: f"{value:.15g}", "", "the others are numbers")
DATES = Clock(
    _date,
    _write_date,
    "days",
    "the others are dates such as 2024-01-31",
    lambda value: value - _EPOCH.toordinal(),
)
MOMENTS = Clock(
    _moment,
    _write_moment,
    "seconds",
    "the others are times such as 2024-01-31T12:00:00",
    lambda value: value / 86400.0,
)


def clock_for(text: str) -> Clock:
    """How to read times that are written as this one is; numbers when it is none.

    >>> clock_for("2024-01-31").unit, clock_for("2024-01-31 12:30").unit, clock_for("0.5").unit
    ('days', 'seconds', '')
    >>> DATES.write(DATES.parse("2024-01-31") + 1)
    '2024-02-01'
    """
    fitting = (clock for clock in (NUMBERS, DATES, MOMENTS) if clock.parse(text) is not None)
    return next(fitting, NUMBERS)
