"""The kernel of a simulation: virtual time, seeded scheduling, seeded chance per component."""

from vzsim.kernel.chance import Chance
from vzsim.kernel.garbage import collecting_seldom, keep_all
from vzsim.kernel.loop import Deadlock, SimulatedLoop, run_simulated

__all__ = [
    "Chance",
    "Deadlock",
    "SimulatedLoop",
    "collecting_seldom",
    "keep_all",
    "run_simulated",
]
