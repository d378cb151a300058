"""One run as a timeline and as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from vzdump_qemu.errors import ConfigError
from vzsim.cli import main
from vzsim.token import Token
from vzsim.units_text import seconds_text

TOKEN = "snapshot-running/4/agent.thaw#1:stall+4s"


class _Balance(HTMLParser):
    """Counts open elements and remembers the classes of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.marks: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.marks.update((dict(attrs).get("class") or "").split())
        if tag in ("table", "tr", "td", "ul", "li"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "tr", "td", "ul", "li"):
            assert self.open.pop() == tag


def test_replay_verb_prints_what_happened_in_order(tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    result = CliRunner().invoke(main, ["replay", TOKEN, "--html", str(page)])
    assert result.exit_code == 0, result.output
    text = result.output
    assert f"token     {TOKEN}" in text and "no violation" in text
    parts = ["frozen", "obeys backup", "fault  agent.thaw#1: stall 4s", "thawed", "ended ok"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    balance = _Balance()
    balance.feed(page.read_text())
    assert balance.open == []
    assert {"frozen", "fault", "time"} <= balance.marks


def test_fault_that_never_came_is_told() -> None:
    word = "snapshot-running/1/agent.thaw#1:error,kill-tool@archive.publish#1"
    result = CliRunner().invoke(main, ["replay", word])
    told = [line for line in result.output.splitlines() if line.startswith("never came")]
    assert told == ["never came: kill-tool@archive.publish#1"]


def test_raw_log_is_the_bare_event_log() -> None:
    result = CliRunner().invoke(main, ["replay", TOKEN, "--raw"])
    lanes = {line.split(" ")[1] for line in result.output.splitlines()}
    assert {"tool", "qemu", "guest", "files", "fault"} <= lanes


@pytest.mark.parametrize("text", ["", "x", "x/y/z", "x/1/odd"])
def test_word_that_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Token.parse(text)


def test_lengths_are_short_text() -> None:
    assert [seconds_text(ns) for ns in (40_000, 12_000_000, 3_200_000_000)] == [
        "+40µs",
        "+12ms",
        "+3.2s",
    ]
