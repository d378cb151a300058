"""The monitor adapter against scripted peers on real sockets, and against a real QEMU."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path

import pytest

from vzdump_qemu.errors import QmpClosed, QmpCommandError, QmpTimeout, QmpUnreachable
from vzdump_qemu.qemu.qmp_connection import connect_qmp


def _connect(path, request_ids, timeout_s=5.0):
    return connect_qmp(path, vmid=100, timeout_s=timeout_s, request_ids=request_ids)


async def test_connect_no_socket_is_unreachable(socket_directory, request_ids):
    path = str(socket_directory / "none.qmp")
    with pytest.raises(QmpUnreachable, match=r"^unable to open monitor socket$") as caught:
        async with _connect(path, request_ids):
            pass
    assert caught.value.hint == path


async def test_connect_no_listener_is_unreachable(socket_directory, request_ids):
    path = str(socket_directory / "dead.qmp")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(QmpUnreachable) as caught:
        async with _connect(path, request_ids):
            pass
    assert str(caught.value) == "unable to connect to VM 100 qmp socket - Connection refused"


@pytest.mark.slow
async def test_connect_full_queue_tells_retries_and_hint(busy_socket, request_ids):
    with pytest.raises(QmpUnreachable) as caught:
        async with _connect(busy_socket, request_ids, timeout_s=1.2):
            pass
    assert str(caught.value) in (
        "unable to connect to VM 100 qmp socket - timeout after 11 retries",
        "unable to connect to VM 100 qmp socket - timeout after 12 retries",
        "unable to connect to VM 100 qmp socket - no greeting within 1.2 s",
    )
    assert "another client may hold the monitor" in caught.value.hint


async def test_connect_no_greeting_is_unreachable_with_hint(serve, request_ids):
    async def silent(peer):
        await peer.read()

    path = await serve(silent)
    with pytest.raises(QmpUnreachable, match=r"no greeting within 0\.05 s") as caught:
        async with _connect(path, request_ids, timeout_s=0.05):
            pass
    assert "another client may hold the monitor" in caught.value.hint


async def test_connect_peer_closes_before_greeting_is_unreachable(serve, request_ids):
    async def close(peer):
        return

    path = await serve(close)
    with pytest.raises(QmpUnreachable, match="client closed connection"):
        async with _connect(path, request_ids):
            pass


async def test_row_10_1_8_connect_greeting_in_pieces_and_stray_replies_are_survived(
    serve, request_ids
):
    async def stray(peer):
        peer.writer.write(b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, ')
        await peer.writer.drain()
        peer.writer.write(b'"package": ""}, "capabilities": []}}\r\n')
        request = await peer.read()
        peer.send({"return": {"status": "active"}, "id": "99:1:7"})
        peer.send({"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}})
        peer.send({"return": {}, "id": request["id"]})
        request = await peer.read()
        peer.send({"return": {"status": "running"}, "id": request["id"]})

    path = await serve(stray)
    async with _connect(path, request_ids) as qmp:
        assert await qmp.execute("query-status", timeout_s=5) == {"status": "running"}


async def test_connect_negotiated_by_vanished_client_is_taken_over(serve, request_ids):
    async def already(peer):
        peer.send({"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}})
        request = await peer.read()
        error = {"class": "CommandNotFound", "desc": "Capabilities negotiation is complete"}
        peer.send({"error": error, "id": request["id"]})
        request = await peer.read()
        peer.send({"return": {}, "id": request["id"]})

    path = await serve(already)
    async with _connect(path, request_ids) as qmp:
        assert await qmp.execute("stop", timeout_s=5) == {}


async def test_execute_error_reply_keeps_class_and_text(serve, request_ids):
    async def refuse(peer):
        await peer.greet()
        request = await peer.read()
        error = {"class": "CommandNotFound", "desc": "The command backup has not been found"}
        peer.send({"id": request["id"], "error": error})
        await peer.read()

    path = await serve(refuse)
    async with _connect(path, request_ids) as qmp:
        with pytest.raises(QmpCommandError) as caught:
            await qmp.execute("backup", {"devlist": "drive-scsi0"}, timeout_s=5)
    assert caught.value.command == "backup"
    assert caught.value.error_class == "CommandNotFound"
    assert str(caught.value) == "The command backup has not been found"


async def test_row_10_1_8_execute_no_reply_times_out_and_connection_is_given_up(serve, request_ids):
    seen = []

    async def swallow(peer):
        await peer.greet()
        while True:
            seen.append((await peer.read())["execute"])

    path = await serve(swallow)
    async with _connect(path, request_ids) as qmp:
        with pytest.raises(QmpTimeout) as caught:
            await qmp.execute("query-backup", timeout_s=0.05)
        assert str(caught.value) == "VM 100 qmp command 'query-backup' failed - got timeout"
        with pytest.raises(QmpUnreachable):
            await qmp.execute("cont", timeout_s=5)
    assert seen == ["query-backup"]


async def test_row_10_1_8_execute_late_reply_of_earlier_connection_is_not_taken(serve, request_ids):
    """The peer answers each connection's command with the id of the one before as well."""
    earlier = []

    async def late(peer):
        await peer.greet()
        request = await peer.read()
        for request_id in earlier:
            peer.send({"return": "late", "id": request_id})
        earlier.append(request["id"])
        if len(earlier) > 1:
            peer.send({"return": "right", "id": request["id"]})
        await peer.read()

    path = await serve(late)
    async with _connect(path, request_ids) as qmp:
        with pytest.raises(QmpTimeout):
            await qmp.execute("query-backup", timeout_s=0.05)
    async with _connect(path, request_ids) as qmp:
        assert await qmp.execute("query-backup", timeout_s=5) == "right"
    assert earlier[0] != earlier[1]


