"""TLS listener: accepts connections and creates an application protocol for each authenticated one.

`protocol_factory` is called with the authenticated Peer: no protocol exists before the handshake is complete, so no
unauthenticated data can reach one. A listener without contexts has no TLS, and the same bounds.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from fleet.domain.peer import Peer, network_of
from fleet.tls.acceptor import Acceptor
from fleet.tls.contexts import ContextSource
from fleet.tls.engine import Scratch
from fleet.tls.errors import Refusal
from fleet.tls.half_open import HalfOpen
from fleet.tls.handshake import Handshake
from fleet.tls.handshake_queue import HandshakeQueue
from fleet.tls.idle import Holder, MayGiveWay
from fleet.tls.known_blocks import Ranking
from fleet.tls.limits import ListenerLimits
from fleet.tls.plain import Established, PlainConnection
from fleet.tls.proxied import Proxied
from fleet.tls.quickack import QuickAcks
from fleet.tls.transport import TlsTransport

__all__ = ["Listener", "ListenerLimits", "ListenerStats", "listen"]


Place = tuple[str | Sequence[str] | None, int] | list[socket.socket]
"""Host (several, or None for every interface) and port (0: any free one); or bound sockets."""
ProtocolFactory = Callable[[Peer], asyncio.Protocol]
OnRefused = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class ListenerStats:
    """Counters since the start; the first two are current values."""

    handshaking: int
    """Current, those that wait for their turn included."""
    connected: int
    """Current."""
    accepted: int
    established: int
    refused: dict[Refusal, int]


class Listener:
    """Listening sockets and their connections. Made by `listen`."""

    def __init__(
        self,
        protocol_factory: ProtocolFactory,
        contexts: ContextSource | None,
        limits: ListenerLimits,
        on_refused: OnRefused | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._contexts = contexts
        self.scratch = Scratch()
        self.close_deadline_s = limits.close_deadline_s
        self.balancers = limits.balancers
        self.half_open = HalfOpen(self.loop, limits, limits.known)
        if limits.descriptor_budget is not None:
            limits.descriptor_budget.join(self)
        self.queue = HandshakeQueue(self.loop, self.half_open.known)
        self.silent = QuickAcks(self.loop)
        self._protocol_factory = protocol_factory
        self._on_refused = on_refused
        self.declined: set[PlainConnection] = set()
        """Those that are told that there is no room for them."""
        self._accepted = 0
        self._established = 0
        self._refused: Counter[Refusal] = Counter()
        self._limits = limits
        self._connected = 0
        self._kinds: dict[type, bool] = {}
        """Of its protocols, and whether those may give way."""
        self._may_be_idle = False
        """Whether any of them may."""
        self._by_source: dict[str, Holder] = {}
        self._ranking = Ranking(self.half_open.known)
        self._acceptor: Acceptor | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, place: Place, *, reuse_port: bool) -> None:
        """Bind, unless that is done, and listen."""
        acceptor = Acceptor(self._opened, self._limits.backlog, self._on_exhausted)
        if isinstance(place, tuple):
            await acceptor.start(*place, reuse_port=reuse_port)
        else:
            acceptor.start_on(place)
        self._acceptor = acceptor

    def _opened(self) -> asyncio.BaseProtocol:
        return Proxied(self) if self.balancers else self.connection()

    def connection(self) -> PlainConnection | Handshake:
        """The first protocol of a connection whose client's address is known."""
        return PlainConnection(self) if self._contexts is None else Handshake(self)

    @property
    def contexts(self) -> ContextSource:
        """Raises: RuntimeError: it has no TLS."""
        if self._contexts is None:
            raise RuntimeError("The listener has no TLS.")
        return self._contexts

    @property
    def no_room(self) -> bytes:
        return self._limits.no_room()

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Each bound address and port."""
        return () if self._acceptor is None else self._acceptor.addresses

    @property
    def port(self) -> int:
        """Port of the first address; with port 0, each address may have its own. Raises: RuntimeError: closed."""
        addresses = self.addresses
        if not addresses:
            raise RuntimeError("The listener is closed.")
        return addresses[0][1]

    @property
    def stats(self) -> ListenerStats:
        return ListenerStats(
            handshaking=len(self.half_open),
            connected=self._connected,
            accepted=self._accepted,
            established=self._established,
            refused=dict(self._refused),
        )

    def set_limits(self, limits: ListenerLimits) -> None:
        """For the connections to come; deadlines, backlog and balancers stay as they were."""
        self._limits = limits
        self.half_open.set_limits(limits)

    def stop_accepting(self) -> None:
        """What has been accepted goes on, incomplete handshakes too."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None

    def close(self) -> None:
        """Stop accepting and drop incomplete handshakes. Established connections continue."""
        self.stop_accepting()
        self.half_open.close()
        self.queue.close()
        self.silent.close()
        for each in list(self.declined):
            each.abort()

    def abort_connections(self) -> None:
        """Abort every connection."""
        for holder in list(self._by_source.values()):
            for transport in list(holder.connections):
                transport.abort()

    async def wait_closed(self) -> None:
        """Return when the last connection has ended."""
        await self._empty.wait()

    def admitted(self, address: str) -> None:
        """The registry has admitted a client from `address`: its address block is known from now on."""
        self.half_open.known.add(network_of(address))

    @property
    def descriptors(self) -> int:
        """Those that its connections take."""
        return (len(self.half_open) + self._connected + len(self.declined)) * self._limits.descriptors_each

    @property
    def may_give(self) -> int:
        """Those of connections that may be ended for a newcomer's."""
        count = len(self.half_open) + (self._connected if self._may_be_idle else 0)
        return count * self._limits.descriptors_each

    def give_way(self, newcomer: str) -> bool:
        """End a connection for one from the address block `newcomer`; False when none may be ended for it."""
        if not self._may_be_idle or len(self.half_open) >= self._connected:
            return self.half_open.make_room(newcomer)
        return self._end_idle(self._ranking.biggest() or newcomer) or self.half_open.make_room(newcomer)

    def _on_exhausted(self, error: OSError) -> None:
        self.refuse("", Refusal.NO_DESCRIPTOR, error.strerror or "")
        self.give_way("")

    # Called by handshakes

    def count_accepted(self) -> None:
        self._accepted += 1

    def refuse(self, address: str, reason: Refusal, detail: str) -> None:
        self._refused[reason] += 1
        if self._on_refused is not None:
            self._on_refused(address, f"{reason}: {detail}" if detail else str(reason))

    def has_no_room(self, address: str) -> Refusal | None:
        """Reason to refuse one more connection from `address`.

        Before it is refused, an idle connection gives way: one of the address block that holds most when the listener
        is full, one of its own block when that is.
        """
        limits = self._limits
        source = network_of(address)
        is_full = limits.connected_max is not None and self._connected >= limits.connected_max
        if is_full and not self._end_idle(self._ranking.biggest() or source):
            return Refusal.CONNECTED_CAP
        cap = limits.connected_per_address_max
        if cap is not None and len(self._by_source.get(source, ())) >= cap and not self._end_idle(source):
            return Refusal.CONNECTED_ADDRESS_CAP
        return None

    def _end_idle(self, source: str) -> bool:
        """End the connection from `source` that has been idle for longest, of those without a certificate if there
        are any; False when none is idle.
        """
        holder = self._by_source.get(source)
        ended = holder.longest_idle() if holder is not None else None
        if ended is None:
            return False
        self._remove(ended)
        self.refuse(ended.peer.address, Refusal.GAVE_WAY, "")
        ended.give_way()
        return True

    def establish(self, transport: Established, early: bytes) -> None:
        self._established += 1
        self._connected += 1
        source = network_of(transport.peer.address)
        if (holder := self._by_source.get(source)) is None:
            holder = self._by_source[source] = Holder()
        holder.connections[transport] = None
        self._ranking.set(source, len(holder))
        self._empty.clear()
        protocol = self._protocol_factory(transport.peer)
        if self._gives_way(protocol):
            holder.watch(transport, protocol)
        transport.begin(protocol, early)

    def _gives_way(self, protocol: asyncio.Protocol) -> TypeGuard[MayGiveWay]:
        kind = type(protocol)
        if kind not in self._kinds:  # each once: to ask it of a protocol takes as long as 20 calls
            self._kinds[kind] = isinstance(protocol, MayGiveWay)
            self._may_be_idle = any(self._kinds.values())
        return self._kinds[kind]

    def lost(self, transport: Established) -> None:
        if isinstance(transport, TlsTransport):
            self.silent.forget(transport)
        self._remove(transport)
        if not self._connected:
            self._empty.set()

    def _remove(self, transport: Established) -> None:
        source = network_of(transport.peer.address)
        holder = self._by_source.get(source)
        if holder is None or transport not in holder.connections:
            return
        holder.remove(transport)
        self._ranking.set(source, len(holder))
        self._connected -= 1
        if not holder:
            del self._by_source[source]


async def listen(
    protocol_factory: ProtocolFactory,
    place: Place,
    *,
    contexts: ContextSource | None,
    limits: ListenerLimits | None = None,
    on_refused: OnRefused | None = None,
    reuse_port: bool = False,
) -> Listener:
    """Listen at `place`. Without `contexts`, without TLS.

    `on_refused` is called for each refused connection with its address and a value of `Refusal`, often with a detail
    after a colon. `reuse_port` lets several processes share the port.

    Raises: OSError: the address cannot be bound.
    """
    listener = Listener(protocol_factory, contexts, limits or ListenerLimits(), on_refused)
    await listener.start(place, reuse_port=reuse_port)
    return listener
