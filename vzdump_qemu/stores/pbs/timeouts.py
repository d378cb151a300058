"""How long anything may take that waits for a server.

Owns the numbers and their reasons. Source: PBS formats, section 3; failure modes, rows 73 and 74.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Lengths of time in seconds.

    Attributes:
        connect_s: until TCP and TLS stand; what the reference client allows.
        call_s: of one HTTP/1.1 request with its reply, as there.
        stall_s: how long nothing at all may move on an HTTP/2 connection that owes us something.
        request_s: of one HTTP/2 request as a whole, waiting for its turn on the line included.
        finish_s: of ``finish``, in which a server writes a whole file system back.
    """

    connect_s: float = 10.0
    call_s: float = 120.0
    stall_s: float = 120.0
    request_s: float = 1800.0
    finish_s: float = 1800.0
