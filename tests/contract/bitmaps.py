"""Dirty bitmaps: their options, their life, and many of them in one transaction."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.blocks import told_bitmaps
from tests.contract.subject import Client, Subject


class BitmapBehaviour:
    """Dirty bitmaps."""

    def test_bitmap_is_added_told_and_removed(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("block-dirty-bitmap-add", node="disk0", name="a") == {}
        assert told_bitmaps(client) == {
            "a": {
                "recording": True,
                "persistent": False,
                "busy": False,
                "granularity": 65536,
                "count": 0,
            }
        }
        assert client.ask("block-dirty-bitmap-remove", node="disk0", name="a") == {}
        assert told_bitmaps(client) == {}
        assert client.take_events() == []

    def test_newest_bitmap_is_told_first_with_its_options(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        add = {"node": "disk0", "granularity": 4096, "disabled": True}
        client.ask("block-dirty-bitmap-add", node="disk0", name="a")
        client.ask("block-dirty-bitmap-add", name="b", **add)
        found = told_bitmaps(client)
        assert list(found) == ["b", "a"]
        assert found["b"]["granularity"] == 4096
        assert found["b"]["recording"] is False

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"name": "a"}, "Bitmap already exists: a"),
            ({"name": ""}, "Bitmap name cannot be empty"),
            (
                {"name": "b", "granularity": 1000},
                "Granularity must be power of 2 and at least 512",
            ),
            (
                {"name": "b", "granularity": 256},
                "Granularity must be power of 2 and at least 512",
            ),
            (
                {"name": "b", "persistent": True},
                "Can't store persistent bitmaps to disk0: Operation not supported",
            ),
            ({"name": "b", "node": "nope"}, "Cannot find device='nope' nor node-name='nope'"),
        ],
        ids=str,
    )
    def test_bad_bitmap_is_refused(
        self, subject: Subject, arguments: dict[str, Any], text: str
    ) -> None:
        client = Client(subject.open_monitor())
        client.ask("block-dirty-bitmap-add", node="disk0", name="a")
        given = {"node": "disk0"} | arguments
        reply = client.say({"execute": "block-dirty-bitmap-add", "arguments": given})
        assert reply["error"] == {"class": "GenericError", "desc": text}
        assert list(told_bitmaps(client)) == ["a"]

    @pytest.mark.parametrize("verb", ["remove", "clear", "enable", "disable"])
    def test_bitmap_that_is_none_is_refused(self, subject: Subject, verb: str) -> None:
        client = Client(subject.open_monitor())
        told = client.refusal(f"block-dirty-bitmap-{verb}", node="disk0", name="nope")
        assert told == "Dirty bitmap 'nope' not found"

    def test_recording_is_switched(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask("block-dirty-bitmap-add", node="disk0", name="a")
        client.ask("block-dirty-bitmap-disable", node="disk0", name="a")
        assert told_bitmaps(client)["a"]["recording"] is False
        client.ask("block-dirty-bitmap-enable", node="disk0", name="a")
        assert told_bitmaps(client)["a"]["recording"] is True
        assert client.ask("block-dirty-bitmap-clear", node="disk0", name="a") == {}

    def test_bitmaps_are_merged_by_name_and_by_node(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        for name in "ab":
            client.ask("block-dirty-bitmap-add", node="disk0", name=name)
        merge = {"node": "disk0", "target": "a"}
        other = {"node": "disk0", "name": "b"}
        assert client.ask("block-dirty-bitmap-merge", **merge, bitmaps=["b", other]) == {}
        told = client.refusal("block-dirty-bitmap-merge", **merge, bitmaps=["nope"])
        assert told == "Dirty bitmap 'nope' not found"
        told = client.refusal(
            "block-dirty-bitmap-merge", node="disk0", target="nope", bitmaps=["a"]
        )
        assert told == "Dirty bitmap 'nope' not found"

    def test_digest_of_bitmaps_with_the_same_bits_is_the_same(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        digests = []
        for name in "ab":
            client.ask("block-dirty-bitmap-add", node="disk0", name=name)
            found = client.ask("x-debug-block-dirty-bitmap-sha256", node="disk0", name=name)
            digests.append(found["sha256"])
        assert digests[0] == digests[1]
        assert len(digests[0]) == 64

    def test_failed_transaction_leaves_no_trace(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask("block-dirty-bitmap-add", node="disk0", name="a")
        actions = [
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk0", "name": "b"}},
            {"type": "block-dirty-bitmap-disable", "data": {"node": "disk0", "name": "a"}},
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk0", "name": "a"}},
        ]
        assert client.refusal("transaction", actions=actions) == "Bitmap already exists: a"
        assert list(told_bitmaps(client)) == ["a"]
        assert told_bitmaps(client)["a"]["recording"] is True
        assert client.ask("transaction", actions=actions[:2]) == {}
        assert list(told_bitmaps(client)) == ["b", "a"]
        assert told_bitmaps(client)["a"]["recording"] is False

    def test_transaction_with_abort_is_undone(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        actions = [
            {"type": "block-dirty-bitmap-add", "data": {"node": "disk0", "name": "b"}},
            {"type": "abort", "data": {}},
        ]
        told = client.refusal("transaction", actions=actions)
        assert told == "Transaction aborted using Abort action"
        assert told_bitmaps(client) == {}

    def test_name_removed_in_a_transaction_is_taken_until_its_end(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.ask("block-dirty-bitmap-add", node="disk0", name="a")
        remove = {"type": "block-dirty-bitmap-remove", "data": {"node": "disk0", "name": "a"}}
        add = {"type": "block-dirty-bitmap-add", "data": {"node": "disk0", "name": "a"}}
        assert client.refusal("transaction", actions=[remove, add]) == "Bitmap already exists: a"
        assert told_bitmaps(client)["a"]["busy"] is False
        add_other = {"type": "block-dirty-bitmap-add", "data": {"node": "disk0", "name": "b"}}
        merge = {
            "type": "block-dirty-bitmap-merge",
            "data": {"node": "disk0", "target": "b", "bitmaps": ["a"]},
        }
        told = client.refusal("transaction", actions=[remove, add_other, merge])
        assert told == "Bitmap 'a' is currently in use by another operation and cannot be used"
        assert client.ask("transaction", actions=[add_other, merge, remove]) == {}
        assert list(told_bitmaps(client)) == ["b"]

    def test_empty_transaction_succeeds(self, subject: Subject) -> None:
        assert Client(subject.open_monitor()).ask("transaction", actions=[]) == {}
