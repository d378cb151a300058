"""A terminal without a screen: what a person would see of a program, cell by cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence

import pexpect
import pyte

_WAIT_S = 60.0


class VirtualTerminal:
    """Runs ``python -m vzdump_qemu`` on a pseudo-terminal and draws what it writes.

    Args:
        environment: of the program; TERM is a usual one unless it says otherwise.
    """

    def __init__(
        self, words: Sequence[str], *, columns: int, rows: int, environment: Mapping[str, str]
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=5000, ratio=0.5)
        self._stream = pyte.Stream(self._screen)
        self.written = ""
        self._process = pexpect.spawn(
            sys.executable,
            ["-m", "vzdump_qemu", *words],
            dimensions=(rows, columns),
            env={"TERM": "xterm-256color", "LANG": "C.UTF-8", **environment},
            encoding="utf-8",
            timeout=_WAIT_S,
        )

    def shown(self) -> list[str]:
        """Every line, what scrolled away included, without blanks at the ends."""
        history = [
            "".join(line[column].data for column in range(self._screen.columns))
            for line in self._screen.history.top
        ]
        lines = [line.rstrip() for line in [*history, *self._screen.display]]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def is_cursor_hidden(self) -> bool:
        return bool(self._screen.cursor.hidden)

    def wait_for(self, is_met: Callable[[list[str]], bool]) -> list[str]:
        """Draw until the shown lines meet a condition; return them."""
        ends_s = time.monotonic() + _WAIT_S
        while not is_met(self.shown()):
            assert time.monotonic() < ends_s, "\n".join(self.shown())
            assert self._draw(), "\n".join(self.shown())
        return self.shown()

    def finish(self) -> int:
        """Draw to the program's end; return its exit code."""
        while self._draw():
            pass
        self._process.close()
        assert self._process.exitstatus is not None
        return int(self._process.exitstatus)

    def press(self, letters: str) -> None:
        """Type letters, control characters included."""
        self._process.send(letters)

    def resize(self, *, columns: int, rows: int) -> None:
        """Give the terminal another size; the program may learn of it."""
        self._screen.resize(rows, columns)
        self._process.setwinsize(rows, columns)

    def _draw(self) -> bool:
        """Draw the next piece; whether there was any."""
        try:
            piece = self._process.read_nonblocking(4096, timeout=_WAIT_S)
        except pexpect.EOF:
            return False
        self.written += piece
        self._stream.feed(piece)
        return True
