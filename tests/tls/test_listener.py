import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from fleet.domain.peer import Peer
from fleet.tls.contexts import ClientTrust, ServerIdentity, server_context
from fleet.tls.errors import Refusal
from fleet.tls.half_open import HalfOpen
from fleet.tls.handshake import Handshake
from fleet.tls.listener import ListenerLimits, listen
from tests.tls.stage import (
    CLIENT_AUTH,
    NOW,
    TLS12,
    TLS13,
    Bell,
    MemoryClient,
    Recorder,
    Stage,
    WireClient,
    client_context,
    echoing,
    issue,
    pki,
    serving,
    stdlib_client,
)
from tests.tls.test_handshake import Socket
from tests.waiting import PATIENCE_SECONDS

VERSIONS = [pytest.param(TLS12, id="tls1.2"), pytest.param(TLS13, id="tls1.3")]


async def silent(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def gone(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the other end closes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


# Only the proved reach an application


async def test_the_application_is_made_for_the_proved_peer_and_told_its_first_words() -> None:
    made: list[Peer] = []

    def make(peer: Peer) -> Recorder:
        made.append(peer)
        return Recorder(peer)

    async with serving(make) as stage:
        client = await WireClient.connect(stage.port, TLS13)
        await client.shake_hands()
        assert not made
        client.tls.connection.sendall(b"first words")
        client.send_now()  # Finished and data in one piece
        application = await stage.application()
        await application.bell.until(lambda: application.heard)
        assert bytes(application.heard) == b"first words"
        assert made[0].fingerprint is not None
        await client.close()


@pytest.mark.parametrize("kind", [*sorted(pki().bad), "none"])
async def test_who_is_refused_never_reaches_an_application(kind: str) -> None:
    """On TLS 1.3 the client believes itself connected and may have sent data before our alert reaches it."""
    async with serving() as stage:
        reader, writer = await silent(stage.port)
        pair = None if kind == "none" else pki().bad[kind]
        client = WireClient(MemoryClient(client_context(pair, TLS13)), reader, writer)
        await client.shake_hands()
        client.tls.connection.sendall(b"let me in")
        client.send_now()
        reason = await stage.refusal()
        assert reason.startswith(Refusal.NO_CERTIFICATE if kind == "none" else Refusal.BAD_CERTIFICATE)
        assert (await gone(reader))[-7:]  # the alert
        assert not stage.applications
        assert stage.refused[0][0] == "127.0.0.1"
        await client.close()
        await stage.bell.until(lambda: stage.listener.stats.handshaking == 0)
        assert stage.listener.stats.established == 0


async def test_who_is_refused_reads_the_alert_though_it_goes_on_sending() -> None:
    async with serving() as stage:
        reader, writer = await silent(stage.port)
        client = WireClient(MemoryClient(client_context(None, TLS13)), reader, writer)
        await client.shake_hands()
        client.send_now()
        await stage.refusal()
        for _ in range(20):
            writer.write(b"x" * 50_000)
            await writer.drain()
        client.tls.give(await gone(reader))
        with pytest.raises(SSL.Error, match="certificate required"):
            client.tls.connection.recv(1)
        await client.close()
        await stage.bell.until(lambda: stage.listener.stats.handshaking == 0)


async def test_who_is_refused_and_does_not_go_is_put_out_at_the_deadline() -> None:
    async with serving(limits=ListenerLimits(deadline_s=0.2)) as stage:
        reader, writer = await silent(stage.port)
        client = WireClient(MemoryClient(client_context(None, TLS13)), reader, writer)
        await client.shake_hands()
        client.send_now()
        assert await stage.refusal() == Refusal.NO_CERTIFICATE
        await gone(reader)  # our half is closed, its half is open
        assert stage.listener.stats.handshaking == 1
        await stage.bell.until(lambda: stage.listener.stats.handshaking == 0)
        assert len(stage.refused) == 1
        await client.close()


@pytest.mark.parametrize("cut", [1, 5, 6, 60, -1])
async def test_a_hello_that_breaks_off_is_nobody(cut: int) -> None:
    async with serving() as stage:
        reader, writer = await silent(stage.port)
        client = MemoryClient(client_context(pki().good))
        client.handshake()
        writer.write(client.take()[:cut])
        writer.write_eof()
        assert await stage.refusal() == Refusal.GONE
        assert await gone(reader) == b""
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04dev1", b"\0" * 99],
)
async def test_plaintext_is_refused_and_closed(sent: bytes) -> None:
    async with serving() as stage:
        reader, writer = await silent(stage.port)
        writer.write(sent)
        reason = await stage.refusal()
        assert reason.split(":")[0] in (Refusal.NOT_TLS, Refusal.HANDSHAKE)
        await gone(reader)
        assert not stage.applications
        writer.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_handshake_byte_by_byte(version: int) -> None:
    async with serving(echoing) as stage:
        client = await WireClient.connect(stage.port, version)
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        async def trickle() -> None:
            for byte in client.tls.take():
                client.writer.write(bytes([byte]))
                await client.writer.drain()
                await asyncio.sleep(0)

        while not client.tls.handshake():
            await trickle()
            client.tls.give(await client.receive_raw())
        client.tls.connection.sendall(b"slow and steady")
        await trickle()
        assert await client.receive(15) == b"slow and steady"
        await client.close()


# Limits


async def test_a_silent_handshake_ends_at_its_deadline() -> None:
    async with serving(limits=ListenerLimits(deadline_s=0.1)) as stage:
        reader, writer = await silent(stage.port)
        assert await gone(reader) == b""
        assert await stage.refusal() == Refusal.DEADLINE
        assert stage.listener.stats.handshaking == 0
        writer.close()


async def test_a_handshake_that_never_says_its_last_byte_ends_at_its_deadline() -> None:
    async with serving(limits=ListenerLimits(deadline_s=0.1)) as stage:
        reader, writer = await silent(stage.port)
        client = MemoryClient(client_context(pki().good))
        client.handshake()
        writer.write(client.take()[:-1])
        assert await gone(reader) == b""
        assert await stage.refusal() == Refusal.DEADLINE
        writer.close()


async def test_a_finished_handshake_has_no_deadline() -> None:
    async with serving(echoing, limits=ListenerLimits(deadline_s=0.1)) as stage:
        client = await WireClient.connect(stage.port)
        await client.shake_hands()
        client.send(b"1")
        assert await client.receive(1) == b"1"
        reader, _writer = await silent(stage.port)
        await gone(reader)  # by now a deadline of the first would have passed as well
        client.send(b"2")
        assert await client.receive(1) == b"2"
        await client.close()
        _writer.close()


async def fill(stage: Stage, count: int) -> list[asyncio.StreamWriter]:
    writers = [(await silent(stage.port))[1] for _ in range(count)]
    await asyncio.sleep(0)
    return writers


async def test_the_cap_for_an_address() -> None:
    async with serving(limits=ListenerLimits(per_address_max=3)) as stage:
        writers = await fill(stage, 3)
        reader, writer = await silent(stage.port)
        assert await gone(reader) == b""
        assert await stage.refusal() == Refusal.ADDRESS_CAP
        # Another address has its own room, and a place that is left is free again.
        other, other_writer = await asyncio.open_connection("127.0.0.1", stage.port, local_addr=("127.0.0.2", 0))
        client = WireClient(MemoryClient(client_context(pki().good)), other, other_writer)
        await client.shake_hands()
        client.send_now()
        await stage.application(0)
        writers.pop().close()
        await stage.bell.until(lambda: len(stage.refused) == 2)
        again = await WireClient.connect(stage.port)
        await again.shake_hands()
        again.send_now()
        await stage.application(1)
        for left in [*writers, writer]:
            left.close()
        await client.close()
        await again.close()


async def test_the_cap_in_all() -> None:
    async with serving(limits=ListenerLimits(total_max=2)) as stage:
        writers = await fill(stage, 2)  # all from one address: nobody else's place can be given to it
        reader, writer = await silent(stage.port)
        assert await gone(reader) == b""
        assert await stage.refusal() == Refusal.TOTAL_CAP
        assert stage.listener.stats.refused == {Refusal.TOTAL_CAP: 1}
        for left in [*writers, writer]:
            left.close()


async def test_strangers_who_send_nothing_do_not_keep_clients_out() -> None:
    async with serving(echoing, limits=ListenerLimits(total_max=40)) as stage:
        strangers = []
        for number in range(60):
            source = (f"127.0.0.{number % 5 + 2}", 0)
            strangers.append((await asyncio.open_connection("127.0.0.1", stage.port, local_addr=source))[1])
        for _ in range(10):
            client = await WireClient.connect(stage.port)
            await client.shake_hands()
            client.send(b"1")
            assert await client.receive(1) == b"1"
            await client.close()
        # A place was taken from them for each of the newcomers, and from none of these.
        assert {reason for address, reason in stage.refused if address == "127.0.0.1"} <= {Refusal.GONE}
        assert stage.listener.stats.refused[Refusal.GAVE_WAY] >= 10
        for writer in strangers:
            writer.close()


async def test_finished_handshakes_do_not_count_for_the_caps() -> None:
    async with serving(limits=ListenerLimits(total_max=1, per_address_max=1)) as stage:
        clients = []
        for n in range(5):
            clients.append(await WireClient.connect(stage.port))
            await clients[-1].shake_hands()
            clients[-1].send_now()
            await stage.application(n)
        assert stage.listener.stats.connected == 5
        for client in clients:
            await client.close()


async def test_an_ipv6_subscriber_is_one_source() -> None:
    class Stranger:
        def __init__(self, address: str) -> None:
            self.address = address

        def expire(self) -> None: ...
        def give_way(self) -> None: ...
        def dismiss(self) -> None: ...

    half_open = HalfOpen(asyncio.get_running_loop(), ListenerLimits(per_address_max=2))
    inside = [Stranger("2001:db8::1"), Stranger("2001:db8::ffff:1"), Stranger("2001:db8:0:1::1")]
    assert [half_open.enter(stranger) for stranger in inside] == [None, None, None]
    assert half_open.enter(Stranger("2001:db8::2")) is Refusal.ADDRESS_CAP
    half_open.leave(inside[0])
    half_open.leave(inside[0])  # a second time does no harm
    assert half_open.enter(Stranger("2001:db8::2")) is None
    half_open.close()


def test_limits_must_be_positive() -> None:
    wrongs: tuple[dict[str, Any], ...] = ({"total_max": 0}, {"per_address_max": 0}, {"deadline_s": 0})
    for wrong in wrongs:
        with pytest.raises(ValueError, match="positive"):
            ListenerLimits(**wrong)


# Living and ending


async def test_swapped_contexts_serve_new_connections_while_old_ones_live() -> None:
    other_ca = issue("another CA", ca=True)
    newcomer = issue("client", other_ca, usages=[CLIENT_AUTH])
    async with serving(echoing) as stage:
        before = await WireClient.connect(stage.port)
        await before.shake_hands()
        before.send(b"1")
        assert await before.receive(1) == b"1"

        other = issue("server", other_ca)
        identity = ServerIdentity((other.certificate,), other.key)
        stage.source.swap(
            server_context(identity, ClientTrust([other_ca.certificate]), require_client=True, clock=lambda: NOW)
        )

        before.send(b"2")
        assert await before.receive(1) == b"2"
        reader, writer = await silent(stage.port)
        after = WireClient(MemoryClient(client_context(newcomer)), reader, writer)
        await after.shake_hands()
        after.send(b"3")
        assert await after.receive(1) == b"3"
        assert after.tls.connection.get_peer_certificate(as_cryptography=True) == other.certificate
        late = await WireClient.connect(stage.port)
        await late.shake_hands()
        late.send_now()
        assert (await stage.refusal()).startswith(Refusal.BAD_CERTIFICATE)
        for client in (before, after, late):
            await client.close()


async def test_close_lets_connections_end_by_themselves() -> None:
    async with serving(echoing) as stage:
        client = await WireClient.connect(stage.port)
        await client.shake_hands()
        client.send_now()
        await stage.application()
        reader, writer = await silent(stage.port)
        port = stage.port
        stage.listener.close()
        stage.listener.close()
        assert await gone(reader) == b""
        with pytest.raises(OSError):
            await silent(port)
        with pytest.raises(RuntimeError):
            assert stage.listener.port
        closed = asyncio.create_task(stage.listener.wait_closed())
        client.send(b"still here")
        assert await client.receive(10) == b"still here"
        assert not closed.done()
        client.tls.connection.shutdown()
        client.send_now()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await closed
        await client.close()
        writer.close()


async def test_every_descriptor_is_given_back() -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async with serving():
        pass  # the first listener of a loop opens one that stays with the loop
    await asyncio.sleep(0)
    before = open_files()
    async with serving(echoing) as stage:
        idle = open_files()
        for _ in range(2):  # the same again takes no more
            finished = await WireClient.connect(stage.port)
            await finished.shake_hands()
            finished.send(b"1")
            assert await finished.receive(1) == b"1"
            begun = await WireClient.connect(stage.port)
            begun.tls.handshake()
            begun.send_now()
            _, quiet = await silent(stage.port)
            await stage.bell.until(lambda: stage.listener.stats.handshaking == 2)
            for client in (finished, begun):
                await client.close()
            quiet.close()
            await stage.bell.until(lambda: open_files() <= idle)
        _, quiet = await silent(stage.port)
        await stage.bell.until(lambda: stage.listener.stats.handshaking == 1)
    quiet.close()
    await Bell().until(lambda: open_files() <= before)


async def test_a_connection_that_was_accepted_just_before_the_end_is_closed() -> None:
    async with serving() as stage:
        _reader, writer = await silent(stage.port)
        stage.listener.close()
        handshake = Handshake(stage.listener)
        raw = Socket(("192.0.2.7", 4711))
        handshake.connection_made(raw)
        assert raw.ends == ["abort"]
        assert stage.refused[-1] == ("192.0.2.7", Refusal.GONE)
        await stage.bell.until(lambda: stage.listener.stats.handshaking == 0)
        writer.close()


async def test_abort_connections_ends_them_at_once() -> None:
    async with serving() as stage:
        client = await WireClient.connect(stage.port)
        await client.shake_hands()
        client.send_now()
        application = await stage.application()
        stage.listener.abort_connections()
        assert await application.lost() is None
        await client.close()


async def test_a_factory_that_raises_costs_that_connection_only() -> None:
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    calls = 0

    def make(peer: Peer) -> Recorder:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise LookupError
        return Recorder(peer)

    async with serving(make) as stage:
        first = await WireClient.connect(stage.port)
        await first.shake_hands()
        first.send_now()
        await gone(first.reader)
        second = await WireClient.connect(stage.port)
        await second.shake_hands()
        second.send_now()
        await stage.application()
        assert stage.listener.stats.connected == 1
        await first.close()
        await second.close()
    assert complaints


async def test_counters() -> None:
    async with serving(echoing) as stage:
        client = await WireClient.connect(stage.port)
        await client.shake_hands()
        client.send_now()
        await stage.application()
        reader, writer = await silent(stage.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await stage.refusal()
        await gone(reader)
        stats = stage.listener.stats
        assert (stats.accepted, stats.established, stats.connected) == (2, 1, 1)
        assert stats.refused == {Refusal.NOT_TLS: 1}
        writer.close()
        await client.close()


async def test_many_at_once(tmp_path: Path) -> None:
    context = stdlib_client(tmp_path, pki().good)

    async def one(port: int, n: int) -> bytes:
        reader, writer = await asyncio.open_connection("localhost", port, ssl=context, family=2)
        writer.write(b"%04d" % n)
        answer = await reader.readexactly(4)
        writer.close()
        return answer

    async with serving(echoing) as stage:
        async with asyncio.timeout(PATIENCE_SECONDS):
            answers = await asyncio.gather(*[one(stage.port, n) for n in range(60)])
        assert answers == [b"%04d" % n for n in range(60)]
        await stage.bell.until(lambda: stage.listener.stats.connected == 0)
        assert stage.listener.stats.established == 60


async def test_several_addresses_and_both_families() -> None:
    async with serving() as stage:
        listener = await listen(Recorder, (["127.0.0.1", "::1"], 0), contexts=stage.source)
        hosts = [host for host, _ in listener.addresses]
        assert sorted(hosts) == ["127.0.0.1", "::1"]
        assert listener.port == listener.addresses[0][1]
        listener.close()
        await listener.wait_closed()


async def test_an_address_that_cannot_be_bound_is_told() -> None:
    async with serving() as stage:
        with pytest.raises(OSError):
            await listen(Recorder, ("127.0.0.1", stage.port), contexts=stage.source)


def test_refusals_have_their_words() -> None:
    """They stand in logs and dashboards."""
    assert set(Refusal) >= {"handshake-deadline", "bad-certificate", "no-certificate", "not-tls"}


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ListenerLimits(connected_max=1), Refusal.CONNECTED_CAP),
        (ListenerLimits(connected_per_address_max=1), Refusal.CONNECTED_ADDRESS_CAP),
    ],
)
async def test_the_caps_for_finished_connections(limits: ListenerLimits, reason: Refusal) -> None:
    async with serving(limits=limits) as stage:
        first = await WireClient.connect(stage.port)
        await first.shake_hands()
        first.send_now()
        await stage.application(0)
        second = await WireClient.connect(stage.port)
        await second.shake_hands()
        second.send_now()
        assert await stage.refusal() == reason
        assert len(stage.applications) == 1
        await second.close()
        await first.close()
        await stage.applications[0].lost()
        await stage.bell.until(lambda: stage.listener.stats.connected == 0)
        third = await WireClient.connect(stage.port)  # the place is free again
        await third.shake_hands()
        third.send_now()
        await stage.application(1)
        await third.close()
