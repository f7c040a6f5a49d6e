"""Claim certificates: enrolled, quarantined, released, revoked; and the consequences of misuse.

| request | consequence |
| --- | --- |
| shown to the MQTT gateway, to simplereenroll, or to the HTTP API | quarantine |
| asked for a device of another model, or under another's label | quarantine |
| asked for an identity that has an owner | refused; more than TAKEOVERS_MAX times: quarantine |
| expired, used up, a bad CSR | refused |

Quarantine is in the registry before the refusal is answered, and holds on every node until an operator releases it.
"""

from contextlib import suppress
from datetime import datetime
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.claim import MISUSE, TAKEOVERS, TAKEOVERS_MAX, Claim, claim_state, must_be_open
from fleet.domain.credential import Credential, CredentialKind
from fleet.domain.crl import CrlReason
from fleet.domain.device import checked_lifetime, plain_name
from fleet.domain.errors import Conflict, Invalid, known
from fleet.domain.peer import Peer
from fleet.domain.ports import Issuer, Registry
from fleet.domain.writes import (
    AddCredential,
    CountTakeover,
    HoldCredentials,
    Insert,
    QuarantineClaim,
    ReleaseClaim,
    RevokeClaim,
    RevokeCredentials,
    Write,
)
from fleet.services.differences import differences
from fleet.services.inventory import must_be_of_devices
from fleet.services.revocation import KEPT_REASON, checked_reason, for_crls, given_reason, revoke_certificates

QUOTA_MAX = 1_000_000

BY_WORD = "an operator's word"
"""Why a claim is in quarantine, when an operator has put it there and said no more."""

WATCH = "watch"
"""The actor of a quarantine that nobody has ordered."""


class NewClaim(Struct, frozen=True):
    """A claim to enroll."""

    name: str
    model: str
    quota: int
    """Maximum number of devices that it may enroll."""
    spki_der: bytes
    """Its public key, a DER SubjectPublicKeyInfo."""
    expires_at: datetime


async def enroll_claim(registry: Registry, issuer: Issuer, new: NewClaim, *, act: Act) -> tuple[Claim, Credential]:
    """Record a claim together with a certificate for its key: both, or neither. CRLs have that on hold.

    Raises: Invalid: `bad-name`, `bad-quota`, `bad-lifetime`. NotFound (`no-such-model`). Conflict (`claim-exists`,
    `key-taken`). Refused: `application-model`; the issuer cannot sign that long.
    """
    from fleet.domain.enrollment import permit_by_operator  # a listing at a home does without

    name, model, quota = plain_name(new.name, "claim"), new.model, new.quota
    if not 1 <= quota <= QUOTA_MAX:
        raise Invalid("bad-quota", f"A claim allows 1 to {QUOTA_MAX} certificates.")
    checked_lifetime(new.expires_at - act.now)
    await must_be_of_devices(registry, model)
    if await registry.claim(name) is not None:
        raise Conflict("claim-exists", f"Claim {name} exists already.", "Choose another name.")
    permit = permit_by_operator(CredentialKind.CLAIM, name, new.spki_der, new.expires_at, act.now, model=model)
    credential = issuer.issue(permit, act.now)
    claim = Claim(name, model, quota, 0, act.now, credential.not_after)
    detail = {"serial": credential.serial, "expires": credential.not_after.isoformat()}
    entry = made_by(act, "claim.create", f"claim {name}", model=model, quota=str(quota), **detail)
    events = (
        Event(EventKind.CREDENTIAL_ISSUED, name, credential.fingerprint.hex()),
        Event(EventKind.CLAIM_STATE, name, "created"),
    )
    # It is for our EST alone, a whole batch has its key, and its name may be a device's: relying parties refuse it.
    held = HoldCredentials(CredentialKind.CLAIM, name, act.now)
    await registry.commit(Change(entry, (Insert(claim), AddCredential(credential), held), events))
    return claim, credential


async def known_claim(registry: Registry, name: str) -> Claim:
    """Raises: NotFound (`no-such-claim`)."""
    return known(await registry.claim(name), "claim", name)


