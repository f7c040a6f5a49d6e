"""Peer: the identity of the other end of a connection, as authenticated by TLS."""

import ipaddress
from collections.abc import Callable

from msgspec import Struct


class Peer(Struct, frozen=True):
    """The authenticated facts of one TLS connection. A certificate here has passed path validation; what it may do
    depends on the registry's record of its fingerprint.
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
    """Tenant of the CA that issued the leaf, "" for the fleet's own; None: a trusted CA of no tenant."""
    tls_version: str = ""
    """"TLSv1.3" or "TLSv1.2"."""
    channel_binding_type: str = ""
    """"tls-exporter" on TLS 1.3 (RFC 9266), "tls-unique" on TLS 1.2 (RFC 5929)."""
    read_channel_binding: Callable[[], bytes] = bytes
    """Computed on demand: few requests carry a binding."""
    read_exporter: Callable[[], bytes] = bytes
    """"tls-exporter" on TLS 1.2 with an extended master secret (RFC 9266, 2); b"" on any other connection."""
    read_agreed: Callable[[], tuple[str, str]] = lambda: ("", "")
    """`cipher` and `group`, on demand."""

    @property
    def source(self) -> str:
        """Who it is where something is limited for each client: its certificate (16 hexadecimal digits of the
        fingerprint), or without one its network.
        """
        return self.fingerprint[:8].hex() if self.fingerprint else network_of(self.address)

    @property
    def cipher(self) -> str:
        """Name of the cipher; "" when the connection has closed."""
        return self.read_agreed()[0]

    @property
    def group(self) -> str:
        """Name of the key exchange group; "" if unknown, or when the connection has closed."""
        return self.read_agreed()[1]

    @property
    def channel_binding(self) -> bytes:
        """The channel binding of this connection; b"" when the connection has closed."""
        return self.read_channel_binding()


def block_of(address: str) -> str:
    """What may well be in one hand: the /24 of an IPv4 address, the /48 of an IPv6 one."""
    return _prefix(address, 24, 48)


def region_of(address: str) -> str:
    """What a provider has: the /16 of an IPv4 address, the /32 of an IPv6 one, with which 65,536 /48s come."""
    return _prefix(address, 16, 32)


def _prefix(address: str, of_version_4: int, of_version_6: int) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    return str(ipaddress.ip_network((parsed, of_version_4 if parsed.version == 4 else of_version_6), strict=False))


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one, which is what a subscriber is assigned."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
