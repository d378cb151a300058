"""How soon a guardian comes back to what it could not put back at once."""

from __future__ import annotations

import pytest

from vzsim.explore import replay
from vzsim.token import Token


@pytest.mark.parametrize("scenario", ["pull-running", "snapshot-running"])
def test_frozen_guest_is_thawed_soon_after_its_agent_can_be_reached_again(scenario: str) -> None:
    faults = "kill-tool@agent.thaw#1,recovery.agent.connect#1:other-client+700s"
    report = replay(Token.parse(f"{scenario}/0/{faults}"))
    assert [violation.render() for violation in report.violations] == []
    assert 700 < report.evidences[0].observed.frozen.longest_s < 715
