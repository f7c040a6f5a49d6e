import ctypes
import gc
import hashlib
import weakref

import pytest

from fleet.tls import engine
from fleet.tls.engine import Scratch
from fleet.tls.errors import HandshakeFailed, ProtocolBroken, Refusal
from fleet.tls.session import HANDSHAKE_SIZE_MAX, TlsSession
from tests.tls.stage import TLS12, TLS13, MemoryClient, client_context, join, pki

VERSIONS = [pytest.param(TLS12, id="tls1.2"), pytest.param(TLS13, id="tls1.3")]
ADDRESS = "192.0.2.7"


def session_of(*, require_client: bool = True) -> TlsSession:
    return TlsSession(pki().context(require_client=require_client), ADDRESS)


def client_of(version: int) -> MemoryClient:
    return MemoryClient(client_context(pki().good, version, chain=(pki().issuing,)))


@pytest.mark.parametrize("version", VERSIONS)
def test_handshake_proves_the_peer(version: int) -> None:
    client, session = client_of(version), session_of()
    join(client, session)
    peer = session.peer
    assert peer is not None
    assert peer.address == ADDRESS
    assert peer.certificate_der == pki().good.der
    assert peer.chain_der == (pki().good.der, pki().issuing.der)
    assert peer.fingerprint == hashlib.sha256(pki().good.der).digest()
    assert peer.tls_version == client.connection.get_protocol_version_name()
    assert peer.cipher == client.connection.get_cipher_name()
    assert peer.group


def test_without_a_certificate_the_peer_is_nobody() -> None:
    session = session_of(require_client=False)
    join(MemoryClient(client_context(None)), session)
    assert session.peer is not None
    assert session.peer.certificate_der is None
    assert session.peer.chain_der == ()
    assert session.peer.fingerprint is None
    assert session.peer.channel_binding


def test_exporter_is_the_clients_own() -> None:
    client, session = client_of(TLS13), session_of()
    join(client, session)
    assert session.peer is not None
    assert session.peer.channel_binding_type == "tls-exporter"
    expected = client.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
    assert session.peer.channel_binding == expected


def test_tls_unique_is_the_clients_finished() -> None:
    client, session = client_of(TLS12), session_of()
    join(client, session)
    assert session.peer is not None
    assert session.peer.channel_binding_type == "tls-unique"
    assert session.peer.channel_binding == client.connection.get_finished()


def test_the_exporter_of_tls_1_2_too_with_an_extended_master_secret() -> None:
    client, session = client_of(TLS12), session_of()
    join(client, session)
    assert session.peer is not None
    expected = client.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
    assert session.peer.read_exporter() == expected


