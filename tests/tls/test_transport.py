import asyncio
import gc
import hashlib
import os
import socket
import ssl
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet.tls.engine import READ_SIZE, SLICE_SIZE
from fleet.tls.errors import ProtocolBroken, Truncated
from tests.tls.stage import TLS12, TLS13, Recorder, WireClient, echoing, pki, serving, stdlib_client
from tests.waiting import PATIENCE_SECONDS

VERSIONS = [pytest.param(TLS12, id="tls1.2"), pytest.param(TLS13, id="tls1.3")]


async def connected(port: int, version: int | None = TLS13, **how: Any) -> WireClient:
    client = await WireClient.connect(port, version, **how)
    await client.shake_hands()
    client.send_now()
    return client


async def test_it_tells_what_applications_ask() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        transport = application.transport
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_extra_info("peer") is application.peer
        assert application.peer.certificate_der == pki().good.der
        assert application.peer.address == "127.0.0.1"
        assert transport.get_extra_info("peername")[0] == "127.0.0.1"
        assert transport.get_extra_info("sockname")[1] == stage.port
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert transport.get_extra_info("sslcontext")
        assert transport.get_extra_info("nonsense", 7) == 7
        assert transport.get_protocol() is application
        assert transport.can_write_eof()
        assert transport.is_reading()
        assert not transport.is_closing()
        await client.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_echo(version: int) -> None:
    async with serving(echoing) as stage:
        client = await connected(stage.port, version)
        client.send(b"hello")
        assert await client.receive(5) == b"hello"
        await client.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_writes_of_one_turn_leave_in_one_record(version: int) -> None:
    """The stock EST clients need it: headers and body in separate records break one of them."""
    async with serving() as stage:
        client = await connected(stage.port, version)
        application = await stage.application()
        client.send(b"?")
        await application.bell.until(lambda: application.heard)
        application.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        application.transport.write(bytearray(b"the "))
        application.transport.writelines([b"bo", memoryview(b"d"), bytearray(b"y")])
        assert await client.receive(27) == b"HTTP/1.1 200 OK\r\n\r\nthe body"
        assert client.records == 1
        await client.close()


async def test_what_is_written_in_answer_leaves_in_one_record() -> None:
    def answer(application: Recorder, data: bytes) -> None:
        for _ in range(10):
            application.transport.write(b"part")

    async with serving(lambda peer: Recorder(peer, on_data=answer)) as stage:
        client = await connected(stage.port)
        client.send(b"1")
        assert await client.receive(40) == b"part" * 10
        assert client.records == 1
        client.send(b"2")
        assert await client.receive(40) == b"part" * 10
        assert client.records == 2
        await client.close()


async def test_what_is_written_together_leaves_in_one_record_and_at_once() -> None:
    async with serving() as stage:
        client = await connected(stage.port, TLS12)
        application = await stage.application()
        client.send(b"?")
        await application.bell.until(lambda: application.heard)
        transport, sent = application.transport, list[bytes]()

        def act(data: bytes) -> int:
            transport.write(data[:2])
            transport.write(data[2:])
            return len(data)

        raw, transport._raw = transport._raw, SimpleNamespace(write=sent.append, is_closing=lambda: False)
        assert transport.together(act, b"hello") == 5
        assert len(sent) == 1  # in this turn of the event loop
        transport._raw = raw
        raw.write(sent[0])
        assert await client.receive(5) == b"hello"
        await client.close()


