"""Mail by a program called sendmail: what it is given, and how little it can do to a job."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import time
from collections.abc import Callable
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.outlets.messages import MESSAGE
from vzdump_qemu.errors import BackupError
from vzdump_qemu.outlets.mail import SendmailOutlet

MakeOutlet = Callable[..., SendmailOutlet]


def install(directory: Path, script: str) -> None:
    program = directory / "sendmail"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.fixture
def make_outlet(tmp_path: Path) -> MakeOutlet:
    """An outlet whose sendmail, unless another is installed, keeps arguments and mail."""
    install(tmp_path, 'printf "%s\\n" "$@" > "$OUT/argv"; cat > "$OUT/mail"')

    def make(*recipients: str, sender: str = "root", timeout_s: float = 20.0) -> SendmailOutlet:
        return SendmailOutlet(
            recipients,
            sender_name="vzdump backup tool",
            sender=sender,
            wall_s=86400.0,
            environment={"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path)},
            timeout_s=timeout_s,
        )

    return make


def read_mail(directory: Path) -> EmailMessage:
    raw = (directory / "mail").read_bytes()
    mail = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)
    return mail


async def test_mail_has_both_bodies_and_names_its_sender(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    await make_outlet("root", "op@example.com").send(MESSAGE)
    mail = read_mail(tmp_path)
    assert mail["Subject"] == MESSAGE.subject
    assert mail["From"] == "vzdump backup tool <root>"
    assert mail["To"] == "root, op@example.com"
    assert mail["Date"] == "Fri, 02 Jan 1970 00:00:00 +0000"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail.get_content_type() == "multipart/alternative"
    text, html = mail.iter_parts()
    assert isinstance(text, EmailMessage) and isinstance(html, EmailMessage)
    assert text.get_content() == MESSAGE.text + "\n"
    assert (html.get_content_type(), html.get_content()) == ("text/html", MESSAGE.html + "\n")


async def test_recipients_are_arguments_that_cannot_be_options(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    await make_outlet("-bs", sender="backup@example.com").send(MESSAGE)
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv == ["-i", "-f", "backup@example.com", "--", "-bs"]
    assert read_mail(tmp_path)["From"] == "vzdump backup tool <backup@example.com>"


async def test_long_lines_and_odd_characters_become_short_lines_of_seven_bits(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    text = "x" * 990 + " ü\n.\n"
    await make_outlet("root").send(replace(MESSAGE, text=text, subject="ü" * 200))
    raw = (tmp_path / "mail").read_bytes()
    assert raw.isascii()
    assert max(len(line) for line in raw.splitlines()) <= 78
    assert read_mail(tmp_path)["Subject"] == "ü" * 200


async def test_program_that_fails_is_an_error_with_its_last_words(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    install(tmp_path, "echo connecting; echo 'relay refused' >&2; exit 75")
    with pytest.raises(BackupError, match=r"^'sendmail' failed: relay refused \(exit code 75\)$"):
        await make_outlet("root").send(MESSAGE)


async def test_missing_program_is_an_error_with_a_hint(
    make_outlet: MakeOutlet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sendmail").unlink()
    monkeypatch.setattr("vzdump_qemu.outlets.mail._MORE_DIRECTORIES", ())
    outlet = SendmailOutlet(
        ["root"], sender_name="x", wall_s=0.0, environment={"PATH": str(tmp_path)}
    )
    with pytest.raises(BackupError, match=r"^unable to find command 'sendmail'$") as caught:
        await outlet.send(MESSAGE)
    assert "--notify" in caught.value.hint


async def test_program_that_cannot_be_run_is_an_error(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    (tmp_path / "sendmail").write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(BackupError, match=r"^unable to run '.*/sendmail' - No such file"):
        await make_outlet("root").send(MESSAGE)


async def test_program_that_hangs_is_ended_with_its_children(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    install(tmp_path, 'sleep 600 & echo $! > "$OUT/child"; wait')
    with pytest.raises(BackupError, match="did not end in time and was ended"):
        await make_outlet("root", timeout_s=1.0).send(MESSAGE)
    assert await gone(int((tmp_path / "child").read_text()))


async def test_what_the_program_leaves_running_is_not_waited_for(
    make_outlet: MakeOutlet, tmp_path: Path
) -> None:
    install(tmp_path, 'cat > /dev/null; sleep 600 & echo $! > "$OUT/child"')
    await make_outlet("root").send(MESSAGE)
    os.kill(int((tmp_path / "child").read_text()), 9)


async def test_cancelled_sending_ends_the_program(make_outlet: MakeOutlet, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "began")
    install(tmp_path, 'echo $$ > "$OUT/began"; exec sleep 600')
    task = asyncio.create_task(make_outlet("root").send(MESSAGE))
    process_id = int(await asyncio.to_thread((tmp_path / "began").read_text))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(process_id)


async def gone(process_id: int) -> bool:
    """Whether a process ends within seconds; one that only waits to be reaped has."""
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            stat = Path(f"/proc/{process_id}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        await asyncio.sleep(0.01)
    return False
