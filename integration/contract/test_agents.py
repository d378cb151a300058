"""The agent's contract held against the real agent in a real guest."""

from __future__ import annotations

from tests.contract.agents import AgentBehaviour, agent

__all__ = ["agent"]


class TestAgent(AgentBehaviour):
    pass
