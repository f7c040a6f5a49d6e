"""When an external broker is probed, and what its status says, on a clock that jumps."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from fleet.domain.device import Model
from fleet.servers.gateway.broker.header_first import Factory
from fleet.servers.gateway.broker.probed_upstream import ProbedUpstream
from fleet.servers.gateway.broker.upstream import AddressUpstream, SocketUpstream, UpstreamAccess
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V311
from fleet.wire.mqtt.connect import Connack, encode_connack
from tests.simulated_time import run

BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
PROBE_SECONDS = 5.0


class Connection(asyncio.Transport):
    """To a broker that answers CONNECT and PINGREQ."""

    closed = False

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        answer = acks.PINGRESP if data == acks.PINGREQ else encode_connack(Connack(False, 0), V311)
        asyncio.get_running_loop().call_soon(self._protocol.data_received, answer)

    def abort(self) -> None:
        self.closed = True


class Broker:
    """An upstream in memory."""

    speaks_v5 = False
    is_ours = False
    access = UpstreamAccess()

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.tried: list[float] = []
        self.connections: list[Connection] = []
        self.models: Sequence[Model] = ()
        self.is_closed = False

    async def connect(self, factory: Factory, header: bytes = b"") -> None:
        self.tried.append(seconds())
        if self.error is not None:
            raise self.error
        protocol = factory()
        assert isinstance(protocol, asyncio.Protocol)
        self.connections.append(Connection(protocol))
        protocol.connection_made(self.connections[-1])

    async def set_models(self, models: Sequence[Model]) -> None:
        self.models = models

    @property
    def address(self) -> str:
        return "unix:fake"

    def describe(self) -> str:
        return "mqtt://broker:1883"

    async def close(self) -> None:
        self.is_closed = True


def seconds() -> float:
    return asyncio.get_running_loop().time()


def watched(scene: Callable[[Broker, ProbedUpstream], Awaitable[None]], error: BaseException | None = None) -> None:
    """Run `scene` with a broker that is monitored, and at first answers with `error` if any."""

    async def main() -> None:
        broker, begin = Broker(), seconds()
        broker.error = error
        upstream = ProbedUpstream(
            broker, clock=lambda: BEGIN + timedelta(seconds=seconds() - begin), probe_seconds=PROBE_SECONDS
        )
        watch = asyncio.create_task(upstream.run())
        try:
            await scene(broker, upstream)
        finally:
            watch.cancel()

    run(main())


async def a_session(upstream: ProbedUpstream) -> None:
    await upstream.connect(asyncio.Protocol)


def test_a_broker_that_answers_is_probed_once() -> None:
    async def scene(broker: Broker, upstream: ProbedUpstream) -> None:
        await asyncio.sleep(3600)
        assert len(broker.tried) == 1
        assert not broker.connections[0].closed  # it is asked again on that
        assert upstream.status() == {
            "broker": "mqtt://broker:1883",
            "reachable": True,
            "since": "2030-01-01T00:00:00Z",
            "answers": True,
        }
        await a_session(upstream)
        assert not broker.connections[-1].closed  # a session's own
        assert upstream.status()["since"] == "2030-01-01T00:00:00Z"

    watched(scene)


def test_a_broker_that_does_not_is_probed_until_it_does() -> None:
    async def scene(broker: Broker, upstream: ProbedUpstream) -> None:
        await asyncio.sleep(52)
        assert (len(broker.tried), broker.tried[-1] - broker.tried[0]) == (11, 50.0)
        assert upstream.status()["reachable"] is False
        assert upstream.status()["since"] == "2030-01-01T00:00:00Z"  # not renewed by each probe
        broker.error = None
        await asyncio.sleep(5)
        assert upstream.status()["reachable"] is True
        assert upstream.status()["since"] == "2030-01-01T00:00:55Z"
        tried = len(broker.tried)
        await asyncio.sleep(3600)
        assert len(broker.tried) == tried

    watched(scene, ConnectionRefusedError())


@pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError()])
def test_a_session_that_cannot_connect_has_it_probed_again(error: Exception) -> None:
    async def scene(broker: Broker, upstream: ProbedUpstream) -> None:
        await asyncio.sleep(101)
        broker.error = error
        with pytest.raises(type(error)):
            await a_session(upstream)
        assert (upstream.status()["reachable"], upstream.status()["since"]) == (False, "2030-01-01T00:01:41Z")
        await asyncio.sleep(3)
        assert len(broker.tried) == 2  # the probe at the start, and the session
        await asyncio.sleep(4)
        assert len(broker.tried) == 3
        broker.error = None
        await a_session(upstream)  # it need not wait for the next probe
        assert upstream.status()["reachable"] is True

    watched(scene)


def test_the_log_says_why_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(broker: Broker, upstream: ProbedUpstream) -> None:
        await asyncio.sleep(60)
        broker.error = None
        await asyncio.sleep(60)

    caplog.set_level(logging.WARNING)
    watched(scene, TimeoutError())  # an error without a text of its own
    told = [record.getMessage() for record in caplog.records if record.name == "fleet.broker"]
    away, back = [line for line in told if line.startswith("event=upstream ")]
    assert "outcome=unreachable" in away
    assert "reason=TimeoutError" in away
    assert "outcome=reachable-again" in back


def test_a_fault_of_ours_is_not_the_brokers() -> None:
    async def scene(broker: Broker, upstream: ProbedUpstream) -> None:
        await asyncio.sleep(1)
        broker.error = RuntimeError("ours")
        with pytest.raises(RuntimeError, match="ours"):
            await a_session(upstream)
        assert upstream.status()["reachable"] is True

    watched(scene)


def test_the_time_of_its_status_is_utc() -> None:
    east = timezone(timedelta(hours=2))
    upstream = ProbedUpstream(Broker(), clock=lambda: datetime(2030, 1, 1, 2, 0, 0, 900_000, tzinfo=east))
    assert upstream.status() == {
        "broker": "mqtt://broker:1883",
        "reachable": None,
        "since": "2030-01-01T00:00:00Z",
        "answers": True,
    }


def test_all_else_is_the_brokers() -> None:
    async def scene(broker: Broker, upstream: ProbedUpstream) -> None:
        models = (Model("cam2"),)
        await upstream.set_models(models)
        await upstream.close()
        assert (broker.models, broker.is_closed) == (models, True)
        assert (upstream.describe(), upstream.speaks_v5) == ("mqtt://broker:1883", False)

    watched(scene)


def test_an_external_broker_is_one_at_an_address() -> None:
    for broker in (AddressUpstream("broker", 1883), SocketUpstream(Path("/run/broker"))):
        assert "reachable" in ProbedUpstream(broker).status()
    own = Broker()
    own.is_ours = True
    assert ProbedUpstream(own).status() == {"broker": "mqtt://broker:1883", "answers": True}
