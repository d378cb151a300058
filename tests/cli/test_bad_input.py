"""Bad input, as a user types it: the documented exit code, one line with the reason, one hint.

A row is a command line, its exit code, the reason and the hint. ``LAB`` is a lab with VM 100 and
the storage ``local``; ``TMP`` is an empty folder.
"""

import io
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vzdump_qemu.cli.main import run

OF_VZDUMP = "400 Parameter verification failed. "
VMID_HINT = "VMs are named by their numbers, as in 100,101"
LIST_HINT = "'vzdump-qemu list DIR' shows the archives of a directory or lab"
NO_NODE = "name a lab with --root DIR, or a VM of any QEMU with --qmp SOCK"

# The command line was wrong: nothing was done.
WRONG_USE = [
    ("--root LAB 100 --compres zstd", "no such option: --compres", "did you mean --compress?"),
    ("--root LAB 100 -compres=zstd", "no such option: --compres", "did you mean --compress?"),
    ("100 -storge x", "no such option: --storge", "did you mean --storage?"),
    ("100 --xyzzy", "no such option: --xyzzy", "'vzdump-qemu backup --help' tells more"),
    ("100 --mode snap", "mode: 'snap' is not one of snapshot, suspend, stop", "mean snapshot?"),
    ("100 -mode x", "mode: 'x' is not one of snapshot,", "--mode MODE: "),
    ("100 --compress zst", "compress: 'zst' is not one of 0, 1, gzip, lzo, zstd", "mean zstd?"),
    ("100 --output xml", "output: 'xml' is not one of auto, log, json", "--output KIND: "),
    ("100 --data-path pul", "data-path: 'pul' is not one of auto, ", "did you mean pull?"),
    ("100 --bwlimit -1", "bwlimit: '-1' is not a whole number, 0 or more", "--bwlimit KIB/S: "),
    ("100 --bwlimit ten", "bwlimit: 'ten' is not a whole number, 0 or more", "--bwlimit KIB/S: "),
    ("100 --ionice 9", "ionice: '9' is not a whole number, 0 to 8", "--ionice N: "),
    ("100 --quiet=maybe", "quiet: unable to parse boolean option 'maybe'", "--quiet BOOL: "),
    ("100 --mode", "mode: a value is missing", "--mode MODE: snapshot, suspend or stop"),
    ("100 --quiet maybe", "strange VM ID 'maybe'", VMID_HINT),
    ("100,x", "strange VM ID 'x'", VMID_HINT),
    ("1000000000", "strange VM ID '1000000000'", VMID_HINT),
    ("backup web01", "strange VM ID 'web01'", VMID_HINT),
    ("--exclude foo", "strange VM ID 'foo'", VMID_HINT),
    ("backup", "vmid: property is missing", "--all, --pool POOL, or --qmp SOCK"),
    ("--root LAB", "vmid: property is missing", "name VMIDs"),
    ("100 --all", "all: option conflicts with option 'vmid'", "leave out one of the two"),
    ("100 --pool p", "pool: option conflicts with option 'vmid'", "leave out one of the two"),
    ("100 101 --stdout", "you can only backup a single VM with option --stdout", "--help"),
    ("--root TMP/no 100", "root: Directory 'TMP/no' does not exist", "--root DIR: the node"),
    ("100 --prune-backups keep-lst=3", "prune-backups: invalid key", "--prune-backups RULE: "),
    ("100 --prune-backups keep-last=x", "prune-backups: keep-last: type check", "keep-last=N"),
    ("100 --fleecing on", "fleecing: 'storage' parameter is required", "--fleecing SPEC: "),
    ("100 --fleecing xx=1", "fleecing: invalid key", "--fleecing SPEC: "),
    ("100 --performance max-workers=999", "maximum value of 256", "max-workers=1..256"),
    ("100 --performance foo=1", "performance: invalid key", "max-workers=1..256"),
    ("100 --notes-template {{x}}", "notes-template: found unknown: variable 'x'", "{{vmid}}"),
    ("100 --job-id 'a b'", "job-id: value must not contain blanks", "--job-id ID: "),
    ("--agent TMP/a 100", "agent: needs option 'qmp'", "--qmp SOCK: "),
    ("--qmp TMP/q --storage x", "storage: option conflicts with option 'qmp'", "leave out one"),
    ("--qmp TMP/q 100", "qmp: one VM, known by its socket; --vmid gives it a number", "--qmp"),
]
WRONG_USE_OF_VERBS = [
    ("lsit", "no such verb: 'lsit'", "did you mean list?"),
    ("web01", "no such verb: 'web01'", "VMs are named by their numbers; verbs are backup, "),
    ("lab frob", "no such verb: 'frob'", "hint: verbs are create, destroy, "),
    ("key crate TMP/k", "no such verb: 'crate'", "did you mean create?"),
    ("lab destory LAB", "no such verb: 'destory'", "did you mean destroy?"),
    ("list LAB --jsn", "no such option: --jsn", "did you mean --json?"),
    ("list TMP/no", "-OR-DIR: Directory 'TMP/no' does not exist", "vzdump-qemu list [OPT"),
    ("show", "BACKUP is missing", "vzdump-qemu show [OPTIONS] BACKUP; "),
    ("show a b", "Got unexpected extra argument (b)", "vzdump-qemu show [OPTIONS] BACKUP; "),
    ("verify a --keyfle k", "no such option: --keyfle", "did you mean --keyfile?"),
    ("restore a --root LAB", "VMID is missing", "vzdump-qemu restore [OPTIONS] BACKUP VMID; "),
    ("restore a 200", "root is missing", ": the lab that gets the VM."),
    ("restore a foo --root LAB", "VMID: 'foo' is not a valid integer", "restore --help"),
    ("prune 5x --root LAB", "strange VM ID '5x'", VMID_HINT),
    ("prune --storage a --dumpdir b", "cannot use options 'storage' and 'dumpdir'", "--help"),
    ("key create", "FILE is missing", "vzdump-qemu key create [OPTIONS] FILE; "),
    ("key create TMP/k --kdf md5", "kdf: 'md5' is not one of scrypt, none", "--kdf "),
    ("recover --agent TMP/a", "agent: needs option 'qmp'", "--qmp SOCK: "),
    ("lab create TMP/l --disk foo", "disk: 'foo' is not KEY=SIZE", "--disk KEY=SIZE"),
    ("lab create TMP/l --qemu nope", "unable to find command 'nope'", "lab create --help"),
]
# Jobs that could not begin, or VMs that could not be backed up: vzdump's own exit code.
FAILED_JOBS = [
    ("--root LAB 99", "VM 99 failed - unable to find VM '99'", "VM 99: VMs of"),
    ("--root LAB 555", "VM 555 failed - unable to find VM '555'", "nearest: 100"),
    ("--root LAB 100 --storage nope", "storage 'nope' does not exist", "this node: local"),
    (
        "--root LAB 100 --storage local --dumpdir TMP",
        "cannot use options 'storage' and",
        "vzdump.conf",
    ),
    ("--root LAB 100 --dumpdir TMP/no", "dumpdir 'TMP/no' does not exist", "create it, or"),
    ("--root LAB 100 --dumpdir /etc/passwd", "dumpdir '/etc/passwd' is not a directory", "name"),
    ("--root LAB 100 --tmpdir TMP/no", "tmpdir 'TMP/no' does not exist", ""),
    ("--root LAB --pool nope", "pool 'nope' does not exist", ""),
    ("--root LAB 100 --script TMP/no", "The hook script 'TMP/no' does not exist.", ""),
    ("--root LAB 100 --script /etc/passwd", "'/etc/passwd' is not executable.", "chmod"),
    ("--root TMP 100", "'TMP' is not laid out like a PVE node", "lab create TMP' makes one"),
    ("--root LAB 100 --repository a:b:c:d", "not a repository: 'a:b:c:d'", "datastore"),
    ("--root LAB 100 --repository h:store", "no password given for ", "PBS_PASSWORD"),
    ("--qmp TMP/no --dumpdir TMP", "there is no QMP socket 'TMP/no'", ""),
    ("--qmp /etc/passwd --dumpdir TMP", "'/etc/passwd' is not a socket", ""),
    ("--qmp TMP/no", "it was not said where the archive goes", "use --dumpdir DIR, or --repos"),
    ("--qmp TMP/no --dumpdir TMP --mode stop", "known only by its sockets cannot be stopped", ""),
]
FAILED_VERBS = [
    (
        "list LAB --storage nope",
        13,
        "storage 'nope' does not exist",
        "storages of this node: local",
    ),
    ("show TMP/no", 50, "can't open file TMP/no - No such file or directory", LIST_HINT),
    ("show /etc/passwd", 50, "can't read vma header - got EOF", "no VMA archive"),
    ("verify TMP", 50, "can't read file TMP - Is a directory", LIST_HINT),
    ("extract TMP/no TMP/out", 50, "can't open file TMP/no", LIST_HINT),
    ("restore TMP/no 200 --root LAB", 50, "can't open file TMP/no", LIST_HINT),
    ("show vm/100/latest", 10, "it was not said which backup server is meant", "--repository REPO"),
    ("show vm/1/latest --repository a:b:c:d", 10, "not a repository: 'a:b:c:d'", "datastore"),
    ("show local:backup/vm/100/latest --root LAB", 10, "'local' is no backup server", "its path"),
    ("prune --root LAB --storage nope", 13, "storage 'nope' does not exist", "this node: local"),
    ("prune --dumpdir TMP/no --prune-backups keep-last=1", 10, "'TMP/no' does not exist", "name a"),
    ("prune --root LAB --prune-backups keep-lst=1", 10, "invalid key", "keep-last=N,keep-daily=N"),
    ("key create /etc/passwd", 62, "'/etc/passwd' exists and is not overwritten", "is lost"),
    ("lab start TMP", 10, "'TMP' is not a lab", "'vzdump-qemu lab create TMP' makes one"),
    ("lab start LAB 555", 11, "for VM 555 on node 'lab'", "nearest: 100"),
    ("lab status LAB 555", 11, "VM 555 is not in lab 'LAB'", "lab status LAB' shows all"),
]


