"""Taking away and giving back: what ends a device's or a station's right to connect.

Each move is one Change: the state, the credentials, the audit row, and the events by which gateways cut the live
session. Nothing leads out of REVOKED or RETIRED (domain.device.NEXT).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.credential import Credential, CredentialKind, CredentialState
from fleet.domain.crl import CrlReason
from fleet.domain.device import IN_SERVICE, NEXT, OUT_OF_SERVICE, Device, DeviceState, StateChange, device_id
from fleet.domain.errors import Conflict, Invalid, known
from fleet.domain.ports import Registry
from fleet.domain.registry_events import CredentialEnded
from fleet.domain.writes import (
    EndCredentials,
    HoldCredentials,
    MoveDevice,
    NewestForKeyIs,
    ReleaseCredentials,
    RevokeCredentials,
    RevokeSome,
    Write,
)
from fleet.services.differences import differences

END_CHUNK = 500  # certificates that are ended in one Change
LOOKS_MAX = 10  # at a holder whose certificates change meanwhile
REASON_MAX = 200  # characters: a line in the audit, not a report


MOVES = {"suspend": DeviceState.SUSPENDED, "revoke": DeviceState.REVOKED, "retire": DeviceState.RETIRED}
"""Where each verb leads; "resume" depends on the device (`state_after`)."""


_CRL_REASONS = {
    DeviceState.REVOKED: CrlReason.UNSPECIFIED,
    DeviceState.RETIRED: CrlReason.CESSATION_OF_OPERATION,
}


def for_crls(change: Change, reason: CrlReason) -> Change:
    """`change`, a revocation, with the `reason` that CRLs and OCSP give for it, also in the audit if there is one."""
    if reason is CrlReason.UNSPECIFIED:
        return change
    writes = tuple(
        replace(w, reason=reason) if isinstance(w, RevokeCredentials | RevokeSome) else w for w in change.writes
    )
    detail = {**change.audit.detail, "crl_reason": reason.text}
    return replace(change, writes=writes, audit=replace(change.audit, detail=detail))


async def move(
    verb: str, registry: Registry, id_text: str, *, act: Act, reason: str = "", revision: int | None = None
) -> Device:
    """Suspend, resume, revoke or retire the device, by `verb`.

    With `revision`, only when the device is of it: what was decided on an older one is not done.

    Raises: NotFound (`no-such-device`). Conflict: its state does not allow it; `changed-meanwhile`. Invalid
    (`bad-reason`).
    """
    device = await known_device(registry, id_text)
    to = await state_after(verb, registry, device)
    await registry.commit(moving(device, to, f"device.{verb}", act=act, reason=reason, revision=revision))
    return replace(device, state=to, revision=device.revision + 1)


suspend = partial(move, "suspend")
"""Refuse the device everywhere until it is resumed. Its certificates stay as they are."""
resume = partial(move, "resume")
"""Readmit a suspended device: as ACTIVE, or as REGISTERED when it never had a certificate."""


async def revoke(
    registry: Registry,
    id_text: str,
    *,
    act: Act,
    reason: str = "",
    revision: int | None = None,
    crl_reason: CrlReason = CrlReason.UNSPECIFIED,
) -> Device:
    """Revoke the device permanently: its live session ends, its certificates are revoked and listed in CRLs with
    `crl_reason`, its keys and its id never enroll again. Raises: as `move`.
    """
    device = await known_device(registry, id_text)
    await registry.commit(await revoking(registry, device, crl_reason, act=act, reason=reason, revision=revision))
    return revoked(device)


def revoked(device: Device) -> Device:
    """`device` after its revocation; one that was out of service has kept its state."""
    is_out = device.state in OUT_OF_SERVICE
    return device if is_out else replace(device, state=DeviceState.REVOKED, revision=device.revision + 1)


async def revoking(
    registry: Registry,
    device: Device,
    crl_reason: CrlReason,
    *,
    act: Act,
    reason: str = "",
    revision: int | None = None,
    **detail: str,
) -> Change:
    """The Change that revokes `device`; of one that is out of service, one that adds keyCompromise to what CRLs say of
    its certificates. Raises: as `moving`.
    """
    if device.state in OUT_OF_SERVICE and await _is_news(
        registry, CredentialKind.DEVICE, device.id, crl_reason, act.now
    ):
        entry = made_by(act, "device.revoke", f"device {device.id}", **given_reason(reason), **detail)
        writes = (RevokeCredentials(CredentialKind.DEVICE, device.id, act.now),)
        change = Change(entry, writes, (Event(EventKind.CREDENTIAL_ENDED, device.id),))
    else:
        change = moving(
            device, DeviceState.REVOKED, "device.revoke", act=act, reason=reason, revision=revision, **detail
        )
    return for_crls(change, crl_reason)


KEPT_REASON = "The reason in CRLs stays; only keyCompromise takes its place, where it is another."
"""Advice at a second revocation."""


async def _is_news(registry: Registry, kind: CredentialKind, holder: str, crl_reason: CrlReason, now: datetime) -> bool:
    """Whether `crl_reason` is keyCompromise and CRLs give another reason for a certificate of the holder. No other
    reason takes the place of one that was given: what has been published would become weaker.
    """
    for held in await registry.credentials(holder):
        if held.kind is kind and held.not_after > now and await _is_other(registry, held, crl_reason):
            return True
    return False


async def _is_other(registry: Registry, credential: Credential, crl_reason: CrlReason) -> bool:
    """Whether CRLs would say of `credential`, which is revoked, another thing with `crl_reason`."""
    if crl_reason is not CrlReason.KEY_COMPROMISE:
        return False
    listed = await registry.revocation(credential.serial)
    return listed is None or listed.reason != crl_reason


async def revoke_certificate(
    registry: Registry,
    credential: Credential,
    *,
    act: Act,
    reason: str = "",
    crl_reason: CrlReason = CrlReason.UNSPECIFIED,
) -> None:
    """Revoke one certificate of a device, whatever becomes of its others: it is listed in CRLs with `crl_reason`, its
    session ends, and its key never enrolls again. With keyCompromise, so is each of the device's with the same key.

    Raises: Conflict: `certificate-revoked`: nothing would change; `changed-meanwhile`. Invalid (`bad-reason`).
    """
    is_known = credential.state is CredentialState.REVOKED
    if is_known and not await _is_other(registry, credential, crl_reason):
        raise Conflict("certificate-revoked", f"Certificate {credential.serial} is revoked already.", KEPT_REASON)
    if crl_reason is not CrlReason.KEY_COMPROMISE:
        await registry.commit(for_crls(_ending([credential], act, reason), crl_reason))
        return
    kind, holder, key = credential.kind, credential.holder, credential.key_sha256
    for remaining in reversed(range(LOOKS_MAX)):
        ending = [c for c in await registry.credentials(holder) if (c.kind, c.key_sha256) == (kind, key)]
        # A renewal with the same key that comes between would survive.
        is_all = NewestForKeyIs(holder, kind, key, ending[-1].fingerprint)
        try:
            await registry.commit(for_crls(_ending(ending, act, reason, is_all), crl_reason))
        except Conflict as conflict:
            if conflict.code != "changed-meanwhile" or not remaining:
                raise
        else:
            return


def _ending(ending: Sequence[Credential], act: Act, reason: str, *demands: Write) -> Change:
    """The Change that revokes `ending`, of one holder."""
    holder = ending[0].holder
    events = tuple(Event(EventKind.CREDENTIAL_ENDED, c.holder, c.fingerprint.hex()) for c in ending)
    serials = " ".join(c.serial for c in ending)
    entry = made_by(act, "certificate.revoke", f"device {holder}", **given_reason(reason), serial=serials)
    return Change(entry, (*demands, RevokeSome(tuple(c.fingerprint for c in ending), act.now)), events)


retire = partial(move, "retire")
"""Take the device out of service permanently, in good order; its certificates are revoked."""


async def state_after(verb: str, registry: Registry, device: Device) -> DeviceState:
    """The state to which `verb` moves `device`. Raises: Conflict (`device-not-suspended`)."""
    if verb != "resume":
        return MOVES[verb]
    if device.state is not DeviceState.SUSPENDED:
        advice = "That is final: register the hardware under a new id." if device.state in OUT_OF_SERVICE else ""
        raise Conflict("device-not-suspended", f"Device {device.id} is {device.state}, not suspended.", advice)
    enrolled = any(c.kind is CredentialKind.DEVICE for c in await registry.credentials(device.id))
    return DeviceState.ACTIVE if enrolled else DeviceState.REGISTERED


async def revoke_station(
    registry: Registry, name: str, *, act: Act, reason: str = "", crl_reason: CrlReason = CrlReason.UNSPECIFIED
) -> None:
    """Revoke every certificate of the station. Devices that it provisioned stay.

    Raises: NotFound (`no-such-station`). Conflict (`station-revoked`): it holds none that is not revoked.
    """
    known(await registry.station(name), "station", name)
    kind = CredentialKind.STATION
    if not await revoke_certificates(registry, kind, name, act=act, reason=reason, crl_reason=crl_reason):
        raise Conflict("station-revoked", f"Station {name} has no certificate that is not revoked.")


async def revoke_certificates(
    registry: Registry,
    kind: CredentialKind,
    name: str,
    *,
    act: Act,
    reason: str,
    crl_reason: CrlReason = CrlReason.UNSPECIFIED,
) -> bool:
    """Revoke every certificate of a station or operator; False when it holds none that is not revoked, or to which
    keyCompromise could be added.

    Raises: Invalid (`bad-reason`).
    """
    held = [c for c in await registry.credentials(name) if c.kind is kind]
    ending = [c for c in held if c.state is not CredentialState.REVOKED]
    if not ending and await _is_news(registry, kind, name, crl_reason, act.now):
        ending = held
    if ending:
        # By fingerprint: a device may bear the holder's name, and its sessions are none of this.
        events = tuple(Event(EventKind.CREDENTIAL_ENDED, name, c.fingerprint.hex()) for c in ending)
        entry = made_by(act, f"{kind}.revoke", f"{kind} {name}", **given_reason(reason))
        change = Change(entry, (RevokeCredentials(kind, name, act.now),), events)
        await registry.commit(for_crls(change, crl_reason))
    return bool(ending)


async def end_certificates(registry: Registry, holders: Mapping[bytes, str], *, act: Act, **detail: str) -> None:
    """End the certificates in `holders`, a map of fingerprint to holder, and the sessions that use one. `detail` goes
    into the audit.

    Raises: Unavailable.
    """
    fingerprints = tuple(holders)
    for start in range(0, len(fingerprints), END_CHUNK):
        chunk = fingerprints[start : start + END_CHUNK]
        events = tuple(Event(EventKind.CREDENTIAL_ENDED, holders[each], each.hex()) for each in chunk)
        entry = made_by(act, "credential.end", "certificates", count=str(len(chunk)), **detail)
        await registry.commit(Change(entry, (EndCredentials(chunk, act.now),), events))


async def revoke_again(registry: Registry, holders: Mapping[bytes, str], crl_reason: CrlReason, *, act: Act) -> None:
    """Revoke the certificates in `holders`, a map of fingerprint to holder, whose revocation a restore has lost.

    Raises: Unavailable.
    """
    fingerprints = tuple(holders)
    for start in range(0, len(fingerprints), END_CHUNK):
        chunk = fingerprints[start : start + END_CHUNK]
        events = tuple(Event(EventKind.CREDENTIAL_ENDED, holders[each], each.hex()) for each in chunk)
        entry = made_by(act, "certificate.revoke", "certificates", count=str(len(chunk)))
        await registry.commit(for_crls(Change(entry, (RevokeSome(chunk, act.now),), events), crl_reason))


async def known_device(registry: Registry, id_text: str) -> Device:
    """Raises: Invalid (`bad-device-id`). NotFound (`no-such-device`)."""
    return known(await registry.device(device_id(id_text)), "device", id_text)


def moving(
    device: Device,
    to: DeviceState,
    action: str,
    *,
    act: Act,
    reason: str = "",
    revision: int | None = None,
    **detail: str,
) -> Change:
    """The Change that moves `device` to state `to`. With `revision` it conflicts unless the device still has it;
    without, a revocation holds whatever has happened meanwhile. `detail` is for the audit.

    Raises: Conflict (`device-STATE`): there is no such move. Invalid (`bad-reason`).
    """
    if to not in NEXT[device.state]:
        why = "already" if device.state is to else f"and cannot become {to}"
        raise Conflict(f"device-{device.state}", f"Device {device.id} is {device.state} {why}.")
    # From every state that may lead there, not just the one that was looked at: a device that is revoked while it
    # enrolls is revoked. But a resume answers a suspension and nothing else.
    resuming = device.state is DeviceState.SUSPENDED and to in IN_SERVICE
    allowed = {device.state} if resuming else {state for state, following in NEXT.items() if to in following}
    noted = None if to in IN_SERVICE else StateChange(device.id, to, act.now, act.actor, reason)
    writes: tuple[Write, ...] = (MoveDevice(device.id, frozenset(allowed), to, revision=revision, noted=noted),)
    events: tuple[Event, ...] = (Event(EventKind.DEVICE_STATE, device.id, to.value),)
    if to is DeviceState.SUSPENDED:
        writes += (HoldCredentials(CredentialKind.DEVICE, device.id, act.now),)
    if resuming:
        writes += (ReleaseCredentials(CredentialKind.DEVICE, device.id),)
    if to in OUT_OF_SERVICE:
        writes += (RevokeCredentials(CredentialKind.DEVICE, device.id, act.now, _CRL_REASONS[to]),)
        events += (Event(EventKind.CREDENTIAL_ENDED, device.id),)
    changed = differences({"state": device.state}, {"state": to})  # from the state that was looked at
    entry = made_by(act, action, f"device {device.id}", **given_reason(reason), **changed, **detail)
    return Change(entry, writes, events)


def checked_reason(reason: str) -> str:
    """`reason` itself, when it can stand in the audit. Raises: Invalid (`bad-reason`)."""
    if len(reason) > REASON_MAX or not reason.isprintable():
        raise Invalid("bad-reason", f"A reason is one line of at most {REASON_MAX} printable characters.")
    return reason


async def has_revoked(registry: Registry, ended: CredentialEnded) -> bool:
    """Whether a certificate that `ended` speaks of is revoked: after a superseded one its holder goes on.

    Raises: Unavailable.
    """
    return any(
        credential.state is CredentialState.REVOKED and ended.fingerprint in (None, credential.fingerprint)
        for credential in await registry.credentials(ended.holder)
    )


def given_reason(reason: str) -> dict[str, str]:
    """`reason` as detail of an audit entry; nothing when none was given. Raises: Invalid (`bad-reason`)."""
    return {"reason": checked_reason(reason)} if reason else {}
