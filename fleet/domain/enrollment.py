"""Enrollment policy: small named checks that end in an IssuePermit or raise.

    permit = permit_enrollment(context)   # raises Invalid or Refused
    issuer.issue(permit, now)                 # the CA takes nothing else

An IssuanceContext holds every fact that the checks need; checks never fetch.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.certificate_budget import full_again_at, must_have_budget
from fleet.domain.credential import CredentialKind, CredentialState
from fleet.domain.device import BARRED_MODEL, HARDWARE_SERIAL, Device, DeviceState, Tags, must_be_in_service
from fleet.domain.errors import Invalid, Pending, Refused
from fleet.domain.grants import ApprovalGrant, RenewalGrant, StationGrant
from fleet.domain.issuance_context import IssuanceContext, issued_before
from fleet.domain.model_rules import DEFAULT_RULES, EXTENDED_KEY_USAGES, AdmissionPath, ProfileRules, RenewalKey
from fleet.wire.hardware_serial import comparable


class IssuePermit(Struct, frozen=True):
    """Permission to issue one certificate. Only the functions `permit_…` make one."""

    kind: CredentialKind
    holder: str
    hardware_serial: str
    spki_der: bytes
    key_sha256: bytes
    not_before: datetime
    not_after: datetime
    grant: str
    """Text of the grant, for the audit."""
    model: str = ""
    """The device's model; "" for other holders."""
    profile: ProfileRules = DEFAULT_RULES.profile
    tenant: str = ""
    """Tenant whose issuing CA signs; "" for the fleet's own."""


def binding_is_to_this_connection(a: IssuanceContext) -> None:
    """RFC 7030, 3.5: a binding that is present must be verified; a CSR made for another connection is stolen."""
    if a.request.is_bound is False:
        raise Invalid(
            "not-this-connection",
            "The request's challenge password does not bind it to this TLS connection (RFC 7030, 3.5).",
            "Omit it, or put the base64 of this connection's channel binding there.",
        )


def binding_is_there(a: IssuanceContext) -> None:
    """RFC 7030, 3.5. A station vouches for devices that its own connection says nothing about (3.7)."""
    if a.model.rules.profile.binding and a.request.is_bound is None and a.grant.path is not AdmissionPath.STATION:
        raise Invalid(
            "binding-missing",
            f"Model {a.model.name} takes only requests that are bound to their TLS connection (RFC 7030, 3.5).",
            "Put the base64 of this connection's tls-unique (TLS 1.2) or tls-exporter (1.3) into challengePassword.",
        )


def keygen_is_open(a: IssuanceContext) -> None:
    if a.request.wants_key and not a.model.rules.profile.server_keygen:
        raise Refused(
            "keygen-not-open",
            f"Devices of model {a.model.name} generate their own keys.",
            f"Allow it with: fleet model set {a.model.name} --server-keygen",
        )


def key_is_allowed(a: IssuanceContext) -> None:
    if a.request.key_type not in a.model.key_types:
        raise Invalid(
            "key-not-allowed",
            f"Keys of type {a.request.key_type} are not allowed for model {a.model.name}.",
            f"Use one of: {', '.join(a.model.key_types)}.",
        )


def usages_are_allowed(a: IssuanceContext) -> None:
    """Where the model lets a CSR choose, it chooses among the model's usages; elsewhere its usages are ignored."""
    profile = a.model.rules.profile
    if not profile.csr_extended_key_usages:
        return
    given = {EXTENDED_KEY_USAGES[name] for name in profile.extended_key_usages}
    beyond = [oid for oid in a.request.extended_key_usages or () if oid not in given]
    if beyond:
        raise Invalid(
            "usage-not-allowed",
            f"Model {a.model.name} does not allow the extended key usage {beyond[0]}.",
            f"Request some of: {', '.join(profile.extended_key_usages)}; or none, to get all.",
        )


