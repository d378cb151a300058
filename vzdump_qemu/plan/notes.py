"""Notes that go with an archive, made from the operator's template; pure.

Owns escapes, variables and what is wrong with a template; where notes are kept is named by
`names.notes_name`. Source: host behaviour, section 2.11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vzdump_qemu.errors import ConfigError

_ESCAPE = re.compile(r"\\(.)")
_VARIABLE = re.compile(r"\{\{([^\s{}]+)\}\}")
_ESCAPED: Final[Mapping[str, str]] = {"n": "\n", "\\": "\\"}
_VARIABLES = ("cluster", "guestname", "node", "vmid")


@dataclass(frozen=True, slots=True, kw_only=True)
class NotesFacts:
    """What the variables of a template stand for.

    Attributes:
        vm_name: empty if the VM has none.
        cluster_name: empty for a node that is in no cluster.
    """

    vmid: int
    vm_name: str
    node_name: str
    cluster_name: str = ""


def check_notes_template(template: str) -> None:
    """Refuse a template that cannot be expanded as it is meant. Raises ConfigError."""
    if "\n" in template:
        raise ConfigError("contains a line feed", hint="write \\n for a line feed")
    unknown = [
        f"escape sequence '{found[0]}' at char {found.start()}"
        for found in _ESCAPE.finditer(template)
        if found[1] not in _ESCAPED
    ]
    unknown += [
        f"variable '{found[1]}' at char {found.start()}"
        for found in _VARIABLE.finditer(template)
        if found[1] not in _VARIABLES
    ]
    if unknown:
        known = ", ".join(f"{{{{{name}}}}}" for name in _VARIABLES)
        raise ConfigError(
            f"found unknown: {', '.join(unknown)}",
            hint=f"there are the variables {known}, and the escapes \\n and \\\\",
        )


def expand_notes(template: str, facts: NotesFacts) -> str:
    """The notes that a template gives for one VM; what a variable brings is not expanded again.

    Raises: ConfigError as `check_notes_template` does.
    """
    check_notes_template(template)
    values = {
        "cluster": facts.cluster_name or "standalone node",
        "guestname": facts.vm_name or f"VM {facts.vmid}",
        "node": facts.node_name,
        "vmid": str(facts.vmid),
    }
    text = _ESCAPE.sub(lambda found: _ESCAPED[found[1]], template)
    return _VARIABLE.sub(lambda found: values[found[1]], text)
