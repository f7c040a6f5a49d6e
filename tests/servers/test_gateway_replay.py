"""Retained messages that a device has the broker send, again and again."""

from functools import partial

from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.servers.gateway.relay.reason_strings import FILTERS
from fleet.servers.gateway.relay.subscriptions import REPLAYED_MAX, Subscriptions
from fleet.wire.mqtt.codes import V5, Reason
from fleet.wire.mqtt.publish import Publish, encode_publish
from tests.servers.gateway_relay_harness import LIMITS, VERSIONS, RelayHarness


@VERSIONS
def test_a_filter_counts_once_in_a_subscribe(version: int) -> None:
    harness = RelayHarness(version)
    harness.relay.from_device(harness.subscribe("down/#", "news/+", *["down/#"] * 3))
    assert harness.to_broker == harness.subscribe("down/#", "news/+")
    harness.relay.from_broker(harness.suback(1, 1))
    code = Reason.QUOTA_EXCEEDED if version == V5 else 0x80
    assert harness.to_device == harness.explained(1, 1, *[code] * 3, text=FILTERS[Reason.QUOTA_EXCEEDED])
    assert harness.notes == [("mqtt.subscribe", "quota", "down/#")] * 3
    harness.to_broker.clear()
    harness.relay.from_device(harness.subscribe("down/#"))  # once more is another question
    assert harness.to_broker == harness.subscribe("down/#")


def test_wildcards_of_a_device_with_many_retained_messages() -> None:
    for retained, count in ((0, 30), (REPLAYED_MAX // 30, 30), (REPLAYED_MAX // 3, 3)):
        harness = RelayHarness(V5)
        filters = FilterSet(LIMITS)
        harness.relay.subscriptions = Subscriptions(V5, 1_000, filters, harness.relay.reasons, partial(int, retained))
        wild = [f"down/{number}/#" for number in range(30)]
        harness.relay.from_device(harness.subscribe("down/a", *wild, "down/b"))
        assert harness.to_broker == harness.subscribe("down/a", *wild[:count], "down/b")
        if count < len(wild):
            harness.relay.from_device(harness.subscribe(wild[-1]))  # before the broker has answered
            assert harness.to_broker == harness.subscribe("down/a", *wild[:count], "down/b")
            harness.relay.from_broker(harness.suback(*[1] * (count + 2)))
            harness.to_broker.clear()
            harness.relay.from_device(harness.subscribe(wild[-1]))
            assert harness.to_broker == harness.subscribe(wild[-1])


@VERSIONS
def test_what_is_sent_as_retained_is_counted(version: int) -> None:
    harness = RelayHarness(version)
    kept = encode_publish(Publish("down/a", b"x", retain=True), version)
    for data in (kept * 3, harness.publish("down/a") * 3, kept + harness.publish("down/a") + kept):
        harness.relay.from_broker(data)
        assert harness.to_device == data
        harness.to_device.clear()
    assert harness.relay.replayed == 5