class Terminal(io.StringIO):
    """Hints of a job are for a person, who sits at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="vzq-", dir="/tmp") as directory:
        root = Path(directory).resolve()
        (root / "empty").mkdir()
        assert run(["lab", "create", str(root / "lab"), "--disk", "scsi0=1M"]) == 0
        yield {"LAB": str(root / "lab"), "TMP": str(root / "empty")}


def tell(words: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[str]]:
    """Run a command line at a terminal; its exit code and what it printed there."""
    for name in ("PBS_REPOSITORY", "PBS_PASSWORD", "PBS_FINGERPRINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    return run(shlex.split(words)), terminal.getvalue().splitlines()


def fill(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace(name, path)
    return text


@pytest.mark.parametrize(
    ("head", "words", "reason", "hint"),
    [
        *((OF_VZDUMP, *row) for row in WRONG_USE),
        *(("ERROR: ", *row) for row in WRONG_USE_OF_VERBS),
    ],
)
def test_wrong_command_line_gets_one_reason_one_hint_and_code_2(
    head: str,
    words: str,
    reason: str,
    hint: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, lines = tell(fill(words, places), monkeypatch)
    assert code == 2
    [reason_line, hint_line] = lines
    assert reason_line.startswith(head)
    assert fill(reason, places) in reason_line
    assert hint_line.startswith("hint: ")
    assert fill(hint, places) in hint_line


@pytest.mark.parametrize(("words", "reason", "hint"), FAILED_JOBS)
def test_job_that_fails_gets_a_verdict_one_hint_and_vzdumps_code(
    words: str, reason: str, hint: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, lines = tell(fill(words, places), monkeypatch)
    assert code == 255
    errors = [line for line in lines if line.startswith("ERROR: ")]
    assert len(errors) == 1
    assert fill(reason, places) in errors[0]
    assert lines[-2].startswith("TASK ERROR: ")
    assert lines[-1].startswith("hint: ")
    assert fill(hint, places) in lines[-1]


@pytest.mark.parametrize(("words", "code", "reason", "hint"), FAILED_VERBS)
def test_verb_that_fails_gets_one_reason_one_hint_and_its_errors_code(
    words: str,
    code: int,
    reason: str,
    hint: str,
    places: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended, lines = tell(fill(words, places), monkeypatch)
    assert ended == code
    [reason_line, hint_line] = lines
    assert reason_line.startswith("ERROR: ")
    assert fill(reason, places) in reason_line
    assert hint_line.startswith("hint: ")
    assert fill(hint, places) in hint_line
