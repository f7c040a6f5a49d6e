"""Certificates, and what a first one is earned with: tokens, claims, manufacturers' CAs, an operator's approval."""

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import UNSET, Meta, UnsetType

from fleet.domain import approval, claim, credential, idevid
from fleet.domain.approval import RequestState
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.crl import CrlReason, Revocation
from fleet.domain.device_filter import FILTER_MAX
from fleet.domain.members import about, at_most, pattern, seconds
from fleet.servers.admin.records.base import (
    CertificateSha256,
    Count,
    Csr,
    DeviceId,
    KeySha256,
    Name,
    Names,
    Paging,
    ReasonText,
    Record,
    RequestId,
    Sequence,
    Serial,
    Time,
    TimeText,
    TokenId,
    check_times,
)
from fleet.servers.admin.records.models import Lifetime
from fleet.services.anchors import MODELS_MAX as ANCHOR_MODELS_MAX
from fleet.services.claims import QUOTA_MAX
from fleet.services.inventory import TOKEN_TTL, TOKEN_TTL_MAX, TOKEN_TTL_MIN, TOKEN_USES_MAX

ANCHOR_TEXT_MAX = 64 * 1024


class Credential(Record):
    """A certificate that the fleet has issued."""

    serial: Serial
    kind: CredentialKind
    holder: str
    state: CredentialState
    not_before: Time
    not_after: Time
    issued_at: Time
    sha256: CertificateSha256
    key_sha256: KeySha256
    grant: Annotated[str, about("What entitled its holder to it.")]
    revoked_at: Annotated[Time | UnsetType, about("As CRLs give it, where they list it as revoked.")] = UNSET
    crl_reason: Annotated[str | UnsetType, about("Likewise: `keyCompromise`, `superseded`, ...")] = UNSET

    @classmethod
    def shown(cls, c: credential.Credential, listed: Revocation | None = None) -> Self:
        given = {"sha256": c.fingerprint.hex(), "key_sha256": c.key_sha256.hex()}
        if listed is None or c.state is not CredentialState.REVOKED:
            return cls.of(c, **given, revoked_at=UNSET, crl_reason=UNSET)
        return cls.of(c, **given, revoked_at=listed.revoked_at, crl_reason=CrlReason(listed.reason).text)


class Token(Record):
    """A one-time token; without its secret."""

    id: TokenId
    device: str | None
    model: str | None
    uses: Count
    uses_max: Count
    state: Literal["open", "used up", "expired", "revoked"]
    created_at: Time
    expires_at: Time
    revoked_at: Time | None
    takes_over: Annotated[bool, about("Whether it may enroll its device again once that is in the field.")]
    made_by: Annotated[str, about("Who made it; empty for those of an older version.")]
    token: Annotated[str | UnsetType, about("ID.SECRET, in the answer that makes it and never again.")] = UNSET
    note: str | UnsetType = UNSET

    @classmethod
    def shown(cls, t: credential.Token, now: datetime, **secret: str) -> Self:
        state = credential.token_state(t, now)
        return cls.of(t, device=t.device_id, state=state, **{"token": UNSET, "note": UNSET, **secret})


class NewToken(Record):
    """A token to make, for one registered device or for new devices of a model."""

    SCHEMA: ClassVar[dict[str, Any]] = {"oneOf": [{"required": ["device"]}, {"required": ["model"]}]}
    # The service checks it: `bad-token-scope`.

    device: Annotated[DeviceId | UnsetType, about("The registered device that may use it; or give `model`.")] = UNSET
    model: Annotated[Name | UnsetType, about("The model whose new devices may use it; or give `device`.")] = UNSET
    uses: Annotated[int, Meta(ge=1, le=TOKEN_USES_MAX)] = 1
    ttl_seconds: Annotated[int, seconds(TOKEN_TTL_MIN, TOKEN_TTL_MAX)] = int(TOKEN_TTL.total_seconds())


