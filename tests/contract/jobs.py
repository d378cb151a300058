"""Block jobs: backups with and without copying, their states, verbs, groups and ends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.blocks import add_raw
from tests.contract.subject import DISK_BYTES, MIB, Client, Subject, file_of

_ENDED = ["waiting", "pending", "concluded", "null"]


def _add_fleecing(client: Client, subject: Subject) -> None:
    file = file_of(subject.add_image("fleece.qcow2", kind="qcow2"))
    client.ask("blockdev-add", driver="qcow2", node_name="fleece", file=file, backing="disk0")


def _pull(**more: Any) -> dict[str, Any]:
    return {"job_id": "j", "device": "disk0", "target": "fleece", "sync": "none"} | more


def _push(**more: Any) -> dict[str, Any]:
    return {"job_id": "j", "device": "disk0", "target": "copy", "sync": "full"} | more


@pytest.fixture
def pulling(subject: Subject) -> Client:
    """A client of a subject on which a job without copying runs; its events are forgotten."""
    client = Client(subject.open_monitor())
    _add_fleecing(client, subject)
    client.ask("blockdev-backup", **_pull())
    client.listen()
    client.take_events()
    return client


@pytest.fixture
def pushing(subject: Subject) -> Client:
    """A client of a subject with a node ``copy`` that a disk can be copied to."""
    client = Client(subject.open_monitor())
    add_raw(client, subject, "copy")
    return client


class JobBehaviour:
    """``blockdev-backup`` and the commands on jobs."""

    def test_job_without_copying_runs_until_it_is_cancelled(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        _add_fleecing(client, subject)
        assert client.ask("blockdev-backup", **_pull()) == {}
        client.listen()
        assert client.job_states("j") == ["created", "running"]
        assert client.ask("query-jobs") == [
            {
                "current-progress": 0,
                "status": "running",
                "total-progress": DISK_BYTES,
                "type": "backup",
                "id": "j",
            }
        ]
        client.take_events()
        assert client.ask("block-job-cancel", device="j") == {}
        client.wait_for("JOB_STATUS_CHANGE", id="j", status="null")
        assert client.job_states("j") == ["aborting", "concluded", "null"]
        data = {"device": "j", "len": DISK_BYTES, "offset": 0, "speed": 0, "type": "backup"}
        assert client.wait_for("BLOCK_JOB_CANCELLED") == data
        assert client.ask("query-jobs") == []
        assert client.ask("blockdev-del", node_name="fleece") == {}

    def test_job_is_told_as_a_block_job_too(self, pulling: Client) -> None:
        assert pulling.ask("query-block-jobs") == [
            {
                "auto-finalize": True,
                "io-status": "ok",
                "device": "j",
                "auto-dismiss": True,
                "busy": False,
                "len": DISK_BYTES,
                "offset": 0,
                "status": "running",
                "paused": False,
                "speed": 0,
                "ready": False,
                "type": "backup",
            }
        ]

    @pytest.mark.parametrize("cancel", ["block-job-cancel", "job-cancel"])
    def test_job_is_cancelled_by_both_names(self, pulling: Client, cancel: str) -> None:
        name = {"device": "j"} if cancel == "block-job-cancel" else {"id": "j"}
        assert pulling.ask(cancel, **name) == {}
        pulling.wait_for("JOB_STATUS_CHANGE", id="j", status="null")

    def test_nodes_of_a_job_are_busy(self, pulling: Client) -> None:
        text = "Node 'fleece' is busy: block device is in use by block job: backup"
        assert pulling.refusal("blockdev-del", node_name="fleece") == text

    def test_full_copy_goes_through_its_states_and_completes(self, pushing: Client) -> None:
        assert pushing.ask("blockdev-backup", **_push()) == {}
        pushing.wait_for("JOB_STATUS_CHANGE", id="j", status="null")
        assert pushing.job_states("j") == ["created", "running", *_ENDED]
        data = {
            "device": "j",
            "len": DISK_BYTES,
            "offset": DISK_BYTES,
            "speed": 0,
            "type": "backup",
        }
        assert pushing.wait_for("BLOCK_JOB_COMPLETED") == data
        names = [
            event["event"] if "JOB_STATUS" not in event["event"] else event["data"]["status"]
            for event in pushing.events
        ]
        assert names[-4:] == ["pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]
        assert pushing.ask("query-jobs") == []
        assert pushing.ask("blockdev-del", node_name="copy") == {}

    def test_job_that_is_held_waits_to_be_finalized_and_dismissed(self, pushing: Client) -> None:
        held = {"auto_finalize": False, "auto_dismiss": False}
        pushing.ask("blockdev-backup", **_push(), **held)
        assert pushing.wait_for("BLOCK_JOB_PENDING") == {"type": "backup", "id": "j"}
        [found] = pushing.ask("query-jobs")
        assert (found["status"], found["current-progress"]) == ("pending", DISK_BYTES)
        text = "Job 'j' in state 'pending' cannot accept command verb 'dismiss'"
        assert pushing.refusal("job-dismiss", id="j") == text
        assert pushing.ask("job-finalize", id="j") == {}
        pushing.wait_for("JOB_STATUS_CHANGE", id="j", status="concluded")
        assert pushing.job_states("j") == ["created", "running", *_ENDED[:-1]]
        text = "Job 'j' in state 'concluded' cannot accept command verb 'finalize'"
        assert pushing.refusal("job-finalize", id="j") == text
        assert pushing.ask("job-dismiss", id="j") == {}
        assert pushing.wait_for("JOB_STATUS_CHANGE", status="null") == {
            "status": "null",
            "id": "j",
        }
        assert pushing.ask("query-jobs") == []

    @pytest.mark.parametrize(
        ("command", "verb"),
        [
            ("block-job-complete", "complete"),
            ("job-complete", "complete"),
            ("job-dismiss", "dismiss"),
            ("block-job-dismiss", "dismiss"),
            ("job-finalize", "finalize"),
            ("block-job-finalize", "finalize"),
        ],
    )
    def test_verb_that_does_not_fit_the_state_is_refused(
        self, pulling: Client, command: str, verb: str
    ) -> None:
        name = {"device": "j"} if command == "block-job-complete" else {"id": "j"}
        text = f"Job 'j' in state 'running' cannot accept command verb '{verb}'"
        assert pulling.refusal(command, **name) == text

    def test_job_is_paused_once_and_resumed_once(self, pulling: Client) -> None:
        assert pulling.ask("job-pause", id="j") == {}
        pulling.wait_for("JOB_STATUS_CHANGE", id="j", status="paused")
        [found] = pulling.ask("query-jobs")
        assert found["status"] == "paused"
        assert pulling.refusal("job-pause", id="j") == "Job is already paused"
        [found] = pulling.ask("query-block-jobs")
        assert found["paused"] is True
        assert pulling.ask("job-resume", id="j") == {}
        pulling.wait_for("JOB_STATUS_CHANGE", id="j", status="running")
        text = "Can't resume a job that was not paused"
        assert pulling.refusal("job-resume", id="j") == text

    def test_paused_job_is_cancelled_only_by_force(self, pulling: Client) -> None:
        pulling.ask("block-job-pause", device="j")
        text = "The block job for device 'j' is currently paused"
        assert pulling.refusal("block-job-cancel", device="j") == text
        assert pulling.ask("block-job-cancel", device="j", force=True) == {}
        pulling.wait_for("JOB_STATUS_CHANGE", id="j", status="null")

    def test_speed_of_a_job_is_set_and_told(self, pulling: Client) -> None:
        assert pulling.ask("block-job-set-speed", device="j", speed=MIB) == {}
        [found] = pulling.ask("query-block-jobs")
        assert found["speed"] == MIB
        text = "Parameter 'speed' expects a non-negative value"
        assert pulling.refusal("block-job-set-speed", device="j", speed=-1) == text

    @pytest.mark.parametrize(
        ("command", "name", "text"),
        [
            ("block-job-cancel", "device", "DeviceNotActive: Block job 'n' not found"),
            ("block-job-pause", "device", "DeviceNotActive: Block job 'n' not found"),
            ("block-job-resume", "device", "DeviceNotActive: Block job 'n' not found"),
            ("block-job-complete", "device", "DeviceNotActive: Block job 'n' not found"),
            ("block-job-dismiss", "id", "DeviceNotActive: Block job 'n' not found"),
            ("block-job-finalize", "id", "DeviceNotActive: Block job 'n' not found"),
            ("job-cancel", "id", "Job not found"),
            ("job-pause", "id", "Job not found"),
            ("job-resume", "id", "Job not found"),
            ("job-complete", "id", "Job not found"),
            ("job-dismiss", "id", "Job not found"),
            ("job-finalize", "id", "Job not found"),
        ],
    )
    def test_job_that_is_none_is_refused(
        self, subject: Subject, command: str, name: str, text: str
    ) -> None:
        client = Client(subject.open_monitor())
        assert client.refusal(command, **{name: "n"}) == text

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"target": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
            ({"device": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
            ({"target": "disk0"}, "Source and target cannot be the same"),
            ({"target": "short"}, "Source and target image have different sizes"),
            ({"job_id": "1"}, "Invalid job ID '1'"),
            ({"job_id": ""}, "Invalid job ID ''"),
            (
                {"sync": "incremental"},
                "must provide a valid bitmap name for 'incremental' sync mode",
            ),
            ({"sync": "bitmap"}, "must provide a valid bitmap name for 'bitmap' sync mode"),
            (
                {"sync": "bitmap", "bitmap": "nope", "bitmap_mode": "never"},
                "Bitmap 'nope' could not be found",
            ),
            ({"compress": True}, "Compression is not supported for this drive "),
        ],
        ids=str,
    )
    def test_bad_backup_is_refused_and_leaves_nothing(
        self, subject: Subject, pushing: Client, change: dict[str, Any], text: str
    ) -> None:
        add_raw(pushing, subject, "short", size_bytes=MIB)
        assert pushing.refusal("blockdev-backup", **_push(**change)) == text
        assert pushing.ask("query-jobs") == []
        assert pushing.ask("blockdev-del", node_name="copy") == {}

    def test_job_without_an_id_on_a_bare_node_is_refused(self, pushing: Client) -> None:
        given = _push()
        del given["job_id"]
        assert pushing.refusal("blockdev-backup", **given) == "Invalid job ID ''"

    def test_id_of_a_job_is_used_once(self, subject: Subject, pulling: Client) -> None:
        add_raw(pulling, subject, "source")
        add_raw(pulling, subject, "copy")
        told = pulling.refusal("blockdev-backup", **_push(device="source"))
        assert told == "Job ID 'j' already in use"

    def test_transaction_with_a_bad_job_starts_none(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        _add_fleecing(client, subject)
        good = {"job-id": "j", "device": "disk0", "target": "fleece", "sync": "none"}
        bad = good | {"job-id": "k", "target": "nope"}
        add = {"node": "disk0", "name": "b"}
        actions = [
            {"type": "block-dirty-bitmap-add", "data": add},
            {"type": "blockdev-backup", "data": good},
            {"type": "blockdev-backup", "data": bad},
        ]
        told = client.refusal("transaction", actions=actions)
        assert told == "Cannot find device='nope' nor node-name='nope'"
        client.wait_for("JOB_STATUS_CHANGE", id="j", status="null")
        assert client.job_states("j") == ["created", "aborting", "concluded", "null"]
        assert client.ask("query-jobs") == []
        told = client.refusal("block-dirty-bitmap-remove", **add)
        assert told == "Dirty bitmap 'b' not found"
        assert client.ask("blockdev-del", node_name="fleece") == {}

    def test_jobs_of_a_transaction_start_together(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        for name in ("other", "copy", "copy2"):
            add_raw(client, subject, name)
        sync = {"sync": "full"}
        actions = [
            {
                "type": "blockdev-backup",
                "data": {"job-id": "j", "device": "disk0", "target": "copy"} | sync,
            },
            {
                "type": "blockdev-backup",
                "data": {"job-id": "k", "device": "other", "target": "copy2"} | sync,
            },
        ]
        properties = {"completion-mode": "grouped"}
        assert client.ask("transaction", actions=actions, properties=properties) == {}
        for job_id in "jk":
            client.wait_for("JOB_STATUS_CHANGE", id=job_id, status="null")
            assert client.job_states(job_id) == ["created", "running", *_ENDED]
        states = [
            (event["data"]["id"], event["data"]["status"])
            for event in client.events
            if event["event"] == "JOB_STATUS_CHANGE"
        ]
        assert states[:2] == [("j", "created"), ("k", "created")]
        # None is pending before both have copied.
        first = min(states.index((job_id, "pending")) for job_id in "jk")
        assert first > max(states.index((job_id, "waiting")) for job_id in "jk")

    def test_bitmap_is_cleared_by_the_job_that_saves_it(self, pushing: Client) -> None:
        pushing.ask("block-dirty-bitmap-add", node="disk0", name="b")
        given = _push(sync="bitmap", bitmap="b", bitmap_mode="on-success")
        pushing.ask("blockdev-backup", **given)
        pushing.wait_for("JOB_STATUS_CHANGE", id="j", status="null")
        # Nothing was written: there was nothing to copy.
        found = pushing.wait_for("BLOCK_JOB_COMPLETED")
        assert (found["len"], found["offset"]) == (0, 0)

    def test_job_outlives_the_client_that_started_it(
        self, subject: Subject, pulling: Client
    ) -> None:
        pulling.close()
        client = Client(subject.open_monitor())
        [found] = client.ask("query-jobs")
        assert (found["id"], found["status"]) == ("j", "running")
        client.ask("job-cancel", id="j")
        client.wait_for("JOB_STATUS_CHANGE", id="j", status="null")

    def test_quit_ends_a_job_without_copying(self, pulling: Client) -> None:
        assert pulling.ask("quit") == {}
        assert pulling.wait_for("BLOCK_JOB_CANCELLED")["device"] == "j"
