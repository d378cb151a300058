"""G3 and the clock: a name tells a time at which the tool ran, a length what really passed.

The wall clock may jump while the tool runs: back, forward, into summer time and out of it. The
time in an archive's name must then be one that the clock showed meanwhile, and a length that the
tool tells must come from the clock that does not jump. Failure mode 83.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta

from vzsim.evidence import Evidence

_TIME_IN_NAME = re.compile(r"-(\d{4})_(\d\d)_(\d\d)-(\d\d)_(\d\d)_(\d\d)\.")
_LENGTH_FIELD = "duration_s="
_TOLD_LENGTH = re.compile(rf"\b{_LENGTH_FIELD}(-?[0-9.e+-]+)")
# Names have whole seconds.
_GRAIN = timedelta(seconds=1)


def check(evidence: Evidence) -> list[str]:
    """One line per violation."""
    found = []
    for path in evidence.new_archives():
        match = _TIME_IN_NAME.search(path)
        if match and not _was_shown(evidence, _time_of(match.groups())):
            found.append(f"{path} is named after a time at which the tool did not run")
    for line in evidence.observed.public_lines:
        if _LENGTH_FIELD not in line:
            continue
        for text in _TOLD_LENGTH.findall(line):
            if not -0.001 <= float(text) <= evidence.duration_s + 1.0:
                found.append(
                    f"a length of {float(text):.1f} s is told, {evidence.duration_s:.1f} s passed"
                )
    return found


def _time_of(parts: Sequence[str]) -> datetime:
    return datetime.fromisoformat("{}-{}-{}T{}:{}:{}".format(*parts))


def _was_shown(evidence: Evidence, time: datetime) -> bool:
    return any(first - _GRAIN <= time <= last for first, last in evidence.local_spans)
