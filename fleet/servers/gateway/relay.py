"""A live session without its sockets: two sieves back to back, and what is answered in the other side's stead.

    relay = Relay(version, policy, to_broker, to_device, ...)
    relay.from_device(data); relay.from_broker(data)
    if relay.farewell: ...      # one side has said its last word

Refused is: a PUBLISH to a topic that the policy does not allow, or to be retained when it does not allow that; a
filter in a SUBSCRIBE that it does not cover; and a message on its way down that it would not let the device ask for:
a session that the broker kept may still hold filters from before the policy changed.
"""

from collections.abc import Callable
from dataclasses import replace

from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.packet_filter import DOWNBOUND, UPBOUND, PacketFilter
from fleet.servers.gateway.subscriptions import Subscriptions
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, decode_connack, encode_connack
from fleet.wire.mqtt.properties import Property, value_of, without

Write = Callable[[bytes], None]
Note = Callable[[str, str, str], None]
"""(event, code, topic or filter): something was refused."""


class Relay:
    """Sans-IO. Raises out of `from_device` and `from_broker`: CloseSession, WireError."""

    def __init__(
        self, version: int, policy: TopicPolicy, to_broker: Write, to_device: Write, note: Note, size_max: int
    ) -> None:
        self.version = version
        self.policy = policy
        self.note = note
        self.connack: Connack | None = None
        """What the broker said to CONNECT, once it has."""
        self.farewell: CloseReason | None = None
        """Set when the packet that was just let through is the last one."""
        self.answers = 0
        """Packets of our own so far, to either side."""
        self.subscriptions = Subscriptions(version)
        self.size_max = size_max
        self.up = PacketFilter(UPBOUND, version, _FromDevice(self), to_broker, size_max)
        self.down = PacketFilter(DOWNBOUND, version, _FromBroker(self), to_device, size_max)

    def from_device(self, data: bytes) -> None:
        self.up.feed(data)

    def from_broker(self, data: bytes) -> None:
        self.down.feed(data)

    def set_policy(self, policy: TopicPolicy) -> bool:
        """Judge by `policy` from now on; False when the session holds a filter that it does not allow."""
        self.policy = policy
        self.up.forget_topics()
        self.down.forget_topics()
        return self.subscriptions.fit(policy)

    def take_leave(self, ending: CloseReason) -> None:
        """Say to each side what it should hear of `ending`, if it can still be said; then let nothing through."""
        if not ending.will and self.farewell is not close_reasons.CLIENT_DISCONNECTED and self.up.between_packets:
            # 3.14.4: on DISCONNECT the broker drops the will
            self.up.inject(acks.disconnect(self.version))
        told = self.connack is not None and self.farewell is None and self.down.between_packets
        # Only in 5.0 may a server send DISCONNECT.
        if told and ending.reason is not None and self.version == V5:
            self.down.inject(acks.disconnect(V5, ending.reason))
        self.up.stop()
        self.down.stop()


class _FromDevice:
    """Answers for what the device sends."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def topic_allowed(self, topic: str) -> bool:
        return self._relay.policy.may_publish(topic)

    def retain_allowed(self) -> bool:
        return self._relay.policy.retain

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        relay = self._relay
        relay.note("mqtt.publish", "refused", topic)
        if relay.version != V5:
            # [MQTT-3.3.5-2] of 3.1.1: acknowledge, or close. An acknowledgement would be a lie.
            raise CloseSession(close_reasons.PUBLISH_REFUSED)
        if qos:
            # MQTT 5.0, 3.4.2.1 and 3.5.2.1
            first = acks.PUBACK if qos == 1 else acks.PUBREC
            relay.answers += 1
            relay.down.inject(acks.acknowledge(first, packet_id, V5, Reason.NOT_AUTHORIZED))

    def packet(self, first: int, body: bytes) -> bytes | None:
        relay = self._relay
        match first >> 4:
            case PacketType.SUBSCRIBE:
                ruling = relay.subscriptions.ask(body, relay.policy)
                for topic_filter in ruling.refused:
                    relay.note("mqtt.subscribe", "refused", topic_filter)
                if ruling.answer is not None:
                    relay.answers += 1
                    relay.down.inject(ruling.answer)
                return ruling.forward
            case PacketType.UNSUBSCRIBE:
                relay.subscriptions.left(body)
            case PacketType.DISCONNECT:
                # [MQTT-3.14.4-1], [MQTT-3.14.4-2]: nothing comes after it
                relay.farewell = close_reasons.CLIENT_DISCONNECTED
                relay.up.stop()
        return None


class _FromBroker:
    """Answers for what the broker sends."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def topic_allowed(self, topic: str) -> bool:
        return self._relay.policy.may_receive(topic)

    def retain_allowed(self) -> bool:
        return True

    def refused(self, topic: str, qos: int, packet_id: int) -> None:
        relay = self._relay
        relay.note("mqtt.deliver", "refused", topic)
        if qos:
            # In the device's stead, or the broker would hold the message, and its place in flight, for ever.
            first = acks.PUBACK if qos == 1 else acks.PUBREC
            relay.answers += 1
            relay.up.inject(acks.acknowledge(first, packet_id, relay.version, Reason.NOT_AUTHORIZED))

    def packet(self, first: int, body: bytes) -> bytes | None:
        relay = self._relay
        match first >> 4:
            case PacketType.CONNACK:
                return self._greet(body)
            case PacketType.SUBACK:
                return relay.subscriptions.answered(body)
            case PacketType.DISCONNECT:
                relay.farewell = close_reasons.BROKER_CLOSED
                relay.down.stop()
        return None

    def _greet(self, body: bytes) -> bytes | None:
        relay = self._relay
        if relay.connack is not None:
            raise CloseSession(close_reasons.PROTOCOL_ERROR)
        relay.connack = connack = decode_connack(body, relay.version)
        if connack.code:
            relay.farewell = close_reasons.BROKER_REFUSED
            return None
        if relay.version != V5:
            return None
        # No aliases: without that property the maximum is 0 (3.2.2.3.8). And our cap on packets is said in advance.
        theirs = value_of(connack.properties, Property.MAXIMUM_PACKET_SIZE)
        size_max = min(theirs, relay.size_max) if isinstance(theirs, int) else relay.size_max
        kept = without(connack.properties, Property.TOPIC_ALIAS_MAXIMUM, Property.MAXIMUM_PACKET_SIZE)
        properties = (*kept, (Property.MAXIMUM_PACKET_SIZE, size_max))
        if not relay.policy.retain:
            # 3.2.2.3.5: it must not ask for what would be refused
            properties = (*without(properties, Property.RETAIN_AVAILABLE), (Property.RETAIN_AVAILABLE, 0))
        return encode_connack(replace(connack, properties=properties), V5)
