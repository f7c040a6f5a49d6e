"""What a model says of MQTT to a device with certain tags: its overrides in place of the model's own words.

An override applies to the devices with its tag. Where several apply and say the same member, the first in the model's
list decides; what none says is as in the model.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import fields, replace

from fleet.domain.device import Device, Model
from fleet.domain.mqtt_rules import OVERRIDES_MAX, MqttOverride, MqttRules, check_mqtt_rules, must
from fleet.domain.tags import parse_tag

_RULES = frozenset(each.name for each in fields(MqttRules))


def deciding(device: Device, model: Model) -> dict[str, MqttOverride]:
    """The override of each member that one decides for `device`: of a model (`publish`), or of its MqttRules."""
    found: dict[str, MqttOverride] = {}
    for each in model.rules.mqtt.overrides:
        if tuple(each.tag.split("=", 1)) in device.tags:
            found = dict.fromkeys(each.said, each) | found
    return found


def model_of(device: Device, model: Model) -> Model:
    """`model` as it is for `device`."""
    if not model.rules.mqtt.overrides:
        return model
    said = {name: getattr(override, name) for name, override in deciding(device, model).items()}
    topics = {name: value for name, value in said.items() if name not in _RULES}
    return replace(model, rules=replace(model.rules, mqtt=_changed(model.rules.mqtt, said)), **topics)


def _changed(rules: MqttRules, said: Mapping[str, Any]) -> MqttRules:
    return replace(rules, **{name: value for name, value in said.items() if name in _RULES})


def all_filters(model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The filters by which any device of `model` may publish, and subscribe, by whatever tag."""
    said = [each.said for each in model.rules.mqtt.overrides]
    publish, subscribe = (
        tuple(dict.fromkeys((*own, *(text for each in said for text in each.get(name, ())))))
        for name, own in (("publish", model.publish), ("subscribe", model.subscribe))
    )
    return publish, subscribe


def any_other_client_ids(model: Model) -> bool:
    """Whether any device of `model` may have client ids besides its own id, by whatever tag."""
    rules = model.rules.mqtt
    return rules.other_client_ids or any(_changed(rules, each.said).other_client_ids for each in rules.overrides)


def depends_on_tags(model: Model) -> bool:
    """Whether what a device may do depends on its tags."""
    return bool(model.rules.mqtt.overrides) or any("{tag:" in each for kind in all_filters(model) for each in kind)


def with_override(rules: MqttRules, said: MqttOverride, *, first: bool = False) -> MqttRules:
    """`rules` in which the override for its tag says also what `said` says; a new one is the last, unless `first`."""
    tags = [each.tag for each in rules.overrides]
    old = tags.index(said.tag) if said.tag in tags else None
    new = said if old is None else replace(rules.overrides[old], **said.said)
    others = without_override(rules, said.tag).overrides
    place = 0 if first else len(others) if old is None else old
    return replace(rules, overrides=(*others[:place], new, *others[place:]))


def without_override(rules: MqttRules, tag: str) -> MqttRules:
    """`rules` with no override for `tag`."""
    return replace(rules, overrides=tuple(each for each in rules.overrides if each.tag != tag))


def check_overrides(rules: MqttRules) -> None:
    """Raises: Invalid: `bad-rule`, `bad-tag`."""
    must(len(rules.overrides) <= OVERRIDES_MAX, f"A model has at most {OVERRIDES_MAX} overrides.")
    tags = [parse_tag(each.tag) for each in rules.overrides]
    must(len(set(tags)) == len(tags), "Two overrides are for the same tag.", "Make one of them.")
    for each in rules.overrides:
        must(bool(each.said), f"The override for {each.tag} says nothing.", "Say what it changes, or remove it.")
        check_mqtt_rules(_changed(rules, each.said))
