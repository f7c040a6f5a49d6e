"""Batches: many callers, few trips."""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence

import pytest

from fleet.domain.errors import Unavailable
from fleet.storage.batching import GATHER_SECONDS_MAX, GATHER_TURNS_MAX, QUIET_TURNS, Batches, Take, Thread
from tests.simulated_time import SimulatedTime, run

DEADLINE_SECONDS = 120.0


def advance(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedTime)
    loop.advance(seconds)


class Trips:
    """A `run` that doubles its items. It takes them at once, and ends each trip only when `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.called = asyncio.Event()
        self.trips: list[list[int]] = []

    async def run(self, take: Take[int]) -> Sequence[object]:
        items = take()
        self.called.set()
        await self.gate.wait()
        self.trips.append(list(items))
        return [ValueError(f"{item} is bad") if item < 0 else item * 2 for item in items]


async def test_what_waits_goes_together() -> None:
    there = Trips()
    batches = Batches(there.run, batch_max=10, under_way_max=100)
    assert await asyncio.gather(*(batches.put(n) for n in range(25))) == [n * 2 for n in range(25)]
    assert there.trips == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    await batches.close()


async def test_those_who_come_one_by_one_go_together_and_a_lone_one_goes_soon() -> None:
    there = Trips()
    batches = Batches(there.run, batch_max=10, under_way_max=100)

    async def late(number: int) -> int:
        for _ in range(number * (QUIET_TURNS - 1)):
            await asyncio.sleep(0)
        answer: int = await batches.put(number)
        return answer

    await asyncio.gather(*(late(n) for n in range(5)))
    assert there.trips == [list(range(5))]
    there.called.clear()
    lone = asyncio.create_task(batches.put(7))
    for _ in range(QUIET_TURNS + 3):
        await asyncio.sleep(0)
    assert there.called.is_set()
    await lone
    await batches.close()


def test_a_steady_stream_does_not_keep_a_batch_from_beginning() -> None:
    async def scene() -> None:
        there = Trips()
        batches = Batches(there.run, batch_max=1000, under_way_max=1000)
        callers = []
        for number in range(4 * GATHER_TURNS_MAX):  # one in each turn of the event loop
            callers.append(asyncio.create_task(batches.put(number)))
            await asyncio.sleep(0)
        await asyncio.gather(*callers)
        assert max(map(len, there.trips)) <= GATHER_TURNS_MAX + QUIET_TURNS
        assert [number for trip in there.trips for number in trip] == list(range(4 * GATHER_TURNS_MAX))
        await batches.close()

    run(scene())


def test_a_busy_loop_keeps_nobody_waiting_for_more_than_moments() -> None:
    """Where each turn of the event loop takes long, a batch does not wait for dozens of them."""

    async def scene() -> None:
        there = Trips()
        batches = Batches(there.run, batch_max=1000, under_way_max=1000)
        clock = asyncio.get_running_loop().time
        begun = clock()

        async def slow_turns() -> None:
            number = 0
            while True:
                number += 1
                callers.append(asyncio.create_task(batches.put(number)))
                advance(0.005)
                await asyncio.sleep(0)

        callers: list[asyncio.Task[object]] = []
        busy = asyncio.create_task(slow_turns())
        await batches.put(0)
        assert clock() - begun <= GATHER_SECONDS_MAX + 0.02
        busy.cancel()
        await asyncio.gather(*callers)
        await batches.close()

    run(scene())


async def test_a_cancelled_caller_gives_its_room_back_whenever_it_goes() -> None:
    there = Trips()
    batches = Batches(there.run, batch_max=2, under_way_max=2)
    for _ in range(5):
        there.gate.clear()
        callers = [asyncio.create_task(batches.put(n)) for n in range(4)]
        for _ in range(10):
            await asyncio.sleep(0)
        for caller in callers:  # two under way, two that wait for room
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        there.gate.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert [await batches.put(7), await batches.put(8)] == [14, 16]
    await batches.close()


async def test_after_cancellations_no_more_are_under_way_than_allowed() -> None:
    there = Trips()
    there.gate.clear()
    batches = Batches(there.run, batch_max=1, under_way_max=3)
    first = asyncio.create_task(batches.put(0))
    await there.called.wait()
    gone = [asyncio.create_task(batches.put(n)) for n in (1, 2)]
    await asyncio.sleep(0)
    for caller in gone:
        caller.cancel()
    there.gate.set()
    await asyncio.gather(first, *gone, return_exceptions=True)
    there.gate.clear()
    there.called.clear()
    callers = [asyncio.create_task(batches.put(n)) for n in range(10)]
    await there.called.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(batches._queue) == 2  # and one is running
    there.gate.set()
    assert await asyncio.gather(*callers) == [n * 2 for n in range(10)]
    await batches.close()


async def test_a_full_batch_does_not_wait_for_more() -> None:
    there = Trips()
    batches = Batches(there.run, batch_max=5, under_way_max=100)
    callers = [asyncio.create_task(batches.put(n)) for n in range(5)]
    turns = 0
    while not there.called.is_set():
        await asyncio.sleep(0)
        turns += 1
    assert turns <= QUIET_TURNS
    await asyncio.gather(*callers)
    await batches.close()


async def test_close_returns_when_all_who_came_are_served_those_who_waited_for_room_too() -> None:
    there = Trips()
    there.gate.clear()
    batches = Batches(there.run, batch_max=1, under_way_max=1)
    callers = [asyncio.create_task(batches.put(n)) for n in range(4)]
    await there.called.wait()
    closing = asyncio.create_task(batches.close())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not closing.done()
    there.gate.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await closing
        assert there.trips == [[0], [1], [2], [3]]
        assert await asyncio.gather(*callers) == [0, 2, 4, 6]


async def test_a_thread_that_cannot_connect_has_ended_with_its_error() -> None:
    def fails() -> sqlite3.Connection:
        raise OSError("no such disk")

    before = set(threading.enumerate())
    with pytest.raises(OSError, match="no such disk"):
        await Thread(fails).start()
    assert set(threading.enumerate()) <= before


async def test_a_thread_runs_a_function_over_its_connection_and_keeps_no_process_alive() -> None:
    before = set(threading.enumerate())
    thread = Thread(lambda: sqlite3.connect(":memory:"))
    await thread.start()
    (own,) = set(threading.enumerate()) - before
    assert own.daemon

    def added(db: sqlite3.Connection, one: int, other: int) -> tuple[int, bool]:
        (found,) = db.execute("SELECT ? + ?", (one, other)).fetchone()
        return found, threading.current_thread() is own

    assert await thread.run(added, 2, 3) == (5, True)
    with pytest.raises(sqlite3.OperationalError):
        await thread.run(lambda db: db.execute("SELECT nothing"))
    await thread.close()


async def test_a_failure_is_its_own_callers_alone() -> None:
    batches = Batches(Trips().run, 10, 100)
    outcomes = await asyncio.gather(*(batches.put(n) for n in (1, -2, 3)), return_exceptions=True)
    assert outcomes[0] == 2
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] == 6
    await batches.close()


async def test_a_trip_that_fails_fails_all_who_were_on_it_and_no_later_one() -> None:
    good = Trips()
    fails = True

    async def run(take: Take[int]) -> Sequence[object]:
        if fails:
            take()
            raise OSError("the disk is gone")
        return await good.run(take)

    batches = Batches(run, 10, 100)
    outcomes = await asyncio.gather(batches.put(1), batches.put(2), return_exceptions=True)
    assert [type(o) for o in outcomes] == [OSError, OSError]
    fails = False
    assert await batches.put(3) == 6
    await batches.close()


async def test_the_queue_is_bounded_and_callers_wait_for_room() -> None:
    there = Trips()
    there.gate.clear()
    batches = Batches(there.run, batch_max=2, under_way_max=3)
    callers = [asyncio.create_task(batches.put(n)) for n in range(20)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert (there.trips, len(batches._queue)) == ([], 1)  # two of three are under way
    there.gate.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await asyncio.gather(*callers) == [n * 2 for n in range(20)]
    await batches.close()


async def test_who_was_cancelled_before_the_trip_stays_at_home() -> None:
    there = Trips()
    there.gate.clear()
    batches = Batches(there.run, 10, 100)
    first = asyncio.create_task(batches.put(0))
    await there.called.wait()
    callers = [asyncio.create_task(batches.put(n)) for n in range(1, 5)]
    await asyncio.sleep(0)
    callers[1].cancel()
    await asyncio.sleep(0)
    there.gate.set()
    await asyncio.gather(first, *callers, return_exceptions=True)
    assert there.trips == [[0], [1, 3, 4]]
    await batches.close()


async def test_close_serves_everyone_who_came_and_nobody_after() -> None:
    there = Trips()
    there.gate.clear()
    batches = Batches(there.run, 2, 3)
    callers = [asyncio.create_task(batches.put(n)) for n in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(batches.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await batches.put(9)
    there.gate.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await closing
        await batches.close()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(o, (int, Unavailable)) for o in outcomes)
    assert outcomes[:3] == [0, 2, 4]


class Lock:
    """A `run` that takes its items in a thread, once it has what it waits for there."""

    def __init__(self) -> None:
        self.held = threading.Lock()
        self.trips: list[list[int]] = []
        self.called = asyncio.Event()

    async def run(self, take: Take[int]) -> Sequence[object]:
        self.called.set()
        return await asyncio.to_thread(self._locked, take)

    def _locked(self, take: Take[int]) -> Sequence[object]:
        if not self.held.acquire(timeout=DEADLINE_SECONDS):
            raise TimeoutError
        try:
            items = list(take())
            self.trips.append(items)
            return items
        finally:
            self.held.release()


async def test_what_comes_while_a_trip_waits_for_its_lock_is_on_it() -> None:
    there = Lock()
    batches = Batches(there.run, 10, 100)
    with there.held:
        first = asyncio.create_task(batches.put(0))
        await there.called.wait()
        callers = [asyncio.create_task(batches.put(n)) for n in range(1, 13)]
        await asyncio.sleep(0)
        callers[4].cancel()
        await asyncio.sleep(0)
    await asyncio.gather(first, *callers, return_exceptions=True)
    assert there.trips == [[0, 1, 2, 3, 4, 6, 7, 8, 9, 10], [11, 12]]
    await batches.close()


async def test_a_trip_whose_callers_have_all_gone_takes_nothing_and_the_next_goes_on() -> None:
    there = Lock()
    batches = Batches(there.run, 10, under_way_max=1)
    with there.held:
        gone = asyncio.create_task(batches.put(0))
        await there.called.wait()
        gone.cancel()
        await asyncio.sleep(0)
    assert await batches.put(1) == 1  # there is room again
    assert there.trips == [[], [1]]
    await batches.close()


async def test_a_trip_that_cannot_begin_fails_those_who_wait_and_no_later_one() -> None:
    good = Trips()
    begins = False

    async def run(take: Take[int]) -> Sequence[object]:
        if not begins:
            raise OSError("the lock is not to be had")
        return await good.run(take)

    batches = Batches(run, 10, 100)
    outcomes = await asyncio.gather(batches.put(1), batches.put(2), return_exceptions=True)
    assert [type(o) for o in outcomes] == [OSError, OSError]
    begins = True
    assert await batches.put(3) == 6
    await batches.close()


async def test_who_gives_up_waiting_for_room_keeps_nobody_from_closing() -> None:
    there = Trips()
    there.gate.clear()
    batches = Batches(there.run, 2, 1)
    served = asyncio.create_task(batches.put(1))
    await there.called.wait()
    waiting = asyncio.create_task(batches.put(2))
    await asyncio.sleep(0)
    closing = asyncio.create_task(batches.close())
    await asyncio.sleep(0)
    waiting.cancel()
    there.gate.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await closing
        assert await served == 2
    assert waiting.cancelled()
    assert there.trips == [[1]]
