"""Calendar events: each form of the platform's own manual, and what is none."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.calendar_event import translate_calendar_event

EVENTS = {
    "daily": "daily",
    "Monthly": "monthly",
    "semi-annually": "semi-annually",
    "02:30": "*-*-* 02:30:00",
    "2:5": "*-*-* 02:05:00",
    "21:00:30": "*-*-* 21:00:30",
    "mon..fri": "Mon..Fri *-*-* 00:00:00",
    "sat,sun": "Sat,Sun *-*-* 00:00:00",
    "monday,wed,fri 04:00": "Mon,Wed,Fri *-*-* 04:00:00",
    "*/5": "*-*-* *:0/5:00",
    "0/5": "*-*-* *:00/5:00",
    "*:*/15": "*-*-* *:0/15:00",
    "mon..wed 30/10": "Mon..Wed *-*-* *:30/10:00",
    "mon..fri 8..17,22:0/15": "Mon..Fri *-*-* 08..17,22:00/15:00",
    "fri 12..13:5/20": "Fri *-*-* 12..13:05/20:00",
    "12/2:50": "*-*-* 12/2:50:00",
    "*-05": "*-*-05 00:00:00",
    "*-1..7 15:00": "*-*-01..07 15:00:00",
    "Sat *-1..7 15:00": "Sat *-*-01..07 15:00:00",
    "2027-10-21": "2027-10-21 00:00:00",
    "2027-*/3-1 12:00": "2027-1/3-01 12:00:00",
}


@pytest.mark.parametrize(("text", "expected"), EVENTS.items(), ids=EVENTS)
def test_calendar_event_is_written_as_systemd_reads_it(text: str, expected: str) -> None:
    assert translate_calendar_event(text) == expected


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.slow
def test_systemd_takes_every_translated_event() -> None:
    told = subprocess.run(
        ["systemd-analyze", "calendar", *map(translate_calendar_event, EVENTS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("Normalized form:") == len(EVENTS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("someday", "'someday' is no day of the week"),
        ("mon..fun", "'fun' is no day of the week"),
        ("24:00", "24 is not between 0 and 23"),
        ("12:60", "60 is not between 0 and 59"),
        ("*-13-01", "13 is not between 1 and 12"),
        ("1-2-3-4", "'1-2-3-4' is no date"),
        ("1:2:3:4", "'1:2:3:4' is no time"),
        ("9..8:00", "'9..8' is no range"),
        ("*..8:00", "'*..8' is no range"),
        ("*/0", "'*/0' never comes again"),
        ("12:", "'' is no number, range or step"),
        ("12:00 UTC", "'UTC' is left over"),
        ("٣:00", "'٣' is no number, range or step"),
    ],
)
def test_text_that_names_no_times_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        translate_calendar_event(text)
    assert str(caught.value) == f"unable to parse calendar event '{text}': {reason}"
    assert "mon..fri" in caught.value.hint
