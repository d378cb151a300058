"""The event daemon's handle, against a real listener."""

from __future__ import annotations

import socket

import pytest

from tests.sockets import busy_listener
from vzdump_qemu.errors import PowerError
from vzdump_qemu.node.event_daemon import hold_event_daemon


async def test_event_daemon_is_told_and_held_until_leaving(short_directory):
    path = str(short_directory / "qmeventd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with hold_event_daemon(path, vmid=100):
            client, _ = listener.accept()
            client.settimeout(5)
            assert client.recv(1000) == b'{"vzdump":{"vmid":"100"}}'
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        client.settimeout(5)
        assert client.recv(1) == b""
        client.close()


async def test_event_daemon_absent_is_no_problem(short_directory):
    path = str(short_directory / "none.sock")
    async with hold_event_daemon(path, vmid=100):
        pass


async def test_event_daemon_dead_is_a_power_error(short_directory):
    path = str(short_directory / "qmeventd.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(PowerError) as caught:
        async with hold_event_daemon(path, vmid=100):
            pass
    text = "unable to connect to qmeventd socket (vmid: 100) - Connection refused"
    assert str(caught.value) == text


async def test_event_daemon_busy_is_a_power_error_after_five_retries(short_directory):
    path = str(short_directory / "qmeventd.sock")
    with busy_listener(path), pytest.raises(PowerError) as caught:
        async with hold_event_daemon(path, vmid=100):
            pass
    text = "unable to connect to qmeventd socket (vmid: 100) - timeout after 5 retries"
    assert str(caught.value) == text
