"""Who may have a certificate: small named checks that end in an IssuePermit or raise.

    permit = permit_enrollment(application)   # raises Invalid or Refused
    issuer.issue(permit, now)                 # the CA takes nothing else

An Application holds every fact a check may look at; checks never fetch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from fleet.domain.access import Operator
from fleet.domain.credential import USABLE, Credential, CredentialKind, CredentialState, KeyUse, Station, Token
from fleet.domain.device import Device, DeviceId, DeviceState, Model, device_id
from fleet.domain.errors import Invalid, Refused

COMMON_NAME = "2.5.4.3"
SERIAL_NUMBER = "2.5.4.5"


@dataclass(frozen=True, slots=True)
class Names:
    """Subject and subjectAltName as plain values, comparable between a CSR and a certificate."""

    subject: tuple[tuple[str, str], ...] = ()
    """(dotted OID, value) in order."""
    alt_names: tuple[str, ...] = ()
    """Each general name as "TYPE:value", in order; () when the extension is absent."""

    def common_name(self) -> str:
        """The one common name.

        Raises: Invalid (`no-common-name`) when there is none, or more than one.
        """
        found = [value for oid, value in self.subject if oid == COMMON_NAME]
        if len(found) != 1:
            raise Invalid(
                "no-common-name",
                f"The request's subject holds {len(found)} common names; exactly one, the device id, is needed.",
            )
        return found[0]


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """What a CSR asks for, after its own signature has been verified."""

    names: Names
    key_type: str
    """One of KEY_TYPES, or another name that no model allows."""
    spki_der: bytes
    key_sha256: bytes
    is_bound: bool | None = None
    """Whether it binds itself to the TLS connection that it came on (RFC 7030, 3.5); None: it does not try to."""


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """By a one-time token, whose secret has been verified."""

    token: Token
    username: str
    """The HTTP Basic user name sent with it."""

    def __str__(self) -> str:
        return f"token {self.token.id}"


@dataclass(frozen=True, slots=True)
class StationGrant:
    """By a factory station that authenticated itself with its own certificate."""

    station: Station
    model: str
    """The model that the station provisions; needed when the device is new to the registry."""
    credential: Credential
    """The station's certificate."""

    def __str__(self) -> str:
        return f"station {self.station.name}"


@dataclass(frozen=True, slots=True)
class RenewalGrant:
    """By the device's own current certificate, presented in the TLS handshake."""

    credential: Credential
    names: Names
    """Names in that certificate."""

    def __str__(self) -> str:
        return f"certificate {self.credential.serial}"


Grant = TokenGrant | StationGrant | RenewalGrant


@dataclass(frozen=True, slots=True)
class Application:
    """One request for a certificate with everything that is known about it."""

    request: EnrollmentRequest
    grant: Grant
    device: Device | None
    """None: the registry does not know this device id yet."""
    model: Model
    credentials: tuple[Credential, ...]
    """Those of the device, oldest first; of its superseded ones not all, and never without one that is not."""
    now: datetime
    key_uses: tuple[KeyUse, ...] = ()
    """Who has a certificate for the key asked for."""


@dataclass(frozen=True, slots=True)
class IssuePermit:
    """Leave to issue one certificate. Only `permit_enrollment`, `permit_station` and `permit_operator` make one."""

    kind: CredentialKind
    holder: str
    hardware_serial: str
    spki_der: bytes
    key_sha256: bytes
    not_before: datetime
    not_after: datetime
    grant: str
    """By what right, in words, for the audit."""


def earned_before(a: Application) -> Credential | None:
    """The certificate that this very request has earned already: it comes again because the answer was lost.

    It is for the same key, and was never seen in use. Nothing new is given away: only the holder of that key can use
    it. Past half of its life a new one is better than the old.
    """
    for credential in reversed(a.credentials):
        if isinstance(a.grant, RenewalGrant) and credential.fingerprint == a.grant.credential.fingerprint:
            return None  # what a renewal earned is younger than the certificate that asked for it
        if credential.state is CredentialState.ISSUED and credential.key_sha256 == a.request.key_sha256:
            half = (credential.not_after - credential.not_before) / 2
            return credential if credential.not_before <= a.now < credential.not_before + half else None
    return None


def binding_is_to_this_connection(a: Application) -> None:
    """RFC 7030, 3.5: a binding that is there must be verified; a CSR that was made for another connection is stolen."""
    if a.request.is_bound is False:
        raise Invalid(
            "not-this-connection",
            "The request's challenge password does not bind it to this TLS connection (RFC 7030, 3.5).",
            "Leave it out, or put the base64 of this connection's channel binding there.",
        )


def key_is_allowed(a: Application) -> None:
    if a.request.key_type not in a.model.key_types:
        raise Invalid(
            "key-not-allowed",
            f"A {a.request.key_type} key is not allowed for model {a.model.name}.",
            f"Use one of: {', '.join(a.model.key_types)}.",
        )


def key_is_not_revoked(a: Application) -> None:
    """A key whose certificate was revoked never comes back, under whatever right or name."""
    if any(use.state is CredentialState.REVOKED for use in a.key_uses):
        raise Refused("key-revoked", "This key belongs to a revoked certificate.", "Make a new key.")


def key_is_its_own(a: Application) -> None:
    """A key answers for one device: were it in two, revoking the one would leave the other."""
    holder = (CredentialKind.DEVICE, a.request.names.common_name())
    if any((use.kind, use.holder) != holder for use in a.key_uses):
        raise Refused("key-in-use", "This key belongs to another device or station.", "Make a new key.")


