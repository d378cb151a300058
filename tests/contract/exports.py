"""The NBD server and its exports: starting, telling, refusing, and the old form."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.blocks import add_raw, start_server, told_bitmaps
from tests.contract.subject import Client, Feature, Subject, file_of, needs


class ExportBehaviour:
    """The NBD server and its exports."""

    def test_server_is_started_once_and_stopped_once(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.refusal("nbd-server-stop") == "NBD server not running"
        start_server(client, subject)
        address = {"type": "unix", "data": {"path": subject.new_path("other.sock")}}
        told = client.refusal("nbd-server-start", addr=address)
        assert told == "NBD server already running"
        assert client.ask("nbd-server-stop") == {}
        start_server(client, subject)

    @needs(Feature.REAL_FILES)
    def test_server_at_an_impossible_path_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        path = subject.new_path("no-folder/nbd.sock")
        told = client.refusal("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
        assert told == f"Failed to bind socket to {path}: No such file or directory"

    def test_bitmap_that_records_is_not_exported_read_only(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        start_server(client, subject)
        client.ask("block-dirty-bitmap-add", node="disk0", name="a")
        export = {"type": "nbd", "id": "e", "node_name": "disk0", "bitmaps": ["a"]}
        told = client.refusal("block-export-add", **export)
        assert told == "Enabled bitmap 'a' incompatible with readonly export"
        client.ask("block-dirty-bitmap-disable", node="disk0", name="a")
        assert client.ask("block-export-add", **export) == {}
        assert told_bitmaps(client)["a"]["busy"] is True

    def test_export_is_told_and_its_end_too(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        start_server(client, subject)
        assert client.ask("query-block-exports") == []
        assert client.ask("block-export-add", type_="nbd", id="e", node_name="disk0") == {}
        assert client.ask("query-block-exports") == [
            {"node-name": "disk0", "shutting-down": False, "type": "nbd", "id": "e"}
        ]
        assert client.ask("block-export-del", id="e") == {}
        assert client.wait_for("BLOCK_EXPORT_DELETED") == {"id": "e"}
        assert client.ask("query-block-exports") == []

    def test_exports_go_with_their_server(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        start_server(client, subject)
        for name in ("a", "b"):
            client.ask("block-export-add", type_="nbd", id=name, node_name="disk0", name=name)
        client.ask("nbd-server-stop")
        for name in ("a", "b"):
            client.wait_for("BLOCK_EXPORT_DELETED", id=name)
        assert client.ask("query-block-exports") == []

    def test_exported_node_is_in_use(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        start_server(client, subject)
        add_raw(client, subject, "n")
        client.ask("block-export-add", type_="nbd", id="e", node_name="n")
        assert client.refusal("blockdev-del", node_name="n") == "Node n is in use"
        client.ask("block-export-del", id="e")
        client.wait_for("BLOCK_EXPORT_DELETED", id="e")
        assert client.ask("blockdev-del", node_name="n") == {}

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"id": "e"}, "Block export id 'e' is already in use"),
            ({"id": "f", "name": "x"}, "NBD server already has export named 'x'"),
            ({"id": "1f"}, "Invalid block export id"),
            ({"id": "f", "node-name": "nope"}, "Cannot find device='' nor node-name='nope'"),
            ({"id": "f", "bitmaps": ["nope"]}, "Bitmap 'nope' is not found"),
            ({"id": "f", "node-name": "ro", "writable": True},
             "Cannot export read-only node as writable"),
        ],
        ids=str,
    )  # fmt: skip
    def test_bad_export_is_refused(
        self, subject: Subject, arguments: dict[str, Any], text: str
    ) -> None:
        client = Client(subject.open_monitor())
        start_server(client, subject)
        file = file_of(subject.add_image("ro.raw"))
        client.ask("blockdev-add", driver="raw", node_name="ro", read_only=True, file=file)
        client.ask("block-export-add", type_="nbd", id="e", node_name="disk0", name="x")
        given = {"type": "nbd", "node-name": "disk0"} | arguments
        reply = client.say({"execute": "block-export-add", "arguments": given})
        while "event" in reply:
            reply = client.reply()
        assert reply["error"] == {"class": "GenericError", "desc": text}
        assert [each["id"] for each in client.ask("query-block-exports")] == ["e"]

    def test_export_without_a_server_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        told = client.refusal("block-export-add", type_="nbd", id="e", node_name="disk0")
        assert told == "NBD server not running"
        assert client.refusal("block-export-del", id="e") == "Export 'e' is not found"

    def test_export_of_the_old_form_bears_one_name(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.refusal("nbd-server-add", device="disk0") == "NBD server not running"
        start_server(client, subject)
        assert client.ask("nbd-server-add", device="disk0", name="x") == {}
        [found] = client.ask("query-block-exports")
        assert (found["id"], found["node-name"]) == ("x", "disk0")
        told = client.refusal("nbd-server-add", device="disk0", name="x")
        assert told == "Block export id 'x' is already in use"
        told = client.refusal("nbd-server-add", device="nope")
        assert told == "Cannot find device='nope' nor node-name='nope'"
        assert client.refusal("nbd-server-remove", name="nope") == "Export 'nope' is not found"
        assert client.ask("nbd-server-remove", name="x") == {}
        assert client.ask("query-block-exports") == []
