"""Disks that QEMU reaches by itself, over a network: ``nbd:…``, ``iscsi://…``, ``rbd:…``.

Owns the grammar of such addresses, and the options of the block node that stands for one; nothing
is connected here. Source: host behaviour, sections 5.5 and 5.6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.storage_config import StorageSection

NBD_PORT = 10809
ISCSI_PORT = 3260
MONITOR_PORT = 3300
_ADDRESS = re.compile(r"(?:nbd|nbd\+tcp|nbd\+unix|iscsi|rbd):.+", re.DOTALL)
_UNESCAPED_COLON = re.compile(r"(?<!\\):")
_LIST_SEPARATORS = re.compile(r"[\s,;]+")
_RBD_KEYS = frozenset({"conf", "id", "mon_host", "auth_supported", "keyring"})
_HINT = "start the VM: its QEMU then reads the disk; or map the disk to a block device"


def is_disk_address(text: str) -> bool:
    """Whether a text is an address rather than a path or a volume of a storage."""
    return _ADDRESS.fullmatch(text) is not None


def protocol_node(address: str) -> dict[str, Any]:
    """Options of the node that speaks the protocol, without a name and without a format.

    Raises: ConfigError for an address that cannot be read, or needs what such a node cannot be
        told.
    """
    if address.startswith(("nbd://", "nbd+tcp://", "nbd+unix://")):
        return _nbd_of_uri(address)
    if address.startswith("nbd:"):
        return _nbd(address)
    if address.startswith("iscsi://"):
        return _iscsi(address)
    if address.startswith("rbd:"):
        return _rbd(address)
    raise _unreadable(address)


def render_rbd_address(
    section: StorageSection, image: str, *, conf_path: str, keyring_path: str
) -> str:
    """The address of an image in a storage of type ``rbd`` (5.5).

    Args:
        image: its name; of a linked clone the last part.
        conf_path: empty for none.
        keyring_path: empty for none.
    """
    options = section.options
    namespace = options.get("namespace", "")
    pool = options.get("pool", "rbd")
    text = f"rbd:{pool}/{namespace}/{image}" if namespace else f"rbd:{pool}/{image}"
    if conf_path:
        text += f":conf={conf_path}"
    if "monhost" in options:
        hosts = (_bracketed(host) for host in _LIST_SEPARATORS.split(options["monhost"]) if host)
        text += ":mon_host=" + ";".join(hosts).replace(":", "\\:")
        text += f":auth_supported={'cephx' if keyring_path else 'none'}"
    if keyring_path:
        text += f":id={options.get('username', 'admin')}:keyring={keyring_path}"
    return text


def _bracketed(host: str) -> str:
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def _nbd(address: str) -> dict[str, Any]:
    rest = address.removeprefix("nbd:")
    place, _, export = rest.partition(":exportname=")
    if place.startswith("unix:/"):
        return _nbd_node({"type": "unix", "path": place.removeprefix("unix:")}, export)
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise _unreadable(address)
    return _nbd_node(_inet(host, port), export)


def _nbd_of_uri(address: str) -> dict[str, Any]:
    uri = _split(address)
    export = unquote(uri.path.removeprefix("/"))
    if uri.scheme == "nbd+unix":
        paths = parse_qs(uri.query).get("socket", [])
        if not paths:
            raise _unreadable(address)
        return _nbd_node({"type": "unix", "path": paths[0]}, export)
    host, port = _host_and_port(address, NBD_PORT)
    return _nbd_node(_inet(host, port), export)


def _nbd_node(server: Mapping[str, str], export: str) -> dict[str, Any]:
    node: dict[str, Any] = {"driver": "nbd", "server": dict(server)}
    return {**node, "export": export} if export else node


def _inet(host: str, port: str) -> dict[str, str]:
    return {"type": "inet", "host": host.removeprefix("[").removesuffix("]"), "port": port}


def _iscsi(address: str) -> dict[str, Any]:
    uri = _split(address)
    parts = uri.path.split("/")
    host, port = _host_and_port(address, ISCSI_PORT)
    if len(parts) != 3 or not parts[1] or not parts[2].isdecimal():
        raise _unreadable(address)
    if "@" in uri.netloc:
        raise ConfigError("an iSCSI target with a password cannot be read offline", hint=_HINT)
    return {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": f"{_bracketed(host)}:{port}",
        "target": unquote(parts[1]),
        "lun": int(parts[2]),
    }


def _rbd(address: str) -> dict[str, Any]:
    place, *pairs = _UNESCAPED_COLON.split(address.removeprefix("rbd:"))
    names = place.split("/")
    if not 2 <= len(names) <= 3 or not all(names):
        raise _unreadable(address)
    node: dict[str, Any] = {"driver": "rbd", "pool": names[0], "image": names[-1]}
    if len(names) == 3:
        node["namespace"] = names[1]
    values = dict(_split_pair(address, pair) for pair in pairs)
    if "conf" in values:
        node["conf"] = values["conf"]
    elif "keyring" in values:
        # A node has no word for it: only a configuration file can name it.
        raise ConfigError(f"the keyring of '{place}' cannot be named to a block node", hint=_HINT)
    if "id" in values:
        node["user"] = values["id"]
    if "mon_host" in values:
        node["server"] = [_monitor(host) for host in values["mon_host"].split(";")]
    if "auth_supported" in values:
        node["auth-client-required"] = [values["auth_supported"]]
    return node


def _split_pair(address: str, pair: str) -> tuple[str, str]:
    key, equals, value = pair.replace("\\:", ":").partition("=")
    if not equals or key not in _RBD_KEYS:
        raise _unreadable(address)
    return key, value


def _monitor(text: str) -> dict[str, str]:
    match = re.fullmatch(r"\[(.+)\](?::([0-9]+))?|([^:]+)(?::([0-9]+))?", text)
    if match is None:
        raise ConfigError(f"not a Ceph monitor: '{text}'")
    port = match[2] or match[4] or str(MONITOR_PORT)
    return {"host": match[1] or match[3], "port": port}


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        raise _unreadable(address) from None


def _host_and_port(address: str, default_port: int) -> tuple[str, str]:
    uri = _split(address)
    try:
        host, port = uri.hostname, uri.port or default_port
    except ValueError:
        raise _unreadable(address) from None
    if not host:
        raise _unreadable(address)
    return host, str(port)


def _unreadable(address: str) -> ConfigError:
    return ConfigError(f"unable to parse disk address '{address}'")
