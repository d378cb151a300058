"""What outlets talk to."""

from collections.abc import Iterator

import pytest

from tests.outlets.web_hook import WebHook, serving_web_hook


@pytest.fixture
def web_hook() -> Iterator[WebHook]:
    """A web server that keeps what is posted to it."""
    with serving_web_hook() as hook:
        yield hook
