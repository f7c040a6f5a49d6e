"""Where a fleet listens: one door by itself, or the same doors shared by several processes (SO_REUSEPORT).

The kernel spreads new connections over the processes that listen, evenly, and passes over one that has died.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from fleet.config.settings import Address, Settings
from fleet.domain.errors import Unavailable
from fleet.servers.line_limit import LineLimit
from fleet.tls.contexts import ContextSource
from fleet.tls.listener import HandshakeLimits, Listener, ProtocolFactory, listen

NAMES = ("est", "http", "mqtt")


@contextmanager
def reserved(settings: Settings) -> Iterator[Settings]:
    """`settings` with a real port wherever they say 0; each port stays ours, for processes of this user to share,
    until the block ends. Nobody listens yet.

    Raises: Unavailable (`cannot-listen`): another program has one of them.
    """
    with ExitStack() as kept:
        taken = {}
        for name in NAMES:
            address: Address = getattr(settings, name)
            try:
                taken[name] = _reserve(address, kept)
            except OSError as error:
                raise cannot_listen(name, address, error) from error
        yield at(settings, taken)


def at(settings: Settings, places: Mapping[str, Address]) -> Settings:
    """`settings` with these addresses for the listeners."""
    return replace(settings, est=places["est"], mqtt=places["mqtt"], http=places["http"])


def _reserve(address: Address, kept: ExitStack) -> Address:
    port = address.port
    found = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, place in dict.fromkeys(found):
        if port:
            # A port that is to be shared would be shared with another fleet of this user as well: look first.
            with _bound(family, kind, protocol, (place[0], port, *place[2:]), shared=False):
                pass
        keeper = kept.enter_context(_bound(family, kind, protocol, (place[0], port, *place[2:]), shared=True))
        port = keeper.getsockname()[1]
    return Address(address.host, port)


def _bound(family: int, kind: int, protocol: int, place: tuple[object, ...], *, shared: bool) -> socket.socket:
    keeper = socket.socket(family, kind, protocol)
    try:
        # What lingers of an earlier server's connections is no obstacle; a program that listens is.
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            keeper.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as the event loop's own listeners
        keeper.bind(place)
    except BaseException:
        keeper.close()
        raise
    return keeper


async def open_door(
    name: str, source: ContextSource, factory: ProtocolFactory, settings: Settings, *, shared: bool
) -> Listener:
    """The listener `name`, one of NAMES, under the limits of `settings`.

    Raises: Unavailable (`cannot-listen`).
    """
    address: Address = getattr(settings, name)
    limits = HandshakeLimits(
        total_max=settings.half_open_max,
        per_address_max=settings.half_open_per_address_max,
        deadline_s=settings.handshake_seconds_max,
        # A gateway session ends within seconds of its connection, so twice as many leaves room for comings and goings.
        connected_max=settings.sessions_max * 2 if name == "mqtt" else settings.http_connections_max,
        per_address_per_second=settings.connections_per_address_per_second,
        connected_per_address_max=None if name == "mqtt" else settings.http_connections_per_address_max,
    )
    refusals = logging.getLogger(f"fleet.{name}.tls")
    lines = LineLimit(refusals)

    def refused(peer_address: str, reason: str) -> None:
        if lines.allows(time.monotonic()):
            refusals.info("event=tls.refused address=%s code=%s", peer_address, reason)

    try:
        return await listen(
            factory,
            address.host,
            address.port,
            contexts=source,
            limits=limits,
            on_refused=refused,
            reuse_port=shared,
        )
    except OSError as error:
        raise cannot_listen(name, address, error) from error


def cannot_listen(name: str, address: Address, error: OSError) -> Unavailable:
    return Unavailable(
        "cannot-listen",
        f"The {name} listener cannot bind {address}: {_reason(error)}.",
        f"Free it, or choose another with --{name} or in fleet.toml.",
    )


def _reason(error: OSError) -> str:
    """The system's own short words; event loops add the address, which stands in our sentence already."""
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
