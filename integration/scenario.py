"""A guest that writes in step to its disks, its backups, and the judgement of what was restored.

Owns making, booting and watching the VM; the scenarios own what happens to it. The guest tells on
its console each round that is safe on all its disks, so a test knows between which two rounds a
point in time lies; `judge` then holds the restored disks against that, on the host.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pexpect
import pexpect.socket_pexpect

from integration.guest import LOGIN, GuestFiles
from integration.real_lab import RealLab
from integration.stock_qemu.monitor import Monitor

MIB = 1 << 20
BOOT_LIMIT_S = 120.0
LIMIT_S = 60.0
EFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
EFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
# Slow enough for all that happens meanwhile.
SLOW = ("--bwlimit", 8192)
RESUMED = "resuming VM again"
PROMPT = r"[~/] # "
_PROGRAMS = {**os.environ, "PATH": f"{os.environ['PATH']}:/sbin:/usr/sbin"}
_ROUND = re.compile(r"^A (\d+) (\d+)\r?\n", re.MULTILINE)


@dataclass(frozen=True)
class GuestDisk:
    """One disk of the guest; its label follows from its place in the list."""

    key: str
    format: str = "raw"
    size_mib: int = 192


DISKS = (GuestDisk("scsi0"), GuestDisk("scsi1", format="qcow2"))


def wait_until(holds: Callable[[], object], what: str, *, limit_s: float = LIMIT_S) -> None:
    """Look again and again; a test that waits in vain says for what."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s, f"in vain: {what}"
        time.sleep(0.02)


