"""TLS connections to a server, and whether it is the right one.

Owns the trust: a given fingerprint is always checked, whatever any authority says of the
certificate; without one, the authorities of this system and the host name decide. Nothing is sent
before that is settled. Source: PBS formats, section 2; failure modes, row 71.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

from vzdump_qemu.errors import PbsError, PbsUnreachable
from vzdump_qemu.formats.pbs import Fingerprint
from vzdump_qemu.units import MIB

# Also how much may have been received and not read yet, twice.
_READ_BUFFER_BYTES: Final = MIB
_WRITE_BUFFER_BYTES_MAX: Final = 4 * MIB
_KEEP_ALIVE_S: Final = 120

Stream: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTrust:
    """Which certificate is accepted.

    Attributes:
        fingerprint: the one that the server must have; None leaves it to authorities.
        ca_path: a file of authorities instead of this system's.
    """

    fingerprint: Fingerprint | None = None
    ca_path: str = ""


async def open_tls(host: str, port: int, trust: TlsTrust, *, timeout_s: float) -> Stream:
    """Connect, shake hands and check the certificate.

    Raises:
        PbsUnreachable: nobody answers there, or not in time.
        PbsError: no TLS, or not the server that is trusted.
    Cancelled: nothing is left open.
    """
    place = f"{host}:{port}"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                host,
                port,
                ssl=_context(trust),
                server_hostname=host,
                limit=_READ_BUFFER_BYTES,
            )
    except ssl.SSLCertVerificationError as error:
        raise PbsError(
            f"Certificate fingerprint was not confirmed. ({place}: {error.verify_message})",
            hint="give the fingerprint that the server's dashboard shows",
        ) from error
    except ssl.SSLError as error:
        raise PbsError(f"{place} does not speak TLS as needed: {_reason(error)}") from error
    except TimeoutError as error:
        raise PbsUnreachable(f"unable to connect to {place} - no answer in time") from error
    except OSError as error:
        raise PbsUnreachable(f"unable to connect to {place} - {_cause(error)}") from error
    try:
        _check_pin(writer, trust, place)
    except PbsError:
        writer.transport.abort()
        raise
    _tune(writer)
    return reader, writer


def _context(trust: TlsTrust) -> ssl.SSLContext:
    if trust.fingerprint is not None:
        # The pin names one certificate, which says more than any name or chain; and reading the
        # authorities of a system costs as much as hashing a hundred megabytes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        try:
            context = ssl.create_default_context(cafile=trust.ca_path or None)
        except OSError as error:
            raise PbsError(
                f"unable to read authorities '{trust.ca_path}' - {error.strerror}"
            ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _check_pin(writer: asyncio.StreamWriter, trust: TlsTrust, place: str) -> None:
    if trust.fingerprint is None:
        return
    tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True)
    found = None if der is None else Fingerprint.of_certificate(der)
    if found != trust.fingerprint:
        raise PbsError(
            f"Certificate fingerprint was not confirmed. ({place} shows {found})",
            hint=f"expected {trust.fingerprint}; was the server's certificate renewed?",
        )


def _tune(writer: asyncio.StreamWriter) -> None:
    writer.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES_MAX)
    connection: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE_S)


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "handshake failed").replace("_", " ").lower()


def _cause(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    # The loop joins the errors of several addresses into one text without a number.
    return error.strerror or str(error) or "connection lost"
