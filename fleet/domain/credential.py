"""Issued certificates, and the tokens and stations that authorize enrollment."""

import enum
from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from fleet.domain.device import DeviceId
from fleet.domain.errors import Refused


class CredentialKind(enum.StrEnum):
    DEVICE = "device"
    STATION = "station"
    OPERATOR = "operator"
    CLAIM = "claim"


class CredentialState(enum.StrEnum):
    ISSUED = "issued"
    """Issued, not yet seen in use."""
    ACTIVE = "active"
    """Seen in use."""
    SUPERSEDED = "superseded"
    """A later certificate of the same holder has been seen in use."""
    REVOKED = "revoked"


USABLE = frozenset({CredentialState.ISSUED, CredentialState.ACTIVE})
"""States in which a certificate authenticates its holder."""


class Credential(Struct, frozen=True):
    """One issued certificate. `holder` is the device id, or the station's, operator's or claim's name."""

    fingerprint: bytes
    """SHA-256 of `der`, 32 bytes: the primary key."""
    serial: str
    """The certificate's serial number, lower-case hex."""
    kind: CredentialKind
    holder: str
    key_sha256: bytes
    """SHA-256 of the DER SubjectPublicKeyInfo, 32 bytes."""
    not_before: datetime
    not_after: datetime
    state: CredentialState
    issued_at: datetime
    der: bytes
    grant: str = ""
    """The right it was issued by, as in the audit: "token 3f2a...", "station st1", "certificate 5d..."."""


def usable_before(credentials: Sequence[Credential], fingerprint: bytes) -> list[Credential]:
    """Those of `credentials`, given oldest first, that are usable and were issued before the one of `fingerprint`; none
    when that one is not among them.
    """
    for index, credential in enumerate(credentials):
        if credential.fingerprint == fingerprint:
            return [c for c in credentials[:index] if c.state in USABLE]
    return []


def must_be_usable(credential: Credential, now: datetime, grace: timedelta = timedelta(0)) -> None:
    """Raises: Refused: `certificate-superseded`, `certificate-revoked`, `certificate-expired`."""
    if credential.state is CredentialState.REVOKED:
        advice = "Enroll again with a new key: by a new token, or by another right."
        raise Refused("certificate-revoked", "The certificate presented is revoked.", advice)
    if credential.state not in USABLE:
        raise Refused(f"certificate-{credential.state}", f"The certificate presented is {credential.state}.")
    if not credential.not_before <= now < credential.not_after + grace:
        raise Refused("certificate-expired", "The certificate presented is not valid at this time.")


class KeyUse(Struct, frozen=True):
    """A present or former holder of a certificate for some key, and the certificate's state."""

    kind: CredentialKind
    holder: str
    state: CredentialState


class Token(Struct, frozen=True):
    """A bearer token for a first certificate: for one device, or for new devices of one model.

    Only the SHA-256 of the secret is stored. Exactly one of `device_id` and `model` is set.
    """

    id: str
    secret_sha256: bytes
    device_id: DeviceId | None
    model: str | None
    uses_max: int
    uses: int
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None
    takes_over: bool = True
    """Whether one for a device may enroll it again once it has been in the field."""
    made_by: str = ""
    """In the audit's words; "" before this was kept."""


def token_state(token: Token, now: datetime) -> str:
    """The token's state: "open", "used up", "expired" or "revoked"."""
    if token.revoked_at is not None:
        return "revoked"
    if now >= token.expires_at:
        return "expired"
    return "used up" if token.uses >= token.uses_max else "open"


DAY_SECONDS = 86_400


def day_of(now: datetime) -> int:
    """The day, in UTC, of `now`: days since 1970."""
    return int(now.timestamp()) // DAY_SECONDS


class Station(Struct, frozen=True):
    """A factory station: a registration authority restricted to the models named."""

    name: str
    models: tuple[str, ...]
    created_at: datetime
    quota: int = 0
    """Maximum number of certificates a day (UTC); 0: unlimited."""
    day: int = 0
    """The last day counted, in days since 1970."""
    used: int = 0
    """Certificates on that day."""

    def used_on(self, now: datetime) -> int:
        """Certificates on the day of `now`, or on the next day, which another node's clock may have reached; counted
        only while there is a quota.
        """
        return self.used if self.day - day_of(now) in (0, 1) else 0
