"""A text that must not be seen: passwords, token secrets, passphrases.

Owns that no text, log or file made of it by accident shows it; where secrets are read from is
left to the adapters.
"""

from __future__ import annotations

import hmac
import json
from urllib.parse import quote


class Secret:
    """A secret text that shows itself to `reveal` alone."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret, for the wire and for deriving keys."""
        return self._text

    def hide_in(self, text: str) -> str:
        """A foreign text with the secret struck out, however it was quoted there."""
        if not self._text:
            return text
        quoted = {self._text, quote(self._text, safe=""), json.dumps(self._text)[1:-1]}
        for form in sorted(quoted, key=len, reverse=True):
            text = text.replace(form, "***")
        return text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not to be copied into files")
