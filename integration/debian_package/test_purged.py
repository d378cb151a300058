"""The package removed with all that is its own; after every other test of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.debian_package.machines import Machine

# Ours no more: what apt and man have noted about the package.
_OTHERS = ("/proc", "/packages", "/var/cache/man", "/var/log/apt")


def test_purge_leaves_nothing(installed: Machine) -> None:
    installed.must("apt-get purge -y -qq vzdump-qemu 2>&1")
    passed_over = " -o ".join(f"-path {path}" for path in _OTHERS)
    left = installed.must(f"find / -xdev \\( {passed_over} \\) -prune -o -iname '*vzdump*' -print")
    assert left == ""
