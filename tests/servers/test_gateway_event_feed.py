"""The feed: it starts again where it broke, finds out when it is stuck, and nobody new comes in meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.errors import Unavailable
from fleet.domain.writes import DropEvents
from fleet.servers.gateway import Limits, close_reasons
from fleet.services import event_follower as feed_module
from fleet.services import revocation
from fleet.services.event_follower import EventFollower
from fleet.storage.sqlite.registry import SqliteRegistry
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.connect import Connect, encode_connect
from tests.servers.gateway_fixtures import last_words, now, open_gateway, operator, populate, refused
from tests.waiting import PATIENCE_SECONDS, until


class Fragile(SqliteRegistry):
    """A registry whose feed can break, or go silent."""

    broken = False
    silent = False
    readers = 0
    back_by = 0

    async def last_event(self) -> int:
        if self.broken:
            raise Unavailable("disk", "The disk is gone.")
        return await super().last_event() - self.back_by

    async def follow(self, after: int) -> AsyncGenerator[Event, None]:
        self.readers += 1
        async for event in super().follow(after):
            if self.broken:
                raise Unavailable("disk", "The disk is gone.")
            if self.silent:
                await asyncio.Event().wait()
            yield event


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Fragile]:
    opened = await Fragile.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


async def tell(registry: SqliteRegistry, *subjects: str) -> None:
    events = tuple(Event(EventKind.MODEL_CHANGED, subject) for subject in subjects)
    await registry.commit(Change(operator("test"), events=events))


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
async def feed(registry: Fragile, heard: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EventFollower]:
    monkeypatch.setattr(feed_module, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(feed_module, "RETRY_SECONDS_MIN", 0.01)

    async def hear(event: Event) -> None:
        if event.subject == "poison" and "poison" not in heard:
            heard.append("poison")
            raise Unavailable("disk", "Not now.")
        heard.append(event.subject)

    await tell(registry, "before")
    made = EventFollower(registry, hear, silence_seconds_max=0.0)
    run = asyncio.create_task(made.run())
    await asyncio.wait_for(made.started(), PATIENCE_SECONDS)
    yield made
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


async def test_it_hears_what_comes_after_its_start(registry: Fragile, feed: EventFollower, heard: list[str]) -> None:
    await tell(registry, "a", "b")
    await tell(registry, "c")
    await until(lambda: heard == ["a", "b", "c"])
    assert feed.reliable()


async def test_it_goes_on_where_it_broke(registry: Fragile, feed: EventFollower, heard: list[str]) -> None:
    await tell(registry, "a")
    await until(lambda: heard == ["a"])
    registry.broken = True
    await tell(registry, "b")
    await until(lambda: not feed.reliable())
    await tell(registry, "c")
    registry.broken = False
    await until(lambda: heard == ["a", "b", "c"])
    await until(feed.reliable)
    assert feed.failures >= 1


async def test_an_outage_is_logged_with_its_reason_and_no_traceback(
    registry: Fragile, feed: EventFollower, caplog: pytest.LogCaptureFixture
) -> None:
    registry.broken = True
    await tell(registry, "a")
    await until(lambda: "event=feed.broken" in caplog.text)
    registry.broken = False
    await until(feed.reliable)
    assert "event=feed.back" in caplog.text
    broken = [record for record in caplog.records if "event=feed.broken" in record.getMessage()]
    assert all("reason=" in record.getMessage() and record.exc_info is None for record in broken)


async def test_what_could_not_be_heard_is_heard_again(registry: Fragile, feed: EventFollower, heard: list[str]) -> None:
    await tell(registry, "a", "poison", "b")
    await until(lambda: heard == ["a", "poison", "poison", "b"])
    assert feed.failures == 1


async def test_a_silent_feed_is_found_out(registry: Fragile, feed: EventFollower, heard: list[str]) -> None:
    registry.silent = True
    await tell(registry, "a")
    await until(lambda: not feed.reliable())
    assert heard == []
    registry.silent = False
    await until(lambda: heard == ["a"])
    await until(feed.reliable)


async def test_events_that_are_not_kept_any_more_are_missed_once_and_said_so(
    registry: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(feed_module, "RETRY_SECONDS_MIN", 0.01)
    heard: list[str] = []
    missed: list[int] = []

    async def hear(event: Event) -> None:
        heard.append(event.subject)

    await tell(registry, "before")
    made = EventFollower(registry, hear, silence_seconds_max=0.0, on_missed=lambda: missed.append(len(heard)))
    run = asyncio.create_task(made.run())
    await asyncio.wait_for(made.started(), PATIENCE_SECONDS)
    registry.broken = True
    await tell(registry, "a", "b", "c")
    await registry.commit(Change(operator("test"), (DropEvents(3),)))
    await until(lambda: made.failures > 0)
    registry.broken = False
    await until(lambda: missed == [0])
    await until(made.reliable)
    await tell(registry, "d")
    await until(lambda: heard == ["d"])
    assert missed == [0]
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


async def test_a_registry_that_was_put_back_has_everybody_prove_themselves_again(
    tmp_path: Path, registry: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(feed_module, "RETRY_SECONDS_MIN", 0.01)
    async with open_gateway(tmp_path, registry=registry) as h:
        (one,) = await populate(registry, "cam-1")
        live, side = await h.live(one, V5)
        registry.back_by = 2  # as if an older state had been restored under us
        await live.until_closed()
        assert live.raw == last_words(close_reasons.EVENTS_MISSED)
        await side.until_closed()
        registry.back_by = 0
        await until(h.gateway._feed.reliable)
        assert h.gateway.stats["mqtt.session.events-missed"] == 1
        again, _ = await h.live(one, V5)
        assert not again.closed.is_set()


async def test_a_feed_that_has_not_started_is_not_relied_on(registry: Fragile) -> None:
    async def hear(event: Event) -> None:
        raise AssertionError(event)

    assert not EventFollower(registry, hear, silence_seconds_max=10).reliable()


async def test_nobody_new_comes_in_while_the_feed_is_down(
    tmp_path: Path, registry: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "CHECK_SECONDS", 0.1)
    async with open_gateway(tmp_path, limits=Limits(feed_silence_seconds_max=0.0), registry=registry) as h:
        one, two = await populate(registry, "cam-1", "cam-2")
        live, side = await h.live(one, V5)
        registry.broken = True
        await until(lambda: not h.gateway._feed.reliable())
        wire = await h.dial(two)
        wire.send(encode_connect(Connect(V5, "cam-2")))
        assert await refused(wire, V5) == Reason.SERVER_UNAVAILABLE
        assert h.gateway.stats["mqtt.connect.feed-down"] == 1
        # Who is in stays in, and is cut off by what happened meanwhile as soon as the feed is back.
        await revocation.suspend(registry, "cam-1", act=Act("operator", now()))
        assert not live.closed.is_set()
        registry.broken = False
        await live.until_closed()
        await side.until_closed()
        await until(h.gateway._feed.reliable)
        await h.live(two, V5)
