"""A self-signed certificate for a server of tests.

Owns making it; every start makes another one, as its fingerprint is what clients go by.
"""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vzdump_qemu.formats.pbs.fingerprint import Fingerprint

_NAME = "fake-pbs"
_LIFE = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate with its private key, both in PEM form."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    fingerprint: Fingerprint

    @classmethod
    def make(cls, now_s: float) -> Certificate:
        """A new one, valid for a year around that moment."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        begin = datetime.fromtimestamp(now_s, UTC) - timedelta(days=1)
        names = [
            x509.DNSName("localhost"),
            x509.DNSName(_NAME),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + _LIFE)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        encoding = serialization.Encoding
        return cls(
            certificate_pem=certificate.public_bytes(encoding.PEM),
            key_pem=key.private_bytes(
                encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            fingerprint=Fingerprint.of_certificate(certificate.public_bytes(encoding.DER)),
        )

    def load_into(self, context: ssl.SSLContext) -> None:
        """Have connections that begin from now on use it."""
        with tempfile.TemporaryDirectory(prefix="vzsim-") as directory:
            path = Path(directory, "both.pem")
            path.touch(mode=0o600)
            path.write_bytes(self.key_pem + self.certificate_pem)
            context.load_cert_chain(path)
