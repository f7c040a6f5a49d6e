"""Who may publish and subscribe where: the subset rule, its traps, and what a policy's filter may be."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet.domain.device import Device, DeviceId, DeviceState, Model
from fleet.domain.errors import Invalid
from fleet.domain.topic_policy import TopicPolicy, check_filter, covers, is_well_formed, matches, policy_of, widened

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
    assert policy_of(device, model) == TopicPolicy(("cam2/c:1.x/up",), ("c:1.x",))
    assert policy_of(device, replace(model, retain=True)).retain


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
