"""Restore of revocations: applies to a restored registry everything revoked since its backup.

Every right revoked since is revoked again. No right granted since is granted again: devices enrolled, renewed or
resumed after the backup need a new token, or are resumed by hand.
"""

import asyncio
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.approval import RequestFilter, RequestState
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.claim import claim_state
from fleet.domain.credential import USABLE, CredentialKind, CredentialState, token_state
from fleet.domain.crl import CrlReason, Revocation
from fleet.domain.device import (
    BARRED_MODEL,
    IN_SERVICE,
    NEXT,
    OUT_OF_SERVICE,
    Device,
    DeviceFilter,
    DeviceState,
    Model,
    device_id,
)
from fleet.domain.distrust import rule_of
from fleet.domain.model_rules import DEFAULT_RULES
from fleet.domain.ports import Registry
from fleet.domain.tags import TAGS_MAX
from fleet.domain.writes import Insert, TagDevice
from fleet.services.anchors import remove_anchor
from fleet.services.approvals import deny
from fleet.services.bulk import DONE, FIRST, STEP_DEVICES_MAX, StepPlace, one_step
from fleet.services.claims import quarantine_claim, revoke_claim
from fleet.services.distrust import begin
from fleet.services.inventory import revoke_token
from fleet.services.revocation import MOVES, end_certificates, moving, revoke_again

RESTORE_TAG = "restore"
"""Tag of devices suspended by a restore; its value identifies the restore."""

AS_BEFORE = "as before the restore"

_OUT = OUT_OF_SERVICE | {DeviceState.SUSPENDED}
CHUNK = 500  # devices barred in one Change
LISTED_AT_ONCE = 5_000  # certificates in one transaction


class Reapplied(Struct, frozen=True):
    """Changes made to a restored registry."""

    devices: int = 0
    """Suspended, revoked or retired again."""
    certificates: int = 0
    """Certificates in the backup, ended or revoked again."""
    tokens: int = 0
    """Tokens open in the backup, now revoked: each may have been used since."""
    requests: int = 0
    """Approvals not used at the backup, now denied, likewise."""
    unknown: tuple[str, ...] = ()
    """Devices added since the backup; their certificates are refused as unknown."""
    barred: tuple[str, ...] = ()
    """Likewise, but suspended, revoked or retired since: barred by a record under BARRED_MODEL."""
    resumed: tuple[str, ...] = ()
    """Devices resumed since the backup, which stay suspended."""
    claims: tuple[str, ...] = ()
    """Claims open in the backup, now in quarantine."""
    anchors: tuple[str, ...] = ()
    """Trust anchors removed since the backup, removed again."""


Listed = Mapping[str, tuple[Revocation, bytes]]
"""What CRLs have listed, as RevokedCertificates reads it."""
_ENDED_ONLY = frozenset({CrlReason.SUPERSEDED, CrlReason.CERTIFICATE_HOLD, CrlReason.REMOVE_FROM_CRL})
"""Reasons that are also, or only, of certificates that have not been revoked."""


async def reapply(registry: Registry, events: Sequence[Event], *, act: Act, listed: Listed | None = None) -> Reapplied:
    """Apply to `registry`, restored from a backup, the revocations among later `events`. A certificate that ended and
    is `listed` as revoked permanently is revoked with that reason, and its key with it; any other ends.

    Raises: Conflict: the registry was changed concurrently. Unavailable.
    """
    states = {e.subject: DeviceState(e.detail) for e in events if e.kind == EventKind.DEVICE_STATE}
    devices = 0
    unknown: list[str] = []
    barred: dict[str, DeviceState] = {}
    resumed: list[str] = []
    for id_, state in states.items():
        device = await registry.device(id_)
        if device is None and state in _OUT:
            barred[id_] = state
        elif device is None:
            unknown.append(id_)
        elif state in _OUT and state in NEXT[device.state]:
            [verb] = [verb for verb, to in MOVES.items() if to is state]
            await registry.commit(moving(device, state, f"device.{verb}", act=act, reason=AS_BEFORE))
            devices += 1
        elif state in IN_SERVICE and device.state is DeviceState.SUSPENDED:
            resumed.append(id_)
    await _bar(registry, barred, act)
    ended = await _end_certificates(registry, events, listed or {}, act)
    anchors = await _remove_anchors(registry, events, act)
    await _distrust(registry, events, act)
    await _revoke_claims(registry, events, act)
    claims = await _quarantine_open_claims(registry, act)
    tokens = await _revoke_open_tokens(registry, act)
    return Reapplied(
        devices,
        ended,
        tokens,
        await _deny_approved_requests(registry, act),
        tuple(sorted(unknown)),
        tuple(sorted(barred)),
        resumed=tuple(sorted(resumed)),
        claims=claims,
        anchors=anchors,
    )


