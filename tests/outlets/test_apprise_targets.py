"""Targets of apprise, told by real requests to a server of our own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.outlets.messages import MESSAGE
from tests.outlets.web_hook import WebHook
from vzdump_qemu.errors import BackupError, ConfigError
from vzdump_qemu.outlets.apprise_targets import open_apprise_targets

SECRET = "s3cret"


async def test_target_gets_subject_and_summary(web_hook: WebHook) -> None:
    [outlet] = open_apprise_targets([f"json://127.0.0.1:{web_hook.port}/hook"])
    await outlet.send(MESSAGE)
    [body] = web_hook.bodies
    told = json.loads(body)
    assert (told["title"], told["message"]) == (MESSAGE.subject, MESSAGE.summary)
    assert told["type"] == "success"


async def test_failed_job_is_a_failure_at_the_target(web_hook: WebHook) -> None:
    [outlet] = open_apprise_targets([f"json://127.0.0.1:{web_hook.port}/hook"])
    await outlet.send(replace(MESSAGE, failed=True))
    assert json.loads(web_hook.bodies[0])["type"] == "failure"


async def test_target_that_refuses_is_an_error_without_its_secret(web_hook: WebHook) -> None:
    web_hook.status = 500
    [outlet] = open_apprise_targets([f"json://op:{SECRET}@127.0.0.1:{web_hook.port}/{SECRET}"])
    with pytest.raises(BackupError) as caught:
        await outlet.send(MESSAGE)
    assert str(caught.value) == "the target 'json://...' did not take it"
    assert outlet.name == "json://..."


@pytest.mark.parametrize(
    ("url", "shown"),
    [(f"nosuch://{SECRET}", "'nosuch://...'"), (SECRET, "'?://...'"), ("json://", "'json://...'")],
)
def test_url_that_is_not_understood_is_refused_without_its_secret(url: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_apprise_targets(["json://127.0.0.1", url])
    assert str(caught.value) == f"option 'notify': target 2 ({shown}) is not understood"
    assert SECRET not in str(caught.value) + caught.value.hint
