"""Sans-I/O TLS server session: received bytes in, plaintext and bytes to send out.

    session = TlsSession(context, "192.0.2.7")
    plaintext = session.feed(received)     # may be empty
    socket.send(session.outgoing())        # after every call, also one that raised: it may hold an alert
    session.peer                           # None until the handshake is complete

Nothing received before the handshake is complete is ever returned as plaintext.
"""

from typing import Any

from OpenSSL import SSL

from fleet.domain.peer import Peer
from fleet.tls.contexts import TlsContext
from fleet.tls.engine import (
    READ_SIZE,
    SLICE_SIZE,
    Scratch,
    bios_of,
    ffi,
    handshake,
    lib,
    renew_bios,
    set_verification_time,
    ssl_of,
)
from fleet.tls.errors import HandshakeFailed, ProtocolBroken, Refusal
from fleet.tls.peer_identity import peer_of

# Mostly the client's certificates: the engine stops at 100 KB of them, real chains have 2 to 5 KB.
HANDSHAKE_SIZE_MAX = 128 * 1024

# Of a TLS 1.3 record: header, type of the content, tag (RFC 8446, 5.2). With more than that, the engine is asked again.
RECORD_OVERHEAD = 5 + 1 + 16

_NOT_TLS = {"http request", "https proxy request", "wrong version number", "packet length too long"}
_NO_CERTIFICATE = {"peer did not return a certificate"}


