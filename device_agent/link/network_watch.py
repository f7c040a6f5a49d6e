"""Changes of this machine's network, as the kernel reports them (rtnetlink): links and addresses.

A link that comes up, or a new address, is a reason to connect at once instead of waiting for the backoff; an address
that is gone takes the connections that used it with it, long before a keep-alive finds that out.
"""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
NEW_LINK, DELETED_LINK, NEW_ADDRESS, DELETED_ADDRESS = 16, 17, 20, 21
RUNNING = 0x40  # IFF_RUNNING
UNUSABLE = 0x40 | 0x08  # IFA_F_TENTATIVE, IFA_F_DADFAILED
IFA_ADDRESS, IFA_LOCAL = 1, 2

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg
_ATTRIBUTE = struct.Struct("=HH")  # rtattr

READ_SIZE = 64 * 1024
READS_MAX = 16  # datagrams in one turn of the loop


@dataclass(frozen=True, slots=True)
class NetworkChange:
    """What a batch of messages comes to."""

    improved: bool = False
    """A link is up, or an address is there, that was not before."""
    gone: frozenset[str] = frozenset()
    """Addresses that this machine has no longer."""


@dataclass(slots=True)
class KnownNetwork:
    """The links and addresses seen so far. Pure: fed with datagrams.

    The kernel repeats what has not changed, at each router advertisement and each scan of a radio.
    """

    _running: dict[int, bool] = field(default_factory=dict)
    _addresses: set[str] = field(default_factory=set)

    def feed(self, data: bytes) -> NetworkChange:
        """The change that one datagram reports; a message that cannot be read is ignored."""
        improved = False
        gone: set[str] = set()
        for kind, body in _messages(data):
            if kind in (NEW_LINK, DELETED_LINK) and len(body) >= _LINK.size:
                _, _, index, flags, _ = _LINK.unpack_from(body)
                running = kind == NEW_LINK and bool(flags & RUNNING)
                improved |= running and not self._running.get(index, False)
                self._running[index] = running
            elif kind in (NEW_ADDRESS, DELETED_ADDRESS) and (address := _usable_address(body)):
                if kind == NEW_ADDRESS:
                    improved |= address not in self._addresses
                    self._addresses.add(address)
                    gone.discard(address)
                else:
                    self._addresses.discard(address)
                    gone.add(address)
        return NetworkChange(improved, frozenset(gone))


class NetworkWatch:
    """The kernel's reports. Where there are none, as in some sandboxes, `socket` is None and nothing changes."""

    def __init__(self) -> None:
        self._known = KnownNetwork()
        self.socket = _open()

    def read(self) -> NetworkChange:
        """The change since the last call. Never blocks."""
        improved, gone = False, frozenset[str]()
        for _ in range(READS_MAX):
            try:
                data = self.socket.recv(READ_SIZE) if self.socket is not None else b""
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: reports were lost, so anything may have changed
                improved = True
                continue
            if not data:
                break
            change = self._known.feed(data)
            improved, gone = improved or change.improved, gone | change.gone
        return NetworkChange(improved, gone)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


def _open() -> socket.socket | None:
    if not hasattr(socket, "AF_NETLINK"):
        return None
    with contextlib.suppress(OSError):
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            opened.bind((0, GROUPS))
        except OSError:
            opened.close()
            return None
        return opened
    return None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, data[at + _HEADER.size : at + length]
        at += -(-length // 4) * 4


def _usable_address(body: bytes) -> str:
    """The address in an ifaddrmsg; "" if it cannot be used yet, or cannot be read."""
    if len(body) < _ADDRESS.size or _ADDRESS.unpack_from(body)[2] & UNUSABLE:
        return ""
    found: dict[int, bytes] = {}
    at = _ADDRESS.size
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += -(-length // 4) * 4
    raw = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")  # of a point-to-point link, IFA_ADDRESS is the peer's
    return str(ipaddress.ip_address(raw)) if len(raw) in (4, 16) else ""
