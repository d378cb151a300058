"""From the record of a job to the message about it: host behaviour 1.14."""

from __future__ import annotations

import json
from dataclasses import replace

from tests.plan.job_records import GOOD_RUN, JOB
from vzdump_qemu.plan.batch_record import JobRecord
from vzdump_qemu.plan.job_message import JobLogs, RunLogText, make_message, make_outcome
from vzdump_qemu.plan.notification import GuestState, JobOutcome

LOGS = JobLogs(
    before=("init said",),
    after=("abort said",),
    by_vmid={100: RunLogText(text="one\ntwo\n"), 101: RunLogText(text=None)},
)


def outcome_of(record: JobRecord = JOB, logs: JobLogs = LOGS) -> JobOutcome:
    return make_outcome(
        record, logs, host_name="pve1.example.com", command_line="vzdump 100 101 102"
    )


def test_vms_come_in_the_order_of_the_job() -> None:
    guests = outcome_of().guests
    assert [(guest.vmid, guest.state) for guest in guests] == [
        (100, GuestState.OK),
        (101, GuestState.FAILED),
        (102, GuestState.NOT_REACHED),
    ]


def test_logs_are_those_of_hooks_and_of_each_vm() -> None:
    text = make_message(outcome_of(), {}).text
    assert text.endswith(
        "vzdump 100 101 102\n\ninit said\n100: one\n100: two\n"
        "101: Could not open log file\n102: no log available\nabort said\n"
    )


def test_job_that_never_got_the_lock_has_an_empty_table_and_its_command_line() -> None:
    error = "can't acquire lock '/var/run/vzdump.lock' (wait = 0)"
    outcome = outcome_of(replace(JOB, command_line="", error=error), JobLogs())
    assert outcome.guests == ()
    message = make_message(outcome, {})
    assert message.subject.endswith(f"backup failed: {error}")
    assert "Total running time: 0s" in message.text
    assert message.text.endswith("Logs\n====\n\nvzdump 100 101 102\n\n")


def test_errors_of_several_lines_are_told_in_the_body() -> None:
    message = make_message(outcome_of(replace(JOB, error="first\nsecond")), {})
    assert message.subject.endswith("backup failed: multiple problems")
    assert message.summary.startswith("first\nsecond\n\nDetails\n")
    assert message.template_data["error-message"] == "first\nsecond"


def test_summary_is_the_text_without_logs() -> None:
    message = make_message(outcome_of(), {})
    assert message.text.startswith(message.summary)
    assert "init said" not in message.summary


def test_template_gets_numbers_and_a_table() -> None:
    message = make_message(outcome_of(), {"type": "vzdump", "hostname": "pve1"})
    assert (message.failed, message.template_name) == (True, "vzdump")
    assert message.fields == {"type": "vzdump", "hostname": "pve1"}
    data = dict(message.template_data)
    assert data.pop("logs").startswith("vzdump 100 101 102\n")
    assert data == {
        "error-message": "",
        "status-text": "backup failed: interrupted by signal",
        "total-time": 77,
        "total-size": 4096,
        "guest-table": {
            "schema": {
                "columns": [
                    {"label": "VMID", "id": "vmid"},
                    {"label": "Name", "id": "name"},
                    {"label": "Status", "id": "status"},
                    {"label": "Time", "id": "time", "renderer": "duration"},
                    {"label": "Size", "id": "size", "renderer": "human-bytes"},
                    {"label": "Filename", "id": "filename"},
                ]
            },
            "data": [
                {
                    "vmid": 100,
                    "name": "web",
                    "status": "ok",
                    "time": 70,
                    "size": 4096,
                    "filename": "/dump/vzdump-qemu-100.vma",
                },
                {
                    "vmid": 101,
                    "name": "VM 101",
                    "status": "err",
                    "time": 1,
                    "size": 0,
                    "filename": "",
                },
                {
                    "vmid": 102,
                    "name": "VM 102",
                    "status": "todo",
                    "time": 0,
                    "size": 0,
                    "filename": "",
                },
            ],
        },
    }


def test_bytes_that_are_no_text_are_replaced_in_every_form() -> None:
    odd = "\udcff\ud800"
    run = replace(GOOD_RUN, vm_name=f"web{odd}", location=f"/dump/{odd}.vma")
    record = replace(JOB, error=f"first\nsecond {odd}", runs=(run,))
    logs = JobLogs(before=(odd,), after=(odd,), by_vmid={100: RunLogText(text=odd)})
    outcome = make_outcome(record, logs, host_name="pve1", command_line=f"vzdump {odd}")
    message = make_message(outcome, {})
    forms = (message.subject, message.summary, message.text, message.html)
    assert "".join(forms).encode()
    assert json.dumps(message.template_data, ensure_ascii=False).encode()
    assert "web??" in message.summary


def test_subject_is_one_line_whatever_a_program_printed() -> None:
    outcome = outcome_of(replace(JOB, error="10%\r100%\x0bfailed\x00"))
    subject = make_message(outcome, {}).subject
    assert subject.endswith("backup failed: 10% 100% failed\x00")
    assert len(subject.splitlines()) == 1
