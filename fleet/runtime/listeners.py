"""The fleet's listeners, of one process or of several with a socket each (SO_REUSEPORT): three with TLS, one more of
MQTT over WebSocket if `[wss] address` is set, and one of plain HTTP for relying parties if `[publish] address` is.

The kernel distributes new connections evenly over the sockets. A worker has its own from the supervisor, which keeps
them for its successor: what has connected meanwhile waits, and is not refused.
"""

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from msgspec.structs import replace

from fleet.config.addresses import Address
from fleet.config.listeners import MQTT_NAMES, NAMES
from fleet.config.logs import log_event
from fleet.config.settings import Settings
from fleet.domain.peer import network_of
from fleet.runtime.binding import bound_socket, cannot_listen, socket_addresses
from fleet.runtime.descriptors import SESSION, descriptor_budget, raise_limit
from fleet.runtime.local_listener import LocalListener
from fleet.servers.http import HttpServer
from fleet.servers.line_limit import LineLimit
from fleet.servers.publish.server import no_room
from fleet.tls.contexts import ContextSource
from fleet.tls.known_blocks import KnownBlocks
from fleet.tls.listener import Listener, ListenerLimits, ProtocolFactory, listen


@contextmanager
def reserved(settings: Settings) -> Iterator[Settings]:
    """`settings` with a bound port in place of each 0. The ports stay reserved for processes of this user until the
    block ends; nothing listens yet.

    Raises: Unavailable (`cannot-listen`): another program uses one of them.
    """
    with ExitStack() as kept:
        taken = {}
        for name, address in addresses(settings).items():
            try:
                taken[name] = _reserve(address, kept)
            except OSError as error:
                raise cannot_listen(name, address, error) from error
        yield with_addresses(settings, taken)


def shared_sockets(settings: Settings) -> dict[str, list[socket.socket]]:
    """Bound sockets of one process for each listener, at ports that are reserved; other processes have their own.

    Raises: Unavailable (`cannot-listen`).
    """
    bound: dict[str, list[socket.socket]] = {}
    for name, address in addresses(settings).items():
        try:
            for family, kind, protocol, place in socket_addresses(address):
                bound.setdefault(name, []).append(bound_socket(family, kind, protocol, place, shared=True))
        except OSError as error:
            close_all(bound)
            raise cannot_listen(name, address, error) from error
    return bound


def close_all(bound: Mapping[str, Sequence[socket.socket]]) -> None:
    for sockets in bound.values():
        for one in sockets:
            one.close()


def check_distinct(settings: Settings) -> None:
    """Raises: Unavailable (`cannot-listen`): two listeners have one address."""
    seen: dict[str, Address] = {}
    for name, address in addresses(settings).items():
        for other, taken in seen.items():
            if address.port and address.port == taken.port and _overlap(address.host, taken.host):
                raise cannot_listen(name, address, OSError(f"it is the {other} listener's already"))
        seen[name] = address


def _overlap(one: str, other: str) -> bool:
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (one, other)}
    if len(hosts) == 1:
        return True
    families = {":" in host for host in hosts}
    return len(families) == 1 and not hosts.isdisjoint({"0.0.0.0", "::"})  # noqa: S104 - compared alone


def with_addresses(settings: Settings, bound: Mapping[str, Address]) -> Settings:
    """`settings` with these addresses of the listeners."""
    return replace(settings, **bound)


def addresses(settings: Settings) -> dict[str, Address]:
    """Those of the listeners that are on, by name."""
    return {name: address for name in NAMES if (address := getattr(settings, name)) is not None}


def _reserve(address: Address, kept: ExitStack) -> Address:
    port = address.port
    for family, kind, protocol, sockaddr in socket_addresses(address):
        place = (sockaddr[0], port, *sockaddr[2:])
        if port:
            # With SO_REUSEPORT we would share a port with another fleet of this user: test for one first.
            with bound_socket(family, kind, protocol, place):
                pass
        bound = kept.enter_context(bound_socket(family, kind, protocol, place, shared=True))
        port = bound.getsockname()[1]
    return Address(address.host, port)


