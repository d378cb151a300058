"""The Debian package on Debian 12 and 13: what an operator does with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.debian_package.machines import Machine

UNITS = "vzdump-qemu@.service vzdump-qemu@.timer vzdump-qemu-recover.service"
TOOL = "vzdump-qemu --root /srv/lab"
MAKE_LAB = """
    test -d /srv/lab ||
      vzdump-qemu lab create /srv/lab --vm 100 --qemu qemu-system-x86_64 --disk scsi0=64M --fill 1
"""


def test_command_tells_its_version_help_and_manual(installed: Machine) -> None:
    assert installed.must("vzdump-qemu --version") == "vzdump-qemu 0.1.0\n"
    assert "--job ID" in installed.must("vzdump-qemu --help")
    manual = installed.must("man -P cat vzdump-qemu")
    assert "VZDUMP-QEMU(1)" in manual
    # Nothing of the caller's Python takes part.
    assert installed.must("cd /tmp && echo 'raise SystemExit(9)' >click.py && "
                          "PYTHONPATH=/tmp vzdump-qemu --version; rm click.py")  # fmt: skip
    installed.must("bash -n /usr/share/bash-completion/completions/vzdump-qemu")
    installed.must("test -s /usr/share/zsh/vendor-completions/_vzdump-qemu")
    installed.must("test -s /usr/share/fish/vendor_completions.d/vzdump-qemu.fish")


def test_vm_that_is_off_is_backed_up_verified_and_restored_equal(installed: Machine) -> None:
    installed.must(MAKE_LAB)
    told = installed.must(f"{TOOL} 100 --compress zstd 2>&1")
    assert told.endswith("TASK OK\n")
    installed.must(
        """
        cd /srv/lab/var/lib/vz
        path=$(ls dump/*.vma.zst)
        vzdump-qemu verify $path
        vzdump-qemu restore $path 101 --root /srv/lab
        qemu-img compare -f raw -F raw images/100/vm-100-disk-0.raw images/101/vm-101-disk-0.raw
        rm $path
        """
    )


def test_running_vm_is_backed_up_and_a_killed_backup_put_back(installed: Machine) -> None:
    installed.must(f"{MAKE_LAB}\nvzdump-qemu lab start /srv/lab 100")
    try:
        told = installed.must(f"{TOOL} 100 --storage local 2>&1")
        assert "INFO: data path: pull" in told
        assert told.endswith("TASK OK\n")
        # The guardian process has the packaged Python too, and outlives the tool.
        installed.must(
            f"""
            {TOOL} 100 --bwlimit 4096 >/dev/null 2>&1 &
            tool=$!
            until ls /srv/lab/var/lib/vz/dump/*.dat >/dev/null 2>&1; do sleep 0.1; done
            kill -9 $tool
            timeout 60 bash -c \
              'while ls /srv/lab/var/lib/vzdump-qemu/*.journal >/dev/null 2>&1; do sleep 0.1; done'
            """
        )
        assert installed.must("vzdump-qemu recover --root /srv/lab") == "nothing to recover\n"
        assert "lock" not in installed.must("cat /srv/lab/etc/pve/qemu-server/100.conf")
    finally:
        installed.must("vzdump-qemu lab destroy /srv/lab")


def test_units_are_understood_by_the_systemd_of_the_release(installed: Machine) -> None:
    assert installed.must(f"cd /lib/systemd/system && systemd-analyze verify {UNITS} 2>&1") == ""
    links = installed.must("find /etc/systemd -name 'vzdump-qemu*'")
    assert links == "", "a unit is enabled by the installation"


def test_example_of_a_jobs_file_is_one(installed: Machine) -> None:
    told = installed.must(
        """
        cp /usr/share/doc/vzdump-qemu/examples/jobs.cfg /etc/vzdump-qemu/
        vzdump-qemu jobs 2>&1
        vzdump-qemu jobs --systemd nightly | sed -n 's/^OnCalendar=//p' | tail -n 1 |
          xargs -d '\\n' systemd-analyze calendar
        vzdump-qemu --job web 2>&1
        """
    )
    assert "nightly  yes" in told
    assert "Normalized form: Mon..Fri *-*-* 22:30:00" in told
    assert "job 'web' is not enabled" in told
    assert "WARN" not in told
