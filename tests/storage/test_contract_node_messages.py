"""What every registry promises of messages that wait at another node."""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from fleet.domain.node_messages import NodeMessage
from fleet.domain.ports import Registry
from fleet.storage.node_messages import MESSAGE
from fleet.storage.queries import Query
from tests.storage.samples import NOW

LATER = NOW + timedelta(seconds=60)
ONE = NodeMessage("1" * 32, "b:/home", "devices/cam-1/fleet/renew", bytes(range(256)), LATER)


async def waiting(registry: Registry, node: str) -> list[NodeMessage]:
    """With the time at which they expire by the clock of ONE, whatever that of the database says."""
    return [replace(each, expires_at=LATER) for each in await registry.messages_for(node, NOW, 10)]


async def test_a_message_waits_at_its_node_until_it_is_answered_and_dropped(registry: Registry) -> None:
    other = replace(ONE, id="2" * 32, node="c:/home")
    await registry.leave_message(ONE, NOW)
    await registry.leave_message(other, NOW)
    assert await waiting(registry, "b:/home") == [ONE]
    assert await registry.messages_for("b:/home", NOW, 0) == []
    assert await registry.answer_to(ONE.id) == ""
    await registry.answer_message(ONE.id, "subscribed")
    assert await registry.answer_to(ONE.id) == "subscribed"
    assert await registry.messages_for("b:/home", NOW, 10) == []
    await registry.drop_message(ONE.id)
    assert await registry.answer_to(ONE.id) == ""
    await registry.answer_message(ONE.id, "subscribed")  # too late
    assert await registry.answer_to(ONE.id) == ""
    assert await waiting(registry, "c:/home") == [other]


async def test_an_answered_message_has_no_payload_any_more(registry: Registry) -> None:
    await registry.leave_message(ONE, NOW)
    await registry.answer_message(ONE.id, "subscribed")
    rows = await registry._scan(Query(MESSAGE.select(""), MESSAGE.of))  # type: ignore[attr-defined]
    assert [(row.answer, row.payload) for row in rows] == [("subscribed", b"")]


async def test_what_nobody_waits_for_any_more_goes(registry: Registry) -> None:
    """Of any node, whatever the clock of the node says that left it."""
    for clock in (datetime.now(UTC), NOW):
        await registry.leave_message(replace(ONE, id="2" * 32, expires_at=clock + timedelta(days=1)), clock)
        await registry.leave_message(replace(ONE, node="c:/home", expires_at=clock + timedelta(microseconds=1)), clock)
        later = clock + timedelta(seconds=1)
        assert await registry.messages_for("c:/home", later, 10) == []
        await registry.drop_expired_messages(later)
        rows = await registry._scan(Query(MESSAGE.select(""), MESSAGE.of))  # type: ignore[attr-defined]
        assert [row.id for row in rows] == ["2" * 32]
        assert [each.id for each in await registry.messages_for("b:/home", later, 10)] == ["2" * 32]
        await registry.drop_message("2" * 32)
