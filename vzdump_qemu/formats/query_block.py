"""Backends as QEMU tells them in the answer to ``query-block``.

Owns what several readers of that answer must take from it alike. Source: QEMU QAPI `BlockInfo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def device_path_of(backend: Mapping[str, Any]) -> str:
    """QOM path of the device in front of a backend; empty without one.

    A device that was given an id is told by that id alone, every other by its path.
    """
    qdev = str(backend.get("qdev") or "")
    return qdev if qdev.startswith("/") or not qdev else f"/machine/peripheral/{qdev}"
