"""Which options a VM configuration may have, and of which kind.

Owns the table; drives are left to `drive`, lines and sections to `vm_config`. Options whose
value a backup never looks at are checked by kind alone. Source: host behaviour, 3.2 and 3.5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.drive import DRIVE_KEYS, parse_drive
from vzdump_qemu.formats.property_string import (
    PropertyKind,
    PropertySchema,
    parse_boolean,
    parse_integer,
    parse_property_string,
)

AGENT_SCHEMA = PropertySchema(
    keys={
        "enabled": PropertyKind.BOOLEAN,
        "fstrim_cloned_disks": PropertyKind.BOOLEAN,
        "freeze-fs": PropertyKind.BOOLEAN,
        "type": PropertyKind.TEXT,
    },
    default_key="enabled",
    aliases={"freeze-fs-on-backup": "freeze-fs", "guest-fsfreeze": "freeze-fs"},
)
UNUSED_COUNT = 256

_BOOLEANS = (
    "acpi", "allow-ksm", "autostart", "ciupgrade", "freeze", "keephugepages", "kvm", "localtime",
    "numa", "onboot", "protection", "reboot", "tablet", "tdf", "template",
)  # fmt: skip
_INTEGERS = (
    "balloon", "cores", "shares", "smp", "snaptime", "sockets", "vcpus",
)  # fmt: skip
_TEXTS = (
    "affinity", "agent", "amd-sev", "arch", "args", "audio0", "bios", "boot", "bootdisk",
    "cicustom", "cipassword", "citype", "ciuser", "cpu", "cpulimit", "cpuunits", "description",
    "hookscript", "hotplug", "hugepages", "import-working-storage", "intel-tdx", "ivshmem",
    "keyboard", "lock", "machine", "memory", "meta", "migrate_downtime", "migrate_speed", "name",
    "nameserver",
    "ostype", "parent", "rng0", "running-nets-host-mtu", "runningcpu", "runningmachine", "scsihw",
    "searchdomain", "smbios1", "snapstate", "spice_enhancements", "sshkeys", "startdate",
    "startup", "tags", "vga", "vmgenid", "vmstate", "vmstatestorage", "watchdog",
)  # fmt: skip
_NUMBERED_COUNTS = {
    "hostpci": 16, "ipconfig": 32, "net": 32, "numa": 8, "parallel": 3, "serial": 4, "usb": 14,
    "virtiofs": 10, "unused": UNUSED_COUNT,
}  # fmt: skip
_KINDS: Mapping[str, PropertyKind] = {
    **dict.fromkeys(_TEXTS, PropertyKind.TEXT),
    **dict.fromkeys(_BOOLEANS, PropertyKind.BOOLEAN),
    **dict.fromkeys(_INTEGERS, PropertyKind.INTEGER),
    **{
        f"{name}{index}": PropertyKind.TEXT
        for name, count in _NUMBERED_COUNTS.items()
        for index in range(count)
    },
}
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_DRIVE_KEYS = frozenset(DRIVE_KEYS)


def check_option(key: str, value: str, *, vmid: int) -> None:
    """Check one value against the option's kind.

    Raises: ConfigError for an unknown option or a value that does not fit.
    """
    if key in _DRIVE_KEYS:
        parse_drive(key, value, vmid=vmid)
        return
    kind = _KINDS.get(key)
    if kind is None:
        raise ConfigError(f"unknown setting '{key}'")
    if kind is PropertyKind.BOOLEAN:
        parse_boolean(value)
    elif kind is PropertyKind.INTEGER:
        parse_integer(value)
    elif key == "name" and _DNS_NAME.fullmatch(value) is None:
        raise ConfigError("invalid format - value does not look like a valid DNS name")
    elif key == "agent":
        parse_property_string(value, AGENT_SCHEMA)
