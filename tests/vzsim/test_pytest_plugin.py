"""The fixtures for other people's tests, used as they would use them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from vzsim.pytest_plugin import FakeQmp, Simulation


async def _ask(path: str, *commands: dict[str, Any]) -> list[dict[str, Any]]:
    """A tiny QMP client: greeting, negotiation, one reply per command."""
    reader, writer = await asyncio.open_unix_connection(path)
    replies = [json.loads(await reader.readline())]
    for command in ({"execute": "qmp_capabilities"}, *commands):
        writer.write(json.dumps(command).encode() + b"\n")
        replies.append(json.loads(await reader.readline()))
    writer.close()
    await writer.wait_closed()
    return replies


@pytest.mark.slow
async def test_client_talks_to_a_scripted_machine_behind_a_socket(fake_qmp: FakeQmp) -> None:
    fake_qmp.script("[[command]]\nname = 'query-name'\nerror = 'not today'\n")
    async with fake_qmp.serving() as vm:
        greeting, _, status, name = await _ask(
            vm.qmp_path, {"execute": "query-status"}, {"execute": "query-name"}
        )
    assert "QMP" in greeting
    assert status["return"]["status"] == "running"
    assert name["error"]["desc"] == "not today"


@pytest.mark.slow
async def test_agent_answers_at_its_own_socket(fake_agent: FakeQmp) -> None:
    async with fake_agent.serving() as vm:
        reader, writer = await asyncio.open_unix_connection(vm.agent_path)
        writer.write(b'{"execute": "guest-sync", "arguments": {"id": 7}}\n')
        assert json.loads(await reader.readline()) == {"return": 7}
        writer.close()


def test_hour_of_waiting_costs_nothing(sim: Simulation) -> None:
    async def wait() -> str:
        await asyncio.sleep(3600)
        return "done"

    assert sim.run(wait()) == "done"
    assert sim.time_s == 3600


def test_simulated_node_has_a_vm_that_can_be_frozen(sim: Simulation, lab_node: Any) -> None:
    async def freeze() -> tuple[int, bool]:
        scene = await lab_node()
        async with scene.node.machine(100).connect_agent(timeout_s=5) as agent:
            count = await agent.execute("guest-fsfreeze-freeze", timeout_s=5)
        return count, scene.collect().is_frozen

    assert sim.run(freeze()) == (1, True)
