"""Virtual time, deadlocks, seeded order."""

from __future__ import annotations

import asyncio
import time

import pytest

from vzsim.kernel import Chance, Deadlock, SimulatedLoop, run_simulated


def test_simulated_sleep_of_a_day_takes_no_time() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(86_400)
        return loop.time()

    began_s = time.perf_counter()
    assert run_simulated(main()) == pytest.approx(86_400)
    assert time.perf_counter() - began_s < 5


def test_simulated_timeout_fires_at_its_instant() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.5):
                await asyncio.Event().wait()
        return loop.time()

    assert run_simulated(main()) == pytest.approx(7.5)


def test_simulation_that_waits_for_ever_is_found() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_simulated(main())


def _order(seed: int) -> list[int]:
    async def main() -> list[int]:
        order: list[int] = []

        async def step(index: int) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                order.append(index)

        await asyncio.gather(*(step(index) for index in range(6)))
        return order

    return run_simulated(main(), shuffle=Chance(seed).of("scheduler").stream())


def test_scheduling_order_depends_on_the_seed_alone() -> None:
    assert _order(1) == _order(1)
    assert len({tuple(_order(seed)) for seed in range(8)}) > 1


def test_chance_of_one_component_is_untouched_by_another() -> None:
    alone = Chance(5).of("disk").stream().random()
    other = Chance(5)
    other.of("agent").stream().random()
    assert other.of("disk").stream().random() == alone


def test_observer_that_sets_a_timer_is_called_back_before_time_moves_past_it() -> None:
    called_s = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        seen: list[float] = []

        def look() -> None:
            if not seen:
                seen.append(loop.time())
                loop.call_later(0.5, lambda: called_s.append(loop.time()))

        loop.observe(look)
        await asyncio.sleep(10)

    run_simulated(main())
    assert called_s == [0.5]


def test_cancelled_timers_move_no_time_and_leave_the_others_in_order() -> None:
    called: list[int] = []

    async def main() -> float:
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(1 + index, called.append, index) for index in range(300)]
        for index, timer in enumerate(timers):
            if index % 100:
                timer.cancel()
        await asyncio.sleep(250)
        return loop.time()

    assert run_simulated(main()) == 250
    assert called == [0, 100, 200]