class TlsSession:
    """The server side of one connection. After an exception, only `outgoing` may be called."""

    __slots__ = ("_address", "_anchors", "_connection", "_from_engine", "_handshake_size", "_into_engine",
                 "_is_compact", "_scratch", "_ssl", "_tenants", "closed_by_peer", "peer")  # fmt: skip

    def __init__(self, context: TlsContext, address: str, scratch: Scratch | None = None) -> None:
        """`scratch` may be shared by all sessions of one thread."""
        self.peer: Peer | None = None
        """Set when the handshake is complete."""
        self.closed_by_peer = False
        """Whether the peer has sent close_notify: no more data follows."""
        self._address = address
        self._anchors, self._tenants = context.anchors, context.tenants
        self._scratch = scratch or Scratch()
        self._handshake_size = 0
        self._is_compact = False
        """Whether its buffers have been replaced, or need not be."""
        self._connection = SSL.Connection(context.engine_context)
        self._connection.set_accept_state()
        set_verification_time(self._connection, int(context.clock().timestamp()))
        self._ssl: Any = ssl_of(self._connection)
        self._into_engine, self._from_engine = bios_of(self._connection)

    def feed(self, data: bytes) -> bytes:
        """Process bytes from the socket; the plaintext that they complete. Raises: HandshakeFailed, ProtocolBroken."""
        if len(data) <= READ_SIZE:
            return self._feed(ffi.from_buffer(data), len(data))
        view = memoryview(data)
        batches = [view[at : at + READ_SIZE] for at in range(0, len(data), READ_SIZE)]
        return b"".join([self._feed(ffi.from_buffer(batch), len(batch)) for batch in batches])

    def received(self, size: int) -> bytes:
        """As `feed`, for the first `size` bytes of the scratch's receive buffer, without a copy."""
        return self._feed(self._scratch.received, size)

    def _feed(self, data: Any, size: int) -> bytes:
        at = got = 0
        # RFC 8446, 6.1: data after close_notify must be ignored
        while at < size and not self.closed_by_peer:
            part = min(size - at, SLICE_SIZE)
            lib.BIO_write(self._into_engine, data + at, part)
            at += part
            if self.peer is not None or self._handshake(part):
                got = self._decrypt(got, part)
        return bytes(ffi.unpack(self._scratch.plain, got)) if got else b""

    def _handshake(self, size: int) -> bool:
        """Whether the handshake is complete; `peer` is set then."""
        self._handshake_size += size
        try:
            done = handshake(self._connection)
        except SSL.Error as error:
            raise self._handshake_failure(error) from None
        if not done:
            if self._handshake_size > HANDSHAKE_SIZE_MAX:
                raise HandshakeFailed(Refusal.SIZE)
            return False
        self.peer = peer_of(self._connection, self._address, self._anchors, self._tenants)
        return True

    def _handshake_failure(self, error: SSL.Error) -> HandshakeFailed:
        text = _reason_of(error)
        refused = self._connection.get_app_data()
        if isinstance(refused, str) and refused:
            return HandshakeFailed(Refusal.BAD_CERTIFICATE, refused)
        if text in _NO_CERTIFICATE:
            return HandshakeFailed(Refusal.NO_CERTIFICATE)
        if text in _NOT_TLS:
            return HandshakeFailed(Refusal.NOT_TLS, text)
        return HandshakeFailed(Refusal.HANDSHAKE, text)

    def _decrypt(self, got: int, sealed: int) -> int:
        """Append everything that the engine can decrypt to the `got` bytes in the scratch; their new number.

        One read returns at most one record, so they are collected. `sealed` bytes have just been given to the engine:
        only when the records read may account for them is it asked whether it holds more.
        """
        scratch = self._scratch
        read, ssl, plain, room = lib.SSL_read, self._ssl, scratch.plain, scratch.plain_size
        lib.ERR_clear_error()  # an error left in this thread's queue would be mistaken for ours
        while (size := read(ssl, plain + got, room - got)) > 0:
            got += size
            sealed -= size + RECORD_OVERHEAD
            if sealed <= 0 and not lib.BIO_get_mem_data(self._into_engine, scratch.ignored):
                return got  # the engine consumes no more than the record that it returns: nothing stays in it
        self._judge_end_of_data(size)
        return got

    def _judge_end_of_data(self, result: int) -> None:
        error = lib.SSL_get_error(self._ssl, result)
        if error == lib.SSL_ERROR_ZERO_RETURN:
            self.closed_by_peer = True
        elif error != lib.SSL_ERROR_WANT_READ:
            raise ProtocolBroken(self._reason(result))

    def _reason(self, result: int) -> str:
        """The engine's reason for `result`."""
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.Error as error:
            return _reason_of(error)
        return "the engine gave no reason"

    def write(self, data: bytes) -> None:
        """Encrypt `data`, at most SLICE_SIZE octets, in as few records as possible; the result is in `outgoing`.

        Raises: ProtocolBroken: the connection has ended.
        """
        size = len(data)
        lib.ERR_clear_error()
        written = lib.SSL_write(self._ssl, data, size)
        while 0 < written < size:  # one record at a time
            data = data[written:]
            size -= written
            written = lib.SSL_write(self._ssl, data, size)
        if written <= 0:
            raise ProtocolBroken(self._reason(written))

    def close(self) -> None:
        """Send close_notify. Data may still be received; nothing more can be written."""
        if self.peer is not None:
            self._is_compact = True  # its buffers go soon
            lib.ERR_clear_error()
            lib.SSL_shutdown(self._ssl)
            lib.ERR_clear_error()

    def outgoing_size(self) -> int:
        """Number of bytes that `outgoing` would return."""
        return int(lib.BIO_get_mem_data(self._from_engine, self._scratch.ignored))

    def outgoing(self) -> bytes:
        """Bytes to send now; may be empty."""
        scratch = self._scratch
        size = lib.BIO_read(self._from_engine, scratch.sealed, scratch.sealed_size)
        if size <= 0:
            return b""
        part = bytes(ffi.unpack(scratch.sealed, size))
        if not self._is_compact and self.peer is not None:
            self._compact()
        return part if size < scratch.sealed_size else part + self.outgoing()

    def _compact(self) -> None:
        """Once after the handshake, when they are empty: replace the buffers, which have grown with its messages."""
        if not self.outgoing_size() and not lib.BIO_get_mem_data(self._into_engine, self._scratch.ignored):
            self._into_engine, self._from_engine = renew_bios(self._connection)
            self._is_compact = True


def _reason_of(error: SSL.Error) -> str:
    """The engine's error text, without its file names."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        return str(error.args[0][0][2])
    return str(error.args[-1]) if error.args else type(error).__name__
