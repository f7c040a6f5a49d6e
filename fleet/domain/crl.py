"""Certificate revocation lists (RFC 5280, 5) as records: reasons, what is revoked, and the CRLs that were published."""

import enum
from datetime import datetime, timedelta

from msgspec import Struct


class CrlReason(enum.IntEnum):
    """CRLReason (RFC 5280, 5.3.1)."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    REMOVE_FROM_CRL = 8
    """In a delta CRL alone: the certificate was on hold, and is valid again."""
    PRIVILEGE_WITHDRAWN = 9

    @property
    def text(self) -> str:
        """The name as ASN.1 has it: keyCompromise."""
        first, *rest = self.name.lower().split("_")
        first = "cA" if first == "ca" else first
        return first + "".join("CRL" if word == "crl" else word.title() for word in rest)


GIVEN_REASONS = {
    reason.text: reason
    for reason in (
        CrlReason.UNSPECIFIED,
        CrlReason.KEY_COMPROMISE,
        CrlReason.AFFILIATION_CHANGED,
        CrlReason.SUPERSEDED,
        CrlReason.CESSATION_OF_OPERATION,
        CrlReason.PRIVILEGE_WITHDRAWN,
    )
}
"""Those that an operator may give for a revocation; a hold and its end follow from suspending and resuming."""


class Revocation(Struct, frozen=True):
    """A certificate that relying parties must refuse; or one that was on hold, with the reason REMOVE_FROM_CRL."""

    serial: str
    """Lower-case hex."""
    not_after: datetime
    revoked_at: datetime
    reason: int
    """A CrlReason."""


class PendingRevocation(Struct, frozen=True):
    """A revocation whose CRL entry is still to be made."""

    revocation: Revocation
    issuer: bytes | None
    """Key identifier of the certificate's CA; None: it is in `der`."""
    der: bytes | None
    """The certificate; None: it is not in the registry any more."""


class CertificateFacts(Struct, frozen=True):
    """What is known of a certificate by its serial number."""

    kind: str
    """Of its holder; "": it is not in the registry any more."""
    holder: str
    der: bytes | None
    """None: it is not in the registry any more."""
    issuer: bytes | None
    """Key identifier of the CA of one that was revoked; None: it is in `der`."""
    revocation: Revocation | None
    """None: CRLs do not list it, or not any more since it has expired."""
    not_after: datetime | None = None
    """None: it is not in the registry any more."""
    is_usable: bool = False
    """Neither superseded nor revoked, by its own record."""


class CrlEntry(Struct, frozen=True):
    """The CRL entry made for a revocation."""

    revocation: Revocation
    issuer: bytes
    bucket: int
    """See fleet.domain.distribution."""
    entry: bytes
    """DER of the member of revokedCertificates."""


class Noted(Struct, frozen=True):
    """A revocation that is in a CRL."""

    revocation: Revocation
    issuer: bytes
    """Key identifier of the certificate's CA."""
    number: int
    """Of the first CRL that has it."""


class Unlisted(Struct, frozen=True):
    """Revocations of one CA that no CRL has yet."""

    issuer: bytes | None
    """Key identifier of the CA; None: their entries are still to be made."""
    since: datetime
    """When the oldest was revoked."""
    count: int


class CrlHead(Struct, frozen=True):
    """A published CRL without its contents."""

    path: str
    """URL path: see fleet.domain.distribution."""
    issuer: bytes
    """Key identifier of its CA."""
    number: int
    """CRL number (RFC 5280, 5.2.3)."""
    base: int
    """Of a delta CRL, the number of its base; else 0."""
    this_update: datetime
    next_update: datetime
    entries: int
    """Certificates listed."""
    named_until: datetime | None = None
    """Of a shard of an earlier number of shards, when the last certificate that may name it has ended."""
    made_in: timedelta | None = None
    """Of a full CRL: what reading its entries and signing it took."""


class Crl(Struct, frozen=True):
    """A published CRL."""

    head: CrlHead
    der: bytes


class CrlForm(Struct, frozen=True):
    """What a CRL says besides its entries."""

    number: int
    this_update: datetime
    next_update: datetime
    url: str = ""
    """In its issuing distribution point; "": it has none, and covers everything that the CA issued."""
    base: int = 0
    """Of a delta CRL, the number of its base."""
    freshest: str = ""
    """Where its delta CRL is."""
