"""What a server may send, checked before paho parses it: over TCP and over WebSocket, all bytes come this way.

paho allocates an object of 2 KiB for each reason code, and compares each property with those before it: a packet of
1 MiB would cost gigabytes of memory, or minutes of CPU.
"""

from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import VariableByteIntegers

from device_agent.link.light_paho import paho

PACKET_SIZE_MAX = 1024 * 1024  # bytes of one: a message for programs may have 256 KiB
PROPERTIES_SIZE_MAX = 8 * 1024  # bytes of one list: 256 short user properties, as many as the fleet's gateway passes on
CONTROL_SIZE_MAX = PROPERTIES_SIZE_MAX + 64  # bytes of any packet but PUBLISH: the rest is numbers

_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP, _DISCONNECT = 2, 3, 4, 9, 11, 13, 14
_EXPECTED = frozenset((_CONNACK, _PUBLISH, _PUBACK, _SUBACK, _UNSUBACK, _PINGRESP, _DISCONNECT))
"""Nothing is published or subscribed to with QoS 2, so PUBREC, PUBREL and PUBCOMP answer nothing of ours."""
_QOS_MAX = 1


class PacketRefused(Exception):
    """A packet that no server needs to send."""


def check_header(first: int, size: int) -> None:
    """`first`: the packet's first byte; `size`: its remaining length. Raises: PacketRefused."""
    kind, qos = first >> 4, first >> 1 & 3
    if kind not in _EXPECTED:
        raise PacketRefused(f"the server sends a packet of type {kind}, which answers nothing of ours")
    if kind == _PUBLISH and qos > _QOS_MAX:
        raise PacketRefused(f"the server sends a message of QoS {qos}, and nothing here has subscribed to that")
    limit = PACKET_SIZE_MAX if kind == _PUBLISH else CONTROL_SIZE_MAX
    if size > limit:
        raise PacketRefused(f"the server sends a packet of more than {limit} bytes")


def check_packet(first: int, packet: bytes | bytearray, *, has_properties: bool) -> None:
    """`packet`: what follows its fixed header. Raises: PacketRefused; anything that VariableByteIntegers raises."""
    kind = first >> 4
    if kind == _PUBLISH and has_properties:
        topic_size = int.from_bytes(packet[:2])
        _skip_properties(packet, 2 + topic_size + (2 if first >> 1 & 3 else 0))
    elif kind in (_SUBACK, _UNSUBACK):
        begin = _skip_properties(packet, 2) if has_properties else 2
        if len(packet) - begin > 1:
            raise PacketRefused("the server answers for more topic filters than were asked for: one at a time is")


def _skip_properties(packet: bytes | bytearray, at: int) -> int:
    """Where a list of properties ends that begins at `at`."""
    size, prefix = VariableByteIntegers.decode(packet[at : at + 4])  # type: ignore[no-untyped-call]
    if size > PROPERTIES_SIZE_MAX:
        raise PacketRefused(f"the server sends properties of more than {PROPERTIES_SIZE_MAX} bytes")
    return at + int(prefix) + int(size)


class BoundedClient(paho.Client):
    """paho's, which raises PacketRefused from its reads."""

    _is_answered = False
    """CONNACK has been received."""

    def _sock_recv(self, bufsize: int) -> bytes:
        packet = self._in_packet
        if packet["have_remaining"] and not packet["packet"]:
            check_header(packet["command"], packet["remaining_length"])
        return super()._sock_recv(bufsize)

    def _packet_handle(self) -> MQTTErrorCode:
        packet = self._in_packet
        check_header(packet["command"], packet["remaining_length"])  # one that is nothing but its header, too
        if (packet["command"] >> 4 == _CONNACK) is self._is_answered:  # [MQTT-3.2.0-1], [MQTT-3.2.0-2]
            raise PacketRefused("protocol error: the first packet of the server, and no other, is to be a CONNACK")
        self._is_answered = True
        check_packet(packet["command"], packet["packet"], has_properties=self._protocol == MQTTProtocolVersion.MQTTv5)
        return super()._packet_handle()
