"""The protocol itself: what every QMP server does, whatever it serves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.subject import (
    SILENCE_S,
    Client,
    Closed,
    Feature,
    Silence,
    Subject,
    needs,
)

_VERSION = b'{"execute": "query-version"}'
_NOT_NEGOTIATED = "CommandNotFound: Expecting capabilities negotiation with 'qmp_capabilities'"


def _error(description: str, error_class: str = "GenericError") -> dict[str, Any]:
    return {"error": {"class": error_class, "desc": description}}


class ProtocolBehaviour:
    """Greeting, negotiation, frames, connections."""

    def test_greeting_tells_version_and_capabilities(self, subject: Subject) -> None:
        client = Client(subject.open_monitor(), negotiate=False)
        greeting = client.greeting["QMP"]
        assert client.greeting.keys() == {"QMP"}
        assert greeting.keys() == {"version", "capabilities"}
        assert greeting["version"].keys() == {"qemu", "package"}
        assert greeting["version"]["qemu"].keys() == {"major", "minor", "micro"}
        assert greeting["capabilities"] == (["oob"] if Feature.OOB in subject.features else [])

    def test_version_asked_for_is_that_of_the_greeting(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("query-version") == client.greeting["QMP"]["version"]

    def test_command_before_negotiation_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor(), negotiate=False)
        assert client.refusal("query-version") == _NOT_NEGOTIATED
        assert client.refusal("no-such-command") == _NOT_NEGOTIATED
        assert client.ask("qmp_capabilities") == {}
        assert "qemu" in client.ask("query-version")

    def test_second_negotiation_is_refused(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.refusal("qmp_capabilities") == (
            "CommandNotFound: Capabilities negotiation is already complete, command ignored"
        )

    def test_unknown_capability_leaves_the_client_before_negotiation(
        self, subject: Subject
    ) -> None:
        client = Client(subject.open_monitor(), negotiate=False)
        text = client.refusal("qmp_capabilities", enable=["bogus"])
        assert text == "Parameter 'null' does not accept value 'bogus'"
        assert client.refusal("query-version") == _NOT_NEGOTIATED

    @needs(Feature.OOB)
    def test_out_of_band_is_for_those_who_asked_and_for_few_commands(
        self, subject: Subject
    ) -> None:
        client = Client(subject.open_monitor())
        reply = client.say({"exec-oob": "query-version"})
        assert reply == _error("QMP input member 'exec-oob' is unexpected")
        client.close()
        client = Client(subject.open_monitor(), oob=True)
        reply = client.say({"exec-oob": "query-version", "id": 1})
        assert reply == _error("The command query-version does not support OOB") | {"id": 1}
        reply = client.say({"exec-oob": "no-such-command", "id": 2})
        text = "The command no-such-command has not been found"
        assert reply == _error(text, "CommandNotFound") | {"id": 2}

    @needs(Feature.OOB, Feature.MACHINE)
    def test_command_out_of_band_is_carried_out(self, subject: Subject) -> None:
        client = Client(subject.open_monitor(), oob=True)
        reply = client.say({"exec-oob": "migrate-pause", "id": "x"})
        text = "migrate-pause is currently only supported during postcopy-active state"
        assert reply == _error(text) | {"id": "x"}

    def test_unknown_command_has_a_class_of_its_own(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        text = "CommandNotFound: The command no-such-command has not been found"
        assert client.refusal("no-such-command") == text
        assert client.refusal("no-such-command", any_argument=1) == text

    @needs(Feature.DAEMON)
    def test_storage_daemon_knows_no_machine(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        for name in ("query-status", "stop", "human-monitor-command", "getfd"):
            text = f"CommandNotFound: The command {name} has not been found"
            assert client.refusal(name) == text

    @pytest.mark.parametrize(
        "value",
        [0, -1, 2**63, 1.5, "", "x", 'ü😀\n\\"', None, True, [], [1, [2]], {}, {"a": {"b": []}}],
        ids=str,
    )
    def test_id_of_any_kind_comes_back_as_it_was(self, subject: Subject, value: object) -> None:
        client = Client(subject.open_monitor())
        assert client.say({"execute": "query-version", "id": value})["id"] == value
        assert client.say({"execute": "no-such-command", "id": value})["id"] == value

    def test_reply_without_an_id_asked_for_has_none(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.say({"execute": "query-version"}).keys() == {"return"}

    @pytest.mark.parametrize(
        ("message", "text"),
        [
            ([], "QMP input must be a JSON object"),
            ([{"execute": "query-version"}], "QMP input must be a JSON object"),
            ("query-version", "QMP input must be a JSON object"),
            ({}, "QMP input lacks member 'execute'"),
            ({"id": 1}, "QMP input lacks member 'execute'"),
            ({"execute": 3}, "QMP input member 'execute' must be a string"),
            ({"execute": None}, "QMP input member 'execute' must be a string"),
            (
                {"execute": "query-version", "arguments": []},
                "QMP input member 'arguments' must be an object",
            ),
            (
                {"execute": "query-version", "arguments": None},
                "QMP input member 'arguments' must be an object",
            ),
            ({"execute": "query-version", "more": 1}, "QMP input member 'more' is unexpected"),
            (
                {"execute": "query-version", "control": {}},
                "QMP input member 'control' is unexpected",
            ),
        ],
        ids=str,
    )
    def test_frame_that_is_none_is_refused_and_the_next_is_served(
        self, subject: Subject, message: object, text: str
    ) -> None:
        client = Client(subject.open_monitor())
        assert client.say(message)["error"] == {"class": "GenericError", "desc": text}
        assert "qemu" in client.ask("query-version")

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b'{"execute": "query-version", }', "expecting value"),
            (b'{"execute" "query-version"}', "missing : in object pair"),
            (b'{"execute": query}', "invalid keyword 'query'"),
            (b"nonsense\n", "invalid keyword 'nonsense'"),
            (b'{"a": 1, "a": 2}', "duplicate key"),
            (b'{"execute": "query-version" "id": 1}', "expected separator in dict"),
            (b'{"execute": "query-version", 3: 1}', "key is not a string in object"),
            (b'{"execute": "query-version", "id": [1,]}', "expecting value"),
            (b'{"execute": "query-version", "id": [1 2]}', "expected separator in list"),
            (b'{"execute": "query-version"]', "expected separator in dict"),
            (b"]", "expecting value"),
            (b"}", "expecting value"),
            (b'{"execute": "\xc3"}', "invalid UTF-8 sequence in string"),
            (b'{"x": \xff', "stray '\ufffd'"),
            (b"\xff", "stray '\ufffd'"),
        ],
        ids=str,
    )
    def test_broken_json_is_told_and_the_next_message_is_served(
        self, subject: Subject, data: bytes, text: str
    ) -> None:
        client = Client(subject.open_monitor())
        assert client.say_raw(data) == _error(f"JSON parse error, {text}")
        assert "qemu" in client.ask("query-version")

    @pytest.mark.parametrize(
        ("data", "stray"),
        [
            (b'{"execute": "a\x01b"}', '"a\x01'),
            (b'{"execute": "query-version", "id": 01}', "01"),
            (b'{"execute": "query-version", "id": +1}', "+"),
            (b'{"execute": "query-version", "id": .5}', "."),
            (b'{"execute": "query-version", "id": %d}', "%"),
        ],
        ids=str,
    )
    def test_stray_character_is_told_and_what_follows_is_read_anew(
        self, subject: Subject, data: bytes, stray: str
    ) -> None:
        client = Client(subject.open_monitor())
        assert client.say_raw(data) == _error(f"JSON parse error, stray '{stray}'")
        # The closing brace has nothing left to close.
        assert client.reply() == _error("JSON parse error, expecting value")
        assert "qemu" in client.ask("query-version")

    @pytest.mark.parametrize(
        "data",
        [
            b"{'execute': 'query-version'}",
            b"\n \t\r\n" + _VERSION + b"\r\n\r\n",
            b'{"arguments": {}, "execute": "query-version"}',
            b'{"execute": "query\\u002Dversion"}',
        ],
        ids=str,
    )
    def test_odd_json_is_understood(self, subject: Subject, data: bytes) -> None:
        client = Client(subject.open_monitor())
        assert "return" in client.say_raw(data)

    def test_line_end_is_not_waited_for(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert "return" in client.say_raw(_VERSION)

    def test_message_in_single_bytes_is_put_together(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        for byte in _VERSION[:-1]:
            client.channel.send(bytes([byte]))
        with pytest.raises(Silence):
            client.next_message(SILENCE_S)
        assert "return" in client.say_raw(_VERSION[-1:])

    def test_messages_in_one_packet_are_answered_in_order(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        messages = [{"execute": "query-version", "id": index} for index in range(7)]
        client.channel.send("".join(map(json.dumps, messages)).encode())
        assert [client.reply()["id"] for _ in messages] == list(range(7))

    def test_reply_ends_with_a_line_end_and_is_ascii(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.channel.send('{"execute": "query-version", "id": "ü"}'.encode())
        line = client.channel.receive_line(SILENCE_S * 10)
        assert line.isascii()
        assert json.loads(line)["id"] == "ü"

    def test_half_a_message_is_forgotten_with_its_client(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        client.channel.send(_VERSION[:9])
        client.close()
        assert "qemu" in Client(subject.open_monitor()).ask("query-version")

    def test_client_that_comes_back_is_greeted_and_negotiates_anew(self, subject: Subject) -> None:
        first = Client(subject.open_monitor())
        first.close()
        second = Client(subject.open_monitor(), negotiate=False)
        assert second.greeting == first.greeting
        assert second.refusal("query-version") == _NOT_NEGOTIATED

    def test_client_that_leaves_without_a_word_is_no_harm(self, subject: Subject) -> None:
        for _ in range(5):
            subject.open_monitor().close()
        assert "qemu" in Client(subject.open_monitor()).ask("query-version")

    @needs(Feature.BACKLOG)
    def test_second_client_of_a_monitor_waits_for_the_first_to_leave(
        self, subject: Subject
    ) -> None:
        first = Client(subject.open_monitor())
        channel = subject.open_monitor()
        with pytest.raises(Silence):
            channel.receive_line(SILENCE_S)
        assert "qemu" in first.ask("query-version")
        first.close()
        assert "qemu" in Client(channel).ask("query-version")

    def test_two_monitors_serve_their_clients_side_by_side(self, subject: Subject) -> None:
        first = Client(subject.open_monitor(0))
        second = Client(subject.open_monitor(1), negotiate=False)
        assert second.refusal("query-version") == _NOT_NEGOTIATED
        second.ask("qmp_capabilities")
        assert first.ask("query-version") == second.ask("query-version")

    def test_event_goes_to_every_client_that_has_negotiated(self, subject: Subject) -> None:
        first = Client(subject.open_monitor(0))
        second = Client(subject.open_monitor(1), negotiate=False)
        _make_an_event(first, subject)
        first.wait_for("BLOCK_EXPORT_DELETED", id="e")
        second.ask("qmp_capabilities")
        assert second.take_events() == []
        _make_an_event(first, subject)
        [event] = [second.next_message()]
        assert event["event"] == "BLOCK_EXPORT_DELETED"
        assert event.keys() == {"timestamp", "event", "data"}
        assert event["timestamp"].keys() == {"seconds", "microseconds"}

    def test_quit_is_answered_and_ends_the_process(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        assert client.ask("quit") == {}
        is_machine = Feature.MACHINE in subject.features
        data = {"guest": False, "reason": "host-qmp-quit"}
        assert client.take_events() == ([("SHUTDOWN", data)] if is_machine else [])
        with pytest.raises(Closed):
            client.next_message()

    def test_commands_told_are_those_of_the_schema_told(self, subject: Subject) -> None:
        client = Client(subject.open_monitor())
        schema = client.ask("query-qmp-schema")
        names = [entry["name"] for entry in schema if entry["meta-type"] == "command"]
        told = [entry["name"] for entry in client.ask("query-commands")]
        assert sorted(told) == sorted(names)


def _make_an_event(client: Client, subject: Subject) -> None:
    path = subject.new_path("nbd-event.sock")
    client.ask("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
    client.ask("block-export-add", type_="nbd", id="e", node_name="disk0")
    client.ask("nbd-server-stop")
