"""Targets of the apprise library: chats, push services, mail accounts, web hooks.

Owns that no URL is shown, for most hold a secret somewhere, and that the summary is sent, for
most of these places are small. Imported only where a target is named: its library is an optional
one.
"""

from __future__ import annotations

from collections.abc import Sequence

from apprise import Apprise, NotifyFormat, NotifyType

from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.outlet_ports import Message
from vzdump_qemu.stores.system import run_blocking

_SCHEME_CHARS_MAX = 32


class AppriseOutlet:
    """`MessageOutlet` to one target."""

    def __init__(self, client: Apprise, name: str) -> None:
        self._client = client
        self._name = name

    @property
    def name(self) -> str:
        """As the port says: the scheme alone."""
        return self._name

    async def send(self, message: Message) -> None:
        """As the port says; the library's own limits are a few seconds each."""
        client, kind = self._client, NotifyType.FAILURE if message.failed else NotifyType.SUCCESS

        def send() -> bool:
            return bool(
                client.notify(
                    body=message.summary,
                    title=message.subject,
                    notify_type=kind,
                    body_format=NotifyFormat.TEXT,
                )
            )

        if not await run_blocking(send):
            raise BackupError(f"the target '{self._name}' did not take it")


def open_apprise_targets(urls: Sequence[str]) -> tuple[AppriseOutlet, ...]:
    """One outlet for each URL; nothing is sent yet.

    Raises:
        ConfigError: the library knows no such target.
    """
    outlets = []
    for index, url in enumerate(urls, start=1):
        scheme = url.partition("://")[0][:_SCHEME_CHARS_MAX] if "://" in url else ""
        client = Apprise()
        if not client.add(url):
            raise ConfigError(
                f"option 'notify': target {index} ('{scheme or '?'}://...') is not understood",
                hint="targets are URLs as apprise takes them: json://host/path, mailtos://...",
            )
        outlets.append(AppriseOutlet(client, f"{scheme}://..."))
    return tuple(outlets)
