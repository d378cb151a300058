"""A real hook script: what it is called with, by whom it is ended, what it leaves in the log."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests.end_to_end.lab import VMID, Lab

pytestmark = pytest.mark.slow

# Every call appends its arguments and its whole environment, without any program but itself.
RECORDER = """#!{python} -IS
import os, sys
with open({record!r}, "a") as file:
    known = sorted(f"{{name}}={{value}}" for name, value in os.environ.items())
    print(*sys.argv[1:], *known, sep="\\t", file=file)
print("hook says", sys.argv[1])
{more}
"""


class Recorder:
    """A script that records its calls."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "hook script"
        self._record = directory / "record"
        self.write()

    def write(self, more: str = "") -> None:
        text = RECORDER.format(python=sys.executable, record=str(self._record), more=more)
        self.path.write_text(text)
        self.path.chmod(0o755)

    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """Arguments and environment of each call."""
        found = []
        for line in self._record.read_text().splitlines():
            words = line.split("\t")
            arguments = [word for word in words if "=" not in word]
            pairs = (word.partition("=") for word in words if "=" in word)
            found.append((arguments, {name: value for name, _, value in pairs}))
        return found

    def phases(self) -> list[str]:
        return [arguments[0] for arguments, _ in self.calls()]


@pytest.fixture
def hook(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


ORDERS = {
    "snapshot": "job-init job-start backup-start pre-stop pre-restart post-restart backup-end "
    "log-end job-end",
    "suspend": "job-init job-start backup-start pre-stop backup-end pre-restart post-restart "
    "log-end job-end",
    "stop": "job-init job-start backup-start pre-stop backup-end pre-restart post-restart "
    "log-end job-end",
}


@pytest.mark.parametrize("mode", ORDERS)
def test_row_10_1_1_script_is_called_in_order_with_its_environment_alone(
    lab: Lab, hook: Recorder, mode: str
) -> None:
    lab.start()
    ended = lab.must(*lab.backup_words("--mode", mode, "--script", hook.path))
    [path] = lab.archives()
    assert " ".join(hook.phases()) == ORDERS[mode]
    of_job = {
        "STOREID": "local",
        "DUMPDIR": str(lab.dump),
        "LC_ALL": "C",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
    }
    of_run = of_job | {
        "VMTYPE": "qemu",
        "TARGET": str(path),
        "LOGFILE": str(path).removesuffix(".vma.zst") + ".log",
    }
    for arguments, environment in hook.calls():
        environment.pop("HOSTNAME", None)
        if arguments[0].startswith("job-"):
            assert len(arguments) == 1
            known = of_job if arguments[0] != "job-init" else of_job | {"DUMPDIR": ""}
            assert environment | {"DUMPDIR": known["DUMPDIR"]} == known
        else:
            assert arguments[1:] == [mode, str(VMID)]
            assert environment == of_run
    assert "INFO: hook says job-init" in ended.err
    assert "INFO: hook says backup-end" in lab.log()
    assert "INFO: hook says log-end" not in lab.log()  # it may take the log away
    lab.assert_clean("running", archive_count=1)


def test_failing_script_fails_the_vm_and_is_told_of_it(lab: Lab, hook: Recorder) -> None:
    hook.write('sys.exit(7 if sys.argv[1] == "backup-start" else 0)')
    lab.start()
    ended = lab.tool(*lab.backup_words("--script", hook.path))
    assert ended.code == 255
    command = f"'{hook.path}' backup-start snapshot {VMID}"
    assert (
        f"ERROR: Backup of VM {VMID} failed - command '{command}' failed: exit code 7\n"
        in ended.err
    )
    assert hook.phases()[-3:] == ["backup-abort", "log-end", "job-end"]
    lab.assert_clean("running")
    lab.assert_next_backup_good()


def test_interrupted_job_ends_a_hanging_script_and_tells_it(lab: Lab, hook: Recorder) -> None:
    hook.write('import time\nif sys.argv[1] == "backup-start": time.sleep(600)')
    lab.start()
    code, events = lab.back_up_and_act(
        # The event before the call: the script may not have begun to sleep.
        {"ModeChosen": lambda process: process.send_signal(signal.SIGINT)},
        *("--script", hook.path),
    )
    assert code == 255
    assert next(event for event in events if event["event"] == "RunFailed")["text"] == (
        "interrupted by signal"
    )
    assert hook.phases()[-3:] == ["backup-abort", "log-end", "job-abort"]
    lab.assert_clean("running")


@pytest.mark.parametrize(("mode", "text"), [(0o644, "is not executable"), (None, "does not exist")])
def test_script_that_cannot_be_called_is_refused_before_anything(
    lab: Lab, hook: Recorder, mode: int | None, text: str
) -> None:
    if mode is None:
        hook.path.unlink()
    else:
        hook.path.chmod(mode)
    ended = lab.tool(*lab.backup_words("--script", hook.path))
    assert ended.code == 255
    assert f"TASK ERROR: Error: The hook script '{hook.path}' {text}." in ended.err
    lab.assert_clean("")