@dataclass
class WritingGuest:
    """One VM whose guest writes in step to all its disks."""

    lab: RealLab
    files: GuestFiles
    disks: Sequence[GuestDisk] = DISKS
    vmid: int = 100
    has_agent: bool = True
    is_efi: bool = False

    @property
    def console(self) -> Path:
        return self.lab.root / f"console-{self.vmid}"

    @property
    def arguments(self) -> str:
        arguments = self.files.arguments(self.console, scribed_disks=len(self.disks))
        if not self.is_efi:
            return arguments
        return (
            f"{arguments} -drive if=none,id=efi-code,readonly=on,format=raw,file={EFI_CODE} "
            "-machine pflash0=efi-code,pflash1=drive-efidisk0"
        )

    @property
    def efi_image(self) -> Path:
        return self.lab.image(len(self.disks), vmid=self.vmid)

    def create(self) -> None:
        """Make the VM with its file systems."""
        words: list[object] = ["--agent" if self.has_agent else "--no-agent"]
        for disk in self.disks:
            words += ["--disk", f"{disk.key}={disk.size_mib}M,format={disk.format}"]
        if self.is_efi:
            words += ["--disk", f"efidisk0={EFI_VARIABLES.stat().st_size}"]
        self.lab.create(*words)
        if self.is_efi:
            self.efi_image.write_bytes(EFI_VARIABLES.read_bytes())
        for index, disk in enumerate(self.disks):
            image = self.image(index)
            raw = image.with_suffix(".mkfs")
            with open(raw, "wb") as file:
                file.truncate(disk.size_mib * MIB)
            run("mkfs.ext4", "-q", "-L", f"data{index}", raw)
            run("qemu-img", "convert", "-n", "-f", "raw", "-O", disk.format, raw, image)
            raw.unlink()
        self._edit_config()

    def _edit_config(self) -> None:
        config = self.lab.config(self.vmid)
        text = config.read_text().replace("memory: 64", "memory: 256")
        if self.is_efi:
            # Without that line a backup leaves the EFI disk out.
            text += "bios: ovmf\n"
        config.write_text(f"{text}args: {self.arguments}\nserial0: socket\n")

    def image(self, index: int) -> Path:
        return self.lab.image(index, vmid=self.vmid, image_format=self.disks[index].format)

    def start(self) -> None:
        """Start the VM and wait until its guest writes and its agent is there."""
        self.console.write_bytes(b"")
        self.lab.must("lab", "start", self.lab.root, self.vmid)
        self.wait_booted()

    def wait_booted(self) -> None:
        wait_until(lambda: self.last_round() > 0, "rounds of the guest", limit_s=BOOT_LIMIT_S)
        if self.has_agent:
            wait_until(lambda: "AGENT /dev" in self.told(), "the guest's agent")

    # -- what the guest tells ------------------------------------------------------------------

    def told(self) -> str:
        return self.console.read_text(errors="replace")

    def rounds(self) -> list[tuple[int, int]]:
        """All rounds so far: number, and microseconds of the longest write."""
        return [(int(number), int(us)) for number, us in _ROUND.findall(self.told())]

    def last_round(self) -> int:
        rounds = self.rounds()
        return rounds[-1][0] if rounds else 0

    def verdicts(self) -> list[str]:
        """What the guest said of its disks, once each boot."""
        return [line.strip() for line in self.told().splitlines() if line.startswith("VERIFY")]

    def wait_writes(self, count: int = 2, *, limit_s: float = LIMIT_S) -> None:
        """The guest writes on, and no write failed."""
        wanted = self.last_round() + count
        wait_until(lambda: self.last_round() >= wanted, "further rounds", limit_s=limit_s)
        self.assert_no_write_failed()

    def assert_no_write_failed(self) -> None:
        told = self.told()
        for word in ("WRITE FAILED", "VERIFY BAD", "I/O error", "NOT MOUNTED"):
            assert word not in told, told[-2000:]

    # -- looking and acting from outside -------------------------------------------------------

    def monitor(self) -> Monitor:
        return Monitor(self.lab.run_directory / f"{self.vmid}.qmp")

    def run_state(self) -> str:
        with self.monitor() as monitor:
            return str(monitor.execute("query-status")["status"])

    def qemu_pid(self) -> int:
        return int((self.lab.run_directory / f"{self.vmid}.pid").read_text())

    @contextmanager
    def logged_in(self) -> Iterator[pexpect.socket_pexpect.SocketSpawn]:
        """A shell of the guest, reached as an operator does: by its serial console."""
        import socket

        user, password = LOGIN
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.lab.run_directory / f"{self.vmid}.serial0"))
            shell = pexpect.socket_pexpect.SocketSpawn(channel, timeout=LIMIT_S)
            shell.send(b"\n")
            if shell.expect(["login: ", PROMPT]) == 0:
                shell.send(f"{user}\n".encode())
                shell.expect("Password: ")
                shell.send(f"{password}\n".encode())
                shell.expect(PROMPT)
            # Nobody logs out: the shell is there for the next one.
            yield shell

    def ask(self, command: str) -> str:
        """What a command prints in the guest, between markers that its echo does not hold."""
        with self.logged_in() as shell:
            shell.send(f"echo begun-$((40 + 1)); {command}; echo ended-$((40 + 2))\n".encode())
            shell.expect("begun-41\r\n")
            shell.expect("ended-42")
            assert isinstance(shell.before, bytes)
            return shell.before.decode(errors="replace")

    # -- backups -------------------------------------------------------------------------------

    def backup(self, *words: object, code: int = 0) -> Backup:
        """One backup from beginning to end."""
        with self.backing_up(*words) as backup:
            backup.wait(code)
        return backup

    @contextmanager
    def starting_backup(self, *words: object) -> Iterator[Backup]:
        """A backup that has only been started."""
        argv = [sys.executable, "-m", "vzdump_qemu", "--root", self.lab.root, self.vmid, *words]
        first_round = self.last_round()
        process = subprocess.Popen(
            [str(word) for word in argv], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            yield Backup(guest=self, process=process, first_round=first_round)
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def backing_up(self, *words: object) -> Iterator[Backup]:
        """A backup whose point in time is fixed by now, or that ended before it."""
        with self.starting_backup(*words) as backup:
            assert backup.process.stderr is not None
            for line in backup.process.stderr:
                backup.lines.append(line)
                if RESUMED in line:
                    break
            backup.last_round = self.last_round() + 1
            yield backup

    def archives(self) -> list[Path]:
        return sorted(self.lab.dump.glob(f"*-{self.vmid}-*.vma*"))

    def assert_let_go(self) -> None:
        """QEMU runs as before; of the backup there is nothing in it, nor beside it."""
        with self.monitor() as monitor:
            nodes = monitor.node_names()
            assert not {name for name in nodes if name.startswith("vzdump-")}
            assert monitor.execute("query-block-exports") == []
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        lab = self.lab
        assert not list(lab.run_directory.glob("*.nbd"))
        assert not list(self.image(0).parent.glob("*fleece*"))
        config = lab.config(self.vmid).read_text()
        assert "lock:" not in config and "fleecing" not in config
        assert not list((lab.root / "var/lib/vzdump-qemu").glob("*.journal"))
        assert not [
            path
            for path in lab.dump.iterdir()
            if ".vma" in path.name and path not in self.archives()
        ]
        assert not [path for path in self.archives() if path.suffix in (".dat", ".tmp", ".part")]

    def restored(self, archive: Path, *, vmid: int = 101) -> WritingGuest:
        """Make another VM of the archive; its guest judges its own disks when it boots."""
        lab = self.lab
        lab.must("restore", archive, vmid, "--root", lab.root)
        # Restored disks are raw, whatever they were.
        disks = [GuestDisk(disk.key, size_mib=disk.size_mib) for disk in self.disks]
        guest = WritingGuest(lab, self.files, disks=disks, vmid=vmid, has_agent=self.has_agent)
        config = lab.config(vmid)
        config.write_text(config.read_text().replace(str(self.console), str(guest.console)))
        return guest

    def stop(self) -> None:
        """End the VM as by its power plug; a guest that nobody watches costs CPU time."""
        self.lab.must("lab", "stop", self.lab.root, self.vmid)

    def destroy(self) -> None:
        """End the VM and forget it, so that another may have its number."""
        self.stop()
        self.lab.config(self.vmid).unlink()
        run("rm", "-r", self.image(0).parent)


@dataclass
class Backup:
    """One run of the tool; the point in time lies between the two rounds."""

    guest: WritingGuest
    process: subprocess.Popen[str]
    first_round: int
    last_round: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait(self, code: int) -> None:
        """Its end, as it should be."""
        assert self.process.stderr is not None
        self.lines += self.process.stderr.readlines()
        ended = self.process.wait(timeout=LIMIT_S)
        assert ended == code, self.log
        assert "Traceback" not in self.log

    def archive(self) -> Path:
        match = re.search(r"creating vzdump archive '([^']*)'", self.log)
        assert match is not None, self.log
        return Path(match[1])

    def judge(self, *, frozen: bool) -> list[Path]:
        """Extract the disks and hold their journals against the rounds; return the images."""
        directory = self.archive().with_suffix(".extracted")
        self.guest.lab.must("extract", self.archive(), directory)
        images = [directory / f"disk-drive-{disk.key}.raw" for disk in self.guest.disks]
        rounds = read_rounds(images, self.guest.files, directory, frozen=frozen)
        assert self.first_round <= rounds[0] <= self.last_round, (self, rounds)
        return images


def read_rounds(
    images: Sequence[Path], files: GuestFiles, directory: Path, *, frozen: bool
) -> list[int]:
    """What the journals on these images hold, judged by the scribe itself on the host.

    Args:
        frozen: the file systems must be clean as they are; else their own journal is replayed, in
            a copy.
    """
    folders = []
    for index, image in enumerate(images):
        if frozen:
            run("e2fsck", "-fn", image)
        else:
            replayed = directory / f"replayed-{index}.raw"
            run("cp", "--sparse=always", image, replayed)
            run("e2fsck", "-fy", replayed, codes=(0, 1))
            image = replayed
        folder = directory / f"journals-{index}"
        folder.mkdir()
        for name in ("journal", "table"):
            run("debugfs", "-R", f"dump /{name} {folder / name}", image)
        folders.append(folder)
    told = run(files.scribe, "verify", *folders)
    assert told.startswith("VERIFY OK "), told
    return [int(number) for number in told.split()[2:]]


def assert_same(image: Path, image_format: str, restored: Path) -> None:
    """Byte-equal, as a reader that is not ours sees it."""
    run("qemu-img", "compare", "-U", "-f", image_format, "-F", "raw", image, restored)


def run(*words: object, codes: Sequence[int] = (0,)) -> str:
    """One program of the host; what it printed."""
    done = subprocess.run(
        [str(word) for word in words], env=_PROGRAMS, capture_output=True, text=True, check=False
    )
    assert done.returncode in codes, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
