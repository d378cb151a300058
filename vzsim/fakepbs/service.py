"""A server that is up on this machine: for ``vzsim serve --pbs`` and for tests of real clients.

Owns the real clock, real chance and threads around a `FakePbs`, and what a client must be told.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vzdump_qemu.formats.pbs.repository import AuthId, Repository
from vzsim.fakepbs.accounts import Account
from vzsim.fakepbs.certificate import Certificate
from vzsim.fakepbs.faults import Fault, read_faults
from vzsim.fakepbs.files import DiskFiles
from vzsim.fakepbs.server import FakePbs, PbsConfig, PbsListener, PbsSurroundings

_USER_ID = "root@pam"
_TOKEN_NAME = "vzdump"
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsServeOptions:
    """What ``vzsim serve --pbs`` was asked for.

    Attributes:
        directory: each datastore is a directory in it; None keeps all in memory.
        port: 0 for any that is free.
    """

    directory: Path | None
    port: int = 0
    script: Sequence[Fault] = ()
    config: PbsConfig = field(default_factory=PbsConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPbs:
    """A server that is up, and what a client needs.

    Attributes:
        repository: of the first datastore, with the API token.
        token_secret: of that token.
        password: of its user.
    """

    pbs: FakePbs
    listener: PbsListener
    repository: Repository
    token_secret: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Of the certificate that is shown now."""
        return str(self.listener.fingerprint)

    @property
    def user_repository(self) -> Repository:
        """The same datastore for the user with the password."""
        return Repository(
            datastore=self.repository.datastore,
            host=self.repository.host,
            port=self.repository.port,
            auth_id=AuthId.parse(_USER_ID),
        )

    def change_certificate(self) -> None:
        """Show another certificate, with another fingerprint, from now on."""
        self.listener.use_certificate(Certificate.make(time.time()))

    def render(self) -> str:
        """What a shell, and the client programs of PBS, can be told."""
        lines = {
            "PBS_REPOSITORY": self.repository.render(),
            "PBS_FINGERPRINT": self.fingerprint,
            "PBS_PASSWORD": self.token_secret,
        }
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in lines.items())
        return f"{text}# password of {_USER_ID}: {self.password}\n"


@asynccontextmanager
async def serving(options: PbsServeOptions) -> AsyncIterator[ServedPbs]:
    """Have a server up on the loopback until the block ends. Raises: OSError."""
    user = Account(auth_id=_USER_ID, secret=secrets.token_urlsafe(16))
    token = Account(auth_id=f"{_USER_ID}!{_TOKEN_NAME}", secret=secrets.token_hex(18))
    directory = options.directory
    surroundings = PbsSurroundings(
        now_s=time.time,
        chance=os.urandom,
        files=None if directory is None else lambda name: DiskFiles(directory / name, time.time),
        offload=asyncio.to_thread,
    )
    pbs = FakePbs(options.config, surroundings, options.script)
    pbs.accounts.add(user)
    pbs.accounts.add(token)
    listener = PbsListener(pbs, Certificate.make(time.time()))
    port = await listener.start(_HOST, options.port)
    repository = Repository(
        datastore=options.config.datastores[0],
        host=_HOST,
        port=port,
        auth_id=AuthId.parse(token.auth_id),
    )
    try:
        yield ServedPbs(
            pbs=pbs,
            listener=listener,
            repository=repository,
            token_secret=token.secret,
            password=user.secret,
        )
    finally:
        await listener.close()


def serve_pbs(directory: str, script_path: str, *, port: int) -> int:
    """Serve until a signal; returns the exit status. Raises: ConfigError, OSError."""
    script: Sequence[Fault] = ()
    if script_path:
        script = read_faults(Path(script_path).read_text(encoding="utf-8"))
    options = PbsServeOptions(directory=Path(directory), port=port, script=script)
    return asyncio.run(_serve(options))


async def _serve(options: PbsServeOptions) -> int:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving(options) as served:
        print(served.render(), end="", flush=True)
        await ended.wait()
    return 0
