"""One VM's line: its cells at every width, its rate and the time left."""

import pytest

from vzdump_qemu.cli.live_line import VmLine, render_bar, render_done, render_lines, render_window
from vzdump_qemu.events import Consistency, ProgressLine
from vzdump_qemu.units import GIB, MIB


def look(elapsed_s: float, done_bytes: int, target_bytes: int = 32 * GIB) -> ProgressLine:
    return ProgressLine(
        percent=done_bytes * 100 // target_bytes,
        done_bytes=done_bytes,
        target_bytes=target_bytes,
        zero_bytes=0,
        elapsed_s=elapsed_s,
        read_bytes_per_s=1e15,
        write_bytes_per_s=0.0,
    )


def copying(vmid: int = 100, name: str = "") -> VmLine:
    line = VmLine(vmid=vmid, began_s=0.0, phase_began_s=0.0, name=name)
    line.enter("copying", 1.0, transferring=True)
    line.window_s = 0.0123
    line.take(look(8.0, 8 * GIB))
    return line


def rendered(*lines: VmLine, columns: int, now_s: float = 9.0) -> list[str]:
    return render_lines(lines, now_s=now_s, columns=columns, is_unicode=True)


def test_wide_line_shows_phase_bar_rate_rest_and_window() -> None:
    assert rendered(copying(name="web"), columns=117) == [
        "VM 100 web copying          ━━━━━━━╸──────────────────────  25% 1.0 GiB/s    ETA 24s    "
        "frozen 12.3 ms"
    ]


def test_line_of_40_columns_keeps_phase_bar_rate_and_rest() -> None:
    assert rendered(copying(name="web"), columns=37) == ["100 copying ━━──────  25% 1 GiB/s 24s"]


@pytest.mark.parametrize("columns", [*range(8, 200, 7), 37, 77])
def test_no_line_is_longer_than_the_terminal_is_wide(columns: int) -> None:
    waiting = VmLine(vmid=999_999_999, began_s=0.0, phase_began_s=0.0, name="名" * 40)
    waiting.enter("suspending guest", 0.0)
    lines = rendered(copying(), waiting, columns=columns, now_s=9999.0)
    assert len(lines) == 2
    assert all(len(line) <= columns for line in lines)


def test_cells_of_all_lines_stand_below_each_other() -> None:
    late = copying(vmid=12345)
    late.enter("proving", 3.0)
    first, second = rendered(copying(), late, columns=100)
    assert first.index("%") == second.index("%")
    assert first.index("frozen") == second.index("frozen")


def test_phase_without_figures_shows_its_age() -> None:
    line = VmLine(vmid=100, began_s=0.0, phase_began_s=0.0)
    line.enter("proving", 10.0)
    assert "for 1m 5s" in rendered(line, columns=100, now_s=75.0)[0]
    assert "for" not in rendered(line, columns=100, now_s=11.0)[0]


def test_rate_is_unknown_while_less_than_a_second_was_seen() -> None:
    # An increment whose data is all known to the server is through at once.
    line = VmLine(vmid=100, began_s=0.0, phase_began_s=0.0)
    line.enter("copying", 0.0, transferring=True)
    line.take(look(0.05, 32 * GIB))
    assert line.rate_bytes_per_s is None
    assert line.rest_s is None
    assert "/s" not in rendered(line, columns=100)[0]


def test_what_was_skipped_at_once_is_soon_forgotten_by_rate_and_rest() -> None:
    line = VmLine(vmid=100, began_s=0.0, phase_began_s=0.0)
    for index in range(1, 13):
        line.take(look(2.0 * index, 16 * GIB + index * 64 * MIB))
    assert line.rate_bytes_per_s == 32 * MIB
    assert line.rest_s == (16 * GIB - 12 * 64 * MIB) / (32 * MIB)


def test_stalled_transfer_foretells_nothing() -> None:
    line = VmLine(vmid=100, began_s=0.0, phase_began_s=0.0)
    for index in range(12):
        line.take(look(2.0 * index, GIB))
    assert line.rate_bytes_per_s == 0.0
    assert line.rest_s is None


@pytest.mark.parametrize(
    ("percent", "bar"), [(0, "────"), (12, "────"), (13, "╸───"), (50, "━━──"), (100, "━━━━")]
)
def test_bar_fills_by_halves(percent: int, bar: str) -> None:
    assert render_bar(percent, 4, is_unicode=True) == bar


def test_bar_of_a_terminal_without_unicode_is_ascii() -> None:
    assert render_bar(38, 4, is_unicode=False) == "#-.."


@pytest.mark.parametrize(("window_s", "text"), [(0.0123, "12.3 ms"), (0, "0.0 ms"), (2.5, "2.5 s")])
def test_window_is_shown_in_its_own_unit(window_s: float, text: str) -> None:
    assert render_window(window_s) == text


def test_done_line_tells_all_of_a_backup() -> None:
    line = copying(name="web")
    line.location, line.size_text = "/d/a.vma", "5MB"
    assert render_done(line, Consistency.FROZEN, 61.0) == (
        "VM 100 (web) done in 1m 1s, 5MB, frozen for 12.3 ms: /d/a.vma"
    )


def test_done_line_says_what_a_backup_without_freeze_is_worth() -> None:
    line = VmLine(vmid=7, began_s=0.0, phase_began_s=0.0, name="a\x1b[2Jb")
    assert render_done(line, Consistency.CRASH, 2.0) == (
        "VM 7 (a [2Jb) done in 2s, consistency: crash"
    )
