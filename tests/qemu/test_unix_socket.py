"""Connecting to sockets that are far away or full."""

from __future__ import annotations

import os
import socket

import pytest

from vzdump_qemu.qemu.unix_socket import SocketBusy, connect_unix_socket


async def test_connect_below_too_long_path_works(tmp_path):
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    path = str(directory / "100.qmp")
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{descriptor}/100.qmp")
        listener.listen()
        with await connect_unix_socket(path, retry_count_max=1) as stream:
            assert stream.getblocking() is False
            listener.accept()[0].close()
    os.close(descriptor)


async def test_connect_below_missing_directory_is_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        await connect_unix_socket(str(tmp_path / ("x" * 120) / "100.qmp"), retry_count_max=1)


async def test_connect_full_queue_gives_up_after_its_retries(busy_socket):
    with pytest.raises(SocketBusy, match=r"^timeout after 3 retries$"):
        await connect_unix_socket(busy_socket, retry_interval_s=0.001, retry_count_max=3)
