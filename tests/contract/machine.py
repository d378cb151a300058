"""A machine: its run states, its end, descriptors, devices and what it tells of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.subject import Client, Closed, Feature, Subject, needs

_DRIVE = {"path": "/machine/peripheral/scsi0", "property": "drive"}


def _status(client: Client) -> tuple[str, bool]:
    found = client.ask("query-status")
    assert found.keys() - {"singlestep"} == {"status", "running"}
    return found["status"], found["running"]


@pytest.fixture
def two_fds() -> Iterator[tuple[int, int]]:
    """Descriptors to pass along."""
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


class MachineBehaviour:
    """Everything that needs a guest's machine."""

    @needs(Feature.MACHINE)
    def test_machine_waits_before_its_first_instruction(self, subject: Subject) -> None:
        assert _status(Client(subject.open_monitor())) == ("prelaunch", False)

    @needs(Feature.MACHINE)
    def test_cont_and_stop_change_the_state_with_one_event_each(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("cont") == {}
        assert client.take_events() == [("RESUME", None)]
        assert _status(client) == ("running", True)
        assert client.ask("stop") == {}
        assert client.take_events() == [("STOP", None)]
        assert _status(client) == ("paused", False)
        client.ask("cont")
        assert client.take_events() == [("RESUME", None)]
        assert _status(client) == ("running", True)

    @needs(Feature.MACHINE)
    def test_stop_and_cont_that_change_nothing_say_nothing(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask("stop")
        assert _status(client) == ("prelaunch", False)
        client.ask("cont")
        client.take_events()
        client.ask("cont")
        assert _status(client) == ("running", True)
        client.ask("stop")
        client.ask("stop")
        assert _status(client) == ("paused", False)
        assert client.take_events() == [("STOP", None)]

    @needs(Feature.MACHINE)
    def test_state_outlives_the_client_that_changed_it(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask("cont")
        client.ask("stop")
        client.close()
        assert _status(Client(subject.open_monitor())) == ("paused", False)

    @needs(Feature.MACHINE)
    def test_events_of_states_go_to_both_monitors(self, subject: Subject) -> None:
        first, second = (Client(subject.open_monitor(index)) for index in range(2))
        first.ask("cont")
        assert second.next_message()["event"] == "RESUME"
        second.ask("stop")
        assert second.take_events() == [("STOP", None)]
        first.wait_for("STOP")

    @needs(Feature.MACHINE)
    def test_reset_is_told_and_changes_no_state(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("system_reset") == {}
        data = {"guest": False, "reason": "host-qmp-system-reset"}
        client.wait_for("RESET", **data)
        assert client.take_events() == [("RESET", data)]
        assert _status(client) == ("prelaunch", False)

    @needs(Feature.MACHINE)
    def test_powerdown_only_asks_the_guest(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("system_powerdown") == {}
        client.wait_for("POWERDOWN")
        assert client.take_events() == [("POWERDOWN", None)]
        assert _status(client) == ("prelaunch", False)

    @needs(Feature.MACHINE)
    def test_wakeup_of_a_machine_that_does_not_sleep_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        text = "Unable to wake up: guest is not in suspended state"
        assert client.refusal("system_wakeup") == text

    @needs(Feature.MACHINE)
    def test_quit_of_a_running_machine_tells_its_reason(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask("cont")
        client.take_events()
        client.ask("quit")
        data = {"guest": False, "reason": "host-qmp-quit"}
        assert client.take_events() == [("SHUTDOWN", data)]
        with pytest.raises(Closed):
            while True:
                client.next_message()

    @needs(Feature.MACHINE)
    def test_actions_are_set_without_a_word(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("set-action", reboot="reset", shutdown="pause", panic="pause") == {}
        assert client.ask("watchdog-set-action", action="pause") == {}
        text = "Parameter 'panic' does not accept value 'explode'"
        assert client.refusal("set-action", panic="explode") == text
        assert client.take_events() == []

    @needs(Feature.MACHINE)
    def test_names_and_identity_are_those_of_the_command_line(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("query-name") == {"name": "vm"}
        assert client.ask("query-uuid") == {"UUID": "00000000-0000-0000-0000-000000000000"}
        assert client.ask("query-current-machine") == {"wakeup-suspend-support": True}

    # -- migration -----------------------------------------------------------------------------

    @needs(Feature.MACHINE)
    def test_migration_goes_through_its_states_and_stops_the_machine(
        self, subject: Subject
    ) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("query-migrate") == {}
        events = [{"capability": "events", "state": True}]
        assert client.ask("migrate-set-capabilities", capabilities=events) == {}
        client.ask("cont")
        assert client.ask("migrate", uri="exec:cat >/dev/null") == {}
        client.wait_for("MIGRATION", status="completed")
        states = [
            event["data"]["status"] for event in client.events if event["event"] == "MIGRATION"
        ]
        assert [state for state in states if state != "device"] == ["setup", "active", "completed"]
        names = [event["event"] for event in client.events]
        assert names.index("STOP") > names.index("MIGRATION_PASS")
        # The event comes before the machine has got there.
        while (state := _status(client)) == ("finish-migrate", False):
            pass
        assert state == ("postmigrate", False)
        found = client.ask("query-migrate")
        assert found["status"] == "completed"
        assert {"total-time", "setup-time", "downtime", "ram"} <= found.keys()

    @needs(Feature.MACHINE)
    def test_migration_cancelled_where_none_is_does_nothing(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("migrate_cancel") == {}
        assert client.take_events() == []

    # -- descriptors ---------------------------------------------------------------------------

    @needs(Feature.MACHINE)
    def test_descriptor_is_kept_by_name_until_it_is_closed(
        self, subject: Subject, two_fds: tuple[int, int]
    ) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("getfd", fds=two_fds[:1], fdname="a") == {}
        assert client.ask("getfd", fds=two_fds[:1], fdname="a") == {}
        assert client.ask("closefd", fdname="a") == {}
        assert client.refusal("closefd", fdname="a") == "File descriptor named 'a' not found"

    @needs(Feature.MACHINE)
    def test_descriptor_outlives_its_client_and_belongs_to_one_monitor(
        self, subject: Subject, two_fds: tuple[int, int]
    ) -> None:
        client = Client(subject.open_monitor())
        client.ask("getfd", fds=two_fds[:1], fdname="a")
        client.close()
        other = Client(subject.open_monitor(1))
        assert other.refusal("closefd", fdname="a") == "File descriptor named 'a' not found"
        assert Client(subject.open_monitor()).ask("closefd", fdname="a") == {}

    @needs(Feature.MACHINE)
    def test_descriptor_that_is_none_or_has_a_bad_name_is_refused(
        self, subject: Subject, two_fds: tuple[int, int]
    ) -> None:
        client = Client(subject.open_monitor())
        text = "No file descriptor supplied via SCM_RIGHTS"
        assert client.refusal("getfd", fdname="a") == text
        assert client.refusal("add-fd") == text
        text = "Parameter 'fdname' expects a name not starting with a digit"
        assert client.refusal("getfd", fds=two_fds[:1], fdname="1a") == text

    @needs(Feature.MACHINE)
    def test_descriptor_set_is_made_listed_and_removed(
        self, subject: Subject, two_fds: tuple[int, int]
    ) -> None:
        client = Client(subject.open_monitor())
        client.ask("cont")
        made = client.ask("add-fd", fds=two_fds[:1], opaque="note")
        assert made.keys() == {"fdset-id", "fd"}
        more = client.ask("add-fd", fds=two_fds[1:], fdset_id=made["fdset-id"])
        assert more["fdset-id"] == made["fdset-id"]
        [found] = client.ask("query-fdsets")
        assert found["fdset-id"] == made["fdset-id"]
        assert sorted(each["fd"] for each in found["fds"]) == sorted((made["fd"], more["fd"]))
        assert [each.get("opaque") for each in found["fds"]] in (["note", None], [None, "note"])
        assert client.ask("remove-fd", fdset_id=made["fdset-id"]) == {}
        assert client.ask("query-fdsets") == []
        text = "File descriptor named 'fdset-id:7' not found"
        assert client.refusal("remove-fd", fdset_id=7) == text

    # -- devices -------------------------------------------------------------------------------

    @needs(Feature.MACHINE)
    def test_disk_of_a_device_is_told_with_its_node(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        [found] = client.ask("query-block")
        inserted = found.pop("inserted")
        assert found == {
            "device": "",
            "qdev": "scsi0",
            "io-status": "ok",
            "locked": False,
            "removable": False,
            "type": "unknown",
        }
        assert (inserted["node-name"], inserted["drv"], inserted["ro"]) == ("disk0", "raw", False)
        assert inserted["file"].endswith("disk0.raw")

    @needs(Feature.MACHINE)
    def test_drive_of_a_device_can_be_asked_for(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("qom-get", **_DRIVE) == "disk0"
        text = client.refusal("qom-get", path=_DRIVE["path"], property="nope")
        assert text == "Property 'scsi-hd.nope' not found"
        path = "/machine/peripheral/nope"
        text = client.refusal("qom-get", path=path, property="drive")
        assert text == f"DeviceNotFound: Device '{path}' not found"

    @needs(Feature.MACHINE)
    def test_drive_of_a_device_is_not_set_to_what_does_not_exist(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        text = client.refusal("qom-set", **_DRIVE, value="nope")
        assert text == "Cannot find device='' nor node-name='nope'"
        assert client.ask("qom-get", **_DRIVE) == "disk0"

    @needs(Feature.MACHINE)
    def test_filter_goes_under_a_device_and_away_again(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask(
            "blockdev-add",
            driver="raw",
            node_name="kept",
            file={"driver": "file", "filename": subject.add_image("kept.raw")},
        )
        client.ask(
            "blockdev-add", driver="copy-before-write", node_name="cbw", file="disk0", target="kept"
        )
        assert client.ask("qom-set", **_DRIVE, value="cbw") == {}
        assert client.ask("qom-get", **_DRIVE) == "cbw"
        assert _inserted(client)["drv"] == "copy-before-write"
        assert client.refusal("blockdev-del", node_name="cbw") == "Node cbw is in use"
        client.ask("blockdev-add", driver="snapshot-access", node_name="view", file="cbw")
        assert client.refusal("blockdev-del", node_name="kept") == "Block device kept is in use"
        client.ask("blockdev-del", node_name="view")
        assert client.ask("qom-set", **_DRIVE, value="disk0") == {}
        assert _inserted(client)["node-name"] == "disk0"
        for name in ("cbw", "kept"):
            assert client.ask("blockdev-del", node_name=name) == {}

    @needs(Feature.MACHINE)
    def test_node_of_a_device_is_in_use(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.refusal("blockdev-del", node_name="disk0") == "Node disk0 is in use"

    @needs(Feature.MACHINE)
    def test_human_monitor_answers_in_text_even_what_it_does_not_know(
        self, subject: Subject
    ) -> None:
        client = Client(subject.open_monitor())
        found = client.ask("human-monitor-command", command_line="nonsense")
        assert found == "unknown command: 'nonsense'\r\n"


def _inserted(client: Client) -> dict[str, Any]:
    [found] = client.ask("query-block")
    inserted: dict[str, Any] = found["inserted"]
    return inserted
