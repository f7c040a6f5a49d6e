"""The state of a certificate as OCSP has it (RFC 6960, 2.2), and answers that are kept until an event ends them."""

from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

from msgspec import Struct

from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialKind
from fleet.domain.crl import CrlReason
from fleet.domain.ports import Registry

KEPT_MAX = 20_000
"""Answers in memory, a kilobyte each; the one that was used longest ago goes first."""

_ENDING = frozenset({EventKind.DEVICE_STATE, EventKind.CREDENTIAL_ENDED, EventKind.CLAIM_STATE})

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
    is not one that this CA has issued, or has been archived. `has_issued` says of a certificate whether the CA has.

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
    return CertificateState(facts.holder)


class KeptAnswers(Generic[T]):
    """Answers by what was asked, each with the holder of its certificate. An event about a holder ends its answers."""

    def __init__(self, entries_max: int = KEPT_MAX) -> None:
        self._max = entries_max
        self._answers: dict[bytes, tuple[T, str, datetime]] = {}
        self._by_holder: dict[str, set[bytes]] = {}
        self.generation = 0
        """Changes with each event that may end an answer: one that was made of an earlier read is not kept."""

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, asked: bytes, now: datetime) -> T | None:
        """The answer, if it is kept and fresh at `now`."""
        found = self._answers.get(asked)
        if found is None:
            return None
        answer, holder, until = found
        self._remove(asked, holder)
        if now >= until:
            return None
        self._add(asked, found)
        return answer

    def keep(self, asked: bytes, answer: T, holder: str, until: datetime, generation: int) -> None:
        """Keep `answer` until then, unless an event has come since `generation`: that of before its state was read."""
        if generation != self.generation:
            return
        if asked in self._answers:
            self._remove(asked, self._answers[asked][1])
        if len(self._answers) >= self._max:
            oldest = next(iter(self._answers))
            self._remove(oldest, self._answers[oldest][1])
        self._add(asked, (answer, holder, until))

    def _add(self, asked: bytes, entry: tuple[T, str, datetime]) -> None:
        self._answers[asked] = entry
        self._by_holder.setdefault(entry[1], set()).add(asked)

    def _remove(self, asked: bytes, holder: str) -> None:
        del self._answers[asked]
        held = self._by_holder[holder]
        held.discard(asked)
        if not held:
            del self._by_holder[holder]

    async def on_event(self, event: Event) -> None:
        """End the answers about certificates of the event's subject."""
        if event.kind in _ENDING:
            self.generation += 1
            for asked in self._by_holder.pop(event.subject, ()):
                del self._answers[asked]

    def clear(self) -> None:
        """Events were lost: anything may have changed."""
        self.generation += 1
        self._answers.clear()
        self._by_holder.clear()
