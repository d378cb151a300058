"""The guest agent: synchronising, freezing, what is refused meanwhile, and broken input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from tests.contract.subject import REPLY_WITHIN_S, SILENCE_S, Channel, Silence

_DELIMITER = b"\xff"
_FROZEN = "the agent is in frozen state"
_BY_FREEZE = (
    "guest-fsfreeze-freeze",
    "guest-fsfreeze-freeze-list",
    "guest-get-time",
    "guest-get-fsinfo",
    "guest-get-osinfo",
    "guest-fstrim",
    "guest-exec",
    "guest-file-open",
    "guest-shutdown",
    "guest-network-get-interfaces",
)


class AgentSubject(Protocol):
    """A guest with one file system besides its root, its agent up."""

    name: str

    def open_agent(self) -> Channel: ...

    def refuse_freezes(self, *, refused: bool) -> None:
        """Have the guest's hook script fail before a freeze, or no more."""


class AgentClient:
    """A client of an agent, in step after its creation."""

    _serial = 1000

    def __init__(self, channel: Channel, *, in_step: bool = True) -> None:
        self.channel = channel
        if in_step:
            self.synchronise()

    def synchronise(self) -> list[dict[str, Any]]:
        """Get in step; what was answered to others before is returned."""
        AgentClient._serial += 1
        number = AgentClient._serial
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self.channel.send(_DELIMITER + json.dumps(request).encode() + b"\n")
        stale = []
        while (line := self.line()) != _DELIMITER + json.dumps({"return": number}).encode():
            stale.append(json.loads(line.lstrip(_DELIMITER)))
        return stale

    def line(self, timeout_s: float = REPLY_WITHIN_S) -> bytes:
        """One line as it came."""
        return self.channel.receive_line(timeout_s)

    def say(self, message: object) -> dict[str, Any]:
        """Send a JSON value and return the next line's."""
        self.channel.send(json.dumps(message).encode() + b"\n")
        reply: dict[str, Any] = json.loads(self.line())
        return reply

    def ask(self, command: str, /, **arguments: Any) -> Any:
        """Carry out a command that must succeed."""
        given = {key.rstrip("_").replace("_", "-"): value for key, value in arguments.items()}
        reply = self.say({"execute": command, "arguments": given})
        assert reply.keys() == {"return"}, reply
        return reply["return"]

    def refusal(self, command: str, /, **arguments: Any) -> str:
        """Carry out a command that must fail; the text, with its class unless that is common."""
        reply = self.say({"execute": command, "arguments": arguments})
        assert reply.keys() == {"error"}, reply
        error = reply["error"]
        if error["class"] == "GenericError":
            return str(error["desc"])
        return f"{error['class']}: {error['desc']}"


@pytest.fixture
def agent(agent_subject: AgentSubject) -> Iterator[AgentClient]:
    """A client in step; the guest is left thawed."""
    client = AgentClient(agent_subject.open_agent())
    yield client
    client.synchronise()
    client.ask("guest-fsfreeze-thaw")
    client.channel.close()


