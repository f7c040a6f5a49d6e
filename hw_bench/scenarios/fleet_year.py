"""A year of a fleet in virtual time: outages, reboots, wrong clocks, a new root CA, a revoked batch.

The devices are the agent's own code, see `hw_bench/simulation/device.py`; the fleet is modelled.
"""

import heapq
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from device_agent.config.agent_config import NewHome, read_config, write_config
from device_agent.store.identity_store import IdentityStore
from hw_bench.plot import curve
from hw_bench.processes import BenchError, pick_cores
from hw_bench.report import Figure, Report
from hw_bench.simulation.authority import Authority, Outage, Rules
from hw_bench.simulation.device import Board, SimulatedAgent, World
from hw_bench.turns import Plan, Progress, machine

HOUR, DAY, HOURS_A_DAY = 3600.0, 86_400.0, 24
START = datetime(2027, 1, 1, tzinfo=UTC)
IN_MEMORY = Path("/dev/shm")  # noqa: S108 # the homes of a run need no disk
STORM_MINUTES = 60
REVOKED_FOR = 7 * DAY


@dataclass(frozen=True, slots=True)
class Mishap:
    """Something that happens to one device."""

    at: float
    act: Callable[["Device"], None]


@dataclass(slots=True)
class Device:
    board: Board
    agent: SimulatedAgent | None
    mishaps: list[Mishap] = field(default_factory=list)
    due_at: float = 0.0
    up_since: float | None = None
    connected_seconds: float = 0.0
    off_seconds: float = 0.0
    revoked: bool = False

    def note(self, now: float) -> None:
        """Count the time that it was connected."""
        if self.up_since is not None:
            self.connected_seconds += now - self.up_since
        self.up_since = now if self.agent is not None and self.agent.is_connected else None


@dataclass(frozen=True, slots=True)
class FleetYear:
    """`days` of `devices` devices."""

    name: str = "fleet-year"
    devices: int = 100
    days: int = 365

    def description(self) -> str:
        return (
            f"{self.days} days of --sessions devices (default {self.devices}) in virtual time: outages, reboots, wrong "
            "clocks, a new root CA and a revoked batch; the agent's own decisions and store, at a modelled fleet"
        )

    def run(self, plan: Plan, progress: Progress) -> Report:
        seed = plan.seed if plan.seed is not None else Random().randrange(2**32)  # noqa: S311
        count = plan.sessions or self.devices
        folder = IN_MEMORY if IN_MEMORY.is_dir() else None
        with tempfile.TemporaryDirectory(prefix="hw-bench-", dir=folder) as name:
            year = Year(Path(name), count, self.days, Random(seed))  # noqa: S311
            year.run(progress)
        if year.bricks:
            raise BenchError(f"devices did not come back (seed {seed}): {', '.join(year.bricks[:5])}.")
        if plan.picture is not None:
            plan.picture.write_bytes(curve("Renewals an hour, by day", year.renewals_by_hour(), HOURS_A_DAY))
            progress(f"wrote {plan.picture}")
        return Report(
            self.name,
            self.description(),
            "renewals",
            plan.seconds,
            1,
            machine(pick_cores()),
            (),
            (),
            (),
            (),
            checks=(f"seed {seed}; {count} devices, {self.days} days", *year.story()),
            figures=tuple(year.figures()),
        )


