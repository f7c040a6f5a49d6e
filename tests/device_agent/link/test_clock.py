"""The device's time: unset, years behind or ahead, jumping, corrected by a server, and not fooled by one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from device_agent.link.clock import (
    LATEST,
    RELEASED,
    SAVED_NAME,
    TOLERANCE,
    WITNESS_NAME,
    DeviceClock,
    Reading,
    Uptime,
    Witness,
    is_believed,
    read_clock,
)
from fleet.est_client.server_checks import ServerTime

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)  # the true time
DAY = timedelta(days=1)
FLOOR = NOW - 30 * DAY
YEAR_9999 = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
BOOT = Uptime("boot-1", 1000.0)
WITNESS = Witness(NOW, "boot-1", 1000.0)


def said(at: datetime, begin: datetime = NOW - 60 * DAY, end: datetime = NOW + 60 * DAY) -> ServerTime:
    return ServerTime(at, begin, end)


UNSET = datetime(1970, 1, 1, tzinfo=UTC)
WRONG = [
    datetime(1970, 1, 1, tzinfo=UTC),
    NOW - 29 * DAY,
    datetime(2047, 3, 1, tzinfo=UTC),
    datetime(2050, 1, 1, tzinfo=UTC),
]


@pytest.mark.parametrize(
    ("system", "is_set"),
    [(UNSET, False), (FLOOR - DAY, False), (FLOOR, True), (NOW, True), (WRONG[-1], True)],
)
def test_without_a_witness_the_floor_alone_speaks(system: datetime, is_set: bool) -> None:
    assert read_clock(system, BOOT, None, FLOOR) == Reading(system, is_set)
    assert read_clock(system, BOOT, Witness(NOW, "another boot", 0.0), FLOOR) == Reading(system, is_set)
    assert read_clock(system, Uptime("", 1000.0), Witness(NOW, "", 0.0), FLOOR) == Reading(system, is_set)


@pytest.mark.parametrize("system", WRONG)
def test_a_witness_of_this_boot_corrects_any_clock(system: datetime) -> None:
    later = Uptime("boot-1", 1000.0 + 3600)
    hour = timedelta(hours=1)
    assert read_clock(system + hour, later, WITNESS, FLOOR) == Reading(NOW + hour, is_set=True, corrected=True)


def test_a_clock_that_is_set_right_meanwhile_counts_again() -> None:
    for system, corrected in ((WRONG[0], True), (NOW + timedelta(minutes=1), False), (WRONG[-1], True), (NOW, False)):
        assert read_clock(system, BOOT, WITNESS, FLOOR).corrected is corrected


def test_clocks_that_drift_apart_still_agree() -> None:
    month = Uptime("boot-1", 1000.0 + 30 * 86400)
    assert not read_clock(NOW + 30 * DAY + timedelta(minutes=20), month, WITNESS, FLOOR).corrected


@pytest.mark.parametrize(
    ("time", "system", "believed"),
    [
        (said(NOW), WRONG[0], True),
        (said(NOW), WRONG[-1], True),
        (said(FLOOR), NOW, True),
        (said(FLOOR - DAY), NOW, False),  # nobody sets it below the floor
        (said(FLOOR - DAY), FLOOR - DAY + TOLERANCE, True),  # but where two clocks agree that the floor is wrong
        (said(NOW + 61 * DAY), NOW, False),  # not by a certificate that would have expired then
        (said(NOW, begin=NOW + DAY), NOW, False),
        (said(RELEASED - DAY, begin=RELEASED - 9 * DAY), RELEASED - DAY, False),
        (said(LATEST, end=YEAR_9999), NOW, True),
        (said(LATEST + DAY, end=YEAR_9999), NOW, False),
        (said(YEAR_9999, end=YEAR_9999), YEAR_9999, False),  # of a certificate that has no end
    ],
)
def test_which_time_of_a_server_is_believed(time: ServerTime, system: datetime, believed: bool) -> None:
    assert is_believed(time, system, FLOOR) is believed


class World:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.system = NOW
        self.uptime = BOOT

    def clock(self) -> DeviceClock:
        return DeviceClock(self.home, lambda: self.system, lambda: self.uptime)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_one_process_learns_another_knows(world: World) -> None:
    world.system = WRONG[-1]
    resident, child = world.clock(), world.clock()
    assert resident.reading() == Reading(world.system, is_set=True)
    assert child.learn(said(NOW))
    resident.load()
    assert resident.reading() == Reading(NOW, is_set=True, corrected=True)
    assert resident.skew_seconds() == (WRONG[-1] - NOW).total_seconds()
    world.uptime = Uptime("boot-2", 5.0)  # after a reboot, it is a floor, and the clock is believed again
    world.system = NOW - DAY
    assert world.clock().floor == NOW
    assert not world.clock().reading().is_set


def test_a_clock_that_is_right_is_recorded_once_a_day(world: World) -> None:
    clock = world.clock()
    assert not clock.learn(said(NOW))
    first = (world.home / WITNESS_NAME).read_bytes()
    world.system = NOW + timedelta(hours=23)
    world.uptime = Uptime("boot-1", 1000.0 + 23 * 3600)
    clock.learn(said(world.system))
    assert (world.home / WITNESS_NAME).read_bytes() == first
    world.system = NOW + DAY
    world.uptime = Uptime("boot-1", 1000.0 + 86400)
    clock.learn(said(world.system))
    assert (world.home / WITNESS_NAME).read_bytes() != first


def test_a_floor_in_the_future_is_overcome_by_two_clocks_that_agree(world: World) -> None:
    world.system = NOW + 50 * DAY
    clock = world.clock()
    clock.save()
    clock.learn(said(NOW + 50 * DAY))  # a server whose clock is fast, and ours with it
    world.system, world.uptime = NOW, Uptime("boot-2", 5.0)
    clock = world.clock()
    assert not clock.reading().is_set
    assert not clock.learn(said(NOW - DAY))  # one alone changes nothing
    assert clock.floor == NOW + 50 * DAY
    clock.learn(said(NOW))
    assert clock.floor == world.clock().floor == NOW
    assert clock.reading() == Reading(NOW, is_set=True)
    assert not (world.home / SAVED_NAME).exists()


def test_the_time_is_saved_once_a_day_and_only_a_time_that_is_known(world: World) -> None:
    clock = world.clock()
    clock.own_begin = NOW + DAY
    clock.save()
    assert not (world.home / SAVED_NAME).exists()
    clock.own_begin = NOW - DAY
    clock.save()
    assert world.clock().floor == NOW
    world.system = NOW + timedelta(hours=23)
    clock.save()
    assert world.clock().floor == NOW


def test_files_that_are_cut_anywhere_or_hold_anything_are_none(world: World) -> None:
    world.system = WRONG[-1]
    world.clock().learn(said(NOW))
    whole = (world.home / WITNESS_NAME).read_bytes()
    for length in range(len(whole)):
        (world.home / WITNESS_NAME).write_bytes(whole[:length])
        assert world.clock().floor == RELEASED
    for odd in (b"[" * 1000, b"null", whole.replace(b"1000.0", b"1e999"), whole.replace(b"1000.0", b"NaN"), b"\xff"):
        (world.home / WITNESS_NAME).write_bytes(odd)
        (world.home / SAVED_NAME).write_bytes(odd)
        assert world.clock().floor == RELEASED


def test_a_server_of_the_year_9999_leaves_no_trace(world: World) -> None:
    clock = world.clock()
    assert not clock.learn(said(YEAR_9999, end=YEAR_9999))
    world.uptime = Uptime("boot-1", 1000.0 + 3600)
    assert clock.reading() == world.clock().reading() == Reading(NOW, is_set=True)


@pytest.mark.parametrize(
    "time",
    [YEAR_9999.isoformat(), "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2020-01-01T00:00:00+00:00"],
)
def test_a_time_that_cannot_be_is_none(world: World, time: str) -> None:
    text = Witness(NOW, "boot-1", 1000.0).to_json().replace(NOW.isoformat(), time)
    (world.home / WITNESS_NAME).write_text(text)
    (world.home / SAVED_NAME).write_text(f"{time}\n")
    world.uptime = Uptime("boot-1", 1000.0 + 3600)
    assert world.clock().floor == RELEASED
    assert world.clock().reading() == Reading(NOW, is_set=True)


def test_a_clock_beyond_all_times_is_not_saved(world: World) -> None:
    world.system = LATEST + DAY
    clock = world.clock()
    clock.save()
    assert clock.floor == RELEASED
    assert not (world.home / SAVED_NAME).exists()


def test_a_disk_that_cannot_be_written_costs_nothing_but_the_record(world: World) -> None:
    world.home = world.home / "missing"
    world.system = WRONG[-1]
    clock = world.clock()
    assert clock.learn(said(NOW))
    clock.save()
    assert clock.reading().now == NOW
