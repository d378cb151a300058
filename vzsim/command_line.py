"""QEMU's command line grammar: options, and ``key=value,…`` lists with ``,,`` for a comma.

Owns splitting and which options are known. What they mean is left to `launch`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vzdump_qemu.errors import ConfigError

# Options that take a value. All are accepted; those that nothing looks at are simply not simulated.
_WITH_VALUE = frozenset(
    {
        "accel", "add-fd", "append", "audio", "audiodev", "bios", "blockdev", "boot", "chardev",
        "cpu", "cpuset", "device", "display", "drive", "dtb", "fsdev", "fw_cfg", "gdb",
        "global", "hda", "id", "incoming", "initrd", "iscsi", "k", "kernel", "l", "loadvm", "m",
        "machine", "M", "mon", "msg", "name", "netdev", "net", "nic", "numa", "object",
        "option-rom", "parallel", "pidfile", "qmp", "qmp-pretty", "readconfig", "rtc",
        "run-with", "runas", "sandbox", "serial", "set", "smbios", "smp", "spice", "trace",
        "tpmdev", "usbdevice", "uuid", "vga", "virtfs", "vnc", "watchdog-action", "action",
        "overcommit", "mem-path", "monitor", "D", "d", "vzsim",
    }
)  # fmt: skip
_WITHOUT_VALUE = frozenset(
    {
        "S", "daemonize", "enable-kvm", "h", "help", "no-acpi", "no-fd-bootchk", "no-hpet",
        "no-reboot", "no-shutdown", "nodefaults", "nographic", "no-user-config",
        "only-migratable", "s", "snapshot", "usb", "version", "mem-prealloc",
    }
)  # fmt: skip


def split_arguments(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Split a command line into (option, value) pairs in order; one or two dashes are the same.

    Raises: ConfigError with QEMU's own text.
    """
    found = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name = word[1:].removeprefix("-")
        if not word.startswith("-") or word == "-":
            found.append(("hda", word))
        elif name in _WITHOUT_VALUE:
            found.append((name, ""))
        elif name not in _WITH_VALUE:
            raise ConfigError(f"{word}: invalid option")
        elif not rest:
            raise ConfigError(f"{word}: requires an argument")
        else:
            found.append((name, rest.pop(0)))
    return found


def parse_options(text: str, *, first_key: str = "") -> dict[str, str]:
    """Parse ``value,key=value,flag,noflag``; ``,,`` stands for a comma in a value.

    Args:
        first_key: key of a first element without ``=``; empty if there is none.
    """
    options: dict[str, str] = {}
    for index, element in enumerate(_split_commas(text)):
        key, equals, value = element.partition("=")
        if equals:
            options[key] = value
        elif index == 0 and first_key:
            options[first_key] = element
        elif element.startswith("no") and element != "node-name":
            options[element.removeprefix("no")] = "off"
        elif element:
            options[element] = "on"
    return options


def _split_commas(text: str) -> list[str]:
    elements, current, index = [], "", 0
    while index < len(text):
        if text[index] == ",":
            if text[index + 1 : index + 2] == ",":
                current += ","
                index += 2
                continue
            elements.append(current)
            current = ""
        else:
            current += text[index]
        index += 1
    return [*elements, current]
