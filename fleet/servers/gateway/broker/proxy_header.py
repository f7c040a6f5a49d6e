"""The PROXY header that a connection to an external broker begins with, where the settings say so.

Nothing in it is a device's choice: the name is the registry's, the address and the TLS version are the connection's.
"""

from fleet.config.addresses import unmapped
from fleet.domain.device import Device
from fleet.domain.peer import Peer
from fleet.servers.gateway.broker.upstream import Upstream
from fleet.wire.proxy_protocol import Endpoint, ProvedClient, encode_header

NOWHERE: Endpoint = ("127.0.0.1", 0)


def session_header(upstream: Upstream, device: Device, peer: Peer, ends: tuple[Endpoint, Endpoint]) -> bytes:
    """For a session of `device`. `ends`: of its connection to us, its own first, which may be a balancer's."""
    if not upstream.access.sends_proxy_header:
        return b""
    (host, port), here = ends
    is_direct = unmapped(host) == peer.address
    source = (peer.address or "::", port if is_direct else 0)  # of a client behind a balancer it is not known
    return encode_header(ProvedClient(source, here, device.id, peer.tls_version))


def visit_header(upstream: Upstream, device: Device) -> bytes:
    """For a connection that we make as `device`."""
    if not upstream.access.sends_proxy_header:
        return b""
    return encode_header(ProvedClient(NOWHERE, NOWHERE, device.id, ""))


def own_header(upstream: Upstream) -> bytes:
    """For a connection of no device (LOCAL)."""
    return encode_header(None) if upstream.access.sends_proxy_header else b""
