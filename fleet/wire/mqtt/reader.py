"""Incremental packet reader: byte stream -> packets. Their size is limited before memory is allocated for them.

reader = PacketReader(CONNECT_SIZE_MAX)
for packet in reader.feed(data): ...
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fleet.wire.errors import Malformed, TooLarge
from fleet.wire.mqtt.codes import PacketType, flags_are_legal
from fleet.wire.mqtt.fields import VARINT_MAX, encode_packet

CONNECT_SIZE_MAX = 131_072  # a will of 65,535 bytes, and as much again for its topic, user name, password, properties
PACKET_SIZE_DEFAULT = 16 * 1024 * 1024  # after CONNECT: a firmware image in one message is possible, a gigabyte is not


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: its first byte, and what follows the remaining length."""

    first: int
    body: bytes

    @property
    def type(self) -> PacketType:
        return PacketType(self.first >> 4)

    @property
    def flags(self) -> int:
        return self.first & 0x0F

    def encode(self) -> bytes:
        return encode_packet(self.first, self.body)


def remaining_length(data: bytes | bytearray, pos: int) -> tuple[int, int] | None:
    """The remaining length at `pos` and the position after it; None when more bytes are needed (MQTT 5.0, 2.1.4).

    Padded lengths are accepted: 3.1.1 does not forbid them, and small clients that reserve four bytes send them.

    Raises: Malformed: longer than four bytes.
    """
    value = 0
    for n, byte in enumerate(data[pos : pos + 4]):
        value |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return value, pos + n + 1
        if n == 3:
            raise Malformed("The remaining length is longer than four bytes.")
    return None


class PacketReader:
    """Buffers at most one packet of `size_max` bytes and the bytes of the last feed."""

    def __init__(self, size_max: int = VARINT_MAX) -> None:
        self.size_max = size_max
        """Limit of the remaining length; may be changed between packets."""
        self._buffer = bytearray()
        self._need = 2

    def feed(self, data: bytes) -> Iterator[Packet]:
        """Yield each packet that `data` completes. Packets not iterated stay for the next call, or for `rest`.

        Raises: Malformed: an invalid type, flags or length. TooLarge: over `size_max`.
        """
        self._buffer += data
        return self._packets()

    def _packets(self) -> Iterator[Packet]:
        while len(self._buffer) >= self._need:
            packet = self._next()
            if packet is None:
                return
            yield packet

    @property
    def held(self) -> int:
        """Number of buffered bytes."""
        return len(self._buffer)

    def rest(self) -> bytes:
        """The buffered bytes; the reader is empty afterwards."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._need = 2
        return rest

    def _next(self) -> Packet | None:
        buffer = self._buffer
        if buffer and not flags_are_legal(buffer[0]):
            raise Malformed("A packet has an invalid type or flags.")
        head = remaining_length(buffer, 1)
        if head is None:
            self._need = len(buffer) + 1
            return None
        size, start = head
        if size > self.size_max:
            raise TooLarge(f"A packet of {size} bytes exceeds the limit of {self.size_max}.")
        self._need = start + size
        if len(buffer) < self._need:
            return None
        packet = Packet(buffer[0], bytes(buffer[start : self._need]))
        del buffer[: self._need]
        self._need = 2
        return packet