def key_is_not_revoked(a: IssuanceContext) -> None:
    """A key whose certificate was revoked is never certified again, under any grant or name."""
    if any(use.state is CredentialState.REVOKED for use in a.key_uses):
        raise Refused("key-revoked", "This key belongs to a revoked certificate.", "Make a new key.")


def key_is_its_own(a: IssuanceContext) -> None:
    """A key belongs to one device: with two, revoking one would leave the other."""
    holder = (CredentialKind.DEVICE, a.request.device_id)
    if any((use.kind, use.holder) != holder for use in a.key_uses):
        raise Refused("key-in-use", "This key belongs to another device or station.", "Make a new key.")


def hardware_is_as_known(a: IssuanceContext) -> None:
    """A station has the board at hand: it may give its serial number, once, well-formed and equal to a known one."""
    if not isinstance(a.grant, StationGrant):
        return
    named = a.request.names.serial_numbers()
    if len(named) > 1 or not all(HARDWARE_SERIAL.fullmatch(each) for each in named):
        raise Invalid(
            "bad-hardware-serial",
            "The serialNumber in the request's subject is malformed: at most one, of at most 64 characters.",
            "Use letters, digits, spaces and '()+,-./:=? (an X.520 PrintableString).",
        )
    known = a.device.hardware_serial if a.device is not None else ""
    if named and known and comparable(named[0]) != comparable(known):
        raise Refused(
            "not-this-hardware",
            f"Device {a.request.device_id} is registered with another serial number than the request's.",
            "Check which board it is: fleet device show",
        )


def path_is_open(a: IssuanceContext) -> None:
    """A model chooses its admission paths; a renewal is allowed by all."""
    if a.grant.path is not None and a.grant.path not in a.model.rules.admission.paths:
        raise Refused(
            "path-not-open",
            f"Model {a.model.name} does not admit devices by {a.grant.path}.",
            f"Allow it with: fleet model set {a.model.name} --admit {a.grant.path}",
        )


def grant_is_valid(a: IssuanceContext) -> None:
    a.grant.must_be_valid(a)


def device_is_not_barred(a: IssuanceContext) -> None:
    """Under any grant: nothing is known of the device but its name."""
    if a.model.name == BARRED_MODEL:
        raise Refused(
            "device-barred",
            f"{a.request.device_id} was revoked after the backup from which this registry was restored.",
            "Give the device another id, or find out why it was revoked: fleet device show",
        )


def grant_covers_device(a: IssuanceContext) -> None:
    a.grant.must_cover_device(a)


def device_is_in_service(a: IssuanceContext) -> None:
    if a.device is not None:
        must_be_in_service(a.device)


def identity_is_free(a: IssuanceContext) -> None:
    """A grant for a whole model never takes over the identity of a device that has used a certificate."""
    if a.grant.would_take_over(a):
        raise Refused(
            "already-enrolled",
            f"{a.request.device_id} is enrolled already.",
            "A token for this very device enrolls it again, made by an operator who may change devices.",
        )


def names_are_unchanged(a: IssuanceContext) -> None:
    """RFC 7030, 4.2.2: subject and SAN of the request must match the current certificate's."""
    if isinstance(a.grant, RenewalGrant) and a.request.names != a.grant.names:
        raise Refused("names-changed", "Subject and SAN must equal those of the current certificate (RFC 7030, 4.2.2).")


def key_is_renewed_by_the_rule(a: IssuanceContext) -> None:
    """A model may require a new key each time, or the one in the secure element. A generated one is new."""
    replaced = a.grant.replaces
    if replaced is None:
        return
    same = not a.request.wants_key and a.request.key_sha256 == replaced.key_sha256
    if same and a.model.rules.renewal.key is RenewalKey.NEW:
        raise Refused("key-not-new", f"Devices of model {a.model.name} renew with a new key.", "Make a new key.")
    if not same and a.model.rules.renewal.key is RenewalKey.SAME:
        raise Refused("key-not-same", f"Devices of model {a.model.name} renew with the key they have.")


