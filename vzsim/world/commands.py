"""Programs of a simulated node, as the `CommandRunner` port: functions under a name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

Program = Callable[[Sequence[str], tuple[int, ...]], Awaitable[tuple[int, Sequence[str]]]]
"""Gets its arguments and the descriptors it was passed; returns exit status and lines."""


async def _do_nothing(argv: Sequence[str], pass_fds: tuple[int, ...]) -> tuple[int, Sequence[str]]:
    return 0, ()


class SimulatedCommands:
    """Finds and runs what the world put in `programs`.

    Attributes:
        calls: all argument vectors.
        environments: what each call was given besides, in the same order.
    """

    def __init__(self) -> None:
        self.programs: dict[str, Program] = {"ionice": _do_nothing}
        self.calls: list[tuple[str, ...]] = []
        self.environments: list[dict[str, str]] = []

    def find(self, program: str) -> str | None:
        """Path of a program, or None."""
        return f"/usr/bin/{program}" if program in self.programs else None

    async def run(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> tuple[int, Sequence[str]]:
        """Run a program to its end."""
        self.calls.append(tuple(argv))
        self.environments.append(dict(environment or {}))
        return await self.programs[argv[0].rpartition("/")[2]](argv, tuple(pass_fds))
