"""Wills with a delay, before a real mosquitto: published in time, not when the device is back, nor when it may not."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind
from fleet.domain.credential import Credential
from fleet.domain.device import DeviceState
from fleet.domain.writes import AddCredential, MoveDevice, SetModel
from fleet.servers.gateway.broker.mosquitto import BACKEND, Mosquitto, mosquitto_program
from fleet.services import revocation
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, decode_connack, encode_connect
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, decode_publish, encode_publish
from fleet.wire.mqtt.subscribe import Subscribe, Subscription, encode_subscribe
from tests.servers.gateway_fixtures import (
    MODEL,
    GatewayHarness,
    Wire,
    credential,
    now,
    open_gateway,
    operator,
    populate,
)
from tests.servers.paho_client import Paho
from tests.waiting import until

PROGRAM = mosquitto_program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")

GONE = ("devices/cam-1/up/gone", b"gone")
LAST = ("devices/cam-2/up/t", b"last")
SOON, LATE = 3, 3600  # seconds of delay


class WillHarness:
    """A gateway before mosquitto, an observer behind it, and two devices with certificates."""

    def __init__(self, built: GatewayHarness, broker: Mosquitto, observer: Paho, held: list[Credential]) -> None:
        self.harness, self.broker, self.observer = built, broker, observer
        self.cam, self.other = held

    async def device(
        self, delay: int = SOON, expiry: int = LATE, *, clean: bool = False, through: GatewayHarness | None = None
    ) -> tuple[Wire, Connack]:
        """cam-1, connected with a will that waits for `delay` seconds."""
        wire = await (through or self.harness).dial(self.cam)
        will = Will(*GONE, qos=1, properties=((Property.WILL_DELAY_INTERVAL, delay),))
        expires = ((Property.SESSION_EXPIRY_INTERVAL, expiry),)
        wire.send(encode_connect(Connect(V5, "cam-1", clean, will=will, properties=expires)))
        packet = await wire.packet()
        assert packet.type is PacketType.CONNACK
        connack = decode_connack(packet.body, V5)
        assert connack.code == 0
        return wire, connack

    async def leaves(self, delay: int = SOON, expiry: int = LATE) -> None:
        """cam-1 connects and is lost: its will waits."""
        wire, _ = await self.device(delay, expiry)
        wire.transport.abort()
        await until(lambda: self.waiting == 1)

    @property
    def waiting(self) -> int:
        return len(self.harness.gateway.context.wills)

    async def no_will_for(self, seconds: float) -> None:
        """What the observer gets next is the other device's message, `seconds` from now."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.observer.messages.get()
        wire, _ = await self.harness.connect(self.other)
        wire.send(encode_publish(Publish(*LAST), V311))
        assert await self.observer.message() == LAST
        wire.transport.abort()


@asynccontextmanager
async def open_wills(path: Path) -> AsyncIterator[WillHarness]:
    assert PROGRAM is not None
    async with AsyncExitStack() as stack:
        broker = await Mosquitto.start(PROGRAM, path / "run", [MODEL])
        stack.push_async_callback(broker.close)
        observer = Paho("observer", V311, transport="unix")
        observer.client.username_pw_set(BACKEND)
        assert await observer.connect_unix(broker.socket) == 0
        stack.push_async_callback(observer.close)
        await observer.subscribe("devices/+/up/#", qos=1)
        built = await stack.enter_async_context(open_gateway(path, broker))
        yield WillHarness(built, broker, observer, await populate(built.registry, "cam-1", "cam-2"))


@pytest.fixture
async def wills(tmp_path: Path) -> AsyncIterator[WillHarness]:
    async with open_wills(tmp_path) as opened:
        yield opened


Case = Callable[[WillHarness], Coroutine[None, None, None]]
IN_TIME: list[Case] = []
"""Cases that mostly wait. One test has them all wait at once, each at a gateway and a broker of its own."""


def waits(case: Case) -> Case:
    IN_TIME.append(case)
    return case


