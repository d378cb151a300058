"""Where everything of a PVE node lies, below a root directory.

Owns paths and nothing else: ``/`` in production, any folder laid out like a node otherwise.
Source: host behaviour, sections 1.4, 3.1, 4, 5.1, 6.1 and 7.5; architecture, section 5.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

# What QEMU and the tools around it leave beside each other for one VM.
RUNTIME_SUFFIXES = ("mon", "qmp", "pid", "vnc", "qga", "serial0")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLayout:
    """All paths of one node.

    Attributes:
        root: prefix of every path, without a final slash unless it is ``/`` itself.
        node_name: the node's name in the cluster.
    """

    root: str
    node_name: str

    @property
    def pve_directory(self) -> str:
        return self._below("etc/pve")

    @property
    def vm_config_directory(self) -> str:
        """The directory that ``etc/pve/qemu-server`` points to for the local node."""
        return self._below(f"etc/pve/nodes/{self.node_name}/qemu-server")

    @property
    def storage_config(self) -> str:
        return self._below("etc/pve/storage.cfg")

    @property
    def secret_directory(self) -> str:
        """Passwords and keys of storages, for root alone."""
        return self._below("etc/pve/priv/storage")

    @property
    def lab_config(self) -> str:
        """Settings of a folder node; a real node has no such file."""
        return self._below("etc/vzdump-qemu/lab.conf")

    @property
    def vzdump_config(self) -> str:
        return self._below("etc/vzdump.conf")

    @property
    def global_lock(self) -> str:
        return self._below("var/run/vzdump.lock")

    @property
    def global_pid_file(self) -> str:
        return self._below("var/run/vzdump.pid")

    @property
    def journal_directory(self) -> str:
        """What killed runs would have to put back; a lock and files outlive a reboot."""
        return self._below("var/lib/vzdump-qemu")

    @property
    def log_directory(self) -> str:
        return self._below("var/log/vzdump")

    @property
    def task_log_directory(self) -> str:
        """Of the platform, by the last digit of a task's begin; only a real node has it."""
        return self._below("var/log/pve/tasks")

    @property
    def vm_lock_directory(self) -> str:
        return self._below("var/lock/qemu-server")

    @property
    def runtime_directory(self) -> str:
        """Sockets and pid files of the VMs."""
        return self._below("var/run/qemu-server")

    @property
    def event_daemon_socket(self) -> str:
        return self._below("var/run/qmeventd.sock")

    @property
    def default_storage_path(self) -> str:
        """Of the storage ``local``."""
        return self._below("var/lib/vz")

    def vm_config(self, vmid: int) -> str:
        return os.path.join(self.vm_config_directory, f"{vmid}.conf")

    def firewall(self, vmid: int) -> str:
        return self._below(f"etc/pve/firewall/{vmid}.fw")

    def vm_lock(self, vmid: int) -> str:
        return os.path.join(self.vm_lock_directory, f"lock-{vmid}.conf")

    def qmp_socket(self, vmid: int) -> str:
        return self._runtime(vmid, "qmp")

    def agent_socket(self, vmid: int) -> str:
        return self._runtime(vmid, "qga")

    def serial_socket(self, vmid: int) -> str:
        return self._runtime(vmid, "serial0")

    def pid_file(self, vmid: int) -> str:
        return self._runtime(vmid, "pid")

    def private_directory(self, vmid: int) -> str:
        """Where the socket of an NBD server of ours lies; no longer than the other sockets."""
        return self._runtime(vmid, "nbd")

    def runtime_files(self, vmid: int) -> tuple[str, ...]:
        """What must be gone once the VM's process is."""
        return tuple(self._runtime(vmid, suffix) for suffix in RUNTIME_SUFFIXES)

    def _runtime(self, vmid: int, suffix: str) -> str:
        return os.path.join(self.runtime_directory, f"{vmid}.{suffix}")

    def _below(self, relative: str) -> str:
        return os.path.join(self.root, relative)
