"""The defaults of a node, ``vzdump.conf``, and the table of vzdump's options.

Owns the grammar of the file and what each option may hold. Precedence between the file, the
command line and a storage is left to its caller. Source: host behaviour, sections 2.1 and 2.2.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from vzdump_qemu.errors import ConfigError
from vzdump_qemu.formats.property_string import (
    PropertyKind,
    PropertySchema,
    parse_boolean,
    parse_integer,
    parse_property_string,
)

CONF_PATH = "/etc/vzdump.conf"

_BLANKS = " \t\r\n\f\v"
_LINE = re.compile(r"([^\s:]+)\s*:\s*(.*)", re.DOTALL | re.ASCII)
_LIST_SEPARATORS = re.compile(r"[\s,;]+")
_STORAGE_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*[A-Za-z0-9]")
_VMID = re.compile(r"[0-9]{1,9}")
_NO_PROPERTIES = PropertySchema(keys={})


class OptionKind(enum.Enum):
    """How the value of an option is checked and joined."""

    TEXT = "text"
    BOOLEAN = "boolean"
    INTEGER = "integer"
    CHOICE = "choice"
    STORAGE_ID = "storage id"
    VMIDS = "list of VMIDs"
    WORDS = "list of words"
    PATHS = "array"
    PROPERTIES = "property string"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionRule:
    """What one option may hold.

    Attributes:
        default: as it would be written; None if there is none.
        minimum, maximum: of an INTEGER.
        choices: of a CHOICE.
        length_max: characters of a TEXT.
        schema: of PROPERTIES.
    """

    kind: OptionKind
    default: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    length_max: int | None = None
    schema: PropertySchema = _NO_PROPERTIES


def _number(
    default: str | None, *, minimum: int | None = 0, maximum: int | None = None
) -> OptionRule:
    return OptionRule(kind=OptionKind.INTEGER, default=default, minimum=minimum, maximum=maximum)


def _choice(default: str | None, *choices: str) -> OptionRule:
    return OptionRule(kind=OptionKind.CHOICE, default=default, choices=choices)


def _properties(
    default: str | None, keys: Mapping[str, PropertyKind], default_key: str | None = None
) -> OptionRule:
    schema = PropertySchema(keys=keys, default_key=default_key)
    return OptionRule(kind=OptionKind.PROPERTIES, default=default, schema=schema)


_TEXT = OptionRule(kind=OptionKind.TEXT)
_OFF = OptionRule(kind=OptionKind.BOOLEAN, default="0")
_ON = OptionRule(kind=OptionKind.BOOLEAN, default="1")
_KEEP = ("keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly")
_PROPERTY_LIMITS: Mapping[str, OptionRule] = {
    "max-workers": _number(None, minimum=1, maximum=256),
    "pbs-entries-max": _number(None, minimum=1),
    **dict.fromkeys(_KEEP, _number(None)),
}
OPTION_RULES: Mapping[str, OptionRule] = {
    "vmid": OptionRule(kind=OptionKind.VMIDS),
    "all": _OFF,
    "exclude": OptionRule(kind=OptionKind.VMIDS),
    "pool": _TEXT,
    "node": _TEXT,
    "mode": _choice("snapshot", "snapshot", "suspend", "stop"),
    "storage": OptionRule(kind=OptionKind.STORAGE_ID),
    "dumpdir": _TEXT,
    "tmpdir": _TEXT,
    "stdout": _OFF,
    "compress": _choice("0", "0", "1", "gzip", "lzo", "zstd"),
    "pigz": _number("0", minimum=None),
    "zstd": _number("1", minimum=None),
    "bwlimit": _number("0"),
    "ionice": _number("7", maximum=8),
    "performance": _properties(
        "max-workers=16,pbs-entries-max=1048576",
        {"max-workers": PropertyKind.INTEGER, "pbs-entries-max": PropertyKind.INTEGER},
    ),
    "fleecing": _properties(
        "0", {"enabled": PropertyKind.BOOLEAN, "storage": PropertyKind.TEXT}, "enabled"
    ),
    "lockwait": _number("180"),
    "stopwait": _number("10"),
    "prune-backups": _properties(
        "keep-all=1",
        {"keep-all": PropertyKind.BOOLEAN, **dict.fromkeys(_KEEP, PropertyKind.INTEGER)},
    ),
    "remove": _ON,
    "protected": OptionRule(kind=OptionKind.BOOLEAN),
    "notes-template": OptionRule(kind=OptionKind.TEXT, length_max=1024),
    "script": _TEXT,
    "mailto": OptionRule(kind=OptionKind.WORDS),
    "mailnotification": _choice("always", "always", "failure"),
    "notification-mode": _choice("auto", "auto", "legacy-sendmail", "notification-system"),
    "quiet": _OFF,
    "stop": _OFF,
    "job-id": OptionRule(kind=OptionKind.TEXT, length_max=50),
    "exclude-path": OptionRule(kind=OptionKind.PATHS),
    "stdexcludes": _ON,
    "pbs-change-detection-mode": _choice(None, "legacy", "data", "metadata"),
    "maxfiles": _number("1", minimum=1),
    "size": _number("1024", minimum=None),
}
"""Every option of vzdump, those of 2020 included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VzdumpConf:
    """What the file says.

    Attributes:
        values: checked values by name: one each, several only for arrays. Booleans are ``1`` or
            ``0``, lists are joined by ``,``. Unknown options are left out.
        warnings: a line for each thing that was not understood and is ignored.
    """

    values: Mapping[str, tuple[str, ...]]
    warnings: tuple[str, ...]

    @property
    def options(self) -> Mapping[str, str]:
        """One value by name; those of an array are joined by ``,``."""
        return {name: ",".join(words) for name, words in self.values.items()}


