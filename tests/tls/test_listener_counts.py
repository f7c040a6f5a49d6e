"""What a listener counts: connections in all and by source, refusals by reason, and when it is empty."""

import asyncio
from typing import cast

import pytest

from fleet.tls.errors import Refusal
from fleet.tls.idle import OnIdle
from fleet.tls.listener import Listener, ListenerLimits, listen
from tests.tls.stage import MemoryClient, Recorder, client_context, pki
from tests.tls.test_handshake import Accepting, Socket, last_flight, receive
from tests.waiting import PATIENCE_SECONDS


def connect(accepting: Accepting, address: str = "192.0.2.7") -> Socket:
    """A client that completes its handshake; the socket that it came on."""
    handshake, raw = accepting.accept((address, 4711))
    client = MemoryClient(client_context(pki().good))
    receive(handshake, last_flight(client, handshake, raw))
    if raw.protocol is None:
        handshake.connection_lost(None)
    return raw


def leave(raw: Socket) -> None:
    cast(asyncio.Protocol, raw.protocol).connection_lost(None)


async def test_each_source_has_its_own_cap_and_an_ipv6_network_is_one() -> None:
    accepting = Accepting(connected_per_address_max=2)
    first, _second = connect(accepting), connect(accepting)
    assert connect(accepting).ends == ["abort"]
    assert accepting.refused == [("192.0.2.7", Refusal.CONNECTED_ADDRESS_CAP)]
    for address in ("192.0.2.8", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
        assert connect(accepting, address).ends == []
    assert connect(accepting, "2001:db8::3").ends == ["abort"]
    leave(first)
    assert connect(accepting).ends == []
    assert connect(accepting).ends == ["abort"]
    stats = accepting.listener.stats
    assert (stats.connected, stats.established, stats.handshaking, stats.accepted) == (6, 7, 0, 10)
    assert stats.refused == {Refusal.CONNECTED_ADDRESS_CAP: 3}


async def test_the_cap_in_all_comes_first() -> None:
    accepting = Accepting(connected_max=2, connected_per_address_max=1)
    one, _two = connect(accepting, "192.0.2.1"), connect(accepting, "192.0.2.2")
    connect(accepting, "192.0.2.1")
    leave(one)
    connect(accepting, "192.0.2.2")
    assert accepting.reasons == [Refusal.CONNECTED_CAP, Refusal.CONNECTED_ADDRESS_CAP]
    assert connect(accepting, "192.0.2.3").ends == []


async def test_without_caps_there_is_room() -> None:
    accepting = Accepting()
    assert [connect(accepting).ends for _ in range(20)] == [[]] * 20
    assert accepting.listener.has_no_room("192.0.2.7") is None


async def test_sources_that_have_left_cost_no_memory() -> None:
    accepting = Accepting(connected_per_address_max=1)
    for number in range(5):
        leave(connect(accepting, f"192.0.2.{number}"))
    assert accepting.listener.stats.connected == 0
    assert not accepting.listener._by_source


async def test_it_is_empty_when_the_last_connection_has_ended_and_not_before() -> None:
    accepting = Accepting()
    listener = accepting.listener
    async with asyncio.timeout(PATIENCE_SECONDS):
        await listener.wait_closed()  # none yet
    first, second = connect(accepting), connect(accepting)
    listener.close()
    closed = asyncio.create_task(listener.wait_closed())
    leave(first)
    await asyncio.sleep(0)
    assert not closed.done()
    leave(second)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await closed


async def test_closing_dismisses_those_who_have_not_finished() -> None:
    accepting = Accepting()
    _handshake, raw = accepting.accept()
    connected = connect(accepting)
    accepting.listener.close()
    assert (raw.ends, connected.ends) == (["abort"], [])
    assert accepting.refused == [("192.0.2.7", Refusal.GONE)]
    accepting.listener.abort_connections()
    assert connected.ends == ["abort"]


@pytest.mark.parametrize("detail", ["", "certificate has expired"])
async def test_a_refusal_is_told_with_its_detail(detail: str) -> None:
    accepting = Accepting()
    accepting.listener.refuse("192.0.2.7", Refusal.BAD_CERTIFICATE, detail)
    told = f"bad-certificate: {detail}" if detail else "bad-certificate"
    assert accepting.refused == [("192.0.2.7", told)]
    quiet = Listener(accepting._make, accepting.source, ListenerLimits(), None)
    quiet.refuse("192.0.2.7", Refusal.BAD_CERTIFICATE, detail)  # nobody asked to be told
    assert quiet.stats.refused == {Refusal.BAD_CERTIFICATE: 1}


async def test_before_it_listens_it_has_no_address() -> None:
    listener = Accepting().listener
    assert listener.addresses == ()
    with pytest.raises(RuntimeError):
        assert listener.port


async def test_the_application_is_connected_to_its_transport() -> None:
    accepting = Accepting()
    raw = connect(accepting)
    (application,) = accepting.applications
    assert application.transport.get_extra_info("peer") is application.peer
    leave(raw)
    await application.lost()


async def test_several_processes_may_share_a_port_if_all_say_so() -> None:
    source = Accepting().source
    first = await listen(Recorder, ("127.0.0.1", 0), contexts=source, reuse_port=True)
    second = await listen(Recorder, ("127.0.0.1", first.port), contexts=source, reuse_port=True)
    assert second.port == first.port
    with pytest.raises(OSError):
        await listen(Recorder, ("127.0.0.1", first.port), contexts=source)
    for listener in (first, second):
        listener.close()
        assert listener.addresses == ()
        await listener.wait_closed()
    again = await listen(Recorder, ("127.0.0.1", 0), contexts=source)
    again.close()


class Waiting(Recorder):
    """An application that has nothing to do."""

    def watch_idle(self, on_idle: OnIdle) -> None:
        self.on_idle = on_idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.on_idle(True)


async def test_an_idle_connection_of_the_biggest_holder_gives_way() -> None:
    accepting = Accepting(connected_max=3)
    accepting.listener._protocol_factory = Waiting
    first, second, other = (connect(accepting, f"192.0.2.{number}") for number in (7, 7, 8))
    newcomer = connect(accepting, "192.0.2.9")
    assert [one.ends for one in (first, second, other, newcomer)] == [["abort"], [], [], []]
    assert accepting.refused == [("192.0.2.7", Refusal.GAVE_WAY)]
    assert accepting.listener.stats.connected == 3
    leave(first)  # it was counted out already
    assert accepting.listener.stats.connected == 3
    for raw in (second, other, newcomer):
        leave(raw)
    assert accepting.listener.stats.connected == 0
    assert not accepting.listener._by_source


async def test_an_address_at_its_cap_makes_room_among_its_own() -> None:
    accepting = Accepting(connected_per_address_max=2)
    accepting.listener._protocol_factory = Waiting
    first, second, other = (connect(accepting, f"192.0.2.{number}") for number in (7, 7, 8))
    newcomer = connect(accepting, "192.0.2.7")
    assert [one.ends for one in (first, second, other, newcomer)] == [["abort"], [], [], []]


async def test_where_all_are_busy_the_newcomer_is_refused() -> None:
    accepting = Accepting(connected_max=2)
    busy = [connect(accepting, "192.0.2.7") for _ in range(2)]
    assert connect(accepting, "192.0.2.8").ends == ["abort"]
    assert [raw.ends for raw in busy] == [[], []]
    assert accepting.reasons == [Refusal.CONNECTED_CAP]