class Listeners:
    """The listeners of one worker, by name; none until they are opened."""

    def __init__(
        self, settings: Settings, *, shared: bool, sockets: Mapping[str, Sequence[socket.socket]] | None = None
    ) -> None:
        """`sockets`: bound ones, by name; others are bound."""
        self._sockets = sockets or {}
        self._limit = raise_limit()
        self._budget = descriptor_budget(settings, self._limit)
        self._known = KnownBlocks()
        self._settings = settings
        self._shared = shared
        self._by_name: dict[str, Listener] = {}
        self._local: list[LocalListener] = []

    async def open(self, name: str, source: ContextSource | None, factory: ProtocolFactory) -> None:
        """Open `name`, one of NAMES; without `source`, without TLS. Raises: Unavailable (`cannot-listen`)."""
        address: Address = getattr(self._settings, name)
        refusals = logging.getLogger(f"fleet.{name}.tls")
        lines = LineLimit(refusals)

        def refused(peer_address: str, reason: str) -> None:
            if lines.allows(time.monotonic(), reason.partition(":")[0], network_of(peer_address)):
                log_event(refusals, logging.INFO, "tls.refused", address=peer_address, code=reason)

        try:
            self._by_name[name] = await listen(
                factory,
                list(self._sockets.get(name, ())) or (address.host, address.port),
                contexts=source,
                limits=self._limits(name),
                on_refused=refused,
                reuse_port=self._shared,
            )
        except OSError as error:
            raise cannot_listen(name, address, error) from error

    async def open_local(self, sockets: Mapping[str, socket.socket], servers: Mapping[str, HttpServer]) -> None:
        """Answer on bound sockets, without TLS. Raises: OSError."""
        for name, taken in sockets.items():
            local = LocalListener(servers[name])
            await local.open(taken)
            self._local.append(local)

    def _limits(self, name: str) -> ListenerLimits:
        settings, is_mqtt = self._settings, name in MQTT_NAMES
        total, per_address = settings.http_connections_max, settings.http_connections_per_address_max
        if name == "publish":
            total, per_address = settings.publish_connections_max, settings.publish_connections_per_address_max
        return ListenerLimits(
            total_max=settings.half_open_max,
            per_address_max=settings.half_open_per_address_max,
            deadline_s=settings.handshake_seconds_max,
            # A session may outlive its connection by seconds, so twice as many leaves room for reconnecting clients.
            connected_max=settings.sessions_max * 2 if is_mqtt else total,
            per_address_per_second=settings.connections_per_address_per_second,
            connected_per_address_max=None if is_mqtt else per_address,
            descriptor_budget=self._budget,
            descriptors_each=SESSION if is_mqtt else 1,
            known=self._known,
            balancers=settings.proxy_trusted if name in settings.proxy_listeners else (),
            no_room=no_room if name == "publish" else bytes,
        )

    def set_limits(self, settings: Settings) -> None:
        """Those of `settings`, for the connections to come."""
        self._settings = with_addresses(settings, addresses(self._settings))
        for name, listener in self._by_name.items():
            listener.set_limits(self._limits(name))

    def stop_accepting(self, names: Sequence[str] = NAMES) -> None:
        """At those of `names`; what has been accepted goes on, incomplete handshakes too."""
        for name in self._by_name.keys() & set(names):
            self._by_name[name].stop_accepting()
        if names == NAMES:
            for local in self._local:
                local.close()

    @property
    def handshaking(self) -> int:
        """Connections whose handshake is not complete."""
        return sum(listener.stats.handshaking for listener in self._by_name.values())

    def close(self) -> None:
        """Stop listening; connections go on."""
        for listener in self._by_name.values():
            listener.close()
        for local in self._local:
            local.close()

    def admitted(self, address: str) -> None:
        """A client from `address` has been admitted at one of them: all know its address block."""
        self._known.add(network_of(address))

    def with_ports(self) -> Settings:
        """The settings, with the bound ports."""
        bound = {name: Address(getattr(self._settings, name).host, one.port) for name, one in self._by_name.items()}
        return with_addresses(self._settings, bound)

    def descriptors(self) -> dict[str, int]:
        """For `GET /v1/status`: the limit of open files, what connections may take of it and take, and what follows."""
        budget, sessions_max = self._budget, self._settings.sessions_max
        return {"limit": self._limit, "max": budget.total, "taken": budget.taken, "sessions_max": sessions_max}

    def status(self) -> dict[str, object]:
        """For `GET /v1/status`."""
        return {name: asdict(listener.stats) for name, listener in self._by_name.items()}
