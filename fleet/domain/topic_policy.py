"""Topic policy: MQTT topic filters that a device may publish and subscribe to.

A device may publish to a topic that one of its filters matches. It may subscribe to a filter only if a policy filter
covers everything that the requested filter could match: granting `#` and dropping messages at delivery would hide a
refusal.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from fleet.domain.device import Device, Model
from fleet.domain.errors import Invalid
from fleet.domain.mqtt_overrides import model_of
from fleet.domain.mqtt_rules import FILTER_SIZE_MAX, QOS_MAX
from fleet.domain.tags import TAG_KEY, tag_key
from fleet.wire.topic_filters import covers as covers
from fleet.wire.topic_filters import is_well_formed as is_well_formed
from fleet.wire.topic_filters import matches as matches

Refusal = Literal["", "topic", "qos", "retain", "shared", "dot"]
"""Why a policy does not allow something; "": it does. `dot`: of a subscription; a message's is `topic`."""

_SHARE = "$share/"
FLEET_TOPICS = "devices/{id}/fleet/#"
"""What the fleet itself sends to a device, which may subscribe to it whatever its model says."""
PRESENCE_TOPICS = "fleet/presence/#"
"""What the fleet says of who is connected: for applications whose model grants it."""
RESERVED = ("devices/+/fleet/#", PRESENCE_TOPICS)
"""Topics to which the fleet alone publishes, whatever a model says."""
_IS_RESERVED = re.compile("|".join(each.replace("+", "[^/]*").replace("/#", r"(?:/|\Z)") for each in RESERVED))
"""The same: asked of each new topic of a session, where `matches` would be most of the time that it takes."""
VARIABLES = "{id}, {model}, {tenant} and {tag:KEY}"
_VARIABLE = re.compile(rf"\{{(id|model|tenant|tag:{TAG_KEY})\}}")
# A part of one level: with /, +, #, or $ where a topic begins, a value would grant more than the template says; with
# braces it would be filled in again.
_FILLING = re.compile(r"[^/+#${}\x00-\x1f\x7f-\x9f]+")


def check_filter(text: str) -> str:
    """`text`, a well-formed topic filter for a policy (MQTT 5.0, 4.7). Raises: Invalid (`bad-topic-filter`)."""
    # A line break would add a line to a broker's ACL file, and a space at either end would be stripped there.
    # `$share` is a way to subscribe, not a topic.
    bad = not text.isprintable() or text != text.strip() or len(text) > FILTER_SIZE_MAX or text.startswith(_SHARE)
    if bad or not is_well_formed(text):
        raise Invalid(
            "bad-topic-filter",
            f"{text[:80]!r} is not a topic filter.",
            "+ and # stand for whole levels; # is allowed as the last level only: devices/{id}/up/#.",
        )
    return text


def is_reserved(topic: str) -> bool:
    """Whether the fleet alone publishes to `topic`."""
    return _IS_RESERVED.match(topic) is not None


def grants_reserved_alone(template: str) -> bool:
    """Whether a filter to publish, of a model, grants nothing, since all that it matches is reserved."""
    return any(covers(each, template) for each in RESERVED)


def shared_filter(topic_filter: str) -> str:
    """FILTER of `$share/GROUP/FILTER`; "" if it is not well-formed so far ([MQTT-4.8.2-1], [MQTT-4.8.2-2])."""
    parts = topic_filter.split("/", 2)
    is_shared = len(parts) == 3 and parts[0] == "$share" and bool(parts[1])
    return parts[2] if is_shared and not set(parts[1]) & {"+", "#"} else ""


def widened(old: Sequence[str], new: Sequence[str]) -> str:
    """The first filter of `new` that none of `old` covers, both templates; "" if none."""
    return next((each for each in new if not any(covers(outer, each) for outer in old)), "")


