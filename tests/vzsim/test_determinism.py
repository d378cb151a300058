"""The same run twice is the same log, byte for byte, in another process with another hash seed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vzsim.explore import replay
from vzsim.token import Token

TOKENS = [
    "snapshot-running/1/",
    "snapshot-running/7/agent.freeze#1:stall+40s,backup#1:job-fails",
    "fleecing/8/query-backup#1:reply-lost",
    "stop-running/9/cancel-tool@clock.sleep#1",
    "suspend-running/10/kill-tool@backup#1",
    "snapshot-running/11/power-loss@files.fsync-directory#1",
    "stop-running/12/second-run@clock.sleep#2",
    "batch-parallel/4/vm101/backup#1:stall+40s,kill-tool@vm102/agent.thaw#1",
]


@pytest.mark.parametrize("text", TOKENS)
def test_same_token_twice_gives_the_same_log(text: str) -> None:
    first = replay(Token.parse(text)).log.render()
    assert first == replay(Token.parse(text)).log.render()
    assert len(first) > 1000


def test_another_seed_gives_another_log() -> None:
    logs = {replay(Token.parse(f"snapshot-running/{seed}/")).log.render() for seed in range(3)}
    assert len(logs) == 3


@pytest.mark.slow
def test_another_process_with_another_hash_seed_gives_the_same_log() -> None:
    code = (
        "from vzsim.explore import replay\n"
        "from vzsim.token import Token\n"
        "import sys\n"
        "for text in sys.argv[1:]:\n"
        "    sys.stdout.write(replay(Token.parse(text)).log.render())\n"
    )
    here = "".join(replay(Token.parse(text)).log.render() for text in TOKENS)
    for hash_seed in ("1", "271828"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code, *TOKENS],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == here
