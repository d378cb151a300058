"""One answer of `query-backup` that never comes costs its time limit, not the backup."""

from __future__ import annotations

import pytest

from vzsim.evidence import Ending
from vzsim.explore import replay
from vzsim.token import Token


@pytest.mark.parametrize("kind", ["reply-lost", "wrong-id"])
def test_lost_answer_of_the_longest_limit_does_not_end_the_run(kind: str) -> None:
    report = replay(Token.parse(f"snapshot-running/1/query-backup#2:{kind}"))
    assert [fault.site for fault in report.triggered] == ["query-backup"]
    assert report.evidences[0].ending is Ending.OK
    assert report.violations == ()
