"""The file that makes a folder a lab: which QEMU it runs, and how.

Owns its grammar, ``key: value`` lines, ``#`` for comments; what a lab holds beside it is left to
`lab`. A node without this file runs the QEMU that is installed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from vzdump_qemu.errors import ConfigError

DEFAULT_QEMU = "qemu-system-x86_64"
DEFAULT_ACCELERATOR = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabConfig:
    """Settings of a folder node.

    Attributes:
        qemu: program, by name or path.
        accelerator: QEMU's ``accel``: ``tcg``, ``kvm`` or a list such as ``kvm:tcg``.
    """

    qemu: str = DEFAULT_QEMU
    accelerator: str = DEFAULT_ACCELERATOR

    def render(self) -> str:
        """The file's text."""
        return f"qemu: {self.qemu}\naccel: {self.accelerator}\n"


def read_lab_config(path: str) -> LabConfig | None:
    """The settings, or None where there is no such file. Raises ConfigError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"unable to read '{path}' - {error.strerror}") from error
    values = {"qemu": DEFAULT_QEMU, "accel": DEFAULT_ACCELERATOR}
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, colon, value = line.partition(":")
        if not colon or key.strip() not in values or not value.strip():
            raise ConfigError(f"unable to parse '{os.path.basename(path)}': {line}")
        values[key.strip()] = value.strip()
    return LabConfig(qemu=values["qemu"], accelerator=values["accel"])
