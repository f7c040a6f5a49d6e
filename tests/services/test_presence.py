"""Presence is written in batches, after the fact: no connection waits, and what failed is written later."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Notice
from fleet.domain.errors import Unavailable
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.domain.presence import ClientSession, GatewayRun, decode_notices
from fleet.services import announcing
from fleet.services import presence as service
from fleet.services.announcing import NOTICES_AT_ONCE_MAX
from fleet.services.presence import BATCH_MAX, Presence
from tests.waiting import PATIENCE_SECONDS

START = datetime(2026, 3, 1, tzinfo=UTC)
PEER = Peer("192.0.2.7", tls_version="TLSv1.3", read_agreed=lambda: ("", "X25519"))


class FakeRegistry:
    """Keeps the batches it was given; refuses them, or has them wait, when a test says so."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[list[ClientSession]] = asyncio.Queue()
        self.written: set[str] = set()
        self.seen: list[datetime] = []
        self.ended: list[tuple[str, str | None]] = []
        self.failure: Exception | None = None
        self.refused = asyncio.Event()
        self.told: asyncio.Queue[list[tuple[str, str]]] = asyncio.Queue()
        self.hurdle: asyncio.Event | None = None

    async def begin_run(self, run: GatewayRun) -> None:
        self.seen.append(run.seen_at)

    async def end_runs(self, node: str, run: str | None = None) -> None:
        self.ended.append((node, run))

    async def note_sessions(self, sessions: Sequence[ClientSession], run: GatewayRun) -> None:
        if self.hurdle is not None:
            await self.hurdle.wait()
        if self.failure is not None:
            self.refused.set()
            raise self.failure
        self.seen.append(run.seen_at)
        self.batches.put_nowait(list(sessions))
        self.written.update(each.device_id for each in sessions)

    async def tell(self, notice: Notice) -> None:
        if self.failure is not None:
            raise self.failure
        [event] = notice.events
        notices = decode_notices(event)
        assert {each.device_id for each in notices} <= self.written, "the reader of an event finds the session"
        self.told.put_nowait([(each.device_id, each.kind) for each in notices])

    async def batch(self) -> list[tuple[str, str]]:
        """The device and the close reason of each of the next batch that is not a sign of life alone."""
        while not (found := await asyncio.wait_for(self.batches.get(), PATIENCE_SECONDS)):
            pass
        return [(each.device_id, each.reason) for each in found]


class Clock:
    now = START

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now


@asynccontextmanager
async def running(registry: FakeRegistry, heard: Any = tuple, *, sends_events: bool = False) -> AsyncIterator[Presence]:
    run = GatewayRun("aa", "host:/home", 1, START)
    presence = Presence(cast(Registry, registry), run, Clock(), sends_events=sends_events)
    task = asyncio.create_task(presence.run(heard))
    try:
        yield presence
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await presence.close()


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "BATCH_SECONDS", 0.005)
    monkeypatch.setattr(service, "RETRY_SECONDS", 0.005)
    monkeypatch.setattr(announcing, "COLLECT_SECONDS", 0.005)
    monkeypatch.setattr(announcing, "NOTICE_SECONDS", 0.005)


async def test_what_comes_within_one_batch_is_one_write_and_the_last_of_each_counts() -> None:
    registry = FakeRegistry()
    async with running(registry) as presence:
        for _ in range(1000):  # comes and goes without end
            presence.ended(presence.opened("cam-1", "cam-1", PEER, "5.0"), "client-gone")
        presence.opened("cam-2", "cam-2", PEER, "3.1.1")
        assert await registry.batch() == [("cam-1", "client-gone"), ("cam-2", "")]
    assert registry.batches.qsize() == 1  # at its end the sign of life
    assert registry.ended == [("host:/home", "aa")]


async def test_the_end_of_a_session_that_was_taken_over_does_not_hide_the_new_one() -> None:
    registry = FakeRegistry()
    async with running(registry) as presence:
        old = presence.opened("cam-1", "cam-1", PEER, "5.0")
        presence.opened("cam-1", "cam-1", PEER, "5.0")
        presence.ended(old, "taken-over")
        assert await registry.batch() == [("cam-1", "")]


async def test_a_storm_is_written_in_batches_while_connections_go_on() -> None:
    registry = FakeRegistry()
    async with running(registry) as presence:
        for n in range(2 * BATCH_MAX + 1):
            presence.opened(f"d-{n}", f"d-{n}", PEER, "5.0")
        assert [len(await registry.batch()) for _ in range(3)] == [BATCH_MAX, BATCH_MAX, 1]


