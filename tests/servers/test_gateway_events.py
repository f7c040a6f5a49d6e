"""What each event of the registry does to the sessions of one gateway: which end, which change, and what the broker is
told first."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from msgspec.structs import replace

from fleet.domain.changes import Event, EventKind
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Unavailable
from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import Gateway, GatewayOptions, Limits, close_reasons
from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.upstream import UpstreamAccess
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.services.admission import Admission
from tests.simulated_time import run

CAM, PUMP = Model("cam"), Model("pump")


class Registry:
    """The feed and the models, in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.known = {"cam": CAM, "pump": PUMP}
        self.devices: dict[str, Device] = {}
        self.error: Unavailable | None = None

    def tell(self, kind: str, subject: str, detail: str = "") -> None:
        self.events.append(Event(kind, subject, detail, len(self.events) + 1))

    async def first_event(self) -> int:
        return min(1, len(self.events))

    async def last_event(self) -> int:
        if self.error is not None:
            raise self.error
        return len(self.events)

    async def follow(self, after: int) -> AsyncGenerator[Event, None]:
        while True:
            for event in self.events[after:]:
                yield event
                after = event.seq
            await asyncio.sleep(0.1)

    async def model(self, name: str) -> Model | None:
        return self.known.get(name)

    async def device(self, device_id: str) -> Device | None:
        if self.error is not None:
            raise self.error
        return self.devices.get(device_id)

    async def models(self) -> list[Model]:
        if self.error is not None:
            raise self.error
        return list(self.known.values())


@dataclass
class Broker:
    log: list[str]
    speaks_v5: bool = True
    is_ours: bool = False
    access = UpstreamAccess()
    error: Exception | None = None
    slow: asyncio.Event | None = None
    connected: int = 0

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        if isinstance(self.error, OSError):
            raise self.error
        self.connected += 1

    async def set_models(self, models: Sequence[Model]) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.error is not None:
            raise self.error
        self.log.append("broker " + " ".join(model.name for model in models))

    @property
    def address(self) -> str:
        return "unix:fake"

    def describe(self) -> str:
        return "a broker"

    async def close(self) -> None: ...


@dataclass(eq=False)
class Session:
    """What a gateway asks of a session."""

    log: list[str]
    name: str
    admission: Any = None
    ends: list[CloseReason] = field(default_factory=list)
    changes: int = 0

    def close(self, reason: CloseReason) -> None:
        self.ends.append(reason)

    def model_changed(self) -> None:
        self.changes += 1

    def set_model(self, model: Model) -> None:
        self.log.append(f"{self.name} {model.name}")


class Stage:
    def __init__(self, limits: Limits | None = None) -> None:
        self.log: list[str] = []
        self.registry, self.broker = Registry(), Broker(self.log)
        self.gateway = Gateway(
            cast(Any, self.registry),
            self.broker,
            clock=lambda: datetime.now(UTC),
            options=GatewayOptions(limits=limits or Limits(), purges=False),
        )

    def session(self, device: str, fingerprint: bytes, model: Model | None = CAM) -> Session:
        """One that is admitted as a device of `model`; None: not admitted yet."""
        admission = None
        if model is not None:
            known = Device(DeviceId(device), model.name, DeviceState.ACTIVE, datetime(2026, 3, 1, tzinfo=UTC))
            self.registry.devices[device] = known
            admission = Admission(known, cast(Any, None), TopicPolicy((), ()))
        made = Session(self.log, device, admission)
        sessions = cast(Any, self.gateway.context.open_sessions)
        sessions.add(made, fingerprint)
        sessions.claim(made, device)
        return made

    async def told(self, kind: str, subject: str, detail: str = "") -> None:
        """Tell an event, and let it arrive."""
        self.registry.tell(kind, subject, detail)
        await asyncio.sleep(1)


def staged(scene: Callable[[Stage], Awaitable[None]], limits: Limits | None = None) -> None:
    async def main() -> None:
        stage = Stage(limits)
        following = asyncio.create_task(stage.gateway.run())
        await stage.gateway.following()
        try:
            await scene(stage)
        finally:
            following.cancel()
            await stage.gateway.close()

    run(main())


