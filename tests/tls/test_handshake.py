"""Handshake: a connection from accept to Finished, on a socket that records what is asked of it."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL

from fleet.tls.contexts import ContextSource
from fleet.tls.errors import Refusal
from fleet.tls.handshake import Handshake
from fleet.tls.listener import Listener, ListenerLimits
from tests.tls.stage import TLS12, TLS13, MemoryClient, Recorder, client_context, pki
from tests.waiting import PATIENCE_SECONDS

MALFORMED_RECORD = b"\x17\x03\x03\x00\x20" + bytes(32)  # application data that no key has encrypted
ALERT = 21
VERSIONS = [pytest.param(TLS12, id="tls1.2"), pytest.param(TLS13, id="tls1.3")]


class Socket(asyncio.Transport):
    """A stream socket's transport, and the socket itself."""

    def __init__(self, peername: tuple[object, ...] | None) -> None:
        super().__init__({"peername": peername, "socket": self})
        self.sent = b""
        self.ends: list[str] = []
        self.acknowledged = asyncio.Event()
        self.protocol: asyncio.BaseProtocol | None = None
        self.is_lost = False

    def write(self, data: Any) -> None:
        if self.is_lost:
            self.abort()
        self.sent += bytes(data)

    def write_eof(self) -> None:
        if self.is_closing():
            raise RuntimeError("the transport is closed")  # as a real one does
        self.ends.append("eof")

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.ends or "abort" in self.ends

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def setsockopt(self, *words: int) -> None:
        assert words == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.acknowledged.set()

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Accepting:
    """A listener without a port: connections are handed to it."""

    def __init__(self, **limits: Any) -> None:
        self.applications: list[Recorder] = []
        self.refused: list[tuple[str, str]] = []
        self.source = ContextSource(pki().context())
        self.listener = Listener(
            self._make, self.source, ListenerLimits(**limits), lambda *refusal: self.refused.append(refusal)
        )

    def _make(self, peer: Any) -> Recorder:
        self.applications.append(Recorder(peer))
        return self.applications[-1]

    def accept(self, peername: tuple[object, ...] | None = ("192.0.2.7", 4711)) -> tuple[Handshake, Socket]:
        raw = Socket(peername)
        handshake = Handshake(self.listener)
        handshake.connection_made(raw)
        return handshake, raw

    @property
    def reasons(self) -> list[str]:
        return [reason.split(":")[0] for _, reason in self.refused]


def receive(handshake: Handshake, data: bytes) -> None:
    handshake.get_buffer(-1)[: len(data)] = data
    handshake.buffer_updated(len(data))


def last_flight(client: MemoryClient, handshake: Handshake, raw: Socket) -> bytes:
    """Run the handshake up to the client's last flight, which is returned instead of sent."""
    while True:
        done = client.handshake()
        flight = client.take()
        if done or client.connection.get_finished():
            return flight
        receive(handshake, flight)
        client.give(raw.sent)
        raw.sent = b""


def good_client(version: int = TLS13) -> MemoryClient:
    return MemoryClient(client_context(pki().good, version))


def refused_client() -> MemoryClient:
    return MemoryClient(client_context(None, TLS13))


@pytest.mark.parametrize(
    ("peername", "address"),
    [
        (("192.0.2.7", 4711), "192.0.2.7"),
        (("::ffff:192.0.2.7", 4711, 0, 0), "192.0.2.7"),  # an IPv4 client on a dual-stack socket
        (("2001:db8::7", 4711, 0, 0), "2001:db8::7"),
        (("::ffff:0:7", 4711, 0, 0), "::ffff:0:7"),  # a plain IPv6 address: no dots
        (None, ""),  # it has gone already
    ],
)
async def test_the_address_is_the_clients(peername: tuple[object, ...] | None, address: str) -> None:
    accepting = Accepting()
    handshake, _raw = accepting.accept(peername)
    assert handshake.address == address
    handshake.connection_lost(None)
    assert accepting.refused == [(address, Refusal.GONE)]


async def test_a_client_that_has_gone_when_its_alert_is_sent_fails_nothing() -> None:
    accepting = Accepting()
    handshake, raw = accepting.accept()
    flight = last_flight(refused_client(), handshake, raw)
    raw.is_lost = True
    receive(handshake, flight)
    assert raw.ends == ["abort"]
    handshake.connection_lost(None)
    assert accepting.reasons == [Refusal.NO_CERTIFICATE]
    assert accepting.listener.stats.handshaking == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_application_is_made_when_the_peer_is_proved_and_not_before(version: int) -> None:
    accepting = Accepting()
    client = good_client(version)
    handshake, raw = accepting.accept()
    flight = last_flight(client, handshake, raw)
    assert (accepting.applications, accepting.listener.stats.handshaking, raw.protocol) == ([], 1, None)
    receive(handshake, flight)
    assert [each.peer.address for each in accepting.applications] == ["192.0.2.7"]
    stats = accepting.listener.stats
    assert (stats.accepted, stats.handshaking, stats.established, stats.connected) == (1, 0, 1, 1)
    assert raw.protocol is not None
    handshake.connection_lost(None)  # should the loop still tell us
    assert (accepting.refused, raw.ends) == ([], [])


