"""This device's time, where its clock may not be set, or be set wrong. Standard library only.

The floor is the earliest time that it can be: the release of this program, the beginning of the certificate in use,
the time of a server that was authenticated last, and the time saved while a connection was up. A clock below the floor
is not set: dates prove nothing by it. A clock above it is believed, unless the time of an authenticated server, its
witness, contradicts it: the Date of an EST answer over a chain that verified (but for the dates, where they were the
obstacle).

Who holds the key of a server certificate that was valid after the floor can set this device's time to any moment in
that certificate's validity; nobody can set it below the floor, but where its own clock agrees.
"""

import contextlib
import functools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from device_agent.log.event_log import system_clock
from device_agent.store.atomic_files import read_capped, write_atomically
from device_agent.store.identity_store import IdentityStore
from fleet.est_client.server_checks import ServerTime
from fleet.est_client.validity import CLOCK_FLOOR

RELEASED = datetime(2026, 6, 1, tzinfo=UTC)  # no device runs this program before
LATEST = RELEASED + timedelta(days=50 * 365)  # no device runs it after: arithmetic on any time stays in the calendar
TOLERANCE = timedelta(minutes=5)  # two clocks that differ by less agree
DRIFT = 1e-3  # share of the time since; a bad quartz is ten times better
WITNESSED_AGAIN = timedelta(days=1)  # between two records of a clock that is right, for the sake of the flash

WITNESS_NAME, SAVED_NAME = "clock.json", "saved-time.txt"
FILE_SIZE_MAX = 1024  # bytes
UPTIME_SECONDS_MAX = 1e10  # 300 years
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Witness:
    """A server's time that was believed, and when that was."""

    server_time: datetime
    boot_id: str
    uptime_seconds: float
    """Since that boot, suspends included."""

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"server_time": self.server_time.isoformat()})

    @classmethod
    def from_json(cls, text: bytes) -> "Witness | None":
        """None if it cannot be read."""
        try:
            tree = json.loads(text)
            at, uptime = datetime.fromisoformat(tree["server_time"]), float(tree["uptime_seconds"])
            valid = at.tzinfo is not None and RELEASED <= at <= LATEST and 0 <= uptime < UPTIME_SECONDS_MAX
            return cls(at.astimezone(UTC), str(tree["boot_id"]), uptime) if valid else None
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            return None


@dataclass(frozen=True, slots=True)
class Reading:
    """`now`: the system's time, or a server's time since then where the system's is wrong."""

    now: datetime
    is_set: bool
    """Dates can be judged by `now`."""
    corrected: bool = False
    """The system's clock is wrong."""

    @property
    def judges_dates(self) -> tuple[bool, datetime | None]:
        """Whether the system's clock can judge a server's dates; the time that does instead, if it is known better."""
        return self.is_set and not self.corrected, self.now if self.corrected else None


@dataclass(frozen=True, slots=True)
class Uptime:
    """Time since this machine's boot, which no setting of the clock changes."""

    boot_id: str
    seconds: float


def read_clock(system: datetime, uptime: Uptime, witness: Witness | None, floor: datetime) -> Reading:
    """The time, from the system's clock and what is known besides. Pure."""
    if witness is not None and uptime.boot_id and witness.boot_id == uptime.boot_id:
        elapsed = timedelta(seconds=min(UPTIME_SECONDS_MAX, max(0.0, uptime.seconds - witness.uptime_seconds)))
        now = witness.server_time + elapsed
        if abs(system - now) > TOLERANCE + elapsed * DRIFT:
            return Reading(now, is_set=True, corrected=True)
        return Reading(system, is_set=True)
    return Reading(system, is_set=system >= floor)


def is_believed(said: ServerTime, system: datetime, floor: datetime) -> bool:
    """Whether a server's time counts. Pure.

    It must lie in the validity of the server's own certificate, which may have no end (RFC 5280, 4.1.2.5), and before
    LATEST. Below the floor it counts if the system's clock agrees:
    then the floor was wrong, as after a server whose clock was fast.
    """
    if not said.begin <= said.at <= said.end or not RELEASED <= said.at <= LATEST:
        return False
    return said.at >= floor or abs(said.at - system) <= TOLERANCE


