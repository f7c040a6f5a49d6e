"""Whether a device may publish or subscribe, by which rule, and what to change: the gateway's own judgement, explained.

Every verdict comes from what the gateway asks (`must_be_active`, `lowered`, `TopicPolicy`); here it only gets its
reasons.
"""

import enum
import shlex
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from fleet.domain.device import Device, Model, must_be_active, next_step
from fleet.domain.errors import Refused
from fleet.domain.model_rules import ModelKind
from fleet.domain.mqtt_overrides import deciding, model_of
from fleet.domain.mqtt_rules import MqttOverride, lowered
from fleet.domain.topic_policy import (
    FLEET_TOPICS,
    PRESENCE_TOPICS,
    Refusal,
    TopicPolicy,
    covers,
    device_named,
    filled,
    is_reserved,
    policy_of,
    reaches_every_device,
    shared_filter,
    unusable_variables,
)


class Action(enum.StrEnum):
    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"


class Attempt(Struct, frozen=True):
    """What a device would send."""

    action: Action
    topic: str
    """A topic filter in a SUBSCRIBE."""
    qos: int = 0
    retain: bool = False
    size: int = 0
    """Bytes of the packet, as `packet_size_max` counts them; 0: not asked."""


BY_FLEET = "reserved"

Source = Literal["device", "model", "override", "fleet.toml", "fleet"]
"""Where a rule comes from; `fleet`: whatever the model says."""


class Explanation(Struct, frozen=True):
    allowed: bool
    code: str
    """`ok`, or why not: `device-STATE`, `too-large`, `reserved`, `dot`, or what `TopicPolicy` has."""
    message: str
    rule: str = ""
    """As it is written; "": no filter grants it."""
    expanded: str = ""
    """A filter with the device's own values in place of variables."""
    source: Source = "model"
    override: str = ""
    """The tag of the model's override that has the rule; "": none has."""
    advice: str = ""
    """What to change."""
    granted_qos: int | None = None
    """Of a subscription."""


class _Judged(Struct, frozen=True):
    """What decides about a device."""

    device: Device
    model: Model
    """As it is for the device."""
    overrides: dict[str, MqttOverride]
    """Those that decide, by member."""

    def source(self, member: str) -> Source:
        return "override" if member in self.overrides else "model"

    def tag(self, member: str) -> str:
        return self.overrides[member].tag if member in self.overrides else ""

    def command(self, member: str) -> str:
        """The beginning of the one that changes it."""
        if member in self.overrides:
            return f"fleet model override {self.model.name} {shlex.quote(self.overrides[member].tag)}"
        return f"fleet model set {self.model.name}"

    def filters(self, action: Action) -> tuple[str, ...]:
        return self.model.publish if action is Action.PUBLISH else self.model.subscribe

    def denied(self, member: str, code: str, message: str, rule: str, advice: str) -> Explanation:
        return Explanation(False, code, message, rule, "", self.source(member), self.tag(member), advice)


def explained(
    device: Device, model: Model, attempt: Attempt, packet_size_max: int, *, dots: bool = True
) -> Explanation:
    """Whether `device` may do it, in the order in which the gateway decides; `packet_size_max` is fleet.toml's, and
    `dots` whether topics may have dots at the broker.
    """
    try:
        must_be_active(device)
    except Refused as refused:
        advice = next_step(device)
        return Explanation(False, refused.code, refused.message, f"state {device.state}", "", "device", "", advice)
    if not dots and ("." in device.id or "." in attempt.topic):
        message, advice = "The broker takes a dot in a topic for a slash.", "Choose topics and device ids without dots."
        return Explanation(False, "dot", message, "refuse_dots = true", "", "fleet.toml", "", advice)
    judged = _Judged(device, model_of(device, model), deciding(device, model))
    if attempt.size > lowered(packet_size_max, judged.model.rules.mqtt.packet_size_max):
        return _too_large(judged, attempt, packet_size_max)
    policy = policy_of(device, model)
    if attempt.action is Action.PUBLISH:
        refusal = policy.publish_refusal(attempt.topic, qos=attempt.qos, retain=attempt.retain)
    else:
        refusal = policy.subscribe_refusal(attempt.topic)
    if refusal == "topic" and attempt.action is Action.PUBLISH and is_reserved(attempt.topic):
        message, advice = "The fleet alone publishes here.", "Devices publish elsewhere, such as devices/{id}/up/#."
        return Explanation(False, BY_FLEET, message, BY_FLEET, "", "fleet", "", advice)
    if refusal == "topic":
        return _ungranted(judged, attempt)
    if refusal:
        return _forbidden(judged, refusal, attempt)
    return _granted(judged, attempt, policy)