async def test_row_10_1_8_execute_peer_closes_is_closed(serve, request_ids):
    async def die(peer):
        await peer.greet()
        await peer.read()

    path = await serve(die)
    async with _connect(path, request_ids) as qmp:
        with pytest.raises(QmpClosed) as caught:
            await qmp.execute("quit", timeout_s=5)
    assert str(caught.value) == "VM 100 qmp command 'quit' failed - client closed connection"


async def test_execute_reply_over_limit_is_closed(serve, request_ids, monkeypatch):
    from vzdump_qemu.qemu import qmp_transport

    async def flood(peer):
        await peer.greet()
        request = await peer.read()
        peer.send({"return": "x" * 200_000, "id": request["id"]})
        await peer.read()

    monkeypatch.setattr(qmp_transport, "REPLY_BYTES_MAX", 100_000)
    path = await serve(flood)
    async with _connect(path, request_ids) as qmp:
        with pytest.raises(QmpClosed, match="reply too long"):
            await qmp.execute("query-named-block-nodes", timeout_s=5)


async def test_execute_big_reply_is_read(serve, request_ids):
    async def big(peer):
        await peer.greet()
        request = await peer.read()
        peer.send({"return": "x" * 3_000_000, "id": request["id"]})
        await peer.read()

    path = await serve(big)
    async with _connect(path, request_ids) as qmp:
        reply = await qmp.execute("query-named-block-nodes", timeout_s=5)
    assert len(reply) == 3_000_000


async def test_row_10_1_8_execute_with_fd_sends_descriptor_in_message_of_command(
    socket_directory, request_ids
):
    """The kernel attaches the descriptor to the first byte of the very JSON message."""
    path = str(socket_directory / "fd.qmp")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    loop = asyncio.get_running_loop()

    def serve_blocking():
        stream, _ = listener.accept()
        with stream, listener:
            stream.sendall(b'{"QMP": {"version": {"qemu": {}, "package": ""}, ')
            stream.sendall(b'"capabilities": []}}\r\n')
            request = eval(stream.recv(4096))
            stream.sendall(b'{"return": {}, "id": "%s"}\r\n' % request["id"].encode())
            data, fds, _, _ = socket.recv_fds(stream, 4096, 4)
            request = eval(data)
            stream.sendall(b'{"return": {}, "id": "%s"}\r\n' % request["id"].encode())
            stream.recv(4096)
            return request, fds

    served = loop.run_in_executor(None, serve_blocking)
    read_fd, write_fd = os.pipe()
    async with _connect(path, request_ids) as qmp:
        await qmp.execute_with_fd("getfd", {"fdname": "backup"}, write_fd, timeout_s=5)
    request, fds = await served
    assert request["execute"] == "getfd"
    assert request["arguments"] == {"fdname": "backup"}
    assert len(fds) == 1
    os.write(fds[0], b"through")
    assert os.read(read_fd, 100) == b"through"
    for fd in (read_fd, write_fd, fds[0]):
        os.close(fd)


