"""Purging a revoked device's session at the broker, on a clock that jumps: what is sent, and what counts as done."""

import asyncio
import math
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, cast

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import Device, DeviceState, Model
from fleet.domain.errors import Unavailable
from fleet.domain.registry_events import SessionKicked, decode_event
from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.upstream import UpstreamAccess
from fleet.servers.gateway.broker.visit import (
    ANSWER_SECONDS_MAX,
    RETRY_SECONDS,
    VISITS_MAX,
    BrokerVisits,
    cancel_will,
    purge_session,
)
from fleet.servers.gateway.events.session_purge import PURGE_TRIES_MAX, SessionPurger
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311
from fleet.wire.mqtt.connect import Connect, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.subscribe import Unsubscribe, encode_unsubscribe
from tests.servers.gateway_fixtures import MODEL, device
from tests.simulated_time import run

ACCEPTED = b"\x20\x03\x00\x00\x00"


class Connection(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent += bytes(data)

    def close(self) -> None:
        self.closed = True


class Broker:
    """A broker that answers each connection with `answer`, after `delay` seconds; None: it closes the connection."""

    is_ours = False
    access = UpstreamAccess()

    def __init__(self, answer: bytes | None = ACCEPTED, delay: float = 1.0, *, speaks_v5: bool = True) -> None:
        self.speaks_v5 = speaks_v5
        self.answer, self.delay = answer, delay
        self.error: Exception | None = None
        self.connections: list[Connection] = []
        self.began: list[float] = []

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        if self.error is not None:
            raise self.error
        client = factory()
        assert isinstance(client, asyncio.Protocol)
        self.connections.append(Connection())
        self.began.append(seconds())
        client.connection_made(self.connections[-1])
        if self.answer is None:
            asyncio.get_running_loop().call_later(self.delay, client.connection_lost, None)
        else:
            asyncio.get_running_loop().call_later(self.delay, client.data_received, self.answer)

    async def set_models(self, models: Sequence[Model]) -> None: ...

    @property
    def address(self) -> str:
        return "unix:fake"

    def describe(self) -> str:
        return "a broker"

    async def close(self) -> None: ...


class Devices:
    """A registry that has every device."""

    def __init__(self, error: Unavailable | None = None) -> None:
        self.error = error

    async def device(self, device_id: str) -> Device | None:
        if self.error is not None:
            raise self.error
        return device(device_id)


DEVICES = cast(Any, Devices())


def seconds() -> float:
    return asyncio.get_running_loop().time()


def ended(device: str, state: str = DeviceState.REVOKED, kind: str = EventKind.DEVICE_STATE) -> Event:
    return Event(kind, device, state)


async def sent_to(broker: Broker, visit: Coroutine[object, object, bool]) -> bytes:
    """What is sent on the one connection of a visit that succeeds."""
    assert await visit
    (connection,) = broker.connections
    assert connection.closed
    return connection.sent


def goes_on(username: str, expiry: int) -> bytes:
    """Of a visit that goes on with the session, which then has `expiry` seconds."""
    properties = ((Property.SESSION_EXPIRY_INTERVAL, expiry), (Property.RECEIVE_MAXIMUM, 1))
    connect = Connect(V5, "cam-1", clean=False, username=username, properties=properties)
    return encode_connect(connect) + acks.disconnect(V5)


def test_it_goes_on_with_the_session_which_then_expires_at_once() -> None:
    async def scene() -> None:
        broker = Broker()
        assert await sent_to(broker, purge_session(broker, device("cam-1"))) == goes_on("cam-1", 0)

    run(scene())


def test_the_user_name_is_the_one_of_its_sessions() -> None:
    async def scene() -> None:
        broker = Broker()
        broker.is_ours = True
        purger = SessionPurger(BrokerVisits(broker), DEVICES, OutcomeLog())
        purger.on_event(decode_event(ended("cam-1")))
        await asyncio.sleep(5)
        assert broker.connections[0].sent == goes_on(MODEL.name, 0)
        old = Broker(b"\x20\x02\x00\x00", speaks_v5=False)
        old.is_ours = True
        connect = encode_connect(Connect(V311, "cam-1", clean=True, username=MODEL.name))
        assert await sent_to(old, purge_session(old, device("cam-1"))) == connect + acks.disconnect(V311)

    run(scene())


def test_a_broker_of_311_discards_a_clean_session() -> None:
    async def scene() -> None:
        broker = Broker(b"\x20\x02\x00\x00", speaks_v5=False)
        connect = encode_connect(Connect(V311, "cam-1", clean=True, username="cam-1"))
        assert await sent_to(broker, purge_session(broker, device("cam-1"))) == connect + acks.disconnect(V311)

    run(scene())


@pytest.mark.parametrize("at_5", [None, b"\x20\x02\x00\x01", b"\x20\x03\x00\x84\x00"], ids=["closes", "1", "0x84"])
def test_an_external_broker_that_knows_311_alone_is_asked_in_that(at_5: bytes | None) -> None:
    """RabbitMQ 3.10 closes at a CONNECT of 5.0; NATS answers 1."""

    class Old(Broker):
        async def connect(self, factory: Factory, header: bytes = b"") -> None:
            self.answer = b"\x20\x02\x00\x00" if self.connections else at_5
            await super().connect(factory, header)

    async def scene() -> None:
        broker = Old()
        assert await purge_session(broker, device("cam-1"))
        connect = encode_connect(Connect(V311, "cam-1", clean=True, username="cam-1"))
        assert broker.connections[1].sent == connect + acks.disconnect(V311)
        ours = Old()
        ours.is_ours = True
        assert not await purge_session(ours, device("cam-1")), "a waiting will would be published"

    run(scene())


@pytest.mark.parametrize(
    ("seconds_left", "expiry"),
    [(-1.0, 0), (0.0, 0), (0.1, 1), (59.0, 59), (4294967294.5, 0xFFFFFFFF), (math.inf, 0xFFFFFFFF)],
)
def test_a_cancelled_will_leaves_the_session_its_time(seconds_left: float, expiry: int) -> None:
    async def scene() -> None:
        broker = Broker(b"\x20\x03\x01\x00\x00")  # it has the session
        assert await sent_to(broker, cancel_will(broker, device("cam-1"), seconds_left)) == goes_on("cam-1", expiry)

    run(scene())


@pytest.mark.parametrize(
    "answer",
    [b"\x20\x02\x00\x05", b"\xd0\x00", b"\x20\x02\x00", b"\xff" * 20, b"", None],
    ids=["refused", "another-packet", "half-a-packet", "no-mqtt", "silence", "closed"],
)
def test_what_the_broker_does_not_accept_is_not_done(answer: bytes | None) -> None:
    async def scene() -> None:
        broker, begun = Broker(answer), seconds()
        assert not await purge_session(broker, device("cam-1"))
        is_waiting = answer in (b"\x20\x02\x00", b"")  # for the rest
        once_more = 1.0 if answer is None else 0.0  # in MQTT 3.1.1
        assert seconds() - begun == pytest.approx(ANSWER_SECONDS_MAX if is_waiting else 1.0 + once_more)
        assert broker.connections[0].closed

    run(scene())


def test_an_answer_just_in_time() -> None:
    async def scene() -> None:
        assert await purge_session(Broker(delay=ANSWER_SECONDS_MAX - 0.1), device("cam-1"))
        assert not await purge_session(Broker(delay=ANSWER_SECONDS_MAX + 0.1), device("cam-1"))

    run(scene())


def test_a_broker_that_cannot_be_reached_raises_nothing() -> None:
    async def scene() -> None:
        broker = Broker()
        broker.error = ConnectionRefusedError()
        assert not await purge_session(broker, device("cam-1"))

    run(scene())


def test_only_what_has_ended_for_good_is_purged() -> None:
    async def scene() -> None:
        broker, outcomes = Broker(), OutcomeLog()
        purger = SessionPurger(BrokerVisits(broker), DEVICES, outcomes)
        for state in (DeviceState.SUSPENDED, DeviceState.ACTIVE, DeviceState.REGISTERED):
            purger.on_event(decode_event(ended("cam-1", state)))
        purger.on_event(decode_event(ended("cam-1", "ab" * 32, EventKind.CREDENTIAL_ENDED)))
        await asyncio.sleep(60)
        assert broker.connections == []
        purger.on_event(decode_event(ended("cam-1")))
        purger.on_event(decode_event(ended("cam-2", DeviceState.RETIRED)))
        await asyncio.sleep(60)
        assert outcomes.counts == {"mqtt.purge.ok": 2}
        broker.answer = b"\x20\x03\x00\x87\x00"
        purger.on_event(decode_event(ended("cam-3")))
        await asyncio.sleep(600)
        assert outcomes.counts == {"mqtt.purge.ok": 2, "mqtt.purge.failed": 1}
        assert len(broker.connections) == 2 + PURGE_TRIES_MAX

    run(scene())


def test_a_suspended_device_leaves_its_shared_subscriptions_unless_it_is_resumed_before() -> None:
    class Suspended(Devices):
        state = DeviceState.SUSPENDED

        async def device(self, device_id: str) -> Device | None:
            return replace(device(device_id), state=self.state)

    async def scene() -> None:
        broker, outcomes, devices, kept = Broker(), OutcomeLog(), Suspended(), KeptFilters()
        purger = SessionPurger(BrokerVisits(broker), cast(Any, devices), outcomes, kept)
        for client_id, held in (("cam-1", ["a", "$share/g/a"]), ("cam-1/2", ["$share/g/b"]), ("cam-1/3", ["c"])):
            kept.clients.ended(client_id, 3600)
            kept.of_session(client_id, outlives_connection=True).add(held)
        devices.state = DeviceState.ACTIVE
        purger.on_event(decode_event(ended("cam-1", DeviceState.SUSPENDED)))
        await asyncio.sleep(60)
        assert broker.connections == []
        devices.state = DeviceState.SUSPENDED
        broker.answer = b"\x20\x03\x01\x00\x00\xb0\x04\x00\x01\x00\x00"
        purger.on_event(decode_event(ended("cam-1", DeviceState.SUSPENDED)))
        await asyncio.sleep(60)
        properties = ((Property.SESSION_EXPIRY_INTERVAL, 0xFFFFFFFF), (Property.RECEIVE_MAXIMUM, 1))
        for connection, client_id, left in zip(
            broker.connections, ("cam-1", "cam-1/2"), ("$share/g/a", "$share/g/b"), strict=True
        ):
            connect = Connect(V5, client_id, clean=False, username="cam-1", properties=properties)
            packets = (encode_connect(connect), encode_unsubscribe(Unsubscribe(1, (left,)), V5), acks.disconnect(V5))
            assert connection.sent == b"".join(packets)
        assert list(kept.of_session("cam-1", outlives_connection=True)) == ["a"]
        assert set(kept.clients.of_device("cam-1")) == {"cam-1/2", "cam-1/3"}
        purger.on_event(decode_event(ended("cam-1", DeviceState.SUSPENDED)))
        await asyncio.sleep(60)
        assert len(broker.connections) == 2, "nothing is left to leave"
        assert outcomes.counts == {"mqtt.share.left": 1}

    run(scene())


def test_a_kick_of_a_client_id_that_is_not_connected_ends_what_the_broker_keeps_of_it() -> None:
    async def scene() -> None:
        broker, outcomes, kept = Broker(), OutcomeLog(), KeptFilters()
        purger = SessionPurger(BrokerVisits(broker), cast(Any, Devices()), outcomes, kept)
        for client_id in ("cam-1/2", "cam-1/3", "cam-1/~app"):
            kept.clients.ended(client_id, 3600)
        assert kept.clients.begins("cam-1/4", (), 5, outlives=True)
        assert not kept.clients.begins("cam-1/5", (), 5, outlives=True)
        for client_id, ends_kept in (("cam-1/2", False), ("cam-1/4", True), ("cam-1/9", True), ("cam-1/3", True)):
            purger.on_event(SessionKicked("cam-1", client_id, ends_kept=ends_kept))
        await asyncio.sleep(60)
        [connection] = broker.connections  # not of the one that is open again, nor of the one that was open
        assert b"cam-1/3" in connection.sent
        assert set(kept.clients.of_device("cam-1")) == {"cam-1/2", "cam-1/4", "cam-1/~app"}
        assert kept.clients.begins("cam-1/5", (), 5, outlives=True)
        assert outcomes.counts == {"mqtt.purge.ok": 1}
        purger.on_event(SessionKicked("cam-1", "app", ends_kept=True))  # as the device says it, and the list shows it
        await asyncio.sleep(60)
        assert b"cam-1/~app" in broker.connections[-1].sent

    run(scene())


def test_a_purge_that_fails_is_tried_again() -> None:
    async def scene() -> None:
        broker, outcomes, begun = Broker(), OutcomeLog(), seconds()
        devices = Devices(Unavailable("disk", "The disk is gone."))
        broker.error = ConnectionRefusedError()
        purger = SessionPurger(BrokerVisits(broker), cast(Any, devices), outcomes)
        purger.on_event(decode_event(ended("cam-1")))
        await asyncio.sleep(2.5 * RETRY_SECONDS)
        devices.error = None
        await asyncio.sleep(2 * RETRY_SECONDS)
        assert outcomes.counts == {}
        broker.error = None
        await asyncio.sleep(60)
        assert [at - begun for at in broker.began] == [pytest.approx(5 * RETRY_SECONDS)]
        assert outcomes.counts == {"mqtt.purge.ok": 1}

    run(scene())


def test_one_that_is_refused_leaves_its_place_to_others() -> None:
    async def scene() -> None:
        broker, outcomes = Broker(b"\x20\x03\x00\x87\x00", delay=0.01), OutcomeLog()
        visits = BrokerVisits(broker)
        purger = SessionPurger(visits, DEVICES, outcomes)
        for number in range(VISITS_MAX):
            purger.on_event(decode_event(ended(f"cam-{number}")))
        await asyncio.sleep(0.5)
        begun = seconds()
        assert await visits.until_done(partial(purge_session, Broker(), device("cam-x")))
        assert seconds() - begun == pytest.approx(1.0)
        await asyncio.sleep(600)
        assert outcomes.counts == {"mqtt.purge.failed": VISITS_MAX}

    run(scene())


def test_it_waits_for_those_who_receive_the_event_later_and_the_feed_for_nobody() -> None:
    async def scene() -> None:
        broker, begun = Broker(), seconds()
        purger = SessionPurger(BrokerVisits(broker), DEVICES, OutcomeLog(), after_seconds=5.0)
        purger.on_event(decode_event(ended("cam-1")))
        assert seconds() == begun
        await asyncio.sleep(60)
        assert [at - begun for at in broker.began] == [pytest.approx(5.0)]

    run(scene())


def test_a_whole_model_is_purged_a_few_at_once() -> None:
    async def scene() -> None:
        broker, outcomes, begun = Broker(delay=2.0), OutcomeLog(), seconds()
        purger = SessionPurger(BrokerVisits(broker), DEVICES, outcomes)
        for number in range(80):
            purger.on_event(decode_event(ended(f"cam-{number}")))
        await asyncio.sleep(1.0)
        assert len(broker.connections) == VISITS_MAX == 32
        await asyncio.sleep(60)
        assert broker.began[0] - begun == pytest.approx(0.0)
        assert [round(at - begun) for at in broker.began] == [0] * 32 + [2] * 32 + [4] * 16
        assert outcomes.counts == {"mqtt.purge.ok": 80}

    run(scene())


def test_closing_ends_what_is_under_way() -> None:
    async def scene() -> None:
        broker, outcomes = Broker(b"", delay=1.0), OutcomeLog()
        purger = SessionPurger(BrokerVisits(broker), DEVICES, outcomes)
        for number in range(80):
            purger.on_event(decode_event(ended(f"cam-{number}")))
        await asyncio.sleep(2)
        begun = seconds()
        await purger.close()
        assert seconds() == begun
        await asyncio.sleep(60)
        assert (len(broker.connections), dict(outcomes.counts)) == (32, {})
        assert all(connection.closed for connection in broker.connections)

    run(scene())


def test_what_nobody_expected_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        broker = Broker()
        broker.error = RuntimeError("visited")
        purger = SessionPurger(BrokerVisits(broker), DEVICES, OutcomeLog())
        purger.on_event(decode_event(ended("cam-1")))
        await asyncio.sleep(5)
        assert [record.message for record in caplog.records if record.exc_info] == ["event=gateway.failed"]

    run(scene())
