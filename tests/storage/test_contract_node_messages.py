"""What every registry promises of messages that wait at another node."""

from datetime import timedelta

from msgspec.structs import replace

from fleet.domain.node_messages import NodeMessage
from fleet.domain.ports import Registry
from tests.storage.samples import NOW

LATER = NOW + timedelta(seconds=60)
ONE = NodeMessage("1" * 32, "b:/home", "devices/cam-1/fleet/renew", bytes(range(256)), LATER)


async def test_a_message_waits_at_its_node_until_it_is_answered_and_dropped(registry: Registry) -> None:
    other = replace(ONE, id="2" * 32, node="c:/home")
    await registry.leave_message(ONE, NOW)
    await registry.leave_message(other, NOW)
    assert await registry.messages_for("b:/home", NOW, 10) == [ONE]
    assert await registry.messages_for("b:/home", NOW, 0) == []
    assert await registry.answer_to(ONE.id) == ""
    await registry.answer_message(ONE.id, "subscribed")
    assert await registry.answer_to(ONE.id) == "subscribed"
    assert await registry.messages_for("b:/home", NOW, 10) == []
    await registry.drop_message(ONE.id)
    assert await registry.answer_to(ONE.id) == ""
    await registry.answer_message(ONE.id, "subscribed")  # too late
    assert await registry.answer_to(ONE.id) == ""
    assert await registry.messages_for("c:/home", NOW, 10) == [other]


async def test_what_nobody_waits_for_any_more_goes(registry: Registry) -> None:
    await registry.leave_message(ONE, NOW)
    late = LATER + timedelta(microseconds=1)
    assert await registry.messages_for("b:/home", late, 10) == []
    await registry.leave_message(replace(ONE, id="2" * 32, expires_at=late), late)
    assert [each.id for each in await registry.messages_for("b:/home", NOW, 10)] == ["2" * 32]