@functools.cache
def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text().strip()[:64]
    return ""


def _uptime() -> Uptime:
    boot_id = _boot_id()
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return Uptime(boot_id, time.monotonic() if clock is None else time.clock_gettime(clock))


class DeviceClock:
    """The clock of the device in `home`. Call `load` when another process may have learned the time."""

    def __init__(self, home: Path, system: Callable[[], datetime], uptime: Callable[[], Uptime] = _uptime) -> None:
        self._home = home
        self._system = system
        self._uptime = uptime
        self._saved_at = CLOCK_FLOOR
        self._witness: Witness | None = None
        self.own_begin = CLOCK_FLOOR
        """notBefore of the certificate in use."""
        self.load()

    def load(self) -> None:
        """Read what is known from the home."""
        self._witness = Witness.from_json(_read(self._home / WITNESS_NAME))
        self._saved_at = _time(_read(self._home / SAVED_NAME))

    @property
    def floor(self) -> datetime:
        """The earliest time that it can be now."""
        known = self._witness.server_time if self._witness else RELEASED
        return max(RELEASED, self.own_begin, self._saved_at, known)

    def reading(self) -> Reading:
        """The time now, and what is known of it."""
        return read_clock(self._system(), self._uptime(), self._witness, self.floor)

    def now(self) -> datetime:
        """The time now."""
        return self.reading().now

    def judges_dates(self) -> tuple[bool, datetime | None]:
        """Whether the system's clock can judge a server's dates; the time that does instead, if it is known better."""
        return self.reading().judges_dates

    def skew_seconds(self) -> float:
        """By how much the system's clock is ahead of the time that is believed."""
        return (self._system() - self.reading().now).total_seconds()

    def learn(self, said: ServerTime | None) -> bool:
        """Take a server's authenticated time. Whether it is another than the system's."""
        before = self.reading()
        if said is None or not is_believed(said, self._system(), self.floor):
            return False
        agrees = abs(said.at - before.now) <= TOLERANCE
        known, uptime = self._witness, self._uptime()
        if (
            not agrees
            or said.at < self.floor
            or known is None
            or said.at - known.server_time >= WITNESSED_AGAIN
            or (known.boot_id != uptime.boot_id)
        ):
            self._witness = Witness(said.at, uptime.boot_id, uptime.seconds)
            with contextlib.suppress(OSError):  # a full disk costs other processes this knowledge, and nothing else
                write_atomically(self._home / WITNESS_NAME, self._witness.to_json().encode())
                if self._saved_at > said.at:
                    (self._home / SAVED_NAME).unlink(missing_ok=True)
            self._saved_at = min(self._saved_at, said.at)
        return abs(said.at - self._system()) > TOLERANCE

    def save(self) -> None:
        """Keep the time, once a day. Call it while a server is connected whose dates were judged by this clock."""
        reading = self.reading()
        if reading.is_set and reading.now <= LATEST and reading.now - self._saved_at >= WITNESSED_AGAIN:
            self._saved_at = reading.now
            with contextlib.suppress(OSError):  # a full disk costs nothing but this floor
                write_atomically(self._home / SAVED_NAME, f"{reading.now.isoformat()}\n".encode())


def device_clock(home: Path, system: Callable[[], datetime] = system_clock) -> DeviceClock:
    """The clock of the device in `home`, by which a command judges dates as the running agent does."""
    clock, store = DeviceClock(home, system), IdentityStore(home)
    if (identity := store.current() or store.candidate()) is not None:
        clock.own_begin = identity.lifetime.not_before
    return clock


def _read(file: Path) -> bytes:
    try:
        return read_capped(file, FILE_SIZE_MAX)
    except OSError:
        return b""


def _time(text: bytes) -> datetime:
    try:
        at = datetime.fromisoformat(text.decode("ascii").strip())
        valid = at.tzinfo is not None and CLOCK_FLOOR <= at <= LATEST
        return at.astimezone(UTC) if valid else CLOCK_FLOOR
    except (ValueError, OverflowError):
        return CLOCK_FLOOR
