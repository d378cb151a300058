"""The whole command on a terminal: widths, resizing, interruption, terminals that cannot draw."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.lab_command import Run, add_script
from tests.cli.virtual_terminal import VirtualTerminal
from vzdump_qemu.cli.terminal import can_draw, printable

pytestmark = pytest.mark.slow

# The second disk is through after four seconds: time for two progress lines.
SLOW = "[backup]\nbytes_per_s = 700000\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "name", "can"),
    [
        (Terminal(), "xterm-256color", True),
        (Terminal(), "linux", True),
        (Terminal(), "dumb", False),
        (Terminal(), "", False),
        (io.StringIO(), "xterm", False),
    ],
)
def test_only_a_terminal_that_moves_its_cursor_is_drawn_on(
    stream: io.StringIO, name: str, can: bool
) -> None:
    assert can_draw(stream, {"TERM": name}) is can


def test_foreign_text_loses_what_a_terminal_obeys() -> None:
    assert printable("a\x1b[2J\r\nb\x9bä") == "a [2J  b ä"


@pytest.fixture
def slow_lab(lab: Path, command: Run) -> Iterator[Path]:
    add_script(lab, SLOW)
    assert command("lab", "start", lab).code == 0
    yield lab


def open_terminal(
    lab: Path, *words: str, columns: int = 100, environment: dict[str, str] | None = None
) -> VirtualTerminal:
    return VirtualTerminal(
        ["--root", str(lab), "100", *words],
        columns=columns,
        rows=24,
        environment={"PATH": os.environ["PATH"], **(environment or {})},
    )


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_backup_is_one_line_until_it_ends(slow_lab: Path, columns: int) -> None:
    terminal = open_terminal(slow_lab, columns=columns)
    shown = terminal.wait_for(lambda lines: any("KiB/s" in line for line in lines))
    assert len(shown) == 1
    assert re.fullmatch(r"(VM )?100 (lab-100 )?copying +[━╸─]+ .* \d+% \d+.* KiB/s.*", shown[0])
    assert terminal.finish() == 0
    shown = terminal.shown()
    whole = "".join(shown)
    assert shown[-1] == "TASK OK"
    assert re.fullmatch(
        r"VM 100 \(lab-100\) done in \ds, \d+MB, frozen for [\d.]+ ms: /\S+\.vmaTASK OK", whole
    )
    assert not terminal.is_cursor_hidden


def test_resized_terminal_gets_a_line_of_its_new_width(slow_lab: Path) -> None:
    terminal = open_terminal(slow_lab, columns=120)
    terminal.wait_for(lambda lines: any("KiB/s" in line for line in lines))
    terminal.resize(columns=50, rows=10)
    shown = terminal.wait_for(lambda lines: lines[-1:] != [] and lines[-1].startswith("100 copy"))
    assert len(shown[-1]) <= 50
    assert terminal.finish() == 0
    assert terminal.shown()[-1] == "TASK OK"


def test_vms_side_by_side_have_a_line_each_and_a_tally(slow_lab: Path, command: Run) -> None:
    assert command("lab", "create", slow_lab, "--vm", 101, "--disk", "scsi0=3M").code == 0
    add_script(slow_lab, SLOW, 101)
    assert command("lab", "start", slow_lab, 101).code == 0
    terminal = open_terminal(slow_lab, "101", "--max-parallel", "2")

    def both_copy(lines: list[str]) -> bool:
        return sum("copying" in line for line in lines) == 2

    shown = terminal.wait_for(both_copy)
    assert len(shown) == 3
    assert re.fullmatch(r"2 running, \d+s", shown[-1])
    assert terminal.finish() == 0
    *done, tally, verdict = terminal.shown()
    assert "".join(done).count(" done in ") == 2
    assert re.fullmatch(r"2 done, \d+s", tally)
    assert verdict == "TASK OK"


def test_interrupted_backup_leaves_the_terminal_in_order(slow_lab: Path) -> None:
    terminal = open_terminal(slow_lab)
    terminal.wait_for(lambda lines: any("copying" in line for line in lines))
    terminal.press("\x03")
    assert terminal.finish() == 255
    shown = terminal.shown()
    assert shown[-1] == "TASK ERROR: interrupted by signal"
    assert not any("copying" in line for line in shown)
    assert not terminal.is_cursor_hidden
    assert terminal.written.endswith("\n")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}])
def test_terminal_that_cannot_draw_gets_vzdumps_lines(
    slow_lab: Path, environment: dict[str, str]
) -> None:
    terminal = open_terminal(slow_lab, environment=environment)
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.written
    assert "INFO: starting new backup job: vzdump 100\r\n" in terminal.written
    assert re.search(r"INFO: +\d+% \(", terminal.written)


def test_colourless_terminal_is_drawn_on_without_colours(slow_lab: Path) -> None:
    terminal = open_terminal(slow_lab, environment={"NO_COLOR": "1"})
    terminal.wait_for(lambda lines: any("copying" in line for line in lines))
    assert terminal.finish() == 0
    assert not re.search(r"\x1b\[[\d;]*m", terminal.written)


def test_log_output_is_asked_for_by_name(slow_lab: Path) -> None:
    terminal = open_terminal(slow_lab, "--output", "log")
    assert terminal.finish() == 0
    assert "\x1b" not in terminal.written