async def test_malformed_data_behind_a_complete_handshake_reaches_no_application() -> None:
    accepting = Accepting()
    client = good_client()
    handshake, raw = accepting.accept()
    receive(handshake, last_flight(client, handshake, raw) + MALFORMED_RECORD)
    assert (accepting.reasons, accepting.applications) == ([Refusal.HANDSHAKE], [])
    assert accepting.listener.stats.established == 0
    client.give(raw.sent)
    with pytest.raises(SSL.Error, match="alert"):
        client.connection.recv(1)


async def test_a_refused_client_gets_the_alert_and_the_end_and_is_read_on_unheard() -> None:
    accepting = Accepting()
    client = refused_client()
    handshake, raw = accepting.accept()
    flight = last_flight(client, handshake, raw)
    receive(handshake, flight)
    assert (accepting.reasons, raw.ends) == ([Refusal.NO_CERTIFICATE], ["eof"])
    client.give(raw.sent)
    with pytest.raises(SSL.Error, match="certificate required"):
        client.connection.recv(1)
    sent = raw.sent
    receive(handshake, b"x" * 5000)
    assert (raw.sent, raw.ends, accepting.reasons) == (sent, ["eof"], [Refusal.NO_CERTIFICATE])
    assert accepting.listener.stats.handshaking == 1  # until it goes, or its deadline
    handshake.connection_lost(None)
    assert accepting.listener.stats.handshaking == 0
    assert accepting.reasons == [Refusal.NO_CERTIFICATE]  # refused once


async def test_a_refused_client_that_stays_is_cut_off_at_its_deadline_and_counted_once() -> None:
    accepting = Accepting()
    handshake, raw = accepting.accept()
    receive(handshake, last_flight(refused_client(), handshake, raw))
    handshake.expire()
    assert (raw.ends, accepting.reasons) == (["eof", "abort"], [Refusal.NO_CERTIFICATE])


async def test_nothing_is_written_to_a_socket_that_is_closing() -> None:
    accepting = Accepting()
    handshake, raw = accepting.accept()
    flight = last_flight(refused_client(), handshake, raw)
    raw.close()
    raw.sent = b""
    receive(handshake, flight)
    assert (raw.sent, accepting.reasons) == (b"", [Refusal.NO_CERTIFICATE])
    assert "eof" not in raw.ends


@pytest.mark.parametrize(("end", "reason"), [(Handshake.expire, Refusal.DEADLINE), (Handshake.dismiss, Refusal.GONE)])
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_an_unfinished_handshake_is_ended(end: Callable[[Handshake], None], reason: Refusal, sent: bytes) -> None:
    accepting = Accepting()
    handshake, raw = accepting.accept()
    if sent:
        receive(handshake, sent)
    end(handshake)
    assert (raw.ends, accepting.refused) == (["abort"], [("192.0.2.7", reason)])
    if sent:
        receive(handshake, sent)  # what was on its way
    handshake.connection_lost(None)
    assert (raw.sent, accepting.refused) == (b"", [("192.0.2.7", reason)])
    assert accepting.listener.stats.handshaking == 0


async def test_a_client_beyond_its_cap_is_cut_off_and_takes_no_place() -> None:
    accepting = Accepting(per_address_max=1)
    first, first_raw = accepting.accept()
    second, second_raw = accepting.accept()
    assert (first_raw.ends, second_raw.ends) == ([], ["abort"])
    assert accepting.refused == [("192.0.2.7", Refusal.ADDRESS_CAP)]
    second.connection_lost(None)
    assert (accepting.listener.stats.handshaking, len(accepting.refused)) == (1, 1)
    first.connection_lost(None)
    assert (accepting.listener.stats.handshaking, accepting.listener.stats.accepted) == (0, 2)


async def test_where_there_is_no_room_for_a_connection_a_proved_client_is_cut_off() -> None:
    accepting = Accepting(connected_max=0)
    handshake, raw = accepting.accept()
    receive(handshake, last_flight(good_client(), handshake, raw))
    assert (raw.ends, accepting.reasons) == (["abort"], [Refusal.CONNECTED_CAP])
    assert (accepting.applications, raw.protocol) == ([], None)
    handshake.connection_lost(None)
    stats = accepting.listener.stats
    assert (stats.handshaking, stats.established, stats.connected) == (0, 0, 0)


async def test_the_end_of_the_clients_data_closes_the_connection() -> None:
    handshake, _raw = Accepting().accept()
    assert handshake.eof_received() is False  # asyncio: the transport closes itself


async def test_the_context_is_that_of_the_first_byte() -> None:
    """A certificate that is exchanged while connections are silent serves them already."""
    accepting = Accepting()
    handshake, raw = accepting.accept()
    accepting.source.swap(pki().context(require_client=False))
    client = refused_client()
    receive(handshake, last_flight(client, handshake, raw))
    assert len(accepting.applications) == 1
    assert accepting.applications[0].transport.get_extra_info("sslcontext") is accepting.source.current


@pytest.mark.parametrize("speaks_first", [False, True])
async def test_the_finished_of_a_silent_client_is_acknowledged_at_once(speaks_first: bool) -> None:
    accepting = Accepting()
    client = good_client()
    handshake, raw = accepting.accept()
    flight = last_flight(client, handshake, raw)
    if speaks_first:
        client.connection.sendall(b"first words")
        flight += client.take()
    receive(handshake, flight)
    quiet, quiet_raw = accepting.accept()
    receive(quiet, last_flight(good_client(), quiet, quiet_raw))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await quiet_raw.acknowledged.wait()
    assert raw.acknowledged.is_set() is not speaks_first
    assert bytes(accepting.applications[0].heard) == (b"first words" if speaks_first else b"")
