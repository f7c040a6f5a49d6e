"""Ports: interfaces that the services consume, implemented by `storage`, `ca`, `home`, `servers.est` and test fakes."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from fleet.domain.access import Operator
from fleet.domain.approval import EVERY_REQUEST, ApprovalRequest, RequestFilter
from fleet.domain.audit_log import AuditNode, Sealed, TreeHead
from fleet.domain.changes import AuditRow, Change, Event, Notice
from fleet.domain.claim import Claim
from fleet.domain.credential import Credential, CredentialState, KeyUse, Station, Token
from fleet.domain.crl_store import CrlStore
from fleet.domain.device import EVERY_DEVICE, FIRST_PLACE, Device, DeviceFilter, DeviceState, Model, Place, StateChange
from fleet.domain.device_refusal import RefusalStore
from fleet.domain.device_report import ReportStore
from fleet.domain.distrust import Distrust, refusing
from fleet.domain.idempotency import Answer
from fleet.domain.idevid import Anchor, IdevidBinding
from fleet.domain.lease import Lease
from fleet.domain.manifest import ManifestFacts
from fleet.domain.node_messages import NodeMessageStore
from fleet.domain.presence import PresenceStore
from fleet.domain.revoked_cache import RevokedCache

if TYPE_CHECKING:
    from fleet.domain.enrollment import IssuePermit


class HolderFacts(Struct, frozen=True):
    """A certificate's holder, with its current state."""

    credential: Credential
    device: Device | None = None
    """Set for a device's certificate."""
    model: Model | None = None
    """The device's model."""
    station: Station | None = None
    """Set for a station's certificate."""
    operator: Operator | None = None
    """Set for an operator's certificate."""
    claim: Claim | None = None
    """Set for a claim certificate."""
    distrusts: tuple[Distrust, ...] = ()
    """The rules in force, by id, for a device's certificate."""

    @property
    def only_model(self) -> str | None:
        """The model of all devices that the station or the claim may register; None for another holder."""
        if self.claim is not None:
            return self.claim.model
        return self.station.models[0] if self.station is not None and len(self.station.models) == 1 else None

    @property
    def distrusted(self) -> bool:
        """Whether a rule refuses the device's certificate."""
        device = self.device
        return device is not None and refusing(self.distrusts, device.model, self.credential) is not None

    @property
    def may_connect(self) -> bool:
        """Whether its device is active, and the certificate neither revoked nor distrusted; it may have expired."""
        is_active = self.device is not None and self.device.state is DeviceState.ACTIVE
        return is_active and self.credential.state is not CredentialState.REVOKED and not self.distrusted


class EnrollmentFacts(Struct, frozen=True):
    """All records needed for a first enrollment, from one consistent read in one round trip."""

    device: Device | None
    model: Model | None
    """The device's model; for an unknown device that of its token, or the only one of its station or claim."""
    credentials: tuple[Credential, ...]
    """The device's credentials, oldest first: the newest few of each state but SUPERSEDED, which never occurs alone,
    and those that were asked for."""
    token: Token | None
    key_uses: tuple[KeyUse, ...] = ()
    """Every holder of a certificate for the key."""
    holder: HolderFacts | None = None
    """Of the certificate asked for; None when it was never issued here."""


