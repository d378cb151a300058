"""A backup server as a place for backups: a value and nothing else.

Where it comes from, a storage of the node or the command line, is left to `node` and `cli`.
Source: host behaviour, section 5.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vzdump_qemu.formats.pbs import Fingerprint, Namespace, Repository
from vzdump_qemu.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class PbsTarget:
    """Where on which server backups go, and what proves who we are.

    Attributes:
        storage_id: of the node's storage; empty where a repository was named.
        password: the user's, or the secret of an API token.
        fingerprint: of the server's certificate; None leaves the trust to authorities.
        key_path: file of the key that encrypts; empty for plain backups.
        key_passphrase: what that file is protected with; None if nothing was said of one.
        master_key_path: public key that the key is wrapped with; empty for none.
        warning: what of the configuration is left aside, for the operator; empty for nothing.
    """

    repository: Repository
    password: Secret
    storage_id: str = ""
    namespace: Namespace = field(default_factory=Namespace)
    fingerprint: Fingerprint | None = None
    key_path: str = ""
    key_passphrase: Secret | None = None
    master_key_path: str = ""
    warning: str = ""

    def hide_in(self, text: str) -> str:
        """A foreign text with what must not be seen struck out."""
        for secret in (self.password, self.key_passphrase):
            text = text if secret is None else secret.hide_in(text)
        return text

    @property
    def identity(self) -> str:
        """The place where backups are, for ever and no other: server, datastore, namespace."""
        place = self.repository
        return f"{place.url_host}:{place.port}:{place.datastore}:{self.namespace}"
