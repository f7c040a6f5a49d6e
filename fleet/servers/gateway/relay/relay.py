"""Sans-I/O relay of one session: a packet filter for each direction, and the answers for refused packets.

    relay = Relay(connect, terms, to_broker, to_device, note)
    closing = relay.from_device(data)       # or from_broker: a close reason after that side's DISCONNECT

Refused are: a PUBLISH to a topic that the policy does not allow, or with RETAIN or a QoS that it does not allow; a
SUBSCRIBE filter that it does not cover, or a shared one where it allows none; and a message from the broker that the
device may not subscribe to: a persistent session may still hold filters from before the policy changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fleet.domain.mqtt_rules import MqttRules, lowered
from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway import close_reasons
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.limits.in_flight import InFlight
from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.limits.unread import Unread
from fleet.servers.gateway.relay.broker_packets import BrokerHandler
from fleet.servers.gateway.relay.device_packets import DeviceHandler
from fleet.servers.gateway.relay.outcome import Fate, Outcome
from fleet.servers.gateway.relay.packet_actions import TO_BROKER, TO_DEVICE
from fleet.servers.gateway.relay.packet_filter import PacketFilter
from fleet.servers.gateway.relay.reason_strings import (
    ReasonStrings,
)
from fleet.servers.gateway.relay.saved_acks import HeldAcks, Receiver
from fleet.servers.gateway.relay.subscriptions import Subscriptions
from fleet.wire.mqtt import acks
from fleet.wire.mqtt.codes import V5, PacketType, Reason
from fleet.wire.mqtt.connect import Connack, Connect, packet_size_max
from fleet.wire.mqtt.properties import Property, value_of

Write = Callable[[bytes], None]


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
    retain: Callable[[str, int], bool] | None = None
    """Whether the device may retain a message on a topic, with so many bytes of payload; None: any."""
    retained: Callable[[], int] | None = None
    """How many messages of the device the broker retains; None: that is not known."""
    assigned_client_id: str = ""
    """For CONNACK, when the client has asked for one."""


class Relay:
    __slots__ = (
        "_has_begun", "_held", "_size_max", "answers", "assigned_client_id", "closing", "connack", "farewell",
        "in_flight", "note", "policy", "reasons", "releasing", "replayed", "retain", "rules", "subscriptions",
        "to_broker", "to_device", "unread", "version",
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
        self.replayed = 0
        """Retained messages of the broker so far."""
        self.unread: Unread | None = None
        """What waits for a device that does not read."""
        # What the CONNECT says of Reason Strings (3.1.2.11.7), packet sizes (.4) and topic aliases (.5)
        self.reasons = ReasonStrings(connect)
        self.subscriptions = Subscriptions(
            version, terms.limits.filters_per_packet_max, terms.filters, self.reasons, terms.retained
        )
        self.in_flight = terms.in_flight
        self.retain = terms.retain
        self.releasing = 0
        """Bits: packet identifiers of QoS 2 messages whose PUBREL is on its way to the broker; at most 8 KiB."""
        self._has_begun = False  # the broker has sent something
        self._size_max = size_max = terms.limits.packet_size_max
        self.to_broker = PacketFilter(TO_BROKER, version, DeviceHandler(self), to_broker, size_max)
        self.to_device = PacketFilter(TO_DEVICE, version, BrokerHandler(self), to_device, size_max)
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
        """All of `data` at once: a session gives others their turns in between, where `to_broker` is behind.

        Raises: CloseSession, WireError.
        """
        self.to_broker.feed(data)
        while self.to_broker.is_behind:
            self.to_broker.feed(b"")
        return self.closing

    def from_broker(self, data: bytes) -> CloseReason | None:
        """Raises: CloseSession, WireError."""
        if self.connack is None:
            self._expect_connack(data)
        if self.unread is None:
            self.to_device.feed(data)
        else:
            self.unread.take(self.to_device.feed, data)
        return self.closing

    def wait(self, unread: Unread | None) -> None:
        """The device does not read, and `unread` is what waits for it; None: it has read everything."""
        if self.unread is not None:
            self.unread.end()
        self.unread = unread
        self.to_device.ask_unacknowledged(unread is not None)

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
        self.wait(None)
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
