"""Stations and operators, and the certificate that a client presents."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from msgspec import UNSET, Meta, UnsetType, field

from fleet.domain import credential
from fleet.domain.access import Role
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.members import about, between
from fleet.servers.admin.records.base import (
    CertificateSha256,
    Count,
    Csr,
    Name,
    Names,
    Record,
    RevocationReason,
    Serial,
    Time,
)
from fleet.servers.admin.records.models import Lifetime
from fleet.services.inventory import STATION_LIFETIME, STATION_MODELS_MAX, STATION_QUOTA_MAX
from fleet.services.operators import OPERATOR_LIFETIME, OPERATOR_MODELS_MAX

if TYPE_CHECKING:
    from fleet.ca.view import CaCertificate

_Chain = Annotated[str, about("Its certificate, and the CA that signed it: PEM.")]
_Root = Annotated[str, about("The root CA that authenticates the server: PEM.")]
_Quota = Annotated[
    int, between(0, STATION_QUOTA_MAX, "Maximum number of certificates it may earn a day (UTC); 0: unlimited.")
]
_OwnCsr = Annotated[Csr, about("Certificate request (PKCS #10), PEM, with the subject CN=NAME.")]
_RestrictedTo = Annotated[Names, about("Models it is restricted to; empty for all.")]


def newest(found: credential.Credential | None) -> dict[str, Any]:
    """The fields of a newest certificate, if there is one."""
    if found is None:
        return {"certificate": None, "serial": None, "not_after": None}
    return {"certificate": found.state, "serial": found.serial, "not_after": found.not_after}


_Newest = Annotated[CredentialState | None, about("State of its newest certificate.")]


class Station(Record):
    """A factory station."""

    name: Name
    models: Names
    quota: _Quota
    day: Annotated[Count, about("The last day on which certificates were counted, in days since 1970-01-01.")]
    used: Annotated[Count, about("Certificates earned on that day.")]
    created_at: Time
    certificate: _Newest
    serial: Annotated[Serial | None, about("Its serial number.")]
    not_after: Time | None


class AddedStation(Station):
    """A station that has just been added, and its certificate."""

    chain: _Chain
    root: _Root


class NewStation(Record):
    """A station to add."""

    name: Name
    models: Annotated[Names, Meta(min_length=1, max_length=STATION_MODELS_MAX)]
    csr: _OwnCsr
    quota: _Quota = 0
    lifetime_seconds: Lifetime = int(STATION_LIFETIME.total_seconds())


class StationChanges(Record):
    """A merge patch (RFC 7396)."""

    quota: _Quota


class Operator(Record):
    """A person or program that uses the API."""

    name: Name
    role: Role
    models: _RestrictedTo
    created_at: Time
    certificate: _Newest
    serial: Annotated[Serial | None, about("Its serial number.")]
    not_after: Time | None
    open_tokens: Annotated[Count, about("Tokens that it made and that can still be used.")]


class AddedOperator(Operator):
    """An operator that has just been added, and its certificate."""

    chain: _Chain
    root: _Root


class RevokedOperator(Operator):
    """An operator whose certificates have just been revoked."""

    revoked_tokens: Annotated[Count, about("Tokens that it made and that were revoked with it.")]


class NewOperator(Record):
    """An operator to add; it can't have permissions that the caller lacks."""

    name: Name
    role: Role
    csr: _OwnCsr
    models: Annotated[_RestrictedTo, Meta(max_length=OPERATOR_MODELS_MAX)] = field(default_factory=list)
    lifetime_seconds: Lifetime = int(OPERATOR_LIFETIME.total_seconds())


class OperatorRevocation(RevocationReason):
    """The reason for it, and whether its tokens go, too."""

    tokens: Annotated[bool, about("Revoke the tokens that it made and that can still be used.")] = False


class Whoami(Record):
    """The certificate presented."""

    holder: str
    kind: CredentialKind
    serial: Serial
    not_after: Time
    state: CredentialState
    role: Annotated[Role | UnsetType, about("Of an operator.")] = UNSET
    models: Annotated[Names | UnsetType, about("Of an operator: models it is restricted to; empty for all.")] = UNSET


class Authority(Record):
    """One of the fleet's CAs."""

    role: Annotated[str, about("root, issuing and the like.")]
    subject: str
    not_after: Time
    sha256: CertificateSha256
    tenant: Annotated[str, about("Its tenant; empty for the fleet's own.")]
    key_here: Annotated[bool, about("Whether its key is in the server's home, where a root's is not needed.")]
    key_id: Annotated[str, about("Its subject key identifier, hex: the name of its CRLs.")]
    pem: str

    @classmethod
    def shown(cls, ca: "CaCertificate") -> Self:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.serialization import Encoding

        from fleet.ca.key_identifiers import identifier_of

        certificate = ca.certificate
        return cls.of(
            ca,
            subject=certificate.subject.rfc4514_string(),
            not_after=certificate.not_valid_after_utc,
            key_here=ca.key_here is not None,
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
            key_id=identifier_of(certificate).hex(),
            pem=certificate.public_bytes(Encoding.PEM).decode(),
        )
