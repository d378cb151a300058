"""Times of jobs: calendar events as ``jobs.cfg`` has them, turned into systemd's.

Owns the grammar, which is a part of systemd's and says some things shorter: ``30/10`` are
minutes, ``*/5`` counts from the smallest value, a time without a date is every day. When an event
comes next is left to systemd. Source: host behaviour, section 2.2; systemd.time(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vzdump_qemu.errors import ConfigError

_SHORTHANDS = frozenset(
    (
        "minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "semiannually",
        "semi-annually", "yearly", "annually",
    )
)  # fmt: skip
_DAY_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAYS = {spelling: name[:3].title() for name in _DAY_NAMES for spelling in (name, name[:3])}
_PART = re.compile(r"(\*|\d{1,4})(?:\.\.(\d{1,4}))?(?:/(\d{1,4}))?", re.ASCII)
_HINT = "as in: daily, 02:30, mon..fri 22:00, */15, sat *-1..7 15:00"
_YEAR_MIN, _YEAR_MAX = 1970, 2199


def translate_calendar_event(text: str) -> str:
    """The same times as a value of ``OnCalendar=``.

    Raises: ConfigError for a text that names no times.
    """
    words = text.split()
    try:
        if len(words) == 1 and words[0].lower() in _SHORTHANDS:
            return words[0].lower()
        if not words:
            raise ValueError("it is empty")
        days = _translate_days(words.pop(0)) if words[0][0].isalpha() else ""
        date = _translate_date(words.pop(0)) if words and "-" in words[0] else "*-*-*"
        # Without any time it is midnight.
        time = _translate_time(words.pop(0)) if words else "00:00:00"
        if words:
            raise ValueError(f"'{words[0]}' is left over")
    except ValueError as error:
        raise ConfigError(f"unable to parse calendar event '{text}': {error}", hint=_HINT) from None
    return f"{days} {date} {time}".lstrip()


def _translate_days(text: str) -> str:
    parts = []
    for part in text.lower().split(","):
        first, dots, last = part.partition("..")
        names = [first, last] if dots else [first]
        for name in names:
            if name not in _DAYS:
                raise ValueError(f"'{name}' is no day of the week")
        parts.append("..".join(_DAYS[name] for name in names))
    return ",".join(parts)


def _translate_date(text: str) -> str:
    parts = text.split("-")
    if len(parts) == 2:
        parts = ["*", *parts]
    if len(parts) != 3:
        raise ValueError(f"'{text}' is no date")
    limits = ((_YEAR_MIN, _YEAR_MAX), (1, 12), (1, 31))
    return "-".join(_translate_lists(parts, limits))


def _translate_time(text: str) -> str:
    parts = text.split(":")
    if len(parts) == 1:
        parts = ["*", *parts]
    if len(parts) == 2:
        parts = [*parts, "00"]
    if len(parts) != 3:
        raise ValueError(f"'{text}' is no time")
    limits = ((0, 23), (0, 59), (0, 59))
    return ":".join(_translate_lists(parts, limits))


def _translate_lists(lists: Sequence[str], limits: Sequence[tuple[int, int]]) -> Iterator[str]:
    for text, (minimum, maximum) in zip(lists, limits, strict=True):
        yield ",".join(_translate_part(part, minimum, maximum) for part in text.split(","))


def _translate_part(text: str, minimum: int, maximum: int) -> str:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text}' is no number, range or step")
    first, last, step = match.groups()
    for number in (first, last):
        if number not in ("*", None) and not minimum <= int(number) <= maximum:
            raise ValueError(f"{number} is not between {minimum} and {maximum}")
    if last is not None and (first == "*" or int(first) > int(last)):
        raise ValueError(f"'{text}' is no range")
    if step is not None and int(step) == 0:
        raise ValueError(f"'{text}' never comes again")
    if first == "*":
        # systemd takes no step after an asterisk.
        return "*" if step is None else f"{minimum}/{int(step)}"
    result = first.zfill(2)
    if last is not None:
        result += f"..{last.zfill(2)}"
    return result if step is None else f"{result}/{int(step)}"
