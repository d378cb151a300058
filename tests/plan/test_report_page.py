"""The report page: valid, whole, safe, small, and without anything to be loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from xml.etree.ElementTree import Element

import html5lib
import pytest

from tests.plan.report_jobs import (
    BEGAN_S,
    RUN_S,
    failed_run,
    good_run,
    job,
    local_time,
    past_backup,
)
from vzdump_qemu.events import FreezeSkip
from vzdump_qemu.plan.batch_record import DiskRecord, FreezeRecord, JobRecord, RunRecord
from vzdump_qemu.plan.notification import GuestState
from vzdump_qemu.plan.report_page import WARNINGS_SHOWN_MAX, ReportFacts, render_report
from vzdump_qemu.plan.report_style import STYLE
from vzdump_qemu.plan.report_table import PastBackup
from vzdump_qemu.units import GIB, MIB

HOSTILE = "<script>alert('x')</script>\"&amp;\x00\x1b[31m\udcff\u2028"


def page_of(
    record: JobRecord, past: dict[int, tuple[PastBackup, ...]] | None = None, zone: str = ""
) -> str:
    return render_report(ReportFacts(job=record, local_time=local_time, zone=zone, past=past or {}))


def parse(page: str) -> Element:
    """The document; a parser that forgives nothing has read it."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    document: Element = parser.parse(page)
    return document


