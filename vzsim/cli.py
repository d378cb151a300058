"""``vzsim``: the simulator's command line.

Heavy modules load only in the verb that needs them, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys

import click

_DISK_DEFAULT = "scsi0=64M"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Simulates the world that a QEMU backup tool lives in."""


@main.command()
@click.option("--qmp", "qmp_paths", required=True, multiple=True, help="Socket of a QMP monitor.")
@click.option("--agent", "agent_path", default="", help="Socket of the guest agent.")
@click.option(
    "--disk",
    "disks",
    multiple=True,
    help=f"A disk as ID=SIZE (in memory, K/M/G) or ID=PATH.  [default: {_DISK_DEFAULT}]",
)
@click.option("--script", "script_path", default="", help="What shall differ (TOML).")
@click.option(
    "--dialect", type=click.Choice(["pve", "upstream"]), default="pve", help="Whose QEMU."
)
@click.option("--paused", is_flag=True, help="Start like QEMU's -S.")
def serve(
    qmp_paths: tuple[str, ...],
    agent_path: str,
    disks: tuple[str, ...],
    script_path: str,
    *,
    dialect: str,
    paused: bool,
) -> None:
    """Serve one simulated machine on UNIX sockets until it ends (quit or a signal)."""
    from vzdump_qemu.errors import ConfigError
    from vzsim.serve import ServeOptions, serve_machine

    try:
        status = serve_machine(
            ServeOptions(
                qmp_paths=qmp_paths,
                agent_path=agent_path,
                disks=disks or (_DISK_DEFAULT,),
                script_path=script_path,
                dialect=dialect,
                paused=paused,
            )
        )
    except (ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)


if __name__ == "__main__":
    main()