@pytest.mark.parametrize("state", DeviceState)
def test_a_device_that_leaves_service_loses_its_sessions(state: DeviceState) -> None:
    async def scene(stage: Stage) -> None:
        one, other = stage.session("cam-1", b"a"), stage.session("cam-1", b"b")
        waiting, bystander = stage.session("cam-1", b"c", None), stage.session("cam-2", b"d")
        await stage.told(EventKind.DEVICE_STATE, "cam-1", state)
        wanted = [] if state is DeviceState.ACTIVE else [close_reasons.device_ended(state)]
        assert [each.ends for each in (one, other, waiting, bystander)] == [wanted] * 3 + [[]]

    staged(scene)


def test_a_certificate_that_ends_takes_its_own_sessions_with_it() -> None:
    async def scene(stage: Stage) -> None:
        old, new, bystander = stage.session("cam-1", b"a"), stage.session("cam-1", b"b"), stage.session("cam-2", b"c")
        await stage.told(EventKind.CREDENTIAL_ENDED, "cam-1", b"a".hex())
        assert [each.ends for each in (old, new, bystander)] == [[close_reasons.CREDENTIAL_ENDED], [], []]
        await stage.told(EventKind.CREDENTIAL_ENDED, "cam-1")  # all of the holder's
        assert [len(each.ends) for each in (old, new, bystander)] == [2, 1, 0]

    staged(scene)


@pytest.mark.parametrize("kind", [EventKind.CREDENTIAL_ISSUED, EventKind.CLAIM_STATE, EventKind.REQUEST_DECIDED])
def test_other_events_end_nothing(kind: str) -> None:
    async def scene(stage: Stage) -> None:
        session = stage.session("cam-1", b"a")
        await stage.told(kind, "cam-1", b"a".hex())
        assert (session.ends, session.changes, stage.log) == ([], 0, [])

    staged(scene)


def test_a_changed_model_reaches_the_broker_first_and_then_its_own_sessions() -> None:
    async def scene(stage: Stage) -> None:
        sessions = [stage.session("a", b"a"), stage.session("b", b"b", PUMP), stage.session("c", b"c", None)]
        await stage.told(EventKind.MODEL_CHANGED, "cam")
        assert stage.log == ["broker cam pump", "a cam"]
        assert [each.changes for each in sessions] == [1, 1, 1]  # each that is being admitted looks again
        assert stage.gateway.stats == {"mqtt.model.applied": 1}
        await stage.told(EventKind.MODEL_CHANGED, "none")
        assert stage.log == ["broker cam pump", "a cam"]

    staged(scene)


def test_new_tags_reach_the_sessions_of_their_device() -> None:
    async def scene(stage: Stage) -> None:
        sessions = [stage.session("a", b"a"), stage.session("a", b"b", None), stage.session("b", b"c")]
        stage.registry.devices["a"] = tagged = replace(stage.registry.devices["a"], tags=(("site", "essen"),))
        await stage.told(EventKind.DEVICE_TAGGED, "a")
        assert stage.log == ["a cam"]
        assert sessions[0].admission.device is tagged
        assert [each.changes for each in sessions] == [1, 1, 0]  # one that is being admitted looks again
        assert not any(each.ends for each in sessions)
        await stage.told(EventKind.DEVICE_TAGGED, "other")
        assert stage.log == ["a cam"]

    staged(scene)


def test_a_session_whose_tags_cannot_be_read_ends() -> None:
    async def scene(stage: Stage) -> None:
        session, bystander = stage.session("a", b"a"), stage.session("b", b"b")
        stage.registry.error = Unavailable("no-registry", "It is down.")
        await stage.told(EventKind.DEVICE_TAGGED, "a")
        assert (session.ends, bystander.ends) == ([close_reasons.EVENTS_MISSED], [])

    staged(scene)


@pytest.mark.parametrize("error", [OSError("gone"), TimeoutError()])
def test_a_broker_that_takes_no_rules_keeps_them_from_nobody(error: Exception) -> None:
    async def scene(stage: Stage) -> None:
        stage.session("a", b"a")
        stage.broker.error = error
        await stage.told(EventKind.MODEL_CHANGED, "cam")
        assert stage.log == ["a cam"]

    staged(scene)


