"""The agent's contract held against the simulated agent, in memory and behind a socket."""

from __future__ import annotations

from tests.contract.agents import AgentBehaviour, agent

__all__ = ["agent"]


class TestAgent(AgentBehaviour):
    pass
