"""Distrust of certificates by model, CA, kind of key and time of issue: counting, beginning and undoing a rule.

rule = checked(rule, ...)                        what it would cover, unless it is no rule
scope = await counted(registry, rule)            how many devices, of which models: reads each device
await begin(registry, rule, act=act)             in force at once; live sessions under it end by one event
await revoke_some(registry, rule, operation)     in steps, until none is left
await revoke_certificates(registry, rule, operation)   then those of devices that have others by now
"""

import asyncio
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.credential import USABLE, Credential, CredentialKind
from fleet.domain.device import Device
from fleet.domain.distrust import DISTRUSTS_MAX, Distrust, refusing, rule_text
from fleet.domain.errors import Invalid, known
from fleet.domain.ports import Registry
from fleet.domain.writes import DropDistrust, Insert, RevokeSome
from fleet.services.bulk import STEP_DEVICES_MAX, WINDOW, Outcome, Revoke, act_on_one
from fleet.services.inventory import known_model
from fleet.services.revocation import checked_reason, for_crls, given_reason

FIRST_SHOWN = 10
STEP_CERTIFICATES_MAX = 500
SKEW_MAX = timedelta(minutes=5)  # between the clocks of an operator's machine and ours


class Scope(Struct, frozen=True):
    """Devices in service whose newest certificate a rule covers."""

    matched: int
    models: dict[str, int]
    first: list[str]
    """Ids of the first few."""


def new_id() -> str:
    return secrets.token_hex(6)


async def checked(registry: Registry, rule: Distrust, now: datetime) -> Distrust:
    """`rule`, if it can be made at `now`; of what was issued until then, whatever the caller's clock.

    Raises: Invalid: `bad-distrust`, `bad-reason`, `too-many-distrusts`. NotFound (`no-such-model`).
    """
    checked_reason(rule.reason)
    is_by_time = rule.issued_from is not None or rule.issued_before < rule.created_at
    if not (rule.model or rule.issuer_key_id or rule.key_type or is_by_time):
        raise Invalid("bad-distrust", "A distrust names a model, a CA, a key type or times of issue.")
    rule = replace(rule, issued_before=min(rule.issued_before, now)) if rule.issued_before <= now + SKEW_MAX else rule
    if rule.issued_before > now or (rule.issued_from is not None and rule.issued_from >= rule.issued_before):
        raise Invalid(
            "bad-distrust",
            "The times of issue are not in order: from the first up to the second, which is not in the future.",
            "Use now as the second: what is issued later is decided by the model's key types and the present CA.",
        )
    if rule.model:
        await known_model(registry, rule.model)
    if len(await registry.distrusts()) >= DISTRUSTS_MAX:
        raise Invalid("too-many-distrusts", f"There are {DISTRUSTS_MAX} distrusts already.", "Undo one first.")
    return rule


async def counted(registry: Registry, rule: Distrust) -> Scope:
    """What `rule` covers now. Raises: Unavailable."""
    models = dict(await registry.count_distrusted(rule))
    first = await registry.distrusted(rule, FIRST_SHOWN) if models else []
    return Scope(sum(models.values()), models, first)


async def rules_over(registry: Registry, device: Device) -> list[Distrust]:
    """Those in force that cover the newest certificate of `device`. Raises: Unavailable."""
    rules = await registry.distrusts()
    if not rules:
        return []
    newest = await _newest(registry, device.id)
    return [rule for rule in rules if newest is not None and rule.covers(device.model, newest)]


async def is_refused(registry: Registry, device: Device, rules: Sequence[Distrust]) -> bool:
    """Whether one of `rules` refuses the newest certificate of `device`. Raises: Unavailable."""
    newest = await _newest(registry, device.id) if rules else None
    return newest is not None and refusing(rules, device.model, newest) is not None


async def _newest(registry: Registry, device_id: str) -> Credential | None:
    held = [c for c in await registry.credentials(device_id) if c.kind is CredentialKind.DEVICE and c.state in USABLE]
    return held[-1] if held else None


