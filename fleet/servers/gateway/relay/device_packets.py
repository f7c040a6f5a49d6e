"""What becomes of a device's packets: judged by its model's policy and rules, and answered where they are refused."""

from typing import TYPE_CHECKING

from fleet.domain.mqtt_rules import OnDenied
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseSession
from fleet.servers.gateway.relay.outcome import Fate, Outcome
from fleet.servers.gateway.relay.publish_head import PROPERTIES_EACH
from fleet.servers.gateway.relay.reason_strings import (
    PUBLISH_REFUSED,
    RESPONSE_REFUSED,
    TOO_MUCH_IN_FLIGHT,
    TOO_MUCH_RETAINED,
)
from fleet.wire.errors import Malformed
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.fields import is_plain
from fleet.wire.mqtt.topics import BRIDGE_TOPICS

if TYPE_CHECKING:
    from fleet.servers.gateway.relay.relay import Relay

UNRELEASED_MAX = 1_024  # the broker answers PUBREL for any further: it knows nothing of it, and 4.3.3 asks for PUBCOMP
ACK_SIZE_EACH = 64  # bytes of an acknowledgement that are read for what one packet costs: of twelve user properties


class DeviceHandler:
    """Handler of the device's packets."""

    __slots__ = ("_relay", "_unreleased")

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self._unreleased: dict[int, None] = {}  # QoS 2 messages that we have dropped, and that await PUBREL

    def topic_allowed(self, topic: str) -> bool:
        if not is_plain(topic):
            raise Malformed("A topic has a control character or a noncharacter.")
        return self._relay.policy.may_publish(topic)

    def flags_allowed(self, topic: bytes, *, qos: int, retain: bool) -> bool:
        return not self._relay.policy.flags_refusal(qos=qos, retain=retain)

    def hold(self, topic: str, packet_id: int, size: int) -> bool:
        relay = self._relay
        if not packet_id:
            return True
        # [MQTT-2.2.1-4]: not with an identifier that awaits PUBCOMP, which would uncount this one
        if not relay.releasing >> packet_id & 1 and relay.in_flight.add(packet_id, size):
            return True
        relay.note("mqtt.publish", "quota", topic)
        if relay.version != V5:
            raise CloseSession(close_reasons.QUOTA)  # 3.1.1 has no refusal
        relay.refuse_publish(2, packet_id, Reason.QUOTA_EXCEEDED, TOO_MUCH_IN_FLIGHT)
        return False

    def may_retain(self, topic: str, qos: int, packet_id: int, size: int) -> bool:
        relay = self._relay
        if relay.retain is None or relay.retain(topic, size):
            return True
        relay.note("mqtt.publish", "quota", topic, "retained")
        self._deny(topic, qos, packet_id, Reason.QUOTA_EXCEEDED, TOO_MUCH_RETAINED)
        return False

    def response_allowed(self, topic: str) -> bool:
        relay = self._relay
        return not relay.rules.check_response_topic or relay.policy.may_ask_for_response(topic)

    def response_refused(self, topic: str, qos: int, packet_id: int) -> None:
        relay = self._relay
        relay.note("mqtt.publish", "response-refused", topic)
        if qos:
            relay.refuse_publish(qos, packet_id, Reason.NOT_AUTHORIZED, RESPONSE_REFUSED)

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        relay = self._relay
        refusal = relay.policy.publish_refusal(topic, qos=qos, retain=True)  # or its QoS, or its topic
        reason = relay.policy.refuses_always(topic) if refusal == "topic" else refusal
        relay.note("mqtt.publish", "refused", topic, reason)
        if refusal == "qos" and relay.version == V5:
            raise CloseSession(close_reasons.QOS_REFUSED)
        self._deny(topic, qos, packet_id, Reason.NOT_AUTHORIZED, PUBLISH_REFUSED.get(reason, ""))

    def _deny(self, topic: str, qos: int, packet_id: int, code: Reason, text: str) -> None:
        relay = self._relay
        if relay.version != V5:
            # [MQTT-3.3.5-2] of 3.1.1: acknowledge or close. A client with a persistent session sends what was not
            # acknowledged again after each connection, and nothing behind it.
            # A mosquitto bridge tells of itself there, whatever it is answered.
            if relay.rules.on_denied is OnDenied.CLOSE and not topic.startswith(BRIDGE_TOPICS):
                raise CloseSession(close_reasons.PUBLISH_REFUSED)
            if qos == 2 and len(self._unreleased) < UNRELEASED_MAX:
                self._unreleased[packet_id] = None
        if qos:
            relay.refuse_publish(qos, packet_id, code, text)

    def packet(self, first: int, body: bytes) -> Outcome:
        relay = self._relay
        match first >> 4:
            case PacketType.SUBSCRIBE:
                asked = relay.subscriptions.decode_subscribe(body)
                relay.to_broker.packets += len(asked.subscriptions) - 1 + len(asked.properties) // PROPERTIES_EACH
                relay.to_broker.packets += relay.subscriptions.filters.upkeep
                verdict = relay.subscriptions.filter_subscribe(asked, relay.policy)
                for topic_filter, reason in verdict.refused:
                    relay.note("mqtt.subscribe", "refused", topic_filter, reason)
                for topic_filter in verdict.over_quota:
                    relay.note("mqtt.subscribe", "quota", topic_filter)
                if verdict.answer is not None:
                    relay.answers += 1
                    relay.to_device.inject(verdict.answer)
                return verdict.forward
            case PacketType.PUBACK | PacketType.PUBREC | PacketType.PUBREL | PacketType.PUBCOMP:
                acks.check_acknowledgement(first, body, relay.version)
                relay.to_broker.packets += len(body) // ACK_SIZE_EACH
                return self._release(body) if first == acks.PUBREL else Fate.FORWARDED
            case PacketType.PINGREQ if body:
                raise Malformed("PINGREQ has data.")
            case PacketType.UNSUBSCRIBE:
                relay.to_broker.packets += relay.subscriptions.filters.upkeep
                relay.to_broker.packets += relay.subscriptions.unsubscribe(body) - 1
            case PacketType.DISCONNECT:
                acks.check_disconnect(body, relay.version)
                # [MQTT-3.14.4-1], [MQTT-3.14.4-2]: nothing comes after it
                relay.closing = close_reasons.CLIENT_DISCONNECTED
                relay.farewell = body
                relay.to_broker.stop()
        return Fate.FORWARDED

    def _release(self, body: bytes) -> Outcome:
        packet_id = acks.packet_id_of(body)
        relay = self._relay
        if packet_id not in self._unreleased:
            if relay.releasing >> packet_id & 1:
                return Fate.DROPPED  # sent again: the first one's PUBCOMP answers both
            relay.releasing |= 1 << packet_id
            return Fate.FORWARDED
        del self._unreleased[packet_id]
        relay.answers += 1
        relay.to_device.inject(acks.acknowledge(acks.PUBCOMP, packet_id, relay.version))
        return Fate.DROPPED
