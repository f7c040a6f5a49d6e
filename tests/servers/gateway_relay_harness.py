"""A relay between two byte arrays, for tests without sockets."""

from collections.abc import Callable, Iterator

import pytest

from fleet.domain.model_rules import DEFAULT_RULES
from fleet.domain.topic_policy import TopicPolicy
from fleet.servers.gateway.close_reasons import CloseReason, CloseSession
from fleet.servers.gateway.limits.in_flight import InFlight, InFlightTotal
from fleet.servers.gateway.limits.kept_filters import FilterSet
from fleet.servers.gateway.limits.limits import Limits
from fleet.servers.gateway.relay.reason_strings import FILTERS
from fleet.servers.gateway.relay.relay import Relay, Terms
from fleet.servers.gateway.relay.saved_acks import HeldAcks, Receiver
from fleet.wire.mqtt.codes import V5, V311, Reason
from fleet.wire.mqtt.connect import Connack, Connect, encode_connack
from fleet.wire.mqtt.properties import Properties, reason_string
from fleet.wire.mqtt.publish import Publish, encode_publish
from fleet.wire.mqtt.subscribe import (
    Suback,
    Subscribe,
    Subscription,
    encode_suback,
    encode_subscribe,
)

POLICY = TopicPolicy(publish=("up/#",), subscribe=("down/#", "news/+"), retain=True)
NARROW = TopicPolicy(publish=("up/a",), subscribe=("down/a",))
SIZE_MAX = 300_000
LIMITS = Limits(packet_size_max=SIZE_MAX)
VERSIONS = pytest.mark.parametrize("version", [V311, V5])


class RelayHarness:
    """A relay with what it has written and noted."""

    def __init__(
        self,
        version: int,
        policy: TopicPolicy = POLICY,
        *,
        greeted: bool = True,
        limits: Limits = LIMITS,
        properties: Properties = (),
        hold_acks: Callable[[Receiver], HeldAcks] | None = None,
        retain: Callable[[str, int], bool] | None = None,
    ) -> None:
        self.version = version
        self.to_broker = bytearray()
        self.to_device = bytearray()
        self.writes = 0
        self.notes: list[tuple[str, str, str]] = []
        self.reasons: list[str] = []
        """That of each of `notes`, where there is one."""
        in_flight = InFlight(InFlightTotal(limits))
        terms = Terms(policy, DEFAULT_RULES.mqtt, limits, FilterSet(limits), in_flight, hold_acks, retain)
        connect = Connect(version, "cam-1", properties=properties)
        self.relay = Relay(connect, terms, self._broker, self._device, self._note)
        if greeted:
            self.relay.from_broker(encode_connack(Connack(False, 0), version))
            self.to_device.clear()

    def _broker(self, data: bytes) -> None:
        assert data
        self.writes += 1
        self.to_broker += data

    def _device(self, data: bytes) -> None:
        assert data
        self.to_device += data

    def _note(self, event: str, code: str, topic: str, reason: str = "") -> None:
        self.notes.append((event, code, topic))
        self.reasons += [reason] if reason else []

    def publish(self, topic: str, qos: int = 0, packet_id: int = 5, payload: bytes = b"x") -> bytes:
        return encode_publish(Publish(topic, payload, qos, packet_id if qos else 0), self.version)

    def subscribe(self, *filters: str, packet_id: int = 1, qos: int = 1) -> bytes:
        return encode_subscribe(Subscribe(packet_id, tuple(Subscription(f, qos) for f in filters)), self.version)

    def subscribed(self, *filters: str, packet_id: int = 1) -> None:
        """Subscribe to `filters`, which the broker grants."""
        self.relay.from_device(self.subscribe(*filters, packet_id=packet_id))
        self.relay.from_broker(self.suback(*[1] * len(filters), packet_id=packet_id))
        assert self.to_device.endswith(self.suback(*[1] * len(filters), packet_id=packet_id))
        self.to_device.clear()

    def suback(self, *codes: int, packet_id: int = 1) -> bytes:
        return encode_suback(Suback(packet_id, codes), self.version)

    def explained(self, *codes: int, packet_id: int = 1, text: str = FILTERS[Reason.NOT_AUTHORIZED]) -> bytes:
        """The SUBACK with a Reason String in 5.0."""
        return encode_suback(Suback(packet_id, codes, reason_string(text)), self.version)

    def ends(self, data: bytes, *, from_broker: bool = False) -> CloseReason:
        with pytest.raises(CloseSession) as caught:
            (self.relay.from_broker if from_broker else self.relay.from_device)(data)
        return caught.value.reason


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]
