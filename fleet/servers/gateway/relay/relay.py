"""Sans-I/O relay of one session: a packet filter for each direction, and the answers for refused packets.

    relay = Relay(connect, terms, to_broker, to_device, note)
    closing = relay.from_device(data)       # or from_broker: a close reason after that side's DISCONNECT

Refused are: a PUBLISH to a topic that the policy does not allow, or with RETAIN or a QoS that it does not allow; a
SUBSCRIBE filter that it does not cover, or a shared one where it allows none; and a message from the broker that the
device may not subscribe to: a persistent session may still hold filters from before the policy changed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from fleet.domain.mqtt_rules import QOS_MAX, MqttRules, OnDenied, lowered
from fleet.domain.topic_policy import TopicPolicy, is_reserved
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.limits.in_flight import InFlight
from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.relay.outcome import Fate, Outcome
from fleet.servers.gateway.relay.packet_actions import TO_BROKER, TO_DEVICE
from fleet.servers.gateway.relay.packet_filter import PacketFilter
from fleet.servers.gateway.relay.publish_head import ALIASES_MAX
from fleet.servers.gateway.relay.reason_strings import (
    PUBLISH_REFUSED,
    RESPONSE_REFUSED,
    TOO_MUCH_IN_FLIGHT,
    ReasonStrings,
)
from fleet.servers.gateway.relay.saved_acks import HeldAcks, Receiver
from fleet.servers.gateway.relay.subscriptions import Subscriptions
from fleet.wire.errors import Malformed
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason, is_refusal
from fleet.wire.mqtt.connect import Connack, Connect, decode_connack, encode_connack, packet_size_max
from fleet.wire.mqtt.fields import encode_packet, is_plain
from fleet.wire.mqtt.properties import Property, expiry_seconds, value_of, without
from fleet.wire.mqtt.topics import BRIDGE_TOPICS

Write = Callable[[bytes], None]
UNRELEASED_MAX = 1_024  # the broker answers PUBREL for any further: it knows nothing of it, and 4.3.3 asks for PUBCOMP
BROKERS_REASONS: dict[int, CloseReason] = {
    Reason.SESSION_TAKEN_OVER: close_reasons.TAKEN_OVER,
    Reason.KEEP_ALIVE_TIMEOUT: close_reasons.KEEP_ALIVE_EXPIRED,
    Reason.MALFORMED_PACKET: close_reasons.BROKER_REJECTED,
    Reason.PROTOCOL_ERROR: close_reasons.BROKER_REJECTED,
}
"""What a DISCONNECT of the broker means, which the device has received: at another gateway the device has come back."""


class Note(Protocol):
    def __call__(self, event: str, code: str, topic: str, reason: str = "") -> None:
        """Note a refusal of `topic`, which may be a filter. `reason`: of several rules, the one that refused it."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What applies to one session."""

    policy: TopicPolicy
    rules: MqttRules
    """The model's."""
    limits: Limits
    filters: FilterSet
    """Those that the broker may hold for the device."""
    in_flight: InFlight
    """The device's QoS 2 messages that the broker holds."""
    hold_acks: Callable[[Receiver], HeldAcks] | None = None
    """Holds back the broker's acknowledgements until it has saved what they acknowledge; None: they are not held."""
    assigned_client_id: str = ""
    """For CONNACK, when the client has asked for one."""