async def test_what_could_not_be_written_is_written_later() -> None:
    registry = FakeRegistry()
    registry.failure = Unavailable("registry-unavailable", "The disk is full.")
    async with running(registry) as presence:
        first, second = (presence.opened(name, name, PEER, "5.0") for name in ("cam-1", "cam-2"))
        await asyncio.wait_for(registry.refused.wait(), PATIENCE_SECONDS)
        presence.ended(first, "client-gone")  # what has happened meanwhile counts
        assert second.ended_at is None
        registry.failure = None
        assert sorted(await registry.batch()) == [("cam-1", "client-gone"), ("cam-2", "")]


async def test_while_nothing_can_be_written_no_more_wait_than_is_bearable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "WAITING_MAX", 10)
    registry = FakeRegistry()
    registry.hurdle = asyncio.Event()
    async with running(registry) as presence:
        for n in range(25):
            presence.opened(f"d-{n:02}", f"d-{n:02}", PEER, "5.0")
        assert presence.lost == 15
        registry.hurdle.set()
        assert [name for name, _ in await registry.batch()] == [f"d-{n:02}" for n in range(15, 25)]


async def test_it_says_that_it_lives_and_when_devices_were_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HEARTBEAT_SECONDS", 0.005)
    monkeypatch.setattr(service, "HEARD_SECONDS", 0.02)
    registry = FakeRegistry()
    opened: list[ClientSession] = []
    async with running(registry, lambda: [(opened[0], 0.01), (opened[1], 10.0)] if opened else ()) as presence:
        assert await asyncio.wait_for(registry.batches.get(), PATIENCE_SECONDS) == []
        opened += [presence.opened(name, name, PEER, "5.0") for name in ("cam-1", "cam-2")]
        assert await registry.batch() == [("cam-1", ""), ("cam-2", "")]
        [heard] = await asyncio.wait_for(registry.batches.get(), PATIENCE_SECONDS) or await registry.batches.get()
        while heard.device_id != "cam-1" or heard.seen_at == opened[0].seen_at:
            [heard] = await asyncio.wait_for(registry.batches.get(), PATIENCE_SECONDS) or [heard]
        assert heard.connected_at == opened[0].connected_at
    assert registry.seen == sorted(registry.seen)


async def test_a_client_that_comes_with_every_write_does_not_keep_it_from_its_end() -> None:
    registry = FakeRegistry()
    presence = Presence(cast(Registry, registry), GatewayRun("aa", "host:/home", 1, START), Clock())
    numbers = iter(range(10_000))

    async def note_sessions(sessions: Sequence[ClientSession], run: GatewayRun) -> None:
        name = f"late-{next(numbers)}"
        presence.opened(name, name, PEER, "5.0")
        await FakeRegistry.note_sessions(registry, sessions, run)
        await asyncio.sleep(0)

    registry.note_sessions = note_sessions  # type: ignore[method-assign]
    for n in range(BATCH_MAX + 1):
        presence.opened(f"d-{n}", f"d-{n}", PEER, "5.0")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await presence.write()
    assert [registry.batches.get_nowait()[-1].client_id for _ in range(2)] == ["d-511", "d-512"]
    assert registry.batches.empty()
    assert registry.seen == sorted(set(registry.seen))  # each says anew that the run lives


async def test_what_was_heard_at_the_beginning_of_a_late_round_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(service, "HEARD_SECONDS", 0.01)
    registry = FakeRegistry()
    opened: list[ClientSession] = []

    def heard() -> list[tuple[ClientSession, float]]:
        return [(each, 0.03) for each in opened]

    async with asyncio.timeout(PATIENCE_SECONDS), running(registry, heard) as presence:
        opened.append(presence.opened("cam-1", "cam-1", PEER, "5.0"))
        assert await registry.batch() == [("cam-1", "")]
        assert await registry.batch() == [("cam-1", "")]  # heard 0.03 s ago, in a round of 0.05 s


async def test_a_session_that_has_ended_is_not_noted_as_open_again() -> None:
    registry = FakeRegistry()
    async with running(registry) as presence:
        opened = presence.opened("cam-1", "cam-1", PEER, "5.0")
        presence.ended(opened, "client-gone")
        presence._note(replace(opened, seen_at=START))  # of a round that saw it open
        assert await registry.batch() == [("cam-1", "client-gone")]


