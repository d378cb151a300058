"""The agent adapter gives back what a real agent was recorded to say."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from vzdump_qemu.errors import AgentCommandError
from vzdump_qemu.qemu.agent_connection import connect_agent

RECORDINGS = Path(__file__).parent.parent / "data" / "qmp"
SYNCS = ("guest-sync", "guest-sync-delimited")


def _exchanges(name: str) -> list[tuple[dict, dict]]:
    """Commands and their replies, in order; syncs are the adapter's own business."""
    with open(RECORDINGS / f"{name}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    messages = [row for row in rows if row["channel"] == "qga" and "message" in row]
    return [
        (asked["message"], said["message"])
        for asked, said in itertools.pairwise(messages)
        if (asked["dir"], said["dir"]) == ("C", "S") and asked["message"]["execute"] not in SYNCS
    ]


@pytest.mark.parametrize("name", ["qga-frozen", "qga-command-disabled", "qga-hook-fails"])
async def test_recorded_replies_come_back_unchanged(serve, request_ids, name):
    exchanges = _exchanges(name)
    assert exchanges

    async def agent(peer):
        await peer.answer_sync()
        for asked, said in exchanges:
            await peer.answer_sync()
            assert await peer.read() == asked
            peer.send(said)
        await peer.reader.read()

    path = await serve(agent)
    async with connect_agent(path, vmid=100, timeout_s=5, request_ids=request_ids) as connection:
        for asked, said in exchanges:
            if "error" not in said:
                reply = await connection.execute(
                    asked["execute"], asked.get("arguments"), timeout_s=5
                )
                assert reply == said["return"]
                continue
            with pytest.raises(AgentCommandError) as caught:
                await connection.execute(asked["execute"], asked.get("arguments"), timeout_s=5)
            assert caught.value.error_class == said["error"]["class"]
            assert caught.value.description == said["error"]["desc"]