def text_of(element: Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def page_text(page: str) -> str:
    body = parse(page).find("body")
    assert body is not None
    return text_of(body)


def rows_of(document: Element) -> Iterator[list[str]]:
    for row in document.iterfind(".//table[@class='vms']/tbody/tr"):
        yield [text_of(cell) for cell in row]


def heading_of(page: str) -> str:
    heading = parse(page).find(".//h1")
    assert heading is not None
    return text_of(heading)


def title_ids(page: str) -> list[str]:
    return [one.get("id", "") for one in parse(page).iterfind(".//h2")]


EMPTY_FIGURES = ["–"] * 6
JOBS = {
    "good": job(good_run(100), good_run(101, began_s=BEGAN_S + RUN_S)),
    "one": job(good_run()),
    "failed": job(good_run(), failed_run(101), RunRecord(vmid=102), error="interrupted"),
    "never begun": job(RunRecord(vmid=100), error="no such storage", hint="name one"),
    "nothing": job(),
    "unheard": JobRecord(host_name="pve1"),
    "going on": JobRecord(
        host_name="pve1",
        began_wall_s=BEGAN_S,
        runs=(replace(good_run(), state=GuestState.NOT_REACHED, ended_wall_s=None),),
    ),
    "hostile": job(
        replace(
            failed_run(100, name=HOSTILE),
            error=HOSTILE,
            hint=HOSTILE,
            data_path=HOSTILE,
            data_path_reason=HOSTILE,
            location=HOSTILE,
            warnings=(HOSTILE,),
            disks=(DiskRecord(key=HOSTILE, volid=HOSTILE, excluded_reason=HOSTILE),),
            removed_names=(HOSTILE,),
            log_path=HOSTILE,
            side_log_path=HOSTILE,
            freeze=FreezeRecord(began_wall_s=BEGAN_S, failure=HOSTILE),
        ),
        error=HOSTILE,
        hint=HOSTILE,
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_page_of_any_job_is_valid_and_names_every_vm(name: str) -> None:
    record = JOBS[name]
    page = page_of(record)
    document = parse(page)
    named = [row[0].split()[0] for row in rows_of(document)]
    assert named == [str(run.vmid) for run in record.runs]
    ids = [one.get("id") for one in document.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    assert len(document.findall(".//h1")) == 1
    for link in document.iterfind(".//a"):
        assert link.get("href", "").removeprefix("#") in ids


@pytest.mark.parametrize("name", JOBS)
def test_page_of_any_job_loads_nothing_and_runs_nothing(name: str) -> None:
    page = page_of(JOBS[name])
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    document = parse(page)
    tags = {one.tag.rpartition("}")[2] for one in document.iter() if isinstance(one.tag, str)}
    assert tags.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    for one in document.iter():
        for key, value in one.attrib.items():
            assert not key.startswith("on")
            if key.rpartition("}")[2] in ("href", "src"):
                assert value.startswith("#")


def test_hostile_names_stay_text_wherever_they_stand() -> None:
    past = {100: (PastBackup(name=HOSTILE, local_time=local_time(BEGAN_S), size_bytes=1),)}
    record = replace(JOBS["hostile"], host_name=HOSTILE, command_line=HOSTILE, warnings=(HOSTILE,))
    page = page_of(record, past, zone=HOSTILE)
    parse(page)
    assert "<script" not in page
    assert page_text(page).count("<script>alert('x')</script>\"&amp;") >= 12
    assert not re.search("[\x00-\x09\x0b-\x1f\ud800-\udfff]", page)
    page.encode("utf-8")


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (job(good_run()), "VM 100 is backed up"),
        (job(good_run(), good_run(101)), "All 2 VMs are backed up"),
        (
            job(replace(good_run(), warnings=("a", "b")), good_run(101)),
            "All 2 VMs are backed up, with 2 warnings",
        ),
        (replace(job(good_run()), warnings=("a",)), "VM 100 is backed up, with 1 warning"),
        (job(failed_run(100)), "VM 100 was not backed up"),
        (job(good_run(), failed_run(101)), "1 of 2 VMs was not backed up"),
        (job(good_run(), failed_run(101), RunRecord(vmid=102)), "2 of 3 VMs were not backed up"),
        (job(failed_run(100), RunRecord(vmid=101)), "None of 2 VMs was backed up"),
        (job(good_run(), error="script failed"), "Backup job failed after its last VM"),
        (job(error="no such storage"), "Backup job failed"),
        (job(), "There was nothing to back up"),
        (JobRecord(host_name="pve1"), "Backup job not ended"),
    ],
)
def test_verdict_says_how_the_job_ended(record: JobRecord, verdict: str) -> None:
    assert heading_of(page_of(record)) == verdict


def test_figures_of_a_vm_stand_in_its_row() -> None:
    [row] = rows_of(parse(page_of(job(good_run()))))
    assert row == [
        "100 db",
        "backed up",
        "snapshot",
        "frozen",
        "native",
        "51.0 s",
        "12.4 ms",
        "40.0 GiB",
        "10.0 GiB",
        "30.0 GiB",
        "1.00 GiB/s",
        "15.0 GiB",
    ]


def test_row_of_a_vm_at_a_server_shows_what_was_there_already() -> None:
    run = good_run()
    assert run.transfer is not None
    transfer = replace(run.transfer, zero_bytes=0, reused_bytes=7 * GIB)
    document = parse(page_of(job(replace(run, location="vm/100/t", transfer=transfer))))
    headings = [text_of(one) for one in document.iterfind(".//table[@class='vms']/thead/tr/th")]
    [row] = rows_of(document)
    assert dict(zip(headings, row, strict=True))["Reused"] == "7.00 GiB"
    assert "Zero" not in headings


def test_rows_of_vms_without_figures_have_dashes_and_no_size() -> None:
    document = parse(page_of(job(failed_run(100), RunRecord(vmid=101))))
    failed, missed = rows_of(document)
    assert failed[:2] == ["100 web", "failed"]
    assert failed[5:] == ["5.0 s", *EMPTY_FIGURES]
    assert missed == ["101", "not reached", *["–"] * 4, *EMPTY_FIGURES]


@pytest.mark.parametrize(
    ("run", "cell"),
    [
        (replace(good_run(), freeze=None, freeze_skip=FreezeSkip.DISABLED), "no agent"),
        (replace(good_run(), freeze=FreezeRecord(began_wall_s=BEGAN_S)), "unconfirmed"),
        (
            replace(
                good_run(), freeze=FreezeRecord(began_wall_s=BEGAN_S, window_s=2, failure="no")
            ),
            "2.0 s (not frozen)",
        ),
    ],
)
def test_freeze_that_was_none_says_so(run: RunRecord, cell: str) -> None:
    [row] = rows_of(parse(page_of(job(run))))
    assert row[6] == cell


def test_head_adds_up_all_vms() -> None:
    record = job(good_run(), good_run(101, began_s=BEGAN_S + RUN_S), failed_run(102))
    figures = parse(page_of(record, zone="CET")).find(".//dl[@class='figures']")
    assert figures is not None
    assert [text_of(one) for one in figures] == [
        "VMs backed up 2 of 3 1 failed",
        "Duration 1m 42s",
        "Backup size 30.0 GiB",
        "Read 80.0 GiB 60.0 GiB written",
        "Read rate 1.00 GiB/s mean, while copying",
        "Longest freeze 12.4 ms of 2",
    ]
    assert "2026-11-23 02:00:01 – 02:01:43 CET" in page_text(page_of(record, zone="CET"))


def test_failed_vm_tells_error_hint_and_the_last_backup_there() -> None:
    past = {
        101: (
            past_backup(101, days_ago=1, size_bytes=2 * GIB),
            past_backup(101, days_ago=9, size_bytes=GIB),
        ),
        102: (),
    }
    text = page_text(page_of(job(failed_run(101), failed_run(102), failed_run(103)), past))
    assert "No space left on device Make room Last backup there: 2026-11-22 02:00, 2.00" in text
    assert text.count("There is no earlier backup of this VM.") == 1


def test_nothing_to_look_at_has_no_place_on_the_page() -> None:
    assert title_ids(page_of(job(good_run()))) == [
        "h-timeline",
        "h-rates",
        "h-vms",
        "h-backups",
        "h-details",
    ]
    assert title_ids(page_of(job(error="no such storage"))) == ["h-look"]
    assert title_ids(page_of(job())) == []


def test_warnings_beyond_measure_are_counted() -> None:
    run = replace(good_run(), warnings=tuple(f"warning {n}" for n in range(200)))
    text = page_text(page_of(job(run)))
    assert f"warning {WARNINGS_SHOWN_MAX - 1} 180 more warnings: see the log." in text


def test_page_of_200_vms_with_all_their_past_stays_small() -> None:
    runs = [
        good_run(vmid, began_s=BEGAN_S + 60 * index) for index, vmid in enumerate(range(100, 300))
    ]
    past = {
        run.vmid: tuple(
            past_backup(run.vmid, days_ago=day, size_bytes=GIB + day) for day in range(100)
        )
        for run in runs
    }
    page = page_of(job(*runs), past)
    assert len(page.encode()) < 2 * MIB
    assert len(list(rows_of(parse(page)))) == 200


def test_texts_without_end_are_cut() -> None:
    page = page_of(job(replace(failed_run(100), error="x" * 5_000_000)))
    assert len(page) < 40_000


def test_sizes_of_past_backups_stand_beside_the_new_one() -> None:
    past = {
        100: (
            past_backup(100, days_ago=0, size_bytes=15 * GIB),
            past_backup(100, days_ago=1, size_bytes=10 * GIB),
            past_backup(100, days_ago=7, size_bytes=5 * GIB),
        )
    }
    document = parse(page_of(job(good_run()), past))
    [entry] = document.iterfind(".//ul[@class='backups']/li")
    assert "100 db 15.0 GiB +50.0 % 2 earlier, since 2026-11-16" in text_of(entry)
    assert text_of(entry).endswith("/dump/vzdump-qemu-100-2026_11_23-02_00_01.vma.zst")
    bars = [one for one in entry.iter() if one.tag.endswith("rect")]
    assert [one.get("class") for one in bars] == [None, None, "own"]
    assert [float(one.get("height", "0")) for one in bars] == [12.0, 24.0, 36.0]


def test_first_backup_of_a_vm_has_no_chart_of_sizes() -> None:
    past = {100: (past_backup(100, days_ago=0, size_bytes=15 * GIB),)}
    [entry] = parse(page_of(job(good_run()), past)).iterfind(".//ul[@class='backups']/li")
    assert "15.0 GiB the only one there" in text_of(entry)
    assert not entry.findall(".//svg[@class='bars']")


def test_charts_say_in_words_what_they_show() -> None:
    document = parse(page_of(JOBS["failed"]))
    told = [one.get("aria-label", "") for one in document.iter() if one.get("role") == "img"]
    assert told == [
        "VM 100 db: 02:00:01 – 02:00:52; "
        "preparing 1.0 s, copying 40.0 s, proving the backup 10.0 s",
        "VM 101 web: 02:00:01 – 02:00:06; copying 5.0 s, failed",
        "Read and written bytes per second over time; peak 1.00 GiB/s.",
    ]


def _luminance(colour: str) -> float:
    colour = "".join(2 * one for one in colour) if len(colour) == 3 else colour
    parts = [int(colour[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return sum(share * one for share, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _schemes() -> list[dict[str, str]]:
    blocks = re.findall(r":root \{([^}]*)\}", STYLE)
    assert len(blocks) == 3
    return [dict(re.findall(r"--([a-z-]+): #([0-9a-f]+);", block)) for block in blocks]


@pytest.mark.parametrize(
    ("front", "back", "ratio_min"),
    [
        *((front, "bg", 4.5) for front in ("ink", "soft", "ok", "bad", "warn")),
        *((front, "bg", 3.0) for front in ("copy", "prove", "dull", "freeze", "write")),
        *((front, f"{front}-bg", 3.0) for front in ("ok", "bad", "warn")),
        ("write", "area", 3.0),
    ],
)
def test_colours_of_every_scheme_have_contrast(front: str, back: str, ratio_min: float) -> None:
    for scheme in _schemes():
        high, low = sorted((_luminance(scheme[front]), _luminance(scheme[back])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= ratio_min
