"""Delegated authorization: what servers need that local programs ask about devices, whose TLS these have ended
themselves: reverse proxies, brokers.

Such a server has no TLS and believes what it is asked. It therefore listens on a Unix socket or a loopback port only,
and on a port every request must carry a secret.
"""

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleet.config.clock import Clock
from fleet.domain.peer import Peer
from fleet.domain.ports import Registry
from fleet.servers.refusals import HttpRefused
from fleet.services.identity import TenantOf, peer_with

SECRET = "X-Proxy-Secret"  # noqa: S105  the name of a header


@dataclass(frozen=True, slots=True)
class AuthContext:
    """What such a server decides with."""

    registry: Registry
    tenant_of: TenantOf
    feed_is_up: Callable[[], bool]
    """Whether this process learns of revocations."""
    clock: Clock

    def peer_with(self, peer: Peer, der: bytes) -> Peer:
        """`peer`, with the certificate `der` that the program says it has shown."""
        return peer_with(peer, der, self.tenant_of)

    def must_be_current(self) -> None:
        """Raises: HttpRefused (`registry-unavailable`): a revocation could have been missed."""
        if not self.feed_is_up():
            raise HttpRefused(503, "registry-unavailable", "The registry's events do not arrive.")


def check_secret(sent: bytes, secrets: Sequence[bytes], where: str) -> None:
    """Raises: HttpRefused (`bad-proxy-secret`), and no audit row: no program of ours asks."""
    # Each is compared, in a time that says nothing of where they differ.
    if secrets and not sum(hmac.compare_digest(sent, secret) for secret in secrets):
        raise HttpRefused(403, "bad-proxy-secret", f"{where} does not hold the secret.", {"Connection": "close"})
