"""A balancer in front: its header names the client, whose address the limits then count."""

import asyncio
from ipaddress import ip_network
from typing import Any, cast

import pytest

from fleet.domain.peer import Peer
from fleet.tls.errors import Refusal
from fleet.tls.half_open import HalfOpen
from fleet.tls.handshake import Handshake
from fleet.tls.listener import ListenerLimits, listen
from fleet.tls.proxied import Proxied
from fleet.wire.proxy_protocol import V2_SIGNATURE
from tests.tls.stage import Bell, Recorder, WireClient, echo, echoing, serving
from tests.tls.test_handshake import Accepting, Socket, good_client
from tests.waiting import PATIENCE_SECONDS

BALANCER = "192.0.2.7"
BALANCERS = (ip_network(BALANCER), ip_network("2001:db8:1::/64"))
HERE = (ip_network("127.0.0.1"),)
V1 = b"PROXY TCP4 198.51.100.9 192.0.2.7 50001 8883\r\n"
V2 = V2_SIGNATURE + b"\x21\x11\0\x0c" + bytes((198, 51, 100, 9, 192, 0, 2, 7, 1, 2, 3, 4))
LOCAL = V2_SIGNATURE + b"\x20\0\0\0"


def v1_of(client: str) -> bytes:
    return V1.replace(b"198.51.100.9", client.encode())


def hello() -> bytes:
    client = good_client()
    client.handshake()
    return client.take()


class BehindBalancer(Accepting):
    def __init__(self, **limits: Any) -> None:
        super().__init__(balancers=BALANCERS, **limits)

    def connect(self, address: str = BALANCER) -> Socket:
        raw = Socket((address, 4711))
        raw.protocol = self.listener._opened()
        raw.protocol.connection_made(raw)
        return raw

    def close(self) -> None:
        self.listener.close()


def give(raw: Socket, data: bytes) -> None:
    """As the event loop does: no more than the protocol has room for at once."""
    while data:
        protocol = cast(asyncio.BufferedProtocol, raw.protocol)
        room = memoryview(protocol.get_buffer(-1))
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


@pytest.mark.parametrize("header", [V1, V2])
async def test_the_address_is_what_the_header_says_however_it_is_cut(header: bytes) -> None:
    accepting, stream = BehindBalancer(), header + hello()
    for cut in range(len(header) + 8):
        raw = accepting.connect()
        for part in (stream[:cut], stream[cut:]):
            give(raw, part)
        assert isinstance(raw.protocol, Handshake)
        assert raw.protocol.address == "198.51.100.9"
        assert raw.sent, "the server's first flight"
        raw.protocol.connection_lost(None)
        await asyncio.sleep(0)  # few handshakes begin in one turn of the loop
    assert set(accepting.refused) == {("198.51.100.9", Refusal.GONE)}
    assert accepting.listener.stats.handshaking == 0
    assert accepting.listener.stats.accepted == len(header) + 8
    accepting.close()


async def test_a_byte_at_a_time() -> None:
    accepting = BehindBalancer()
    raw = accepting.connect("2001:db8:1::9")
    for byte in V2 + hello():
        give(raw, bytes((byte,)))
    assert isinstance(raw.protocol, Handshake)
    assert raw.protocol.address == "198.51.100.9"
    assert not accepting.refused
    accepting.close()


async def test_a_balancers_health_check_is_the_balancers_own() -> None:
    accepting = BehindBalancer()
    raw = accepting.connect()
    give(raw, LOCAL)
    assert isinstance(raw.protocol, Handshake)
    assert raw.protocol.address == BALANCER
    accepting.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hello(), Refusal.NO_PROXY_HEADER),
        (b"\x16", Refusal.NO_PROXY_HEADER),
        (b"GET / HTTP/1.1\r\n\r\n", Refusal.NO_PROXY_HEADER),
        (b"PROXY UNKNOWN\r\n", Refusal.BAD_PROXY_HEADER),
        (b"PROXY TCP4 x y 1 2\r\n", Refusal.BAD_PROXY_HEADER),
        (b"PROXY " + b"x" * 200, Refusal.BAD_PROXY_HEADER),
        (V2_SIGNATURE + b"\x21\x11\xff\xff", Refusal.BAD_PROXY_HEADER),
        (V2_SIGNATURE + b"\x21\x31\0\xd8" + bytes(216), Refusal.BAD_PROXY_HEADER),
    ],
)
async def test_a_balancers_connection_without_a_good_header_is_refused(data: bytes, reason: Refusal) -> None:
    accepting = BehindBalancer()
    raw = accepting.connect()
    give(raw, data)
    assert raw.ends == ["abort"]
    assert isinstance(raw.protocol, Proxied)
    raw.protocol.connection_lost(None)
    assert accepting.reasons == [reason]
    assert accepting.refused[0][0] == BALANCER
    assert accepting.listener.stats.handshaking == 0
    assert not raw.sent
    accepting.close()


