"""Who is at the other end of a connection, as far as TLS has proved it."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Peer:
    """The proved facts of one TLS connection. A certificate here has passed chain and signature checks; whether it
    may do anything is the registry's to say, by its fingerprint.
    """

    address: str
    """IP address of the other end, without the port."""
    certificate_der: bytes | None = None
    """The leaf certificate, or None when the peer presented none."""
    chain_der: tuple[bytes, ...] = ()
    """The verified chain, leaf first, trust anchor last; empty when there is no certificate."""
    fingerprint: bytes | None = None
    """SHA-256 of `certificate_der`, 32 bytes."""
    tenant: str | None = ""
    """Whose issuing CA signed the leaf, "" for the fleet's own; None: one that the door believes, but nobody's."""
    tls_version: str = ""
    """"TLSv1.3" or "TLSv1.2"."""
    cipher: str = ""
    group: str = ""
    """Name of the key exchange group, "" when the engine does not tell."""
    channel_binding_type: str = ""
    """"tls-exporter" on TLS 1.3 (RFC 9266), "tls-unique" on TLS 1.2 (RFC 5929)."""
    read_channel_binding: Callable[[], bytes] = field(default=bytes, repr=False, compare=False)
    """Worked out when asked for: few requests carry a binding."""

    @property
    def channel_binding(self) -> bytes:
        """What is the same at both ends of this connection and of no other; b"" when the connection is gone."""
        return self.read_channel_binding()


def source_of(address: str) -> str:
    """Whom we take for one neighbour: an IPv4 address, or an IPv6 /64, which is what one subscriber is given."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