def grant_is_valid(a: Application) -> None:
    match a.grant:
        case TokenGrant(token=token):
            if token.revoked_at is not None:
                raise Refused("token-revoked", "The token has been revoked.", "Ask for a new one.")
            if a.now >= token.expires_at:
                raise Refused("token-expired", "The token has expired.", "Ask for a new one.")
            if token.uses >= token.uses_max and earned_before(a) is None:
                raise Refused("token-used-up", "The token has been used up.", "Ask for a new one.")
        case RenewalGrant(credential=credential):
            if credential.state not in USABLE:
                raise Refused(f"certificate-{credential.state}", f"The certificate presented is {credential.state}.")
            if not credential.not_before <= a.now < credential.not_after:
                raise Refused("certificate-expired", "The certificate presented is not valid at this time.")
        case StationGrant():
            pass  # admission has checked the station's own certificate


def grant_covers_device(a: Application) -> None:
    name = a.request.names.common_name()
    match a.grant:
        case TokenGrant(token=token, username=username):
            if username and username != name:
                raise Refused("not-your-identity", "The user name and the request's common name differ.")
            if token.device_id is not None and token.device_id != name:
                raise Refused("not-your-identity", "The token was made for another device.")
            if token.model is not None and token.model != a.model.name:
                raise Refused("not-your-model", "The token was made for another model.")
        case StationGrant(station=station):
            if a.model.name not in station.models:
                raise Refused("not-your-model", f"Station {station.name} may not provision model {a.model.name}.")
        case RenewalGrant(credential=credential):
            if credential.holder != name:
                raise Refused("not-your-identity", "The certificate presented belongs to another device.")


def device_is_in_service(a: Application) -> None:
    if a.device is not None and a.device.state not in (DeviceState.REGISTERED, DeviceState.ACTIVE):
        raise Refused(f"device-{a.device.state}", f"Device {a.device.id} is {a.device.state}.")


def identity_is_free(a: Application) -> None:
    """A right over a whole model never takes over the identity of a device that has been seen in the field.

    A token made for this very device does: that is how an operator lets a reflashed board back in. The same key
    again is a retry after a lost answer. A station may repeat a run of its own whose certificate was never used.
    """
    in_use = [c for c in a.credentials if c.state is not CredentialState.ISSUED]
    match a.grant:
        case TokenGrant(token=token) if token.device_id is None:
            taken = any(c.key_sha256 != a.request.key_sha256 for c in a.credentials)
        case StationGrant():
            taken = any(c.grant != str(a.grant) for c in a.credentials)
        case _:
            return
    # One whose certificates have all been archived had some, and so has been out there.
    forgotten = a.device is not None and a.device.expires_at is not None and not a.credentials
    if taken or in_use or forgotten:
        raise Refused(
            "already-enrolled",
            f"{a.request.names.common_name()} is enrolled already.",
            "Make a token for this very device to enroll it again.",
        )


def names_are_unchanged(a: Application) -> None:
    """RFC 7030, 4.2.2: subject and SAN of the request must match the current certificate's."""
    if isinstance(a.grant, RenewalGrant) and a.request.names != a.grant.names:
        raise Refused("names-changed", "Subject and SAN must equal those of the current certificate (RFC 7030, 4.2.2).")


Check = Callable[[Application], None]

CHECKS: tuple[Check, ...] = (
    binding_is_to_this_connection,
    grant_is_valid,
    grant_covers_device,
    device_is_in_service,
    identity_is_free,
    names_are_unchanged,
    key_is_allowed,
    key_is_not_revoked,
    key_is_its_own,
)


def permit_enrollment(application: Application) -> IssuePermit:
    """Leave to issue what `application` asks for.

    Raises: Invalid, Refused: the first check that fails.
    """
    holder = device_id(application.request.names.common_name())
    for check in CHECKS:
        check(application)
    return IssuePermit(
        kind=CredentialKind.DEVICE,
        holder=holder,
        hardware_serial=application.device.hardware_serial if application.device else "",
        spki_der=application.request.spki_der,
        key_sha256=application.request.key_sha256,
        not_before=application.now,
        not_after=application.now + application.model.certificate_lifetime,
        grant=str(application.grant),
    )


def new_device(application: Application) -> Device:
    """The device that a permitted application brings into the registry."""
    return Device(
        id=DeviceId(application.request.names.common_name()),
        model=application.model.name,
        state=DeviceState.REGISTERED,
        created_at=application.now,
    )


def permit_station(
    station: Station, spki_der: bytes, key_sha256: bytes, not_after: datetime, now: datetime
) -> IssuePermit:
    """Leave to issue a station's own certificate: an operator with the home in hand has asked for it."""
    return _permit_by_hand(CredentialKind.STATION, station.name, spki_der, key_sha256, not_after, now)


def permit_operator(
    operator: Operator, spki_der: bytes, key_sha256: bytes, not_after: datetime, now: datetime
) -> IssuePermit:
    """Leave to issue an operator's certificate: somebody with the home in hand has asked for it."""
    return _permit_by_hand(CredentialKind.OPERATOR, operator.name, spki_der, key_sha256, not_after, now)


def _permit_by_hand(
    kind: CredentialKind, holder: str, spki_der: bytes, key_sha256: bytes, not_after: datetime, now: datetime
) -> IssuePermit:
    return IssuePermit(
        kind=kind,
        holder=holder,
        hardware_serial="",
        spki_der=spki_der,
        key_sha256=key_sha256,
        not_before=now,
        not_after=not_after,
        grant="operator",
    )
