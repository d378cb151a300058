"""Notifications of whole jobs in a lab, by the command itself and a program called sendmail."""

from __future__ import annotations

import email
import email.policy
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.lab_command import Run, add_script, archives
from tests.outlets.web_hook import WebHook, serving_web_hook

SENDMAIL = """\
#!/bin/sh
printf '%s\\n' "$@" > "$OUTBOX/argv"
cat > "$OUTBOX/$(date +%s%N).eml"
exit $(cat "$OUTBOX/status" 2>/dev/null || echo 0)
"""


class Outbox:
    """What the program called sendmail was given."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def mails(self) -> list[EmailMessage]:
        found = []
        for path in sorted(self.directory.glob("*.eml")):
            mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            assert isinstance(mail, EmailMessage)
            found.append(mail)
        return found

    def one(self) -> EmailMessage:
        [mail] = self.mails()
        return mail

    def text(self) -> str:
        body = self.one().get_body(("plain",))
        assert body is not None
        return str(body.get_content())


@pytest.fixture
def outbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outbox:
    directory = tmp_path / "outbox"
    directory.mkdir()
    program = directory / "sendmail"
    program.write_text(SENDMAIL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OUTBOX", str(directory))
    return Outbox(directory)


@pytest.fixture
def web_hook() -> Iterator[WebHook]:
    with serving_web_hook() as hook:
        yield hook


@pytest.mark.slow
def test_good_job_is_mailed_once_with_its_log(lab: Path, command: Run, outbox: Outbox) -> None:
    done = command("--root", lab, 100, "--mailto", "root,op@example.com", "--mailto", "root")
    assert done.code == 0, done.err
    assert (outbox.directory / "argv").read_text().split()[-3:] == ["--", "root", "op@example.com"]
    assert outbox.one()["Subject"] == "vzdump backup status (lab): backup successful"
    [path] = archives(lab)
    text = outbox.text()
    assert str(path) in text
    assert "\nvzdump 100 --mailto root,op@example.com --mailto root\n\n100: " in text
    assert " INFO: Finished Backup of VM 100 (" in text
    assert done.err.endswith("INFO: Backup job finished successfully\nTASK OK\n")


@pytest.mark.slow
def test_mail_of_failures_alone_is_sent_of_a_failure_alone(
    lab: Path, command: Run, outbox: Outbox
) -> None:
    (lab / "etc/vzdump.conf").write_text("mailto: me;you\nmailnotification: failure\n")
    assert command("--root", lab, 100).code == 0
    assert outbox.mails() == []
    assert command("--root", lab, 100, 999).code == 255
    mail = outbox.one()
    assert mail["To"] == "me, you"
    assert mail["Subject"] == "vzdump backup status (lab): backup failed"
    assert "999   VM 999   err" in outbox.text()


@pytest.mark.slow
def test_user_names_mean_addresses_and_the_cluster_has_a_sender(
    lab: Path, command: Run, outbox: Outbox
) -> None:
    (lab / "etc/pve/user.cfg").write_text(
        "user:root@pam:1:0:::admin@example.com::\nuser:eve@pve:1:0:::::\n"
    )
    (lab / "etc/pve/datacenter.cfg").write_text("email_from: pve@example.com\n")
    done = command("--root", lab, 100, "--mailto", "root@pam", "--mailto", "eve@pve")
    assert done.code == 0
    assert outbox.one()["To"] == "admin@example.com"
    assert outbox.one()["From"] == "vzdump backup tool <pve@example.com>"
    assert done.err.splitlines()[-2:] == [
        "ERROR: could not notify via mail - 'eve@pve' is neither a mail address nor a user "
        "who has one",
        "TASK OK",
    ]


@pytest.mark.slow
def test_mail_that_fails_is_a_line_of_the_log_and_nothing_more(
    lab: Path, command: Run, outbox: Outbox
) -> None:
    (outbox.directory / "status").write_text("69")
    done = command("--root", lab, 100, "--mailto", "root")
    assert done.code == 0
    assert done.err.splitlines()[-3:] == [
        "INFO: Backup job finished successfully",
        "ERROR: could not notify via mail - 'sendmail' failed: exit code 69",
        "TASK OK",
    ]


@pytest.mark.slow
def test_job_without_recipients_sends_no_mail(lab: Path, command: Run, outbox: Outbox) -> None:
    assert command("--root", lab, 100).code == 0
    assert command("--root", lab, 100, "--notification-mode", "legacy-sendmail").code == 0
    words = ("--notification-mode", "notification-system", "--mailto", "root")
    assert command("--root", lab, 100, *words).code == 0
    assert outbox.mails() == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--dumpdir", "/nonexistent"), "dumpdir '/nonexistent' does not exist"),
        (("--tmpdir", "/nonexistent"), "tmpdir '/nonexistent' does not exist"),
        (("--script", "/nonexistent"), "Error: The hook script '/nonexistent' does not exist."),
        (("--storage", "nope"), "could not activate storage 'nope': "),
    ],
)
def test_constructor_error_is_mailed_once_without_vms(
    lab: Path, command: Run, outbox: Outbox, words: tuple[str, str], error: str
) -> None:
    done = command("--root", lab, 100, *words, "--mailto", "root")
    assert done.code == 255
    assert f"vzdump backup status (lab): backup failed: {error}" in outbox.one()["Subject"]
    assert "\n100 " not in outbox.text()


def test_lock_failure_is_mailed_once(lab: Path, command: Run, outbox: Outbox) -> None:
    (lab / "var/run").mkdir(parents=True, exist_ok=True)
    with open(lab / "var/run/vzdump.lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = command("--root", lab, 100, "--lockwait", 0, "--mailto", "root")
    assert done.code == 255
    assert ": backup failed: can't acquire lock '" in outbox.one()["Subject"]
    assert outbox.one()["Subject"].endswith("vzdump.lock' (wait = 0)")


def test_conflict_of_options_is_mailed_to_nobody(lab: Path, command: Run, outbox: Outbox) -> None:
    words = ("--storage", "local", "--dumpdir", lab, "--mailto", "root")
    done = command("--root", lab, 100, *words)
    assert done.code != 0
    assert "at the same time" in done.err
    assert outbox.mails() == []


@pytest.mark.slow
def test_interrupted_job_is_mailed_once(lab: Path, outbox: Outbox) -> None:
    add_script(lab, "[[rule]]\ncommand = 'backup'\ndelay_s = 600\n")
    argv = [sys.executable, "-m", "vzdump_qemu", "--root", str(lab), "100", "--mailto", "root"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "starting kvm to execute backup task" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode == 255
    assert outbox.one()["Subject"].endswith(": backup failed: interrupted by signal")


@pytest.mark.slow
def test_target_of_apprise_is_told_and_its_secret_is_shown_nowhere(
    lab: Path, command: Run, web_hook: WebHook, outbox: Outbox
) -> None:
    url = f"json://op:s3cret@127.0.0.1:{web_hook.port}/s3cret"
    done = command("--root", lab, 100, "--notify", url, "--mailto", "root", "--output", "json")
    assert done.code == 0, done.err
    [body] = web_hook.bodies
    told = json.loads(body)
    assert told["title"] == "vzdump backup status (lab): backup successful"
    assert "Total size: " in told["message"]
    web_hook.status = 403
    failed = command("--root", lab, 100, "--notify", url)
    assert "ERROR: could not notify via json://... - " in failed.err
    shown = done.out + done.err + failed.out + failed.err + outbox.text()
    logs = [path.read_text() for path in (lab / "var/log").rglob("*.log")]
    assert logs
    assert "s3cret" not in shown + "".join(logs)


@pytest.mark.slow
def test_targets_of_a_file_are_told(
    lab: Path, command: Run, web_hook: WebHook, tmp_path: Path
) -> None:
    targets = tmp_path / "targets"
    url = f"json://127.0.0.1:{web_hook.port}"
    targets.write_text(f"# of the operators\n{url}/one\n\n {url}/two\n")
    assert command("--root", lab, 100, "--notify", f"@{targets}").code == 0
    assert len(web_hook.bodies) == 2
    targets.unlink()
    done = command("--root", lab, 100, "--notify", f"@{targets}")
    assert done.code == 255
    assert f"option 'notify': unable to read '{targets}' - No such file" in done.err


def test_target_that_is_not_understood_is_refused_before_the_job(lab: Path, command: Run) -> None:
    done = command("--root", lab, 100, "--notify", "nosuch://s3cret")
    assert done.code == 255
    assert "target 1 ('nosuch://...') is not understood" in done.err
    assert "s3cret" not in done.err
    assert archives(lab) == []


@pytest.mark.parametrize(
    ("library", "module", "words"),
    [
        ("apprise", "apprise_targets", ("--notify", "json://127.0.0.1")),
        ("prometheus_client", "prometheus", ("--metrics", "/tmp/x.prom")),
    ],
)
def test_missing_library_is_told_in_one_line_before_the_job(
    lab: Path,
    command: Run,
    monkeypatch: pytest.MonkeyPatch,
    library: str,
    module: str,
    words: tuple[str, str],
) -> None:
    monkeypatch.delitem(sys.modules, f"vzdump_qemu.outlets.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    done = command("--root", lab, 100, *words)
    package = library.replace("_", "-")
    assert done.code == 255
    assert f"option '{words[0][2:]}' needs the Python package '{package}'" in done.err
    assert archives(lab) == []


@pytest.mark.slow
def test_figures_of_other_vms_stay_in_the_file(lab: Path, command: Run, tmp_path: Path) -> None:
    metrics = tmp_path / "vzdump.prom"
    for vmid in (100, 999, 998):
        command("--root", lab, vmid, "--metrics", metrics)
    samples = {
        (sample.name, sample.labels.get("vmid")): sample.value
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
    }
    assert samples["vzdump_backup_success", "100"] == 1.0
    assert samples["vzdump_backup_success", "999"] == 0.0
    assert samples["vzdump_backup_success", "998"] == 0.0
    [path] = archives(lab)
    size_bytes = samples["vzdump_backup_last_success_size_bytes", "100"]
    assert size_bytes == path.stat().st_size
    assert samples["vzdump_job_success", None] == 0.0


@pytest.mark.slow
def test_journal_of_the_node_is_told(lab: Path, command: Run) -> None:
    (lab / "run/systemd/journal").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(lab / "run/systemd/journal/socket"))
        journal.setblocking(False)
        assert command("--root", lab, 100, "--quiet").code == 0
        entries = []
        while True:
            try:
                entries.append(journal.recv(65536).decode())
            except BlockingIOError:
                break
    assert entries[0].startswith("MESSAGE=starting new backup job: vzdump 100 --quiet 1\n")
    [path] = archives(lab)
    assert sum(f"\nVZDUMP_ARCHIVE={path}\n" in entry for entry in entries) == 1
    assert "VZDUMP_VMS_OK=1\n" in entries[-1]


def test_vm_known_by_a_socket_that_is_gone_is_mailed_once(
    command: Run, outbox: Outbox, short_path: Path
) -> None:
    words = ("--qmp", short_path / "gone", "--dumpdir", short_path, "--state-dir", short_path)
    done = command(*words, "--vmid", 4711, "--mailto", "root")
    assert done.code == 255
    assert ": backup failed: " in outbox.one()["Subject"]
    assert str(short_path / "gone") in outbox.one()["Subject"] + outbox.text()


@pytest.mark.slow
def test_runs_at_once_have_logs_of_their_own_in_one_mail(
    lab: Path, command: Run, outbox: Outbox
) -> None:
    assert command("lab", "create", lab, "--vm", 101, "--disk", "scsi0=1M").code == 0
    done = command("--root", lab, 100, 101, "--max-parallel", 2, "--mailto", "root")
    assert done.code == 0, done.err
    text = outbox.text()
    for vmid in (100, 101):
        assert text.count(f"{vmid}: ") == len(
            (lab / f"var/log/vzdump/qemu-{vmid}.log").read_text().splitlines()
        )
        assert f" INFO: Finished Backup of VM {vmid} (" in text


@pytest.mark.slow
def test_words_of_hook_scripts_stand_around_the_logs_of_the_runs(
    lab: Path, command: Run, outbox: Outbox
) -> None:
    hook = lab / "hook"
    hook.write_text('#!/bin/sh\necho "$1 said"\n[ "$1" != job-end ]\n')
    hook.chmod(0o755)
    done = command("--root", lab, 100, "--script", hook, "--mailto", "root")
    assert done.code == 255
    text = outbox.text()
    before, after = text.index("job-init said\njob-start said\n100: "), text.index("job-end said")
    run = text.index(" INFO: backup-end said\n")
    assert before < run < after
    assert text.rstrip().endswith("job-end said\njob-abort said")
    assert outbox.one()["Subject"].endswith(" job-end' failed: exit code 1")
    assert "100   lab-100  ok" in text
