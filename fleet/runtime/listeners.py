"""The fleet's three TLS listeners, of one process or shared by several (SO_REUSEPORT).

The kernel distributes new connections evenly over the listening processes and skips one that has died.
"""

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from msgspec.structs import replace

from fleet.config.addresses import Address
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.errors import Unavailable
from fleet.domain.peer import network_of
from fleet.servers.line_limit import LineLimit
from fleet.tls.contexts import ContextSource
from fleet.tls.listener import Listener, ListenerLimits, ProtocolFactory, listen

NAMES = ("est", "http", "mqtt")


@contextmanager
def reserved(settings: Settings) -> Iterator[Settings]:
    """`settings` with a bound port in place of each 0. The ports stay reserved for processes of this user until the
    block ends; nothing listens yet.

    Raises: Unavailable (`cannot-listen`): another program uses one of them.
    """
    with ExitStack() as kept:
        taken = {}
        for name in NAMES:
            address: Address = getattr(settings, name)
            try:
                taken[name] = _reserve(address, kept)
            except OSError as error:
                raise cannot_listen(name, address, error) from error
        yield with_addresses(settings, taken)


def with_addresses(settings: Settings, addresses: Mapping[str, Address]) -> Settings:
    """`settings` with these addresses of the listeners."""
    return replace(settings, est=addresses["est"], mqtt=addresses["mqtt"], http=addresses["http"])


def _reserve(address: Address, kept: ExitStack) -> Address:
    port = address.port
    found = socket.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, sockaddr in dict.fromkeys(found):
        if port:
            # With SO_REUSEPORT we would share a port with another fleet of this user: test for one first.
            with _bound(family, kind, protocol, (sockaddr[0], port, *sockaddr[2:]), shared=False):
                pass
        bound = kept.enter_context(_bound(family, kind, protocol, (sockaddr[0], port, *sockaddr[2:]), shared=True))
        port = bound.getsockname()[1]
    return Address(address.host, port)


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        # Connections of an earlier server in TIME_WAIT do not block the port; a listening program does.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as the event loop's own listeners
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


async def open_listener(
    name: str, source: ContextSource, factory: ProtocolFactory, settings: Settings, *, shared: bool
) -> Listener:
    """The listener `name`, one of NAMES, under the limits of `settings`. Raises: Unavailable (`cannot-listen`)."""
    address: Address = getattr(settings, name)
    limits = ListenerLimits(
        total_max=settings.half_open_max,
        per_address_max=settings.half_open_per_address_max,
        deadline_s=settings.handshake_seconds_max,
        # A session may outlive its connection by seconds, so twice as many leaves room for reconnecting clients.
        connected_max=settings.sessions_max * 2 if name == "mqtt" else settings.http_connections_max,
        per_address_per_second=settings.connections_per_address_per_second,
        connected_per_address_max=None if name == "mqtt" else settings.http_connections_per_address_max,
    )
    refusals = logging.getLogger(f"fleet.{name}.tls")
    lines = LineLimit(refusals)

    def refused(peer_address: str, reason: str) -> None:
        if lines.allows(time.monotonic(), reason.partition(":")[0], network_of(peer_address)):
            log_event(refusals, logging.INFO, "tls.refused", address=peer_address, code=reason)

    try:
        return await listen(
            factory, (address.host, address.port), contexts=source, limits=limits, on_refused=refused, reuse_port=shared
        )
    except OSError as error:
        raise cannot_listen(name, address, error) from error


def make_known(listeners: Mapping[str, Listener], address: str) -> None:
    """A client from `address` has been admitted at one of `listeners`: all know its address block."""
    for listener in listeners.values():
        listener.admitted(address)


def cannot_listen(name: str, address: Address, error: OSError) -> Unavailable:
    # The system's text for the error number, without the address that event loops append.
    reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
    return Unavailable(
        "cannot-listen",
        f"The {name} listener cannot bind {address}: {reason}.",
        f"Free it, or choose another with --{name} or in fleet.toml.",
    )