class TopicPolicy(Struct, frozen=True):
    """The filters of one device, with its id and model filled in."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    retain: bool = False
    """Whether its messages and its will may be retained."""
    qos_max: int = QOS_MAX
    """Of its messages, its will and what it subscribes to."""
    shared: bool = True
    """Whether its subscriptions may be shared ones."""
    dots: bool = True
    """Whether topics may have dots. False: the broker takes one for a slash, and the topic for another device's."""

    def refuses_always(self, topic: str) -> Literal["", "reserved", "dot"]:
        """Why the device may not publish to `topic` whatever its model says."""
        if is_reserved(topic):
            return "reserved"
        return "dot" if self._has_bad_dot(topic) else ""

    def _has_bad_dot(self, topic: str) -> bool:
        return not self.dots and "." in topic

    def may_publish(self, topic: str) -> bool:
        """Whether the device may publish to `topic`; false if it is empty, has a wildcard or is refused always."""
        if not topic or "+" in topic or "#" in topic or self.refuses_always(topic):
            return False
        return any(matches(f, topic) for f in self.publish)

    def flags_refusal(self, *, qos: int, retain: bool) -> Refusal:
        """Why it may not publish so, to whatever topic."""
        if qos > self.qos_max:
            return "qos"
        return "retain" if retain and not self.retain else ""

    def publish_refusal(self, topic: str, *, qos: int = 0, retain: bool = False) -> Refusal:
        """Why it may not send such a message, or leave it as a will."""
        return self.flags_refusal(qos=qos, retain=retain) if self.may_publish(topic) else "topic"

    def subscribe_refusal(self, topic_filter: str) -> Refusal:
        """Why it may not subscribe to `topic_filter`, `$share/GROUP/FILTER` or another."""
        is_shared = topic_filter.startswith(_SHARE)
        asked = shared_filter(topic_filter) if is_shared else topic_filter
        # `covers` walks well-formed filters only: it would find "a/#/b" within "a/#". What it does not find is refused
        # without a look at its wildcards, of which it may have thousands.
        if not any(covers(f, asked) for f in self.subscribe) or not is_well_formed(asked):
            return "topic"
        if self._has_bad_dot(asked):
            return "dot"
        return "shared" if is_shared and not self.shared else ""

    def is_narrower_than(self, other: "TopicPolicy") -> bool:
        """Whether it lacks something that `other` allows."""
        lost = widened(self.publish, other.publish) or widened(self.subscribe, other.subscribe)
        flags = (self.retain < other.retain, self.qos_max < other.qos_max, self.shared < other.shared)
        return bool(lost) or any(flags)

    def granted_qos(self, asked: int) -> int:
        """The QoS of a subscription for which `asked` is requested (MQTT 5.0, 3.9.3: the server may grant a lower)."""
        return min(asked, self.qos_max)

    def may_subscribe(self, topic_filter: str) -> bool:
        return not self.subscribe_refusal(topic_filter)

    def may_receive(self, topic: str) -> bool:
        """Whether a message on `topic` may be delivered to the device, whatever an earlier policy allowed."""
        return any(matches(f, topic) for f in self.subscribe)

    def may_ask_for_response(self, topic: str) -> bool:
        """Whether others may be asked for a response there: they publish with their own rights, not the device's."""
        return self.may_receive(topic) and not self.refuses_always(topic)


def is_per_device(template: str) -> bool:
    """Whether it makes another filter for each device of a model."""
    return "{id}" in template or "{tag:" in template


def reaches_every_device(template: str) -> bool:
    """Whether it covers topics beneath `devices/ID` for whatever ID: what applications are for."""
    first, _, rest = template.partition("/")
    return first == "#" or (first in ("devices", "+") and rest.partition("/")[0] in ("+", "#"))


def device_named(template: str) -> str:
    """The id of the one device beneath whose `devices/ID` it is, for whatever device of a model; "" if none."""
    levels = template.split("/")
    named = levels[1] if len(levels) > 2 and levels[0] == "devices" else ""
    return "" if {"{", "+", "#"} & set(named) else named


def check_variables(template: str) -> None:
    """Require that all braces are those of variables: a misspelled {ID} would silently be taken literally.

    Raises: Invalid: `bad-topic-filter`; `bad-tag`: a key that no tag can have.
    """
    left = _VARIABLE.sub("", template)
    if "{" in left or "}" in left:
        raise Invalid("bad-topic-filter", f"{template[:80]!r} holds braces other than {VARIABLES}.")
    for name in _VARIABLE.findall(template):
        if name.startswith("tag:"):
            tag_key(name.removeprefix("tag:"))


def unusable_variables(template: str, device: Device, model: Model) -> list[str]:
    """Names of those that have no value, or one that would be more than a part of one topic level."""
    values = _values(template, device, model)
    return [name for name in _names(template) if not _FILLING.fullmatch(values.get(name, ""))]


def filled(template: str, device: Device, model: Model) -> str | None:
    """The filter of `device` that `template` makes; None: a variable has no usable value, so it grants nothing."""
    return _filled(template, _names(template), _values(template, device, model))


def filled_for_model(template: str, model: Model) -> str | None:
    """The same with the model's values alone: {id} and {tag:KEY} stay."""
    values = {"model": model.name, "tenant": model.rules.tenant}
    return _filled(template, [name for name in _names(template) if name in values], values)


def _names(template: str) -> list[str]:
    return list(dict.fromkeys(_VARIABLE.findall(template)))


def _values(template: str, device: Device, model: Model) -> dict[str, str]:
    values = {"id": device.id, "model": model.name, "tenant": model.rules.tenant}
    return values | {f"tag:{key}": value for key, value in device.tags} if "{tag:" in template else values


def _filled(template: str, names: Sequence[str], values: Mapping[str, str]) -> str | None:
    for name in names:
        value = values.get(name, "")
        if not _FILLING.fullmatch(value):
            return None
        template = template.replace(f"{{{name}}}", value)
    return template


def policy_of(device: Device, model: Model) -> TopicPolicy:
    """The policy of `device` by its `model` and that's overrides, and what any device may receive of the fleet."""
    model = model_of(device, model)

    def fill(templates: Sequence[str]) -> tuple[str, ...]:
        found = (filled(each, device, model) for each in templates)
        return tuple(each for each in found if each is not None)

    rules = model.rules.mqtt
    return TopicPolicy(
        fill(model.publish),
        fill((*model.subscribe, FLEET_TOPICS)),
        model.retain,
        rules.qos_max,
        rules.shared_subscriptions,
    )
