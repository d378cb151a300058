"""Nodes under which QEMU gets a volume: the rows of section 5.6."""

from __future__ import annotations

from typing import Any

import pytest

from vzdump_qemu.engine.attachments import file_node
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.ports import VolumeFacts


def _facts(path: str, *, is_block_device: bool = False) -> VolumeFacts:
    return VolumeFacts(
        volid="store:x",
        storage_id="store",
        path=path,
        size_bytes=512,
        format="raw",
        is_block_device=is_block_device,
    )


@pytest.mark.parametrize(
    ("facts", "node"),
    [
        (_facts("/x.raw"), {"driver": "file", "filename": "/x.raw"}),
        (
            _facts("/dev/vg/x", is_block_device=True),
            {"driver": "host_device", "filename": "/dev/vg/x"},
        ),
        (
            _facts("rbd:vms/x:conf=/etc/pve/ceph.conf:id=admin:keyring=/k"),
            {
                "driver": "rbd",
                "pool": "vms",
                "image": "x",
                "conf": "/etc/pve/ceph.conf",
                "user": "admin",
            },
        ),
        (
            _facts("iscsi://192.0.2.1/iqn.x:y/1"),
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "192.0.2.1:3260",
                "target": "iqn.x:y",
                "lun": 1,
            },
        ),
    ],
    ids=["file", "host_device", "rbd", "iscsi"],
)
def test_row_5_6_driver_of_a_volume(facts: VolumeFacts, node: dict[str, Any]) -> None:
    assert file_node(facts) == node
    assert file_node(facts, "below") == {**node, "node-name": "below"}


def test_row_5_6_address_that_a_node_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigError, match="the keyring of 'vms/x' cannot be named"):
        file_node(_facts("rbd:vms/x:id=admin:keyring=/k"))