class AgentBehaviour:
    """Everything that an agent is asked."""

    @pytest.mark.parametrize("number", [0, 1, -5, 2**31, 2**63 - 1])
    def test_sync_returns_the_number_given(self, agent: AgentClient, number: int) -> None:
        assert agent.ask("guest-sync", id=number) == number

    def test_delimited_sync_has_the_delimiter_in_front(self, agent: AgentClient) -> None:
        request = {"execute": "guest-sync-delimited", "arguments": {"id": 7}}
        agent.channel.send(json.dumps(request).encode())
        assert agent.line() == b'\xff{"return": 7}'

    def test_ping_is_answered(self, agent: AgentClient) -> None:
        assert agent.ask("guest-ping") == {}

    def test_info_tells_version_and_commands(self, agent: AgentClient) -> None:
        info = agent.ask("guest-info")
        assert info.keys() == {"version", "supported_commands"}
        assert info["version"] == "7.2.22"
        commands = {each["name"]: each for each in info["supported_commands"]}
        for each in commands.values():
            assert each.keys() == {"name", "enabled", "success-response"}
        assert commands["guest-fsfreeze-freeze"]["enabled"] is True
        assert commands["guest-ping"]["success-response"] is True
        assert commands["guest-shutdown"]["success-response"] is False
        assert len(commands) == 42

    def test_freeze_and_thaw_count_and_the_state_follows(self, agent: AgentClient) -> None:
        assert agent.ask("guest-fsfreeze-status") == "thawed"
        assert agent.ask("guest-fsfreeze-freeze") == 1
        assert agent.ask("guest-fsfreeze-status") == "frozen"
        assert agent.ask("guest-fsfreeze-thaw") == 1
        assert agent.ask("guest-fsfreeze-status") == "thawed"

    def test_thaw_of_what_is_not_frozen_counts_none(self, agent: AgentClient) -> None:
        assert agent.ask("guest-fsfreeze-thaw") == 0
        assert agent.ask("guest-fsfreeze-thaw") == 0

    @pytest.mark.parametrize("command", _BY_FREEZE)
    def test_command_is_refused_while_frozen(self, agent: AgentClient, command: str) -> None:
        agent.ask("guest-fsfreeze-freeze")
        text = f"CommandNotFound: Command {command} has been disabled: {_FROZEN}"
        assert agent.refusal(command) == text
        assert agent.ask("guest-fsfreeze-status") == "frozen"

    def test_few_commands_are_carried_out_while_frozen(self, agent: AgentClient) -> None:
        agent.ask("guest-fsfreeze-freeze")
        assert agent.ask("guest-ping") == {}
        assert agent.ask("guest-sync", id=3) == 3
        agent.synchronise()
        commands = agent.ask("guest-info")["supported_commands"]
        enabled = {each["name"] for each in commands if each["enabled"]}
        assert enabled == {
            "guest-ping",
            "guest-info",
            "guest-sync",
            "guest-sync-delimited",
            "guest-fsfreeze-status",
            "guest-fsfreeze-thaw",
        }
        assert agent.ask("guest-fsfreeze-thaw") == 1
        commands = agent.ask("guest-info")["supported_commands"]
        enabled = {each["name"] for each in commands if each["enabled"]}
        assert "guest-fsfreeze-freeze" in enabled

    def test_freeze_of_no_file_system_of_the_list_counts_none(self, agent: AgentClient) -> None:
        count = agent.ask("guest-fsfreeze-freeze-list", mountpoints=["/no/such/place"])
        assert count == 0

    def test_unknown_command_has_a_class_of_its_own(self, agent: AgentClient) -> None:
        text = "CommandNotFound: The command guest-nope has not been found"
        assert agent.refusal("guest-nope") == text

    @pytest.mark.parametrize(
        ("command", "arguments", "text"),
        [
            ("guest-ping", {"odd": 1}, "Parameter 'odd' is unexpected"),
            ("guest-sync", {}, "Parameter 'id' is missing"),
            ("guest-sync", {"id": "x"}, "Invalid parameter type for 'id', expected: integer"),
            ("guest-sync", {"id": 1.5}, "Invalid parameter type for 'id', expected: integer"),
            ("guest-file-open", {}, "Parameter 'path' is missing"),
            ("guest-exec", {"path": 1}, "Invalid parameter type for 'path', expected: string"),
            (
                "guest-fsfreeze-freeze-list",
                {"mountpoints": "/"},
                "Invalid parameter type for 'mountpoints', expected: array",
            ),
        ],
        ids=str,
    )
    def test_wrong_arguments_are_told(
        self, agent: AgentClient, command: str, arguments: dict[str, Any], text: str
    ) -> None:
        assert agent.refusal(command, **arguments) == text

    @pytest.mark.parametrize("value", [0, "x", None, [1], {"a": 1}], ids=str)
    def test_id_comes_back_as_it_was(self, agent: AgentClient, value: object) -> None:
        reply = agent.say({"execute": "guest-ping", "id": value})
        assert reply == {"return": {}, "id": value}

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ([], "QMP input must be a JSON object"),
            ({}, "QMP input lacks member 'execute'"),
            ({"execute": 3}, "QMP input member 'execute' must be a string"),
            ({"execute": "guest-ping", "odd": 1}, "QMP input member 'odd' is unexpected"),
            (
                {"execute": "guest-ping", "arguments": []},
                "QMP input member 'arguments' must be an object",
            ),
        ],
        ids=str,
    )
    def test_frame_that_is_none_is_refused(
        self, agent: AgentClient, message: object, text: str
    ) -> None:
        assert agent.say(message)["error"] == {"class": "GenericError", "desc": text}

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b'{"execute": }\n', "expecting value"),
            (b"nonsense\n", "invalid keyword 'nonsense'"),
            (b"\xff", "stray '\ufffd'"),
            (b'{"execute":"guest-pi\xff', "stray '\"guest-pi\ufffd'"),
        ],
        ids=str,
    )
    def test_broken_json_is_told(self, agent: AgentClient, data: bytes, text: str) -> None:
        agent.channel.send(data)
        error = {"class": "GenericError", "desc": f"JSON parse error, {text}"}
        assert json.loads(agent.line()) == {"error": error}
        agent.synchronise()

    def test_message_in_pieces_is_put_together(self, agent: AgentClient) -> None:
        data = b'{"execute": "guest-sync", "arguments": {"id": 5}}'
        for index in range(0, len(data) - 1, 7):
            agent.channel.send(data[index : min(index + 7, len(data) - 1)])
        with pytest.raises(Silence):
            agent.line(SILENCE_S)
        agent.channel.send(data[-1:])
        assert agent.line() == b'{"return": 5}'

    def test_messages_in_one_packet_are_answered_in_order(self, agent: AgentClient) -> None:
        requests = [{"execute": "guest-sync", "arguments": {"id": each}} for each in range(5)]
        agent.channel.send("".join(map(json.dumps, requests)).encode())
        assert [json.loads(agent.line())["return"] for _ in requests] == list(range(5))

    def test_half_a_message_of_one_client_is_swept_away_by_the_delimiter(
        self, agent_subject: AgentSubject, agent: AgentClient
    ) -> None:
        agent.channel.send(b'{"execute": "guest-pi')
        agent.channel.close()
        again = AgentClient(agent_subject.open_agent(), in_step=False)
        [stale] = [each for each in again.synchronise() if "stray" in str(each)]
        assert stale["error"]["class"] == "GenericError"
        assert again.ask("guest-ping") == {}
        again.channel.close()
        agent.channel = agent_subject.open_agent()

    def test_freeze_outlives_its_client_and_the_next_one_thaws(
        self, agent_subject: AgentSubject, agent: AgentClient
    ) -> None:
        agent.ask("guest-fsfreeze-freeze")
        agent.channel.close()
        again = AgentClient(agent_subject.open_agent())
        assert again.ask("guest-fsfreeze-status") == "frozen"
        assert again.ask("guest-fsfreeze-thaw") == 1
        again.channel.close()
        agent.channel = agent_subject.open_agent()

    def test_request_whose_client_left_is_carried_out_all_the_same(
        self, agent_subject: AgentSubject, agent: AgentClient
    ) -> None:
        agent.channel.send(b'{"execute": "guest-fsfreeze-freeze"}\n')
        agent.channel.close()
        again = AgentClient(agent_subject.open_agent(), in_step=False)
        # The answer is lost or comes first, but never after what is asked now.
        stale = again.synchronise()
        assert [each for each in stale if "return" in each] in ([], [{"return": 1}])
        assert again.ask("guest-fsfreeze-status") == "frozen"
        again.channel.close()
        agent.channel = agent_subject.open_agent()

    def test_failing_hook_leaves_the_guest_thawed(
        self, agent_subject: AgentSubject, agent: AgentClient
    ) -> None:
        agent_subject.refuse_freezes(refused=True)
        try:
            text = "fsfreeze hook has failed with status 3"
            assert agent.refusal("guest-fsfreeze-freeze") == text
            assert agent.ask("guest-fsfreeze-status") == "thawed"
            assert agent.ask("guest-fsfreeze-thaw") == 0
        finally:
            agent_subject.refuse_freezes(refused=False)
        assert agent.ask("guest-fsfreeze-freeze") == 1

    def test_file_systems_are_told(self, agent: AgentClient) -> None:
        [found] = agent.ask("guest-get-fsinfo")
        assert {"name", "mountpoint", "disk", "type"} <= found.keys()
        assert found["type"] == "ext4"
