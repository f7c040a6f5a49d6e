"""Session state machine without sockets: a context and two transports that only record what happens to them."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

import pytest
from msgspec import structs

from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.model_rules import DEFAULT_RULES
from fleet.domain.topic_policy import policy_of
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession, connect_refused
from fleet.servers.gateway.events.late_turns import LateTurns
from fleet.servers.gateway.limits.flow_control import FlowControlledTransport, Pause, block, unblock
from fleet.servers.gateway.limits.kept_filters import KeptFilters
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.limits.rates import Budgets
from fleet.servers.gateway.limits.return_delays import ReturnDelays
from fleet.servers.gateway.limits.unread import UnreadTotal
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.session import session as session_module
from fleet.servers.gateway.session.broker_link import BrokerLink, BrokerLinks
from fleet.servers.gateway.session.phases import Phase, Timer
from fleet.servers.gateway.session.registry import SessionRegistry
from fleet.servers.gateway.session.session import PHASES, Session
from fleet.servers.gateway.wills.waiting import WaitingWills
from fleet.services.admission import Admission
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, encode_connack, encode_connect, refusal
from fleet.wire.mqtt.fields import encode_varint
from fleet.wire.mqtt.properties import Property
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.reader import CONNECT_SIZE_MAX
from tests.servers.gateway_fixtures import MODEL, credential, last_words, now, peer_of
from tests.waiting import PATIENCE_SECONDS, until

DEVICE = Device(DeviceId("cam-1"), MODEL.name, DeviceState.ACTIVE, now())
CERTIFICATE = credential("cam-1")
ADMISSION = Admission(DEVICE, CERTIFICATE, policy_of(DEVICE, MODEL))
ACCEPTED = encode_connack(Connack(False, 0), V5)
MESSAGE = encode_publish(Publish("devices/cam-1/up/t", b"x"), V5)


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reading = True
        self.closing = False
        self.aborted = False
        self.unread = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unread

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def write_eof(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True


@dataclass
class FakeContext:
    """A SessionContext. Admission and the connection to the broker wait for `admitted` and `connected`."""

    limits: Limits = field(default_factory=Limits)
    outcomes: OutcomeLog = field(default_factory=OutcomeLog)
    open_sessions: SessionRegistry[Session] = field(default_factory=SessionRegistry)
    return_delays: ReturnDelays = field(default_factory=lambda: ReturnDelays(5.0))
    broker_links: BrokerLinks = field(default_factory=BrokerLinks)
    wills: WaitingWills = field(default_factory=lambda: WaitingWills(10))
    budgets: Budgets = field(default_factory=lambda: Budgets(10))
    retained: None = None
    unread: UnreadTotal = field(default_factory=lambda: UnreadTotal(lambda: None))
    late_turns: LateTurns = field(init=False)
    v5: bool = True
    feed: bool = True
    time: datetime = field(default_factory=now)
    admissions: "asyncio.Queue[Admission | CloseReason]" = field(default_factory=asyncio.Queue)
    connections: "asyncio.Queue[FakeTransport | None]" = field(default_factory=asyncio.Queue)
    asked: list[str] = field(default_factory=list)
    tasks: "list[asyncio.Task[None]]" = field(default_factory=list)
    link: BrokerLink = field(init=False)

    def __post_init__(self) -> None:
        self.late_turns = LateTurns(self.caught_up, self.spawn)

    async def caught_up(self) -> None:
        """Every event has been received."""

    def now(self) -> datetime:
        return self.time

    kept_filters: KeptFilters = field(default_factory=KeptFilters)
    saves: None = None
    presence: None = None

    @property
    def broker(self) -> "FakeContext":
        return self

    holders = denials = broker

    @property
    def speaks_v5(self) -> bool:
        return self.v5

    def on_broker_lost(self, session: Session, reason: CloseReason) -> None:
        session.close(reason)

    def feed_is_up(self) -> bool:
        return self.feed

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work))

    async def admit(self, peer: object, connect: Connect) -> Admission:
        self.asked.append(connect.client_id)
        answer = await self.admissions.get()
        if isinstance(answer, CloseReason):
            raise CloseSession(answer)
        return answer

    def put(self, peer: object, admission: Admission, action: str, code: str, detail: object) -> None:
        pass

    async def refused_connect(self, peer: object, client_id: str, reason: CloseReason) -> None:
        pass

    def proved(self, connect: Connect, admission: Admission) -> Connect:
        return connect

    def narrowed(self, admission: Admission, connect: Connect) -> Admission:
        return admission

    def username(self, admission: Admission) -> str:
        return admission.device.id

    def header(self, *_: object) -> bytes:
        return b""

    async def connect(self, model: str, factory: Callable[[], asyncio.BaseProtocol], header: bytes) -> None:
        self.asked.append(model)
        transport = await self.connections.get()
        if transport is None:
            raise CloseSession(close_reasons.BROKER_UNREACHABLE)
        link = factory()
        assert isinstance(link, BrokerLink)
        self.link = link
        link.connection_made(transport)


class Bench:
    """One session with its two ends."""

    def __init__(self, context: FakeContext | None = None, **connect: Any) -> None:
        self.context = context or FakeContext()
        self.device, self.broker = FakeTransport(), FakeTransport()
        self.session = Session(cast(Any, self.context), peer_of(CERTIFICATE))
        self.connect = Connect(connect.pop("version", V5), "cam-1", **connect)
        self.session.connection_made(self.device)

    async def reach(self, phase: Phase) -> "Bench":
        steps: dict[Phase, Callable[[], object]] = {
            Phase.ADMITTING: lambda: self.session.data_received(encode_connect(self.connect)),
            Phase.CONNECTING: lambda: self.context.admissions.put_nowait(ADMISSION),
            Phase.AWAITING_CONNACK: lambda: self.context.connections.put_nowait(self.broker),
            Phase.RELAYING: lambda: self.session.broker_data(encode_connack(Connack(False, 0), self.connect.version)),
            Phase.CLOSED: lambda: self.session.close(close_reasons.SHUTTING_DOWN),
        }
        for each, step in steps.items():
            if not self.session.phase.value < each.value <= phase.value:
                continue
            step()
            await self.until(each)
        self.device.written.clear()
        self.broker.written.clear()
        return self

    async def until(self, phase: Phase) -> None:
        await until(partial(self._is_in, phase))

    def _is_in(self, phase: Phase) -> bool:
        return self.session.phase is phase

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(self.context.outcomes.counts)

    async def finish(self) -> None:
        for task in self.context.tasks:
            task.cancel()
        await asyncio.gather(*self.context.tasks, return_exceptions=True)


# The table


def test_each_phase_may_only_become_the_next_or_closed() -> None:
    order = list(Phase)
    assert set(PHASES) == set(order)
    for phase, after in zip(order, [*order[1:-1], None, None], strict=True):
        assert PHASES[phase].next is after
    deadlines = {phase: PHASES[phase].deadline for phase in order}
    opening = deadlines[Phase.ADMITTING]
    assert opening is not None
    assert opening is deadlines[Phase.CONNECTING] is deadlines[Phase.AWAITING_CONNACK]
    assert deadlines[Phase.RELAYING] is deadlines[Phase.CLOSED] is None


async def test_no_other_transition() -> None:
    for phase in Phase:
        bench = await Bench().reach(phase)
        for other in set(Phase) - {PHASES[phase].next, Phase.CLOSED}:
            with pytest.raises(RuntimeError):
                bench.session._enter(other)
            assert bench.session.phase is phase
        await bench.finish()


# What an event does in each phase: the packets for the device, those for the broker, and the outcome

BANNED = refusal(Reason.BANNED, V5, close_reasons.DEVICE_ENDED.text)


def unavailable(reason: CloseReason, version: int = V5) -> bytes:
    return refusal(Reason.SERVER_UNAVAILABLE, version, reason.text)


@dataclass(frozen=True)
class Outcome:
    counter: str | None = None
    device: bytes = b""
    broker: bytes = b""
    closed: bool = True


IGNORED = Outcome(closed=False)
GONE = Outcome("mqtt.session.client-gone")
LOST = Outcome("mqtt.session.broker-lost", last_words(close_reasons.BROKER_LOST))
Event = Callable[[Session], object]


def cut_off(session: Session) -> None:
    session.close(close_reasons.DEVICE_ENDED)


def device_gone(session: Session) -> None:
    session.connection_lost(None)


def broker_gone(session: Session) -> None:
    session.broker_lost()


def device_sends_a_message(session: Session) -> None:
    session.data_received(MESSAGE)


def device_sends_garbage(session: Session) -> None:
    session.data_received(b"\x30\x80\x80\x80\x80")


def device_sends_too_much(session: Session) -> None:
    session.data_received(b"\x10\xff\xff\xff\x7f")


def broker_sends_garbage(session: Session) -> None:
    session.broker_data(b"\x30\x80\x80\x80\x80")


def broker_sends_a_request(session: Session) -> None:
    session.broker_data(acks.PINGREQ)


def model_allows_nothing(session: Session) -> None:
    session.set_model(structs.replace(MODEL, publish=(), subscribe=()))


def model_belongs_to_another_tenant(session: Session) -> None:
    session.set_model(structs.replace(MODEL, rules=structs.replace(DEFAULT_RULES, tenant="other")))


MATRIX: list[tuple[Event, dict[Phase, Outcome]]] = [
    (
        cut_off,
        {
            Phase.AWAITING_CONNECT: Outcome("mqtt.session.device-ended"),
            Phase.ADMITTING: Outcome("mqtt.session.device-ended", BANNED),
            Phase.CONNECTING: Outcome("mqtt.session.device-ended", BANNED),
            Phase.AWAITING_CONNACK: Outcome("mqtt.session.device-ended", BANNED, b"\xe0\x00"),
            Phase.RELAYING: Outcome("mqtt.session.device-ended", last_words(close_reasons.DEVICE_ENDED), b"\xe0\x00"),
        },
    ),
    (device_gone, dict.fromkeys(list(Phase)[:-1], GONE)),
    (
        broker_gone,
        {
            Phase.CONNECTING: Outcome("mqtt.session.broker-lost", unavailable(close_reasons.BROKER_LOST)),
            Phase.AWAITING_CONNACK: Outcome(
                "mqtt.connect.broker-lost", unavailable(close_reasons.BROKER_LOST_BEFORE_CONNACK)
            ),
            Phase.RELAYING: LOST,
        },
    ),
    (
        device_sends_a_message,
        {
            Phase.AWAITING_CONNECT: Outcome("mqtt.session.not-connect"),
            Phase.RELAYING: Outcome(None, b"", MESSAGE, closed=False),
        },
    ),
    (
        device_sends_garbage,
        {
            Phase.AWAITING_CONNECT: Outcome("mqtt.session.not-connect"),
            Phase.RELAYING: Outcome("mqtt.session.malformed", last_words(close_reasons.MALFORMED)),
        },
    ),
    (
        device_sends_too_much,
        {
            Phase.AWAITING_CONNECT: Outcome("mqtt.connect.too-large"),
            Phase.RELAYING: Outcome("mqtt.session.protocol-error", last_words(close_reasons.PROTOCOL_ERROR)),
        },
    ),
    (
        broker_sends_garbage,
        {
            Phase.AWAITING_CONNACK: Outcome(
                "mqtt.session.broker-broke-protocol", unavailable(close_reasons.BROKER_BROKE_PROTOCOL)
            ),
            Phase.RELAYING: Outcome(
                "mqtt.session.broker-broke-protocol", last_words(close_reasons.BROKER_BROKE_PROTOCOL)
            ),
        },
    ),
    (
        broker_sends_a_request,
        {
            Phase.AWAITING_CONNACK: Outcome(
                "mqtt.session.broker-broke-protocol", unavailable(close_reasons.BROKER_BROKE_PROTOCOL)
            ),
            Phase.RELAYING: Outcome(
                "mqtt.session.broker-broke-protocol", last_words(close_reasons.BROKER_BROKE_PROTOCOL)
            ),
        },
    ),
    (
        model_belongs_to_another_tenant,
        {
            Phase.AWAITING_CONNACK: Outcome(
                "mqtt.session.credential-ended",
                refusal(Reason.NOT_AUTHORIZED, V5, close_reasons.CREDENTIAL_ENDED.text),
                b"\xe0\x00",
            ),
            Phase.RELAYING: Outcome(
                "mqtt.session.credential-ended", last_words(close_reasons.CREDENTIAL_ENDED), b"\xe0\x00"
            ),
        },
    ),
    (model_allows_nothing, {}),
]


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize(("event", "outcomes"), MATRIX, ids=lambda each: getattr(each, "__name__", ""))
async def test_an_event_in_each_phase(phase: Phase, event: Event, outcomes: dict[Phase, Outcome]) -> None:
    bench = await Bench().reach(phase)
    expected = outcomes.get(phase, IGNORED)
    before = bench.outcomes
    event(bench.session)
    assert (bytes(bench.device.written), bytes(bench.broker.written)) == (expected.device, expected.broker)
    new = {counter for counter, count in bench.outcomes.items() if count != before.get(counter)}
    assert new == ({expected.counter} if expected.counter else set())
    if expected.closed:
        assert bench.session.phase is Phase.CLOSED
        assert bench.device.closing
        assert bench.broker.closing == (phase in (Phase.AWAITING_CONNACK, Phase.RELAYING))
        assert len(bench.context.open_sessions) == 0
        assert not bench.context.open_sessions.of_device("cam-1")
        cut_off(bench.session)  # only the first reason counts
        assert bench.outcomes == before | {expected.counter: 1}
    else:
        assert bench.session.phase is phase
    await bench.finish()


# CONNECT

UNSUPPORTED = refusal(Reason.UNSUPPORTED_PROTOCOL_VERSION, V5, close_reasons.UNSUPPORTED_VERSION.text)
MALFORMED = refusal(Reason.MALFORMED_PACKET, V5, close_reasons.MALFORMED_CONNECT.text)


async def refused(bench: Bench, connect: Connect | bytes) -> str:
    """The counter of the refusal, whose CONNACK is the only packet."""
    bench.session.data_received(connect if isinstance(connect, bytes) else encode_connect(connect))
    await until(lambda: bench.session.phase is Phase.CLOSED)
    (counter,) = bench.outcomes
    assert bench.device.closing
    await bench.finish()
    return counter


@pytest.mark.parametrize("version", [V311, V5])
async def test_connects_that_are_refused_before_admission(version: int) -> None:
    method = Connect(V5, "cam-1", properties=((Property.AUTHENTICATION_METHOD, "SCRAM"),))
    bench = Bench()
    assert await refused(bench, method) == "mqtt.connect.auth-method"
    assert bench.device.written == refusal(Reason.BAD_AUTHENTICATION_METHOD, V5, close_reasons.AUTH_METHOD.text)
    bench = Bench(FakeContext(feed=False))
    assert await refused(bench, Connect(version, "cam-1")) == "mqtt.connect.feed-down"
    assert bench.device.written == unavailable(close_reasons.FEED_DOWN, version)
    bench = Bench(version=version)
    await bench.reach(Phase.AWAITING_CONNACK)
    bench.session.broker_data(b"\x20\x02\x00\x01")  # in the way of 3.1.1: it knows no other
    if version == V5:
        assert bench.device.written == UNSUPPORTED
    bench = Bench(FakeContext(v5=False), version=version)
    if version == V5:
        assert await refused(bench, Connect(version, "cam-1")) == "mqtt.connect.unsupported-version"
        assert bench.device.written == UNSUPPORTED
    else:
        await bench.reach(Phase.RELAYING)
    assert not bench.context.asked or version == V311


@pytest.mark.parametrize(
    ("body", "counter", "answer"),
    [
        (b"\x00\x04MQTT\x06\x02\x00\x3c", "unsupported-version", UNSUPPORTED),
        (b"\x00\x06MQIsdp\x03\x02\x00\x3c", "unsupported-version", b"\x20\x02\x00\x01"),
        (b"\x00\x04MQTT\x05\x03\x00\x3c", "malformed-connect", MALFORMED),
        (b"\x00\x04MQTT\x04\x03\x00\x3c", "malformed-connect", b""),  # [MQTT-3.1.4-1] of 3.1.1
    ],
)
async def test_connects_that_cannot_be_decoded(body: bytes, counter: str, answer: bytes) -> None:
    bench = Bench()
    assert await refused(bench, bytes((0x10, len(body))) + body) == f"mqtt.connect.{counter}"
    assert bench.device.written == answer


async def test_connect_in_pieces_and_nothing_else_first() -> None:
    bench = Bench()
    data = encode_connect(bench.connect)
    for byte in data[:-1]:
        bench.session.data_received(bytes((byte,)))
        assert bench.session.phase is Phase.AWAITING_CONNECT
        assert bench.session.client_id == ""
    bench.session.data_received(data[-1:])
    assert bench.session.phase is Phase.ADMITTING
    assert bench.session.client_id == "cam-1"
    assert bench.context.open_sessions.of_device("cam-1") == (bench.session,)
    assert not bench.device.reading
    await bench.finish()
    bench = Bench()
    bench.session.data_received(b"\x10" + encode_varint(CONNECT_SIZE_MAX + 1))
    assert bench.session.phase is not Phase.ADMITTING


async def test_sessions_are_limited_in_all_and_by_certificate() -> None:
    for limits in (Limits(sessions_max=2), Limits(per_certificate_max=2)):
        context = FakeContext(limits)
        one, two, three = Bench(context), Bench(context), Bench(context)
        assert [bench.session.phase for bench in (one, two)] == [Phase.AWAITING_CONNECT] * 2
        assert three.session.phase is Phase.CLOSED
        assert three.device.closing
        assert not three.device.written
        assert three.outcomes == {"mqtt.session.too-many-sessions": 1}
        assert set(context.open_sessions) == {one.session, two.session}


# Admission and the broker's connection


async def test_a_refused_admission() -> None:
    bench = await Bench(version=V311).reach(Phase.ADMITTING)
    bench.context.admissions.put_nowait(connect_refused("will-refused", Reason.NOT_AUTHORIZED))
    await until(lambda: bench.session.phase is Phase.CLOSED)
    assert bench.device.written == b"\x20\x02\x00\x05"
    assert bench.outcomes == {"mqtt.connect.will-refused": 1}
    assert bench.context.asked == ["cam-1"]
    await bench.finish()


async def test_a_broker_that_is_unreachable() -> None:
    bench = await Bench().reach(Phase.CONNECTING)
    bench.context.connections.put_nowait(None)
    await until(lambda: bench.session.phase is Phase.CLOSED)
    assert bench.device.written == unavailable(close_reasons.BROKER_UNREACHABLE)
    assert bench.outcomes == {"mqtt.connect.broker-unreachable": 1}
    await bench.finish()


async def test_a_session_closed_during_admission_connects_to_no_broker() -> None:
    bench = await Bench().reach(Phase.ADMITTING)
    cut_off(bench.session)
    bench.context.admissions.put_nowait(ADMISSION)
    await asyncio.gather(*bench.context.tasks)
    assert bench.context.asked == ["cam-1"]
    assert bench.session.admission is None
    assert bench.outcomes == {"mqtt.session.device-ended": 1}


async def test_a_closed_session_is_not_admitted_again() -> None:
    bench = await Bench().reach(Phase.ADMITTING)
    await until(lambda: len(bench.context.asked) == 1)
    bench.session.model_changed()
    cut_off(bench.session)
    bench.context.admissions.put_nowait(ADMISSION)
    await asyncio.wait_for(asyncio.gather(*bench.context.tasks), PATIENCE_SECONDS)
    assert len(bench.context.asked) == 1
    bench = await Bench().reach(Phase.CONNECTING)
    assert bench.session.admission is ADMISSION
    bench.session.model_changed()
    cut_off(bench.session)
    bench.context.connections.put_nowait(bench.broker)
    await asyncio.wait_for(asyncio.gather(*bench.context.tasks), PATIENCE_SECONDS)
    assert len(bench.context.asked) == 2


async def test_a_session_closed_while_it_connects_closes_the_brokers_side() -> None:
    bench = await Bench(FakeContext(Limits(linger_seconds_max=0.01))).reach(Phase.CONNECTING)
    cut_off(bench.session)
    bench.context.connections.put_nowait(bench.broker)
    await asyncio.gather(*bench.context.tasks)
    assert bench.broker.closing
    assert not bench.broker.written
    await until(lambda: bench.broker.aborted and bench.device.aborted)


async def test_a_newer_session_takes_over_only_from_admitted_ones() -> None:
    context = FakeContext()
    live, admitting = await Bench(context).reach(Phase.RELAYING), await Bench(context).reach(Phase.ADMITTING)
    newer = await Bench(context).reach(Phase.ADMITTING)
    context.admissions.put_nowait(ADMISSION)  # for the one that asked first
    await until(lambda: admitting.session.phase is Phase.CONNECTING)
    assert live.session.phase is Phase.CLOSED
    assert live.device.written == last_words(close_reasons.TAKEN_OVER)
    assert newer.session.phase is Phase.ADMITTING
    await newer.finish()


async def test_a_model_that_changes_during_admission_is_asked_for_again() -> None:
    bench = await Bench().reach(Phase.ADMITTING)
    await until(lambda: len(bench.context.asked) == 1)
    bench.session.model_changed()
    bench.context.admissions.put_nowait(ADMISSION)
    await until(lambda: len(bench.context.asked) == 2)
    assert bench.session.phase is Phase.ADMITTING
    await bench.reach(Phase.RELAYING)
    assert bench.context.asked == ["cam-1", "cam-1", MODEL.name]
    await bench.finish()


async def test_a_model_that_changes_while_the_broker_connects_is_asked_for_again() -> None:
    bench = await Bench().reach(Phase.CONNECTING)
    bench.session.model_changed()
    bench.context.connections.put_nowait(bench.broker)
    await until(lambda: len(bench.context.asked) == 3)
    assert bench.session.phase is Phase.CONNECTING
    bench.context.admissions.put_nowait(
        replace(ADMISSION, policy=policy_of(DEVICE, structs.replace(MODEL, publish=())))
    )
    await until(lambda: bench.session.phase is Phase.AWAITING_CONNACK)
    assert bench.session.admission is not None
    assert bench.session.admission.policy.publish == ()
    bench.session.broker_data(ACCEPTED)
    bench.broker.written.clear()
    device_sends_a_message(bench.session)
    assert not bench.broker.written
    assert bench.outcomes["mqtt.publish.refused"] == 1
    await bench.finish()
    bench = await Bench().reach(Phase.CONNECTING)
    bench.session.model_changed()
    bench.context.connections.put_nowait(bench.broker)
    bench.context.admissions.put_nowait(
        connect_refused("device-suspended", Reason.BANNED, close_reasons.DEVICE_ENDED.text)
    )
    await until(lambda: bench.session.phase is Phase.CLOSED)
    assert bench.device.written == BANNED
    assert bench.broker.closing
    await bench.finish()


# CONNACK


async def test_packets_behind_connect_wait_for_connack() -> None:
    bench = Bench()
    bench.session.data_received(encode_connect(bench.connect) + MESSAGE)
    for phase in (Phase.ADMITTING, Phase.CONNECTING, Phase.AWAITING_CONNACK):
        await bench.reach(phase)
        bench.session.data_received(MESSAGE)
        assert not bench.broker.written
        assert not bench.device.reading
    bench.session.broker_data(ACCEPTED)
    assert bench.broker.written == MESSAGE * 4
    assert bench.device.reading
    assert bench.outcomes == {"mqtt.connect.ok": 1}
    assert bench.device.written.startswith(b"\x20")
    await bench.finish()


async def test_the_broker_gets_connect_once_it_is_connected_and_answers_in_pieces() -> None:
    bench = await Bench(password=b"secret").reach(Phase.CONNECTING)
    bench.context.connections.put_nowait(bench.broker)
    await until(lambda: bench.session.phase is Phase.AWAITING_CONNACK)
    assert bench.broker.written == encode_connect(replace(bench.connect, username="cam-1", password=None))
    for byte in ACCEPTED:
        assert bench.session.phase is Phase.AWAITING_CONNACK
        assert not bench.outcomes
        bench.session.broker_data(bytes((byte,)))
    assert bench.session.phase is Phase.RELAYING
    assert bench.device.written.startswith(b"\x20")
    await bench.finish()


async def test_packets_behind_connect_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    assert session_module.EARLY_SIZE_MAX == 1_048_576
    monkeypatch.setattr(session_module, "EARLY_SIZE_MAX", 100)
    bench = await Bench().reach(Phase.ADMITTING)
    bench.session.data_received(bytes(100))
    assert bench.session.phase is Phase.ADMITTING
    bench.session.data_received(b"\0")
    assert bench.outcomes == {"mqtt.session.too-large": 1}
    assert bench.device.written == refusal(Reason.PACKET_TOO_LARGE, V5, close_reasons.TOO_LARGE.text)
    await bench.finish()


async def test_a_connack_that_refuses() -> None:
    bench = await Bench().reach(Phase.AWAITING_CONNACK)
    answer = encode_connack(Connack(False, 0x87), V5)
    bench.session.broker_data(answer)
    assert bench.device.written == answer
    assert bench.outcomes == {"mqtt.connect.broker-refused-87": 1, "mqtt.session.broker-refused": 1}
    assert bench.session.phase is Phase.CLOSED
    await bench.finish()


async def test_a_disconnect_from_either_side_closes() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.data_received(acks.disconnect(V5))
    assert bench.broker.written == acks.disconnect(V5)
    assert bench.outcomes == {"mqtt.connect.ok": 1, "mqtt.session.client-disconnected": 1}
    await bench.finish()
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.broker_data(acks.disconnect(V5, Reason.SERVER_SHUTTING_DOWN))
    assert bench.device.written == acks.disconnect(V5, Reason.SERVER_SHUTTING_DOWN)
    assert bench.outcomes == {"mqtt.connect.ok": 1, "mqtt.session.broker-closed": 1}
    await bench.finish()


async def test_a_connack_and_a_disconnect_in_one_read() -> None:
    bench = await Bench().reach(Phase.AWAITING_CONNACK)
    bench.session.broker_data(ACCEPTED + acks.disconnect(V5, Reason.SERVER_BUSY))
    assert bench.outcomes == {"mqtt.connect.ok": 1, "mqtt.session.broker-closed": 1}
    await bench.finish()


# A model that is applied


@pytest.mark.parametrize(
    ("will", "model", "closes"),
    [
        (None, structs.replace(MODEL, publish=()), False),
        (Will("all/cam2", b""), MODEL, False),
        (Will("all/cam2", b""), structs.replace(MODEL, publish=("devices/{id}/up/#",)), True),
        (Will("all/cam2", b"", retain=True), MODEL, False),
        (Will("all/cam2", b"", retain=True), structs.replace(MODEL, retain=False), True),
        (Will("all/cam2", b""), structs.replace(MODEL, retain=False), False),
    ],
)
async def test_a_will_that_the_model_no_longer_allows(will: Will | None, model: Model, closes: bool) -> None:
    bench = await Bench(will=will).reach(Phase.RELAYING)
    bench.session.set_model(model)
    assert (bench.session.phase is Phase.CLOSED) == closes
    assert ("mqtt.session.policy-changed" in bench.outcomes) == closes
    assert bench.session.admission is not None
    assert bench.session.admission.policy == policy_of(DEVICE, model)
    await bench.finish()


# Timers


@pytest.mark.parametrize(
    ("phase", "counter"),
    [
        (Phase.AWAITING_CONNECT, "mqtt.session.connect-timeout"),
        (Phase.ADMITTING, "mqtt.connect.open-timeout"),
        (Phase.CONNECTING, "mqtt.connect.open-timeout"),
        (Phase.AWAITING_CONNACK, "mqtt.connect.open-timeout"),
    ],
)
async def test_the_deadline_of_a_phase(phase: Phase, counter: str) -> None:
    limits = Limits(connect_seconds_max=1000.0, open_seconds_max=500.0)
    bench = await Bench(FakeContext(limits)).reach(phase)
    handle = bench.session._timers[Timer.DEADLINE]
    opening = phase is not Phase.AWAITING_CONNECT
    assert (handle.when() - bench.session._loop.time() < 501) == opening
    run(handle)
    assert bench.outcomes == {counter: 1}
    assert bench.device.written == (unavailable(close_reasons.OPEN_TIMEOUT) if opening else b"")
    await bench.finish()


def run(handle: asyncio.TimerHandle) -> None:
    """What the loop does when its time has come."""
    handle._run()
    handle.cancel()


async def test_one_deadline_from_connect_to_connack() -> None:
    bench = Bench()
    before = bench.session._timers[Timer.DEADLINE]
    await bench.reach(Phase.ADMITTING)
    assert before.cancelled()
    first = bench.session._timers[Timer.DEADLINE]
    await bench.reach(Phase.AWAITING_CONNACK)
    assert bench.session._timers[Timer.DEADLINE] is first
    await bench.reach(Phase.RELAYING)
    assert Timer.DEADLINE not in bench.session._timers
    assert first.cancelled()
    await bench.finish()


async def test_no_timer_outlives_the_session() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.pause_writing()
    handles = list(bench.session._timers.values())
    assert set(bench.session._timers) == {Timer.EXPIRY, Timer.STUCK, Timer.KEEP_ALIVE}
    cut_off(bench.session)
    assert all(handle.cancelled() for handle in handles)
    bench.session.pause_writing()
    assert bench.session._timers.get(Timer.STUCK) in (None, *handles)
    await bench.finish()


async def test_the_certificates_end_is_looked_up_again() -> None:
    context = FakeContext(time=CERTIFICATE.not_after - timedelta(days=30))
    bench = await Bench(context).reach(Phase.RELAYING)
    timer = bench.session._timers[Timer.EXPIRY]
    assert 3500 < timer.when() - bench.session._loop.time() <= 3600
    context.time = CERTIFICATE.not_after - timedelta(seconds=20)
    run(timer)
    timer = bench.session._timers[Timer.EXPIRY]
    assert 10 < timer.when() - bench.session._loop.time() <= 20
    context.time = CERTIFICATE.not_after
    run(timer)
    assert bench.outcomes == {"mqtt.connect.ok": 1, "mqtt.session.certificate-expired": 1}
    assert bench.device.written == acks.disconnect(V5, Reason.MAXIMUM_CONNECT_TIME, "The certificate has expired.")
    await bench.finish()


async def test_a_device_that_is_silent_for_too_long() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    timer = bench.session._timers[Timer.KEEP_ALIVE]
    assert 89 < timer.when() - bench.session._loop.time() <= 90  # 1.5 times its keep-alive
    bench.session.data_received(acks.PINGREQ)
    run(timer)
    assert bench.session.phase is Phase.RELAYING
    bench.session.heard_at -= 100
    bench.session.broker_blocked()
    run(bench.session._timers[Timer.KEEP_ALIVE])  # what it sends is not read: that is no silence
    assert bench.session.phase is Phase.RELAYING
    bench.session.broker_drained()
    run(bench.session._timers[Timer.KEEP_ALIVE])
    assert bench.outcomes == {"mqtt.connect.ok": 1, "mqtt.session.keep-alive": 1}
    assert bench.device.written[2] == Reason.KEEP_ALIVE_TIMEOUT
    await bench.finish()


async def test_a_device_that_does_not_read_for_too_long() -> None:
    bench = await Bench(FakeContext(Limits(stuck_seconds_max=77.0))).reach(Phase.RELAYING)
    bench.session.pause_writing()
    assert bench.broker.reading  # or its memory would grow
    assert bench.device.reading
    timer = bench.session._timers[Timer.STUCK]
    assert 70 < timer.when() - bench.session._loop.time() <= 77
    bench.session.resume_writing()
    assert timer.cancelled()
    bench.session.resume_writing()  # nothing is wrong with that
    bench.session.pause_writing()
    run(bench.session._timers[Timer.STUCK])
    assert bench.outcomes["mqtt.session.too-slow"] == 1
    await bench.finish()


# Flow control


async def test_a_broker_that_does_not_read_stops_the_device() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bench.context.link.pause_writing()
    assert not bench.device.reading
    assert bench.broker.reading
    bench.context.link.resume_writing()
    assert bench.device.reading
    await bench.finish()


async def test_a_side_that_does_not_read_the_answers_it_causes_is_not_read_either() -> None:
    bench = await Bench().reach(Phase.RELAYING)
    bad = encode_publish(Publish("other", b"", 1, 1), V5)
    bench.session.data_received(bad)
    assert bench.device.reading
    bench.session.pause_writing()
    device_sends_a_message(bench.session)
    assert bench.device.reading  # no answer to that
    bench.session.data_received(bad)
    assert not bench.device.reading
    bench.session.resume_writing()
    assert bench.device.reading
    bench.context.link.pause_writing()
    bench.context.link.data_received(encode_publish(Publish("news/x", b"", 1, 1), V5))
    assert bench.broker.reading  # no answer to that
    bench.context.link.data_received(encode_publish(Publish("old/x", b"", 1, 1), V5))
    assert not bench.broker.reading
    bench.context.link.resume_writing()
    assert bench.broker.reading
    await bench.finish()


async def test_reading_resumes_when_every_reason_is_resolved() -> None:
    transport = FakeTransport()
    side = FlowControlledTransport(transport)
    side.resume(Pause.ANSWERS_UNREAD)  # it was not paused for that
    side.pause(Pause.AWAITING_CONNACK)
    side.pause(Pause.OTHER_SIDE_BLOCKED)
    side.resume(Pause.AWAITING_CONNACK)
    assert not transport.reading
    side.resume(Pause.OTHER_SIDE_BLOCKED)
    assert transport.reading
    block(side, None)
    assert side.blocked
    side.pause_if_blocked()
    assert not transport.reading
    transport.closing = True
    unblock(side, None)
    assert not side.blocked
    assert not transport.reading  # a closing transport is left alone
    side.pause(Pause.AWAITING_CONNACK)
    block(None, None)
    unblock(None, None)


async def test_a_slow_device_during_admission_has_no_broker_to_stop() -> None:
    bench = await Bench().reach(Phase.ADMITTING)
    bench.session.pause_writing()
    bench.session.resume_writing()
    assert bench.session.phase is Phase.ADMITTING
    await bench.finish()


# The log


async def test_what_a_line_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "fleet.gateway")
    bench = await Bench().reach(Phase.RELAYING)
    bench.session.log.opened_at -= 2
    bench.session.data_received(encode_publish(Publish("other", b""), V5))
    line = caplog.messages[-1]
    serial = CERTIFICATE.serial
    assert line.startswith(f"event=mqtt.publish device=cam-1 serial={serial} address=127.0.0.1 topic=other ms=2")
    assert line.endswith(" code=refused")
    await bench.finish()


@pytest.mark.parametrize("end", ["write", "close"])
@pytest.mark.parametrize("side", ["device", "broker"])
async def test_both_sides_are_released_whatever_one_raises(
    side: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("broken")

    bench = await Bench(will=Will("devices/cam-1/up/w", b"gone")).reach(Phase.RELAYING)
    ours = bench.session._device if side == "device" else bench.session._broker
    assert ours is not None
    relay = bench.session._relay
    assert relay is not None
    if end == "close":
        monkeypatch.setattr(FlowControlledTransport, "close" if side == "device" else "finish", fails)
    else:
        sieve = relay.to_device if side == "device" else relay.to_broker
        monkeypatch.setattr(type(sieve), "inject", fails)
    with pytest.raises(OSError, match="broken"):
        bench.session.close(close_reasons.SHUTTING_DOWN)
    released = [bench.device.closing, bench.broker.closing]
    assert released == ([True, True] if end == "write" else [side != "device", side != "broker"])
    assert bench.outcomes["mqtt.session.shutting-down"] == 1
    assert bench.session.phase is Phase.CLOSED
    await bench.finish()
