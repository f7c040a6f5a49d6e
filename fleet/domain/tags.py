"""Tags and groups of devices: syntax, limits and changes."""

import json
import re
from collections.abc import Iterable
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import force_setattr

from fleet.domain.device import Device, Tags, plain_name
from fleet.domain.errors import Invalid

TAGS_MAX = 32  # of a device: labels for selection, not a data store
GROUPS_MAX = 16
TAG_VALUE_MAX = 128  # characters

RESERVED_KEYS = frozenset(
    {"id", "kind", "model", "state", "group", "groups", "expires", "tag", "tags", "and", "or", "not"}
)
"""Words reserved by device filters."""

TAG_KEY = r"[A-Za-z][A-Za-z0-9._-]{0,31}"
_KEY = re.compile(TAG_KEY)


class Retag(Struct, frozen=True):
    """A change of a device's tags and groups: set, removed, the rest unchanged."""

    tags: Tags = ()
    remove: tuple[str, ...] = ()
    """Keys; missing ones are ignored."""
    join: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    """Groups; ones that it is not in are ignored."""

    def __post_init__(self) -> None:
        """Raises: Invalid: `bad-tag`, `bad-name`, `tag-twice`, `nothing-to-tag`."""
        force_setattr(self, "tags", checked_tags(self.tags))
        for key in self.remove:
            tag_key(key)
        for group in (*self.join, *self.leave):
            plain_name(group, "group")
        both = sorted({key for key, _ in self.tags} & set(self.remove) | set(self.join) & set(self.leave))
        if both:
            raise Invalid("tag-twice", f"{both[0]!r} is both set and removed.", "Say one of the two.")
        if not (self.tags or self.remove or self.join or self.leave):
            raise Invalid("nothing-to-tag", "No tag and no group is named.", "Give KEY=VALUE, or a group.")

    def applied(self, device: Device) -> tuple[Tags, tuple[str, ...]]:
        """The resulting tags and groups of `device`, sorted. Raises: Invalid: `too-many-tags`, `too-many-groups`."""
        tags = {key: value for key, value in device.tags if key not in self.remove} | dict(self.tags)
        groups = (set(device.groups) - set(self.leave)) | set(self.join)
        return checked_tags(tags.items()), checked_groups(groups)


def tag_key(text: str) -> str:
    """`text`, a valid tag key. Raises: Invalid (`bad-tag`)."""
    if not _KEY.fullmatch(text):
        advice = "Use 1 to 32 letters, digits, dots, dashes or underscores, starting with a letter."
        raise Invalid("bad-tag", f"{text[:80]!r} is not a tag's key.", advice)
    if text.lower() in RESERVED_KEYS:
        advice = "Filters use this word for something else; choose another."
        raise Invalid("bad-tag", f"{text!r} cannot be a tag's key.", advice)
    return text


def tag_value(text: str) -> str:
    """`text`, a valid tag value. Raises: Invalid (`bad-tag`)."""
    if not 1 <= len(text) <= TAG_VALUE_MAX or not text.isprintable() or text != text.strip():
        advice = f"Use 1 to {TAG_VALUE_MAX} printable characters, no space at either end."
        raise Invalid("bad-tag", f"{text[:80]!r} is not a tag's value.", advice)
    return text


def checked_tags(pairs: Iterable[tuple[str, str]]) -> Tags:
    """`pairs`, sorted and validated as the tags of a device.

    Raises: Invalid: `bad-tag`, `tag-twice`, `too-many-tags`.
    """
    tags = sorted((tag_key(key), tag_value(value)) for key, value in pairs)
    for (key, _), (following, _) in pairwise(tags):
        if key == following:
            raise Invalid("tag-twice", f"The tag {key} is given twice.", "Give one value for each key.")
    if len(tags) > TAGS_MAX:
        message = f"A device has at most {TAGS_MAX} tags; these are {len(tags)}."
        raise Invalid("too-many-tags", message, "Remove one that is not used.")
    return tuple(tags)


def checked_groups(names: Iterable[str]) -> tuple[str, ...]:
    """`names`, without duplicates, sorted and validated as the groups of a device.

    Raises: Invalid: `bad-name`, `too-many-groups`.
    """
    groups = sorted({plain_name(name, "group") for name in names})
    if len(groups) > GROUPS_MAX:
        message = f"A device is in at most {GROUPS_MAX} groups; these are {len(groups)}."
        raise Invalid("too-many-groups", message, "Take it out of one first.")
    return tuple(groups)


def tags_text(tags: Iterable[tuple[str, str]]) -> str:
    """`tags` for an audit row, as a JSON object; "" when there are none."""
    sorted_tags = dict(sorted(tags))
    return json.dumps(sorted_tags, ensure_ascii=False) if sorted_tags else ""


def parse_tag(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as a tag. Raises: Invalid (`bad-tag`)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise Invalid("bad-tag", f"{text[:80]!r} is not a tag.", "Write KEY=VALUE.")
    return tag_key(key), tag_value(value)
