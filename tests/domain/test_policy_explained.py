"""What is said of a policy is what the policy does."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.model_rules import ModelRules
from fleet.domain.mqtt_rules import MqttRules
from fleet.domain.policy_explained import Action, Attempt, explained
from fleet.domain.topic_policy import policy_of

SIZE_MAX = 16_777_216
CAM = Device(DeviceId("cam-7"), "cam", DeviceState.ACTIVE, datetime(2026, 3, 1, tzinfo=UTC))
MODEL = Model("cam", publish=("devices/{id}/up/#", "{model}/log"), subscribe=("devices/{id}/down/#", "news/+"))


def publish(topic: str, *, qos: int = 0, retain: bool = False, size: int = 0) -> Attempt:
    return Attempt(Action.PUBLISH, topic, qos, retain, size)


def subscribe(topic_filter: str) -> Attempt:
    return Attempt(Action.SUBSCRIBE, topic_filter)


@pytest.mark.parametrize(
    ("attempt", "rule", "expanded"),
    [
        (publish("devices/cam-7/up/a"), "devices/{id}/up/#", "devices/cam-7/up/#"),
        (publish("cam/log", qos=2), "{model}/log", "cam/log"),
        (subscribe("devices/cam-7/down/+"), "devices/{id}/down/#", "devices/cam-7/down/#"),
        (subscribe("$share/g/news/x"), "news/+", "news/+"),
    ],
)
def test_the_filter_that_grants(attempt: Attempt, rule: str, expanded: str) -> None:
    found = explained(CAM, MODEL, attempt, SIZE_MAX)
    assert (found.allowed, found.code, found.rule, found.expanded) == (True, "ok", rule, expanded)
    assert (found.source, found.advice) == ("model", "")


def test_filters_that_any_new_model_has_are_the_models_since_who_set_them_is_not_known() -> None:
    for attempt in (publish("devices/cam-7/up/a"), publish("other"), subscribe("devices/cam-7/down")):
        assert explained(CAM, Model("cam"), attempt, SIZE_MAX).source == "model"


@pytest.mark.parametrize(
    ("attempt", "advice"),
    [
        (
            publish("devices/cam-7/log"),
            "fleet model set cam --publish 'devices/{id}/up/#' --publish '{model}/log' --publish 'devices/{id}/log'",
        ),
        (
            subscribe("$share/g/a/b;c"),
            "fleet model set cam --subscribe 'devices/{id}/down/#' --subscribe news/+ --subscribe 'a/b;c'",
        ),
        (
            subscribe("news/#"),
            "fleet model set cam --subscribe 'devices/{id}/down/#' --subscribe news/+ --subscribe 'news/#'",
        ),
    ],
)
def test_no_filter_grants_it(attempt: Attempt, advice: str) -> None:
    found = explained(CAM, MODEL, attempt, SIZE_MAX)
    assert (found.allowed, found.code, found.rule, found.advice) == (False, "topic", "", advice)
    assert "cam-7" in found.message


@pytest.mark.parametrize(
    ("attempt", "advice"),
    [
        (publish("devices/cam-1/up/x"), "This is another device's topic."),
        (subscribe("devices/cam-1/down/#"), "This is another device's topic."),
        (subscribe("fleet/presence/#"), "Who is connected is for applications: "),
        (subscribe("fleet/presence/cam-1"), "Who is connected is for applications: "),
        (subscribe("devices/+/up/#"), "Topics of all devices are for applications: "),
    ],
)
def test_what_no_model_of_devices_should_grant_has_no_command(attempt: Attempt, advice: str) -> None:
    found = explained(CAM, MODEL, attempt, SIZE_MAX)
    assert (found.allowed, found.code) == (False, "topic")
    assert found.advice.startswith(advice)
    assert "fleet model set" not in found.advice


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        (DeviceState.SUSPENDED, "fleet device resume cam-7"),
        (DeviceState.REGISTERED, "fleet token create --device cam-7"),
        (DeviceState.REVOKED, "register the hardware under a new id"),
        (DeviceState.RETIRED, "register the hardware under a new id"),
    ],
)
def test_the_state_comes_first(state: DeviceState, advice: str) -> None:
    for topic in ("devices/cam-7/up/a", "other"):
        found = explained(replace(CAM, state=state), MODEL, publish(topic), SIZE_MAX)
        assert (found.allowed, found.code, found.source) == (False, f"device-{state}", "device")
        assert advice in found.advice


def test_retain() -> None:
    asked = publish("cam/log", retain=True)
    found = explained(CAM, MODEL, asked, SIZE_MAX)
    assert (found.code, found.rule, found.source) == ("retain", "retain = false", "model")
    assert found.advice == "fleet model set cam --retain"
    assert explained(CAM, replace(MODEL, retain=True), asked, SIZE_MAX).allowed
    assert explained(CAM, MODEL, publish("other", retain=True), SIZE_MAX).code == "topic"


def test_a_tag_that_is_absent() -> None:
    model = replace(MODEL, publish=("sites/{tag:site}/#",))
    found = explained(CAM, model, publish("sites/essen/a"), SIZE_MAX)
    assert (found.allowed, found.code) == (False, "topic")
    assert "{tag:site} grant nothing" in found.message
    assert found.advice.startswith("fleet device tag cam-7 site=VALUE, or: fleet model set cam --publish ")
    found = explained(replace(CAM, tags=(("site", "essen"),)), model, publish("sites/essen/a"), SIZE_MAX)
    assert (found.allowed, found.rule, found.expanded) == (True, "sites/{tag:site}/#", "sites/essen/#")


def ruled(**rules: Any) -> Model:
    return replace(MODEL, retain=True, rules=ModelRules(mqtt=MqttRules(**rules)))


def test_the_qos() -> None:
    model = ruled(qos_max=0)
    found = explained(CAM, model, publish("cam/log", qos=1, retain=True), SIZE_MAX)
    assert (found.allowed, found.code, found.rule) == (False, "qos", "qos_max = 0")
    assert found.advice == "fleet model set cam --max-qos 1"
    assert explained(CAM, model, publish("cam/log", retain=True), SIZE_MAX).allowed
    for asked, granted in ((0, 0), (1, 1), (2, 1)):
        found = explained(CAM, ruled(qos_max=1), Attempt(Action.SUBSCRIBE, "news/x", asked), SIZE_MAX)
        assert (found.allowed, found.granted_qos) == (True, granted)


def test_shared_subscriptions() -> None:
    model = ruled(shared_subscriptions=False)
    found = explained(CAM, model, subscribe("$share/g/news/x"), SIZE_MAX)
    assert (found.allowed, found.code, found.rule) == (False, "shared", "shared_subscriptions = false")
    assert found.advice == "fleet model set cam --shared-subscriptions"
    assert explained(CAM, model, subscribe("news/x"), SIZE_MAX).allowed
    assert explained(CAM, model, subscribe("$share/g/other"), SIZE_MAX).code == "topic"


def test_the_size_of_a_packet() -> None:
    small = replace(MODEL, rules=ModelRules(mqtt=MqttRules(packet_size_max=2_048)))
    assert explained(CAM, small, publish("cam/log", size=2_048), SIZE_MAX).allowed
    found = explained(CAM, small, publish("cam/log", size=2_049), SIZE_MAX)
    assert (found.code, found.source) == ("too-large", "model")
    assert found.advice == "fleet model set cam --max-packet-size 2049"
    found = explained(CAM, small, publish("cam/log", size=SIZE_MAX + 1), SIZE_MAX)
    assert found.advice == "fleet model set cam --max-packet-size 0"  # as much as fleet.toml allows
    found = explained(CAM, MODEL, publish("cam/log", size=SIZE_MAX + 1), SIZE_MAX)
    assert (found.code, found.source) == ("too-large", "fleet.toml")


LEVELS = st.sampled_from(("devices", "cam-7", "up", "down", "news", "cam", "log", "+", "#", "$share", "g", ""))


RULES = st.builds(MqttRules, qos_max=st.integers(0, 2), shared_subscriptions=st.booleans())


@given(st.lists(LEVELS, min_size=1, max_size=5).map("/".join), st.booleans(), st.integers(0, 2), RULES)
def test_it_says_what_the_policy_does(topic: str, retain: bool, qos: int, rules: MqttRules) -> None:
    model = replace(MODEL, rules=ModelRules(mqtt=rules))
    policy = policy_of(CAM, model)
    sent, subscribed = publish(topic, retain=retain, qos=qos), subscribe(topic)
    refusal = policy.publish_refusal(topic, retain=retain, qos=qos)
    assert explained(CAM, model, sent, SIZE_MAX).code == (refusal or "ok")
    assert explained(CAM, model, subscribed, SIZE_MAX).code == (policy.subscribe_refusal(topic) or "ok")


@pytest.mark.parametrize("publish_filter", ["devices/{id}/up/#", "devices/#", "devices/{id}/fleet/#"])
def test_what_is_the_fleets(publish_filter: str) -> None:
    model = replace(MODEL, publish=(publish_filter,))
    for topic in ("devices/cam-7/fleet/renew", "devices/cam-8/fleet/renew", "fleet/presence/cam-7"):
        found = explained(CAM, model, publish(topic), SIZE_MAX)
        assert (found.allowed, found.code, found.rule, found.source) == (False, "reserved", "reserved", "fleet")
    found = explained(CAM, model, subscribe("$share/g/devices/cam-7/fleet/+"), SIZE_MAX)
    assert (found.allowed, found.rule, found.source, found.granted_qos) == (True, "reserved", "fleet", 0)
    assert found.expanded == "devices/cam-7/fleet/#"
    assert explained(CAM, model, subscribe("devices/cam-8/fleet/#"), SIZE_MAX).code == "topic"