def _too_large(judged: _Judged, attempt: Attempt, packet_size_max: int) -> Explanation:
    member = "packet_size_max"
    limit = lowered(packet_size_max, judged.model.rules.mqtt.packet_size_max)
    message, rule = f"A packet may have at most {limit} bytes.", f"packet_size_max = {limit}"
    if limit == packet_size_max:
        advice = "Raise packet_size_max of [mqtt] in fleet.toml."
        return Explanation(False, "too-large", message, rule, "", "fleet.toml", "", advice)
    wanted = attempt.size if attempt.size <= packet_size_max else 0
    return judged.denied(member, "too-large", message, rule, f"{judged.command(member)} --max-packet-size {wanted}")


_FORBIDDEN: dict[Refusal, tuple[str, str, str]] = {
    "retain": ("retain", "Its messages may not be retained.", "--retain"),
    "shared": ("shared_subscriptions", "It may have no shared subscriptions.", "--shared-subscriptions"),
}
"""The rule, which is false, what that means, and the option that lifts it."""


def _forbidden(judged: _Judged, refusal: Refusal, attempt: Attempt) -> Explanation:
    if refusal == "qos":
        limit = judged.model.rules.mqtt.qos_max
        member, option = "qos_max", f"--max-qos {attempt.qos}"
        message = f"QoS {attempt.qos} exceeds the maximum QoS {limit}."
        rule = f"qos_max = {limit}"
    else:
        member, message, option = _FORBIDDEN[refusal]
        rule = f"{member} = false"
    return judged.denied(member, refusal, message, rule, f"{judged.command(member)} {option}")


def _granted(judged: _Judged, attempt: Attempt, policy: TopicPolicy) -> Explanation:
    for template in judged.filters(attempt.action):
        expanded = filled(template, judged.device, judged.model)
        one = () if expanded is None else (expanded,)
        if attempt.action is Action.PUBLISH:
            found = replace(policy, publish=one).may_publish(attempt.topic)
        else:
            found = replace(policy, subscribe=one).may_subscribe(attempt.topic)
        if found:
            message, source = f"The {judged.model.rules.kind} may {attempt.action} here.", judged.source(attempt.action)
            tag = judged.tag(attempt.action)
            qos = None if attempt.action is Action.PUBLISH else policy.granted_qos(attempt.qos)
            return Explanation(True, "ok", message, template, expanded or "", source, tag, granted_qos=qos)
    # Two filters never grant together what neither does: it is what the fleet sends to any device.
    expanded, qos = filled(FLEET_TOPICS, judged.device, judged.model), policy.granted_qos(attempt.qos)
    message = "Any device may subscribe here."
    return Explanation(True, "ok", message, BY_FLEET, expanded or "", "fleet", granted_qos=qos)


def _ungranted(judged: _Judged, attempt: Attempt) -> Explanation:
    device, model, filters = judged.device, judged.model, judged.filters(attempt.action)
    tag = judged.tag(attempt.action)
    of = "" if model.rules.kind is ModelKind.DEVICE else f"{model.rules.kind} "
    owner = f"{of}model {model.name} for {tag}" if tag else f"{of}model {model.name}"
    what = f"None of the {attempt.action} filters of {owner} covers it"
    wanted = _template(shared_filter(attempt.topic) or attempt.topic, device)
    options = " ".join(f"--{attempt.action} {shlex.quote(each)}" for each in (*filters, wanted))
    advice = f"{judged.command(attempt.action)} {options}"
    lacking = [name for template in filters for name in unusable_variables(template, device, model)]
    if lacking:
        names = ", ".join(f"{{{name}}}" for name in dict.fromkeys(lacking))
        what += f" (those with {names} grant nothing: it has no value, or one with /, +, # or $)"
    if tags := [name.removeprefix("tag:") for name in lacking if name.startswith("tag:")]:
        advice = f"fleet device tag {device.id} {tags[0]}=VALUE, or: {advice}"
    if not of:
        advice = _for_others(wanted) or advice
    shown = [each for each in (filled(template, device, model) for template in filters) if each is not None]
    listed = f": {', '.join(shown)}." if shown else "."
    return judged.denied(attempt.action, "topic", what + listed, "", advice)


def _for_others(wanted: str) -> str:
    """The advice where no model of devices should grant the filter `wanted`; "" where one may."""
    if device_named(wanted):
        return "This is another device's topic."
    if covers(PRESENCE_TOPICS, wanted):
        return "Who is connected is for applications: fleet model add NAME --application --subscribe 'fleet/presence/#'"
    if reaches_every_device(wanted):
        return "Topics of all devices are for applications: fleet model add NAME --application"
    return ""


def _template(topic: str, device: Device) -> str:
    """`topic` for every device of the model: its own id, where that is a level, becomes {id}."""
    return "/".join("{id}" if level == device.id else level for level in topic.split("/"))