def test_a_slow_broker_delays_no_revocation_and_the_last_model_counts() -> None:
    async def scene(stage: Stage) -> None:
        session = stage.session("a", b"a")
        stage.broker.slow = asyncio.Event()
        await stage.told(EventKind.MODEL_CHANGED, "cam")
        stage.registry.known["pump"] = Model("pump", retain=True)
        await stage.told(EventKind.MODEL_CHANGED, "pump")
        await stage.told(EventKind.DEVICE_STATE, "a", DeviceState.REVOKED)
        assert (session.ends, stage.log) == ([close_reasons.device_ended("revoked")], [])
        stage.broker.slow.set()
        await asyncio.sleep(1)
        assert stage.log == ["broker cam pump", "a cam", "broker cam pump"]

    staged(scene)


def test_lost_events_end_every_session() -> None:
    async def scene(stage: Stage) -> None:
        sessions = [stage.session("a", b"a"), stage.session("b", b"b", None)]
        await stage.told(EventKind.DEVICE_TAGGED, "a")
        stage.registry.events.clear()  # restored to an older state
        await asyncio.sleep(10)
        assert [each.ends for each in sessions] == [[close_reasons.EVENTS_MISSED]] * 2

    staged(scene)


def test_the_broker_is_told_of_a_model_that_it_does_not_know_before_its_first_device() -> None:
    async def scene(stage: Stage) -> None:
        for model in ("cam", "cam", "pump"):
            await stage.gateway.context.broker.connect(model, asyncio.Protocol)
        assert (stage.log, stage.broker.connected) == (["broker cam pump"], 3)
        stage.registry.known["lamp"] = Model("lamp")
        await stage.gateway.context.broker.connect("lamp", asyncio.Protocol)
        assert stage.log == ["broker cam pump", "broker cam pump lamp"]

    staged(scene)


def test_a_broker_or_registry_that_is_down_ends_the_one_session() -> None:
    async def scene(stage: Stage) -> None:
        stage.broker.error = ConnectionRefusedError()
        with pytest.raises(CloseSession) as caught:
            await stage.gateway.context.broker.connect("cam", asyncio.Protocol)
        assert caught.value.reason is close_reasons.BROKER_UNREACHABLE
        stage.broker.error, stage.registry.error = None, Unavailable("disk", "The disk is gone.")
        with pytest.raises(CloseSession) as caught:
            await stage.gateway.context.broker.connect("cam", asyncio.Protocol)
        assert caught.value.reason is close_reasons.BROKER_UNREACHABLE

    staged(scene)


def test_its_feed_is_up_for_as_long_as_its_limit_allows() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(3)
        assert stage.gateway.context.feed_is_up()
        stage.registry.error = Unavailable("disk", "The disk is gone.")
        await asyncio.sleep(18)
        assert stage.gateway.context.feed_is_up()
        await asyncio.sleep(7)
        assert not stage.gateway.context.feed_is_up()

    staged(scene, Limits(feed_silence_seconds_max=20.0))


def test_closing_tells_every_session_and_ends_what_is_under_way(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        session = stage.session("a", b"a")
        stage.broker.slow = asyncio.Event()
        await stage.told(EventKind.MODEL_CHANGED, "cam")
        assert stage.gateway.sessions == 1
        await stage.gateway.close()
        assert (session.ends, stage.log) == ([close_reasons.SHUTTING_DOWN], [])
        await asyncio.sleep(1)
        assert caplog.records == []  # work that is cancelled has not failed

    staged(scene)


def test_work_that_is_done_costs_no_memory() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(10):
            await stage.told(EventKind.MODEL_CHANGED, "cam")
        assert not stage.gateway._tasks

    staged(scene)


def test_work_that_fails_is_logged_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise LookupError("ours")

    async def scene(stage: Stage) -> None:
        stage.gateway.context.spawn(fails())
        await asyncio.sleep(1)
        assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [LookupError]
        assert stage.gateway.context.feed_is_up()
        assert stage.gateway.context.broker.speaks_v5

    staged(scene)
