"""Topic policy: MQTT topic filters that a device may publish and subscribe to.

A device may publish to a topic that one of its filters matches. It may subscribe to a filter only if a policy filter
covers everything that the requested filter could match: granting `#` and dropping messages at delivery would hide a
refusal.
"""

from collections.abc import Sequence

from msgspec import Struct

from fleet.domain.device import Device, Model
from fleet.domain.errors import Invalid

FILTERS_MAX = 64  # of each kind in a model: each is tried for a new topic


def check_filter(text: str) -> str:
    """`text`, a well-formed topic filter for a policy (MQTT 5.0, 4.7). Raises: Invalid (`bad-topic-filter`)."""
    # A line break would add a line to a broker's ACL file, and a space at either end would be stripped there.
    # `$share` is a way to subscribe, not a topic.
    bad = not text.isprintable() or text != text.strip() or len(text) > 1024 or text.startswith("$share/")
    if bad or not is_well_formed(text):
        raise Invalid(
            "bad-topic-filter",
            f"{text[:80]!r} is not a topic filter.",
            "+ and # stand for whole levels, # only at the end: devices/{id}/up/#.",
        )
    return text


def is_well_formed(text: str) -> bool:
    """Whether a non-empty string has wildcards only where a topic filter may (MQTT 5.0, 4.7.1)."""
    levels = text.split("/")
    return bool(text) and not (
        any("#" in level and (level != "#" or n != len(levels) - 1) for n, level in enumerate(levels))
        or any("+" in level and level != "+" for level in levels)
    )


def matches(topic_filter: str, topic: str) -> bool:
    """Whether `topic_filter` matches `topic`, which has no wildcards (MQTT 5.0, 4.7)."""
    # [MQTT-4.7.2-1] A filter that starts with a wildcard never matches a topic that starts with $.
    if topic[:1] == "$" and topic_filter[:1] in ("#", "+"):
        return False
    return covers(topic_filter, topic)


def covers(outer: str, inner: str) -> bool:
    """Whether every topic that the filter `inner` matches is matched by the filter `outer` too."""
    if inner[:1] == "$" and outer[:1] in ("#", "+"):
        return False
    want, have = outer.split("/"), inner.split("/")
    for n, level in enumerate(want):
        if level == "#":
            return True  # "a/#" covers "a" as well: [MQTT-4.7.1-2] the parent level is included
        if n >= len(have):
            return False
        if have[n] == "#" or (have[n] == "+" and level != "+") or (level != "+" and level != have[n]):
            return False
    # "a/#" within "a/b": have is longer; "a" within "a/#" has ended in the loop above.
    return len(have) == len(want)


def widened(old: Sequence[str], new: Sequence[str]) -> str:
    """The first filter of `new` that none of `old` covers, both templates; "" if none."""
    return next((each for each in new if not any(covers(outer, each) for outer in old)), "")


class TopicPolicy(Struct, frozen=True):
    """The filters of one device, with its id and model filled in."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    retain: bool = False
    """Whether its messages and its will may be retained."""

    def may_publish(self, topic: str) -> bool:
        """Whether the device may publish to `topic`; false if it is empty or has a wildcard."""
        if not topic or "+" in topic or "#" in topic:
            return False
        return any(matches(f, topic) for f in self.publish)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether the device may subscribe to `topic_filter`, without its `$share/GROUP/` prefix."""
        if topic_filter.startswith("$share/"):
            parts = topic_filter.split("/", 2)
            # [MQTT-4.8.2-1], [MQTT-4.8.2-2]
            if len(parts) < 3 or not parts[1] or "+" in parts[1] or "#" in parts[1]:
                return False
            topic_filter = parts[2]
        # `covers` walks well-formed filters only: it would find "a/#/b" within "a/#".
        return is_well_formed(topic_filter) and any(covers(f, topic_filter) for f in self.subscribe)

    def may_receive(self, topic: str) -> bool:
        """Whether a message on `topic` may be delivered to the device, whatever an earlier policy allowed."""
        return any(matches(f, topic) for f in self.subscribe)


def policy_of(device: Device, model: Model) -> TopicPolicy:
    """The policy of `device` by its `model`. A device id has no wildcard or slash, so filling it in is safe."""

    def fill(text: str) -> str:
        return text.replace("{id}", device.id).replace("{model}", model.name)

    return TopicPolicy(tuple(map(fill, model.publish)), tuple(map(fill, model.subscribe)), model.retain)