def moved(claim: Claim, verb: str, now: datetime, reason: str = "") -> Claim:
    """What `claim` becomes by `verb`, as in `move`. Raises: Invalid (`bad-reason`)."""
    match verb:
        case "revoke":
            return replace(claim, revoked_at=claim.revoked_at or now)
        case "quarantine":
            why = checked_reason(reason) or BY_WORD
            return replace(claim, quarantined_at=now, quarantine_reason=why)
        case _:
            return replace(claim, quarantined_at=None, quarantine_reason="", takeovers=0)


_BECOMES = {"revoke": "revoked", "quarantine": "quarantined", "release": "released"}


async def move(
    verb: str,
    registry: Registry,
    name: str,
    *,
    act: Act,
    reason: str = "",
    crl_reason: CrlReason = CrlReason.UNSPECIFIED,
) -> None:
    """Revoke, quarantine or release the claim, by `verb`; CRLs give `crl_reason` for a revocation.

    Raises: NotFound (`no-such-claim`). Conflict: `claim-gone`, `claim-not-open`, `claim-not-quarantined`. Invalid
    (`bad-reason`).
    """
    claim, to = await known_claim(registry, name), _BECOMES[verb]
    kind = CredentialKind.CLAIM
    was_revoked = verb == "revoke" and claim.revoked_at is not None  # what CRLs say may become keyCompromise
    if was_revoked:
        if await revoke_certificates(registry, kind, name, act=act, reason=reason, crl_reason=crl_reason):
            return
        raise Conflict("claim-gone", f"Claim {name} is revoked already.", KEPT_REASON)
    events = [Event(EventKind.CLAIM_STATE, name, to)]
    writes: tuple[Write, ...] = (ReleaseClaim(name),)
    if verb == "revoke":
        writes = (RevokeClaim(name, act.now), RevokeCredentials(kind, name, act.now))
        held = [c for c in await registry.credentials(name) if c.kind is kind]
        # By fingerprint: a device may bear the claim's name, and its sessions are none of this.
        events = [*(Event(EventKind.CREDENTIAL_ENDED, name, c.fingerprint.hex()) for c in held), *events]
    elif verb == "quarantine":
        writes = (QuarantineClaim(name, act.now, checked_reason(reason) or BY_WORD),)
    changed = differences({"state": claim_state(claim, act.now)}, {"state": to})
    entry = made_by(act, f"claim.{verb}", f"claim {name}", **given_reason(reason), **changed)
    await registry.commit(for_crls(Change(entry, writes, tuple(events)), crl_reason))


revoke_claim = partial(move, "revoke")
"""Revoke it permanently, with its certificate. Devices that it enrolled stay."""
quarantine_claim = partial(move, "quarantine")
"""Suspend it until it is released."""
release_claim = partial(move, "release")
"""End its quarantine; it may be used again within its quota and validity."""


async def misused(registry: Registry, claim: Claim, code: str, peer: Peer, now: datetime) -> None:
    """Record that `claim` was refused with `code`, if that is misuse: a takeover is counted, the rest quarantines it.
    Durable when this returns.

    Raises: Refused: `claim-quarantined`, `claim-revoked`: others at the same moment have used the takeovers up.
    Unavailable.
    """
    if claim.quarantined_at is not None or claim.revoked_at is not None:
        return
    act, reason = Act(WATCH, now, peer.address), MISUSE.get(code, "")
    if code in TAKEOVERS:
        if await _counted(registry, claim.name, code, act):
            return
        reason = f"it asked more than {TAKEOVERS_MAX} times for an identity that has an owner"
    if not reason:
        return
    entry = made_by(act, "claim.quarantine", f"claim {claim.name}", reason=reason, refusal=code)
    event = Event(EventKind.CLAIM_STATE, claim.name, "quarantined")
    try:
        await registry.commit(Change(entry, (QuarantineClaim(claim.name, now, reason),), (event,)))
    except Conflict:  # others have just quarantined or revoked it
        if code in TAKEOVERS:
            must_be_open(await known_claim(registry, claim.name))


async def _counted(registry: Registry, name: str, code: str, act: Act) -> bool:
    """Count a takeover; False when there were as many as may be. Of many at once no more are counted."""
    while (claim := await known_claim(registry, name)).takeovers < TAKEOVERS_MAX:
        must_be_open(claim)
        count = claim.takeovers + 1
        entry = made_by(act, "claim.takeover", f"claim {name}", refusal=code, count=str(count))
        with suppress(Conflict):
            await registry.commit(Change(entry, (CountTakeover(name, count),)))
            return True
    return False
