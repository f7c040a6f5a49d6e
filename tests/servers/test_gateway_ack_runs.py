"""PUBACKs reach a device in runs: in order, none late, and nothing else waits."""

import asyncio

from fleet.servers.gateway.ack_runs import HELD_SECONDS_MAX, HELD_SIZE_MAX, AckRuns
from fleet.servers.gateway.broker_link import BrokerLink, BrokerLinks
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, V311, Reason
from tests.simulated_time import run


class Recorder:
    """A BrokerSide whose device has sent messages up to `last_acknowledged_id`."""

    def __init__(self, last_id: int) -> None:
        self.last_acknowledged_id = last_id.to_bytes(2, "big") if last_id else b""
        self.heard: list[bytes | None] = []

    def broker_connected(self, transport: asyncio.BaseTransport) -> None:
        raise AssertionError

    def broker_data(self, data: bytes) -> None:
        self.heard.append(data)

    def broker_lost(self) -> None:
        self.heard.append(None)

    def broker_blocked(self) -> None:
        raise AssertionError

    def broker_drained(self) -> None:
        raise AssertionError


def puback(packet_id: int) -> bytes:
    return acks.acknowledge(acks.PUBACK, packet_id, V311)


def test_the_puback_of_the_only_message_goes_at_once() -> None:
    async def scenario() -> None:
        side = Recorder(last_id=7)
        BrokerLink(side, AckRuns(), BrokerLinks()).data_received(puback(7))
        assert side.heard == [puback(7)]

    run(scenario())


def test_those_before_the_last_go_with_it() -> None:
    async def scenario() -> None:
        side = Recorder(last_id=3)
        link = BrokerLink(side, AckRuns(), BrokerLinks())
        link.data_received(puback(1))
        link.data_received(puback(2))
        assert side.heard == []
        link.data_received(puback(3))
        assert side.heard == [puback(1) + puback(2) + puback(3)]
        await asyncio.sleep(2 * HELD_SECONDS_MAX)
        assert len(side.heard) == 1

    run(scenario())


def test_they_do_not_wait_longer_than_the_limit() -> None:
    async def scenario() -> None:
        runs, sides = AckRuns(), [Recorder(last_id=9), Recorder(last_id=9)]
        links = [BrokerLink(side, runs, BrokerLinks()) for side in sides]
        for _ in range(3):
            for link in links:
                link.data_received(puback(1))
                link.data_received(puback(2))
            await asyncio.sleep(HELD_SECONDS_MAX * 1.01)
            await asyncio.sleep(0)
            for side in sides:
                assert side.heard == [puback(1) + puback(2)]
                side.heard.clear()

    run(scenario())


def test_nothing_else_waits_and_nothing_is_overtaken() -> None:
    others = (
        acks.acknowledge(acks.PUBREC, 2, V311),
        acks.PINGREQ,
        b"\x30\x06\x00\x02ab" + puback(2)[:2],
        acks.acknowledge(acks.PUBACK, 2, V5, Reason.QUOTA_EXCEEDED),
        puback(2) + acks.acknowledge(acks.PUBREL, 2, V311),
        puback(2)[:3],
    )

    async def scenario() -> None:
        for other in others:
            side = Recorder(last_id=9)
            link = BrokerLink(side, AckRuns(), BrokerLinks())
            link.data_received(other)
            link.data_received(puback(1))
            assert side.heard == [other]
            link.data_received(other)
            assert side.heard == [other, puback(1) + other]

    run(scenario())


def test_what_is_held_is_bounded_and_precedes_the_end() -> None:
    async def scenario() -> None:
        side = Recorder(last_id=9)
        link = BrokerLink(side, AckRuns(), BrokerLinks())
        for _ in range(HELD_SIZE_MAX // 4 + 1):
            assert side.heard == []
            link.data_received(puback(1))
        assert side.heard == [puback(1) * (HELD_SIZE_MAX // 4 + 1)]
        link.data_received(puback(2))
        link.connection_lost(None)
        assert side.heard[1:] == [puback(2), None]

    run(scenario())
