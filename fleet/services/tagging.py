"""Tags and groups: labels by which people find devices, and by which bulk acts mean them."""

from dataclasses import replace

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, Event, EventKind, TagDevice
from fleet.domain.device import Device, Tags, device_id
from fleet.domain.errors import Conflict, NotFound
from fleet.domain.ports import Registry
from fleet.domain.tags import Retag, labels_detail
from fleet.services.revocation import checked_reason


async def tag_device(registry: Registry, id_text: str, retag: Retag, *, act: Act, reason: str = "") -> Device:
    """Give the device the tags and groups that `retag` makes of those it has. When it has them, nothing is written.

    Raises: Invalid: `bad-device-id`, `bad-reason`, `too-many-tags`, `too-many-groups`. NotFound (`no-such-device`).
    Conflict (`changed-meanwhile`): somebody else changed the device between our look and our write.
    """
    device = await registry.device(device_id(id_text))
    if device is None:
        raise NotFound("no-such-device", f"There is no device {id_text}.", "See: fleet device list")
    detail = {"reason": checked_reason(reason)} if reason else {}
    try:
        change, tagged = tagging(device, retag, act=act, **detail)
    except Conflict:  # it has them all
        return device
    await registry.commit(change)
    return tagged


def tagging(device: Device, retag: Retag, *, act: Act, **detail: str) -> tuple[Change, Device]:
    """The Change that retags `device` as it was seen, and what it is afterwards. `detail` goes into the audit.

    Raises: Invalid: `too-many-tags`, `too-many-groups`. Conflict (`tagged-already`): it would change nothing.
    """
    tags, groups = retag.applied(device)
    if (tags, groups) == (device.tags, device.groups):
        raise Conflict("tagged-already", f"Device {device.id} has these tags and groups already.")
    return relabelling(device, tags, groups, act=act, **detail)


def relabelling(
    device: Device, tags: Tags, groups: tuple[str, ...], *, act: Act, **detail: str
) -> tuple[Change, Device]:
    """The Change that gives `device`, as it was seen, these checked tags and groups, and what it is afterwards."""
    after = replace(device, tags=tags, groups=groups, revision=device.revision + 1)
    shown = labels_detail(device, "before_") | labels_detail(after, "after_")
    subject = f"device {device.id}"
    entry = AuditEntry(act.now, act.actor, "device.tag", subject, "ok", act.address, {**shown, **detail})
    write = TagDevice(device.id, tags, groups, device.revision)
    return Change(entry, (write,), (Event(EventKind.DEVICE_TAGGED, device.id),)), after
