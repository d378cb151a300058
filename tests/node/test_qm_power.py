"""Power through the platform's tools."""

from __future__ import annotations

import pytest

from vzdump_qemu.errors import PowerError
from vzdump_qemu.node.qm_power import QmPower


class FakeCommands:
    """Answers every program alike and keeps what was asked."""

    def __init__(self, status: int = 0, lines=()) -> None:
        self.status = status
        self.lines = lines
        self.asked: list[list[str]] = []

    async def run(self, argv, *, stdout_fd=None):
        self.asked.append(list(argv))
        return self.status, self.lines

    def find(self, program):
        return None


@pytest.mark.parametrize(
    ("act", "argv"),
    [
        (lambda power: power.start(), "qm start 100 --skiplock"),
        (lambda power: power.suspend(), "qm suspend 100 --skiplock"),
        (lambda power: power.resume(), "qm resume 100 --skiplock"),
        (
            lambda power: power.shut_down(timeout_s=600.0),
            "qm shutdown 100 --skiplock --keepActive --timeout 600",
        ),
    ],
)
async def test_qm_power_runs_the_platforms_command(bridge, act, argv):
    commands = FakeCommands(lines=["a line"])
    assert await act(QmPower(100, commands=commands, bridge=bridge)) == ["a line"]
    assert commands.asked == [argv.split()]


async def test_qm_power_failure_tells_command_and_status(bridge):
    commands = FakeCommands(255, ["trying", "VM quit/powerdown failed - got timeout"])
    power = QmPower(100, commands=commands, bridge=bridge)
    with pytest.raises(PowerError) as caught:
        await power.shut_down(timeout_s=1)
    assert str(caught.value) == (
        "command 'qm shutdown 100 --skiplock --keepActive --timeout 1' failed: exit code 255"
    )
    assert caught.value.hint == "VM quit/powerdown failed - got timeout"


async def test_qm_power_ended_by_signal_tells_it(bridge):
    power = QmPower(100, commands=FakeCommands(-9), bridge=bridge)
    with pytest.raises(PowerError, match=r"^command 'qm resume 100 --skiplock' failed: got signal"):
        await power.resume()


async def test_paused_start_and_stop_go_through_the_library(bridge, stub_calls):
    commands = FakeCommands()
    power = QmPower(100, commands=commands, bridge=bridge)
    assert await power.start_paused() == ["generating cloud-init ISO"]
    assert await power.stop() == ["trying to acquire lock...", " OK"]
    assert [call[0] for call in stub_calls()] == ["vm_start", "vm_stop"]
    assert commands.asked == []