async def list_again(registry: Registry, listed: Listed) -> None:
    """CRLs list what is `listed`, with the reasons: also certificates that `registry` does not know, because they were
    issued after its state.

    Raises: Unavailable.
    """
    revoked = [each for each in listed.values() if each[0].reason != CrlReason.REMOVE_FROM_CRL]
    for start in range(0, len(revoked), LISTED_AT_ONCE):
        await registry.add_revoked(revoked[start : start + LISTED_AT_ONCE])


async def _bar(registry: Registry, barred: Mapping[str, DeviceState], act: Act) -> None:
    """Add a record for each that refuses it. Without one an unknown device counts as new, and a revoked one
    could enroll again by its IDevID.
    """
    if barred and await registry.model(BARRED_MODEL) is None:
        rules = replace(DEFAULT_RULES, admission=replace(DEFAULT_RULES.admission, paths=()))
        model = Model(BARRED_MODEL, publish=(), subscribe=(), rules=rules)
        entry = made_by(act, "model.add", f"model {BARRED_MODEL}", reason=AS_BEFORE)
        await registry.commit(Change(entry, (Insert(model),)))
    everybody = sorted(barred)
    for start in range(0, len(everybody), CHUNK):
        ids = everybody[start : start + CHUNK]
        entry = made_by(act, "device.bar", "devices", count=str(len(ids)), reason=AS_BEFORE)
        devices = [Device(device_id(id_), BARRED_MODEL, barred[id_], act.now) for id_ in ids]
        events = tuple(Event(EventKind.DEVICE_STATE, device.id, device.state.value) for device in devices)
        await registry.commit(Change(entry, tuple(map(Insert, devices)), events))


async def _remove_anchors(registry: Registry, events: Sequence[Event], act: Act) -> tuple[str, ...]:
    """Trust anchors removed since; one that was added again must be reviewed and added by hand."""
    removed = {e.subject for e in events if e.kind == EventKind.ANCHOR_CHANGED and e.detail == "removed"}
    found = tuple(anchor.name for anchor in await registry.anchors() if anchor.name in removed)
    for name in found:
        await remove_anchor(registry, name, act=act, reason=AS_BEFORE)
    return found


async def _distrust(registry: Registry, events: Sequence[Event], act: Act) -> None:
    """Rules made since, and not undone since."""
    made = {e.subject: e.detail for e in events if e.kind == EventKind.DISTRUST_CHANGED}
    for rule in await registry.distrusts():
        made.pop(rule.id, None)
    for id_, text in made.items():
        if text:
            rule = replace(rule_of(id_, text), created_by=act.actor, reason=AS_BEFORE)
            if rule.issued_before >= rule.created_at:  # of everything until then: of renewals while it was lost, too
                rule = replace(rule, issued_before=max(rule.issued_before, act.now))
            await begin(registry, rule, act=act)


async def _revoke_claims(registry: Registry, events: Sequence[Event], act: Act) -> None:
    revoked = {e.subject for e in events if e.kind == EventKind.CLAIM_STATE and e.detail == "revoked"}
    for claim in await registry.claims():
        if claim.name in revoked and claim.revoked_at is None:
            await revoke_claim(registry, claim.name, act=act, reason=AS_BEFORE)


async def _quarantine_open_claims(registry: Registry, act: Act) -> tuple[str, ...]:
    """The number of uses since the backup is unknown: quarantined until an operator releases it."""
    found = tuple(claim.name for claim in await registry.claims() if claim_state(claim, act.now) == "open")
    for name in found:
        await quarantine_claim(registry, name, act=act, reason="restored: its uses since the backup are not known")
    return found


