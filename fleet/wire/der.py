"""DER and BER reader and DER writer: the part of X.690 that it takes to walk an envelope without a library.

Bounds are checked before anything is sliced. Lengths are DER's; the indefinite form of BER is read where a caller
asks for it, because some EST servers and Windows write PKCS#7 that way.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from fleet.wire.errors import Malformed, TooLarge

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
UTF8_STRING = 0x0C
NUMERIC_STRING = 0x12
PRINTABLE_STRING = 0x13
TELETEX_STRING = 0x14
IA5_STRING = 0x16
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
VISIBLE_STRING = 0x1A
UNIVERSAL_STRING = 0x1C
BMP_STRING = 0x1E
SEQUENCE = 0x30
SET = 0x31
CONTEXT_0 = 0xA0
CONTEXT_1 = 0xA1

DEPTH_MAX = 16  # levels of indefinite length inside one another; PKCS#7 has five
LENGTH_OCTETS_MAX = 4  # 4 GiB, far above any cap here
WALK_DEPTH_MAX = 40  # a key bag inside PKCS#12 lies about twenty deep
CHILDREN_MAX = 10_000  # elements side by side; the largest bundle taken holds a thousand certificates
OID_OCTETS_MAX = 64  # longer than any that is in use

_CODECS = {
    UTF8_STRING: "utf-8",
    NUMERIC_STRING: "ascii",
    PRINTABLE_STRING: "ascii",  # `_` and others are not of its alphabet, and in use
    TELETEX_STRING: "latin-1",
    IA5_STRING: "ascii",
    VISIBLE_STRING: "ascii",
    UNIVERSAL_STRING: "utf-32-be",
    BMP_STRING: "utf-16-be",
}

_INDEFINITE = 0x80
_CONSTRUCTED = 0x20
_LONG_TAG = 0x1F


class Element(NamedTuple):
    """One element of `data`: its content is data[start:stop], the next element begins at `end`.

    A tuple, because one is made for every element of every request, and a frozen dataclass takes five times as long.
    """

    data: bytes
    tag: int
    begin: int
    start: int
    stop: int
    end: int

    @property
    def content(self) -> bytes:
        return self.data[self.start : self.stop]

    @property
    def whole(self) -> bytes:
        """Tag, length and content together."""
        return self.data[self.begin : self.end]


_made = tuple.__new__  # without a call of Element's own, which is written in Python


def read_element(data: bytes, at: int, stop: int, *, ber: bool = False, depth: int = 0) -> Element:
    """The element that begins at `at` and ends no later than `stop`.

    `ber` admits the indefinite length and long forms of short lengths.

    Raises: Malformed when it is cut off or badly formed, TooLarge when it nests too deep.
    """
    if at + 2 > stop:
        raise _cut_off()
    return _read(data, at, stop, ber, depth)


def _elements(data: bytes, position: int, stop: int, ber: bool, depth: int = 0) -> Iterator[Element]:
    """Those that fill data[position:stop] exactly, without a call for each: a request holds dozens."""
    for _ in range(CHILDREN_MAX):
        if position >= stop:
            return
        begin = position
        position += 2
        if position > stop:
            raise _cut_off()
        tag, length = data[begin], data[begin + 1]
        end = position + length
        if length < _INDEFINITE and end <= stop and tag & _LONG_TAG != _LONG_TAG:  # as nearly all are
            element = _made(Element, (data, tag, begin, position, end, end))
        else:
            element = _read(data, begin, stop, ber, depth)
            end = element.end
        yield element
        position = end
    if position < stop:
        raise _too_many()


def _read(data: bytes, at: int, stop: int, ber: bool, depth: int) -> Element:
    """The element at `at`, of which two octets are here at least. Raises: Malformed, TooLarge."""
    tag, first = data[at], data[at + 1]
    if tag & _LONG_TAG == _LONG_TAG:
        raise Malformed("An ASN.1 tag of more than one octet has no place here.")
    start = at + 2
    if first == _INDEFINITE:
        if not (ber and tag & _CONSTRUCTED):
            raise Malformed("An ASN.1 length is indefinite, which DER forbids.")
        return _read_indefinite(data, at, stop, depth)
    length = first
    if first > _INDEFINITE:
        octets = first & 0x7F
        if octets > LENGTH_OCTETS_MAX or octets > stop - start:
            raise Malformed("An ASN.1 length is longer than the data.")
        length = int.from_bytes(data[start : start + octets])
        # X.690, 10.1: the least number of octets.
        if not ber and (length < 0x80 or length < 1 << 8 * (octets - 1)):
            raise Malformed("An ASN.1 length is not in its shortest form, which DER demands.")
        start += octets
    if length > stop - start:
        raise Malformed("An ASN.1 length is longer than the data.")
    return _made(Element, (data, tag, at, start, start + length, start + length))


def _read_indefinite(data: bytes, at: int, stop: int, depth: int) -> Element:
    """X.690, 8.1.3.6: the content lasts until two zero octets in the place of an element."""
    if depth >= DEPTH_MAX:
        raise TooLarge("ASN.1 elements are nested too deep.")
    position = at + 2
    count = 0
    while data[position : position + 2] != b"\0\0" or position + 2 > stop:
        count += 1
        if count > CHILDREN_MAX:
            raise _too_many()
        position = read_element(data, position, stop, ber=True, depth=depth + 1).end
    return Element(data, data[at], at, at + 2, position, position + 2)


def children(parent: Element, *, ber: bool = False) -> Iterator[Element]:
    """Yield the elements in `parent`'s content, which they must fill exactly. Raises: Malformed, TooLarge."""
    return _elements(parent.data, parent.start, parent.stop, ber)


