"""A certificate request with every fact that the checks need: checks never fetch.

The right by which the certificate is requested is the context's Grant; each kind of grant is a module of
`fleet.domain.grants`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from fleet.domain.credential import Credential, CredentialState, KeyUse
from fleet.domain.device import Device, DeviceId, Model, device_id
from fleet.domain.distrust import Distrust, refusing
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import Write

COMMON_NAME = "2.5.4.3"
SERIAL_NUMBER = "2.5.4.5"


class Names(Struct, frozen=True):
    """Subject and subjectAltName as plain values, comparable between a CSR and a certificate."""

    subject: tuple[tuple[str, str], ...] = ()
    """(dotted OID, value) in order."""
    alt_names: tuple[str, ...] = ()
    """Each general name as "TYPE:value", in order; () when the extension is absent."""

    def common_name(self) -> str:
        """The one common name. Raises: Invalid (`no-common-name`) when there is none, or more than one."""
        found = [value for oid, value in self.subject if oid == COMMON_NAME]
        if len(found) != 1:
            raise Invalid(
                "no-common-name",
                f"The request's subject holds {len(found)} common names; exactly one, the device id, is needed.",
            )
        return found[0]

    def serial_numbers(self) -> tuple[str, ...]:
        """The serialNumber attributes of the subject: of the hardware, not of a certificate."""
        return tuple(value for oid, value in self.subject if oid == SERIAL_NUMBER)


@dataclass(frozen=True, slots=True)
class EnrollmentRequest:
    """Contents of a CSR whose own signature has been verified."""

    names: Names
    key_type: str
    """One of KEY_TYPES, or a name that no model allows."""
    spki_der: bytes
    key_sha256: bytes
    is_bound: bool | None = None
    """Whether it is bound to the TLS connection that it came on (RFC 7030, 3.5); None: it carries no binding."""
    wants_key: bool = False
    """Whether the server generates the key (RFC 7030, 4.4); until it has, `spki_der` is the key that signed the CSR."""
    extended_key_usages: tuple[str, ...] | None = None
    """Requested dotted OIDs; None without that extension. They count only where the model says so."""
    _device_id: DeviceId | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            parsed = device_id(self.names.common_name())
        except Invalid:
            return  # reading `device_id` raises it again, where a refusal can be audited
        object.__setattr__(self, "_device_id", parsed)

    @property
    def device_id(self) -> DeviceId:
        """The device that the certificate is for: the subject's common name, parsed once.

        Raises: Invalid (`no-common-name`, `bad-device-id`).
        """
        return self._device_id or device_id(self.names.common_name())


class Grant(Protocol):
    """The right by which a certificate is requested. Its text names it in the audit and in the certificate's row."""

    @property
    def path(self) -> AdmissionPath | None:
        """The model's admission path; None for a renewal, which every model allows."""

    @property
    def replaces(self) -> Credential | None:
        """The certificate presented for renewal; None for a first one."""

    def model_for_new_device(self, device_id: DeviceId) -> str:
        """Name of the model of the device `device_id`, which is not registered yet.

        Raises: Refused (`not-your-identity`, `unknown-device`, `model-not-named`): the grant does not cover it.
        """

    def must_be_valid(self, a: "IssuanceContext") -> None:
        """Raises: Refused: the grant has expired, was revoked or is used up."""

    def must_cover_device(self, a: "IssuanceContext") -> None:
        """Raises: Refused: the grant covers another device or model."""

    def would_take_over(self, a: "IssuanceContext") -> bool:
        """Whether another device's identity would be taken over, by a grant that covers more than one device."""

    def writes(self, a: "IssuanceContext") -> tuple[Write, ...]:
        """Writes that use the grant up, in the transaction that records the certificate."""


class IssuanceContext(Struct, frozen=True):
    """One certificate request with all facts about it."""

    request: EnrollmentRequest
    grant: Grant
    device: Device | None
    """None: the device id is not registered."""
    model: Model
    credentials: tuple[Credential, ...]
    """The device's, oldest first; not all of the superseded ones, but every other."""
    now: datetime
    key_uses: tuple[KeyUse, ...] = ()
    """Holders of certificates for the requested key."""
    distrusts: tuple[Distrust, ...] = ()
    """The rules in force, if one of the credentials could be repeated."""

    def is_in_the_field(self) -> bool:
        """Whether the device has used a certificate of its own."""
        return is_in_the_field(self.device, self.credentials)

    def issued_unused(self) -> list[Credential]:
        """Certificates issued under this very grant that were never used, oldest first."""
        grant = str(self.grant)
        return [c for c in self.credentials if c.state is CredentialState.ISSUED and c.grant == grant]


def is_in_the_field(device: Device | None, credentials: Sequence[Credential]) -> bool:
    """Whether `device` has used one of its `credentials`."""
    if any(c.state is not CredentialState.ISSUED for c in credentials):
        return True
    # A device whose certificates have all been archived had some.
    return device is not None and device.expires_at is not None and not credentials


def is_unused_for(request: EnrollmentRequest, credential: Credential) -> bool:
    """Whether `credential` is for the key of `request`, and was never used."""
    return credential.state is CredentialState.ISSUED and credential.key_sha256 == request.key_sha256


def issued_before(a: IssuanceContext) -> Credential | None:
    """The certificate that was issued for this very request before: it is repeated because the answer was lost.

    It is for the same key and was never used. Returning it gives nothing away: only the holder of that key can use it.
    Past half of its lifetime, or where a distrust refuses it, a new one is issued instead.
    """
    replaced = a.grant.replaces
    for credential in reversed(a.credentials):
        if replaced is not None and credential.fingerprint == replaced.fingerprint:
            return None  # a renewal's result is younger than the certificate that it replaces
        if is_unused_for(a.request, credential):
            if refusing(a.distrusts, a.model.name, credential):
                return None
            half = (credential.not_after - credential.not_before) / 2
            return credential if credential.not_before <= a.now < credential.not_before + half else None
    return None