class Year:
    """The world, its devices and what happens to them."""

    def __init__(self, folder: Path, count: int, days: int, random: Random) -> None:
        self.days, self.end, self._random = days, days * DAY, random
        part = self.end / 365  # a shorter run has the same story, with certificates of shorter lives
        self.night = Outage(45 * part, 45 * part + 6 * HOUR)
        self.est_away = Outage(80 * part, 85 * part, est_only=True)
        self.day_off = Outage(150 * part, 151 * part)
        blips = (random.random() * self.end for _ in range(12))
        outages = (self.night, self.est_away, self.day_off, *(Outage(at, at + 900 * random.random()) for at in blips))
        self.rules = Rules(
            life=timedelta(days=30 * part / DAY),
            grace=timedelta(days=60 * part / DAY),
            issued_per_minute_max=max(2, count // 100),
            outages=outages,
            new_root_at=190 * part,
            old_root_ends_at=290 * part,
        )
        self.revoked_at = 240 * part
        self.authority = Authority(self.rules, START)
        self.world = World(self.authority)
        self._heap: list[tuple[float, int]] = []
        self._connects: Counter[int] = Counter()
        self.turns = 0
        self.devices = [self._device(folder, number) for number in range(count)]
        self._batch = set(random.sample(range(count), max(1, count // 50)))

    def _device(self, folder: Path, number: int) -> Device:
        name = f"d-{number}"
        home = folder / name
        write_config(home, NewHome(name, "https://est.example:8443", "mqtt.example", 8883, b"modelled\n"))
        board = Board(name, home, self.world, Random(self._random.random()))  # noqa: S311
        store = IdentityStore(home)
        slot, key = store.spare_slot(), board.random.randbytes(32)
        store.write_key(slot, key)
        store.complete(slot, b"first", self.authority.issue(name, key, 0.0))
        device = Device(board, None)
        self._boot(device)
        device.mishaps = sorted(self._mishaps(device), key=lambda one: one.at)
        return device

    def _mishaps(self, device: Device) -> Iterable[Mishap]:
        random, end = device.board.random, self.end
        battery = random.random() < 2 / 3
        no_ntp = random.random() < 0.02
        for _ in range(int(random.expovariate(1 / 12))):
            at = random.random() * end
            yield Mishap(at, lambda one: self._reboot(one, battery))
            if not battery and not no_ntp:
                yield Mishap(at + 60 + 1800 * random.random(), self._set_clock)
        if random.random() < 0.1:  # a clock that somebody sets wrong, for hours
            at = random.random() * end
            ahead = random.choice(
                (timedelta(days=20 * 365), timedelta(hours=-3), timedelta(days=1), -timedelta(days=400))
            )
            yield Mishap(at, lambda one: setattr(one.board, "clock_ahead", ahead))
            yield Mishap(at + 12 * HOUR * random.random(), self._set_clock)
        if random.random() < 0.02:  # in a drawer, for longer than its certificate lasts
            at, days = random.random() * end * 0.8, (35 + 10 * random.random()) * self.days / 365
            yield Mishap(at, self._switch_off)
            yield Mishap(at + days * DAY, lambda one: self._switch_on(one, battery, days))

    def _boot(self, device: Device) -> None:
        board = device.board
        board.boots, board.booted_at = board.boots + 1, self.world.now
        device.agent = SimulatedAgent(read_config(board.home), board)

    def _switch_off(self, device: Device) -> None:
        if device.agent is not None:
            device.agent.cut_off()
        device.agent = None

    def _switch_on(self, device: Device, battery: bool, days: float = 0.0) -> None:
        if device.agent is None:
            device.off_seconds += days * DAY
            if not battery:
                device.board.forget_time()
            self._boot(device)

    def _reboot(self, device: Device, battery: bool) -> None:
        if device.agent is not None:
            self._switch_off(device)
            self._switch_on(device, battery)

    def _set_clock(self, device: Device) -> None:
        device.board.clock_ahead = timedelta()

    def run(self, progress: Progress) -> None:
        for number, device in enumerate(self.devices):
            self._wake(number, device)
        shared = sorted({self.revoked_at, *(at for one in self.rules.outages for at in (one.begin, one.end))})
        told = 0.0
        for at in (*(at for at in shared if at < self.end), self.end):
            while self._heap and self._heap[0][0] < at:
                self._step()
                if self.world.now - told >= 30 * DAY:
                    told = self.world.now
                    progress(f"day {told / DAY:.0f} of {self.days}: {len(self.authority.issued_at):,} certificates")
            self.world.now = at
            if at == self.revoked_at:
                self._revoke()
            for number, device in enumerate(self.devices):
                self._wake(number, device)
        for device in self.devices:
            device.note(self.end)

    def _step(self) -> None:
        at, number = heapq.heappop(self._heap)
        device = self.devices[number]
        if at != device.due_at:
            return  # it was woken before
        self.world.now = at
        while device.mishaps and device.mishaps[0].at <= at:
            device.mishaps.pop(0).act(device)
        self._wake(number, device)

    def _wake(self, number: int, device: Device) -> None:
        self.turns += 1
        now, was_up = self.world.now, device.up_since is not None
        due = device.agent.turn() if device.agent is not None else self.end
        device.note(now)
        if device.up_since is not None and not was_up:
            self._connects[int(now // 60)] += 1
        device.due_at = min(due, device.mishaps[0].at) if device.mishaps else due
        heapq.heappush(self._heap, (device.due_at, number))

    def _revoke(self) -> None:
        """Of the batch, none is missed after a week; until then each goes on trying."""
        for number in self._batch:
            device = self.devices[number]
            device.revoked, name = True, device.board.name
            self.authority.refused[name] = self.authority.asked[name] = 0
            self.authority.account(device.board.name).revoked = True
            device.mishaps = [Mishap(self.world.now + REVOKED_FOR, self._remove)]

    def _remove(self, device: Device) -> None:
        if device.agent is not None and not device.agent.is_connected:
            self._switch_off(device)

    # What came of it

    def renewals_by_hour(self) -> Sequence[int]:
        found = Counter(int(at // HOUR) for at in self.authority.issued_at if at > 0)
        return [found[hour] for hour in range(int(self.end // HOUR))]

    @property
    def bricks(self) -> list[str]:
        """Devices that are in order, switched on, and not connected at the end."""
        return [one.board.name for one in self.devices if not one.revoked and one.agent and not one.agent.is_connected]

    def storm(self, after: Outage) -> tuple[int, int]:
        """(most connects in one minute, in all) within the hour after an outage."""
        first = int(after.end // 60)
        counts = [self._connects[minute] for minute in range(first, first + STORM_MINUTES)]
        return max(counts), sum(counts)

    def figures(self) -> Iterable[Figure]:
        kept = [one for one in self.devices if not one.revoked]
        away = sum(min(one.end, self.end) - one.begin for one in self.rules.outages if not one.est_only)
        possible = sum(self.end - one.off_seconds - away for one in kept)
        renewals = self.renewals_by_hour()
        most, back = self.storm(self.day_off)
        least = self.end / (self.rules.life.total_seconds() * 0.75)
        used = sum(len(self.authority.account(one.board.name).issued) - 1 for one in kept) / len(kept)
        yield Figure("devices that did not come back", len(self.bricks), "", at_most=0)
        connected = [one for one in self.devices if one.revoked and one.agent and one.agent.is_connected]
        yield Figure("revoked devices that are connected", len(connected), "", at_most=0)
        for what, found in (("CONNECTs", self.authority.refused), ("EST requests", self.authority.asked)):
            of_batch = sum(found[one.board.name] for one in self.devices if one.revoked)
            yield Figure(f"{what} of a revoked device in its first week", of_batch / max(1, len(self._batch)), "")
        share = 100 * sum(one.connected_seconds for one in kept) / possible
        yield Figure("connected, of the time in which the gateway and the device were on", share, "%", at_least=99)
        yield Figure("renewed certificates a device", used, "", at_least=least * 0.9, at_most=least * 1.5)
        yield Figure("most renewals in an hour, of all devices", 100 * max(renewals) / len(self.devices), "%")
        yield Figure(
            "mean renewals in an hour, of all devices", 100 * sum(renewals) / len(renewals) / len(self.devices), "%"
        )
        yield Figure("back within an hour after a day's outage", 100 * back / len(self.devices), "%")
        yield Figure("of these, most in one minute", 100 * most / max(1, back), "%")

    def story(self) -> Iterable[str]:
        for name, outage in (("no answer", self.night), ("no EST", self.est_away), ("no answer", self.day_off)):
            yield f"day {outage.begin / DAY:.0f}: {name} for {(outage.end - outage.begin) / HOUR:.0f} hours"
        new, ends = (at / DAY for at in (self.rules.new_root_at, self.rules.old_root_ends_at))
        yield f"day {new:.0f}: a new root; day {ends:.0f}: the old one ends"
        yield f"day {self.revoked_at / DAY:.0f}: {len(self._batch)} devices revoked"
        boots = sum(one.board.boots - 1 for one in self.devices)
        yield f"{boots:,} reboots, {len(self.authority.issued_at):,} certificates, {self.turns:,} turns of agents"