class AuditReader(Protocol):
    """The audit log of a registry, or of a copy, as an auditor reads it."""

    async def audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows in order, those with a sequence greater than `after`."""

    async def last_audit(self) -> int:
        """The sequence of the newest audit row, 0 when there is none."""

    async def audit_heads(self, *, after: int = 0, limit: int = 1000) -> list[TreeHead]:
        """Signed heads of a size greater than `after`, smallest first."""

    async def last_sealed(self) -> Sealed | None:
        """The largest head; None before the first."""

    async def audit_hashes(self, level: int, first: int, count: int) -> list[bytes]:
        """Hashes of `count` perfect subtrees from index `first` on: leaves at level 0, else one of NODE_LEVELS.
        Fewer when there are no more.
        """


class Registry(AuditReader, CrlStore, PresenceStore, ReportStore, NodeMessageStore, RefusalStore, Protocol):
    """The authoritative state of the fleet. Reads see every commit that has returned."""

    @property
    def revoked(self) -> RevokedCache:
        """What this process has seen revoked: in `commit`, in `follow`, and in what else was added to it."""

    async def model(self, name: str) -> Model | None: ...
    async def models(self) -> list[Model]: ...
    async def device(self, device_id: str) -> Device | None: ...
    async def state_change(self, device_id: str) -> StateChange | None:
        """The device's newest move out of service; None when it has always been in service, or was moved by a version
        that did not keep it.
        """

    async def devices(
        self, where: DeviceFilter = EVERY_DEVICE, *, after: Place = FIRST_PLACE, limit: int = 1000
    ) -> list[Device]:
        """Devices that match `where`, after position `after`, at most `limit`: ordered by id, or by expiry and id when
        `where.expires_before` is given. The next page begins after `place_of(the last, where)`.
        """

    async def count_devices(self, where: DeviceFilter = EVERY_DEVICE) -> int:
        """Number of devices that match `where`; reads each of them."""

    async def credentials(self, holder: str) -> list[Credential]:
        """Oldest first."""

    async def usable_until(
        self, device_ids: Sequence[str], rules: Iterable[Distrust], now: datetime
    ) -> dict[str, datetime]:
        """When the last certificate of each device ends that is issued or active, not expired, and refused by none of
        `rules`: one query. A device without one is left out.
        """

    async def credential(self, serial: str) -> Credential | None:
        """By serial number, lower-case hex."""

    async def credentials_by_expiry(
        self, before: datetime, limit: int = 1000, *, after: tuple[datetime, bytes] | None = None
    ) -> list[Credential]:
        """Credentials that expire before `before`, in any state, ordered by expiry and fingerprint, after `after`, the
        expiry and fingerprint of the last of the page before.
        """

    async def expiries(self, until: datetime) -> list[tuple[datetime, int]]:
        """Devices that can still connect, counted by the week in which their newest certificate ends: (Monday at
        00:00 UTC, count) for each week that has any, up to `until`, in order.
        """

    async def count_renewals(self, model: str, since: datetime) -> tuple[int, int]:
        """Number of devices of `model` with a usable certificate, and with one issued since `since`; reads each."""

    async def token(self, token_id: str) -> Token | None: ...
    async def tokens(self) -> list[Token]:
        """Newest first."""

    async def open_tokens(self, made_by: str, now: datetime, limit: int = 1000) -> list[Token]:
        """Tokens of this maker that can still be used at `now`, oldest first."""

    async def count_open_tokens(self, now: datetime) -> dict[str, int]:
        """By maker, how many tokens can still be used at `now`."""

    async def station(self, name: str) -> Station | None: ...
    async def stations(self) -> list[Station]: ...
    async def operator(self, name: str) -> Operator | None: ...
    async def operators(self) -> list[Operator]: ...
    async def request(self, request_id: str) -> ApprovalRequest | None:
        """Expired or not."""

    async def requests(
        self, where: RequestFilter = EVERY_REQUEST, *, now: datetime, after: str = "", limit: int = 1000
    ) -> list[ApprovalRequest]:
        """Requests that match `where` and have not expired at `now`, by id, after `after`."""

    async def count_pending(self, now: datetime, model: str = "", network: str = "") -> tuple[int, int, int]:
        """Number of requests pending at `now`: in total; for `model` and from `network`, as limits count them."""

    async def distrusts(self) -> list[Distrust]:
        """The rules in force, oldest first."""

    async def count_distrusted(self, rule: Distrust) -> list[tuple[str, int]]:
        """Devices in service whose newest usable certificate `rule` covers, counted by model; reads each."""

    async def distrusted(self, rule: Distrust, limit: int) -> list[str]:
        """The first `limit` of those devices, by id."""

    async def count_distrusted_certificates(self, rule: Distrust, now: datetime) -> int:
        """Certificates that `rule` covers and that are neither expired at `now` nor revoked, usable or not."""

    async def distrusted_certificates(self, rule: Distrust, now: datetime, limit: int) -> list[Credential]:
        """The first `limit` of those."""

    async def claim(self, name: str) -> Claim | None: ...
    async def claims(self) -> list[Claim]: ...
    async def anchors(self) -> list[Anchor]: ...
    async def manifest_facts(
        self, device_ids: Sequence[str], serials: Sequence[tuple[str, str]], keys: Sequence[bytes]
    ) -> ManifestFacts:
        """Records with these device ids, (model, hardware serial) pairs and SHA-256 key hashes."""

    async def serial_holders(self, serials: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
        """(model, hardware serial, device id) of each device with one of these (model, hardware serial) pairs, on the
        manifest or not, that is not revoked or retired.
        """

    async def idevid_bindings(self, key_sha256: bytes, device_id: str) -> list[IdevidBinding]:
        """Bindings of this key and of this device."""

    async def lease(self, name: str) -> Lease | None:
        """The last lease of this name, expired or not."""

    async def answer(self, actor: str, key: str) -> Answer | None: ...

    async def enrollment_facts(
        self,
        device_id: str,
        token_id: str | None,
        key_sha256: bytes,
        *,
        presented: bytes | None = None,
        earned_by: str | None = None,
        certificate: bytes | None = None,
    ) -> EnrollmentFacts:
        """Whatever was issued later, `credentials` hold the certificate whose fingerprint is `presented`, the newest
        unused one for the key, and the newest few unused ones that were issued under the grant `earned_by`. `holder` is
        that of the certificate whose fingerprint is `certificate`, of anybody's.
        """

    async def holder_facts(self, fingerprint: bytes) -> HolderFacts | None:
        """None when no certificate of this fingerprint was ever issued here."""

    async def seal(self, sealed: Sealed, nodes: tuple[AuditNode, ...]) -> None:
        """Store a new head with the nodes that it completes; durable on return.

        Raises: Conflict: a head of this or a larger size exists. Unavailable.
        """

    async def commit(self, change: Change) -> None:
        """Make `change` durable; returns only after the fsync.

        Raises: Conflict: the condition of a write failed, and nothing was written. Unavailable: the disk or the
        database failed, and nothing was written, except with code `registry-unsettled`: the outcome is unknown.
        """

    async def tell(self, notice: Notice) -> None:
        """Put its events into the feed, among those of commits. Raises: Unavailable, as `commit`."""

    async def events(self, *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events in order, those with a sequence greater than `after`."""

    async def first_event(self) -> int:
        """The sequence of the oldest event that is kept, 0 when there is none."""

    async def last_event(self) -> int:
        """The sequence of the newest event, 0 when there is none."""

    def follow(self, after: int) -> AsyncGenerator[Event, None]:
        """Every event with a sequence greater than `after`, in order, without end, of every process."""


