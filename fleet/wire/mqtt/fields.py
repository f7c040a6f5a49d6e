"""Field codecs: variable byte integers, strings, binary data. Every length is checked before a slice."""

import re

from fleet.wire.errors import Malformed, TooLarge

VARINT_MAX = 268_435_455  # MQTT 5.0, 1.5.5: four bytes of seven bits
FIELD_SIZE_MAX = 65_535  # MQTT 5.0, 1.5.4: a two-byte length
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_UNUSUAL = re.compile(f"[\x01-\x1f\x7f-\x9f{_NONCHARACTERS}]")


class Fields:
    """Cursor over one packet's bytes. A read advances it, or raises Malformed at the packet's end."""

    __slots__ = ("data", "end", "pos")

    def __init__(self, data: bytes, pos: int = 0, end: int | None = None) -> None:
        self.data = data
        self.pos = pos
        self.end = len(data) if end is None else end

    @property
    def left(self) -> int:
        return self.end - self.pos

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        stop = self.pos + size
        if stop > self.end:
            raise Malformed("A field runs past the end of its packet.")
        part = self.data[self.pos : stop]
        self.pos = stop
        return part

    def integer(self, size: int) -> int:
        """An unsigned integer of `size` bytes, big-endian (MQTT 5.0, 1.5.2 and 1.5.3)."""
        return int.from_bytes(self.take(size), "big")

    def varint(self) -> int:
        """A variable byte integer (MQTT 5.0, 1.5.5)."""
        value = shift = 0
        while True:
            byte = self.integer(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                # [MQTT-1.5.5-1] the minimum number of bytes must be used
                if byte == 0 and shift:
                    raise Malformed("A variable byte integer does not have the minimum length.")
                return value
            shift += 7
            if shift > 21:
                raise Malformed("A variable byte integer is longer than four bytes.")

    def binary(self) -> bytes:
        """Binary data with a two-byte length (MQTT 5.0, 1.5.6)."""
        return self.take(self.integer(2))

    def string(self) -> str:
        """A UTF-8 encoded string with a two-byte length (MQTT 5.0, 1.5.4)."""
        return utf8(self.binary())


def utf8(data: bytes) -> str:
    """The string that `data` encodes. Raises: Malformed: not a UTF-8 encoded string by MQTT's rules."""
    try:
        # [MQTT-1.5.4-1] (5.0), [MQTT-1.5.3-1] (3.1.1): well-formed, no surrogates; Python's codec refuses both.
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("A string is not well-formed UTF-8.") from error
    # [MQTT-1.5.4-2] (5.0), [MQTT-1.5.3-2] (3.1.1)
    if "\0" in text:
        raise Malformed("A string contains the null character.")
    return text


def is_plain(text: str) -> bool:
    """Whether `text` has no control characters and no noncharacters, for which a receiver may refuse a packet (1.5.4).

    mosquitto does, without an answer.
    """
    # The first is a thirtieth of the work, and true of nearly every topic.
    return (text.isascii() and text.isprintable()) or _UNUSUAL.search(text) is None


def encode_integer(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def encode_varint(value: int) -> bytes:
    """`value` as a variable byte integer. Raises: TooLarge above VARINT_MAX."""
    if not 0 <= value <= VARINT_MAX:
        raise TooLarge("A length does not fit a variable byte integer.")
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        if not value:
            out.append(low)
            return bytes(out)
        out.append(low | 0x80)


def encode_binary(data: bytes) -> bytes:
    """`data` after its two-byte length. Raises: TooLarge above FIELD_SIZE_MAX."""
    if len(data) > FIELD_SIZE_MAX:
        raise TooLarge("A field does not fit its two-byte length.")
    return len(data).to_bytes(2, "big") + data


def encode_string(text: str) -> bytes:
    return encode_binary(text.encode("utf-8"))


def encode_packet(first: int, body: bytes) -> bytes:
    """A complete packet: its first byte, the remaining length, and `body`."""
    return bytes((first,)) + encode_varint(len(body)) + body
