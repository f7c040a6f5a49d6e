"""What the link passes on of received packets, and what MQTT 5 adds to a message. No I/O."""

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleet.wire.topic_filters import matches

if TYPE_CHECKING:  # commands use Extras without paho
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

IDENTIFIERS_MAX = 256  # kept of one message: as many as there are filters
_IDENTIFIER_MAX = 0x0FFFFFFF  # MQTT 5.0, 3.8.2.1.2
_SUBSCRIPTION_FAILURE = 0x80  # MQTT 3.1.1, 3.9.3; in MQTT 5.0 this and above
_REFUSALS = {
    0x80: "the server refuses this subscription",
    0x87: "the device's model does not allow this subscription",
    0x8F: "the topic filter is invalid",
    0x97: "the quota of subscriptions is used up",
    0x9E: "the server supports no shared subscriptions",
    0xA1: "the server supports no subscription identifiers",
    0xA2: "the server supports no wildcards in subscriptions",
}
"""MQTT 5.0, 3.9.3: meaning of each reason code of a refused subscription."""


@dataclass(frozen=True, slots=True)
class Extras:
    """What MQTT 5 adds to a message (3.3.2.3). Over MQTT 3.1.1 it is left out."""

    response_topic: str = ""
    correlation: bytes = b""
    expiry_seconds: int | None = None
    user: tuple[tuple[str, str], ...] = ()

    def properties(self) -> "Properties | None":
        """As paho takes them; None for none."""
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        found: dict[str, Any] = {}
        if self.response_topic:
            found["ResponseTopic"] = self.response_topic
        if self.correlation:
            found["CorrelationData"] = self.correlation
        if self.expiry_seconds is not None:
            found["MessageExpiryInterval"] = self.expiry_seconds
        if self.user:
            found["UserProperty"] = list(self.user)
        if not found:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in found.items():
            setattr(properties, name, value)
        return properties


NO_EXTRAS = Extras()


@dataclass(frozen=True, slots=True)
class Received:
    """A PUBLISH from the server. One of QoS 1 is to be acknowledged with its packet id."""

    topic: str
    payload: bytes
    qos: int
    packet_id: int
    dup: bool
    """Sent again: it may be known already, under the same packet id ([MQTT-4.4.0-1])."""
    retain: bool
    extras: Extras = NO_EXTRAS
    identifiers: tuple[int, ...] = ()
    """Of the subscriptions that this copy is for; () if the server does not say it: over MQTT 3.1.1."""

    def is_for(self, topic_filter: str) -> bool:
        """Whether this copy is one of the subscription to `topic_filter`."""
        named = not self.identifiers or identifier(topic_filter) in self.identifiers
        return named and matches(topic_filter, self.topic)


def identifier(topic_filter: str) -> int:
    """The subscription identifier of a filter. It follows from the filter: the session at the server, and what waits in
    it, outlives this process. Two filters with the same one do no harm, since the topic counts as well."""
    return zlib.crc32(topic_filter.encode()) & _IDENTIFIER_MAX or 1


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A SUBACK or an UNSUBACK."""

    packet_id: int
    refusals: tuple[str, ...]
    """Why, for each filter in the order of the SUBSCRIBE; "" for one that is granted."""


def received(message: Any) -> Received:
    """The Received of a message of paho's. Raises: UnicodeDecodeError if its topic is not UTF-8."""
    properties = message.properties
    return Received(
        topic=message.topic,
        payload=bytes(message.payload),
        qos=message.qos,
        packet_id=message.mid,
        dup=bool(message.dup),
        retain=bool(message.retain),
        extras=Extras(
            response_topic=getattr(properties, "ResponseTopic", ""),
            correlation=bytes(getattr(properties, "CorrelationData", b"")),
            expiry_seconds=getattr(properties, "MessageExpiryInterval", None),
            user=tuple(getattr(properties, "UserProperty", ())),
        ),
        identifiers=tuple(getattr(properties, "SubscriptionIdentifier", ())[:IDENTIFIERS_MAX]),
    )


def refusal(code: "ReasonCode") -> str:
    """Why a filter was refused; "" if it was granted."""
    if code.value < _SUBSCRIPTION_FAILURE:
        return ""
    return f"{_REFUSALS.get(code.value, 'the server refuses this subscription')} (SUBACK 0x{code.value:02X})"
