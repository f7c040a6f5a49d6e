"""One server-side TLS connection without a socket: bytes in, plaintext and bytes out.

    session = TlsSession(context, "192.0.2.7")
    plaintext = session.feed(received)     # may be empty
    socket.send(session.outgoing())        # after every call, also after one that raised: it may hold an alert
    session.peer                           # None until the handshake is done

Nothing that comes before the handshake is done is ever returned as plaintext.
"""

from typing import Any

from OpenSSL import SSL

from fleet.domain.peer import Peer
from fleet.tls.contexts import TlsContext
from fleet.tls.engine import SLICE_SIZE, Scratch, bios_of, ffi, lib, set_verification_time, ssl_of
from fleet.tls.errors import HandshakeFailed, ProtocolBroken, Refusal
from fleet.tls.peer_facts import peer_of

# A client's certificates take most of it: the engine itself stops at 100 KB of them, real chains have 2 to 5 KB.
HANDSHAKE_SIZE_MAX = 128 * 1024

_NOT_TLS = {"http request", "https proxy request", "wrong version number", "packet length too long"}
_NO_CERTIFICATE = {"peer did not return a certificate"}


class TlsSession:
    """The server's side of one connection. After it has raised, only `outgoing` may be called."""

    __slots__ = ("_address", "_connection", "_from_engine", "_handshake_size", "_into_engine", "_scratch", "_ssl",
                 "closed_by_peer", "peer")  # fmt: skip

    def __init__(self, context: TlsContext, address: str, scratch: Scratch | None = None) -> None:
        """`scratch` may be shared by all sessions of one thread."""
        self.peer: Peer | None = None
        """Set when the handshake is done."""
        self.closed_by_peer = False
        """The peer has said close_notify: nothing more will come from it."""
        self._address = address
        self._scratch = scratch or Scratch()
        self._handshake_size = 0
        self._connection = SSL.Connection(context.engine_context)
        self._connection.set_accept_state()
        set_verification_time(self._connection, int(context.clock().timestamp()))
        self._ssl: Any = ssl_of(self._connection)
        self._into_engine, self._from_engine = bios_of(self._connection)

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take what came from the socket; return the plaintext that it completes.

        Raises: HandshakeFailed, ProtocolBroken.
        """
        size = len(data)
        if size <= SLICE_SIZE:
            return self._feed_slice(data)
        view = memoryview(data)
        return b"".join([self._feed_slice(view[at : at + SLICE_SIZE]) for at in range(0, size, SLICE_SIZE)])

    def _feed_slice(self, data: bytes | memoryview) -> bytes:
        if self.closed_by_peer or not data:
            return b""  # RFC 8446, 6.1: data after close_notify must be ignored
        with ffi.from_buffer(data) as source:
            lib.BIO_write(self._into_engine, source, len(data))
        if self.peer is None and not self._handshake(len(data)):
            return b""
        return self._decrypt()

    def _handshake(self, size: int) -> bool:
        """Whether the handshake is done; `peer` is set then."""
        self._handshake_size += size
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            if self._handshake_size > HANDSHAKE_SIZE_MAX:
                raise HandshakeFailed(Refusal.SIZE) from None
            return False
        except SSL.Error as error:
            raise self._handshake_failure(error) from None
        self.peer = peer_of(self._connection, self._address)
        return True

    def _handshake_failure(self, error: SSL.Error) -> HandshakeFailed:
        text = _reason_of(error)
        if refused := self._connection.get_app_data():
            return HandshakeFailed(Refusal.BAD_CERTIFICATE, refused)
        if text in _NO_CERTIFICATE:
            return HandshakeFailed(Refusal.NO_CERTIFICATE)
        if text in _NOT_TLS:
            return HandshakeFailed(Refusal.NOT_TLS, text)
        return HandshakeFailed(Refusal.HANDSHAKE, text)

    def _decrypt(self) -> bytes:
        """Everything that the engine can decrypt now. One read gives one record at most, so they are gathered."""
        plain, room = self._scratch.plain, len(self._scratch.plain)
        got = 0
        lib.ERR_clear_error()  # what somebody else left in this thread's queue would be taken for ours
        while (size := lib.SSL_read(self._ssl, plain + got, room - got)) > 0:
            got += size
        error = lib.SSL_get_error(self._ssl, size)
        if error == lib.SSL_ERROR_ZERO_RETURN:
            self.closed_by_peer = True
        elif error != lib.SSL_ERROR_WANT_READ:
            raise ProtocolBroken(self._error_text(size))
        return bytes(ffi.buffer(plain, got)) if got else b""

    def _error_text(self, result: int) -> str:
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.Error as error:
            return _reason_of(error)
        return "the engine gave no reason"

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt `data`, at most SLICE_SIZE of it, in as few records as it takes; take the result from `outgoing`.

        Raises: ProtocolBroken: the connection is over.
        """
        try:
            self._connection.sendall(data)
        except SSL.Error as error:
            raise ProtocolBroken(_reason_of(error)) from None

    def close(self) -> None:
        """Say close_notify. The peer may still be heard; nothing more can be written."""
        if self.peer is not None:
            lib.ERR_clear_error()
            lib.SSL_shutdown(self._ssl)
            lib.ERR_clear_error()

    def outgoing_size(self) -> int:
        """How many bytes `outgoing` would return."""
        return int(lib.BIO_get_mem_data(self._from_engine, self._scratch.ignored))

    def outgoing(self) -> bytes:
        """What is to be sent now, empty when there is nothing."""
        sealed = self._scratch.sealed
        size = lib.BIO_read(self._from_engine, sealed, len(sealed))
        if size <= 0:
            return b""
        part = bytes(ffi.buffer(sealed, size))
        if size < len(sealed):
            return part
        return part + self.outgoing()


def _reason_of(error: SSL.Error) -> str:
    """The engine's own words, without its file names."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        return str(error.args[0][0][2])
    return str(error.args[-1]) if error.args else type(error).__name__
