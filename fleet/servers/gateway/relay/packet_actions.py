"""What is done about a packet, by its first byte: a table of 256 actions for each direction.

PUBLISH is 0, and the actions of a PUBLISH are below PASS: the hot path compares them.
"""

from fleet.wire.mqtt.codes import PacketType, flags_are_legal

PUBLISH, PUBLISH_ACKED, PUBLISH_ASKED, PASS, CHECK, INSPECT, ILLEGAL = range(7)


def _table(
    passed: set[PacketType], inspected: set[PacketType], judged: set[int], checked: frozenset[PacketType] = frozenset()
) -> bytes:
    """Action for a packet, by its first byte; `judged`: flags of a PUBLISH that is judged each time.

    Of those `checked` only what is more than a packet identifier, or no such, is inspected.
    """

    def kind(first: int) -> int:
        number = first >> 4
        if not flags_are_legal(first):
            return ILLEGAL
        if number == PacketType.PUBLISH:
            if first & 0xF in judged:
                return PUBLISH_ASKED
            return PUBLISH_ACKED if first & 6 else PUBLISH
        if number in checked:
            return CHECK
        return PASS if number in passed else INSPECT if number in inspected else ILLEGAL

    return bytes(map(kind, range(256)))


TO_BROKER = _table(
    passed=set(),
    checked=frozenset({PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBCOMP}),
    inspected={
        PacketType.PUBREL, PacketType.SUBSCRIBE, PacketType.UNSUBSCRIBE, PacketType.PINGREQ, PacketType.DISCONNECT,
    },
    judged={flags for flags in range(16) if flags & 5},  # RETAIN or QoS 2
)  # fmt: skip
"""[MQTT-3.1.0-2] a second CONNECT is illegal, as are packets that only a server sends, and AUTH."""
TO_DEVICE = _table(
    passed={PacketType.PUBACK, PacketType.PUBREL, PacketType.PINGRESP},
    inspected={PacketType.PUBREC, PacketType.PUBCOMP}
    | {PacketType.CONNACK, PacketType.SUBACK, PacketType.UNSUBACK, PacketType.DISCONNECT},
    judged={flags for flags in range(16) if flags & 1},  # RETAIN, which counts
)
ASK_ALWAYS = bytes.maketrans(bytes((PUBLISH, PUBLISH_ACKED)), bytes((PUBLISH_ASKED, PUBLISH_ASKED)))
ASK_ACKED = bytes.maketrans(bytes((PUBLISH_ACKED,)), bytes((PUBLISH_ASKED,)))
ASK_UNACKED = bytes.maketrans(bytes((PUBLISH,)), bytes((PUBLISH_ASKED,)))
INSPECT_ALL = bytes.maketrans(bytes((PASS,)), bytes((INSPECT,)))
