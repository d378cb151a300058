"""The verbs ``key create|show``: keys that encrypt backups at a server.

Owns asking for the passphrase and what is printed; making and reading the files is left to
`stores.pbs`. Source: PBS formats, section 9.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from vzdump_qemu.cli.reporting import json_option, print_json
from vzdump_qemu.errors import ConfigError
from vzdump_qemu.secret import Secret

if TYPE_CHECKING:
    # The help is instant: nothing of a server is loaded for it.
    from vzdump_qemu.formats.pbs import KeyFile

_KDF_SCRYPT, _KDF_NONE = "scrypt", "none"


@click.group("key")
def key_group() -> None:
    """Make and show keys that encrypt backups at a backup server."""


@key_group.command("create")
@click.argument("path", metavar="FILE")
@click.option(
    "--kdf",
    type=click.Choice([_KDF_SCRYPT, _KDF_NONE]),
    default=_KDF_SCRYPT,
    show_default=True,
    help="how a passphrase protects the key; none leaves it bare.",
)
@click.option("--hint", default="", metavar="TEXT", help="to remember the passphrase by.")
@json_option
def create_command(path: str, *, kdf: str, hint: str, as_json: bool) -> None:
    """Make a key in a new FILE that its owner alone can read.

    The passphrase comes from PBS_ENCRYPTION_PASSWORD, or is asked for twice at the terminal.
    Without the key nobody can restore what was encrypted with it: keep a copy elsewhere.
    """
    from vzdump_qemu.stores.pbs.key_making import create_key_file, refuse_existing
    from vzdump_qemu.stores.system import SystemClock

    # Told before a passphrase is asked for.
    refuse_existing(path)
    passphrase = _ask_passphrase() if kdf == _KDF_SCRYPT else None
    created = create_key_file(path, clock=SystemClock(), passphrase=passphrase, hint=hint)
    _print_key(path, created, as_json=as_json)


@key_group.command("show")
@click.argument("path", metavar="FILE")
@json_option
def show_command(path: str, *, as_json: bool) -> None:
    """Show what a key file says of itself; the key is neither unlocked nor shown."""
    from vzdump_qemu.stores.pbs.key_loading import read_key_file

    _print_key(path, read_key_file(path), as_json=as_json)


def _ask_passphrase() -> Secret:
    from vzdump_qemu.stores.pbs.key_loading import PASSPHRASE_VARIABLE, find_passphrase

    found = find_passphrase(os.environ)
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise ConfigError(
            "no passphrase given",
            hint=f"set {PASSPHRASE_VARIABLE}, or leave the key bare with --kdf none",
        )
    return Secret(
        click.prompt("Passphrase", hide_input=True, confirmation_prompt="Again", err=True)
    )


def _print_key(path: str, key_file: KeyFile, *, as_json: bool) -> None:
    from vzdump_qemu.formats.pbs.times import render_utc

    kdf = "none" if key_file.kdf is None else type(key_file.kdf).__name__.removesuffix("Kdf")
    facts: dict[str, Any] = {
        "path": path,
        "fingerprint": str(key_file.fingerprint or "") or None,
        "kdf": kdf.lower(),
        "created": render_utc(key_file.created_s),
        "modified": render_utc(key_file.modified_s),
        "hint": key_file.hint,
    }
    if as_json:
        print_json(facts)
        return
    for label, value in facts.items():
        text = "".join(letter if letter.isprintable() else "?" for letter in value or "-")
        click.echo(f"{label:<11}  {text}")
