"""Tags and groups of a device, put in place of those it had by somebody who has seen them."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace

from fleet.domain.access import Act
from fleet.domain.changes import AuditEntry, Change, TagDevice
from fleet.domain.device import Device, Tags, plain_name
from fleet.domain.errors import Invalid
from fleet.domain.ports import Registry

TAGS_MAX = 32  # of a device: they are labels to find it by, not a store of its own
GROUPS_MAX = 16
TAG_VALUE_MAX = 128  # characters
TAG_KEY = r"[A-Za-z][A-Za-z0-9._-]{0,31}"


async def label_device(
    registry: Registry, device: Device, tags: Iterable[tuple[str, str]], groups: Iterable[str], *, act: Act
) -> Device:
    """Give `device`, as it was seen, these tags and groups and no others.

    Raises: Invalid: `bad-tag`, `too-many-tags`, `bad-name`, `too-many-groups`. Conflict (`changed-meanwhile`).
    """
    write = TagDevice(device.id, _checked_tags(tags), _checked_groups(groups), device.revision)
    after = replace(device, tags=write.tags, groups=write.groups, revision=device.revision + 1)
    detail = {"tags": json.dumps(dict(after.tags), ensure_ascii=False), "groups": " ".join(after.groups)}
    audit = AuditEntry(act.now, act.actor, "device.tag", f"device {device.id}", "ok", act.address, detail)
    await registry.commit(Change(audit, (write,)))
    return after


def _checked_tags(pairs: Iterable[tuple[str, str]]) -> Tags:
    tags = sorted(pairs)
    for key, value in tags:
        if not re.fullmatch(TAG_KEY, key):
            advice = "Use 1 to 32 letters, digits, dots, dashes or underscores, starting with a letter."
            raise Invalid("bad-tag", f"{key[:80]!r} is not a tag's key.", advice)
        if not 1 <= len(value) <= TAG_VALUE_MAX or not value.isprintable() or value != value.strip():
            advice = f"Use 1 to {TAG_VALUE_MAX} printable characters, no space at either end."
            raise Invalid("bad-tag", f"{value[:80]!r} is not a tag's value.", advice)
    if len(tags) > TAGS_MAX:
        raise Invalid("too-many-tags", f"A device has at most {TAGS_MAX} tags.")
    return tuple(tags)


def _checked_groups(names: Iterable[str]) -> tuple[str, ...]:
    groups = sorted({plain_name(name, "group") for name in names})
    if len(groups) > GROUPS_MAX:
        raise Invalid("too-many-groups", f"A device is in at most {GROUPS_MAX} groups.")
    return tuple(groups)