async def test_a_batch_from_the_socket_is_one_call() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        for n in range(50):
            client.tls.connection.sendall(b"%04d" % n)
        client.send_now()
        await application.bell.until(lambda: len(application.heard) == 200)
        assert application.batches == 1
        await client.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_large_transfers_both_ways_at_once(version: int, tmp_path: Path) -> None:
    async with serving(Throttle) as stage:
        reader, writer = await asyncio.open_connection("localhost", stage.port, ssl=python_client(tmp_path, version))
        sent = os.urandom(1 << 20) * 6

        async def send() -> None:
            writer.write(sent)
            await writer.drain()

        sending = asyncio.create_task(send())
        got = hashlib.sha256()
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(len(sent) // 65536):
                got.update(await reader.readexactly(65536))
            await sending
        assert got.digest() == hashlib.sha256(sent).digest()
        writer.close()
        assert await (await stage.application()).lost() is None


def python_client(directory: Path, version: int) -> ssl.SSLContext:
    context = stdlib_client(directory, pki().good)
    context.minimum_version = context.maximum_version = ssl.TLSVersion(version)
    return context


class Throttle(Recorder):
    """An echo that heeds flow control: it stops reading while it may not write."""

    def data_received(self, data: bytes) -> None:
        self.batches += 1
        self.transport.write(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.resume_reading()


async def test_a_peer_that_does_not_read_is_not_buffered_for() -> None:
    """It sends as long as it can and reads nothing; what we hold is bounded by one batch and the socket's buffer."""
    async with serving(Throttle) as stage:
        client = await connected(stage.port, receive_buffer=4096)
        application = await stage.application()
        flood, sent = os.urandom(1 << 16), 0
        paused = asyncio.create_task(application.bell.until(lambda: application.writing_paused))
        while not application.writing_paused:
            client.send(flood)
            sent += len(flood)
            taken = asyncio.create_task(client.writer.drain())
            await asyncio.wait({taken, paused}, return_when=asyncio.FIRST_COMPLETED)
            taken.cancel()
        await paused
        high = application.transport.get_write_buffer_limits()[1]
        assert application.transport.get_write_buffer_size() <= high + READ_SIZE + SLICE_SIZE
        assert not application.transport.is_reading()
        # It may go on: nothing is taken from it any more.
        batches = application.batches
        for _ in range(20):
            client.send(flood)
            sent += len(flood)
            await asyncio.sleep(0)
        assert application.batches == batches
        assert application.transport.get_write_buffer_size() <= high + READ_SIZE + SLICE_SIZE
        # And when it reads at last, it has lost nothing.
        got = await client.receive(sent)
        assert hashlib.sha256(got).digest() == hashlib.sha256(flood * (sent // len(flood))).digest()
        assert application.writing_resumed
        await client.close()


async def test_a_writer_is_told_to_pause_and_to_resume() -> None:
    async with serving() as stage:
        client = await connected(stage.port, receive_buffer=4096)
        application = await stage.application()
        block, written = b"x" * 10_000, 0
        while not application.writing_paused:
            application.transport.write(block)
            written += len(block)
            await asyncio.sleep(0)
        assert application.writing_paused == 1
        held = application.transport.get_write_buffer_size()
        application.transport.write(b"y" * 100)  # one that does not heed is kept waiting in plain
        assert application.transport.get_write_buffer_size() >= held + 100
        assert len(await client.receive(written + 100)) == written + 100
        await application.bell.until(lambda: application.writing_resumed)
        await client.close()


async def test_one_huge_write_is_encrypted_only_as_the_socket_takes_it() -> None:
    async with serving() as stage:
        client = await connected(stage.port, receive_buffer=4096)
        application = await stage.application()
        huge = os.urandom(1 << 20) * 4
        application.transport.write(huge)
        assert application.writing_paused
        waiting = application.transport._pending_size
        assert len(huge) - waiting <= 3 * (1 << 20)  # the kernel's share at most
        assert await client.receive(len(huge)) == huge
        await client.close()


async def test_paused_reading_holds_one_batch_and_loses_nothing() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        application.transport.pause_reading()
        application.transport.pause_reading()  # twice is as good as once
        assert not application.transport.is_reading()
        sent = os.urandom(3_000_000)
        client.send(sent)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not application.heard
        assert len(application.transport._held) <= READ_SIZE
        application.transport.resume_reading()
        application.transport.resume_reading()
        await application.bell.until(lambda: len(application.heard) == len(sent))
        assert bytes(application.heard) == sent
        await client.close()


async def test_data_that_came_with_finished_waits_for_an_application_that_paused_at_once() -> None:
    class Shy(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    async with serving(Shy) as stage:
        client = await WireClient.connect(stage.port)
        await client.shake_hands()
        client.tls.connection.sendall(b"early")
        client.send_now()  # in one piece with Finished
        application = await stage.application()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not application.heard
        application.transport.resume_reading()
        await application.bell.until(lambda: bytes(application.heard) == b"early")
        client.send(b" and late")
        await application.bell.until(lambda: bytes(application.heard) == b"early and late")
        await client.close()


async def test_reading_paused_and_resumed_at_every_batch() -> None:
    loop = asyncio.get_running_loop()

    def hesitate(application: Recorder, data: bytes) -> None:
        application.transport.pause_reading()
        loop.call_soon(application.transport.resume_reading)

    async with serving(lambda peer: Recorder(peer, on_data=hesitate)) as stage:
        client = await connected(stage.port)
        application = await stage.application()
        sent = os.urandom(2_000_000)
        client.send(sent)
        client.tls.connection.shutdown()
        client.send_now()
        await application.bell.until(lambda: application.ended)
        assert bytes(application.heard) == sent
        await client.close()


async def test_the_end_waits_for_an_application_that_paused() -> None:
    def stop(application: Recorder, data: bytes) -> None:
        application.transport.pause_reading()

    async with serving(lambda peer: Recorder(peer, on_data=stop)) as stage:
        client = await connected(stage.port)
        client.tls.connection.sendall(b"all")
        client.tls.connection.shutdown()
        client.send_now()
        application = await stage.application()
        await application.bell.until(lambda: application.heard)
        await asyncio.sleep(0)
        assert not application.ended
        application.transport.resume_reading()
        assert await application.lost() is None
        assert application.ended
        await client.close()


# Ends


async def test_close_sends_what_was_written_and_close_notify() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        application.transport.write(b"good")
        application.transport.write(b"bye")
        application.transport.close()
        assert application.transport.is_closing()
        application.transport.write(b"into the void")
        assert await client.receive(100) == b"goodbye"
        assert client.tls.connection.get_shutdown() & 2  # RECEIVED_SHUTDOWN
        assert await application.lost() is None
        application.transport.close()
        application.transport.abort()
        application.transport.pause_reading()
        application.transport.resume_reading()
        await client.close()


async def test_close_sends_megabytes_to_the_end() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        last = os.urandom(3_000_000)
        application.transport.write(last)
        application.transport.close()
        assert await client.receive(len(last) + 1) == last
        assert client.tls.connection.get_shutdown() & 2
        await client.close()


async def test_close_waits_for_a_stalled_reader_only_so_long() -> None:
    async with serving(close_deadline_s=0.2) as stage:
        client = await connected(stage.port, receive_buffer=4096)
        application = await stage.application()
        application.transport.write(b"x" * 8_000_000)
        application.transport.close()
        await application.lost()
        await client.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_half_close_by_us(version: int) -> None:
    async with serving() as stage:
        client = await connected(stage.port, version)
        application = await stage.application()
        application.transport.write(b"my last")
        application.transport.write_eof()
        application.transport.write_eof()
        assert await client.receive(7) == b"my last"
        client.send(b"but not mine")
        await application.bell.until(lambda: bytes(application.heard) == b"but not mine")
        with pytest.raises(RuntimeError):
            application.transport.write(b"more")
        client.tls.connection.shutdown()
        client.send_now()
        assert await application.lost() is None
        await client.close()


@pytest.mark.parametrize("version", VERSIONS)
async def test_half_close_by_the_peer(version: int) -> None:
    async with serving(lambda peer: Recorder(peer, half_open=True)) as stage:
        client = await connected(stage.port, version)
        client.tls.connection.sendall(b"that is all")
        client.tls.connection.shutdown()
        client.send_now()
        client.writer.write_eof()  # and the TCP half-close too
        application = await stage.application()
        await application.bell.until(lambda: application.ended)
        assert bytes(application.heard) == b"that is all"
        for _ in range(20):
            await asyncio.sleep(0)
        assert not application.lost_with
        application.transport.write(b"thanks")
        application.transport.close()
        assert await client.receive(100) == b"thanks"
        assert await application.lost() is None
        await client.close()


async def test_truncation_is_not_an_end() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        client.send(b"half a sen")
        application = await stage.application()
        await application.bell.until(lambda: application.heard)
        client.writer.write_eof()
        assert isinstance(await application.lost(), Truncated)
        assert not application.ended
        await client.close()


async def test_abort_by_us_is_no_clean_end_for_the_peer() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        application.transport.write(b"never sent")
        application.transport.abort()
        assert application.transport.is_closing()
        assert application.transport.get_write_buffer_size() == 0
        assert await application.lost() is None
        with pytest.raises(ConnectionError):
            assert await client.receive(100) == b""
            raise ConnectionAbortedError
        assert not client.tls.connection.get_shutdown() & 2
        await client.close()


async def test_a_reset_by_the_peer_is_told() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        client.send(b"x")
        application = await stage.application()
        await application.bell.until(lambda: application.heard)
        client.writer.transport.abort()
        assert isinstance(await application.lost(), Truncated | ConnectionError)


async def test_a_spoiled_record_ends_the_connection_with_an_alert() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        client.tls.connection.sendall(b"pay 10")
        record = bytearray(client.tls.take())
        record[-1] ^= 1
        client.writer.write(bytes(record))
        assert isinstance(await application.lost(), ProtocolBroken)
        assert not application.heard
        with pytest.raises(Exception, match="bad record mac"):
            await client.receive(1)
        await client.close()


async def test_an_application_that_raises_loses_its_connection_only() -> None:
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))

    def explode(application: Recorder, data: bytes) -> None:
        if data == b"boom":
            raise LookupError(data)
        application.transport.write(data)

    async with serving(lambda peer: Recorder(peer, on_data=explode)) as stage:
        first, second = await connected(stage.port), await connected(stage.port)
        first.send(b"boom")
        assert isinstance(await (await stage.application(0)).lost(), LookupError)
        second.send(b"fine")
        assert await second.receive(4) == b"fine"
        await first.close()
        await second.close()
    assert complaints


async def test_another_protocol_takes_over() -> None:
    async with serving() as stage:
        client = await connected(stage.port)
        application = await stage.application()
        reader = asyncio.StreamReader()
        application.transport.set_protocol(asyncio.StreamReaderProtocol(reader))
        client.send(b"for the reader\n")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await reader.readline() == b"for the reader\n"
        with pytest.raises(TypeError):
            application.transport.set_protocol(asyncio.BufferedProtocol())
        with pytest.raises(TypeError):
            application.transport.write("text")
        await client.close()


async def test_an_ended_connection_leaves_nothing_for_the_collector() -> None:
    """The engine's part of a connection takes 30 KB: it must go when the connection goes."""
    engines: list[weakref.ref[Any]] = []

    class Forgetful(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            engines.append(weakref.ref(self.transport._session._connection))
            self.transport = None
            super().connection_lost(exc)

    async with serving(Forgetful) as stage:
        gc.collect()
        gc.disable()
        try:
            client = await connected(stage.port)
            client.tls.connection.shutdown()
            client.send_now()
            assert await (await stage.application()).lost() is None
            await stage.bell.until(lambda: stage.listener.stats.connected == 0)
            assert engines[0]() is None
        finally:
            gc.enable()
        await client.close()