async def begin(registry: Registry, rule: Distrust, *, act: Act) -> None:
    """Put `rule`, which has been checked and counted, in force. Raises: Conflict, Unavailable."""
    shown = {"model": rule.model, "ca_key_id": rule.issuer_key_id.hex(), "key_type": rule.key_type}
    shown |= {"issued_from": rule.issued_from.isoformat() if rule.issued_from is not None else ""}
    detail = {name: value for name, value in shown.items() if value}
    detail |= {"issued_before": rule.issued_before.isoformat(), "devices": str(rule.matched)}
    detail |= {"refuses": "yes" if rule.refuses else "no", "renewal": "yes" if rule.may_renew else "no"}
    entry = made_by(act, "distrust.begin", f"distrust {rule.id}", **detail, **given_reason(rule.reason))
    event = Event(EventKind.DISTRUST_CHANGED, rule.id, rule_text(rule))
    await registry.commit(Change(entry, (Insert(rule),), (event,)))


async def known_distrust(registry: Registry, id_: str) -> Distrust:
    """Raises: NotFound (`no-such-distrust`)."""
    return known(next((rule for rule in await registry.distrusts() if rule.id == id_), None), "distrust", id_)


async def revoke_some(registry: Registry, rule: Distrust, operation: Revoke) -> list[Outcome]:
    """Do `operation` to the first STEP_DEVICES_MAX devices under `rule`, each as it was seen: one that has got another
    certificate meanwhile is left alone. A further step finds those that are left.

    Raises: what `operation.must_be_permitted` raises, asked before each WINDOW of them. Unavailable.
    """
    ids = await registry.distrusted(rule, STEP_DEVICES_MAX)
    outcomes: list[Outcome] = []
    for start in range(0, len(ids), WINDOW):
        await operation.must_be_permitted()
        # Shielded: the client may disconnect, and what has begun is finished all the same.
        acts = (_revoke_one(registry, rule, operation, id_) for id_ in ids[start : start + WINDOW])
        outcomes += await asyncio.shield(asyncio.gather(*acts))
    return outcomes


async def revoke_certificates(registry: Registry, rule: Distrust, operation: Revoke) -> int:
    """Revoke the first STEP_CERTIFICATES_MAX certificates under `rule`, superseded ones too; how many these were. It is
    for when no device is left under it: a device that has got another certificate goes on with that.

    Raises: what `operation.must_be_permitted` raises. Unavailable.
    """
    act = operation.act()
    ending = await registry.distrusted_certificates(rule, act.now, STEP_CERTIFICATES_MAX)
    if ending:
        await operation.must_be_permitted()
        detail = {"count": str(len(ending)), "distrust": rule.id, "bulk": operation.bulk}
        entry = made_by(act, "credential.revoke", "certificates", **detail, **given_reason(operation.reason))
        events = tuple(Event(EventKind.CREDENTIAL_ENDED, each.holder, each.fingerprint.hex()) for each in ending)
        write = RevokeSome(tuple(each.fingerprint for each in ending), act.now)
        await registry.commit(for_crls(Change(entry, (write,), events), operation.what))
    return len(ending)


async def _revoke_one(registry: Registry, rule: Distrust, operation: Revoke, id_: str) -> Outcome:
    device = await registry.device(id_)  # read first: an issue after this changes its revision
    newest = await _newest(registry, id_)
    if device is None or newest is None or not rule.covers(device.model, newest):
        return Outcome(id_, "not-distrusted", "It has another certificate now.")
    return await act_on_one(registry, device, operation)


async def undo(registry: Registry, rule: Distrust, *, act: Act, reason: str = "") -> None:
    """End `rule`: certificates that it refused, and that have not ended since, are accepted again.

    Raises: Conflict (`no-such-distrust`): it was undone meanwhile. Invalid (`bad-reason`).
    """
    entry = made_by(act, "distrust.undo", f"distrust {rule.id}", **given_reason(reason))
    event = Event(EventKind.DISTRUST_CHANGED, rule.id)
    await registry.commit(Change(entry, (DropDistrust(rule.id),), (event,)))
