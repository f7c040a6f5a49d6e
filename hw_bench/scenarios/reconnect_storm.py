"""How a fleet of agents comes back after an outage, in virtual time: reconnects a second, and how many at most.

The devices are the agent's own code, see `hw_bench/simulation/device.py`; the gateway is modelled, and takes everyone.
"""

import heapq
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.store.identity_store import IdentityStore
from hw_bench.plot import curve
from hw_bench.processes import pick_cores
from hw_bench.report import Figure, Report
from hw_bench.simulation.authority import Authority, Outage, Rules
from hw_bench.simulation.device import Board, SimulatedAgent, World
from hw_bench.turns import Plan, Progress, machine

START = datetime(2027, 1, 1, tzinfo=UTC)
IN_MEMORY = Path("/dev/shm")  # noqa: S108 # the homes of a run need no disk
CALM_SECONDS = 900.0  # until all have connected for the first time, and their attempts before are forgotten
BACK_SECONDS_MAX = 600.0
PEAK_PERCENT_MAX = 5.0
"""Of the fleet, in one second: a gateway that does a hundred handshakes a second takes back 2,000 devices."""
JUDGED_FROM = 500  # devices: of a few, two in the same second are a large part
SECONDS_A_MINUTE = 60


@dataclass(frozen=True, slots=True)
class ReconnectStorm:
    """`devices` agents with the settings of `device-agent init`, away for `outage_seconds`."""

    name: str = "reconnect-storm"
    devices: int = 1000
    outage_seconds: float = 120.0

    def description(self) -> str:
        return (
            f"--sessions agents (default {self.devices:,}) in virtual time whose gateway is away for "
            f"{self.outage_seconds:.0f} s: reconnects a second by the agent's own backoff, at a modelled gateway"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        seed = plan.seed if plan.seed is not None else Random().randrange(2**32)  # noqa: S311
        count = plan.sessions or self.devices
        folder = IN_MEMORY if IN_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="hw-bench-", dir=folder) as name:
            progress(f"{count:,} devices connect, and lose the gateway for {self.outage_seconds:.0f} s")
            back = seconds_until_back(Path(name), count, self.outage_seconds, Random(seed))  # noqa: S311
        by_second = Counter(int(each) for each in back)
        values = [by_second[second] for second in range(max(by_second, default=0) + 1)]
        if plan.picture is not None:
            title = f"Reconnects a second of {count:,} agents, by minutes after the outage"
            plan.picture.write_bytes(curve(title, values, SECONDS_A_MINUTE))
            progress(f"wrote {plan.picture}")
        return Report(
            self.name,
            self.description(),
            "reconnects",
            plan.seconds,
            1,
            machine(pick_cores()),
            (),
            (),
            (),
            (),
            checks=(f"seed {seed}; {count} devices",),
            figures=_figures(count, back, values),
        )


def _figures(count: int, back: Sequence[float], by_second: Sequence[int]) -> tuple[Figure, ...]:
    peak = max(by_second)
    return (
        Figure(f"devices back, of {count:,}", len(back), "", at_least=count),
        Figure("most reconnects in a second", peak, ""),
        Figure("of the fleet", 100 * peak / count, "%", at_most=PEAK_PERCENT_MAX if count >= JUDGED_FROM else None),
        Figure("that second, after the outage", by_second.index(peak), "s"),
        Figure("until half of them were back", sorted(back)[len(back) // 2] if back else 0.0, "s"),
        Figure("until all were back", max(back, default=0.0), "s", at_most=BACK_SECONDS_MAX),
    )


def seconds_until_back(folder: Path, count: int, outage_seconds: float, random: Random) -> list[float]:
    """Of each of `count` agents that came back within `BACK_SECONDS_MAX`: how long after the outage."""
    outage = Outage(CALM_SECONDS, CALM_SECONDS + outage_seconds)
    world = World(Authority(Rules(outages=(outage,)), START))
    agents = [_agent(folder / f"d-{number}", world, Random(random.random())) for number in range(count)]  # noqa: S311
    back: dict[int, float] = {}
    for at in (outage.begin, outage.end, outage.end + BACK_SECONDS_MAX):
        # A connection that ends is an event to its agent; everything else it does when it is due.
        due = [(agent.turn(), number) for number, agent in enumerate(agents)]
        heapq.heapify(due)
        while due and due[0][0] < at:
            world.now, number = heapq.heappop(due)
            agent = agents[number]
            heapq.heappush(due, (agent.turn(), number))
            if world.now >= outage.end and agent.is_connected:
                back.setdefault(number, world.now - outage.end)
        world.now = at
    return list(back.values())


def _agent(home: Path, world: World, random: Random) -> SimulatedAgent:
    """A device that is enrolled."""
    write_config(home, NewHome(home.name, "https://est.example:8443", "mqtt.example", 8883, b"modelled\n"))
    board = Board(home.name, home, world, random)
    store = IdentityStore(home)
    slot, key = store.spare_slot(), random.randbytes(32)
    store.write_key(slot, key)
    store.complete(slot, b"first", world.authority.issue(home.name, key, 0.0))
    return SimulatedAgent(read_config(home), board)
