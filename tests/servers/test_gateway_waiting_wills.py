"""Which wills wait, for how long, and how they are cancelled; on a clock that jumps."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from msgspec import structs

from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialState
from fleet.domain.device import DeviceState
from fleet.domain.errors import Unavailable
from fleet.domain.model_rules import DEFAULT_RULES
from fleet.domain.ports import HolderFacts
from fleet.domain.recent import SWEEP_SECONDS_MIN
from fleet.domain.registry_events import SessionKicked, decode_event
from fleet.domain.topic_policy import policy_of
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.broker.visit import RETRY_SECONDS, VISITS_MAX, BrokerVisits
from fleet.servers.gateway.close_reasons import CloseReason
from fleet.servers.gateway.events.session_purge import SessionPurger
from fleet.servers.gateway.outcome_log import OutcomeLog
from fleet.servers.gateway.wills.cancellation import WillCancellation
from fleet.servers.gateway.wills.waiting import LATE_SECONDS, WaitingWill, WaitingWills, waiting_will
from fleet.services.admission import Admission
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, Connect, Will, decode_connect, encode_connack
from fleet.wire.mqtt.properties import NEVER, Properties, Property
from tests.call_counts import calls
from tests.servers.gateway_fixtures import MODEL, credential, device, peer_of
from tests.servers.gateway_relay_harness import RelayHarness
from tests.servers.test_gateway_session_purge import DEVICES, Broker
from tests.simulated_time import run

CERTIFICATE = credential("cam-1")


CAM = device("cam-1")
ADMISSION = Admission(CAM, CERTIFICATE, policy_of(CAM, MODEL))


def expires(seconds: int) -> Properties:
    return ((Property.SESSION_EXPIRY_INTERVAL, seconds),)


def asks(delay: int, expiry: int, version: int = V5) -> Connect:
    will = Will("all/cam2", b"gone", properties=((Property.WILL_DELAY_INTERVAL, delay),))
    return Connect(version, "cam-1", username="cam2", will=will, properties=expires(expiry))


def left(connect: Connect, connack: Properties = (), farewell: bytes = b"") -> tuple[float, float] | None:
    """Seconds until the will is due, and until the session ends; None: no will waits."""
    found = waiting_will(connect, ADMISSION, "t", Connack(False, 0, connack), farewell, 1000.0)
    return (found.due_at - 1000, found.session_ends_at - 1000) if found is not None else None


def test_for_how_long_a_will_waits() -> None:
    assert left(asks(30, 60)) == (30, 60)
    assert left(asks(60, 30)) == (30, 30)
    assert left(asks(30, NEVER)) == (30, math.inf)
    assert left(asks(NEVER, NEVER)) == (math.inf, math.inf)
    assert left(asks(NEVER, NEVER - 1)) == (NEVER - 1, NEVER - 1)
    for never in (asks(0, 60), asks(30, 0), asks(30, 60, V311), Connect(V5, "cam-1", properties=expires(60))):
        assert left(never) is None


def test_the_broker_or_a_disconnect_may_change_the_sessions_time() -> None:
    assert left(asks(30, 60), expires(10)) == (10, 10)
    assert left(asks(30, 60), expires(0)) is None
    assert left(asks(30, 60), expires(10), b"\x04\x05\x11\x00\x00\x00\x14") == (20, 20)
    assert left(asks(30, 60), (), b"\x00\x05\x11\x00\x00\x00\x00") == (30, 60)  # the broker may have refused it
    for without_expiry in (b"\x04", b"\x04\x00", b"\x04\x05\x11", b"\x04\xff\xff\xff\xff"):
        assert left(asks(30, 60), (), without_expiry) == (30, 60)


@pytest.mark.parametrize(
    ("last", "reason", "leaves", "in_order"),
    [
        (lambda relay: None, close_reasons.CLIENT_GONE, True, False),
        (lambda relay: relay.from_device(acks.disconnect(V5)), close_reasons.CLIENT_DISCONNECTED, True, True),
        (lambda relay: relay.from_device(b"\xe0\x02\x00\x00"), close_reasons.CLIENT_DISCONNECTED, True, True),
        (lambda relay: relay.from_device(b"\xe0\x01\x04"), close_reasons.CLIENT_DISCONNECTED, True, False),
        (
            lambda relay: relay.from_device(acks.disconnect(V5, Reason.QUOTA_EXCEEDED)),
            close_reasons.CLIENT_DISCONNECTED,
            True,
            False,
        ),
        (
            lambda relay: relay.from_broker(acks.disconnect(V5, Reason.SESSION_TAKEN_OVER)),
            close_reasons.TAKEN_OVER,
            False,
            False,
        ),
        (
            lambda relay: relay.from_broker(acks.disconnect(V5, Reason.SERVER_BUSY)),
            close_reasons.BROKER_CLOSED,
            True,
            False,
        ),
        (lambda relay: None, close_reasons.KEEP_ALIVE_EXPIRED, True, False),
        (lambda relay: None, close_reasons.SHUTTING_DOWN, False, True),
        (lambda relay: None, close_reasons.EVENTS_MISSED, False, True),
        (lambda relay: None, close_reasons.DEVICE_ENDED, True, True),
    ],
)
def test_whether_a_connection_may_leave_its_will(
    last: Callable[[Any], object], reason: CloseReason, leaves: bool, in_order: bool
) -> None:
    """A DISCONNECT proves nothing: the broker may refuse it, or a packet before it."""
    harness = RelayHarness(V5)
    last(harness.relay)
    harness.relay.disconnect(reason)
    assert harness.relay.may_leave_will(reason) is leaves
    assert harness.relay.left_in_order is in_order


def waits(name: str, due_at: float, ends_at: float = math.inf, fingerprint: bytes = b"") -> WaitingWill:
    will = waiting_will(asks(30, 60), ADMISSION, peer_of(CERTIFICATE).tenant, None, b"", 0.0)
    assert will is not None
    changed = {"device": device(name), "due_at": due_at, "session_ends_at": ends_at}
    fields = {each: getattr(will, each) for each in WaitingWill.__slots__}
    return WaitingWill(**{**fields, **changed, "fingerprint": fingerprint or CERTIFICATE.fingerprint})


def test_a_newcomers_will_has_no_delay_while_the_table_is_full() -> None:
    wills = WaitingWills(3)
    for number in range(3):
        assert wills.has_room(0.0)
        wills.add(waits(f"cam-{number}", due_at=10.0 + number), 0.0)
    assert not wills.has_room(0.0)
    wills.add(waits("cam-2", due_at=20.0), 0.0)  # again: one for each device
    assert len(wills) == 3
    wills.add(waits("cam-3", due_at=5.0), 0.0)  # of a session that began while there was room: none is forgotten
    assert {will.device.id for will in wills} == {f"cam-{number}" for number in range(4)}
    assert not wills.has_room(9.9)
    wills.drop("cam-0")
    assert wills.has_room(9.9)
    wills.drop("cam-0")
    assert len(wills) == 2  # cam-3's has been published


def test_a_will_costs_the_same_however_many_others_wait() -> None:
    """All client ids were looked at for each will of a device that had left before, where all wills have other ids."""

    def cost(count: int) -> int:
        wills = WaitingWills(1000)
        for number in range(count):
            wills.add(replace(waits(f"cam-{number}", due_at=10.0), other_client_id=f"cam-{number}/app"), 0.0)
        again = next(iter(wills))
        wills.drop(again.client_id)
        return calls(lambda: wills.add(again, 0.0))

    assert cost(20) == cost(200)


def test_client_ids_whose_wills_have_gone_are_forgotten() -> None:
    wills = WaitingWills(1000)
    for number in range(100):
        will = replace(waits(f"cam-{number}", due_at=10.0), other_client_id=f"cam-{number}/app")
        wills.add(will, 0.0)
        wills.drop(will.client_id)
    assert len(wills._others) <= 3


def test_a_will_is_known_until_the_broker_has_looked() -> None:
    wills = WaitingWills(1)
    will = waits("cam-1", due_at=10.0)
    wills.add(will, 0.0)
    assert wills.of_client("cam-1", 10.0 + LATE_SECONDS - 0.1) is will
    assert wills.of_client("cam-1", 10.0 + LATE_SECONDS) is None
    assert wills.of_client("cam-2", 0.0) is None
    assert not wills.has_room(10.0 + LATE_SECONDS - 0.1)
    assert not wills.has_room(10.0 + LATE_SECONDS)  # looked a moment ago
    assert wills.has_room(10.0 + LATE_SECONDS - 0.1 + SWEEP_SECONDS_MIN)


def test_when_a_will_is_due_by_what_a_disconnect_said() -> None:
    def left(farewell: bytes, now: float) -> float:
        will = waiting_will(asks(30, 60), ADMISSION, None, None, farewell, 1000.0)
        assert will is not None
        return will.seconds_left(now)

    sooner = b"\x04\x05\x11\0\0\0\x05"
    times = [left(sooner, 1000.0 + each) for each in (0, 4, 6, 5 + LATE_SECONDS, 40)]
    assert times == [5, 1, 0, 25 - LATE_SECONDS, 0]
    for same in (b"", b"\x04", b"\x04\x05\x11\0\0\0\0"):  # with 0 it has been published, or is due as it was
        assert left(same, 1010.0) == 20


@dataclass
class Stage:
    """A registry, the sessions of a gateway, and a broker."""

    broker: Broker = field(default_factory=lambda: Broker(encode_connack(Connack(True, 0), V5), 0.1))
    here: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    facts: HolderFacts | Exception | None = None

    def __post_init__(self) -> None:
        self.broker.is_ours = True
        self.wills, self.outcomes = WaitingWills(1000), OutcomeLog()
        self.broker_visits = BrokerVisits(self.broker)
        self.cancellation = WillCancellation(
            self.wills, cast(Any, self), self.broker_visits, self.outcomes, cast(Any, self)
        )

    def holds(self, device_id: str) -> bool:
        return device_id in self.here

    async def is_held_elsewhere(self, device_id: str) -> bool | None:
        self.asked.append(device_id)
        return None if device_id in self.unknown else device_id in self.elsewhere

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        if isinstance(self.facts, Exception):
            raise self.facts
        return self.facts

    def add(self, *names: str, **times: float) -> None:
        for name in names:
            will = waits(name, times.get("due_at", seconds() + 100), times.get("ends_at", math.inf))
            self.wills.add(will, seconds())

    def state(self, name: str, state: DeviceState) -> None:
        self.cancellation.on_event(decode_event(Event(EventKind.DEVICE_STATE, name, state)))

    def visits(self) -> list[tuple[str, str | None, bool, object]]:
        """Client id, user name, Clean Start and session expiry of each connection to the broker."""
        found = [decode_connect(connection.sent[2:-2]) for connection in self.broker.connections]
        return [(each.client_id, each.username, each.clean, each.properties[0][1]) for each in found]


def seconds() -> float:
    return asyncio.get_running_loop().time()


def staged(scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage()
        try:
            await scene(stage)
        finally:
            await stage.cancellation.close()

    run(main())


@pytest.mark.parametrize("state", DeviceState)
def test_a_device_that_leaves_service_takes_its_will_along(state: DeviceState) -> None:
    async def scene(stage: Stage) -> None:
        stage.add("cam-1", "cam-2", ends_at=seconds() + 60)
        stage.state("cam-1", state)
        await asyncio.sleep(5)
        ended = state is not DeviceState.ACTIVE
        expiry = 0 if state in (DeviceState.REVOKED, DeviceState.RETIRED) else 60
        assert stage.visits() == ([("cam-1", "cam2", False, expiry)] if ended else [])
        assert {will.device.id for will in stage.wills} == ({"cam-2"} if ended else {"cam-1", "cam-2"})
        assert stage.outcomes.counts == ({"mqtt.will.cancelled": 1} if ended else {})

    staged(scene)


@pytest.mark.parametrize(
    ("kicked", "left"),
    [
        (SessionKicked("cam-1"), {"cam-1/app": False, "cam-1": False, "cam-2": True}),
        (SessionKicked("cam-1", "cam-1"), {"cam-1/app": True, "cam-1": False, "cam-2": True}),
        (SessionKicked("cam-1", "cam-1/app"), {"cam-1/app": False, "cam-1": True, "cam-2": True}),
        (SessionKicked("cam-1", publishes_will=True), {"cam-1/app": True, "cam-1": True, "cam-2": True}),
        (SessionKicked("cam-3"), {"cam-1/app": True, "cam-1": True, "cam-2": True}),
    ],
)
def test_a_kick_without_will_cancels_one_that_waits(kicked: SessionKicked, left: dict[str, bool]) -> None:
    async def scene(stage: Stage) -> None:
        stage.add("cam-1", "cam-2", ends_at=seconds() + 60)
        of_app = replace(waits("cam-1", seconds() + 100, seconds() + 60), other_client_id="cam-1/app")
        stage.wills.add(of_app, seconds())
        stage.cancellation.on_event(kicked)
        await asyncio.sleep(5)
        assert {will.client_id for will in stage.wills} == {name for name, waits in left.items() if waits}
        cancelled = [name for name, waits in left.items() if not waits]
        # The session with its messages goes on at the broker.
        assert sorted(stage.visits()) == sorted((name, "cam2", False, 60) for name in cancelled)

    staged(scene)


def test_who_is_connected_is_not_thrown_out() -> None:
    async def scene(stage: Stage) -> None:
        stage.add("cam-1", "cam-2", "cam-3")
        stage.here, stage.elsewhere = {"cam-1"}, {"cam-2"}
        for name in ("cam-1", "cam-2", "cam-3"):
            stage.state(name, DeviceState.SUSPENDED)
        await asyncio.sleep(5)
        assert [visit[0] for visit in stage.visits()] == ["cam-3"]
        assert {will.device.id for will in stage.wills} == {"cam-1"}  # its CONNACK may not come
        stage.here.clear()
        await asyncio.sleep(RETRY_SECONDS + 1)
        assert [visit[0] for visit in stage.visits()] == ["cam-3", "cam-1"]
        assert stage.outcomes.counts == {"mqtt.will.cancelled": 2, "mqtt.will.returned": 1}

    staged(scene)


def test_nobody_is_thrown_out_while_the_other_gateways_have_not_answered() -> None:
    async def scene(stage: Stage) -> None:
        stage.add("cam-1", "cam-2")
        stage.add("cam-3", due_at=seconds() + 3)
        stage.unknown = {"cam-1", "cam-2", "cam-3"}
        for name in ("cam-1", "cam-2", "cam-3"):
            stage.state(name, DeviceState.SUSPENDED)
        await asyncio.sleep(60)
        assert stage.visits() == []
        assert stage.asked.count("cam-3") == 5  # until it has been published
        stage.unknown.clear()
        stage.elsewhere = {"cam-2"}
        await asyncio.sleep(RETRY_SECONDS + 1)
        assert [visit[0] for visit in stage.visits()] == ["cam-1"]
        assert stage.outcomes.counts == {"mqtt.will.cancelled": 1, "mqtt.will.returned": 1}

    staged(scene)


def test_other_gateways_get_their_time_and_a_will_that_is_due_sooner_half_of_its_own() -> None:
    async def scene(stage: Stage) -> None:
        stage.cancellation.after_seconds = 1.0
        begun = seconds()
        stage.add("cam-1")
        stage.add("cam-2", due_at=begun + 0.5)
        stage.add("cam-3")
        for name in ("cam-1", "cam-2", "cam-3"):
            stage.state(name, DeviceState.SUSPENDED)
        await asyncio.sleep(0.9)
        stage.wills.drop("cam-3")  # it has returned
        await asyncio.sleep(5)
        assert [visit[0] for visit in stage.visits()] == ["cam-2", "cam-1"]
        assert [round(at - begun, 2) for at in stage.broker.began] == [0.25, 1.0]

    staged(scene)


def test_a_session_that_the_broker_did_not_have_is_not_left_there() -> None:
    async def scene(stage: Stage) -> None:
        stage.broker.answer = encode_connack(Connack(False, 0), V5)
        stage.add("cam-1", ends_at=seconds() + 60)
        stage.state("cam-1", DeviceState.SUSPENDED)
        await asyncio.sleep(5)
        (connection,) = stage.broker.connections
        assert connection.sent.endswith(acks.ends_session())
        assert stage.outcomes.counts == {"mqtt.will.cancelled": 1}

    staged(scene)


def test_a_broker_that_fails_is_asked_again_until_it_has_published() -> None:
    async def scene(stage: Stage) -> None:
        stage.broker.error = ConnectionRefusedError()
        stage.add("cam-1", due_at=seconds() + 3)
        stage.state("cam-1", DeviceState.SUSPENDED)
        await asyncio.sleep(60)
        assert stage.outcomes.counts == {"mqtt.will.failed": 5}  # 3 s, and the 2 s that it may take the broker
        stage.add("cam-1")
        stage.state("cam-1", DeviceState.SUSPENDED)
        await asyncio.sleep(1.5)
        stage.broker.error = None
        await asyncio.sleep(60)
        assert stage.outcomes.counts == {"mqtt.will.failed": 7, "mqtt.will.cancelled": 1}

    staged(scene)


@pytest.mark.parametrize(
    ("facts", "cancels"),
    [
        (HolderFacts(CERTIFICATE, CAM, MODEL), False),
        (HolderFacts(structs.replace(CERTIFICATE, state=CredentialState.SUPERSEDED), CAM, MODEL), False),
        (HolderFacts(structs.replace(CERTIFICATE, state=CredentialState.REVOKED), CAM, MODEL), True),
        (HolderFacts(CERTIFICATE, structs.replace(CAM, state=DeviceState.SUSPENDED), MODEL), True),
        (HolderFacts(CERTIFICATE, CAM, structs.replace(MODEL, publish=())), True),
        (HolderFacts(CERTIFICATE), True),
        (None, True),
        (Unavailable("disk", "The disk is gone."), True),
    ],
    ids=["well", "superseded", "revoked", "suspended", "policy", "no-device", "unknown", "unavailable"],
)
@pytest.mark.parametrize("detail", [CERTIFICATE.fingerprint.hex(), "", None], ids=["certificate", "all", "missed"])
def test_what_the_registry_says_of_a_certificate(
    facts: HolderFacts | Unavailable | None, cancels: bool, detail: str | None
) -> None:
    async def scene(stage: Stage) -> None:
        stage.add("cam-1")
        stage.facts = facts
        if detail is None:
            stage.cancellation.on_events_missed()
        else:
            stage.cancellation.on_event(
                decode_event(Event(EventKind.CREDENTIAL_ENDED, "cam-1", credential("x").fingerprint.hex()))
            )
            stage.cancellation.on_event(decode_event(Event(EventKind.CREDENTIAL_ENDED, "cam-1", detail)))
        await asyncio.sleep(5)
        assert stage.outcomes.counts == ({"mqtt.will.cancelled": 1} if cancels else {})

    staged(scene)


def test_a_model_that_forbids_the_will() -> None:
    other_tenant = structs.replace(DEFAULT_RULES, tenant="other")

    async def scene(stage: Stage) -> None:
        for changed, cancelled in (
            (structs.replace(MODEL, subscribe=()), 0),
            (structs.replace(MODEL, name="another", publish=()), 0),
            (structs.replace(MODEL, publish=()), 1),
            (structs.replace(MODEL, rules=other_tenant), 2),
        ):
            stage.add("cam-1")
            stage.cancellation.on_model(changed)
            await asyncio.sleep(5)
            assert stage.outcomes.counts.get("mqtt.will.cancelled", 0) == cancelled

    staged(scene)


def test_a_tag_that_forbids_the_will() -> None:
    model = structs.replace(MODEL, publish=("all/{tag:site}",))

    async def scene(stage: Stage) -> None:
        for site, cancelled in (("cam2", 0), ("other", 1)):
            stage.add("cam-1")
            owner = structs.replace(device("cam-1"), tags=(("site", site),))
            stage.facts = HolderFacts(CERTIFICATE, owner, model)
            stage.cancellation.on_event(decode_event(Event(EventKind.DEVICE_TAGGED, "cam-1")))
            stage.cancellation.on_event(decode_event(Event(EventKind.DEVICE_TAGGED, "cam-2")))
            await asyncio.sleep(5)
            assert stage.outcomes.counts.get("mqtt.will.cancelled", 0) == cancelled
        stage.add("cam-1")
        stage.cancellation.on_model(model)  # the tags of its device may have changed since
        await asyncio.sleep(5)
        assert stage.outcomes.counts["mqtt.will.cancelled"] == 2

    staged(scene)


def test_before_a_stop_all_are_cancelled_some_at_once_and_what_takes_too_long_is_left() -> None:
    async def scene(stage: Stage) -> None:
        stage.add(*(f"cam-{number}" for number in range(3 * VISITS_MAX)))
        begun = seconds()
        assert await stage.cancellation.cancel_all(0.25) == VISITS_MAX  # three rounds of 0.1 s
        assert seconds() - begun == pytest.approx(0.25)
        assert stage.asked == []  # the others stop, too
        assert await stage.cancellation.cancel_all(0.25) == 0
        assert await stage.cancellation.cancel_all(0.25) == 0
        assert stage.outcomes.counts == {"mqtt.will.cancelled": 3 * VISITS_MAX}

    staged(scene)


def test_before_a_stop_those_that_hardly_wait_come_last_and_do_not_count() -> None:
    async def scene(stage: Stage) -> None:
        for number in range(VISITS_MAX):
            left = replace(waits(f"left-{number}", due_at=seconds() + 100), left_in_order=True)
            stage.wills.add(left, seconds())
        stage.add(*(f"lost-{number}" for number in range(VISITS_MAX)))
        assert await stage.cancellation.cancel_all(0.15) == 0  # one round of 0.1 s
        assert all(visit[0].startswith("lost-") for visit in stage.visits()[:VISITS_MAX])
        assert {will.device.id for will in stage.wills} == {f"left-{number}" for number in range(VISITS_MAX)}

    staged(scene)


def test_what_nobody_expected_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        stage.facts = KeyError("looked up")
        stage.add("cam-1")
        stage.cancellation.on_events_missed()
        await asyncio.sleep(5)
        assert [record.message for record in caplog.records if record.exc_info] == ["event=gateway.failed"]
        stage.broker.error = RuntimeError("cancelled")
        assert await stage.cancellation.cancel_all(2.0) == 1
        stage.broker.error = None
        assert await stage.cancellation.cancel_all(2.0) == 0
        failures = [record.exc_info for record in caplog.records if record.exc_info]
        assert [info[0] for info in failures] == [KeyError, RuntimeError]

    staged(scene)


def test_purges_and_cancelled_wills_have_one_bound() -> None:
    async def scene(stage: Stage) -> None:
        stage.broker.delay = 2.0
        purger, begun = SessionPurger(stage.broker_visits, DEVICES, stage.outcomes), seconds()
        for number in range(VISITS_MAX - 1):
            purger.on_event(decode_event(Event(EventKind.DEVICE_STATE, f"lock-{number}", DeviceState.REVOKED)))
        await asyncio.sleep(1.0)
        stage.add("cam-1", "cam-2")
        for name in ("cam-1", "cam-2"):
            stage.state(name, DeviceState.SUSPENDED)
        await asyncio.sleep(60)
        assert [round(at - begun) for at in stage.broker.began] == [0] * (VISITS_MAX - 1) + [1, 2]

    staged(scene)