@pytest.mark.parametrize("header", [V1, V2])
async def test_anybody_elses_header_is_no_header(header: bytes) -> None:
    accepting = BehindBalancer()
    for cut in range(1, len(header)):
        raw = accepting.connect("192.0.2.8")
        for part in (header[:cut], header[cut:]):
            give(raw, part)
        await asyncio.sleep(0)  # few handshakes begin in one turn of the loop
        cast(Handshake, raw.protocol).connection_lost(None)
    assert set(accepting.refused) == {("192.0.2.8", Refusal.UNTRUSTED_PROXY_HEADER)}
    accepting.refused.clear()
    raw = accepting.connect("192.0.2.8")
    give(raw, header + hello())
    assert accepting.refused == [("192.0.2.8", Refusal.UNTRUSTED_PROXY_HEADER)]
    behind = accepting.connect()  # a client's own behind the balancer's
    give(behind, v1_of("198.51.100.1") + header + hello())
    assert accepting.refused[1:] == [("198.51.100.1", Refusal.UNTRUSTED_PROXY_HEADER)]
    without = Accepting()
    handshake, socket = without.accept()
    socket.protocol = handshake
    give(socket, header)
    assert without.refused == [("192.0.2.7", Refusal.UNTRUSTED_PROXY_HEADER)]
    accepting.close()


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"per_address_max": 1}, Refusal.ADDRESS_CAP),
        ({"per_address_per_second": 0.001}, Refusal.ADDRESS_RATE),
    ],
)
async def test_the_limits_of_one_address_are_the_clients_and_not_the_balancers(limit: Any, reason: Refusal) -> None:
    accepting = BehindBalancer(**limit)
    waiting = [accepting.connect() for _ in range(20)]
    for number, raw in enumerate(waiting):
        give(raw, v1_of(f"198.51.100.{number}"))
    assert not accepting.refused
    first, second, other = (accepting.connect() for _ in range(3))
    for raw, client in ((first, "203.0.113.1"), (second, "203.0.113.1"), (other, "203.0.113.2")):
        give(raw, v1_of(client))
    assert accepting.refused == [("203.0.113.1", reason)]
    assert [raw.ends for raw in (first, second, other)] == [[], ["abort"], []]
    accepting.close()


async def test_a_header_that_does_not_come_ends_with_the_deadline_and_with_the_listener() -> None:
    accepting = BehindBalancer(deadline_s=0.05)
    slow = accepting.connect()
    give(slow, V1[:-1])
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not accepting.refused:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
    assert accepting.refused == [(BALANCER, Refusal.DEADLINE)]
    assert slow.ends == ["abort"]
    left, gone = accepting.connect(), accepting.connect()
    assert accepting.listener.stats.handshaking == 3  # the slow one too, until its end is told
    cast(Proxied, gone.protocol).connection_lost(None)
    cast(Proxied, slow.protocol).connection_lost(None)
    accepting.close()
    assert left.ends == ["abort"]
    assert accepting.reasons[1:] == [Refusal.GONE, Refusal.GONE]


async def test_a_header_and_a_handshake_have_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    accepting = BehindBalancer(deadline_s=60)
    quick, slow = accepting.connect(), accepting.connect()
    give(quick, v1_of("198.51.100.1"))
    monkeypatch.setattr(HalfOpen, "age", lambda *_: 59.99)  # since the slow one was accepted
    give(slow, v1_of("198.51.100.2") + hello()[:20])
    assert accepting.refused == []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not accepting.refused:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
    assert accepting.refused == [("198.51.100.2", Refusal.DEADLINE)]
    assert (quick.ends, slow.ends) == ([], ["abort"])
    accepting.close()


async def test_a_client_behind_a_balancer_over_real_sockets() -> None:
    async with serving(echoing, limits=ListenerLimits(balancers=HERE)) as stage:
        clients = [await WireClient.connect(stage.port) for _ in range(2)]
        clients[0].writer.write(V2)
        clients[1].writer.write(V1 + LOCAL)
        await clients[0].shake_hands()
        clients[0].send(b"hello")
        assert await clients[0].receive(5) == b"hello"
        application = await stage.application()
        assert application.peer.address == "198.51.100.9"
        assert await stage.refusal() == Refusal.UNTRUSTED_PROXY_HEADER
        for client in clients:
            await client.close()


@pytest.mark.parametrize("balancers", [HERE, BALANCERS])
async def test_without_tls_likewise(balancers: Any) -> None:
    made: list[Recorder] = []
    bell = Bell()

    def make(peer: Peer) -> Recorder:
        made.append(Recorder(peer, bell=bell, on_data=echo))
        return made[-1]

    limits = ListenerLimits(balancers=balancers)
    listener = await listen(make, ("127.0.0.1", 0), contexts=None, limits=limits)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    header = V1 if balancers is HERE else b""
    writer.write(header + b"hello")
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"again")
        assert await reader.readexactly(5) == b"again"
    assert made[0].peer.address == ("198.51.100.9" if header else "127.0.0.1")
    writer.close()
    listener.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await listener.wait_closed()
