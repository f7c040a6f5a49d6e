"""The state of a certificate as OCSP has it (RFC 6960, 2.2), and a cache of responses that events empty."""

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

from msgspec import Struct

from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialKind
from fleet.domain.crl import CertificateFacts, CrlReason
from fleet.domain.device import IN_SERVICE
from fleet.domain.ports import Registry

CACHED_MAX = 20_000
"""Responses in memory, a kilobyte each; the one that was used longest ago goes first."""

_INVALIDATING = frozenset({EventKind.DEVICE_STATE, EventKind.CREDENTIAL_ENDED, EventKind.CLAIM_STATE})

T = TypeVar("T")


class CertificateState(Struct, frozen=True):
    """A certificate that one of our CAs has issued."""

    holder: str
    """"": not in the registry."""
    revoked_at: datetime | None = None
    """None: good. Also set while its device is suspended: certificateHold."""
    reason: int = CrlReason.UNSPECIFIED


async def certificate_state(
    registry: Registry, serial: int, issuer: bytes, has_issued: Callable[[bytes], bool], now: datetime
) -> CertificateState | None:
    """The state of the certificate `serial` of the CA with the key identifier `issuer`, as its CRLs have it; None: it
    is not one that this CA has issued, or has been archived, or it has expired and was not in use. `has_issued` says of
    a certificate whether the CA has.

    Raises: Unavailable.
    """
    facts = await registry.certificate_facts(f"{serial:x}") if serial >= 0 else None
    if facts is None or not (has_issued(facts.der) if facts.der is not None else facts.issuer == issuer):
        return None
    revocation = facts.revocation
    if revocation is not None and revocation.reason != CrlReason.REMOVE_FROM_CRL:  # else it was on hold
        return CertificateState(facts.holder, revocation.revoked_at, revocation.reason)
    if facts.kind == CredentialKind.DEVICE and registry.revoked.has_device(facts.holder):
        return CertificateState("", now)  # whatever state the registry has gone back to
    if facts.not_after is not None and facts.not_after <= now and not await _was_in_use(registry, facts):
        return None  # CRLs may have listed it until it expired: it is not good, but why and when is not known any more
    return CertificateState(facts.holder)


async def _was_in_use(registry: Registry, facts: CertificateFacts) -> bool:
    if not facts.is_usable or facts.kind != CredentialKind.DEVICE:
        return facts.is_usable
    device = await registry.device(facts.holder)
    return device is None or device.state in IN_SERVICE


class ResponseCache(Generic[T]):
    """Responses by request, each with the holder of its certificate. An event about a holder removes its responses."""

    def __init__(self, entries_max: int = CACHED_MAX) -> None:
        self._max = entries_max
        self._responses: OrderedDict[bytes, tuple[T, str, datetime]] = OrderedDict()
        self._by_holder: dict[str, set[bytes]] = {}
        self.generation = 0
        """Changes with each event that may remove a response: one that was made of an earlier read is not added."""

    def __len__(self) -> int:
        return len(self._responses)

    def find(self, request: bytes, now: datetime) -> T | None:
        """The response, if it is here and fresh at `now`."""
        found = self._responses.get(request)
        if found is None:
            return None
        response, _, until = found
        if now >= until:
            self._remove(request)
            return None
        self._responses.move_to_end(request)
        return response

    def add(self, request: bytes, response: T, holder: str, until: datetime, generation: int) -> None:
        """Keep `response` until then, unless an event has come since `generation`, from before its state was read."""
        if generation != self.generation:
            return
        if request in self._responses:
            self._remove(request)
        if len(self._responses) >= self._max:
            self._remove(next(iter(self._responses)))
        self._responses[request] = (response, holder, until)
        self._by_holder.setdefault(holder, set()).add(request)

    def _remove(self, request: bytes) -> None:
        _, holder, _ = self._responses.pop(request)
        held = self._by_holder[holder]
        held.discard(request)
        if not held:
            del self._by_holder[holder]

    async def on_event(self, event: Event) -> None:
        """Remove the responses about certificates of the event's subject."""
        if event.kind in _INVALIDATING:
            self.generation += 1
            for request in self._by_holder.pop(event.subject, ()):
                del self._responses[request]

    def clear(self) -> None:
        """Events were lost: anything may have changed."""
        self.generation += 1
        self._responses.clear()
        self._by_holder.clear()
