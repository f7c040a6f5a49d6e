"""Sockets of the listeners, bound; nothing listens on them yet."""

import errno
import os
import socket

from fleet.config.addresses import Address, LocalAddress, is_loopback
from fleet.config.listeners import IN_FILE_ALONE
from fleet.domain.errors import Unavailable


def socket_addresses(address: Address) -> list[tuple[int, int, int, tuple[object, ...]]]:
    """Family, kind, protocol and address of each socket that `address` means; of `localhost`, those of the
    loopback interface alone, whatever a resolver says (RFC 6761, 6.3). Raises: OSError.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places: list[tuple[int, int, int, tuple[object, ...]]]
    places = [(family, kind, protocol, place) for family, kind, protocol, _, place in dict.fromkeys(found)]
    if is_loopback(address.host):
        places = [each for each in places if is_loopback(str(each[3][0]))]
        if not places:
            raise OSError(f"{address.host} resolves to no loopback address")
    return places


def bound_socket(
    family: int, kind: int, protocol: int, address: tuple[object, ...], *, shared: bool = False
) -> socket.socket:
    """With `shared`, other processes of this user may bind the same address. Raises: OSError."""
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


def cannot_listen(name: str, address: Address | LocalAddress, error: OSError) -> Unavailable:
    """The refusal of a start for which `name` cannot be bound."""
    if error.errno == errno.EADDRNOTAVAIL:
        error = OSError("this machine has no such address")
    # The system's text for the error number, without the address that event loops append.
    reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
    chosen_by = f"with [{name}] address" if name in IN_FILE_ALONE else f"with --{name} or"
    return Unavailable(
        "cannot-listen",
        f"The {name} listener cannot bind {address}: {reason}.",
        f"{'Choose' if error.errno is None else 'Free it, or choose'} another {chosen_by} in fleet.toml.",
    )
