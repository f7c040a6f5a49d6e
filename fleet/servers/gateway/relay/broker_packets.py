"""What becomes of the broker's packets: messages that the device may not receive are dropped, and its CONNACK gets what
the gateway has in its place.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from fleet.domain.mqtt_rules import QOS_MAX
from fleet.domain.topic_policy import is_reserved
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.relay.outcome import Fate, Outcome
from fleet.servers.gateway.relay.publish_head import ALIASES_MAX
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason, is_refusal
from fleet.wire.mqtt.connect import Connack, decode_connack, encode_connack
from fleet.wire.mqtt.fields import encode_packet
from fleet.wire.mqtt.properties import Property, expiry_seconds, value_of, without

if TYPE_CHECKING:
    from fleet.servers.gateway.relay.relay import Relay

BROKERS_REASONS: dict[int, CloseReason] = {
    Reason.SESSION_TAKEN_OVER: close_reasons.TAKEN_OVER,
    Reason.KEEP_ALIVE_TIMEOUT: close_reasons.KEEP_ALIVE_EXPIRED,
    Reason.MALFORMED_PACKET: close_reasons.BROKER_REJECTED,
    Reason.PROTOCOL_ERROR: close_reasons.BROKER_REJECTED,
}
"""What a DISCONNECT of the broker means, which the device has received: at another gateway the device has come back."""


class BrokerHandler:
    """Handler of the broker's packets."""

    __slots__ = ("_relay",)

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay

    def topic_allowed(self, topic: str) -> bool:
        return self._relay.policy.may_receive(topic)

    def flags_allowed(self, topic: bytes, *, qos: int, retain: bool) -> bool:
        # The fleet retains nothing: a retained message is of another, from before its topic was reserved.
        return not (retain and is_reserved(topic.decode()))

    def hold(self, topic: str, packet_id: int, size: int) -> bool:
        unread = self._relay.unread
        # Of QoS 1 and 2 none is dropped: the broker limits what it sends before it is acknowledged.
        if packet_id or unread is None or unread.has_room(size):
            return True
        if unread.dropped == 1:
            self._relay.note("mqtt.deliver", "unread", topic)
        return False

    def may_retain(self, topic: str, qos: int, packet_id: int, size: int) -> bool:
        self._relay.replayed += 1
        return True  # the device keeps what it likes

    def response_allowed(self, topic: str) -> bool:
        return True  # the device may publish its response only where its model allows

    def response_refused(self, topic: str, qos: int, packet_id: int) -> None:
        """None is."""

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        relay = self._relay
        relay.note("mqtt.deliver", "refused", topic)
        if qos:
            # Or the message would stay in flight at the broker for ever.
            relay.answers += 1
            relay.to_broker.inject(acks.acknowledge_publish(qos, packet_id, relay.version, Reason.NOT_AUTHORIZED))

    def packet(self, first: int, body: bytes) -> Outcome:
        relay = self._relay
        match first >> 4:
            case PacketType.CONNACK:
                return self._connack(body)
            case PacketType.PUBACK | PacketType.PUBREC | PacketType.PUBCOMP:
                self._release(first >> 4, body)
                return relay.ack(encode_packet(first, body))
            case PacketType.SUBACK:
                return relay.subscriptions.complete_suback(first, body)
            case PacketType.UNSUBACK:
                relay.subscriptions.complete_unsuback(body)
            case PacketType.DISCONNECT:
                relay.closing = BROKERS_REASONS.get(body[0] if body else 0, close_reasons.BROKER_CLOSED)
                relay.to_device.stop()
        return Fate.FORWARDED

    def _release(self, number: int, body: bytes) -> None:
        relay, packet_id = self._relay, acks.packet_id_of(body)
        if number == PacketType.PUBREC and len(body) > 2 and is_refusal(body[2]):
            relay.in_flight.release(packet_id)
        elif number == PacketType.PUBCOMP and relay.releasing >> packet_id & 1:
            # Not at PUBREL, which the broker does not get when it ends the connection at a packet before.
            relay.releasing ^= 1 << packet_id
            relay.in_flight.release(packet_id)

    def _announced(self, connack: Connack) -> Iterator[tuple[Property, int]]:
        """What the policy has less of than the broker, so that the client does not send it."""
        policy = self._relay.policy
        brokers_qos = value_of(connack.properties, Property.MAXIMUM_QOS)
        if policy.qos_max < (brokers_qos if isinstance(brokers_qos, int) else QOS_MAX):
            yield Property.MAXIMUM_QOS, policy.qos_max  # 3.2.2.3.4
        if not policy.retain:
            yield Property.RETAIN_AVAILABLE, 0  # 3.2.2.3.5
        if not policy.shared:
            yield Property.SHARED_SUBSCRIPTION_AVAILABLE, 0  # 3.2.2.3.13

    def _connack(self, body: bytes) -> Outcome:
        relay = self._relay
        if relay.connack is not None:
            raise CloseSession(close_reasons.PROTOCOL_ERROR)
        connack = decode_connack(body, relay.version)
        if relay.version == V5 and connack.code == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            relay.closing = close_reasons.UNSUPPORTED_VERSION
            return Fate.DROPPED
        relay.connack = connack
        if connack.code:
            relay.closing = close_reasons.BROKER_REFUSED
            return Fate.FORWARDED
        if not connack.session_present:
            relay.subscriptions.forget_all()
        relay.in_flight.connected(connack.session_present, expiry_seconds(connack.properties))
        if relay.version != V5:
            return Fate.FORWARDED
        # Our own limits are announced, for packets (3.2.2.3.6) and topic aliases (3.2.2.3.8).
        brokers_max = value_of(connack.properties, Property.MAXIMUM_PACKET_SIZE)
        size_max = relay.to_broker.size_max
        size_max = min(brokers_max, size_max) if isinstance(brokers_max, int) else size_max
        relay.to_broker.size_max = size_max
        kept = without(connack.properties, Property.TOPIC_ALIAS_MAXIMUM, Property.MAXIMUM_PACKET_SIZE)
        properties = (*kept, (Property.MAXIMUM_PACKET_SIZE, size_max), (Property.TOPIC_ALIAS_MAXIMUM, ALIASES_MAX))
        for name, value in self._announced(connack):
            properties = (*without(properties, name), (name, value))
        if relay.assigned_client_id:
            # [MQTT-3.2.2-16]
            assigned = (Property.ASSIGNED_CLIENT_IDENTIFIER, relay.assigned_client_id)
            properties = (*without(properties, Property.ASSIGNED_CLIENT_IDENTIFIER), assigned)
        return encode_connack(replace(connack, properties=properties), V5)
