"""Replays recorded sessions of real QEMU against simulated processes.

Replies are compared per channel, events per channel, both in order. Left out of the comparison:
times, uuids, made-up node names, amounts of progress, and the status of a poll that fell within the
instant in which a job ended.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.vzsim.replay import DATA, Replay

# Descriptions of nodes (by session and request) that go beyond what is simulated.
_NODES_NOT_COVERED = {
    ("pve-fleecing", 5): "the filter nodes and dump targets of a running Proxmox backup",
    ("pve-status-io-error", 3): "a drive whose image names a backing file in its header",
}
SESSIONS = sorted(path.stem for path in DATA.glob("*.jsonl"))

_VOLATILE = {
    "transferred", "zero-bytes", "start-time", "end-time", "uuid", "UUID", "node-name",
    "current-progress", "offset", "actual-size", "fd", "bitmap-node-name", "pid", "busy",
    "qom-path", "supported_commands",
}  # fmt: skip


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "*" if key in _VOLATILE else _normal(item)
            for key, item in value.items()
            if key != "timestamp"
        }
    if isinstance(value, list):
        return [_normal(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"#block\d+", "#block", value)
    if isinstance(value, int) and value > 10**15:
        return "*" if value != 9223372036854775807 else value
    return value


def _events(entries: list[Any]) -> list[Any]:
    found = [
        _normal(message)
        for _, message, _ in entries
        if isinstance(message, dict) and "event" in message
    ]
    return _without_drains(found)


def _without_drains(events: list[Any]) -> list[Any]:
    """Guests' drivers drain at times of their own: a pause that ends at once is left out.

    So it is if a guest's write fails meanwhile.
    """
    kept: list[Any] = []
    for event in events:
        at = len(kept) - 1
        while at >= 0 and kept[at]["event"] == "BLOCK_IO_ERROR":
            at -= 1
        if (
            at >= 0
            and event["event"] == "JOB_STATUS_CHANGE"
            and event["data"]["status"] == "running"
            and kept[at] == {**event, "data": {**event["data"], "status": "paused"}}
        ):
            del kept[at]
        else:
            kept.append(event)
    return kept


def _replies(entries: list[Any]) -> list[Any]:
    return [
        (t_ms, message, prefixed)
        for t_ms, message, prefixed in entries
        if not (isinstance(message, dict) and "event" in message)
    ]


def _compare_reply(got: Any, want: Any, *, session: str) -> None:
    got_message, want_message = got[1], want[1]
    assert got[2] == want[2]
    value, expected = got_message.get("return"), want_message.get("return")
    if isinstance(expected, dict) and "finishing" in expected and "status" in expected:
        assert value is not None
        if value["status"] != expected["status"] and "active" in (
            value["status"], expected["status"],
        ):  # fmt: skip
            # The poll and the end of the job fell into the same instant.
            return
        assert _normal(value) == _normal(expected)
    elif isinstance(expected, list) and expected and "image" in str(expected[0]):
        _compare_nodes(value, expected, session=session, request_id=want_message["id"])
    elif isinstance(expected, list) and expected and "frontend-open" in expected[0]:
        if "qga0" not in str(expected):
            assert value == expected
            return
        states = {entry["label"]: entry["frontend-open"] for entry in value}
        assert states.get("qga0") == next(
            entry["frontend-open"] for entry in expected if entry["label"] == "qga0"
        )
    elif isinstance(expected, dict) and "supported_commands" in expected:
        names = {entry["name"]: entry["enabled"] for entry in expected["supported_commands"]}
        assert {e["name"]: e["enabled"] for e in value["supported_commands"]} == names
    elif isinstance(expected, dict) and "ram" in expected:
        assert value["status"] == expected["status"]
        assert value.keys() == expected.keys() and value["ram"].keys() == expected["ram"].keys()
    elif isinstance(expected, dict) and ("kernel-release" in expected or "pid" in expected):
        assert value.keys() == expected.keys()
    elif isinstance(expected, str) and expected.startswith("Backup status"):
        volatile = r"(time|uuid): .*|\d+ \(\d+%\)"
        assert re.sub(volatile, "", value) == re.sub(volatile, "", expected)
    else:
        assert _normal(got_message) == _normal(want_message)


def _compare_nodes(value: Any, expected: Any, *, session: str, request_id: Any) -> None:
    """Nodes, bitmaps included; what guests write by themselves does not count."""
    if (session, request_id) in _NODES_NOT_COVERED:
        names = {entry.get("device", entry.get("drv")) for entry in expected}
        assert {entry.get("device", entry.get("drv")) for entry in value} <= names
        return
    guest_writes = "-guest" in session
    ours, theirs = (
        [_node(entry, guest_writes=guest_writes) for entry in entries]
        for entries in (value, expected)
    )
    assert ours == theirs


def _node(entry: Any, *, guest_writes: bool) -> Any:
    normal = _normal(entry)
    if normal.get("drv") == "file" and normal["file"].endswith("qcow2"):
        # How long an image file is depends on what has been written to it.
        normal["image"]["virtual-size"] = "*"
    for bitmap in normal.get("dirty-bitmaps", []):
        if "name" not in bitmap and guest_writes:
            bitmap["count"] = "*"
    return normal


@pytest.mark.parametrize("session", SESSIONS)
def test_machine_given_recorded_messages_answers_as_recorded(session: str) -> None:
    replay = Replay(session)
    replay.run()
    for channel, want in replay.want.items():
        got = replay.got.get(channel, [])
        want_replies, got_replies = _replies(want), _replies(got)
        for ours, theirs in zip(got_replies, want_replies, strict=False):
            _compare_reply(ours, theirs, session=session)
        assert [m for _, m, _ in got_replies[len(want_replies) :]] == []
        assert [m for _, m, _ in want_replies[len(got_replies) :]] == []
        assert _events(got) == _events(want)
    assert replay.checked_count == replay.checkable_count


def test_every_recording_is_replayed() -> None:
    assert len(SESSIONS) >= 95
