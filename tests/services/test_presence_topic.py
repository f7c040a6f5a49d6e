"""Presence at the broker: batched, at least once, bounded; a broker that is away delays nothing but this."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from fleet.config.logs import FailureLog
from fleet.config.timestamps import rfc3339
from fleet.domain.presence import ClientSession
from fleet.services import announcing
from fleet.services.announcing import Announcer
from fleet.services.presence_topic import PresenceTopic
from tests.fake_publisher import FakePublisher
from tests.waiting import PATIENCE_SECONDS

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ONE = ClientSession("cam-1", "cam-1/app", START, START, None, "", "192.0.2.7", "n", "aa", "5.0", "TLSv1.3", "X25519")
GONE = replace(ONE, ended_at=START + timedelta(minutes=1), reason="client-gone")


async def next_value(publisher: FakePublisher) -> Any:
    _, payload = await publisher.next()
    return json.loads(payload)


def announcer(template: str, publisher: FakePublisher) -> Announcer:
    failures = FailureLog(logging.getLogger("fleet.gateway"), "presence.not-published")
    return Announcer(PresenceTopic(template, publisher).publish, failures)


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> FakePublisher:
    monkeypatch.setattr(announcing, "COLLECT_SECONDS", 0.005)
    monkeypatch.setattr(announcing, "NOTICE_SECONDS", 0.005)
    return FakePublisher()


@pytest.fixture
async def topic(publisher: FakePublisher) -> AsyncIterator[Announcer]:
    made = announcer("fleet/presence/{id}/x", publisher)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_what_is_published_has_the_names_of_the_events(topic: Announcer, publisher: FakePublisher) -> None:
    known = {"subject": "cam-1", "client_id": "cam-1/app", "connected_at": rfc3339(START)}
    topic.put(ONE)
    topic_name, payload = await publisher.next()
    value = {"kind": "device.connected", **known, "address": "192.0.2.7"}
    assert (topic_name, json.loads(payload)) == ("fleet/presence/cam-1/x", value)
    topic.put(replace(GONE, client_id="cam-1"))
    value = await next_value(publisher)
    assert (value["kind"], value["client_id"], value["reason"]) == ("device.disconnected", "cam-1", "client-gone")


async def test_of_a_client_that_comes_and_goes_the_last_is_published(
    topic: Announcer, publisher: FakePublisher
) -> None:
    for _ in range(1000):
        topic.put(ONE)
        topic.put(GONE)
    assert (await next_value(publisher))["kind"] == "device.disconnected"
    topic.put(replace(ONE, connected_at=START + timedelta(hours=1)))  # ten seconds are not over
    await topic.close()  # at the end nothing is held back
    assert (await next_value(publisher))["kind"] == "device.connected"
    assert not publisher.published


async def test_what_the_broker_has_not_taken_is_published_later(topic: Announcer, publisher: FakePublisher) -> None:
    publisher.failures = ["broker-unreachable", "publisher-busy"]
    topic.put(ONE)
    assert (await next_value(publisher))["kind"] == "device.connected"
    assert (publisher.failures, topic.lost) == ([], 0)


async def test_what_the_broker_refuses_is_not_published_again(
    topic: Announcer, publisher: FakePublisher, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.failures = ["publish-refused"]
    topic.put(ONE)
    await asyncio.wait_for(publisher.failed.wait(), PATIENCE_SECONDS)
    topic.put(replace(ONE, client_id="cam-1"))
    assert (await next_value(publisher))["client_id"] == "cam-1"
    assert not publisher.published
    assert "presence.lost sessions=1" in caplog.text


async def test_what_waits_is_bounded(publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcing, "WAITING_MAX", 10)
    topic = announcer("fleet/presence/all", publisher)
    for number in range(15):
        topic.put(replace(ONE, device_id=f"cam-{number}"))
    assert topic.lost == 5
    await topic.close()
    assert [(await next_value(publisher))["subject"] for _ in range(10)] == [f"cam-{n}" for n in range(5, 15)]
    assert not publisher.published


async def test_a_device_with_ever_new_client_ids_is_told_of_at_its_rate_and_holds_up_no_other(
    topic: Announcer, publisher: FakePublisher
) -> None:
    for number in range(announcing.DEVICE_WAITING_MAX + 7):
        topic.put(replace(ONE, client_id=f"cam-1/{number}"))
    topic.put(replace(ONE, device_id="cam-2", client_id="cam-2"))
    assert topic.lost == 7
    told = [(await next_value(publisher))["subject"] for _ in range(11)]
    assert told == ["cam-1"] * 10 + ["cam-2"]
    assert not publisher.published


async def test_the_end_has_a_deadline(publisher: FakePublisher) -> None:
    topic = announcer("fleet/presence/all", publisher)
    topic.put(ONE)
    publisher.answers.clear()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await topic.close(0.05)
    assert not publisher.published
    publisher.answers.set()
    await topic.close()
    assert (await next_value(publisher))["subject"] == "cam-1"
