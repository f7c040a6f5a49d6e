"""Messages for another node: many at once, and one that does not answer."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

from fleet.domain.errors import Unavailable
from fleet.domain.node_messages import NodeMessage
from fleet.services import node_messages
from fleet.services.node_messages import AT_ONCE_MAX, OtherNodes, publish_for_others
from fleet.storage.node_messages import MESSAGE
from fleet.storage.queries import Query
from fleet.storage.sqlite.registry import SqliteRegistry
from tests.fake_publisher import FakePublisher
from tests.waiting import PATIENCE_SECONDS

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NODE = "b:/home"


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[SqliteRegistry]:
    opened = await SqliteRegistry.open(tmp_path / "registry.db")
    yield opened
    await opened.close()


async def publish(others: OtherNodes, registry: SqliteRegistry, number: int) -> str:
    try:
        return str(await others.publish(registry, NODE, f"devices/cam-{number}/fleet/a", b"", NOW))
    except Unavailable as error:
        return error.code


async def test_many_reach_a_node_a_few_at_a_time(registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_messages, "LOOK_SECONDS", 0.01)
    others, there = OtherNodes(), FakePublisher()
    serving = asyncio.create_task(publish_for_others(registry, NODE, there, lambda: NOW))
    count = 3 * AT_ONCE_MAX
    assert await asyncio.gather(*(publish(others, registry, n) for n in range(count))) == ["True"] * count
    assert {topic for topic, _ in there.published} == {f"devices/cam-{n}/fleet/a" for n in range(count)}
    serving.cancel()


async def test_many_for_a_silent_node_fail_together_and_leave_nothing(
    registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_messages, "ANSWER_SECONDS_MAX", 1.0)
    left: list[NodeMessage] = []
    leave = registry.leave_message

    async def leaving(message: NodeMessage, now: datetime) -> None:
        left.append(message)
        await leave(message, now)

    monkeypatch.setattr(registry, "leave_message", leaving)
    others, count = OtherNodes(), 3 * AT_ONCE_MAX
    assert await asyncio.gather(*(publish(others, registry, n) for n in range(count))) == ["node-silent"] * count
    assert {each.expires_at for each in left} == {NOW + timedelta(seconds=8)}
    assert AT_ONCE_MAX <= len(left) < count  # the others have waited for their turn, and hardly longer than these
    assert await registry.messages_for(NODE, NOW, count) == []


async def test_what_a_process_has_left_that_ended_is_not_published_late_and_goes(
    registry: SqliteRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_messages, "LOOK_SECONDS", 0.01)
    message = NodeMessage("1" * 32, NODE, "devices/cam-1/fleet/a", b"secret", NOW + timedelta(seconds=8))
    for node in (NODE, "c:/home"):
        await registry.leave_message(structs.replace(message, node=node, id=node), NOW)
    there, late = FakePublisher(), NOW + timedelta(seconds=9)
    serving = asyncio.create_task(publish_for_others(registry, NODE, there, lambda: late))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await registry._scan(Query(MESSAGE.select(""), MESSAGE.of)):
            pass
    serving.cancel()
    assert there.published == []
