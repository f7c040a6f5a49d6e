"""Trust anchors: device manufacturers' CAs (IEEE 802.1AR); `fleet.ca.trust_anchor` checks an imported one."""

import hashlib
from collections.abc import Sequence

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.device import plain_name
from fleet.domain.errors import Invalid, known
from fleet.domain.idevid import Anchor
from fleet.domain.ports import Registry
from fleet.domain.writes import DropAnchor, Insert, Write
from fleet.services.inventory import must_be_of_devices
from fleet.services.revocation import given_reason

ANCHORS_MAX = 256  # each is named to every client in the handshake
MODELS_MAX = 64


async def add_anchor(registry: Registry, name: str, models: Sequence[str], der: bytes, *, act: Act) -> Anchor:
    """Trust certificates under the manufacturer's CA `der`, for `models`, from now on.

    Raises: Invalid: `bad-name`, `bad-anchor-models`, `too-many-anchors`. NotFound (`no-such-model`). Refused
    (`application-model`). Conflict (`anchor-exists`).
    """
    plain_name(name, "manufacturer's CA")
    if not 1 <= len(models) <= MODELS_MAX:
        raise Invalid("bad-anchor-models", f"A manufacturer's CA is trusted for 1 to {MODELS_MAX} models.")
    for model in models:
        await must_be_of_devices(registry, model)
    if len(await registry.anchors()) >= ANCHORS_MAX:
        raise Invalid("too-many-anchors", f"There are {ANCHORS_MAX} manufacturers' CAs already.", "Remove one first.")
    fingerprint = hashlib.sha256(der).digest()
    anchor = Anchor(name, tuple(dict.fromkeys(models)), fingerprint, der, act.now)
    detail = {"models": " ".join(anchor.models), "sha256": fingerprint.hex()}
    await registry.commit(_change("add", "added", name, Insert(anchor), act, detail))
    return anchor


async def remove_anchor(registry: Registry, name: str, *, act: Act, reason: str = "") -> None:
    """No longer trust it. Devices that enrolled with its certificates stay, each bound to its IDevID.

    Raises: NotFound (`no-such-anchor`), Invalid (`bad-reason`).
    """
    anchor = known(next((each for each in await registry.anchors() if each.name == name), None), "anchor", name)
    detail = {"sha256": anchor.fingerprint.hex(), **given_reason(reason)}
    await registry.commit(_change("remove", "removed", name, DropAnchor(name), act, detail))


def _change(verb: str, done: str, name: str, write: Write, act: Act, detail: dict[str, str]) -> Change:
    entry = made_by(act, f"anchor.{verb}", f"anchor {name}", **detail)
    return Change(entry, (write,), (Event(EventKind.ANCHOR_CHANGED, name, done),))
