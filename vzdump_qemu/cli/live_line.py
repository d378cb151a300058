"""One VM's line of the live display: what it knows, and how it fits into a width.

Owns the cells, which of them give way on a narrow terminal, and the rate that the rest of the
time is foretold from. Pure: time comes as an argument. Where lines stand is `render_live`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vzdump_qemu.cli.terminal import printable
from vzdump_qemu.events import Consistency, ProgressLine
from vzdump_qemu.units import render_bytes, render_duration

# Ten lines are twenty seconds or more: what was skipped at once, as unchanged, is soon forgotten.
_LOOKS_MAX = 10
# A rate over less than that says more about the clock than about the disks.
_RATE_SPAN_S_MIN = 1.0
_NAMED_COLUMNS_MIN = 96
_WIDE_COLUMNS_MIN = 72
_NAME_COLUMNS_MAX = 16
_BAR_COLUMNS_MIN, _BAR_COLUMNS_MAX = 4, 30
# The longest texts there are, so that nothing moves sideways while figures come and go.
_PHASE_COLUMNS = 16
_FIGURE_COLUMNS = (4, 12, 10, 14)
# A phase that lasts longer shows its age: nothing else moves meanwhile.
_AGE_S_MIN = 2.0


@dataclass(slots=True, kw_only=True)
class VmLine:
    """What is known of one VM's run.

    Attributes:
        began_s, phase_began_s: on the display's clock.
        window_s: how long the guest was frozen; None if it was not.
        location, size_text: of the published backup; empty before.
    """

    vmid: int
    began_s: float
    phase_began_s: float
    name: str = ""
    phase: str = "preparing"
    progress: ProgressLine | None = None
    is_transferring: bool = False
    window_s: float | None = None
    location: str = ""
    size_text: str = ""
    _looks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_LOOKS_MAX))

    def enter(self, phase: str, now_s: float, *, transferring: bool = False) -> None:
        """Begin a phase; figures are shown while data is transferred."""
        self.phase, self.phase_began_s, self.is_transferring = phase, now_s, transferring

    def take(self, line: ProgressLine) -> None:
        """Note one look at the job."""
        if not self._looks:
            self._looks.append((0.0, 0))
        self._looks.append((line.elapsed_s, line.done_bytes))
        self.progress = line

    @property
    def rate_bytes_per_s(self) -> float | None:
        """Mean of the last looks; None while they are too close together."""
        if not self._looks:
            return None
        (first_s, first_bytes), (last_s, last_bytes) = self._looks[0], self._looks[-1]
        if last_s - first_s < _RATE_SPAN_S_MIN:
            return None
        return (last_bytes - first_bytes) / (last_s - first_s)

    @property
    def rest_s(self) -> float | None:
        """The time left at that rate; None where nothing can be foretold."""
        rate, line = self.rate_bytes_per_s, self.progress
        if not rate or line is None or line.done_bytes >= line.target_bytes:
            return None
        return (line.target_bytes - line.done_bytes) / rate

    @property
    def label(self) -> str:
        """The VM by its number and, where known, its name."""
        return f"VM {self.vmid} ({self.name})" if self.name else f"VM {self.vmid}"


def render_done(line: VmLine, consistency: Consistency, duration_s: float) -> str:
    """The line that stays when a VM was backed up."""
    facts = [f"done in {render_duration(duration_s)}"]
    if line.size_text:
        facts.append(line.size_text)
    if line.window_s is not None:
        facts.append(f"frozen for {render_window(line.window_s)}")
    if consistency is not Consistency.FROZEN or line.window_s is None:
        facts.append(f"consistency: {consistency.value}")
    where = f": {line.location}" if line.location else ""
    return printable(f"{line.label} {', '.join(facts)}{where}")


def render_lines(
    lines: Sequence[VmLine], *, now_s: float, columns: int, is_unicode: bool
) -> list[str]:
    """One text per VM, none longer than `columns`; equal cells stand below each other."""
    wide = columns >= _WIDE_COLUMNS_MIN
    names = [_cut(printable(line.name), _NAME_COLUMNS_MAX) for line in lines]
    table = [
        [
            f"VM {line.vmid}" if wide else str(line.vmid),
            *([name] if columns >= _NAMED_COLUMNS_MIN and any(names) else []),
            line.phase.ljust(_PHASE_COLUMNS if wide else 0),
        ]
        for line, name in zip(lines, names, strict=True)
    ]
    left = [" ".join(row) for row in _align(table)]
    figures = [_wide_figures(line, now_s) if wide else _narrow_figures(line) for line in lines]
    right = [" ".join(row) for row in (figures if wide else _align(figures))]
    free = columns - max(map(len, left), default=0) - max(map(len, right), default=0) - 2
    texts = []
    for line, head, tail in zip(lines, left, right, strict=True):
        percent = line.progress.percent if line.progress else 0
        bar_columns = min(free, _BAR_COLUMNS_MAX)
        bar = ""
        if bar_columns >= _BAR_COLUMNS_MIN:
            bar = f"{render_bar(percent, bar_columns, is_unicode=is_unicode)} "
        texts.append(f"{head} {bar}{tail}".rstrip()[:columns])
    return texts


def render_bar(percent: int, columns: int, *, is_unicode: bool) -> str:
    """A bar of that many columns, filled by halves where the terminal can show them."""
    full, half, rest = ("━", "╸", "─") if is_unicode else ("#", "-", ".")
    halves = max(0, min(percent, 100)) * columns * 2 // 100
    filled = full * (halves // 2) + half * (halves % 2)
    return filled + rest * (columns - len(filled))


def render_window(window_s: float) -> str:
    """The time that a guest was frozen, like ``12.3 ms``."""
    return f"{window_s * 1000:.1f} ms" if window_s < 1 else f"{window_s:.1f} s"


def _wide_figures(line: VmLine, now_s: float) -> list[str]:
    """Percentage, rate, time left or age of the phase, freeze window."""
    rate, rest_s = _foretold(line)
    age_s = now_s - line.phase_began_s
    time_text = "" if rest_s is None else f"ETA {_short(rest_s)}"
    if not line.is_transferring and age_s >= _AGE_S_MIN:
        time_text = f"for {_short(age_s)}"
    cells = (
        _percent(line),
        "" if rate is None else f"{render_bytes(rate)}/s",
        time_text,
        "" if line.window_s is None else f"frozen {render_window(line.window_s)}",
    )
    return [cell.ljust(width) for cell, width in zip(cells, _FIGURE_COLUMNS, strict=True)]


def _narrow_figures(line: VmLine) -> list[str]:
    """Percentage, rate, time left."""
    rate, rest_s = _foretold(line)
    return [
        _percent(line),
        "" if rate is None else f"{render_bytes(rate, 0)}/s",
        "" if rest_s is None else _short(rest_s),
    ]


def _percent(line: VmLine) -> str:
    return f"{line.progress.percent if line.progress else 0:3d}%"


def _foretold(line: VmLine) -> tuple[float | None, float | None]:
    """Rate and time left, while data is transferred."""
    return (line.rate_bytes_per_s, line.rest_s) if line.is_transferring else (None, None)


def _short(seconds: float) -> str:
    """A duration in its two largest units."""
    return " ".join(render_duration(seconds).split()[:2])


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else f"{text[: columns - 1]}~"


def _align(table: list[list[str]]) -> list[list[str]]:
    """Pad the cells of each column to one width; a column without any text goes."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        [cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width]
        for row in table
    ]
