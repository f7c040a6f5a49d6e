"""Flow control: a transport is read while no reason speaks against it, and never resumed once it is closing."""

import asyncio

import pytest

from fleet.servers.gateway.limits.flow_control import FlowControlledTransport, Pause, block, unblock
from tests.simulated_time import run


class Transport(asyncio.Transport):
    """A transport that records what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.closing = False
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.asked.append("close")

    def abort(self) -> None:
        self.asked.append("abort")


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def side(transport: Transport) -> FlowControlledTransport:
    return FlowControlledTransport(transport)


def test_it_is_paused_once_and_resumed_when_every_reason_is_gone(
    side: FlowControlledTransport, transport: Transport
) -> None:
    side.resume(Pause.AWAITING_CONNACK)  # not paused for it
    assert transport.asked == []
    side.pause(Pause.AWAITING_CONNACK)
    side.pause(Pause.OTHER_SIDE_BLOCKED)
    side.pause(Pause.OTHER_SIDE_BLOCKED)
    assert transport.asked == ["pause"]
    side.resume(Pause.OTHER_SIDE_BLOCKED)
    side.resume(Pause.OTHER_SIDE_BLOCKED)
    side.resume(Pause.ANSWERS_UNREAD)
    assert transport.asked == ["pause"]
    side.resume(Pause.AWAITING_CONNACK)
    assert transport.asked == ["pause", "resume"]
    side.pause(Pause.ANSWERS_UNREAD)
    assert transport.asked == ["pause", "resume", "pause"]


def test_nothing_is_asked_of_a_transport_that_is_closing(side: FlowControlledTransport, transport: Transport) -> None:
    side.pause(Pause.OTHER_SIDE_BLOCKED)
    transport.closing = True
    side.resume(Pause.OTHER_SIDE_BLOCKED)
    side.pause(Pause.OTHER_SIDE_BLOCKED)
    assert transport.asked == ["pause"]


def test_a_full_buffer_stops_what_fills_it(side: FlowControlledTransport, transport: Transport) -> None:
    source_transport = Transport()
    source = FlowControlledTransport(source_transport)
    block(side, source)
    assert (side.blocked, source.blocked) == (True, False)
    assert (transport.asked, source_transport.asked) == ([], ["pause"])
    unblock(side, source)
    assert not side.blocked
    assert source_transport.asked == ["pause", "resume"]


def test_a_peer_that_causes_answers_and_does_not_read_them_is_not_read(
    side: FlowControlledTransport, transport: Transport
) -> None:
    side.pause_if_blocked()
    assert transport.asked == []
    block(side, None)
    side.pause_if_blocked()
    assert transport.asked == ["pause"]
    unblock(side, None)
    assert transport.asked == ["pause", "resume"]


def test_a_side_that_is_not_there_yet_changes_nothing(side: FlowControlledTransport, transport: Transport) -> None:
    block(None, side)
    assert transport.asked == ["pause"]
    unblock(None, side)
    assert transport.asked == ["pause", "resume"]
    block(None, None)
    unblock(None, None)


async def test_a_turn_ends_and_the_next_begins_with_what_is_left(
    side: FlowControlledTransport, transport: Transport
) -> None:
    done: list[str] = []

    def again() -> None:
        done.append("first")
        side.end_turn(lambda: done.append("second"))

    side.end_turn(again)
    side.end_turn()
    assert (done, transport.asked) == ([], ["pause"])
    await asyncio.sleep(0)
    assert (done, transport.asked) == (["first"], ["pause"])
    await asyncio.sleep(0)
    assert (done, transport.asked) == (["first", "second"], ["pause", "resume"])


async def test_a_turn_does_not_begin_while_a_reason_speaks_against_reading(
    side: FlowControlledTransport, transport: Transport
) -> None:
    done: list[str] = []
    side.pause(Pause.OVER_RATE)
    side.end_turn(lambda: done.append("act"))
    await asyncio.sleep(0)
    side.resume(Pause.OVER_RATE)
    side.pause(Pause.OTHER_SIDE_BLOCKED)
    await asyncio.sleep(0)
    assert (done, transport.asked) == ([], ["pause"])
    side.resume(Pause.OTHER_SIDE_BLOCKED)
    await asyncio.sleep(0)
    assert (done, transport.asked) == (["act"], ["pause", "resume"])


def test_a_transport_that_does_not_close_in_time_is_aborted() -> None:
    async def scene() -> None:
        transport = Transport()
        FlowControlledTransport(transport).close(2.0)
        assert transport.asked == ["close"]
        await asyncio.sleep(1.9)
        assert transport.asked == ["close"]
        await asyncio.sleep(0.2)
        assert transport.asked == ["close", "abort"]

    run(scene())


def test_what_is_written_is_the_transports(side: FlowControlledTransport, transport: Transport) -> None:
    side.write(b"a")
    assert transport.written == b"a"
