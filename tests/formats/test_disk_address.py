"""Addresses of disks that QEMU reaches by itself: rows of sections 5.5 and 5.6."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.disk_address import is_disk_address, protocol_node, render_rbd_address
from vzdump_qemu.formats.storage_config import StorageSection, parse_storage_config


def _rbd(*lines: str) -> StorageSection:
    text = "rbd: ceph\n" + "".join(f"\t{line}\n" for line in lines)
    return parse_storage_config(text.encode()).sections["ceph"]


@pytest.mark.parametrize(
    ("lines", "conf_path", "keyring_path", "address"),
    [
        ((), "/etc/pve/ceph.conf", "", "rbd:rbd/vm-1-disk-0:conf=/etc/pve/ceph.conf"),
        (("pool vms",), "", "", "rbd:vms/vm-1-disk-0"),
        (("pool vms", "namespace n1"), "", "", "rbd:vms/n1/vm-1-disk-0"),
        (
            ("monhost 192.0.2.1 192.0.2.2:6789",),
            "",
            "",
            "rbd:rbd/vm-1-disk-0:mon_host=192.0.2.1;192.0.2.2\\:6789:auth_supported=none",
        ),
        (
            ("monhost 2001:db8::1,[2001:db8::2]:3300",),
            "/etc/pve/priv/ceph/ceph.conf",
            "/k",
            "rbd:rbd/vm-1-disk-0:conf=/etc/pve/priv/ceph/ceph.conf"
            ":mon_host=[2001\\:db8\\:\\:1];[2001\\:db8\\:\\:2]\\:3300:auth_supported=cephx"
            ":id=admin:keyring=/k",
        ),
        (
            ("monhost ceph1", "username backup"),
            "",
            "/k",
            "rbd:rbd/vm-1-disk-0:mon_host=ceph1:auth_supported=cephx:id=backup:keyring=/k",
        ),
    ],
    ids=["conf", "pool", "namespace", "monhost", "monhost IPv6 with keyring", "username"],
)
def test_row_5_5_librbd(
    lines: tuple[str, ...], conf_path: str, keyring_path: str, address: str
) -> None:
    rendered = render_rbd_address(
        _rbd(*lines), "vm-1-disk-0", conf_path=conf_path, keyring_path=keyring_path
    )
    assert rendered == address
    assert is_disk_address(rendered)


@pytest.mark.parametrize(
    ("address", "node"),
    [
        (
            "rbd:vms/n1/vm-1-disk-0:conf=/c:id=backup",
            {
                "driver": "rbd",
                "pool": "vms",
                "namespace": "n1",
                "image": "vm-1-disk-0",
                "conf": "/c",
                "user": "backup",
            },
        ),
        (
            "rbd:rbd/x:mon_host=192.0.2.1;[2001\\:db8\\:\\:2]\\:6789:auth_supported=none",
            {
                "driver": "rbd",
                "pool": "rbd",
                "image": "x",
                "server": [
                    {"host": "192.0.2.1", "port": "3300"},
                    {"host": "2001:db8::2", "port": "6789"},
                ],
                "auth-client-required": ["none"],
            },
        ),
        (
            "iscsi://192.0.2.1/iqn.2001-04.example:x/1",
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "192.0.2.1:3260",
                "target": "iqn.2001-04.example:x",
                "lun": 1,
            },
        ),
        (
            "iscsi://[2001:db8::1]:3261/iqn.x/0",
            {
                "driver": "iscsi",
                "transport": "tcp",
                "portal": "[2001:db8::1]:3261",
                "target": "iqn.x",
                "lun": 0,
            },
        ),
        (
            "nbd:unix:/run/x y:exportname=disk 1",
            {
                "driver": "nbd",
                "server": {"type": "unix", "path": "/run/x y"},
                "export": "disk 1",
            },
        ),
        (
            "nbd:[2001:db8::1]:10809",
            {"driver": "nbd", "server": {"type": "inet", "host": "2001:db8::1", "port": "10809"}},
        ),
        (
            "nbd://nas.example/disk%201",
            {
                "driver": "nbd",
                "server": {"type": "inet", "host": "nas.example", "port": "10809"},
                "export": "disk 1",
            },
        ),
        (
            "nbd+unix:///?socket=/run/x",
            {"driver": "nbd", "server": {"type": "unix", "path": "/run/x"}},
        ),
    ],
)
def test_row_5_6_node(address: str, node: dict[str, Any]) -> None:
    assert is_disk_address(address)
    assert protocol_node(address) == node


@pytest.mark.parametrize(
    "address",
    [
        "nbd:host",
        "nbd:host:port",
        "nbd+unix:///x",
        "nbd://host:99999/x",
        "iscsi://host/target",
        "iscsi://host/target/x",
        "iscsi:///target/1",
        "rbd:image",
        "rbd:pool//image",
        "rbd:pool/image:weird=1",
        "ssh://host/x",
    ],
)
def test_address_that_cannot_be_read_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        protocol_node(address)
    assert caught.value.message == f"unable to parse disk address '{address}'"


@pytest.mark.parametrize(
    "address", ["rbd:pool/image:id=admin:keyring=/k", "iscsi://me%secret@host/target/1"]
)
def test_secret_that_a_node_cannot_be_told_is_refused_unsaid(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        protocol_node(address)
    assert "secret" not in str(caught.value)
    assert caught.value.hint.startswith("start the VM")


@pytest.mark.parametrize("text", ["/dev/sdb", "local:100/x.raw", "nbd:", "rbd", "nbdx:host:1"])
def test_other_texts_are_no_addresses(text: str) -> None:
    assert not is_disk_address(text)


@given(st.sampled_from(["nbd:", "nbd://", "nbd+unix://", "iscsi://", "rbd:"]), st.text())
def test_any_text_is_read_or_refused(head: str, rest: str) -> None:
    try:
        assert "driver" in protocol_node(head + rest)
    except ConfigError as error:
        assert error.message
