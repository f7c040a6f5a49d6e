"""Limits of a listener."""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from fleet.tls.descriptor_budget import DescriptorBudget
from fleet.tls.known_blocks import KnownBlocks


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Resources that clients of a listener may use, above all before they are authenticated."""

    total_max: int = 10_000
    """Connections without a complete handshake. One that is silent or waits takes a few kilobytes, and `HandshakeQueue`
    limits how many have an engine."""
    per_address_max: int = 10_000
    """From one IP address: a factory or fleet behind one NAT reconnects all at once after an outage."""
    deadline_s: float = 10.0
    """From accept to Finished, without the wait for its turn: three round trips over a poor mobile link."""
    connected_max: int | None = None
    """Established connections; None for no cap."""
    connected_per_address_max: int | None = None
    per_address_per_second: float = 0.0
    """New connections from one address, whatever their outcome; 0 for no limit. A full handshake costs half a
    millisecond of a core. KNOWN_WEIGHT times as many from address blocks with admitted clients."""
    close_deadline_s: float = 10.0
    """For a peer to read what a closing connection still sends."""
    descriptor_budget: DescriptorBudget | None = None
    """Descriptors shared with other listeners of the process."""
    descriptors_each: int = 1
    """That a connection takes of them."""
    known: KnownBlocks | None = None
    """Address blocks of admitted clients, shared with other listeners of the process; None: it has its own."""
    backlog: int = 1024
    """Pending connections in the kernel during a burst, which caps it at somaxconn."""
    balancers: tuple[IPv4Network | IPv6Network, ...] = ()
    """Whose connections begin with a PROXY header: limits then count the address that it says."""

    no_room: Callable[[], bytes] = bytes
    """What a client is sent for which a listener without TLS has no room; nothing by default."""

    def __post_init__(self) -> None:
        if self.total_max < 1 or self.per_address_max < 1 or self.deadline_s <= 0 or self.per_address_per_second < 0:
            raise ValueError("A listener's limits must be positive.")