def parse_vzdump_conf(raw: bytes | str) -> VzdumpConf:
    """Read ``vzdump.conf``; what cannot be used costs a warning, never an error."""
    text = raw if isinstance(raw, str) else raw.decode("utf-8", errors="backslashreplace")
    values: dict[str, tuple[str, ...]] = {}
    warnings: list[str] = []
    for line in text.split("\n"):
        line = line.strip(_BLANKS)
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            warnings.append(f"ignore config line: {line}")
            continue
        name, value = match[1], match[2]
        if name not in OPTION_RULES:
            continue
        try:
            checked = check_option(name, value)
        except ConfigError as error:
            warnings.append(f"parse error in '{CONF_PATH}' - '{name}': {error.message}")
            continue
        is_array = OPTION_RULES[name].kind is OptionKind.PATHS
        values[name] = (*values.get(name, ()), checked) if is_array else (checked,)
    if "storage" in values and "dumpdir" in values:
        del values["dumpdir"]
        warnings.append(
            f"both 'storage' and 'dumpdir' defined in '{CONF_PATH}' - ignoring 'dumpdir'"
        )
    return VzdumpConf(values=values, warnings=tuple(warnings))


def check_option(name: str, value: str) -> str:
    """Check a value and return its plain form (see `VzdumpConf.values`).

    Raises: ConfigError for an unknown option or a value that does not fit.
    """
    rule = OPTION_RULES.get(name)
    if rule is None:
        raise ConfigError(f"unknown option '{name}'")
    if not value:
        raise ConfigError("value is missing")
    match rule.kind:
        case OptionKind.TEXT:
            return _check_text(name, value, rule)
        case OptionKind.PATHS:
            return value
        case OptionKind.BOOLEAN:
            return "1" if parse_boolean(value) else "0"
        case OptionKind.INTEGER:
            return _check_integer(value, rule)
        case OptionKind.CHOICE:
            if value not in rule.choices:
                raise ConfigError(
                    f"value '{value}' does not have a value in the enumeration "
                    f"'{', '.join(rule.choices)}'"
                )
            return value
        case OptionKind.STORAGE_ID:
            if _STORAGE_ID.fullmatch(value) is None:
                raise ConfigError(f"storage ID '{value}' contains illegal characters")
            return value
        case OptionKind.VMIDS | OptionKind.WORDS:
            return _check_list(value, rule)
        case OptionKind.PROPERTIES:
            _check_properties(name, value, rule)
            return value
        case _:
            assert_never(rule.kind)


def _check_text(name: str, value: str, rule: OptionRule) -> str:
    if rule.length_max is not None and len(value) > rule.length_max:
        raise ConfigError(f"value may only be {rule.length_max} characters long")
    if name == "job-id" and _LIST_SEPARATORS.search(value):
        raise ConfigError("value must not contain blanks")
    return value


def _check_integer(value: str, rule: OptionRule) -> str:
    number = parse_integer(value)
    if rule.minimum is not None and number < rule.minimum:
        raise ConfigError(f"value must have a minimum value of {rule.minimum}")
    if rule.maximum is not None and number > rule.maximum:
        raise ConfigError(f"value must have a maximum value of {rule.maximum}")
    return str(number)


def _check_list(value: str, rule: OptionRule) -> str:
    words = [word for word in _LIST_SEPARATORS.split(value) if word]
    for word in words:
        if rule.kind is OptionKind.VMIDS and _VMID.fullmatch(word) is None:
            raise ConfigError(f"strange VM ID '{word}'")
    return ",".join(words)


def _check_properties(name: str, value: str, rule: OptionRule) -> None:
    values = parse_property_string(value, rule.schema)
    for key, limits in _PROPERTY_LIMITS.items():
        if key in values:
            try:
                _check_integer(str(values[key]), limits)
            except ConfigError as error:
                raise ConfigError(f"{key}: {error.message}") from None
    if name == "fleecing" and values.get("enabled") and "storage" not in values:
        raise ConfigError("'storage' parameter is required when 'enabled' is set")
    if values.get("keep-all") and any(int(values.get(key, 0)) > 0 for key in _KEEP):
        raise ConfigError("keep-all cannot be set together with other options.")