@pytest.mark.parametrize("is_extended", [0, -1])
def test_no_exporter_of_tls_1_2_without_one(is_extended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    client, session = client_of(TLS12), session_of()
    join(client, session)
    assert session.peer is not None
    monkeypatch.setattr(engine.lib, "SSL_get_extms_support", lambda ssl: is_extended)
    assert session.peer.read_exporter() == b""
    other = session_of()
    join(client_of(TLS13), other)
    assert other.peer is not None
    assert other.peer.read_exporter() == b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_any_cutting_of_the_stream_gives_the_same(version: int, step: int) -> None:
    client, session = client_of(version), session_of()
    heard = b""

    def feed(data: bytes) -> bytes:
        return b"".join(session.feed(data[at : at + step]) for at in range(0, len(data), step))

    for _ in range(4):
        client.handshake()
        heard += feed(client.take())
        client.give(session.outgoing())
    assert session.peer is not None
    client.connection.sendall(b"x" * 5000)
    client.connection.sendall(b"y")
    heard += feed(client.take())
    assert heard == b"x" * 5000 + b"y"


@pytest.mark.parametrize("version", VERSIONS)
def test_data_that_comes_with_finished_is_returned_once_the_peer_is_known(version: int) -> None:
    client, session = client_of(version), session_of()
    flight = client.last_flight(session)
    assert session.peer is None
    if version == TLS12:  # the client may write only after our Finished
        assert session.feed(flight) == b""
        client.give(session.outgoing())
        assert client.handshake()
        flight = b""
    client.connection.sendall(b"first words")
    assert session.feed(flight + client.take()) == b"first words"
    assert session.peer is not None


@pytest.mark.parametrize("version", VERSIONS)
def test_no_prefix_of_the_last_flight_authenticates(version: int) -> None:
    client, session = client_of(version), session_of()
    flight = client.last_flight(session)
    for byte in flight[:-1]:
        assert session.feed(bytes([byte])) == b""
        assert session.peer is None
    session.feed(flight[-1:])
    assert session.peer is not None


def test_no_prefix_of_the_first_flight_is_answered() -> None:
    client, session = client_of(TLS13), session_of()
    client.handshake()
    hello = client.take()
    for byte in hello[:-1]:
        assert session.feed(bytes([byte])) == b""
        assert session.outgoing_size() == 0
    session.feed(hello[-1:])
    assert session.outgoing_size() > 0


@pytest.mark.parametrize("version", VERSIONS)
def test_no_changed_byte_of_the_last_flight_authenticates(version: int) -> None:
    size = len(client_of(version).last_flight(session_of()))
    for at in range(3, size, max(1, size // 40)):  # from 3 on: the first bytes are the record's outer version
        client, session = client_of(version), session_of()
        flight = bytearray(client.last_flight(session))
        flight[at % len(flight)] ^= 0x40
        try:
            session.feed(bytes(flight))
        except (HandshakeFailed, ProtocolBroken):
            continue
        assert session.peer is None


@pytest.mark.parametrize(
    "bytes_",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", id="http"),
        pytest.param(b"CONNECT x:1 HTTP/1.1\r\n\r\n", id="proxy"),
        pytest.param(bytes.fromhex("101000044d5154540402003c0004") + b"dev1", id="mqtt"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b"\xff" * 100, id="ones"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
        pytest.param(b"\x16\x03\x01\xff\xff" + b"\x01" * 100, id="record-too-long"),
        pytest.param(b"\x17\x03\x03\x00\x05hello", id="application-data-first"),
        pytest.param(b"\x15\x03\x03\x00\x02\x02\x28", id="alert-first"),
        pytest.param(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", id="server-hello-first"),
    ],
)
def test_garbage_is_refused(bytes_: bytes) -> None:
    with pytest.raises(HandshakeFailed) as caught:
        session_of().feed(bytes_)
    assert caught.value.reason in (Refusal.NOT_TLS, Refusal.HANDSHAKE)
    cut = session_of()
    with pytest.raises(HandshakeFailed):
        for byte in bytes_:
            cut.feed(bytes([byte]))


def test_plain_http_is_named() -> None:
    with pytest.raises(HandshakeFailed) as caught:
        session_of().feed(b"GET / HTTP/1.1\r\n\r\n")
    assert caught.value.reason is Refusal.NOT_TLS


def test_a_hello_without_end_is_cut() -> None:
    session = session_of()
    # A handshake message that says it is 16 MB long, in full records.
    record = b"\x16\x03\x01\x40\x00"
    session_total = 0
    with pytest.raises(HandshakeFailed):
        session.feed(record + b"\x01\xff\xff\xff" + b"\0" * (0x4000 - 4))
        while session_total < 1 << 20:
            session.feed(record + b"\0" * 0x4000)
            session_total += 0x4000


def test_an_oversized_record_after_the_handshake_breaks_the_connection() -> None:
    client, session = client_of(TLS13), session_of()
    join(client, session)
    session.outgoing()
    with pytest.raises(ProtocolBroken):
        session.feed(b"\x17\x03\x03\x41\x01" + b"\0" * 0x4101)
    assert session.outgoing()[:1] in (b"\x15", b"\x17")  # an alert, encrypted on TLS 1.3


@pytest.mark.parametrize("version", VERSIONS)
def test_a_changed_record_after_the_handshake_breaks_the_connection(version: int) -> None:
    client, session = client_of(version), session_of()
    join(client, session)
    client.connection.sendall(b"pay 10")
    record = bytearray(client.take())
    record[-1] ^= 1
    with pytest.raises(ProtocolBroken):
        session.feed(bytes(record))


@pytest.mark.parametrize("version", VERSIONS)
def test_close_notify_ends_what_is_heard(version: int) -> None:
    client, session = client_of(version), session_of()
    join(client, session)
    client.give(session.outgoing())
    client.connection.sendall(b"bye")
    client.connection.shutdown()
    assert session.feed(client.take()) == b"bye"
    assert session.closed_by_peer
    # RFC 8446, 6.1: what comes after it is ignored; and we may still write.
    assert session.feed(b"\x17\x03\x03\x00\x05hello") == b""
    session.write(b"last words")
    session.close()
    client.give(session.outgoing())
    assert client.read() == b"last words"


@pytest.mark.parametrize("version", VERSIONS)
def test_after_our_close_notify_the_peer_is_still_heard(version: int) -> None:
    client, session = client_of(version), session_of()
    join(client, session)
    session.close()
    client.give(session.outgoing())
    client.connection.sendall(b"wait")
    assert session.feed(client.take()) == b"wait"
    with pytest.raises(ProtocolBroken):
        session.write(b"too late")


def test_a_large_batch_is_returned_whole() -> None:
    client, session = client_of(TLS13), session_of()
    join(client, session)
    sent = bytes(range(256)) * 4000
    client.connection.sendall(sent)
    assert session.feed(client.take()) == sent


def test_key_updates_are_followed_by_data() -> None:
    """Both sides change keys after enough records; here the peer's data goes on across many records."""
    client, session = client_of(TLS13), session_of()
    join(client, session)
    for n in range(200):
        client.connection.sendall(b"%d" % n)
        assert session.feed(client.take()) == b"%d" % n


def test_a_peer_that_outlives_its_connection_has_no_binding_and_keeps_nothing_alive() -> None:
    client, session = client_of(TLS13), session_of()
    join(client, session)
    peer = session.peer
    assert peer is not None
    assert peer.channel_binding
    engine = weakref.ref(session._connection)
    del session, client
    assert engine() is None
    assert peer.channel_binding == b""


def test_a_handshake_that_goes_on_for_ever_is_ended() -> None:
    """A ClientHello of the largest size that the engine waits for, which never comes to its end."""
    announced = 131_396
    hello = b"\x01" + announced.to_bytes(3) + bytes(announced)
    session = session_of()
    fed = 0
    for at in range(0, len(hello), 16_384):
        fragment = hello[at : at + 16_384][: announced - at]  # the last octets are never sent
        record = b"\x16\x03\x01" + len(fragment).to_bytes(2) + fragment
        room = HANDSHAKE_SIZE_MAX - fed
        if len(record) > room:
            assert session.feed(record[:room]) == b""  # exactly as much as is taken
            with pytest.raises(HandshakeFailed) as failed:
                session.feed(record[room : room + 1])
            assert failed.value.reason is Refusal.SIZE
            return
        assert session.feed(record) == b""
        fed += len(record)
    pytest.fail("the cap was never reached")


class MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    )


def allocated() -> int:
    """Octets that the engine and others have of malloc."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallocInfo
    found = mallinfo()
    return int(found.uordblks) + int(found.hblkhd)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc")
@pytest.mark.parametrize("version", VERSIONS)
def test_an_idle_session_keeps_no_buffers(version: int) -> None:
    """The buffers of its records are 16 KiB for each direction, those of the handshake's messages 5 KiB."""
    context, scratch = pki().context(), Scratch()
    clients_context = client_context(pki().good, version, chain=(pki().issuing,))

    def idle() -> TlsSession:
        client, session = MemoryClient(clients_context), TlsSession(context, ADDRESS, scratch)
        join(client, session)
        client.give(session.outgoing())
        assert session.feed(_sealed(client, b"hello")) == b"hello"
        session.write(b"welcome")
        client.give(session.outgoing())
        assert client.read() == b"welcome"
        return session

    for _ in range(3):
        idle()
    before = allocated()
    sessions = [idle() for _ in range(50)]
    assert (allocated() - before) / len(sessions) < 40 * 1024


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cut", [0, 1, 5, 6, 30])
def test_what_came_with_the_end_of_the_handshake_is_kept(version: int, cut: int) -> None:
    client, session = client_of(version), session_of()
    last = client.last_flight(session)
    if version == TLS12:  # the client has its Finished, and waits for ours
        session.feed(last)
        client.give(session.outgoing())
        client.handshake()
        last = b""
    sealed = _sealed(client, b"early")
    got = session.feed(last + sealed[:cut])
    client.give(session.outgoing())
    assert got + session.feed(sealed[cut:]) == b"early"
    session.write(b"answer")
    client.give(session.outgoing())
    assert client.read() == b"answer"
    assert session.feed(_sealed(client, b"later")) == b"later"


def _sealed(client: MemoryClient, plain: bytes) -> bytes:
    client.connection.send(plain)
    return client.take()
