"""What a model says to devices with a tag: which override decides, what it may say, and how it is explained."""

import json
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import ModelRules, rules_json, rules_of
from fleet.domain.mqtt_overrides import all_filters, depends_on_tags, model_of, with_override, without_override
from fleet.domain.mqtt_rules import OVERRIDES_MAX, MqttOverride, MqttRules
from fleet.domain.policy_explained import Action, Attempt, explained
from fleet.domain.topic_policy import policy_of
from fleet.services.differences import differences
from fleet.services.inventory import checked_model

SIZE_MAX = 16_777_216
CAM = Device(DeviceId("cam-7"), "cam", DeviceState.ACTIVE, datetime(2026, 3, 1, tzinfo=UTC))
GOLD = MqttOverride("tier=gold", publish=("gold/{id}/#",), qos_max=1, packet_size_max=2_048)
OSLO = MqttOverride("site=oslo=1", qos_max=0, subscribe=(), retain=True, messages_per_second=7)


def model(*overrides: MqttOverride) -> Model:
    return Model("cam", rules=ModelRules(mqtt=MqttRules(overrides=overrides, subscriptions_max=5)))


def tagged(**tags: str) -> Device:
    return replace(CAM, tags=tuple(sorted(tags.items())))


def test_a_device_without_the_tag_has_the_models_own() -> None:
    cam = model(GOLD, OSLO)
    for device in (CAM, tagged(tier="silver"), tagged(gold="tier"), tagged(site="oslo")):
        assert model_of(device, cam) == cam
        assert policy_of(device, cam) == policy_of(CAM, Model("cam"))


def test_the_first_in_the_list_decides_what_two_say_and_the_rest_adds_up() -> None:
    both = tagged(tier="gold", site="oslo=1")
    for overrides, qos in (((GOLD, OSLO), 1), ((OSLO, GOLD), 0)):
        found = model_of(both, model(*overrides))
        assert (found.publish, found.subscribe, found.retain) == (("gold/{id}/#",), (), True)
        rules = found.rules.mqtt
        assert (rules.qos_max, rules.packet_size_max, rules.messages_per_second) == (qos, 2_048, 7)
        assert (rules.subscriptions_max, rules.bytes_per_second) == (5, 4_194_304)  # as the model has them
        policy = policy_of(both, model(*overrides))
        assert (policy.publish, policy.qos_max, policy.retain) == (("gold/cam-7/#",), qos, True)
        assert policy.subscribe == ("devices/cam-7/fleet/#",)  # what any device may


def test_an_override_keeps_its_place_and_what_it_said_and_a_new_one_is_the_last() -> None:
    rules, silver = MqttRules(overrides=(GOLD, OSLO)), MqttOverride("tier=silver", retain=True)
    assert with_override(rules, silver).overrides == (GOLD, OSLO, silver)
    assert with_override(rules, silver, first=True).overrides == (silver, GOLD, OSLO)
    more = MqttOverride("tier=gold", qos_max=0, retain=True)
    both = replace(GOLD, qos_max=0, retain=True)
    assert with_override(rules, more).overrides == (both, OSLO)
    last = replace(OSLO, qos_max=2)
    assert with_override(rules, MqttOverride(OSLO.tag, qos_max=2)).overrides == (GOLD, last)
    assert with_override(rules, MqttOverride(OSLO.tag, qos_max=2), first=True).overrides == (last, GOLD)
    assert with_override(rules, MqttOverride(OSLO.tag), first=True).overrides == (OSLO, GOLD)
    assert without_override(rules, "tier=gold") == replace(rules, overrides=(OSLO,))
    assert without_override(rules, "tier=silver") == rules


def test_what_any_device_of_the_model_may() -> None:
    assert all_filters(model(GOLD, OSLO)) == (("devices/{id}/up/#", "gold/{id}/#"), ("devices/{id}/down/#",))
    assert [depends_on_tags(each) for each in (model(GOLD), model(), Model("cam", publish=("{tag:a}",)))] == [
        True,
        False,
        True,
    ]