class Request(Record):
    """A request for a first certificate that waits for an operator's decision."""

    id: RequestId
    device: DeviceId
    model: Name
    state: RequestState
    fingerprint: Annotated[
        str,
        pattern(
            r"^[0-9a-f]{4}(-[0-9a-f]{4}){3}\Z",
            "Of the key, short: compare it with the one that the device shows before you approve.",
        ),
    ]
    key_sha256: KeySha256
    key_type: str
    facts: Annotated[str, about("Subject and SAN of the CSR, as the requester claims them.")]
    address: str
    asked: Count
    first_seen: Time
    last_seen: Time
    expires_at: Annotated[Time, about("When it is deleted.")]
    decided_by: str
    decided_at: Time | None
    reason: str
    revision: Count

    @classmethod
    def shown(cls, r: approval.ApprovalRequest) -> Self:
        return cls.of(r, device=r.device_id, key_sha256=r.key_sha256.hex())


class DenyRequests(Record):
    """Requests to deny: those of a filter, confirmed by their number."""

    filter: Annotated[str, at_most(FILTER_MAX, "model=cam2 and address=192.0.2.0/24; without state, those that wait")]
    reason: ReasonText = ""
    dry_run: Annotated[bool, about("Count the requests, and change nothing.")] = False
    expected: Annotated[Sequence | UnsetType, about("How many must match; required unless it is a dry run.")] = UNSET
    at: Annotated[TimeText | UnsetType, about("The dry run's: requests that came later are left alone.")] = UNSET

    def __post_init__(self) -> None:
        if self.at is not UNSET:
            check_times(self, "at")


class DeniedRequests(Record):
    """What became of them. Those left over are denied by the same request with `left` as expected."""

    at: Time
    matched: Count
    done: Count
    failed: Annotated[list[RequestId], about("Others decided on these meanwhile.")]
    left: Count


class RequestQuery(Paging):
    """Which requests."""

    state: RequestState | None = None
    model: Name | None = None
    device: DeviceId | None = None


class Claim(Record):
    """A claim certificate, shared by a batch of devices."""

    name: Name
    model: Name
    state: Literal["open", "used up", "expired", "quarantined", "revoked"]
    quota: Annotated[Count, about("Maximum number of devices that it may enroll.")]
    uses: Count
    takeovers: Annotated[Count, about("Attempts to enroll an identity that has an owner.")]
    created_at: Time
    expires_at: Time
    quarantined_at: Time | None
    quarantine_reason: str
    revoked_at: Time | None

    @classmethod
    def shown(cls, c: claim.Claim, now: datetime, **signed: str) -> Self:
        return cls.of(c, state=claim.claim_state(c, now), **signed)


class AddedClaim(Claim):
    """A claim that has just been made, and its certificate."""

    chain: Annotated[str, about("Its certificate, and the CA that signed it: PEM.")]
    root: Annotated[str, about("The root CA that authenticates the server: PEM.")]


class NewClaim(Record):
    """A claim to make."""

    name: Name
    model: Name
    quota: Annotated[int, Meta(ge=1, le=QUOTA_MAX)]
    lifetime_seconds: Lifetime
    csr: Annotated[Csr, about("Certificate request (PKCS #10), PEM; only its public key is used.")]


class Anchor(Record):
    """A trusted manufacturer's CA."""

    name: Name
    models: Names
    subject: str
    not_after: Time
    sha256: CertificateSha256
    created_at: Time
    pem: str

    @classmethod
    def shown(cls, a: idevid.Anchor) -> Self:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        certificate = x509.load_der_x509_certificate(a.der)
        return cls.of(
            a,
            subject=certificate.subject.rfc4514_string(),
            not_after=certificate.not_valid_after_utc,
            sha256=a.fingerprint.hex(),
            pem=certificate.public_bytes(Encoding.PEM).decode(),
        )


class NewAnchor(Record):
    """A manufacturer's CA to trust."""

    name: Name
    models: Annotated[Names, Meta(min_length=1, max_length=ANCHOR_MODELS_MAX)]
    certificate: Annotated[str, at_most(ANCHOR_TEXT_MAX, "One CA, PEM.")]


class RemovedAnchor(Record):
    """A manufacturer's CA that is no longer trusted."""

    name: Name
