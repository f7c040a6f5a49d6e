"""What the services need from below, in their own words. `storage` and `ca` provide it; tests may too."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fleet.domain.changes import AuditRow, Change, Event
from fleet.domain.credential import Credential, KeyUse, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.enrollment import IssuePermit


@dataclass(frozen=True, slots=True)
class EnrollmentFacts:
    """Everything a first enrollment looks at, read at one moment in one trip."""

    device: Device | None
    model: Model | None
    """The device's model; when the device is unknown, the model that the token is for, if there is one."""
    credentials: tuple[Credential, ...]
    """The device's, oldest first: the newest few of each state but SUPERSEDED, which never stands alone."""
    token: Token | None
    key_uses: tuple[KeyUse, ...] = ()
    """Who has a certificate for the key in question, whoever that is."""


@dataclass(frozen=True, slots=True)
class HolderFacts:
    """Whose a certificate is, and what may be said of its holder now."""

    credential: Credential
    device: Device | None
    """Set for a device's certificate."""
    model: Model | None
    """The device's model."""
    station: Station | None
    """Set for a station's certificate."""


class Registry(Protocol):
    """The one truth about who may connect now. Reads see every commit that has returned."""

    async def model(self, name: str) -> Model | None: ...
    async def models(self) -> list[Model]: ...
    async def device(self, device_id: str) -> Device | None: ...
    async def devices(
        self,
        *,
        model: str | None = None,
        state: DeviceState | None = None,
        after: str = "",
        limit: int = 1000,
    ) -> list[Device]:
        """Ordered by id, those greater than `after`, at most `limit`."""
        ...

    async def credentials(self, holder: str) -> list[Credential]:
        """Oldest first."""
        ...

    async def token(self, token_id: str) -> Token | None: ...
    async def tokens(self) -> list[Token]:
        """Newest first."""
        ...

    async def station(self, name: str) -> Station | None: ...
    async def stations(self) -> list[Station]: ...

    async def enrollment_facts(self, device_id: str, token_id: str | None, key_sha256: bytes) -> EnrollmentFacts: ...
    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        """None when no certificate of this fingerprint was ever issued here."""
        ...

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows in order, those with a sequence greater than `after`."""
        ...

    async def last_audit(self) -> int:
        """The sequence of the newest audit row, 0 when there is none."""
        ...

    async def commit(self, change: Change) -> None:
        """Make `change` durable; returns only after the fsync.

        Raises: Conflict: a write found otherwise, nothing happened. Unavailable: the disk or the database said no,
        nothing happened.
        """
        ...

    async def last_event(self) -> int:
        """The sequence of the newest event, 0 when there is none."""
        ...

    def follow(self, after: int) -> AsyncIterator[Event]:
        """Every event with a sequence greater than `after`, in order, for ever: those of other processes too."""
        ...


class Issuer(Protocol):
    """Signs what has been permitted, and nothing else."""

    def issue(self, permit: IssuePermit, now: datetime) -> Credential:
        """A new certificate, in state ISSUED, checked against its profile before it is returned.

        Raises: Refused: the permit cannot be served, for instance beyond the issuer's own validity.
        """
        ...


__all__ = ["DeviceId", "EnrollmentFacts", "HolderFacts", "Issuer", "Registry"]
