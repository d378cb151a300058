"""Mail about a job, through a real mail program to a real server."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP, Envelope, Session

_TOOL = (sys.executable, "-m", "vzdump_qemu")

pytestmark = pytest.mark.skipif(
    shutil.which("msmtp") is None, reason="msmtp is not installed (apt install msmtp)"
)


@dataclass
class Mailbox:
    """What the server took; `refusal` is answered to recipients if it is not empty."""

    refusal: str = ""
    envelopes: list[Envelope] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.refusal:
            return self.refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.envelopes.append(envelope)
        return "250 OK"


@pytest.fixture
def place() -> Iterator[Path]:
    """Short enough for the sockets of a lab."""
    with tempfile.TemporaryDirectory(prefix="vzm-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
async def environment(place: Path, mailbox: Mailbox) -> AsyncIterator[dict[str, str]]:
    """Ours, with msmtp as sendmail, set up for a server of this process."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(mailbox), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (place / "bin").mkdir()
    msmtp = shutil.which("msmtp")
    assert msmtp is not None
    (place / "bin/sendmail").symlink_to(msmtp)
    settings = place / ".msmtprc"
    settings.write_text(f"account default\nhost 127.0.0.1\nport {port}\ntls off\nauth off\n")
    settings.chmod(0o600)
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    yield {**os.environ, "PATH": path, "HOME": str(place)}
    server.close()


def back_up(place: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """One backup in a lab of its own, told to an operator."""
    lab = str(place / "lab")
    made = [*_TOOL, "lab", "create", lab, "--vm", "100", "--disk", "scsi0=2M", "--fill", "5"]
    subprocess.run(made, check=True, env=environment, capture_output=True)
    argv = [*_TOOL, "--root", lab, "100", "--mailto", "op@example.com"]
    try:
        return subprocess.run(argv, check=False, env=environment, capture_output=True, text=True)
    finally:
        subprocess.run([*_TOOL, "lab", "destroy", lab], check=True, env=environment)


async def test_mail_arrives_once_with_both_bodies(
    place: Path, mailbox: Mailbox, environment: dict[str, str]
) -> None:
    done = await asyncio.to_thread(back_up, place, environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("TASK OK\n")
    [envelope] = mailbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("root", ["op@example.com"])
    content = envelope.content
    assert isinstance(content, bytes)
    assert max(len(line) for line in content.splitlines()) <= 998
    mail = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(mail, EmailMessage)
    assert mail["Subject"] == "vzdump backup status (lab): backup successful"
    assert mail["From"] == "vzdump backup tool <root>"
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None and "100: " in text.get_content()
    assert html is not None and "<table" in html.get_content()


async def test_mail_that_the_server_refuses_is_a_line_of_the_log(
    place: Path, mailbox: Mailbox, environment: dict[str, str]
) -> None:
    mailbox.refusal = "550 no such operator"
    done = await asyncio.to_thread(back_up, place, environment)
    assert done.returncode == 0
    *_, told, verdict = done.stderr.splitlines()
    assert told.startswith("ERROR: could not notify via mail - 'sendmail' failed: ")
    assert verdict == "TASK OK"
    assert mailbox.envelopes == []
