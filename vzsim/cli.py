"""``vzsim``: the simulator's command line.

Heavy modules load only in the verb that needs them, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from vzsim.explore import Tally

_DISK_DEFAULT = "scsi0=64M"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Simulates the world that a QEMU backup tool lives in."""


@main.command()
@click.option("--qmp", "qmp_paths", multiple=True, help="Socket of a QMP monitor.")
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
@click.option(
    "--pbs",
    "pbs_directory",
    default="",
    help="Serve a Proxmox Backup Server instead; its datastores are in DIR.",
    metavar="DIR",
)
@click.option("--port", default=0, help="Port of the backup server.  [default: any]")
def serve(
    qmp_paths: tuple[str, ...],
    agent_path: str,
    disks: tuple[str, ...],
    script_path: str,
    *,
    dialect: str,
    paused: bool,
    pbs_directory: str,
    port: int,
) -> None:
    """Serve one simulated machine on UNIX sockets until it ends (quit or a signal).

    With --pbs DIR it is a backup server on the loopback; what a client needs is printed.
    """
    from vzdump_qemu.errors import ConfigError
    from vzsim.serve import ServeOptions, serve_machine

    if bool(qmp_paths) is bool(pbs_directory):
        raise click.UsageError("either --qmp or --pbs is needed")
    if pbs_directory and (agent_path or disks or paused):
        raise click.UsageError("--pbs goes with --script and --port alone")
    try:
        if pbs_directory:
            from vzsim.fakepbs.service import serve_pbs

            sys.exit(serve_pbs(pbs_directory, script_path, port=port))
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


@main.command()
@click.argument("system", default="vzdump-qemu")
@click.option("--scenarios", default="", help="Names, comma-separated.  [default: all]")
@click.option("--seeds", default=200, show_default=True, help="Runs with faults drawn by seed.")
@click.option("--first-seed", default=1, show_default=True, help="Where seeds begin.")
@click.option("--jobs", default=1, show_default=True, help="Processes.")
@click.option("--time-limit", default=0.0, help="Seconds; no new runs after that.")
@click.option("--log-dir", default="", help="Write one event log per run there.")
@click.option(
    "--exhaustive",
    count=True,
    help="Every single fault at every site; twice: pairs in the freeze window and at publishing.",
)
@click.option("--kills/--no-kills", default=True, help="Let the tool be killed too.")
@click.option("--stop-early", is_flag=True, help="No new runs after a violation.")
def explore(
    system: str,
    scenarios: str,
    seeds: int,
    first_seed: int,
    jobs: int,
    time_limit: float,
    log_dir: str,
    exhaustive: int,
    *,
    kills: bool,
    stop_early: bool,
) -> None:
    """Simulate many backups of SYSTEM with faults; exit 1 if a guarantee was ever violated."""
    from vzdump_qemu.errors import ConfigError
    from vzsim.explore import explore as explore_all
    from vzsim.explore_table import render_heading, render_tally
    from vzsim.run_lists import ExploreOptions
    from vzsim.scenario import choose_scenarios

    try:
        options = ExploreOptions(
            system=system,
            scenarios=tuple(scenario.name for scenario in choose_scenarios(scenarios)),
            seed_count=seeds,
            first_seed=first_seed,
            exhaustive=exhaustive,
            job_count=jobs,
            time_limit_s=time_limit,
            log_directory=log_dir,
            with_kills=kills,
            stop_early=stop_early,
        )
        click.echo(render_heading(options))
        tally = explore_all(options, _telling_progress())
    except (ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(render_tally(tally), nl=False)
    sys.exit(1 if tally.violations else 0)


def _telling_progress() -> Callable[[Tally], None]:
    """Every violation when it is found, and every minute how far it is."""
    told_s, told_count = 0.0, 0

    def tell(tally: Tally) -> None:
        nonlocal told_s, told_count
        for token, text in tally.violations[told_count:]:
            click.echo(f"violation: {text}: {token.render()}", err=True)
        told_count = len(tally.violations)
        if tally.real_s - told_s >= 60:
            told_s = tally.real_s
            text = f"{tally.real_s:.0f} s: {tally.run_count} runs, "
            click.echo(f"{text}{len(tally.violations)} violations", err=True)

    return tell


@main.command("check-schema")
@click.option(
    "--dialect",
    "dialects",
    type=click.Choice(["pve", "upstream", "storage-daemon"]),
    multiple=True,
    help="Which simulated programs.  [default: all]",
)
@click.option(
    "--schema",
    "schema_path",
    default="",
    help="A reply of query-qmp-schema to hold one dialect against.  [default: the recorded ones]",
)
def check_schema(dialects: tuple[str, ...], schema_path: str) -> None:
    """Hold the simulated QEMU against the QAPI schemas of real ones; exit 1 on any deviation."""
    from vzdump_qemu.errors import ConfigError
    from vzsim.check_schema import check_dialect, read_schema, render_reports
    from vzsim.fakeqmp.schema import Dialect

    chosen = [Dialect(name) for name in dialects] or list(Dialect)
    if schema_path and len(chosen) != 1:
        raise click.UsageError("--schema needs one --dialect")
    try:
        schema = read_schema(schema_path) if schema_path else None
    except (ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error
    reports = [check_dialect(dialect, schema) for dialect in chosen]
    click.echo(render_reports(reports), nl=False)
    sys.exit(1 if any(report.deviations for report in reports) else 0)


@main.command()
@click.argument("token")
@click.option("--system", default="vzdump-qemu", show_default=True, help="Who is tested.")
@click.option("--html", "html_path", default="", help="Write a page with swim lanes there.")
@click.option("--raw", is_flag=True, help="Print the bare event log.")
def replay(token: str, system: str, html_path: str, *, raw: bool) -> None:
    """Make the run of TOKEN again and print it as a timeline."""
    from vzdump_qemu.errors import ConfigError
    from vzsim.explore import replay as make_again
    from vzsim.replay import render_timeline
    from vzsim.replay_page import render_page
    from vzsim.token import Token

    try:
        parsed = Token.parse(token)
        report = make_again(parsed, system=system)
        if html_path:
            with open(html_path, "w", encoding="utf-8") as file:
                file.write(render_page(parsed, report))
    except (ConfigError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(report.log.render() if raw else render_timeline(parsed, report), nl=False)
    sys.exit(1 if report.violations else 0)


@main.command()
@click.argument("token")
@click.option("--system", default="vzdump-qemu", show_default=True, help="Who is tested.")
def shrink(token: str, system: str) -> None:
    """Reduce the fault script of TOKEN as long as the same guarantee is violated."""
    from functools import partial

    from vzdump_qemu.errors import ConfigError
    from vzsim.explore import replay as make_again
    from vzsim.replay import render_verdict
    from vzsim.shrink import shrink as shrink_token
    from vzsim.token import Token

    try:
        run = partial(make_again, system=system)
        smallest, report = shrink_token(Token.parse(token), run)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    click.echo(smallest.render())
    click.echo("\n".join(render_verdict(report)))
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
