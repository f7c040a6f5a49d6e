"""A connection from accept until its client's address is known: a balancer says it in a PROXY header.

A balancer's connection without a header is refused: with the balancer's address, all clients would be one. From any
other address no header is read.
"""

import asyncio
import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol, cast

from fleet.tls.engine import Scratch
from fleet.tls.errors import Refusal
from fleet.tls.handshake import HalfOpenConnection, Handshake
from fleet.tls.plain import ConnectionOwner, PlainConnection, peer_address
from fleet.wire.errors import WireError
from fleet.wire.proxy_protocol import V2_SIZE_MAX, may_begin_header, read_header


class ProxiedOwner(ConnectionOwner, Protocol):
    """The listener, as a connection uses it."""

    scratch: Scratch
    balancers: tuple[IPv4Network | IPv6Network, ...]

    def connection(self) -> Handshake | PlainConnection: ...


class Proxied(HalfOpenConnection):
    """The socket's first protocol, while a balancer's header is incomplete. Its address is the balancer's."""

    __slots__ = ()
    _owner: ProxiedOwner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)  # a stream socket's
        self.address = peer_address(transport)
        self._owner.count_accepted()
        if not _is_in(self.address, self._owner.balancers):
            self._hand_over(self.address, b"")
        elif reason := self._owner.half_open.enter(self, from_balancer=True):
            self._end(reason)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._owner.scratch.received_view[: V2_SIZE_MAX - len(self._held)]

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return
        if not self._held:
            self._owner.half_open.heard(self)
        self._held += bytes(self._owner.scratch.received_view[:nbytes])
        try:
            header = read_header(self._held)
        except WireError as error:
            is_header = may_begin_header(self._held)
            self._end(*((Refusal.BAD_PROXY_HEADER, str(error)) if is_header else (Refusal.NO_PROXY_HEADER, "")))
            return
        if header is not None:
            half_open = self._owner.half_open
            spent = half_open.age(self)
            half_open.leave(self)
            connection = self._hand_over(header.client or self.address, self._held[header.size :])
            half_open.shorten(connection, spent)  # header and handshake have one deadline

    def _hand_over(self, client: str, early: bytes) -> Handshake | PlainConnection:
        self._over = True
        connection = self._owner.connection()
        self._raw.set_protocol(connection)
        connection.open(self._raw, client, early)
        return connection


def _is_in(address: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(parsed in network for network in networks)
