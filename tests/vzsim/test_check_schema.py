"""The simulated QEMU against the schemas of real ones, the check against broken fakes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.vzsim.replay import DATA, Replay
from vzsim.check_schema import check_dialect, read_schema
from vzsim.cli import main
from vzsim.fakeqmp.qapi import QapiSchema
from vzsim.fakeqmp.schema import Dialect, schema_of
from vzsim.fakeqmp.script import CommandRule, EventRule, Script

SESSIONS = sorted(path.stem for path in DATA.glob("*.jsonl") if not path.stem.startswith("qga"))


@pytest.mark.parametrize("dialect", Dialect)
def test_dialect_held_against_its_recorded_schema_has_no_deviation(dialect: Dialect) -> None:
    report = check_dialect(dialect)
    assert report.deviations == []
    assert report.reply_count > 100
    assert report.event_count > 50
    assert len(report.simulated) + len(report.not_simulated) == len(schema_of(dialect).commands)


@pytest.mark.parametrize(
    ("rule", "deviation"),
    [
        (
            CommandRule(name="query-status", patch={"status": "odd"}),
            'query-status.status: unknown value "odd"',
        ),
        (
            CommandRule(name="query-status", drop=("running",)),
            "query-status: member 'running' is missing",
        ),
        (
            CommandRule(name="query-status", patch={"extra": 1}),
            "query-status: member 'extra' is unknown",
        ),
        (
            CommandRule(name="query-block", reply=[{"device": 3}]),
            "query-block[0].device: 3 is no string",
        ),
        (
            CommandRule(name="query-jobs", error="never", error_class="OddError"),
            "query-jobs: never succeeded in the session of this check",
        ),
    ],
)
def test_broken_reply_is_found(rule: CommandRule, deviation: str) -> None:
    report = check_dialect(Dialect.UPSTREAM, script=Script(command=(rule,)))
    assert deviation in report.deviations


@pytest.mark.parametrize(
    ("event", "deviation"),
    [
        (EventRule(at_s=0.5, name="NO_SUCH"), "event NO_SUCH: no such event"),
        (EventRule(at_s=0.5, name="STOP", data={"x": 1}), "STOP: member 'x' is unknown"),
        (EventRule(at_s=0.5, name="RESET"), "RESET: member 'guest' is missing"),
    ],
)
def test_broken_event_is_found(event: EventRule, deviation: str) -> None:
    report = check_dialect(Dialect.PVE, script=Script(event=(event,)))
    assert deviation in report.deviations


def _bent(dialect: Dialect, change: str) -> QapiSchema:
    """A schema of a QEMU that never was."""
    entries = copy.deepcopy(list(schema_of(dialect).entries))
    by_name = {entry["name"]: entry for entry in entries}
    arguments = by_name[by_name["block_resize"]["arg-type"]]
    match change:
        case "command gone":
            entries.remove(by_name["block_resize"])
        case "argument gone":
            arguments["members"] = [m for m in arguments["members"] if m["name"] != "device"]
        case "argument mandatory":
            for member in arguments["members"]:
                member.pop("default", None)
        case "argument of another type":
            for member in arguments["members"]:
                member["type"] = "bool" if member["name"] == "size" else member["type"]
    return QapiSchema(entries)


@pytest.mark.parametrize(
    ("change", "deviation"),
    [
        ("command gone", "block_resize: no such command"),
        ("argument mandatory", "block_resize, without device: taken; by the schema refusal"),
        ("argument of another type", "block_resize, least: refused: Invalid parameter type"),
    ],
)
def test_difference_to_another_qemu_is_found(change: str, deviation: str) -> None:
    report = check_dialect(Dialect.UPSTREAM, _bent(Dialect.UPSTREAM, change))
    assert any(text.startswith(deviation) for text in report.deviations)


def _said(session: str) -> Iterator[tuple[QapiSchema, str, dict[str, Any]]]:
    """What the replayed machine said in a recorded session: schema, command, message."""
    replay = Replay(session)
    replay.run()
    for channel, entries in replay.got.items():
        if channel.startswith("qga"):
            continue
        dialect = Dialect.UPSTREAM
        if channel == "qsd":
            dialect = Dialect.STORAGE_DAEMON
        elif replay.machine is not None:
            dialect = replay.machine.config.dialect
        # Clients that come back, or talk to another process, count anew.
        asked = [
            record["message"]
            for record in replay.records
            if record["dir"] == "C"
            and record["channel"] == channel
            and isinstance(record.get("message"), dict)
            and "id" in record["message"]
        ]
        for _, message, _ in entries:
            if "event" in message:
                yield schema_of(dialect), "", message
            elif "id" in message:
                found = [i for i, each in enumerate(asked) if each["id"] == message["id"]]
                if not found:
                    # The request came in pieces, or was no request.
                    continue
                index = found[0]
                yield schema_of(dialect), str(asked[index].get("execute")), message
                del asked[: index + 1]


@pytest.mark.parametrize("session", SESSIONS)
def test_everything_said_in_a_replayed_session_is_in_the_schema(session: str) -> None:
    deviations, looked_at = [], 0
    for schema, command, message in _said(session):
        if "event" in message:
            entry, data = schema.events[message["event"]], message.get("data", {})
            deviations += schema.deviations(entry["arg-type"], data, message["event"])
            looked_at += 1
        elif "return" in message and command in schema.commands:
            entry = schema.commands[command]
            deviations += schema.deviations(entry["ret-type"], message["return"], command)
            looked_at += 1
    assert deviations == []
    assert looked_at or session == "qsd-command-line"


def test_command_line_prints_a_table_and_ends_with_zero() -> None:
    ended = CliRunner().invoke(main, ["check-schema"])
    assert ended.exit_code == 0
    first, *_, last = ended.output.splitlines()
    assert first.split() == ["pve", "upstream", "storage-daemon"]
    assert last == "no deviation"
    assert "check-schema" in CliRunner().invoke(main, ["--help"]).output


def test_command_line_given_another_schema_ends_with_one(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    bent = _bent(Dialect.UPSTREAM, "command gone")
    path.write_text(json.dumps({"return": bent.entries}), encoding="utf-8")
    arguments = ["check-schema", "--dialect", "upstream", "--schema", str(path)]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 1
    assert "upstream: DEVIATION: block_resize: no such command" in ended.output


@pytest.mark.parametrize("content", ["{", "[1]", '{"return": {}}', '{"error": {}}'])
def test_file_that_is_no_schema_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "schema.json"
    path.write_text(content, encoding="utf-8")
    arguments = ["check-schema", "--dialect", "pve", "--schema", str(path)]
    ended = CliRunner().invoke(main, arguments)
    assert ended.exit_code == 1
    assert len(ended.output.strip().splitlines()) == 1


def test_schema_as_told_by_the_simulator_is_the_one_it_is_held_against(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema_of(Dialect.PVE).entries), encoding="utf-8")
    assert check_dialect(Dialect.PVE, read_schema(str(path))).deviations == []
