"""The small parts: wire decoding, option grammar, scripts, qcow2."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from vzdump_qemu.errors import ConfigError
from vzsim.command_line import parse_options, split_arguments
from vzsim.fakeqmp.qcow2 import Qcow2Disk
from vzsim.fakeqmp.script import Moment, Script, parse_script
from vzsim.fakeqmp.wire import Decoder, Message, ParseFailure
from vzsim.launch import plan_launch

_MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b'{"a": [1, -2.5, true, null, {}]}', [{"a": [1, -2.5, True, None, {}]}]),
        (b'{"a":1}{"b":"}\\"{"}\n[]', [{"a": 1}, {"b": '}"{'}, []]),
        (b'"text"\n', ["text"]),
    ],
)
def test_decoder_given_bytes_whole_or_one_by_one_finds_the_same(
    text: bytes, values: list[object]
) -> None:
    assert Decoder().feed(text) == [Message(value=value) for value in values]
    decoder = Decoder()
    found = [entry for byte in text for entry in decoder.feed(bytes([byte]))]
    assert found == [Message(value=value) for value in values]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"a" 1}', "missing : in object pair"),
        (b"{1: 2}", "key is not a string in object"),
        (b'{"a":1 "b":2}', "expected separator in dict"),
        (b"[1 2]", "expected separator in list"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b"nonsense\n", "invalid keyword 'nonsense'"),
    ],
)
def test_decoder_given_bad_json_names_it_and_goes_on(text: bytes, error: str) -> None:
    found = Decoder().feed(text + b"\n{}")
    assert found == [ParseFailure(description=f"JSON parse error, {error}"), Message(value={})]


def test_decoder_given_resync_byte_drops_what_was_unfinished() -> None:
    found = Decoder().feed(b'\xff{"execute": "gu\xff{}')
    assert found == [
        ParseFailure(description="JSON parse error, stray '\ufffd'"),
        ParseFailure(description="JSON parse error, stray '\"gu\ufffd'"),
        Message(value={}),
    ]


def test_options_with_doubled_comma_keep_one() -> None:
    options = parse_options("scsi-hd,file=/a,,b=c,readonly,noserver", first_key="driver")
    assert options == {"driver": "scsi-hd", "file": "/a,b=c", "readonly": "on", "server": "off"}


def test_arguments_with_unknown_or_bare_option_are_refused_as_qemu_does() -> None:
    with pytest.raises(ConfigError, match=r"^-bogus: invalid option$"):
        split_arguments(["-bogus"])
    with pytest.raises(ConfigError, match=r"^-m: requires an argument$"):
        split_arguments(["-m"])
    assert split_arguments(["--daemonize", "-m", "5"]) == [("daemonize", ""), ("m", "5")]


def test_plan_from_launch_line_names_channels_and_state() -> None:
    plan = plan_launch(
        [
            "-S",
            "-no-shutdown",
            "-chardev",
            "socket,id=q,path=/q,server=on,wait=off",
            "-mon",
            "chardev=q,mode=control",
            "-qmp",
            "unix:/q2,server=on,wait=off",
            "-chardev",
            "socket,path=/a,server=on,wait=off,id=agent0",
            "-vzsim",
            "script=/s",
            "-device",
            "virtserialport,chardev=agent0,name=org.qemu.guest_agent.0,id=ch0",
        ]
    )
    assert plan.monitor_paths == ["/q2", "/q"]
    assert (plan.agent_path, plan.agent_port_id, plan.script_path) == ("/a", "ch0", "/s")
    assert plan.machine_config().initial_state.value == "prelaunch"


def test_script_with_all_tables_is_read() -> None:
    script = parse_script(
        """
        [[command]]
        name = "backup"
        nth = 2
        die = "after"
        drop = ["UUID"]
        [[event]]
        at_s = 1
        name = "X"
        [backup]
        bytes_per_s = 5
        [agent]
        stale_replies = [{ return = 1 }]
        [process]
        die_at_s = 2.5
        """
    )
    assert script.command[0].die is Moment.AFTER
    assert script.command[0].drop == ("UUID",)
    assert script.agent.stale_replies == ({"return": 1},)
    assert script.event[0].at_s == 1.0
    assert parse_script("") == Script()


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[nope]", "script: unknown key 'nope'"),
        ("[[command]]\nname='x'\nfoo=1", r"script.command\[0\]: unknown key 'foo'"),
        ("[[command]]\nnth=1", r"script.command\[0\]: key 'name' is missing"),
        ("[backup]\nbytes_per_s='x'", "script.backup.bytes_per_s: a value of type int"),
        ("[agent]\nstate='x'", "script.agent.state: must be one of running, absent"),
        ("[", "script: "),
    ],
)
def test_script_with_mistake_is_refused_with_its_place(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        parse_script(text)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_qcow2_written_here_is_read_by_qemu_img(tmp_path: Path) -> None:
    image, raw = tmp_path / "i.qcow2", tmp_path / "i.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "300M"], check=True)
    disk = Qcow2Disk(str(image))
    chance = random.Random(1)
    pieces = {position: chance.randbytes(70_000) for position in (5, 3 * _MIB, 299 * _MIB)}
    for position, data in pieces.items():
        disk.write(position, data)
        assert bytes(disk.read(position, len(data))) == data
    assert bytes(disk.read(100 * _MIB, 4096)) == bytes(4096)
    disk.close()
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    with raw.open("rb") as file:
        for position, data in pieces.items():
            file.seek(position)
            assert file.read(len(data)) == data


def test_qcow2_with_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(4096))
    with pytest.raises(ConfigError, match="not a qcow2 image"):
        Qcow2Disk(str(tmp_path / "x"))
