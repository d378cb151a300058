"""What a server counts, for tests that prove how much was sent.

Owns the numbers alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class Counters:
    """Everything since the start or the last `reset`.

    Attributes:
        requests: by endpoint, ``POST /fixed_chunk`` (HTTP/1.1 without ``/api2/json``).
        refusals: replies other than 200 and 101, by status.
        received_chunk_count: uploads of chunks that were accepted.
        received_chunk_bytes: their encoded length.
        received_content_bytes: their content.
        duplicate_chunk_count: of them, those that the datastore had already.
        appended_chunk_count: entries put into indexes.
        reused_chunk_count: of them, those that this connection did not upload.
        sent_chunk_count: chunks that readers fetched.
        sent_chunk_bytes: their encoded length.
        received_bytes: everything on upgraded connections, with the frames around it, without TLS.
        sent_bytes: likewise.
    """

    requests: Counter[str] = field(default_factory=Counter)
    refusals: Counter[int] = field(default_factory=Counter)
    connection_count: int = 0
    login_count: int = 0
    renewal_count: int = 0
    backup_count: int = 0
    finished_count: int = 0
    received_chunk_count: int = 0
    received_chunk_bytes: int = 0
    received_content_bytes: int = 0
    duplicate_chunk_count: int = 0
    appended_chunk_count: int = 0
    reused_chunk_count: int = 0
    sent_chunk_count: int = 0
    sent_chunk_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0

    def reset(self) -> None:
        """Begin at zero again."""
        fresh = Counters()
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))
