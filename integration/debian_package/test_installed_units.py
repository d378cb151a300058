"""The units under a real systemd: what a stop and a kill leave of a backup, and of a VM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.debian_package.machines import Machine

UNIT = "vzdump-qemu@nightly.service"
JOBS = "/srv/lab/etc/vzdump-qemu/jobs.cfg"


@pytest.fixture(scope="module")
def node(booted: Machine) -> Machine:
    """A machine with a lab whose VM runs; the unit is told where, and nothing else."""
    booted.must(
        f"""
        vzdump-qemu lab create /srv/lab --vm 100 --qemu qemu-system-x86_64 --disk scsi0=64M --fill 1
        vzdump-qemu lab start /srv/lab 100
        mkdir -p /etc/systemd/system/{UNIT}.d
        cat >/etc/systemd/system/{UNIT}.d/lab.conf <<'END'
[Service]
ExecStart=
ExecStart=/usr/bin/vzdump-qemu --root /srv/lab --job %i --quiet 0 --output log
END
        systemctl daemon-reload
        """
    )
    return booted


def write_job(node: Machine, *options: str) -> None:
    lines = "\\n".join(["vzdump: nightly", *(f"\\t{option}" for option in ("vmid 100", *options))])
    node.must(f"printf '{lines}\\n' >{JOBS}")


def start_and_wait_for_data(node: Machine) -> None:
    node.must(
        f"""
        systemctl start --no-block {UNIT}
        timeout 60 bash -c \
          'until ls /srv/lab/var/lib/vz/dump/*.dat >/dev/null 2>&1; do sleep 0.1; done'
        """
    )


def nothing_is_left(node: Machine) -> None:
    node.must(
        """
        timeout 60 bash -c \
          'while ls /srv/lab/var/lib/vzdump-qemu/*.journal >/dev/null 2>&1; do sleep 0.1; done'
        """
    )
    assert node.run("ls /srv/lab/var/lib/vz/dump/*.dat")[0] != 0
    assert "lock" not in node.must("cat /srv/lab/etc/pve/qemu-server/100.conf")
    assert "running" in node.must("vzdump-qemu lab status /srv/lab")


def test_job_runs_and_its_log_is_in_the_journal(node: Machine) -> None:
    write_job(node, "compress zstd")
    node.must(f"systemctl start {UNIT}")
    assert "TASK OK" in node.must(f"journalctl --no-pager -o cat -u {UNIT}")


def test_stopped_unit_puts_the_guest_back_before_it_ends(node: Machine) -> None:
    write_job(node, "bwlimit 4096")
    start_and_wait_for_data(node)
    node.must(f"systemctl stop {UNIT}")
    assert "interrupted by signal" in node.must(f"journalctl --no-pager -o cat -u {UNIT}")
    nothing_is_left(node)


def test_guardian_outlives_a_killed_tool_and_puts_the_guest_back(node: Machine) -> None:
    write_job(node, "bwlimit 4096")
    start_and_wait_for_data(node)
    node.must(f"kill -9 $(systemctl show -p MainPID --value {UNIT})")
    nothing_is_left(node)
    assert node.must(f"systemctl show -p Result {UNIT}") == "Result=signal\n"
    assert "put back after an earlier run" in node.must("cat /srv/lab/var/log/vzdump/qemu-100.log")


def test_vm_started_within_the_unit_outlives_it(node: Machine) -> None:
    # As stop mode starts a VM again; this guest has nothing that a shutdown would reach.
    write_job(node, "compress zstd")
    node.must(
        f"""
        vzdump-qemu lab stop /srv/lab 100
        cat >/etc/systemd/system/{UNIT}.d/start.conf <<'END'
[Service]
ExecStartPre=/usr/bin/vzdump-qemu lab start /srv/lab 100
END
        systemctl daemon-reload
        systemctl start {UNIT}
        rm /etc/systemd/system/{UNIT}.d/start.conf
        systemctl daemon-reload
        """
    )
    assert node.must(f"systemctl show -p ActiveState {UNIT}") == "ActiveState=inactive\n"
    nothing_is_left(node)
    node.must(f"systemctl start {UNIT}")
    nothing_is_left(node)


def test_timer_has_the_times_of_its_job(node: Machine) -> None:
    write_job(node, "schedule mon..fri 22:30")
    node.must(
        """
        mkdir -p /etc/systemd/system/vzdump-qemu@nightly.timer.d
        vzdump-qemu jobs --root /srv/lab --systemd nightly \
          >/etc/systemd/system/vzdump-qemu@nightly.timer.d/schedule.conf
        systemctl daemon-reload
        systemctl enable --now vzdump-qemu@nightly.timer
        """
    )
    told = node.must("systemctl show -p TimersCalendar -p Persistent vzdump-qemu@nightly.timer")
    assert "OnCalendar=Mon..Fri *-*-* 22:30:00" in told
    assert told.count("OnCalendar=") == 1
    assert "Persistent=no" in told