def test_overrides_survive_json_and_say_no_more_than_was_said() -> None:
    rules = model(GOLD, OSLO).rules
    stored = json.loads(json.dumps(rules_json(rules)))
    assert rules_of(stored) == rules
    assert stored["mqtt"]["overrides"][1] == {
        "tag": "site=oslo=1", "subscribe": [], "retain": True, "qos_max": 0, "messages_per_second": 7}  # fmt: skip
    assert rules_of({"mqtt": {"qos_max": 1}}, rules).mqtt.overrides == (GOLD, OSLO)
    assert checked_model(model(GOLD, OSLO)).rules == rules


def test_the_audit_has_them_in_words() -> None:
    found = differences({"overrides": []}, {"overrides": rules_json(model(GOLD).rules)["mqtt"]["overrides"]})
    assert found["after"] == "overrides=tag=tier=gold,publish=gold/{id}/#,qos_max=1,packet_size_max=2048"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ([{"tag": "tier=gold"}], "bad-rule"),  # says nothing
        ([{"tag": "tier=gold", "qos_max": 1}, {"tag": "tier=gold", "qos_max": 0}], "bad-rule"),
        ([{"tag": f"a{n}=b", "qos_max": 1} for n in range(OVERRIDES_MAX + 1)], "bad-rule"),
        ([{"tag": "gold", "qos_max": 1}], "bad-tag"),
        ([{"tag": "model=cam", "qos_max": 1}], "bad-tag"),  # a reserved word
        ([{"tag": "a= ", "qos_max": 1}], "bad-tag"),
        ([{"tag": "a=b", "qos_max": 3}], "bad-rule"),
        ([{"tag": "a=b", "qos_max": None}], "bad-rule"),
        ([{"tag": "a=b", "packet_size_max": 5}], "bad-rule"),
        ([{"tag": "a=b", "bytes_per_second": 5}], "bad-rule"),
        ([{"tag": "a=b", "client_id": "some"}], "bad-rule"),
        ([{"tag": "a=b", "sessions_max": 17}], "bad-rule"),
        ([{"tag": "a=b", "on_denied": "drop"}], "bad-rule"),
        ([{"tag": "a=b", "burst_seconds": 5}], "bad-rule"),  # the model's alone
        ([{"tag": "a=b", "check_response_topic": False}], "bad-rule"),
        ([{"tag": "a=b", "publish": "x"}], "bad-rule"),
        ([{"tag": "a=b", "publish": ["x#"]}], "bad-topic-filter"),
        ([{"tag": "a=b", "subscribe": ["{ID}"]}], "bad-topic-filter"),
        ([{"tag": "a=b", "subscribe": [str(n) for n in range(65)]}], "bad-rule"),
        ([{"qos_max": 1}], "bad-rule"),
        (["a=b"], "bad-rule"),
        ({"a=b": {}}, "bad-rule"),
    ],
)
def test_what_no_override_can_be(given: object, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        checked_model(Model("cam", rules=rules_of({"mqtt": {"overrides": given}})))
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("attempt", "code", "tag", "advice"),
    [
        (
            Attempt(Action.PUBLISH, "devices/cam-7/up/a"),
            "topic",
            "tier=gold",
            "fleet model override cam tier=gold --publish 'gold/{id}/#' --publish 'devices/{id}/up/a'",
        ),
        (Attempt(Action.PUBLISH, "gold/cam-7/a"), "ok", "tier=gold", ""),
        (
            Attempt(Action.PUBLISH, "gold/cam-7/a", qos=2),
            "qos",
            "tier=gold",
            "fleet model override cam tier=gold --max-qos 2",
        ),
        (
            Attempt(Action.PUBLISH, "gold/cam-7/a", size=2_049),
            "too-large",
            "tier=gold",
            "fleet model override cam tier=gold --max-packet-size 2049",
        ),
        (Attempt(Action.PUBLISH, "gold/cam-7/a", retain=True), "retain", "", "fleet model set cam --retain"),
        (Attempt(Action.SUBSCRIBE, "devices/cam-7/down/a"), "ok", "", ""),
    ],
)
def test_policy_test_names_the_override(attempt: Attempt, code: str, tag: str, advice: str) -> None:
    found = explained(tagged(tier="gold"), model(GOLD, OSLO), attempt, SIZE_MAX)
    assert (found.code, found.override, found.advice) == (code, tag, advice)
    assert (found.source == "override") is bool(tag)
    untagged = explained(CAM, model(GOLD, OSLO), attempt, SIZE_MAX)
    assert (untagged.override, untagged.source == "override") == ("", False)
