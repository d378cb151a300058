"""The agent adapter against scripted agents on real sockets."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import AgentCommandError, AgentTimeout, AgentUnreachable
from vzdump_qemu.qemu import agent_connection
from vzdump_qemu.qemu.agent_connection import connect_agent
from vzdump_qemu.qemu.request_ids import RequestIds


def _connect(path, request_ids, timeout_s=5.0):
    return connect_agent(path, vmid=100, timeout_s=timeout_s, request_ids=request_ids)


async def test_connect_agent_no_socket_is_unreachable(socket_directory, request_ids):
    with pytest.raises(AgentUnreachable, match=r"^unable to open monitor socket$"):
        async with _connect(str(socket_directory / "none.qga"), request_ids):
            pass


async def test_connect_agent_nobody_answers_is_unreachable(serve, request_ids):
    async def silent(peer):
        await peer.reader.read()

    path = await serve(silent)
    with pytest.raises(AgentUnreachable, match=r"^VM 100 qga command failed - got timeout$"):
        async with _connect(path, request_ids, timeout_s=0.05):
            pass


async def test_connect_agent_channel_ends_is_unreachable(serve, request_ids):
    async def close(peer):
        await peer.read()

    path = await serve(close)
    with pytest.raises(AgentUnreachable, match=r"client closed connection$"):
        async with _connect(path, request_ids):
            pass


async def test_row_10_1_9_execute_returns_value_behind_its_own_sync(serve, request_ids):
    sync_ids = []

    async def agent(peer):
        sync_ids.append(await peer.answer_sync())
        sync_ids.append(await peer.answer_sync())
        assert await peer.read() == {
            "execute": "guest-fsfreeze-freeze-list",
            "arguments": {"mountpoints": ["/"]},
        }
        peer.send({"return": 3})
        await peer.reader.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        frozen_count = await connection.execute(
            "guest-fsfreeze-freeze-list", {"mountpoints": ["/"]}, timeout_s=5
        )
    assert frozen_count == 3
    assert sync_ids[0] < sync_ids[1]
    assert all(str(sync_id).startswith("42420") for sync_id in sync_ids)


async def test_row_10_1_9_connect_agent_first_request_starts_with_delimiter(serve, request_ids):
    first = []

    async def agent(peer):
        first.append(await peer.reader.readline())

    path = await serve(agent)
    with pytest.raises(AgentUnreachable):
        async with _connect(path, request_ids):
            pass
    assert first[0].startswith(b'\xff{"execute": "guest-sync-delimited"')


async def test_row_10_1_9_connect_agent_left_overs_of_others_are_skipped(serve, request_ids):
    async def agent(peer):
        request = await peer.read()
        peer.writer.write(b'{"return": {}}\n{"error": {"class": "GenericError", "desc": "JSON')
        peer.writer.write(b' parse error"}}\n\xff{"return": 7}\nhalf a li\xff{"retu\xffnonsense\n')
        peer.send({"return": request["arguments"]["id"]}, prefix=b"\x00\xff")
        await peer.answer_sync()
        await peer.read()
        peer.send({"return": {}})
        await peer.reader.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        assert await connection.execute("guest-ping", timeout_s=5) == {}


async def test_execute_late_reply_is_not_taken_for_the_next_command(serve, request_ids):
    async def agent(peer):
        await peer.answer_sync()
        sync = await peer.read()
        await peer.read()
        next_sync = await peer.read()
        await peer.read()
        peer.send({"return": sync["arguments"]["id"]}, prefix=b"\xff")
        peer.send({"return": 2})
        peer.send({"return": next_sync["arguments"]["id"]}, prefix=b"\xff")
        peer.send({"return": "thawed"})
        await peer.reader.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        with pytest.raises(AgentTimeout) as caught:
            await connection.execute("guest-fsfreeze-freeze", timeout_s=0.05)
        assert str(caught.value) == (
            "VM 100 qga command 'guest-fsfreeze-freeze' failed - got timeout"
        )
        assert await connection.execute("guest-fsfreeze-status", timeout_s=5) == "thawed"


async def test_execute_sync_reply_from_the_future_is_refused(serve, request_ids):
    async def agent(peer):
        sync_id = await peer.answer_sync()
        peer.send({"return": sync_id + 100}, prefix=b"\xff")
        await peer.reader.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        with pytest.raises(AgentTimeout, match=r"got wrong command id '\d+' \(expected \d+\)$"):
            await connection.execute("guest-ping", timeout_s=5)


async def test_row_10_1_9_execute_error_reply_is_an_agent_error(serve, request_ids):
    async def agent(peer):
        await peer.answer_sync()
        await peer.answer_sync()
        await peer.read()
        peer.send({"error": {"class": "CommandNotFound", "desc": "The command has gone"}})
        await peer.reader.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        with pytest.raises(AgentCommandError) as caught:
            await connection.execute("guest-fsfreeze-freeze", timeout_s=5)
    assert caught.value.error_class == "CommandNotFound"
    assert str(caught.value) == "Agent error: The command has gone"


@pytest.mark.parametrize(
    "command", ["guest-shutdown", "guest-suspend-ram", "guest-suspend-disk", "guest-suspend-hybrid"]
)
async def test_execute_silent_command_ending_the_channel_succeeds(serve, request_ids, command):
    async def agent(peer):
        await peer.answer_sync()
        await peer.answer_sync()
        await peer.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        assert await connection.execute(command, timeout_s=5) == {}


async def test_execute_other_command_ending_the_channel_fails(serve, request_ids):
    async def agent(peer):
        await peer.answer_sync()
        await peer.answer_sync()
        await peer.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        with pytest.raises(AgentTimeout) as caught:
            await connection.execute("guest-fsfreeze-freeze", timeout_s=5)
    assert str(caught.value) == (
        "VM 100 qga command 'guest-fsfreeze-freeze' failed - client closed connection"
    )


async def test_execute_endless_line_of_the_guest_is_bounded(serve, request_ids, monkeypatch):
    async def agent(peer):
        await peer.answer_sync()
        await peer.answer_sync()
        await peer.read()
        while True:
            peer.writer.write(b"x" * 65536)
            await peer.writer.drain()

    monkeypatch.setattr(agent_connection, "LINE_BYTES_MAX", 100_000)
    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        with pytest.raises(AgentTimeout, match=r"line over 100000 bytes$"):
            await connection.execute("guest-info", timeout_s=5)


@pytest.mark.parametrize("reply", [b"nonsense\n", b"[1]\n", b"{}\n"])
async def test_execute_reply_that_is_no_answer_fails(serve, request_ids, reply):
    async def agent(peer):
        await peer.answer_sync()
        await peer.answer_sync()
        await peer.read()
        peer.writer.write(reply)
        await peer.reader.read()

    path = await serve(agent)
    async with _connect(path, request_ids) as connection:
        with pytest.raises(AgentTimeout, match=r"reply"):
            await connection.execute("guest-info", timeout_s=5)


def test_request_ids_of_one_process_grow_and_prefixes_differ():
    ids = RequestIds(7)
    sync_ids = [ids.next_sync_id() for _ in range(1500)]
    assert sync_ids == sorted(sync_ids)
    assert ids.next_qmp_prefix() != ids.next_qmp_prefix()
