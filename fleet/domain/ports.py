"""What the services need from below, in their own words. `storage` and `ca` provide it; tests may too."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fleet.domain.access import Operator
from fleet.domain.approval import EVERY_REQUEST, ApprovalRequest, RequestFilter
from fleet.domain.audit_log import AuditNode, Sealed, TreeHead
from fleet.domain.changes import AuditRow, Change, Event
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, KeyUse, Station, Token
from fleet.domain.device import EVERY_DEVICE, FIRST_PLACE, Device, DeviceFilter, DeviceId, Model, Place
from fleet.domain.enrollment import IssuePermit
from fleet.domain.idempotency import Answer
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.manifest import ManifestFacts


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
    operator: Operator | None = None
    """Set for an operator's certificate."""
    claim: Claim | None = None
    """Set for a claim certificate."""


class AuditReader(Protocol):
    """What an auditor reads: of a registry at work, or of a copy."""

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows in order, those with a sequence greater than `after`."""
        ...

    async def last_audit(self) -> int:
        """The sequence of the newest audit row, 0 when there is none."""
        ...

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        """Signed heads of a size greater than `after`, smallest first."""
        ...

    async def last_sealed(self) -> Sealed | None:
        """The largest head; None before the first."""
        ...

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """Hashes of `count` perfect subtrees from index `first` on: leaves at level 0, else one of NODE_LEVELS.
        Fewer when there are no more.
        """
        ...


class Registry(AuditReader, Protocol):
    """The one truth about who may connect now. Reads see every commit that has returned."""

    async def model(self, name: str) -> Model | None: ...
    async def models(self) -> list[Model]: ...
    async def device(self, device_id: str) -> Device | None: ...
    async def devices(
        self, where: DeviceFilter = EVERY_DEVICE, *, after: Place = FIRST_PLACE, limit: int = 1000
    ) -> list[Device]:
        """Those that `where` means and that come behind `after`, at most `limit`: ordered by id, or by expiry and id
        when `where.expires_before` is given. The next page begins behind `place_of(the last, where)`.
        """
        ...

    async def count_devices(self, where: DeviceFilter = EVERY_DEVICE) -> int:
        """How many `where` means. It looks at each of them."""
        ...

    async def credentials(self, holder: str) -> list[Credential]:
        """Oldest first."""
        ...

    async def credential(self, serial: str) -> Credential | None:
        """By serial number, lower-case hex."""
        ...

    async def expired_credentials(
        self, before: datetime, limit: int = 1000, *, after: Credential | None = None
    ) -> list[Credential]:
        """Those that ended before `before`, in whatever state, the longest ago first, and of one moment by fingerprint;
        those behind `after`, the last of the page before.
        """
        ...

    async def expiries(self, until: datetime) -> list[tuple[datetime, int]]:
        """Devices that can still connect, counted by the week in which their newest certificate ends: (Monday at
        00:00 UTC, count) for each week that has any, up to `until`, in order.
        """
        ...

    async def count_renewals(self, model: str, since: datetime) -> tuple[int, int]:
        """Devices of `model` that hold a usable certificate, and how many of them hold one issued at or after `since`.
        It looks at each of them.
        """
        ...

    async def token(self, token_id: str) -> Token | None: ...
    async def tokens(self) -> list[Token]:
        """Newest first."""
        ...

    async def station(self, name: str) -> Station | None: ...
    async def stations(self) -> list[Station]: ...
    async def operator(self, name: str) -> Operator | None: ...
    async def operators(self) -> list[Operator]: ...
    async def request(self, request_id: str) -> ApprovalRequest | None:
        """Expired or not."""
        ...

    async def requests(
        self, where: RequestFilter = EVERY_REQUEST, *, now: datetime, after: str = "", limit: int = 1000
    ) -> list[ApprovalRequest]:
        """Those that `where` means and that have not expired at `now`, by id; those behind `after`."""
        ...

    async def count_pending(self, now: datetime, model: str = "", network: str = "") -> tuple[int, int, int]:
        """How many requests are pending at `now`: in all, for `model`, and from `network`."""
        ...

    async def claim(self, name: str) -> Claim | None: ...
    async def claims(self) -> list[Claim]: ...
    async def anchors(self) -> list[Anchor]: ...
    async def manifest_facts(
        self, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
    ) -> ManifestFacts:
        """What the registry holds under these device ids, (model, hardware serial) and SHA-256 of keys."""
        ...

    async def idevid_bindings(self, key_sha256: bytes, device_id: str) -> list[IdevidBinding]:
        """Those of this key, and of this device."""
        ...

    async def lease(self, name: str) -> Lease | None:
        """As it was last taken, expired or not."""
        ...

    async def answer(self, actor: str, key: str) -> Answer | None: ...

    async def enrollment_facts(self, device_id: str, token_id: str | None, key_sha256: bytes) -> EnrollmentFacts: ...
    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        """None when no certificate of this fingerprint was ever issued here."""
        ...

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        """Keep a new head, with the nodes that it has made whole; durable when it returns.

        Raises: Conflict: a head of this size or a larger one is there already. Unavailable.
        """
        ...

    async def commit(self, change: Change) -> None:
        """Make `change` durable; returns only after the fsync.

        Raises: Conflict: a write found otherwise, nothing happened. Unavailable: the disk or the database said no,
        nothing happened; only with the code `registry-unsettled` is it not known whether it did.
        """
        ...

    async def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events in order, those with a sequence greater than `after`."""
        ...

    async def first_event(self) -> int:
        """The sequence of the oldest event that is kept, 0 when there is none."""
        ...

    async def last_event(self) -> int:
        """The sequence of the newest event, 0 when there is none."""
        ...

    def follow(self, after: int) -> AsyncGenerator[Event, None]:
        """Every event with a sequence greater than `after`, in order, for ever: those of other processes too."""
        ...


class Issuer(Protocol):
    """Signs what has been permitted, and nothing else."""

    def issue(self, permit: IssuePermit, now: datetime) -> Credential:
        """A new certificate, in state ISSUED, checked against its profile before it is returned.

        Raises: Refused: the permit cannot be served, for instance beyond the issuer's own validity.
        """
        ...


class KeyMaker(Protocol):
    """Makes a key for a device that has asked for one (RFC 7030, 4.4), and keeps it for that one answer."""

    async def make(self, key_type: str) -> tuple[bytes, bytes]:
        """A key of `key_type`: DER of its SubjectPublicKeyInfo, and the SHA-256 of that, 32 bytes. Asked again, the
        same.

        Raises: Invalid: it could not be handed over in the way that was asked for.
        """
        ...


class Tenants(Protocol):
    """Whoever has an issuing CA, and what its devices need to know it by."""

    def names(self) -> frozenset[str]:
        """Every tenant's; the fleet's own CA has no name."""
        ...

    def chain_der(self, tenant: str) -> tuple[bytes, ...] | None:
        """Root first, then the issuing CA, then those before it whose certificates are still in use; for "" the fleet's
        own. None: there is no such tenant.
        """
        ...


class HeadSigner(Protocol):
    """Signs the heads of the audit's tree, with one key."""

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the key's DER SubjectPublicKeyInfo, 32 bytes."""
        ...

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256 over `data`, DER."""
        ...


__all__ = [
    "AuditReader",
    "DeviceId",
    "EnrollmentFacts",
    "HeadSigner",
    "HolderFacts",
    "Issuer",
    "KeyMaker",
    "Registry",
    "Tenants",
]