async def test_wills_in_time(tmp_path: Path) -> None:
    """All of IN_TIME; the traceback of a failure names its case."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_wills(tmp_path / str(n))) for n in range(len(IN_TIME))]
        async with asyncio.TaskGroup() as running:
            for case, wills in zip(IN_TIME, opened, strict=True):
                running.create_task(case(wills))


@waits
async def a_will_is_published_after_its_delay(wills: WillHarness) -> None:
    begun = asyncio.get_running_loop().time()
    await wills.leaves(delay=2)
    assert await wills.observer.message() == GONE
    assert asyncio.get_running_loop().time() - begun >= 2


@waits
async def a_session_that_expires_first_ends_the_delay(wills: WillHarness) -> None:
    await wills.leaves(delay=LATE, expiry=1)
    assert await wills.observer.message() == GONE


async def test_without_a_session_that_outlives_the_connection_there_is_no_delay(wills: WillHarness) -> None:
    """MQTT 5.0, 3.1.3.2.2: the will is published when the session ends."""
    wire, _ = await wills.device(delay=LATE, expiry=0)
    wire.transport.abort()
    assert await wills.observer.message() == GONE
    assert wills.waiting == 0


@waits
async def no_will_of_a_device_that_is_back_in_time(wills: WillHarness) -> None:
    await wills.leaves()
    _, connack = await wills.device()
    assert connack.session_present
    assert wills.waiting == 0
    await wills.no_will_for(SOON + 2)  # [MQTT-3.1.3-9]


@waits
async def a_newer_connection_that_takes_over_is_a_return(wills: WillHarness) -> None:
    old, _ = await wills.device()
    await wills.device()
    assert [packet.body[0] for packet in await old.until_closed()] == [Reason.SESSION_TAKEN_OVER]
    assert wills.waiting == 0
    await wills.no_will_for(SOON + 2)


@waits
async def no_will_of_a_device_that_leaves_in_order(wills: WillHarness) -> None:
    wire, _ = await wills.device()
    wire.send(acks.disconnect(V5))
    await wire.until_closed()
    assert wills.waiting == 1  # the broker has not said that it has discarded it
    await wills.no_will_for(SOON + 2)


async def test_a_session_that_its_device_has_ended_is_not_begun_again(wills: WillHarness) -> None:
    wire, _ = await wills.device(delay=LATE)
    wire.send(acks.ends_session())
    await wire.until_closed()
    await revocation.suspend(wills.harness.registry, "cam-1", act=Act("operator", now()))
    await wills.harness.count("mqtt.will.cancelled")
    await revocation.resume(wills.harness.registry, "cam-1", act=Act("operator", now()))
    _, connack = await wills.device()
    assert not connack.session_present


@waits
async def a_will_is_published_for_who_asks_for_it(wills: WillHarness) -> None:
    wire, _ = await wills.device()
    wire.send(acks.disconnect(V5, Reason(0x04)))  # 3.14.2.1: disconnect with will message
    await wire.until_closed()
    assert wills.waiting == 1
    assert await wills.observer.message() == GONE


CONTROL = b"devices/cam-1/up/\x01"


async def a_disconnect_that_the_broker_refuses_hides_no_will(last: bytes, wills: WillHarness) -> None:
    wire, _ = await wills.device(delay=3)
    wire.send(last)
    await wire.until_closed()
    await revocation.suspend(wills.harness.registry, "cam-1", act=Act("operator", now()))
    await wills.harness.count("mqtt.will.cancelled")
    assert wills.waiting == 0
    await wills.no_will_for(5)


for refused in (
    b"\xe0\x03\x00\x05\x11",  # malformed
    b"\xe0\x06\x00\x04\x1f\x00\x01\x01",  # legal, and mosquitto takes no control character
    bytes((0x30, 4 + len(CONTROL), 0, len(CONTROL))) + CONTROL + b"\x00x" + acks.disconnect(V5),
):
    waits(partial(a_disconnect_that_the_broker_refuses_hides_no_will, refused))


async def no_will_of_a_device_that_may_not_speak_any_more(
    how: Callable[..., Awaitable[object]], wills: WillHarness
) -> None:
    await wills.leaves(delay=3)
    await how(wills.harness.registry, "cam-1", act=Act("operator", now()))
    await wills.harness.count("mqtt.will.cancelled")
    assert wills.waiting == 0
    await wills.no_will_for(5)


for denied in (revocation.suspend, revocation.revoke, revocation.retire):
    waits(partial(no_will_of_a_device_that_may_not_speak_any_more, denied))


@waits
async def no_will_of_a_device_that_is_cut_off_within_a_long_message(wills: WillHarness) -> None:
    """The broker can't be told DISCONNECT there: it takes the will for that of a lost device, and it waits."""
    wire, _ = await wills.device(delay=3)
    wire.send(encode_publish(Publish("devices/cam-1/up/t", bytes(1_000_000)), V5)[:500_000])
    (session,) = wills.harness.gateway.context.open_sessions
    await until(lambda: session._relay is not None and not session._relay.to_broker.between_packets)
    await revocation.suspend(wills.harness.registry, "cam-1", act=Act("operator", now()))
    await wills.harness.count("mqtt.will.cancelled")
    await wills.no_will_for(5)


