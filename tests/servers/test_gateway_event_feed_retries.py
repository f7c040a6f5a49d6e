"""The event feed's retries and checks, on a clock that jumps: when it counts as down, as stuck, as restored."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import pairwise
from typing import Any, cast

import pytest

from fleet.domain.changes import Event, EventKind
from fleet.domain.errors import Unavailable
from fleet.services.event_follower import EventFollower
from tests.simulated_time import run

DOWN = Unavailable("disk", "The disk is gone.")
SILENCE_SECONDS_MAX = 30.0


class Registry:
    """A registry's feed in memory. Events become visible at once, and are delivered `delay` seconds later."""

    def __init__(self) -> None:
        self.sequence = 5
        self.kept_from = 1
        self.delay = 0.0
        self.error: Exception | None = None
        self.asked: list[float] = []
        """When the newest event was asked for."""
        self.followed: list[int] = []
        """After which event each reader began."""
        self._delivered: dict[int, float] = {}

    def tell(self, count: int = 1) -> None:
        for _ in range(count):
            self.sequence += 1
            self._delivered[self.sequence] = clock() + self.delay

    async def last_event(self) -> int:
        self.asked.append(clock())
        if self.error is not None:
            raise self.error
        return self.sequence

    async def first_event(self) -> int:
        return self.kept_from

    async def follow(self, after: int) -> AsyncGenerator[Event, None]:
        self.followed.append(after)
        while True:
            after += 1
            while not (after <= self.sequence and self._delivered[after] <= clock()):  # noqa: ASYNC110  the clock jumps
                await asyncio.sleep(0.1)
            yield Event(EventKind.MODEL_CHANGED, str(after), seq=after)


def clock() -> float:
    return asyncio.get_running_loop().time()


def gaps(times: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in pairwise(times)]


