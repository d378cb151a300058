"""Mail through the host's ``sendmail``.

Owns the form of the mail and the program's bounded life; whether and to whom is told is decided
before. Source: host behaviour, section 1.14.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import EmailPolicy
from email.utils import format_datetime
from typing import IO

from vzdump_qemu.errors import BackupError
from vzdump_qemu.outlet_ports import Message

SENDER_DEFAULT = "root"

_PROGRAM = "sendmail"
# The command path of a scheduled job often lacks these.
_MORE_DIRECTORIES = ("/usr/sbin", "/usr/lib")
_TIMEOUT_S = 60.0
_OUTPUT_BYTES_MAX = 4096
# Seven bits and short lines pass every relay.
_POLICY = EmailPolicy(linesep="\n", cte_type="7bit", max_line_length=78)


class SendmailOutlet:
    """`MessageOutlet` to the recipients of one job.

    Args:
        recipients: addresses and mailboxes of this host.
        sender: address of the sender.
        wall_s: when the mail is written, seconds since the epoch.
        environment: where ``PATH`` leads to the program; ours if None.
    """

    name = "mail"

    def __init__(
        self,
        recipients: Sequence[str],
        *,
        sender_name: str,
        sender: str = SENDER_DEFAULT,
        wall_s: float,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._recipients = tuple(recipients)
        self._sender_name = sender_name
        self._sender = sender
        self._wall_s = wall_s
        self._environment = {**(os.environ if environment is None else environment), "LC_ALL": "C"}
        self._timeout_s = timeout_s

    async def send(self, message: Message) -> None:
        """As the port says; a program that takes too long is ended."""
        directories = (self._environment.get("PATH", os.defpath), *_MORE_DIRECTORIES)
        program = shutil.which(_PROGRAM, path=os.pathsep.join(directories))
        if program is None:
            raise BackupError(
                f"unable to find command '{_PROGRAM}'",
                hint="install a mail program (msmtp-mta, dma, postfix), or use --notify",
            )
        mail = self._compose(message)
        argv = (program, "-i", "-f", self._sender, "--", *self._recipients)
        # Files instead of pipes: what the program leaves running may hold those open for ever.
        with tempfile.TemporaryFile() as written, tempfile.TemporaryFile() as printed:
            written.write(mail)
            written.seek(0)
            try:
                async with asyncio.timeout(self._timeout_s):
                    status = await self._run(argv, written, printed)
            except TimeoutError:
                raise BackupError(f"'{_PROGRAM}' did not end in time and was ended") from None
            except OSError as error:
                raise BackupError(f"unable to run '{program}' - {error.strerror}") from error
            if status != 0:
                raise BackupError(f"'{_PROGRAM}' failed: {_last_words(printed, status)}")

    def _compose(self, message: Message) -> bytes:
        mail = EmailMessage(policy=_POLICY)
        mail["Subject"] = message.subject
        mail["From"] = _address(self._sender, self._sender_name)
        mail["To"] = ", ".join(self._recipients)
        mail["Date"] = format_datetime(datetime.fromtimestamp(self._wall_s, UTC))
        # Nobody's absence note is to answer this.
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.text, cte="quoted-printable")
        mail.add_alternative(message.html, subtype="html", cte="quoted-printable")
        return mail.as_bytes()

    async def _run(self, argv: Sequence[str], written: IO[bytes], printed: IO[bytes]) -> int:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=written,
            stdout=printed,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            process_group=0,
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


def _address(sender: str, name: str) -> Address:
    user, _, host = sender.rpartition("@")
    return Address(name, user, host) if user else Address(name, sender)


def _last_words(printed: IO[bytes], status: int) -> str:
    size_bytes = printed.seek(0, os.SEEK_END)
    printed.seek(max(size_bytes - _OUTPUT_BYTES_MAX, 0))
    lines = printed.read().decode("utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    code = f"exit code {status}" if status >= 0 else f"signal {-status}"
    return f"{said[-1]} ({code})" if said else code