class Issuer(Protocol):
    """Issues certificates for permits, and nothing else."""

    def issue(self, permit: "IssuePermit", now: datetime) -> Credential:
        """A new certificate, in state ISSUED, linted against its profile before it is returned.

        Raises: Refused: the permit cannot be fulfilled, for instance beyond the issuer's validity.
        """


class KeyGenerator(Protocol):
    """Generates a device's key on the server (RFC 7030, 4.4), kept for that response only."""

    async def make(self, key_type: str) -> tuple[bytes, bytes]:
        """A key of `key_type`: DER of its SubjectPublicKeyInfo, and its SHA-256, 32 bytes. The same at each call.

        Raises: Invalid: it cannot be delivered in the form requested.
        """


class Tenants(Protocol):
    """Tenants with an issuing CA, and their certificate chains."""

    def names(self) -> frozenset[str]:
        """Names of all tenants; the fleet's own CA has none."""

    def chain_der(self, tenant: str) -> tuple[bytes, ...] | None:
        """Root first, then the issuing CA, then former ones still in use; for "" the fleet's own. None: no such
        tenant.
        """

    def trust_update(self, tenant: str) -> bytes:
        """The signed statement of which former roots are retired (`fleet.wire.trust_update`); b"" if none is."""


class HeadSigner(Protocol):
    """Signs audit tree heads with one key."""

    @property
    def key_id(self) -> bytes:
        """SHA-256 of the key's DER SubjectPublicKeyInfo, 32 bytes."""

    def sign(self, data: bytes) -> bytes:
        """ECDSA with SHA-256 over `data`, DER."""
