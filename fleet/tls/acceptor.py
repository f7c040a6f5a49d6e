"""Accepting connections, many in one turn of the event loop.

uvloop's own servers accept one connection in each turn: when turns are long, as in a storm of handshakes, the kernel's
queue overflows, and its clients repeat their SYN a second later, then three. And without a free descriptor they accept
and close, and nothing is logged.
"""

import _socket
import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

AT_ONCE_MAX = 64  # in one turn: two milliseconds
PAUSE_SECONDS = 0.1  # without a descriptor or memory
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Socket(socket.socket):
    """Its family and type are numbers. The enumerations that the standard library makes of them, seven for each
    connection, would take longer than the system calls.
    """

    __slots__ = ()
    family, type = _socket.socket.family, _socket.socket.type  # type: ignore[assignment]

    def accept(self) -> tuple["_Socket", Any]:
        """As a socket's own, for one that does not block."""
        descriptor, address = self._accept()  # type: ignore[attr-defined]  # what it calls
        return _Socket(self.family, self.type, self.proto, fileno=descriptor), address


class Acceptor:
    """Accepts from listening sockets until it is closed."""

    def __init__(
        self, factory: Callable[[], asyncio.BaseProtocol], backlog: int, on_exhausted: Callable[[OSError], None]
    ) -> None:
        """`on_exhausted` is called when the system has no descriptor or memory for a connection."""
        self._loop = asyncio.get_running_loop()
        self._factory = factory
        self._backlog = backlog
        self._on_exhausted = on_exhausted
        self._server: asyncio.Server | None = None
        self._sockets: list[_Socket] = []
        self._opening: set[asyncio.Task[object]] = set()
        self._pauses: dict[_Socket, asyncio.TimerHandle] = {}

    def start_on(self, bound: Sequence[socket.socket]) -> None:
        """Listen on bound sockets, which are taken over, and which other processes may have too. Raises: OSError."""
        self._sockets.extend(_Socket(each.family, each.type, each.proto, each.detach()) for each in bound)
        try:
            for own in self._sockets:
                own.setblocking(False)
                own.listen(self._backlog)
        except OSError:
            self.close()
            raise
        for own in self._sockets:
            self._loop.add_reader(own, self._accept, own)

    async def start(self, host: str | Sequence[str] | None, port: int, *, reuse_port: bool) -> None:
        """Bind and listen. Raises: OSError."""
        # The event loop binds, in its way and with its errors; it does not listen.
        self._server = await self._loop.create_server(
            self._factory, host, port, reuse_port=reuse_port or None, start_serving=False
        )
        self.start_on([bound.dup() for bound in self._server.sockets])

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Each bound address and port."""
        return tuple((name[0], name[1]) for name in (own.getsockname() for own in self._sockets))

    def close(self) -> None:
        """Stop listening. What has been accepted goes on."""
        for pause in self._pauses.values():
            pause.cancel()
        self._pauses.clear()
        for own in self._sockets:
            self._loop.remove_reader(own)
            own.close()
        self._sockets.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _accept(self, listening: _Socket) -> None:
        for _ in range(AT_ONCE_MAX):
            try:
                connection, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._on_exhausted(error)
                self._loop.remove_reader(listening)
                self._pauses[listening] = self._loop.call_later(PAUSE_SECONDS, self._resume, listening)
                return
            opening = self._loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    def _resume(self, listening: _Socket) -> None:
        del self._pauses[listening]
        self._loop.add_reader(listening, self._accept, listening)

    async def _open(self, connection: _Socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:  # it has gone already
            connection.close()
