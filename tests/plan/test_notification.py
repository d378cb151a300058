"""The message about a job: host behaviour 1.14."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vzdump_qemu.plan.notification import (
    LOG_TOO_LONG,
    SENDER_NAME,
    Delivery,
    GuestOutcome,
    GuestState,
    JobOutcome,
    MailPolicy,
    NotificationMode,
    break_long_lines,
    choose_delivery,
    notification_fields,
    render_logs,
    render_severity,
    render_status,
    render_subject,
    render_text_body,
)
from vzdump_qemu.plan.notification_html import render_html_body

GIB = 1024**3
WEB = GuestOutcome(
    vmid=100,
    vm_name="web",
    state=GuestState.OK,
    duration_s=67.4,
    size_bytes=4 * GIB + GIB // 5,
    file_name="/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst",
    log_text="2026-01-02 03:04:05 INFO: Starting Backup of VM 100 (qemu)\nsecond\n",
)
NAMELESS = GuestOutcome(
    vmid=101,
    vm_name="",
    state=GuestState.FAILED,
    duration_s=3.0,
    size_bytes=999,
    file_name="/dump/half",
    log_text="boom\n",
)
NEVER = GuestOutcome(vmid=102, vm_name="db", state=GuestState.NOT_REACHED)
GOOD = JobOutcome(
    host_name="pve1.example.org",
    command_line="vzdump 100 --storage local",
    error="",
    guests=(WEB,),
    duration_s=3723.0,
    log_before="hook: init\n",
    log_after="hook: end\n",
)


@pytest.mark.parametrize(
    ("error", "guests", "status"),
    [
        ("", (WEB,), "backup successful"),
        ("", (WEB, NAMELESS), "backup failed"),
        ("", (NEVER,), "backup failed"),
        ("interrupted by signal\n", (WEB,), "backup failed: interrupted by signal"),
        ("one\ntwo\n", (), "backup failed: multiple problems"),
    ],
)
def test_status_text_and_subject(error: str, guests: tuple[GuestOutcome, ...], status: str) -> None:
    outcome = replace(GOOD, error=error, guests=guests)
    assert render_status(outcome) == status
    assert render_subject(outcome) == f"vzdump backup status (pve1.example.org): {status}"
    assert render_severity(outcome) == ("info" if status == "backup successful" else "error")


def test_text_body_of_a_good_job() -> None:
    assert render_text_body(GOOD) == (
        "Details\n"
        "=======\n"
        "\n"
        "VMID  Name  Status  Time   Size     Filename\n"
        "100   web   ok      1m 7s  4.2 GiB  /dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst\n"
        "\n"
        "Total running time: 1h 2m 3s\n"
        "Total size: 4.2 GiB\n"
        "\n"
        "Logs\n"
        "====\n"
        "\n"
        "vzdump 100 --storage local\n"
        "\n"
        "hook: init\n"
        "100: 2026-01-02 03:04:05 INFO: Starting Backup of VM 100 (qemu)\n"
        "100: second\n"
        "hook: end\n"
    )


def test_failed_vms_show_no_size_and_no_file_and_count_for_nothing() -> None:
    body = render_text_body(replace(GOOD, guests=(WEB, NAMELESS, NEVER)))
    rows = [line.split("  ") for line in body.splitlines() if line.startswith("10")]
    assert [cell.strip() for cell in rows[1] if cell.strip()] == [
        *("101", "VM 101", "err", "3s", "0 B"),
    ]
    assert [cell.strip() for cell in rows[2] if cell.strip()] == ["102", "db", "todo", "0s", "0 B"]
    assert "Total size: 4.2 GiB" in body
    assert "/dump/half" not in body
    assert "101: boom\n102: no log available\n" in body


def test_total_size_is_the_sum_of_good_vms() -> None:
    twice = replace(GOOD, guests=(WEB, replace(WEB, vmid=105)))
    assert "Total size: 8.4 GiB" in render_text_body(twice)


def test_log_that_cannot_be_read_is_told() -> None:
    guests = (replace(WEB, log_text=None, is_log_unreadable=True),)
    assert "100: Could not open log file\n" in render_text_body(replace(GOOD, guests=guests))


@pytest.mark.parametrize(
    ("error", "is_in_body"), [("one line", False), ("one\ntwo", True), ("", False)]
)
def test_error_of_one_line_is_in_the_subject_alone(error: str, is_in_body: bool) -> None:
    body = render_text_body(replace(GOOD, error=error))
    assert body.startswith("one\ntwo\n\nDetails") is is_in_body
    assert "one line" not in body


def test_too_long_logs_are_replaced() -> None:
    room = 1024 * 1024 - len(render_logs(replace(GOOD, guests=(replace(WEB, log_text="x\n"),))))
    fitting = "x\n" + f"{'y' * 59}\n" * (room // 65)
    assert LOG_TOO_LONG not in render_text_body(
        replace(GOOD, guests=(replace(WEB, log_text=fitting),))
    )
    too_long = replace(GOOD, guests=(replace(WEB, log_text=fitting + "z" * 70),))
    body = render_text_body(too_long)
    assert body.endswith(f"====\n\n{LOG_TOO_LONG}\n")
    assert LOG_TOO_LONG == ("Log output was too long to be sent. See Task History for details!")


@pytest.mark.parametrize("length", [989, 990, 991, 1980, 1981, 5000])
def test_long_lines_are_broken_after_990_characters(length: int) -> None:
    broken = break_long_lines(f"a\n{'x' * length}\n\nb\n").split("\n")
    assert max(map(len, broken)) <= 990
    assert "".join(broken[1:-3]) == "x" * length
    assert (broken[0], broken[-3:]) == ("a", ["", "b", ""])
    assert all(len(line) == 990 for line in broken[1:-4])


def test_body_has_no_line_that_mail_cannot_carry() -> None:
    outcome = replace(
        GOOD,
        command_line="vzdump " + "9" * 3000,
        error="e" * 2000 + "\nf",
        guests=(replace(WEB, log_text="l" * 4000),),
    )
    for body in (render_text_body(outcome), render_logs(outcome)):
        assert max(map(len, body.split("\n"))) <= 990


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("policy", list(MailPolicy))
@pytest.mark.parametrize("has_recipients", [False, True])
@pytest.mark.parametrize("mode", list(NotificationMode))
def test_delivery_follows_mode_and_policy(
    mode: NotificationMode, has_recipients: bool, policy: MailPolicy, failed: bool
) -> None:
    wanted = policy is MailPolicy.ALWAYS or failed
    mail = Delivery.MAIL if wanted else Delivery.NOBODY
    expected = {
        (NotificationMode.AUTO, True): mail,
        (NotificationMode.AUTO, False): Delivery.NOTIFICATION_SYSTEM,
        (NotificationMode.LEGACY_SENDMAIL, True): mail,
        (NotificationMode.LEGACY_SENDMAIL, False): Delivery.NOBODY,
        (NotificationMode.NOTIFICATION_SYSTEM, True): Delivery.NOTIFICATION_SYSTEM,
        (NotificationMode.NOTIFICATION_SYSTEM, False): Delivery.NOTIFICATION_SYSTEM,
    }
    chosen = choose_delivery(mode, policy, has_recipients=has_recipients, failed=failed)
    assert chosen is expected[mode, has_recipients]


def test_fields_of_the_notification_system() -> None:
    assert notification_fields(node_name="pve1") == {"type": "vzdump", "hostname": "pve1"}
    assert notification_fields(node_name="pve1", job_id="daily:1")["job-id"] == "daily:1"
    assert SENDER_NAME == "vzdump backup tool"


class Reader(HTMLParser):
    """Checks that elements close, and collects cells and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def read_html(outcome: JobOutcome) -> Reader:
    reader = Reader()
    reader.feed(render_html_body(outcome))
    reader.close()
    assert reader.open == []
    return reader


def test_html_body_tells_the_same_as_the_text() -> None:
    outcome = replace(GOOD, guests=(WEB, NAMELESS, NEVER), error="one\ntwo")
    reader = read_html(outcome)
    assert reader.rows == [
        ["VMID", "Name", "Status", "Time", "Size", "Filename"],
        ["100", "web", "ok", "1m 7s", "4.2 GiB", WEB.file_name],
        ["101", "VM 101", "err", "3s", "0 B", ""],
        ["102", "db", "todo", "0s", "0 B", ""],
    ]
    text = "".join(reader.texts)
    for part in (
        *("one\ntwo", "Total running time: 1h 2m 3s", "Total size: 4.2 GiB"),
        render_logs(outcome),
    ):
        assert part in text


def test_html_body_takes_nothing_for_markup() -> None:
    odd = '<script>alert("1")</script>&'
    outcome = replace(
        GOOD,
        error=f"{odd}\n{odd}",
        host_name=odd,
        command_line=odd,
        guests=(replace(WEB, vm_name=odd, file_name=odd, log_text=odd),),
    )
    reader = read_html(outcome)
    assert reader.rows[1][1] == odd
    assert "<script" not in render_html_body(outcome)
    assert "http" not in render_html_body(outcome)
