"""A model's rules: the codec that everybody shares, and what no model may ask."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from fleet.domain.errors import Invalid
from fleet.domain.model_rules import (
    DEFAULT_RULES,
    AdmissionPath,
    AdmissionRules,
    Campaign,
    HttpRules,
    ModelRules,
    ProfileRules,
    RenewalKey,
    RenewalRules,
    checked_rules,
    moved,
    rules_json,
    rules_of,
)
from fleet.domain.mqtt_rules import MqttRules, OnDenied

NOW = datetime(2026, 3, 1, 12, 0, 0, 654321, tzinfo=UTC)
EVERYTHING = ModelRules(
    tenant="acme",
    former_tenants=("", "emca"),
    admission=AdmissionRules((AdmissionPath.CLAIM, AdmissionPath.IDEVID), True, "https://hook.example/fleet"),
    profile=ProfileRules(
        extended_key_usages=("clientAuth", "eapOverLAN"),
        organisation="Acme Ltd",
        hardware_module_name=False,
        dns_name="{id}.{model}.example.com",
        uris=("urn:example:{id}",),
        email="{id}@example.com",
        upn="{id}@corp.example",
        csr_extended_key_usages=True,
        server_keygen=True,
        binding=True,
    ),
    renewal=RenewalRules(RenewalKey.NEW, timedelta(days=7), Campaign(NOW, NOW + timedelta(days=1), timedelta(hours=6))),
    mqtt=MqttRules(OnDenied.CLOSE, 0, 2_048, timedelta(seconds=3), False, 5, 2_048),
    http=HttpRules(("GET,HEAD /v1/{id}/**", "* /v1/telemetry")),
)


@pytest.mark.parametrize("rules", [DEFAULT_RULES, EVERYTHING])
def test_rules_survive_json(rules: ModelRules) -> None:
    assert rules_of(json.loads(json.dumps(rules_json(rules)))) == rules
    assert checked_rules(rules) is rules


def test_rules_stored_before_a_group_was_added_are_read_without_it() -> None:
    stored = rules_json(EVERYTHING)
    del stored["mqtt"], stored["http"]
    assert rules_of(stored) == replace(EVERYTHING, mqtt=MqttRules(), http=HttpRules())


def test_what_is_not_said_stays() -> None:
    changed = rules_of({"renewal": {"grace_seconds": 60}}, EVERYTHING)
    assert changed == replace(EVERYTHING, renewal=replace(EVERYTHING.renewal, grace=timedelta(minutes=1)))
    assert rules_of({}, EVERYTHING) == EVERYTHING
    assert rules_of({}) == DEFAULT_RULES


@pytest.mark.parametrize(
    "given",
    [
        {"tenants": "x"},
        {"tenant": 3},
        {"admission": []},
        {"admission": {"path": []}},
        {"admission": {"paths": "token"}},
        {"admission": {"paths": ["tokens"]}},
        {"admission": {"paths": [3]}},
        {"admission": {"any_idevid": "yes"}},
        {"admission": {"any_idevid": 1}},
        {"profile": {"uris": [1]}},
        {"renewal": {"grace": 60}},
        {"renewal": {"grace_seconds": True}},
        {"renewal": {"grace_seconds": 10**30}},
        {"renewal": {"key": "other"}},
        {"mqtt": {"on_denied": "ignore"}},
        {"mqtt": {"denied": "close"}},
        {"mqtt": {"messages_per_second": "many"}},
        {"mqtt": {"burst_seconds": True}},
        {"renewal": {"key_seconds": "any"}},
        {"renewal": {"campaign": {}}},
        {"renewal": {"campaign": "now"}},
        {"renewal": {"campaign": {"before": "2026-03-01", "start": "2026-03-01", "spread_seconds": 1}}},
        {"renewal": {"campaign": {"before": 1, "start": 1, "spread_seconds": 1}}},
    ],
)
def test_what_is_no_rule_is_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        rules_of(given)
    assert refused.value.code == "bad-rule"


@pytest.mark.parametrize(
    "given",
    [
        {"tenant": "a/b"},
        {"admission": {"webhook": "http://hook.example/"}},
        {"admission": {"webhook": "https://user:pw@hook.example/"}},
        {"admission": {"webhook": "https:///x"}},
        {"admission": {"webhook": "https://[::1/"}},
        {"admission": {"webhook": "https://hook.example/" + "x" * 600}},
        {"profile": {"extended_key_usages": ["serverAuth", "clientAuth"]}},
        {"profile": {"extended_key_usages": []}},
        {"profile": {"extended_key_usages": ["eapOverLAN"]}},
        {"profile": {"organisation": "a\x00b"}},
        {"profile": {"organisation": " Acme"}},
        {"profile": {"organisation": "Acme\u202e"}},
        {"profile": {"organisation": "x" * 65}},
        {"profile": {"dns_name": "{ID}.example.com"}},
        {"profile": {"dns_name": "-{id}.example.com"}},
        {"profile": {"dns_name": "{id}"}},
        {"profile": {"dns_name": "*.example.com"}},
        {"profile": {"uris": ["no scheme"]}},
        {"profile": {"uris": ["urn:example:{id} x"]}},
        {"profile": {"uris": [f"urn:example:{n}" for n in range(5)]}},
        {"renewal": {"grace_seconds": -1}},
        {"renewal": {"grace_seconds": 400_000_000}},
        {"mqtt": {"messages_per_second": -1}},
        {"mqtt": {"bytes_per_second": 1_023}},
        {"mqtt": {"bytes_per_second": 2**31}},
        {"mqtt": {"burst_seconds": 0}},
        {"mqtt": {"burst_seconds": 3_601}},
        {"mqtt": {"subscriptions_max": -1}},
        {"mqtt": {"subscriptions_max": 100_001}},
        {"mqtt": {"packet_size_max": -1}},
        {"mqtt": {"packet_size_max": 1_023}},
        {"mqtt": {"packet_size_max": 67_108_865}},
        {"profile": {"email": "a@example.com"}},
        {"profile": {"email": "{id}"}},
        {"profile": {"email": "{id}@host"}},
        {"profile": {"email": "{id}@a@example.com"}},
        {"profile": {"upn": "{id} x@example.com"}},
        {"profile": {"upn": ".{id}@example.com"}},
        {"profile": {"upn": "{ID}@example.com"}},
        {"profile": {"upn": "{id}" + "a" * 64 + "@example.com"}},
        {"profile": {"service": True, "dns_name": "{id}.example.com"}},
        {"profile": {"service": True, "dns_name": "{id}.example.com"}, "admission": {"paths": ["approval", "token"]}},
        {"profile": {"service": True, "dns_name": "a.example.com"}, "admission": {"paths": ["approval"]}},
        {"profile": {"service": True}, "admission": {"paths": ["approval"]}},
        {"http": {"allow": ["GET"]}},
        {"http": {"allow": ["GET v1"]}},
        {"http": {"allow": ["get /v1"]}},
        {"http": {"allow": ["GET, HEAD /v1"]}},
        {"http": {"allow": ["GET,* /v1"]}},
        {"http": {"allow": ["GET /v1/**/x"]}},
        {"http": {"allow": ["GET /v1/a*"]}},
        {"http": {"allow": ["GET /v1//a"]}},
        {"http": {"allow": ["GET /v1/../a"]}},
        {"http": {"allow": ["GET /v1/%41"]}},
        {"http": {"allow": ["GET /v1?x"]}},
        {"http": {"allow": ["GET /" + "a" * 1020]}},
        {"http": {"allow": [f"GET /{number}" for number in range(65)]}},
    ],
)
def test_what_no_device_could_live_by_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refused:
        checked_rules(rules_of(given))
    assert refused.value.code == "bad-rule"


@pytest.mark.parametrize(
    "given",
    [
        {"subscriptions_max": 0, "packet_size_max": 0},
        {"subscriptions_max": 1, "packet_size_max": 1_024},
        {"subscriptions_max": 100_000, "packet_size_max": 67_108_864},
    ],
)
def test_mqtt_limits_at_their_edges(given: dict[str, int]) -> None:
    rules = checked_rules(rules_of({"mqtt": given}))
    assert (rules.mqtt.subscriptions_max, rules.mqtt.packet_size_max) == tuple(given.values())


def test_a_move_keeps_whose_certificates_are_still_about() -> None:
    first = moved(ModelRules("a"), "")
    assert first.signers == ("a", "")
    second = moved(replace(first, tenant="b"), "a")
    assert second.signers == ("b", "", "a")
    back = moved(replace(second, tenant="a"), "b")
    assert back.signers == ("a", "", "b")


@pytest.mark.parametrize("former", [("a/b",), ("..",), tuple(f"t{n}" for n in range(17))])
def test_former_tenants_are_names_and_not_many(former: tuple[str, ...]) -> None:
    with pytest.raises(Invalid):
        checked_rules(ModelRules("a", former))
    with pytest.raises(Invalid):
        rules_of({"former_tenants": [1]})