async def test_a_session_counts_that_begins_after_the_clock_was_set_back() -> None:
    registry = FakeRegistry()
    clock = Clock()
    presence = Presence(cast(Registry, registry), GatewayRun("aa", "host:/home", 1, START), clock)
    presence.ended(presence.opened("cam-1", "cam-1", PEER, "5.0"), "client-gone")
    clock.now -= timedelta(hours=1)
    presence.opened("cam-1", "cam-1", PEER, "5.0")
    await presence.write()
    assert await registry.batch() == [("cam-1", "")]


async def test_its_close_keeps_to_what_is_left_of_the_stop() -> None:
    registry = FakeRegistry()
    registry.hurdle = asyncio.Event()
    run = GatewayRun("aa", "host:/home", 1, START)
    presence = Presence(cast(Registry, registry), run, Clock(), stop_seconds=lambda: 0.02)

    async def end_runs(node: str, run: str | None = None) -> None:
        registry.ended.append((node, run))
        await asyncio.Event().wait()

    registry.end_runs = end_runs  # type: ignore[method-assign]
    began = asyncio.get_running_loop().time()
    await asyncio.wait_for(presence.close(), PATIENCE_SECONDS)
    assert registry.ended == [("host:/home", "aa")]
    assert asyncio.get_running_loop().time() - began < service.CLOSE_SECONDS_MAX


async def test_its_close_does_not_wait_for_a_registry_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "CLOSE_SECONDS_MAX", 0.01)
    registry = FakeRegistry()
    registry.hurdle = asyncio.Event()
    async with asyncio.timeout(PATIENCE_SECONDS), running(registry) as presence:
        presence.opened("cam-1", "cam-1", PEER, "5.0")
    assert registry.ended == [("host:/home", "aa")]


CONNECTED, GONE = "device.connected", "device.disconnected"


async def test_it_tells_who_connects_and_who_is_gone_in_one_event_for_many() -> None:
    registry = FakeRegistry()
    async with running(registry, sends_events=True) as presence:
        sessions = [presence.opened(f"d-{n}", f"d-{n}", PEER, "5.0") for n in range(NOTICES_AT_ONCE_MAX + 1)]
        presence.ended(sessions[0], "client-gone")
        told = await asyncio.wait_for(registry.told.get(), PATIENCE_SECONDS)
        assert told[:2] == [("d-0", GONE), ("d-1", CONNECTED)]
        assert len(told) == NOTICES_AT_ONCE_MAX
        assert await asyncio.wait_for(registry.told.get(), PATIENCE_SECONDS) == [("d-100", CONNECTED)]
    assert registry.told.empty()


async def test_one_that_comes_and_goes_without_end_is_told_of_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = FakeRegistry()
    async with running(registry, sends_events=True) as presence:
        opened = presence.opened("cam-1", "cam-1", PEER, "5.0")
        assert await asyncio.wait_for(registry.told.get(), PATIENCE_SECONDS) == [("cam-1", CONNECTED)]
        for _ in range(5):
            presence.ended(opened, "client-gone")
            assert await registry.batch()  # written at once
            opened = presence.opened("cam-1", "cam-1", PEER, "5.0")
        presence.ended(opened, "keep-alive")
        presence.opened("cam-2", "cam-2", PEER, "5.0")
        assert await asyncio.wait_for(registry.told.get(), PATIENCE_SECONDS) == [
            ("cam-2", CONNECTED)
        ]  # cam-1 has to wait
        monkeypatch.setattr(announcing, "NOTICE_AGAIN_SECONDS", 0.0)
        assert await asyncio.wait_for(registry.told.get(), PATIENCE_SECONDS) == [("cam-1", GONE)]


async def test_what_could_not_be_told_is_told_later_and_at_the_end_all() -> None:
    registry = FakeRegistry()
    async with running(registry, sends_events=True) as presence:
        registry.failure = Unavailable("registry-unavailable", "The disk is full.")
        opened = presence.opened("cam-1", "cam-1", PEER, "5.0")
        await asyncio.wait_for(registry.refused.wait(), PATIENCE_SECONDS)
        registry.failure = None
        assert await asyncio.wait_for(registry.told.get(), PATIENCE_SECONDS) == [("cam-1", CONNECTED)]
        presence.ended(opened, "shutting-down")
    assert registry.told.get_nowait() == [("cam-1", GONE)]