class Stage:
    def __init__(self) -> None:
        self.registry = Registry()
        self.heard: list[str] = []
        self.missed: list[int] = []
        self.poison: dict[str, Exception] = {}
        self.feed = EventFollower(
            cast(Any, self.registry),
            self._hear,
            SILENCE_SECONDS_MAX,
            on_missed=lambda: self.missed.append(len(self.heard)),
        )

    async def _hear(self, event: Event) -> None:
        if error := self.poison.pop(event.subject, None):
            raise error
        self.heard.append(event.subject)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def staged(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run `scene` beside a feed that has started."""

    async def main() -> None:
        stage = Stage()
        following = asyncio.create_task(stage.feed.run())
        await stage.feed.started()
        try:
            await scene(stage)
        finally:
            following.cancel()

    run(main())


def test_events_before_the_start_are_not_heard_and_later_ones_in_order() -> None:
    async def scene(stage: Stage) -> None:
        stage.registry.tell(3)
        await stage.pass_time(60)
        assert stage.heard == ["6", "7", "8"]
        assert (stage.registry.followed, stage.feed.failures, stage.feed.reliable()) == ([5], 0, True)

    staged(scene)


def test_a_registry_that_is_down_is_asked_less_and_less_often_and_at_once_again_after_its_return() -> None:
    async def scene(stage: Stage) -> None:
        registry = stage.registry
        await stage.pass_time(1)
        registry.error = DOWN
        registry.asked.clear()
        await stage.pass_time(30)
        assert gaps(registry.asked)[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        registry.error = None
        await stage.pass_time(10)
        assert stage.feed.reliable()
        registry.error = DOWN
        registry.asked.clear()
        await stage.pass_time(10)
        assert gaps(registry.asked)[:3] == [0.1, 0.2, 0.4]

    staged(scene)


def test_it_is_relied_on_for_the_time_of_silence_and_no_longer() -> None:
    async def scene(stage: Stage) -> None:
        await stage.pass_time(2.5)
        stage.registry.error = DOWN
        while not stage.feed.failures:
            await stage.pass_time(0.25)
        broke = clock()
        await stage.pass_time(SILENCE_SECONDS_MAX - 1)
        assert stage.feed.reliable()
        await stage.pass_time(2)
        assert not stage.feed.reliable()
        assert stage.feed.failures > 5  # the time runs from the first of them
        stage.registry.error = None
        await stage.pass_time(10)
        assert stage.feed.reliable()
        stage.registry.error = DOWN
        await stage.pass_time(SILENCE_SECONDS_MAX - 5)  # and anew after a return
        assert (stage.feed.reliable(), clock() - broke > SILENCE_SECONDS_MAX) == (True, True)

    staged(scene)


@pytest.mark.parametrize("error", [DOWN, RuntimeError("a fault of ours")])
def test_an_event_that_could_not_be_handled_comes_again_and_none_is_left_out(error: Exception) -> None:
    async def scene(stage: Stage) -> None:
        stage.poison["7"] = error
        stage.registry.tell(3)
        await stage.pass_time(10)
        assert stage.heard == ["6", "7", "8"]
        assert (stage.registry.followed, stage.feed.failures) == ([5, 6], 1)
        assert stage.feed.reliable()

    staged(scene)


def test_an_outage_without_events_misses_none_and_is_over_with_the_first_answer() -> None:
    async def scene(stage: Stage) -> None:
        registry = stage.registry
        registry.tell()
        await stage.pass_time(5)
        registry.error = DOWN
        await stage.pass_time(SILENCE_SECONDS_MAX + 10)
        assert not stage.feed.reliable()
        registry.error = None
        asked = len(registry.asked)
        while len(registry.asked) == asked:
            await stage.pass_time(0.1)
        assert stage.feed.reliable()
        await stage.pass_time(10)
        assert (stage.heard, stage.missed) == (["6"], [])

    staged(scene)


def test_until_the_registry_has_answered_once_it_is_not_relied_on() -> None:
    async def main() -> None:
        stage = Stage()
        stage.registry.error = DOWN
        following = asyncio.create_task(stage.feed.run())
        await stage.pass_time(1)
        assert (stage.feed.reliable(), stage.feed.failures > 0) == (False, True)
        stage.registry.error = None
        await stage.feed.started()
        await stage.pass_time(1)
        assert stage.feed.reliable()
        following.cancel()

    run(main())


def test_a_delivery_of_a_few_seconds_is_not_a_stalled_feed() -> None:
    async def scene(stage: Stage) -> None:
        stage.registry.delay = 1.5
        for _ in range(10):
            stage.registry.tell()
            await stage.pass_time(1.9)
        assert (stage.feed.failures, stage.registry.followed) == (0, [5])

    staged(scene)


def test_a_feed_that_delivers_nothing_is_stalled_and_read_anew() -> None:
    async def scene(stage: Stage) -> None:
        stage.registry.delay = 3600.0
        stage.registry.tell()
        told = clock()
        while not stage.feed.failures:
            await stage.pass_time(0.1)
        assert clock() - told < 5.0  # two checks
        await stage.pass_time(1)
        assert stage.registry.followed[:2] == [5, 5]
        assert (stage.heard, stage.missed) == ([], [])
        await stage.pass_time(SILENCE_SECONDS_MAX)
        assert not stage.feed.reliable()

    staged(scene)


def test_a_registry_restored_to_an_older_state_loses_events_and_says_so_once() -> None:
    async def scene(stage: Stage) -> None:
        stage.registry.tell(2)
        await stage.pass_time(5)
        stage.registry.sequence = 4
        await stage.pass_time(10)
        assert stage.missed == [2]
        assert (stage.registry.followed, stage.feed.reliable()) == ([5, 4], True)
        stage.registry.tell()
        await stage.pass_time(5)
        assert stage.heard == ["6", "7", "5"]
        assert stage.missed == [2]

    staged(scene)


@pytest.mark.parametrize(
    ("kept_from", "heard", "missed"), [(6, ["6", "7", "8", "9"], []), (7, ["9"], [0]), (9, ["9"], [0])]
)
def test_events_that_retention_deleted_unheard_are_missed(kept_from: int, heard: list[str], missed: list[int]) -> None:
    """Received up to 5; 6 to 8 came while the registry was down."""

    async def scene(stage: Stage) -> None:
        stage.registry.error = DOWN
        while not stage.feed.failures:
            await stage.pass_time(0.25)
        stage.registry.delay = 60.0
        stage.registry.tell(3)
        stage.registry.kept_from = kept_from
        stage.registry.error = None
        await stage.pass_time(10)
        stage.registry.delay = 0.0
        await stage.pass_time(120)
        stage.registry.tell()
        await stage.pass_time(10)
        assert (stage.heard, stage.missed) == (heard, missed)

    staged(scene)