async def test_a_suspended_device_finds_its_session_as_it_was(wills: WillHarness) -> None:
    wire, _ = await wills.device(delay=LATE)
    down = (Subscription("devices/cam-1/down/#", 1),)
    wire.send(encode_subscribe(Subscribe(1, down), V5))
    assert (await wire.packet()).type is PacketType.SUBACK
    wire.transport.abort()
    await until(lambda: wills.waiting == 1)
    texts = [str(n).encode() for n in range(50)]
    for text in texts:
        await wills.observer.publish("devices/cam-1/down/t", text)
    await revocation.suspend(wills.harness.registry, "cam-1", act=Act("operator", now()))
    await wills.harness.count("mqtt.will.cancelled")
    await revocation.resume(wills.harness.registry, "cam-1", act=Act("operator", now()))
    wire, connack = await wills.device()
    assert connack.session_present
    messages: list[bytes] = []
    while len(messages) < len(texts):
        packet = await wire.packet()
        found = decode_publish(packet.first, packet.body, V5)
        wire.send(acks.acknowledge(acks.PUBACK, found.packet_id, V5))
        messages.append(found.payload)
    assert messages == texts


@waits
async def no_will_to_a_topic_that_the_model_allows_no_more(wills: WillHarness) -> None:
    await wills.leaves(delay=3)
    registry = wills.harness.registry
    for publish in ("devices/{id}/up/gone", "devices/{id}/up/t"):
        assert wills.waiting == 1
        model = await registry.model(MODEL.name)
        assert model is not None
        event = Event(EventKind.MODEL_CHANGED, MODEL.name)
        narrower = SetModel(replace(model, publish=(publish,)))
        await registry.commit(Change(operator("model.set"), (narrower,), (event,)))
        await wills.harness.count("mqtt.model.applied", 1 if publish.endswith("gone") else 2)
    await wills.harness.count("mqtt.will.cancelled")
    await wills.no_will_for(5)


@waits
async def a_certificate_that_is_superseded_cancels_no_will(wills: WillHarness) -> None:
    await wills.leaves(delay=2)
    newer = credential("cam-1")
    ended = Event(EventKind.CREDENTIAL_ENDED, "cam-1", wills.cam.fingerprint.hex())
    await wills.harness.registry.commit(Change(operator("renew"), (AddCredential(newer),), (ended,)))
    assert await wills.observer.message() == GONE
    assert "mqtt.will.cancelled" not in wills.harness.gateway.stats


async def test_a_stop_of_the_gateway_publishes_no_will(wills: WillHarness) -> None:
    """Neither that of a connected device, nor one that waits: our own broker would publish it at its own stop."""
    wire, _ = await wills.harness.connect(wills.other, V311, will=Will("devices/cam-2/up/gone", b"gone"))
    await wills.leaves(delay=LATE)
    await wills.harness.gateway.close()
    await wire.until_closed()
    await wills.broker.close()
    await wills.observer.got(wills.observer.disconnected)
    assert wills.observer.messages.empty()


async def test_a_broker_has_read_all_before_it_is_stopped(wills: WillHarness) -> None:
    """DISCONNECT may be behind much that it has not read yet: the gateway waits until it has come to it."""
    wire, _ = await wills.harness.connect(wills.other, V311, will=Will("devices/cam-2/up/gone", b"gone"))
    gateway = wills.harness.gateway
    wills.broker.process.signal(signal.SIGSTOP)
    wire.send(encode_publish(Publish("devices/cam-2/up/t", bytes(1000)), V311) * 100)
    closing = asyncio.create_task(gateway.close())
    try:
        await asyncio.wait((closing,), timeout=0.3)
        assert not closing.done()
    finally:
        wills.broker.process.signal(signal.SIGCONT)
    await closing
    await wills.broker.close()
    await wills.observer.got(wills.observer.disconnected)
    topics = {wills.observer.messages.get_nowait().topic for _ in range(wills.observer.messages.qsize())}
    assert topics <= {"devices/cam-2/up/t"}


@waits
async def what_was_missed_is_asked_of_the_registry(wills: WillHarness) -> None:
    await wills.leaves(delay=3)
    registry, gateway = wills.harness.registry, wills.harness.gateway
    gateway._effects.on_events_missed()
    await until(lambda: not gateway._cancellation._tasks)
    assert wills.waiting == 1  # the device is in service
    device = await registry.device("cam-1")
    assert device is not None
    suspended = MoveDevice(device.id, frozenset({device.state}), DeviceState.SUSPENDED)
    await registry.commit(Change(operator("suspend"), (suspended,)))  # and no event arrives
    gateway._effects.on_events_missed()
    await wills.harness.count("mqtt.will.cancelled")
    await wills.no_will_for(4)
