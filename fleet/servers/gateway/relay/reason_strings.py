"""Reason Strings in answers to a 5.0 device: one sentence of ours where the device takes one.

The sentences of DISCONNECT and of a refused CONNECT are in close_reasons.py.
"""

from collections.abc import Callable, Iterable

from fleet.wire.mqtt.codes import Reason
from fleet.wire.mqtt.connect import Connect, packet_size_max
from fleet.wire.mqtt.properties import Property, value_of

TOPIC_REFUSED = "The device's model does not allow this topic."
RETAIN_REFUSED = "The device's model does not allow retained messages."
RESPONSE_REFUSED = "The device's model does not allow a response on this topic."
TOO_MUCH_RETAINED = "The device has too many retained messages, or too long ones."
TOO_MUCH_IN_FLIGHT = "Too many bytes of QoS 2 messages have not been released."

PUBLISH_REFUSED = {
    "": TOPIC_REFUSED,
    "retain": RETAIN_REFUSED,
    "reserved": "This topic is reserved for what the fleet itself publishes.",
    "dot": "The broker takes a dot in a topic for a slash: no topic may have one.",
}
"""By the `reason` of the log; "": the topic, by the model."""

FILTERS: dict[int, str] = {
    Reason.NOT_AUTHORIZED: "The device's model does not allow this topic filter.",
    Reason.IMPLEMENTATION_SPECIFIC: "The broker takes a dot in a topic filter for a slash: none may have one.",
    Reason.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED: "The device's model does not allow shared subscriptions.",
    Reason.TOPIC_FILTER_INVALID: "A topic filter is not valid.",
    Reason.QUOTA_EXCEEDED: "The device has subscribed to too many topic filters, too long ones, or one twice at once.",
}
"""For a SUBACK, by reason code of a refused filter."""


def of_filters(codes: Iterable[int]) -> str:
    """The sentences for a SUBACK with these codes of ours, each of them once."""
    return " ".join(dict.fromkeys(FILTERS[code] for code in codes if code in FILTERS))


class ReasonStrings:
    """Which Reason Strings the device of one session takes."""

    __slots__ = ("_are_asked_for", "_size_max")

    def __init__(self, connect: Connect) -> None:
        # [MQTT-3.1.2-29] when it is 0, none in any packet but CONNACK and DISCONNECT
        self._are_asked_for = value_of(connect.properties, Property.REQUEST_PROBLEM_INFORMATION) != 0
        self._size_max = packet_size_max(connect)

    def disconnect(self, encode: Callable[[str], bytes], text: str) -> bytes:
        """The DISCONNECT that `encode` makes, with `text` unless the device takes none so long: [MQTT-3.14.2-3]."""
        packet = encode(text)
        return packet if self._size_max is None or len(packet) <= self._size_max else encode("")

    def answer(self, encode: Callable[[str], bytes], text: str) -> bytes:
        """The same for any other packet, of a device that asks for reasons: [MQTT-3.4.2-2], [MQTT-3.9.2-1]."""
        return self.disconnect(encode, text if self._are_asked_for else "")