async def test_events_flood_keeps_newest_in_bounded_memory(serve, request_ids):
    async def flood(peer):
        await peer.greet()
        request = await peer.read()
        for index in range(10_000):
            peer.send({"event": "JOB_STATUS_CHANGE", "data": {"index": index}})
            if index % 100 == 0:
                await peer.writer.drain()
        peer.send({"event": "IGNORED", "data": {}})
        peer.send({"event": "BLOCK_JOB_COMPLETED", "data": {"device": "drive-scsi0"}})
        peer.send({"return": {}, "id": request["id"]})
        await peer.read()

    path = await serve(flood)
    seen = []
    async with (
        _connect(path, request_ids) as qmp,
        qmp.events("JOB_STATUS_CHANGE", "BLOCK_JOB_COMPLETED") as events,
    ):
        await qmp.execute("backup", timeout_s=20)
        async for event in events:
            seen.append(event)
            if event.name == "BLOCK_JOB_COMPLETED":
                break
    assert len(seen) == 4096
    assert seen[-1].data == {"device": "drive-scsi0"}
    assert seen[-2].data == {"index": 9999}


async def test_events_connection_ends_raises_closed(serve, request_ids):
    async def die(peer):
        await peer.greet()
        peer.send({"event": "SHUTDOWN", "data": {"guest": True}})

    path = await serve(die)
    names = []
    async with _connect(path, request_ids) as qmp, qmp.events("SHUTDOWN") as events:
        with pytest.raises(QmpClosed):
            async for event in events:
                names.append(event.name)
    assert names in ([], ["SHUTDOWN"])


async def test_execute_cancelled_closes_and_passes_cancellation_on(serve, request_ids):
    asked = asyncio.Event()
    closed = asyncio.Event()

    async def swallow(peer):
        await peer.greet()
        await peer.read()
        asked.set()
        try:
            await peer.read()
        finally:
            closed.set()

    path = await serve(swallow)

    async def work():
        async with _connect(path, request_ids) as qmp:
            await qmp.execute("backup", timeout_s=60)

    task = asyncio.create_task(work())
    await asyncio.wait_for(asked.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 5)


@pytest.mark.slow
async def test_real_qemu_commands_descriptors_and_second_client(
    socket_directory: Path, qemu_binary: str, request_ids
):
    """Goal: what the scripted peers play is what QEMU does."""
    path = str(socket_directory / "100.qmp")
    argv = [qemu_binary, "-machine", "none", "-nodefaults", "-display", "none", "-S"]
    argv += ["-qmp", f"unix:{path},server=on,wait=on"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:  # noqa: ASYNC220
        while not os.path.exists(path):
            assert process.poll() is None
            await asyncio.sleep(0.02)
        read_fd, write_fd = os.pipe()
        async with _connect(path, request_ids) as qmp:
            status = await qmp.execute("query-status", timeout_s=10)
            assert status["status"] == "prelaunch"
            await qmp.execute_with_fd("getfd", {"fdname": "backup"}, write_fd, timeout_s=10)
            await qmp.execute("closefd", {"fdname": "backup"}, timeout_s=10)
            added = await qmp.execute_with_fd("add-fd", {}, write_fd, timeout_s=10)
            assert added["fdset-id"] == 0
            with pytest.raises(QmpCommandError, match=r"No file descriptor supplied"):
                await qmp.execute("getfd", {"fdname": "x"}, timeout_s=10)
            with pytest.raises(QmpUnreachable, match=r"no greeting within 0\.3 s"):
                async with _connect(path, request_ids, timeout_s=0.3):
                    pass
        async with _connect(path, request_ids) as qmp:
            await qmp.execute("quit", timeout_s=10)
        os.close(read_fd)
        os.close(write_fd)
        assert process.wait(10) == 0