def budget_is_left(a: IssuanceContext) -> None:
    """What was issued for this very request before is repeated, and costs nothing."""
    if a.device is not None and issued_before(a) is None:
        must_have_budget(a.device, a.model, a.now)


def request_is_approved(a: IssuanceContext) -> None:
    """Last of all: no operator is asked to approve what would be refused anyway."""
    if isinstance(a.grant, ApprovalGrant) and not a.grant.is_given:
        raise Pending("approval-pending", "An operator has yet to approve this request.", retry_after_seconds=0)


Check = Callable[[IssuanceContext], None]

# The scope of a grant is checked before the model's rules: a claim used for another model's device is misused, whatever
# that model's rules would say.
CHECKS: tuple[Check, ...] = (
    grant_is_valid,
    device_is_not_barred,
    grant_covers_device,
    binding_is_to_this_connection,
    binding_is_there,
    path_is_open,
    device_is_in_service,
    identity_is_free,
    hardware_is_as_known,
    names_are_unchanged,
    key_is_renewed_by_the_rule,
    keygen_is_open,
    key_is_allowed,
    usages_are_allowed,
    key_is_not_revoked,
    key_is_its_own,
    budget_is_left,
    request_is_approved,
)


def permit_enrollment(context: IssuanceContext) -> IssuePermit:
    """Permission to issue the certificate that `context` requests.

    Raises: Invalid, Refused: the first check that fails. Pending: all pass, and an operator has yet to approve.
    """
    holder = context.request.device_id
    for check in CHECKS:
        check(context)
    return IssuePermit(
        kind=CredentialKind.DEVICE,
        holder=holder,
        hardware_serial=_hardware_serial(context),
        spki_der=context.request.spki_der,
        key_sha256=context.request.key_sha256,
        not_before=context.now,
        not_after=context.now + context.model.certificate_lifetime,
        grant=str(context.grant),
        model=context.model.name,
        profile=_profile(context),
        tenant=context.model.rules.tenant,
    )


def _profile(a: IssuanceContext) -> ProfileRules:
    """The model's profile; if a CSR may choose, with the extended key usages that it requests, and clientAuth."""
    profile, asked = a.model.rules.profile, a.request.extended_key_usages
    if not profile.csr_extended_key_usages or asked is None:
        return profile
    chosen = tuple(n for n in profile.extended_key_usages if n == "clientAuth" or EXTENDED_KEY_USAGES[n] in asked)
    return replace(profile, extended_key_usages=chosen)


def new_device(context: IssuanceContext, expires_at: datetime, tags: Tags) -> Device:
    """The device that the permitted request of `context` registers: active, with a certificate until `expires_at`."""
    return Device(
        id=context.request.device_id,
        model=context.model.name,
        state=DeviceState.ACTIVE,
        created_at=context.now,
        hardware_serial=_hardware_serial(context),
        expires_at=expires_at,
        tags=tags,
        budget_full_at=full_again_at(None, context.model, context.now),
    )


def _hardware_serial(a: IssuanceContext) -> str:
    """The device's; for a new device, the one that its station gives."""
    if a.device is not None:
        return a.device.hardware_serial
    return next(iter(a.request.names.serial_numbers()), "") if isinstance(a.grant, StationGrant) else ""


def permit_by_operator(
    kind: CredentialKind, holder: str, spki_der: bytes, not_after: datetime, now: datetime, *, model: str = ""
) -> IssuePermit:
    """Permission to issue the certificate of a station, an operator or a claim, requested by an operator."""
    return IssuePermit(
        kind=kind,
        holder=holder,
        hardware_serial="",
        spki_der=spki_der,
        key_sha256=hashlib.sha256(spki_der).digest(),
        not_before=now,
        not_after=not_after,
        grant="operator",
        model=model,
    )
