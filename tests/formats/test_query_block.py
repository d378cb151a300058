"""Backends of ``query-block``."""

from __future__ import annotations

from typing import Any

import pytest

from vzdump_qemu.formats.query_block import device_path_of


@pytest.mark.parametrize(
    ("backend", "path"),
    [
        ({"qdev": "/machine/peripheral-anon/device[1]/virtio-backend"},
         "/machine/peripheral-anon/device[1]/virtio-backend"),
        ({"qdev": "scsi0"}, "/machine/peripheral/scsi0"),
        ({"qdev": ""}, ""),
        ({"qdev": None, "device": "drive-scsi0"}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_device_path_is_told_whichever_way_the_device_is_named(
    backend: dict[str, Any], path: str
) -> None:
    assert device_path_of(backend) == path