class Relay:
    __slots__ = (
        "_has_begun", "_held", "_size_max", "answers", "assigned_client_id", "closing", "connack", "farewell",
        "in_flight", "note", "policy", "reasons", "releasing", "rules", "subscriptions", "to_broker", "to_device",
        "version",
    )  # fmt: skip

    def __init__(self, connect: Connect, terms: Terms, to_broker: Write, to_device: Write, note: Note) -> None:
        self.version = version = connect.version
        self.policy = terms.policy
        self.note = note
        self.connack: Connack | None = None
        """The broker's answer to CONNECT."""
        self.assigned_client_id = terms.assigned_client_id
        self.closing: CloseReason | None = None
        """Set by a packet that is its side's last: DISCONNECT, or a CONNACK that refuses."""
        self.farewell: bytes | None = None
        """Body of the DISCONNECT that the broker has got."""
        self.answers = 0
        """Packets injected so far in answer to either side."""
        # What the CONNECT says of Reason Strings (3.1.2.11.7), packet sizes (.4) and topic aliases (.5)
        self.reasons = ReasonStrings(connect)
        self.subscriptions = Subscriptions(version, terms.limits.filters_per_packet_max, terms.filters, self.reasons)
        self.in_flight = terms.in_flight
        self.releasing = 0
        """Bits: packet identifiers of QoS 2 messages whose PUBREL is on its way to the broker; at most 8 KiB."""
        self._has_begun = False  # the broker has sent something
        self._size_max = size_max = terms.limits.packet_size_max
        self.to_broker = PacketFilter(TO_BROKER, version, _DeviceHandler(self), to_broker, size_max)
        self.to_device = PacketFilter(TO_DEVICE, version, _BrokerHandler(self), to_device, size_max)
        self._held = terms.hold_acks(self.to_device) if terms.hold_acks is not None else None
        if self._held is not None:
            self.to_device.inspect_all()
        aliases_max = value_of(connect.properties, Property.TOPIC_ALIAS_MAXIMUM)
        if isinstance(aliases_max, int) and aliases_max:
            self.to_device.send_aliases(aliases_max, packet_size_max(connect))
        self.set_rules(terms.rules)
        self._ask_about_qos()

    @property
    def left_in_order(self) -> bool:
        """Whether the broker was asked to discard the will; it may have refused that, or a packet before."""
        return self.farewell is not None and self.farewell[:1] in (b"", b"\0")

    def may_leave_will(self, reason: CloseReason) -> bool:
        """Whether the broker may publish the will of the connection, if there is one, which has ended for `reason`."""
        ended_by_broker = self.closing in (close_reasons.TAKEN_OVER, close_reasons.BROKER_REFUSED)
        return not ended_by_broker and not (reason.code in close_reasons.WELL and self.left_in_order)

    @property
    def is_between_packets(self) -> bool:
        return self.to_broker.between_packets and self.to_device.between_packets

    def from_device(self, data: bytes) -> CloseReason | None:
        """Raises: CloseSession, WireError."""
        self.to_broker.feed(data)
        return self.closing

    def from_broker(self, data: bytes) -> CloseReason | None:
        """Raises: CloseSession, WireError."""
        if self.connack is None:
            self._expect_connack(data)
        self.to_device.feed(data)
        return self.closing

    def _expect_connack(self, data: bytes) -> None:
        # [MQTT-3.2.0-1] the server's first packet must be CONNACK
        if not self._has_begun and data[0] >> 4 != PacketType.CONNACK:
            raise CloseSession(close_reasons.PROTOCOL_ERROR)
        self._has_begun = True

    def set_rules(self, rules: MqttRules) -> None:
        """Apply the model's `rules` from now on; a maximum packet size only before CONNACK, which announces it."""
        self.rules = rules
        self.subscriptions.filters.set_rules(rules)
        if self.connack is None:
            self.to_broker.size_max = lowered(self._size_max, rules.packet_size_max)

    def set_policy(self, policy: TopicPolicy) -> bool:
        """Apply `policy` from now on; False when the session holds a filter that it does not allow."""
        self.policy = policy
        self.to_broker.forget_topics()
        self.to_device.forget_topics()
        self._ask_about_qos()
        return self.subscriptions.allowed_by(policy)

    def _ask_about_qos(self) -> None:
        if self.policy.qos_max == 0:
            self.to_broker.ask_acknowledged()

    def disconnect(self, reason: CloseReason) -> None:
        """Send each side the DISCONNECT that `reason` calls for, if one can still be sent; then forward nothing."""
        if not reason.publishes_will and self.closing is None and self.to_broker.between_packets:
            # 3.14.4: on DISCONNECT the broker discards the will
            self.to_broker.inject(acks.disconnect(self.version))
            self.farewell = b""
        reachable = self.connack is not None and self.closing is None and self.to_device.between_packets
        # Only in 5.0 may a server send DISCONNECT.
        if reachable and reason.disconnect is not None and self.version == V5:
            self.to_device.inject(self.reasons.disconnect(reason.packet, reason.text))
        self.to_broker.stop()
        self.to_device.stop()
        if self._held is not None:
            self._held.close()
        self.in_flight.disconnected(acks.disconnect_expiry(self.farewell or b""))

    def ack(self, packet: bytes) -> Outcome:
        """What the device gets now of an acknowledgement of the broker."""
        if self._held is None:
            return Fate.FORWARDED
        if not self._held.add(packet):
            self.closing = close_reasons.QUOTA
        return Fate.DROPPED

    def refuse_publish(self, qos: int, packet_id: int, reason: Reason, text: str) -> None:
        """Answer a PUBLISH of the device in place of the broker, by PUBACK or PUBREC (MQTT 5.0, 3.4.2.1, 3.5.2.1)."""
        self.answers += 1
        encode = partial(acks.acknowledge_publish, qos, packet_id, self.version, reason)
        self.to_device.inject(self.reasons.answer(encode, text))


