"""What the contract asks of: channels, clients, and what each subject cannot show.

Owns the words of the contract suite. Subjects in memory and behind sockets are `fakes`'; real
programs are those of ``integration/contract``. Every subject comes up with one raw disk ``disk0``
(over ``file0``), used by the device ``scsi0`` where there is a guest, paused before its first
instruction, with two monitors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeVar

MIB = 1 << 20
DISK_BYTES = 8 * MIB
REPLY_WITHIN_S = 20.0
SILENCE_S = 0.15


class Feature(Enum):
    """What not every subject has."""

    MACHINE = "run states, devices, descriptors"
    DAEMON = "the storage daemon's own ways"
    OOB = "commands out of band"
    BACKLOG = "a listening socket that lets clients wait"
    REAL_FILES = "images that are files"


class Silence(Exception):
    """Nothing came in time."""


class Closed(Exception):
    """The other side hung up."""


class Channel(Protocol):
    """Bytes to and from one socket or its stand-in."""

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None: ...

    def receive_line(self, timeout_s: float) -> bytes:
        """One line without its end. Raises: Silence, Closed."""

    def close(self) -> None: ...


class Subject(Protocol):
    """Something that speaks QMP."""

    name: str
    features: frozenset[Feature]

    def open_monitor(self, index: int = 0) -> Channel: ...

    def add_image(self, name: str, *, size_bytes: int = DISK_BYTES, kind: str = "raw") -> str:
        """Make an image of zeros; returns its path."""

    def new_path(self, name: str) -> str:
        """A path of a socket or file to be."""


_Test = TypeVar("_Test", bound=Callable[..., object])


def needs(*features: Feature) -> Callable[[_Test], _Test]:
    """Run a test only on subjects that have all these features."""

    def mark(test: _Test) -> _Test:
        test.needed_features = frozenset(features)  # type: ignore[attr-defined]
        return test

    return mark


def features_needed(test: object) -> frozenset[Feature]:
    """What a test asked for with `needs`."""
    found: frozenset[Feature] = getattr(test, "needed_features", frozenset())
    return found


class Refused(Exception):
    """An error reply."""

    def __init__(self, error_class: str, description: str) -> None:
        super().__init__(f"{error_class}: {description}")
        self.error_class = error_class
        self.description = description


class Client:
    """A QMP client that keeps the events it met on the way."""

    def __init__(self, channel: Channel, *, negotiate: bool = True, oob: bool = False) -> None:
        self.channel = channel
        self.events: list[dict[str, Any]] = []
        self._serial = 0
        self.greeting = self.next_message()
        if negotiate:
            self.ask("qmp_capabilities", **({"enable": ["oob"]} if oob else {}))

    def next_message(self, timeout_s: float = REPLY_WITHIN_S) -> dict[str, Any]:
        """The next message of any kind. Raises: Silence, Closed."""
        message: dict[str, Any] = json.loads(self.channel.receive_line(timeout_s))
        return message

    def reply(self) -> dict[str, Any]:
        """The next message that is no event."""
        while "event" in (message := self.next_message()):
            self.events.append(message)
        return message

    def say(self, message: object, fds: Sequence[int] = ()) -> dict[str, Any]:
        """Send a JSON value and return the reply to it."""
        self.channel.send(json.dumps(message).encode() + b"\n", fds)
        return self.reply()

    def say_raw(self, data: bytes) -> dict[str, Any]:
        """Send bytes and return the first reply."""
        self.channel.send(data)
        return self.reply()

    def ask(self, command: str, /, *, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Carry out a command; a final ``_`` of a name is dropped, others become ``-``.

        Raises: Refused.
        """
        given = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
        self._serial += 1
        message = {"execute": command, "arguments": given, "id": self._serial}
        reply = self.say(message, fds)
        assert reply["id"] == self._serial, reply
        if "error" in reply:
            raise Refused(reply["error"]["class"], reply["error"]["desc"])
        return reply["return"]

    def refusal(self, command: str, /, *, fds: Sequence[int] = (), **arguments: Any) -> str:
        """Carry out a command that must fail; the text, with its class unless that is common."""
        try:
            value = self.ask(command, fds=fds, **arguments)
        except Refused as refused:
            if refused.error_class == "GenericError":
                return refused.description
            return f"{refused.error_class}: {refused.description}"
        raise AssertionError(f"{command} succeeded: {value}")

    def wait_for(self, name: str, timeout_s: float = REPLY_WITHIN_S, **data: Any) -> dict[str, Any]:
        """The first event of that name whose data has these members; those before are kept."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                found = event.get("data", {})
                if event["event"] == name and all(found.get(k) == v for k, v in data.items()):
                    return found
            seen = len(self.events)
            self.events.append(self.next_message(timeout_s))

    def listen(self, timeout_s: float = SILENCE_S) -> None:
        """Collect events until nothing more comes."""
        try:
            while True:
                self.events.append(self.next_message(timeout_s))
        except Silence:
            return

    def take_events(self, *leave_out: str) -> list[tuple[str, Any]]:
        """Names and data of the events so far, which are forgotten."""
        taken, self.events = self.events, []
        return [
            (event["event"], event.get("data"))
            for event in taken
            if event["event"] not in leave_out
        ]

    def job_states(self, job_id: str) -> list[str]:
        """States that a job went through, without the pauses of a drained disk."""
        states = [
            event["data"]["status"]
            for event in self.events
            if event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == job_id
        ]
        return list(_without_drains(states))

    def close(self) -> None:
        self.channel.close()


def _without_drains(states: Iterable[str]) -> Iterable[str]:
    """Drop ``paused`` and the state that a job returns to after it."""
    kept: list[str] = []
    for state in states:
        if state == "paused" or (kept and kept[-1] == state):
            continue
        kept.append(state)
    return kept


def file_of(path: str, **options: Any) -> dict[str, Any]:
    """Options of the node that opens a file."""
    return {"driver": "file", "filename": path, **options}
