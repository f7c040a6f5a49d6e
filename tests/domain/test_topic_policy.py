"""Who may publish and subscribe where: the subset rule, its traps, and what a policy's filter may be."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Invalid
from fleet.domain.model_rules import ModelRules
from fleet.domain.topic_policy import (
    RESERVED,
    TopicPolicy,
    check_filter,
    check_variables,
    covers,
    grants_reserved_alone,
    is_reserved,
    is_well_formed,
    matches,
    policy_of,
    widened,
)

LEVELS = st.sampled_from(["a", "b", "", "$SYS", "+"])
FILTERS = st.builds(
    lambda levels, end: "/".join(levels + ["#"] * end), st.lists(LEVELS, min_size=1, max_size=4), st.booleans()
)
TOPICS = st.lists(st.sampled_from(["a", "b", "", "$SYS"]), min_size=1, max_size=5).map("/".join)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        # MQTT 5.0, 4.7.1.2 and 4.7.1.3: the specification's own examples
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        # 4.7.2
        ("#", "$SYS/monitor", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/monitor", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("#", "a/$SYS", True),
    ],
)
def test_matches(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a/#", "a/#", True),
        ("a/#", "a", True),
        ("a/#", "a/+/b", True),
        ("a/+", "a/#", False),
        ("a/+", "a/+", True),
        ("a/b", "a/+", False),
        ("#", "+/x", True),
        ("#", "#", True),
        ("#", "$SYS/#", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/#", True),
        ("$SYS/#", "#", False),
        ("+/#", "#", False),
        ("a/+/c", "a/b/c", True),
        ("a/b/#", "a/#", False),
    ],
)
def test_covers(outer: str, inner: str, expected: bool) -> None:
    assert covers(outer, inner) is expected


@settings(deadline=None)
@given(FILTERS, FILTERS, TOPICS)
def test_what_is_covered_never_matches_more(outer: str, inner: str, topic: str) -> None:
    if covers(outer, inner) and matches(inner, topic):
        assert matches(outer, topic)


POLICY = TopicPolicy(publish=("devices/c/up/#",), subscribe=("devices/c/down/#", "news/+"))


@pytest.mark.parametrize("topic", ["devices/c/up/#", "devices/c/up/+", "", "devices/d/up/x", "devices/c", "#", "+/up"])
def test_may_not_publish(topic: str) -> None:
    assert not POLICY.may_publish(topic)
    assert not TopicPolicy(("#",), ()).may_publish("$SYS/x")
    assert not TopicPolicy(("#",), ()).may_publish("")


@pytest.mark.parametrize(
    "topic_filter",
    ["#", "+/x", "$SYS/#", "$share/g/other", "$share/g/#", "$share/g", "$share//news/x", "$share/+/news/x",
     "$share/#/news/x", "$share/a+/news/x", "$share/a#/news/x", "$share/#/x", "devices/#", "devices/+/down/#",
     "news/#", "news/+/x", "", "devices/c/down/#/x", "devices/c/down/a#"],
)  # fmt: skip
def test_may_not_subscribe(topic_filter: str) -> None:
    assert not POLICY.may_subscribe(topic_filter)


@pytest.mark.parametrize("topic", ["devices/c/up/x", "devices/c/up", "devices/c/up/x/y"])
def test_may_publish(topic: str) -> None:
    assert POLICY.may_publish(topic)


@pytest.mark.parametrize(
    "topic_filter", ["devices/c/down/#", "devices/c/down", "devices/c/down/+", "news/x", "news/+", "$share/g/news/+"]
)
def test_may_subscribe(topic_filter: str) -> None:
    assert POLICY.may_subscribe(topic_filter)


def test_may_receive() -> None:
    assert POLICY.may_receive("devices/c/down/x")
    assert not POLICY.may_receive("devices/c/up/x")


def test_nothing_is_retained_unless_the_model_says_so() -> None:
    assert not TopicPolicy((), ()).retain


def test_the_policy_of_a_device() -> None:
    model = Model("cam2", publish=("{model}/{id}/up",), subscribe=("{id}",))
    device = Device(DeviceId("c:1.x"), "cam2", DeviceState.ACTIVE, datetime.now(UTC))
    assert policy_of(device, model) == TopicPolicy(("cam2/c:1.x/up",), ("c:1.x", "devices/c:1.x/fleet/#"))
    assert policy_of(device, replace(model, retain=True)).retain


TAGGED = Model(
    "cam2",
    publish=("{tenant}/{model}/{id}", "sites/{tag:site}/x-{tag:row}/#", "{tag:site}/#"),
    subscribe=("sites/{tag:site}/+",),
    rules=ModelRules(tenant="acme"),
)


def tagged(**tags: str) -> Device:
    return Device(DeviceId("c1"), "cam2", DeviceState.ACTIVE, datetime.now(UTC), tags=tuple(sorted(tags.items())))


def test_tags_and_tenant_are_filled_in() -> None:
    policy = policy_of(tagged(site="essen", row="7 a"), TAGGED)
    assert policy.publish == ("acme/cam2/c1", "sites/essen/x-7 a/#", "essen/#")
    assert policy.subscribe == ("sites/essen/+", "devices/c1/fleet/#")


def test_a_variable_without_a_value_grants_nothing() -> None:
    policy = policy_of(tagged(site="essen"), TAGGED)
    assert policy.publish == ("acme/cam2/c1", "essen/#")
    nothing = policy_of(tagged(row="7"), replace(TAGGED, rules=ModelRules()))
    assert (nothing.publish, nothing.subscribe) == ((), ("devices/c1/fleet/#",))


@pytest.mark.parametrize(
    "value", ["+", "#", "a/b", "/", "a+", "$SYS", "a$", "{id}", "{tag:row}", "a{", "a\x7fb", "x/#", "$share/g/x"]
)
def test_a_value_of_a_tag_never_widens(value: str) -> None:
    policy = policy_of(tagged(site=value, row="{id}"), TAGGED)
    assert (policy.publish, policy.subscribe) == (("acme/cam2/c1",), ("devices/c1/fleet/#",))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=4, alphabet="+#/$ab{}:. "), TOPICS)
def test_whatever_a_tag_says_it_stays_within_its_level(value: str, topic: str) -> None:
    policy = policy_of(tagged(site=value), TAGGED)
    widest = TopicPolicy(("acme/cam2/c1", "sites/+/+/#", "+/#"), ("sites/+/+",))
    assert widest.may_publish(topic) or not policy.may_publish(topic)
    assert all(covers("sites/+/+", each) for each in policy.subscribe[:-1])


def test_what_braces_may_hold() -> None:
    for text in ("{id}/{model}/{tenant}", "a/{tag:site}/b-{tag:a.b_c-d}"):
        check_variables(text)
    for text in ("{ID}", "{tag}", "{tag:}", "{tag:a/b}", "{tag:1}", "a{", "}", "{{id}}", "{tag:+}", "{tag:#}"):
        with pytest.raises(Invalid) as caught:
            check_variables(text)
        assert caught.value.code == "bad-topic-filter"
    with pytest.raises(Invalid) as caught:
        check_variables("{tag:model}")  # a word of filters: no tag has it
    assert caught.value.code == "bad-tag"


def test_a_tag_is_no_narrower_than_another() -> None:
    """For who may change a model within its topics only."""
    assert widened(("a/{id}/#",), ("a/{tag:site}/#",)) == "a/{tag:site}/#"
    assert not widened(("a/{id}/#", "a/+"), ("a/{id}/{tag:site}", "a/{tag:site}"))


@pytest.mark.parametrize("text", ["a", "#", "a/+/b/#", "$SYS/#", "devices/{id}/up/#", "a b/c", "/", "a" * 1024])
def test_filters_for_a_policy(text: str) -> None:
    assert check_filter(text) == text
    assert is_well_formed(text)


@pytest.mark.parametrize(
    "text",
    ["", "a#", "#/a", "a+", "a\0", "a\nuser evil", "a\r", " a", "a ", "\ud800", "a" * 1025, "$share/g/a", "a\u2028b"],
)
def test_what_is_no_filter_for_a_policy(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_filter(text)
    assert caught.value.code == "bad-topic-filter"


def test_widened_names_the_first_filter_that_is_not_within_the_old_ones() -> None:
    old = ("devices/{id}/up/#", "all/+/news")
    for new in ((), old, ("devices/{id}/up",), ("devices/{id}/up/+/x", "all/de/news")):
        assert widened(old, new) == ""
    for beyond in ("#", "devices/+/up/#", "devices/{model}/up/#", "all/#", "all/+/+", "$SYS/#", "devices/{id}"):
        assert widened(old, (*old, beyond, "x")) == beyond
    assert widened((), ("a",)) == "a"


CAM = Device(DeviceId("cam-7"), "cam", DeviceState.ACTIVE, datetime(2026, 3, 1, tzinfo=UTC))
FLEETS = ("devices/cam-7/fleet", "devices/cam-7/fleet/renew", "devices/other/fleet/a/b", "fleet/presence/cam-7")
NOT_FLEETS = ("devices/cam-7/fleets", "devices/cam-7/up/fleet/a", "Devices/cam-7/fleet/a", "x/devices/cam-7/fleet/a")


@pytest.mark.parametrize("publish", ["#", "devices/#", "+/+/+/#", "devices/{id}/#", "devices/{id}/fleet/#", "fleet/#"])
def test_no_filter_lets_a_device_publish_what_is_the_fleets(publish: str) -> None:
    policy = policy_of(CAM, Model("cam", publish=(publish, "#"), subscribe=()))
    for topic in FLEETS:
        assert is_reserved(topic)
        assert policy.publish_refusal(topic) == "topic"
    for topic in (*NOT_FLEETS, "fleet", "fleet/other", "devices/cam-7"):
        assert not is_reserved(topic)
        assert policy.may_publish(topic)


def test_any_device_may_subscribe_to_what_the_fleet_sends_it() -> None:
    policy = policy_of(CAM, Model("cam", publish=(), subscribe=()))
    for topic_filter in ("devices/cam-7/fleet/#", "devices/cam-7/fleet/renew", "$share/g/devices/cam-7/fleet/+"):
        assert policy.may_subscribe(topic_filter)
    for topic_filter in ("devices/+/fleet/#", "devices/cam-8/fleet/#", "devices/#", "fleet/presence/#", "#"):
        assert policy.subscribe_refusal(topic_filter) == "topic"
    assert policy.may_receive("devices/cam-7/fleet/renew")
    assert not policy.may_receive("devices/cam-8/fleet/renew")
    assert not policy.may_ask_for_response("devices/cam-7/fleet/renew")


@settings(deadline=None)
@given(st.lists(st.sampled_from(["devices", "fleet", "presence", "", "x", "fleet\n", "$SYS"]), min_size=1, max_size=5))
def test_reserved_is_what_the_filters_match(levels: list[str]) -> None:
    topic = "/".join(levels)
    assert is_reserved(topic) is any(matches(each, topic) for each in RESERVED)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("devices/{id}/fleet/#", True),
        ("devices/{tag:x}/fleet/up", True),
        ("devices/+/fleet", True),
        ("fleet/presence/{id}", True),
        ("devices/{id}/#", False),
        ("devices/#", False),
        ("{model}/{id}/fleet/#", False),
    ],
)
def test_a_filter_that_grants_nothing(template: str, expected: bool) -> None:
    assert grants_reserved_alone(template) is expected
