"""Tags and groups: labels by which people find devices, and by which bulk acts mean them."""

from collections.abc import Iterable

from msgspec.structs import replace

from fleet.domain.access import Act
from fleet.domain.changes import Change, Event, EventKind, made_by
from fleet.domain.device import Device, Tags
from fleet.domain.errors import Conflict
from fleet.domain.ports import Registry
from fleet.domain.tags import Retag, checked_groups, checked_tags, tags_text
from fleet.domain.writes import TagDevice
from fleet.services.differences import differences
from fleet.services.revocation import given_reason


async def label_device(
    registry: Registry,
    device: Device,
    tags: Iterable[tuple[str, str]],
    groups: Iterable[str],
    *,
    act: Act,
    reason: str = "",
) -> Device:
    """Give `device`, as it was seen, these tags and groups and no others. When it has them, nothing is written.

    Raises: Invalid: `bad-reason`, `bad-tag`, `tag-twice`, `too-many-tags`, `bad-name`, `too-many-groups`. Conflict
    (`changed-meanwhile`).
    """
    detail = given_reason(reason)
    kept_tags, kept_groups = checked_tags(tags), checked_groups(groups)
    if (kept_tags, kept_groups) == (device.tags, device.groups):
        return device
    change, after = _labeling(device, kept_tags, kept_groups, act=act, **detail)
    await registry.commit(change)
    return after


def tagging(device: Device, retag: Retag, *, act: Act, **detail: str) -> tuple[Change, Device]:
    """The Change that retags `device` as it was seen, and what it is afterwards. `detail` goes into the audit.

    Raises: Invalid: `too-many-tags`, `too-many-groups`. Conflict (`tagged-already`): it would change nothing.
    """
    tags, groups = retag.applied(device)
    if (tags, groups) == (device.tags, device.groups):
        raise Conflict("tagged-already", f"Device {device.id} has these tags and groups already.")
    return _labeling(device, tags, groups, act=act, **detail)


def _labeling(device: Device, tags: Tags, groups: tuple[str, ...], *, act: Act, **detail: str) -> tuple[Change, Device]:
    """The Change that gives `device`, as it was seen, these checked tags and groups, and what it is afterwards."""
    after = replace(device, tags=tags, groups=groups, revision=device.revision + 1)
    changed = differences(_fields(device, after), _fields(after, device))
    entry = made_by(act, "device.tag", f"device {device.id}", **changed, **detail)
    write = TagDevice(device.id, tags, groups, device.revision)
    return Change(entry, (write,), (Event(EventKind.DEVICE_TAGGED, device.id),)), after


def _fields(device: Device, other: Device) -> dict[str, object]:
    """Its groups, and those of its tags that `other` does not have, for the audit."""
    return {"tags": tags_text(set(device.tags) - set(other.tags)), "groups": device.groups}
