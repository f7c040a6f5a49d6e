"""What of the feed an operator sees, and whether it is about a device."""

import json
from collections.abc import Callable

from fleet.domain.access import Operator
from fleet.domain.changes import Event, EventKind
from fleet.domain.credential import CredentialKind
from fleet.domain.ports import Registry
from fleet.domain.presence import decode_notices

_ISSUED_OR_ENDED = (EventKind.CREDENTIAL_ISSUED, EventKind.CREDENTIAL_SUPERSEDED, EventKind.CREDENTIAL_ENDED)


async def visible(
    registry: Registry, operator: Operator, event: Event, where: Callable[[Event], bool] = lambda event: True
) -> list[Event]:
    """`event`, and many sessions in one event as an event for each; those of `where` that `operator` may see."""
    parts = [event]
    if event.kind == EventKind.SESSIONS_CHANGED:
        notices = decode_notices(event)
        parts = [Event(each.kind, each.device_id, json.dumps(each.members), event.seq) for each in notices]
    return [each for each in parts if where(each) and await _may_see(registry, operator, each)]


async def is_about(registry: Registry, device_id: str, event: Event) -> bool:
    """Whether `event`, whose `concerns` is true, is the device's: another holder may have a name like its id."""
    if event.kind in _ISSUED_OR_ENDED and event.detail:
        facts = await registry.holder_facts(bytes.fromhex(event.detail))
        return facts is None or facts.credential.kind is CredentialKind.DEVICE
    return concerns(device_id, event)


def concerns(device_id: str, event: Event) -> bool:
    """Whether `event` names the device where it would name one."""
    if event.kind == EventKind.REQUEST_PENDING:
        return event.detail == device_id
    return event.subject == device_id and event.kind.startswith(("device.", "credential.", "session."))


async def _may_see(registry: Registry, operator: Operator, event: Event) -> bool:
    if not operator.models:
        return True
    if event.kind == EventKind.MODEL_CHANGED:
        return operator.sees(event.subject)
    if event.kind in (EventKind.REQUEST_PENDING, EventKind.REQUEST_DECIDED):
        request = await registry.request(event.subject)
        return request is not None and operator.sees(request.model)
    if event.kind == EventKind.CLAIM_STATE:
        claim = await registry.claim(event.subject)
        return claim is not None and operator.sees(claim.model)
    if event.kind in (EventKind.ANCHOR_CHANGED, EventKind.DEVICES_IMPORTED, EventKind.DISTRUST_CHANGED):
        return False  # of many models at once
    if event.kind in _ISSUED_OR_ENDED and event.detail:
        facts = await registry.holder_facts(bytes.fromhex(event.detail))
        if facts is None or facts.credential.kind is not CredentialKind.DEVICE:
            return False
    device = await registry.device(event.subject)
    return device is not None and operator.sees(device.model)