class _Handler:
    __slots__ = ("_relay",)

    def __init__(self, relay: Relay) -> None:
        self._relay = relay


class _DeviceHandler(_Handler):
    """Handler of the device's packets."""

    __slots__ = ("_unreleased",)

    def __init__(self, relay: Relay) -> None:
        super().__init__(relay)
        self._unreleased: dict[int, None] = {}  # QoS 2 messages that we have dropped, and that await PUBREL

    def topic_allowed(self, topic: str) -> bool:
        if not is_plain(topic):
            raise Malformed("A topic has a control character or a noncharacter.")
        return self._relay.policy.may_publish(topic)

    def flags_allowed(self, topic: bytes, *, qos: int, retain: bool) -> bool:
        return not self._relay.policy.flags_refusal(qos=qos, retain=retain)

    def hold(self, topic: str, packet_id: int, size: int) -> bool:
        relay = self._relay
        # [MQTT-2.2.1-4]: not with an identifier that awaits PUBCOMP, which would uncount this one
        if not relay.releasing >> packet_id & 1 and relay.in_flight.add(packet_id, size):
            return True
        relay.note("mqtt.publish", "quota", topic)
        if relay.version != V5:
            raise CloseSession(close_reasons.QUOTA)  # 3.1.1 has no refusal
        relay.refuse_publish(2, packet_id, Reason.QUOTA_EXCEEDED, TOO_MUCH_IN_FLIGHT)
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
        if relay.version != V5:
            # [MQTT-3.3.5-2] of 3.1.1: acknowledge or close. A client with a persistent session sends what was not
            # acknowledged again after each connection, and nothing behind it.
            # A mosquitto bridge tells of itself there, whatever it is answered.
            if relay.rules.on_denied is OnDenied.CLOSE and not topic.startswith(BRIDGE_TOPICS):
                raise CloseSession(close_reasons.PUBLISH_REFUSED)
            if qos == 2 and len(self._unreleased) < UNRELEASED_MAX:
                self._unreleased[packet_id] = None
        if qos:
            relay.refuse_publish(qos, packet_id, Reason.NOT_AUTHORIZED, PUBLISH_REFUSED.get(reason, ""))

    def packet(self, first: int, body: bytes) -> Outcome:
        relay = self._relay
        match first >> 4:
            case PacketType.SUBSCRIBE:
                verdict = relay.subscriptions.filter_subscribe(body, relay.policy)
                for topic_filter in verdict.refused:
                    refusal = relay.policy.subscribe_refusal(topic_filter)
                    relay.note("mqtt.subscribe", "refused", topic_filter, "" if refusal == "topic" else refusal)
                for topic_filter in verdict.over_quota:
                    relay.note("mqtt.subscribe", "quota", topic_filter)
                if verdict.answer is not None:
                    relay.answers += 1
                    relay.to_device.inject(verdict.answer)
                return verdict.forward
            case PacketType.PUBACK | PacketType.PUBREC | PacketType.PUBREL | PacketType.PUBCOMP:
                acks.check_acknowledgement(first, body, relay.version)
                return self._release(body) if first == acks.PUBREL else Fate.FORWARDED
            case PacketType.PINGREQ if body:
                raise Malformed("PINGREQ has data.")
            case PacketType.UNSUBSCRIBE:
                relay.subscriptions.unsubscribe(body)
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


class _BrokerHandler(_Handler):
    """Handler of the broker's packets."""

    __slots__ = ()

    def topic_allowed(self, topic: str) -> bool:
        return self._relay.policy.may_receive(topic)

    def flags_allowed(self, topic: bytes, *, qos: int, retain: bool) -> bool:
        # The fleet retains nothing: a retained message is of another, from before its topic was reserved.
        return not (retain and is_reserved(topic.decode()))

    def hold(self, topic: str, packet_id: int, size: int) -> bool:
        return True  # the broker limits what it sends

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
