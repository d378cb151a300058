"""HTTP/1.1 and parameters: bounds, forms and refusals."""

from __future__ import annotations

import pytest

from tests.vzsim.fakepbs.raw_client import TOKEN_HEADERS, api, ask, http1, session
from vzsim.fakepbs import FakePbs
from vzsim.fakepbs.parameters import Boolean, Integer, ListOf, Parameter, Shape, Text, read_set
from vzsim.fakepbs.requests import ApiError


async def test_connection_serves_one_request_after_the_other(pbs: FakePbs) -> None:
    streams, task = pbs.connect()
    for _ in range(3):
        answer = await http1(streams, "GET", api("version"), headers=TOKEN_HEADERS)
        assert answer.value == {"version": "4.2", "release": "3", "repoid": "fakepbs"}
        assert answer.headers["content-type"] == "application/json;charset=UTF-8"
    streams[1].close()
    await task
    assert pbs.counters.connection_count == 1
    assert pbs.counters.requests["GET /version"] == 3


async def test_connection_ends_behind_the_reply_if_the_client_says_so(pbs: FakePbs) -> None:
    streams, task = pbs.connect()
    headers = {**TOKEN_HEADERS, "Connection": "close"}
    answer = await http1(streams, "GET", api("ping"), headers=headers)
    assert answer.value == {"pong": True}
    await task
    assert await streams[0].read() == b""


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("/", 404, "Path '' not found."),
        ("/api2/json/nothing", 404, "Path '/api2/json/nothing' not found."),
        ("/api2/json/admin/.hidden", 400, "Path contains illegal components."),
        ("/api2/json/version?x=" + "y" * 3072, 414, "Request URI too long"),
    ],
)
async def test_target_that_leads_nowhere_is_refused(
    pbs: FakePbs, target: str, status: int, text: str
) -> None:
    answer = await ask(pbs, "GET", target)
    assert (answer.status, answer.text) == (status, text)


@pytest.mark.parametrize(
    "raw",
    [b"hello\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n", b"\x16\x03\x01", b"GET / HTTP/1.1\r\nx\r\n\r\n"],
)
async def test_what_is_no_request_ends_the_connection(pbs: FakePbs, raw: bytes) -> None:
    (reader, writer), task = pbs.connect()
    writer.write(raw)
    writer.write_eof()
    await task
    with pytest.raises(ConnectionResetError):
        await reader.read()


async def test_body_of_another_type_or_too_long_is_refused(pbs: FakePbs) -> None:
    target = api("admin/datastore/tank/prune")
    for kind, body, text in (
        ("text/plain", b"x", 'unsupported content type "text/plain"'),
        ("application/json", b"[]", "parameter verification failed: Expected an object."),
        ("application/json", b" " * (512 * 1024 + 1), "Request body too large"),
    ):
        headers = {**TOKEN_HEADERS, "Content-Type": kind}
        answer = await ask(pbs, "POST", target, headers=headers, body=body)
        assert (answer.status, answer.text) == (400, text)


async def test_query_beside_a_json_body_is_not_looked_at(pbs: FakePbs) -> None:
    headers = {**TOKEN_HEADERS, "Content-Type": "application/json"}
    target = api("admin/datastore/tank/namespace", name="a", colour="red")
    answer = await ask(pbs, "POST", target, headers=headers, body=b'{"name": "b"}')
    assert answer.value == "b"


async def test_unknown_parameter_of_an_endpoint_is_refused(pbs: FakePbs) -> None:
    async with session(pbs) as opened:
        answer = await opened.call("POST", "finish", force=1)
        assert answer.text == (
            "parameter verification failed - 'force': schema does not allow additional properties."
        )
        answer = await opened.call("POST", "fixed_close", wid=0, chunk_count=1, csum="ab")
        assert answer.text == (
            "parameter verification failed:\n"
            "- 'wid': value must have a minimum value of 1 (got 0)\n"
            "- 'csum': value does not match the regex pattern\n"
            "- 'size': parameter is missing and it is not optional.\n"
        )


@pytest.mark.parametrize(
    ("shape", "value", "text"),
    [
        (Integer(1, 5), "6", "value must have a maximum value of 5 (got 6)"),
        (Integer(1, 5), "x", "invalid digit found in string"),
        (Integer(1, 5), True, "Expected integer value."),
        (Text("a+"), 7, "Expected string value."),
        (Text("a+", 2), "aaa", "value may only be 2 characters long"),
        (Boolean(), "perhaps", "Expected boolean value."),
        (ListOf(Integer(1, 5)), 7, "Expected array - got scalar value."),
    ],
)
def test_value_of_another_shape_is_refused(shape: Shape, value: object, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_set({"x": value}, [Parameter("x", shape)])
    assert caught.value.text == f"parameter verification failed - 'x': {text}"


@pytest.mark.parametrize("word", ["1", "true", "yes", "on", True])
def test_truth_has_four_spellings(word: object) -> None:
    assert read_set({"x": word}, [Parameter("x", Boolean())]) == {"x": True}
    assert read_set({}, [Parameter("x", Boolean(), is_optional=True)]) == {}
