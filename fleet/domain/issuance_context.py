"""A request for a certificate, and everything that is known about it.

An Application holds every fact that a check may look at: checks never fetch. By what right it is made is its Grant;
each kind of grant is a file of `fleet.domain.grants`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from fleet.domain.credential import Credential, CredentialState, KeyUse
from fleet.domain.device import Device, Model
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import AdmissionPath
from fleet.domain.writes import Write

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

    def serial_numbers(self) -> tuple[str, ...]:
        """The serialNumber attributes of the subject: of the hardware, not of a certificate."""
        return tuple(value for oid, value in self.subject if oid == SERIAL_NUMBER)


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
    wants_key: bool = False
    """Whether the server is to make the key (RFC 7030, 4.4); `spki_der` is then the request's own until it has."""
    extended_key_usages: tuple[str, ...] | None = None
    """Dotted OIDs that it asks for; None when it does not. They count only where the model says so."""


class Grant(Protocol):
    """The right by which a certificate is asked for. Its text is what the audit and the certificate's row call it."""

    @property
    def path(self) -> AdmissionPath | None:
        """Which of the model's admission paths it is; None for a renewal, which every model allows."""
        ...

    @property
    def replaces(self) -> Credential | None:
        """The certificate that was presented to be renewed; None for a first one."""
        ...

    def model_of_newcomer(self) -> str:
        """The name of the model that a device has which the registry does not know yet.

        Raises: Refused (`unknown-device`, `model-not-named`): it is no right to bring in a new one.
        """
        ...

    def must_be_valid(self, a: "Application") -> None:
        """Raises: Refused: the right has ended, or is used up."""
        ...

    def must_cover_device(self, a: "Application") -> None:
        """Raises: Refused: it is a right to something else."""
        ...

    def would_take_over(self, a: "Application") -> bool:
        """Whether somebody else's identity would be taken: asked of a right that is over more than one device."""
        ...

    def writes(self, a: "Application") -> tuple[Write, ...]:
        """What is used up, in the transaction that brings the certificate in."""
        ...


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

    def is_in_the_field(self) -> bool:
        """Whether the device has been seen with a certificate of its own."""
        return is_in_the_field(self.device, self.credentials)

    def earned_unused(self) -> list[Credential]:
        """What this very grant has earned before and nobody has used, oldest first."""
        grant = str(self.grant)
        return [c for c in self.credentials if c.state is CredentialState.ISSUED and c.grant == grant]


def is_in_the_field(device: Device | None, credentials: Sequence[Credential]) -> bool:
    """Whether `device`, whose certificates these are, has been seen with one of them."""
    if any(c.state is not CredentialState.ISSUED for c in credentials):
        return True
    # One whose certificates have all been archived had some, and so has been out there.
    return device is not None and device.expires_at is not None and not credentials


def earned_before(a: Application) -> Credential | None:
    """The certificate that this very request has earned already: it comes again because the answer was lost.

    It is for the same key, and was never seen in use. Nothing new is given away: only the holder of that key can use
    it. Past half of its life a new one is better than the old.
    """
    replaced = a.grant.replaces
    for credential in reversed(a.credentials):
        if replaced is not None and credential.fingerprint == replaced.fingerprint:
            return None  # what a renewal earned is younger than the certificate that asked for it
        if credential.state is CredentialState.ISSUED and credential.key_sha256 == a.request.key_sha256:
            half = (credential.not_after - credential.not_before) / 2
            return credential if credential.not_before <= a.now < credential.not_before + half else None
    return None