async def _end_certificates(registry: Registry, events: Sequence[Event], listed: Listed, act: Act) -> int:
    ending = [e for e in events if e.kind == EventKind.CREDENTIAL_ENDED]
    whole = {e.subject for e in ending if not e.detail}
    named = {bytes.fromhex(e.detail) for e in ending if e.detail}
    fresh: dict[bytes, str] = {}
    revoked: dict[CrlReason, dict[bytes, str]] = {}
    for holder in sorted({e.subject for e in ending}):
        for credential in await registry.credentials(holder):
            # Events about a whole holder are of devices only; a station or operator may have a device's name.
            is_whole = holder in whole and credential.kind is CredentialKind.DEVICE
            if credential.state is CredentialState.REVOKED or not (is_whole or credential.fingerprint in named):
                continue
            reason = CrlReason(listed[credential.serial][0].reason) if credential.serial in listed else None
            if reason is not None and reason not in _ENDED_ONLY:
                revoked.setdefault(reason, {})[credential.fingerprint] = holder
            elif credential.state in USABLE:
                fresh[credential.fingerprint] = holder
    await end_certificates(registry, fresh, act=act)
    for reason, holders in sorted(revoked.items()):
        await revoke_again(registry, holders, reason, act=act)
    return len(fresh) + sum(map(len, revoked.values()))


async def _revoke_open_tokens(registry: Registry, act: Act) -> int:
    still_open = [token for token in await registry.tokens() if token_state(token, act.now) == "open"]
    for token in still_open:
        await revoke_token(registry, token.id, act=act)
    return len(still_open)


async def _deny_approved_requests(registry: Registry, act: Act) -> int:
    count, after = 0, ""
    where = RequestFilter(state=RequestState.APPROVED)
    while page := await registry.requests(where, now=act.now, after=after):
        for request in page:
            await deny(registry, request.id, act=act, reason="restored from a backup: it may have been used since")
            count += 1
        after = page[-1].id
    return count


class _SuspendUnverified(Struct, frozen=True):
    """Suspends a device of unknown revocation state, and tags it with `restore`."""

    restore: str
    act: Act

    async def must_be_permitted(self) -> None:
        """A restore is made at the home."""

    async def follow_up(self, registry: Registry, device: Device) -> str:
        return DONE

    async def change(self, registry: Registry, device: Device) -> Change:
        about = {"reason": "restored without its revocations", "bulk": self.restore}
        to, revision = DeviceState.SUSPENDED, device.revision
        change = moving(device, to, "device.suspend", act=self.act, revision=revision, **about)
        tags = tuple(sorted({**dict(device.tags), RESTORE_TAG: self.restore}.items()))
        if len(tags) > TAGS_MAX:
            return change
        label = TagDevice(device.id, tags, device.groups, device.revision + 1)
        events = (*change.events, Event(EventKind.DEVICE_TAGGED, device.id))
        return replace(change, writes=(*change.writes, label), events=events)


async def suspend_all(registry: Registry, restore: str, *, act: Act) -> Reapplied:
    """Suspend every device that could connect, as any may have been revoked since, revoke open tokens, and withdraw
    unused approvals.

    Raises: FleetError: for the first device that could not be suspended.
    """
    devices = 0
    doubt, never = _SuspendUnverified(restore, act), asyncio.Event()
    filters = [DeviceFilter(state=state) for state in sorted(IN_SERVICE)]
    place: StepPlace | None = FIRST
    while place is not None:
        step = await one_step(registry, filters, doubt, place, at_most=STEP_DEVICES_MAX, stop=never)
        for outcome in step.outcomes:
            outcome.must_be_done()
        devices, place = devices + len(step.outcomes), step.following
    tokens = await _revoke_open_tokens(registry, act)
    claims = await _quarantine_open_claims(registry, act)
    requests = await _deny_approved_requests(registry, act)
    return Reapplied(devices=devices, tokens=tokens, requests=requests, claims=claims)
