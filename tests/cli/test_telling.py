"""Who is told over which way, and what happens if that fails."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from vzdump_qemu import events
from vzdump_qemu.cli.log_line import error, info, warn
from vzdump_qemu.cli.tell_options import TellOptions
from vzdump_qemu.cli.telling import (
    JobTeller,
    TellPlace,
    TellPlan,
    find_place,
    is_journal_stream,
)
from vzdump_qemu.errors import INTERRUPTED_TEXT, BackupError
from vzdump_qemu.events import Consistency, Event
from vzdump_qemu.node.bridge import PveBridge
from vzdump_qemu.node.pve_node import open_pve_node
from vzdump_qemu.outlet_ports import Message
from vzdump_qemu.plan.notification import MailPolicy, NotificationMode
from vzdump_qemu.stores.commands import SystemCommandRunner


class FakeOutlet:
    """Keeps messages; fails or hangs if it was told to."""

    def __init__(self, name: str, *, failure: str = "", hangs: bool = False) -> None:
        self.name = name
        self.messages: list[Message] = []
        self._failure = failure
        self._hangs = hangs

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if self._hangs:
            await asyncio.Event().wait()
        if self._failure:
            raise BackupError(self._failure, hint="look there")


class FakeJournal:
    """Keeps entries."""

    def __init__(self) -> None:
        self.entries: list[Mapping[str, str]] = []

    def write(self, fields: Mapping[str, str]) -> None:
        self.entries.append(fields)


class Bench:
    """A teller with fakes around it, and what it said of itself."""

    def __init__(self, options: TellOptions, *, platform: FakeOutlet | None = None) -> None:
        self.journal = FakeJournal()
        self.told: list[Event] = []
        self.teller = JobTeller(self.journal, wall_s=lambda: 60.0, timeout_s=0.05)
        place = TellPlace(node_name="pve1", layout=None, platform=platform)
        plan = TellPlan(
            options=options, place=place, command_line="vzdump 100 101", emit=self.told.append
        )
        self.teller.begin(plan, (100, 101))

    def run(self, vmid: int, log_path: Path, *, text: str = "") -> None:
        show = self.teller.show
        show(
            events.RunStarted(vmid=vmid, wall_s=0, log_path=str(log_path), side_log_path=""),
            info(f"Starting Backup of VM {vmid} (qemu)", "Backup started at now"),
            vmid,
        )
        show(events.OutputSeen(line="said in the run"), info("said in the run"), vmid)
        if text:
            failed = events.RunFailed(vmid=vmid, wall_s=0, text=text, hint="")
            lines = error(f"Backup of VM {vmid} failed - {text}") + info("Failed at now")
            show(failed, lines, vmid)
        else:
            ended = events.RunSucceeded(
                vmid=vmid, wall_s=0, duration_s=1.0, consistency=Consistency.CRASH
            )
            show(ended, info(f"Finished Backup of VM {vmid} (00:00:01)", "finished at now"), vmid)
        show(events.RunClosed(vmid=vmid), (), vmid)

    def say(self, line: str) -> None:
        self.teller.show(events.OutputSeen(line=line), info(line))

    def begin(self) -> None:
        self.teller.show(
            events.JobStarted(command_line="vzdump 100 101"), info("starting new backup job: x")
        )

    def end(self, text: str = "") -> None:
        self.teller.show(events.JobEnded(failed_vmids=(), error=text), info("ended"))


@pytest.mark.parametrize(
    ("options", "with_platform", "told_names"),
    [
        (TellOptions(), True, ["platform"]),
        (TellOptions(), False, []),
        (TellOptions(mode=NotificationMode.LEGACY_SENDMAIL), True, []),
        (TellOptions(mode=NotificationMode.NOTIFICATION_SYSTEM), True, ["platform"]),
        (
            TellOptions(mode=NotificationMode.NOTIFICATION_SYSTEM, recipients=("root",)),
            True,
            ["platform"],
        ),
        (TellOptions(policy=MailPolicy.FAILURE, recipients=("root",)), True, []),
    ],
)
async def test_mode_and_recipients_decide_who_is_told(
    options: TellOptions, with_platform: bool, told_names: list[str], tmp_path: Path
) -> None:
    platform = FakeOutlet("platform")
    bench = Bench(options, platform=platform if with_platform else None)
    bench.begin()
    bench.run(100, tmp_path / "log")
    bench.run(101, tmp_path / "log")
    bench.end()
    await bench.teller.job_ended()
    assert len(platform.messages) == len(told_names)
    assert bench.told == []


async def test_targets_are_told_in_every_mode(tmp_path: Path) -> None:
    for mode in NotificationMode:
        target, platform = FakeOutlet("target"), FakeOutlet("platform")
        bench = Bench(TellOptions(mode=mode, targets=(target,)), platform=platform)
        bench.end()
        await bench.teller.job_ended()
        assert len(target.messages) == 1


async def test_message_quotes_hooks_and_the_files_of_the_runs(tmp_path: Path) -> None:
    (tmp_path / "100").write_text("first\nsecond\n")
    target = FakeOutlet("target")
    bench = Bench(TellOptions(targets=(target,), job_id="nightly"))
    bench.say("init said")
    bench.begin()
    bench.say("start said")
    bench.run(100, tmp_path / "100")
    bench.run(101, tmp_path / "gone", text="boom")
    bench.say("end said")
    bench.end()
    await bench.teller.job_ended()
    [message] = target.messages
    assert message.text.endswith(
        "\n\nvzdump 100 101\n\ninit said\nstart said\n100: first\n100: second\n"
        "101: Could not open log file\nend said\n"
    )
    assert message.fields == {"type": "vzdump", "hostname": "pve1", "job-id": "nightly"}
    assert message.failed


async def test_logs_are_read_no_further_than_a_message_could_hold(tmp_path: Path) -> None:
    (tmp_path / "100").write_text("x" * 80 + "\n" * (3 << 20))
    target = FakeOutlet("target")
    bench = Bench(TellOptions(targets=(target,)))
    bench.begin()
    bench.run(100, tmp_path / "100")
    bench.run(101, tmp_path / "100")
    bench.end()
    await bench.teller.job_ended()
    [message] = target.messages
    assert "Log output was too long to be sent. See Task History for details!" in message.text
    assert len(message.text) < 2000


async def test_one_that_fails_and_one_that_hangs_keep_nobody_else_from_being_told() -> None:
    outlets = (
        FakeOutlet("first", failure="refused"),
        FakeOutlet("second", hangs=True),
        FakeOutlet("third"),
    )
    bench = Bench(TellOptions(targets=outlets))
    bench.end(INTERRUPTED_TEXT)
    await bench.teller.job_ended()
    assert [len(outlet.messages) for outlet in outlets] == [1, 1, 1]
    assert bench.told == [
        events.NotificationFailed(name="first", text="refused", hint="look there"),
        events.NotificationFailed(name="second", text="got timeout", hint=""),
    ]


async def test_journal_gets_the_lines_of_syslog_and_an_entry_per_vm_and_job(
    tmp_path: Path,
) -> None:
    bench = Bench(TellOptions())
    bench.begin()
    bench.say("not for syslog")
    bench.run(100, tmp_path / "log")
    bench.run(101, tmp_path / "log", text="boom")
    bench.teller.show(events.Warned(text="careful"), warn("careful"))
    bench.end()
    await bench.teller.job_ended()
    assert [entry["MESSAGE"] for entry in bench.journal.entries if "MESSAGE_ID" not in entry] == [
        "starting new backup job: x",
        "Starting Backup of VM 100 (qemu)",
        "Finished Backup of VM 100 (00:00:01)",
        "Starting Backup of VM 101 (qemu)",
        "Backup of VM 101 failed - boom",
        "careful",
        "ended",
    ]
    entries = [entry for entry in bench.journal.entries if "MESSAGE_ID" in entry]
    assert [entry.get("VZDUMP_VMID") for entry in entries] == ["100", "101", None]
    assert entries[-1]["VZDUMP_VMS_FAILED"] == "1"


async def test_journal_that_has_the_lines_gets_the_entries_to_search_by_alone() -> None:
    journal = FakeJournal()
    teller = JobTeller(journal, wall_s=lambda: 60.0, journal_has_lines=True)
    teller.show(events.JobStarted(command_line="vzdump 100"), info("starting new backup job: x"))
    started = events.RunStarted(vmid=100, wall_s=0, log_path="", side_log_path="")
    teller.show(started, info("Starting Backup of VM 100 (qemu)"), 100)
    teller.show(events.RunClosed(vmid=100), (), 100)
    assert [entry.get("VZDUMP_VMID") for entry in journal.entries] == ["100"]
    assert "MESSAGE_ID" in journal.entries[0]


def test_stream_to_the_journal_is_known_by_its_inode(tmp_path: Path) -> None:
    with open(tmp_path / "stream", "w") as stream:
        facts = os.fstat(stream.fileno())
        here = {"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}
        assert is_journal_stream(stream.fileno(), here)
        assert not is_journal_stream(stream.fileno(), {"JOURNAL_STREAM": "1:2"})
        assert not is_journal_stream(stream.fileno(), {})


async def test_nobody_is_told_of_a_job_that_was_not_understood() -> None:
    teller = JobTeller(FakeJournal(), wall_s=lambda: 60.0)
    teller.show(events.JobEnded(failed_vmids=(), error="conflict"), error("conflict"))
    await teller.job_ended()
    assert teller.has_told


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("perl") is None, reason="perl is not installed")
async def test_platform_of_a_pve_node_is_told_by_its_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    monkeypatch.setenv("PVE_STUB_CALLS", str(calls))
    stubs = Path(__file__).parents[1] / "node/perl_stubs"
    async with open_pve_node(
        commands=SystemCommandRunner(),
        process_id=1,
        root=str(tmp_path),
        node_name="pve1",
        bridge=PveBridge(("perl", f"-I{stubs}")),
    ) as node:
        teller = JobTeller(FakeJournal(), wall_s=lambda: 60.0)
        told: list[Event] = []
        plan = TellPlan(
            options=TellOptions(job_id="nightly"),
            place=find_place(node),
            command_line="vzdump 100",
            emit=told.append,
        )
        teller.begin(plan, (100,))
        teller.show(events.JobEnded(failed_vmids=(), error="no quorum"), error("no quorum"))
        await teller.job_ended()
    assert told == []
    [call] = [json.loads(line) for line in calls.read_text().splitlines()]
    name, severity, template, data, fields, _ = call
    assert (name, severity, template) == ("notify", "error", "vzdump")
    assert fields == {"type": "vzdump", "hostname": "pve1", "job-id": "nightly"}
    assert data["status-text"] == "backup failed: no quorum"
    assert (data["fqdn"], data["guest-table"]["data"]) == ("pve1.example.com", [])
