"""Block nodes: adding, changing and telling them, and which of them are in use."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.blocks import add_raw, start_server, told_node
from tests.contract.subject import DISK_BYTES, MIB, Client, Feature, Subject, file_of, needs

_NOTHING = {"iops_rd", "iops_wr", "iops", "bps_wr", "bps_rd", "bps", "write_threshold"}


class NodeBehaviour:
    """Block nodes."""

    @pytest.mark.parametrize(
        ("command", "arguments", "text"),
        [
            ("blockdev-add", {}, "Parameter 'driver' is missing"),
            ("blockdev-add", {"driver": "odd"}, "Parameter 'driver' does not accept value 'odd'"),
            (
                "blockdev-add",
                {"driver": 3},
                "Invalid parameter type for 'driver', expected: string",
            ),
            ("blockdev-add", {"driver": "raw"}, "Parameter 'file' is missing"),
            (
                "blockdev-add",
                {"driver": "raw", "file": 3},
                "Invalid parameter type for 'file', expected: BlockdevRef",
            ),
            (
                "blockdev-add",
                {"driver": "raw", "file": {"driver": "file"}},
                "Parameter 'file.filename' is missing",
            ),
            (
                "blockdev-add",
                {"driver": "raw", "file": {"driver": "file", "filename": "/x", "odd": 1}},
                "Parameter 'file.odd' is unexpected",
            ),
            ("blockdev-del", {}, "Parameter 'node-name' is missing"),
            ("blockdev-del", {"node-name": "x", "odd": 1}, "Parameter 'odd' is unexpected"),
            (
                "transaction",
                {"actions": [{"type": "odd", "data": {}}]},
                "Parameter 'type' does not accept value 'odd'",
            ),
            (
                "transaction",
                {"actions": [3]},
                "Invalid parameter type for 'actions[0]', expected: object",
            ),
            (
                "transaction",
                {"actions": [{"type": "blockdev-backup", "data": {}}]},
                "Parameter 'actions[0].data.device' is missing",
            ),
            (
                "block-dirty-bitmap-merge",
                {"node": "a", "target": "b", "bitmaps": [3]},
                "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr",
            ),
            (
                "block-dirty-bitmap-merge",
                {"node": "a", "target": "b", "bitmaps": [{"node": "a"}]},
                "Parameter 'bitmaps[0].name' is missing",
            ),
            (
                "block-dirty-bitmap-merge",
                {"node": "a", "target": "b", "bitmaps": "x"},
                "Invalid parameter type for 'bitmaps', expected: array",
            ),
            (
                "block-dirty-bitmap-add",
                {"node": "disk0", "name": "b", "granularity": -5},
                "Parameter 'granularity' expects uint32_t",
            ),
            (
                "nbd-server-start",
                {"addr": {"type": "unix", "data": {"path": "/x", "odd": 1}}},
                "Parameter 'addr.data.odd' is unexpected",
            ),
            (
                "block-export-add",
                {"type": "nbd", "id": "x", "node-name": "disk0", "writable": "on"},
                "Invalid parameter type for 'writable', expected: boolean",
            ),
            (
                "query-named-block-nodes",
                {"flat": 1},
                "Invalid parameter type for 'flat', expected: boolean",
            ),
            (
                "blockdev-backup",
                {"device": "a", "target": "b", "sync": "odd"},
                "Parameter 'sync' does not accept value 'odd'",
            ),
            ("job-cancel", {"id": None}, "Invalid parameter type for 'id', expected: string"),
            ("query-jobs", {"odd": 1}, "Parameter 'odd' is unexpected"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_wrong_arguments_are_told_by_their_place(
        self, subject: Subject, command: str, arguments: dict[str, Any], text: str
    ) -> None:
        client = Client(subject.open_monitor())
        reply = client.say({"execute": command, "arguments": arguments})
        assert reply == {"error": {"class": "GenericError", "desc": text}}

    def test_node_is_added_told_and_removed(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        path = add_raw(client, subject, "n")
        found = told_node(client, "n")
        found.pop("active", None)
        found.pop("children", None)
        assert {name: found.pop(name) for name in _NOTHING} == dict.fromkeys(_NOTHING, 0)
        image = found.pop("image")
        assert image["virtual-size"] == DISK_BYTES
        assert image.keys() == {
            "virtual-size",
            "filename",
            "format",
            "actual-size",
            "dirty-flag",
        }
        assert found == {
            "detect_zeroes": "off",
            "ro": False,
            "node-name": "n",
            "backing_file_depth": 0,
            "drv": "raw",
            "encrypted": False,
            "cache": {"no-flush": False, "direct": False, "writeback": True},
            "file": path,
        }
        assert client.ask("blockdev-del", node_name="n") == {}
        assert client.take_events() == []
        text = "Failed to find node with node-name='n'"
        assert client.refusal("blockdev-del", node_name="n") == text

    def test_newest_node_is_told_first_each_before_its_file(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "n")
        nodes = client.ask("query-named-block-nodes")
        names = [node["node-name"] for node in nodes]
        assert names[0] == "n"
        assert nodes[1]["drv"] == "file"
        assert names[1].startswith("#block")
        assert names[2:] == ["disk0", "file0"]

    def test_qcow2_node_tells_its_format(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        path = subject.add_image("q.qcow2", kind="qcow2")
        client.ask("blockdev-add", driver="qcow2", node_name="q", file=file_of(path))
        image = told_node(client, "q")["image"]
        assert image["format"] == "qcow2"
        assert image["cluster-size"] == 65536
        specific = image["format-specific"]
        assert specific["type"] == "qcow2"
        assert specific["data"]["compat"] == "1.1"
        assert specific["data"].keys() == {
            "compat",
            "compression-type",
            "lazy-refcounts",
            "refcount-bits",
            "corrupt",
            "extended-l2",
        }
        assert client.ask("blockdev-del", node_name="q") == {}

    def test_options_of_a_node_are_told_back(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        path = subject.add_image("n.raw")
        client.ask(
            "blockdev-add",
            driver="raw",
            node_name="n",
            read_only=True,
            size=MIB,
            file={"driver": "file", "node-name": "below", "filename": path},
        )
        found = told_node(client, "n")
        assert found["ro"] is True
        assert found["image"]["virtual-size"] == MIB
        assert told_node(client, "below")["image"]["virtual-size"] == DISK_BYTES

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("disk0", "Duplicate nodes with node-name='disk0'"),
            ("0bad", "Invalid node-name: '0bad'"),
            ("#block1", "Invalid node-name: '#block1'"),
            ("x" * 32, "Node name too long"),
        ],
    )
    def test_bad_name_of_a_node_is_refused(self, subject: Subject, name: str, text: str) -> None:
        client = Client(subject.open_monitor())
        file = file_of(subject.add_image("n.raw"))
        told = client.refusal("blockdev-add", driver="raw", node_name=name, file=file)
        assert told == text
        assert len(client.ask("query-named-block-nodes")) == 2

    def test_node_without_a_name_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        file = file_of(subject.add_image("n.raw"))
        text = "'node-name' must be specified for the root node"
        assert client.refusal("blockdev-add", driver="raw", file=file) == text

    def test_missing_image_is_told_by_its_path(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        path = subject.new_path("missing.raw")
        text = f"Could not open '{path}': No such file or directory"
        for driver in ("raw", "qcow2"):
            given = {"driver": driver, "node_name": "n", "file": file_of(path)}
            assert client.refusal("blockdev-add", **given) == text

    def test_image_of_another_format_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        file = file_of(subject.add_image("n.raw"))
        text = client.refusal("blockdev-add", driver="qcow2", node_name="n", file=file)
        assert text == "Image is not in qcow2 format"

    def test_node_below_is_not_removed_before_the_one_above(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "low")
        client.ask("blockdev-add", driver="raw", node_name="high", file="low")
        assert client.refusal("blockdev-del", node_name="low") == "Block device low is in use"
        client.ask("blockdev-del", node_name="high")
        assert client.ask("blockdev-del", node_name="low") == {}

    def test_node_over_a_missing_one_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        text = client.refusal("blockdev-add", driver="raw", node_name="n", file="nope")
        assert text == "Cannot find device='nope' nor node-name='nope'"

    def test_backing_node_is_in_use(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "low")
        file = file_of(subject.add_image("q.qcow2", kind="qcow2"))
        client.ask("blockdev-add", driver="qcow2", node_name="top", file=file, backing="low")
        text = "Node 'low' is busy: node is used as backing hd of 'top'"
        assert client.refusal("blockdev-del", node_name="low") == text
        first, *_ = client.ask("query-named-block-nodes")
        assert (first["node-name"], first["backing_file_depth"]) == ("top", 1)
        assert first["image"]["backing-image"]["format"] == "raw"
        flat = told_node(client, "top")
        assert flat["backing_file_depth"] == 0
        assert "backing-image" not in flat["image"]
        for name in ("top", "low"):
            assert client.ask("blockdev-del", node_name=name) == {}

    def test_throttle_group_is_needed_and_in_use(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        file = {
            "driver": "raw",
            "node-name": "inner",
            "file": file_of(subject.add_image("n.raw")),
        }
        given = {"driver": "throttle", "node_name": "n", "throttle_group": "g", "file": file}
        assert client.refusal("blockdev-add", **given) == "Throttle group 'g' does not exist"
        group = {"qom_type": "throttle-group", "id": "g"}
        assert client.ask("object-add", **group, limits={"bps-total": MIB}) == {}
        text = "attempt to add duplicate property 'g' to object (type 'container')"
        assert client.refusal("object-add", **group) == text
        assert client.ask("blockdev-add", **given) == {}
        assert told_node(client, "n")["drv"] == "throttle"
        text = "object 'g' is in use, can not be deleted"
        assert client.refusal("object-del", id="g") == text
        text = "Node inner is not owned by the monitor"
        assert client.refusal("blockdev-del", node_name="inner") == text
        assert client.ask("blockdev-del", node_name="n") == {}
        assert client.ask("object-del", id="g") == {}
        assert client.refusal("object-del", id="g") == "object 'g' not found"

    def test_node_is_reopened_with_other_options(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "low")
        client.ask("blockdev-add", driver="raw", node_name="n", file="low")
        options = {"driver": "raw", "node-name": "n", "file": "low"}
        assert client.ask("blockdev-reopen", options=[options | {"read-only": True}]) == {}
        assert told_node(client, "n")["ro"] is True
        assert client.ask("blockdev-reopen", options=[options]) == {}
        assert told_node(client, "n")["ro"] is False

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"node-name": "nope"}, "Failed to find node with node-name='nope'"),
            ({"driver": "qcow2"}, "Cannot change the option 'driver'"),
            ({"file": "nope"}, "Cannot find device='' nor node-name='nope'"),
        ],
        ids=str,
    )
    def test_reopening_what_cannot_be_is_refused(
        self, subject: Subject, change: dict[str, str], text: str
    ) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "low")
        client.ask("blockdev-add", driver="raw", node_name="n", file="low")
        options = {"driver": "raw", "node-name": "n", "file": "low"} | change
        assert client.refusal("blockdev-reopen", options=[options]) == text
        del options["node-name"]
        told = client.refusal("blockdev-reopen", options=[options])
        assert told == "node-name not specified"

    @needs(Feature.DAEMON)
    def test_filter_with_its_view_and_export_goes_in_the_right_order(
        self, subject: Subject
    ) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "kept")
        client.ask(
            "blockdev-add", driver="copy-before-write", node_name="cbw", file="disk0", target="kept"
        )
        client.ask("blockdev-add", driver="snapshot-access", node_name="view", file="cbw")
        start_server(client, subject)
        client.ask("block-export-add", type_="nbd", id="e", node_name="view")
        text = "Node view is in use"
        assert client.refusal("blockdev-del", node_name="view") == text
        for name in ("cbw", "kept"):
            text = f"Block device {name} is in use"
            assert client.refusal("blockdev-del", node_name=name) == text
        client.ask("block-export-del", id="e")
        client.wait_for("BLOCK_EXPORT_DELETED", id="e")
        for name in ("view", "cbw", "kept"):
            assert client.ask("blockdev-del", node_name=name) == {}

    def test_filter_over_what_is_missing_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        add_raw(client, subject, "source")
        add_raw(client, subject, "short", size_bytes=MIB)
        given = {"driver": "copy-before-write", "node_name": "cbw"}
        for file, target in (("nope", "short"), ("source", "nope")):
            told = client.refusal("blockdev-add", **given, file=file, target=target)
            assert told == "Cannot find device='nope' nor node-name='nope'"
        # That the target is too short is found out when something does not fit.
        assert client.ask("blockdev-add", **given, file="source", target="short") == {}