def _cut_off() -> Malformed:
    return Malformed("The data ends in the middle of an ASN.1 element.")


def _too_many() -> TooLarge:
    return TooLarge(f"More than {CHILDREN_MAX} ASN.1 elements lie side by side.")


def only_element(data: bytes, tag: int, *, ber: bool = False) -> Element:
    """The one element that `data` consists of. Raises: Malformed if its tag is not `tag` or bytes follow, TooLarge."""
    element = read_element(data, 0, len(data), ber=ber)
    if element.tag != tag:
        raise Malformed("The data does not begin with the expected ASN.1 tag.")
    if element.end != len(data):
        raise Malformed("Bytes follow the end of the ASN.1 data.")
    return element


@lru_cache(maxsize=256)  # a few occur in every request
def dotted_oid(content: bytes) -> str:
    """The dotted text of an OBJECT IDENTIFIER's content octets (X.690, 8.19). Raises: Malformed, TooLarge."""
    if len(content) > OID_OCTETS_MAX:
        raise TooLarge("An object identifier is too long.")
    if not content or content[-1] & 0x80:
        raise Malformed("An object identifier is cut off.")
    numbers: list[int] = []
    number, fresh = 0, True
    for octet in content:
        if fresh and octet == 0x80:
            raise Malformed("An object identifier is not in its shortest form.")
        number = number << 7 | octet & 0x7F
        fresh = not octet & 0x80
        if fresh:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def encode_element(tag: int, content: bytes) -> bytes:
    """Tag, DER length and `content`."""
    return _head(tag, len(content)) + content


def sequence(*parts: bytes) -> bytes:
    """A SEQUENCE of `parts`, whole elements."""
    content = b"".join(parts)
    return _head(SEQUENCE, len(content)) + content


@lru_cache(maxsize=1024)  # nearly all elements are short
def _head(tag: int, length: int) -> bytes:
    """Tag and DER length (X.690, 10.1)."""
    if length < 0x80:
        return bytes((tag, length))
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets


def encode_oid(dotted: str) -> bytes:
    """A whole OBJECT IDENTIFIER element. Raises: Malformed when `dotted` is not an object identifier."""
    parts = dotted.split(".")
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 40 for part in parts):
        raise Malformed("That is not an object identifier in dotted form.")
    first, second, *rest = map(int, parts)
    if first > 2 or (first < 2 and second > 39):
        raise Malformed("That is not an object identifier in dotted form.")
    content = b"".join(_base128(number) for number in (40 * first + second, *rest))
    if len(content) > OID_OCTETS_MAX:
        raise TooLarge("An object identifier is too long.")
    return encode_element(OBJECT_IDENTIFIER, content)


def _base128(number: int) -> bytes:
    octets = [number & 0x7F]
    while number := number >> 7:
        octets.append(0x80 | number & 0x7F)
    return bytes(reversed(octets))


def text_of(element: Element) -> str | None:
    """The text of a character string; None: it is none, or its octets are not of its encoding."""
    codec = _CODECS.get(element.tag)
    try:
        return element.content.decode(codec) if codec is not None else None
    except UnicodeDecodeError:
        return None


def walk(element: Element, depth: int = 0) -> Iterator[Element]:
    """Yield `element` and everything in it, also what an OCTET STRING holds when that is ASN.1; BER is read.

    Elements that can't be read are skipped: this is for searching, not for validation.

    Raises: TooLarge when it nests too deep.
    """
    if depth > WALK_DEPTH_MAX:
        raise TooLarge("ASN.1 elements are nested too deep.")
    yield element
    holds_asn1 = element.tag == OCTET_STRING and element.data[element.start : element.start + 1] == b"\x30"
    if not (element.tag & _CONSTRUCTED or holds_asn1):
        return
    try:
        inner = list(children(element, ber=True))
    except Malformed:
        return
    for child in inner:
        yield from walk(child, depth + 1)
