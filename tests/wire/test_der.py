"""Tag, length, value: the bounds of every element, cut anywhere."""

import pytest
from asn1crypto import core
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire import der
from fleet.wire.errors import Malformed, TooLarge, WireError

NESTED = der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.7.2") + der.encode_element(0x04, b"\x30\0"))


@given(st.binary(max_size=70_000))
def test_encode_then_read_gives_the_content_back(content: bytes) -> None:
    whole = der.encode_element(der.OCTET_STRING, content)
    element = der.only_element(whole, der.OCTET_STRING)
    assert element.content == content
    assert element.whole == whole


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 65_535, 65_536])
def test_lengths_are_der_as_asn1crypto_writes_them(length: int) -> None:
    assert der.encode_element(der.OCTET_STRING, bytes(length)) == core.OctetString(bytes(length)).dump()


@pytest.mark.parametrize("ber", [False, True])
def test_cut_at_every_byte(ber: bool) -> None:
    for at in range(len(NESTED)):
        with pytest.raises(Malformed):
            der.only_element(NESTED[:at], der.SEQUENCE, ber=ber)
    with pytest.raises(Malformed, match="follow"):
        der.only_element(NESTED + b"\0", der.SEQUENCE, ber=ber)


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x81\x01a",  # one octet would do
        b"\x04\x82\x00\x80" + bytes(128),  # a leading zero
        b"\x30\x80\0\0",  # indefinite
        b"\x04\x85\0\0\0\0\x01a",  # five octets
        b"\x1f\x81\x01\0",  # a long tag
        b"\x04\x84\xff\xff\xff\xff",
    ],
)
def test_der_refuses_what_is_not_canonical(data: bytes) -> None:
    with pytest.raises(Malformed):
        der.read_element(data, 0, len(data))


@pytest.mark.parametrize(
    "data",
    [
        b"\x04\x85\0\0\0\0\x01a",  # five octets of length
        b"\x04\x80\x04\x01a\0\0",  # indefinite, and not constructed
        b"\x3f\x81\x01\0",  # a long tag, of any class
        b"\x9f\x01\0",
        b"\x30",
    ],
)
def test_what_ber_forbids_too(data: bytes) -> None:
    with pytest.raises(Malformed):
        der.read_element(data, 0, len(data), ber=True)


def test_the_longest_forms_that_are_read() -> None:
    assert der.only_element(b"\x04\x84\0\0\0\x01a", der.OCTET_STRING, ber=True).content == b"a"
    assert der.only_element(b"\x04\x81\x80" + bytes(128), der.OCTET_STRING).content == bytes(128)
    with pytest.raises(Malformed):
        der.only_element(b"\x04\x81\x7f" + bytes(127), der.OCTET_STRING)
    with pytest.raises(Malformed):
        der.only_element(b"\x04\x82\x00\xff" + bytes(255), der.OCTET_STRING)


@pytest.mark.parametrize("length", [128, 255, 256, 65_535, 65_536])
def test_a_length_has_the_least_number_of_octets(length: int) -> None:
    octets = (length.bit_length() + 7) // 8
    for more in range(3):
        size = octets + more
        if size > der.LENGTH_OCTETS_MAX:
            continue
        data = bytes((der.OCTET_STRING, 0x80 | size)) + length.to_bytes(size) + bytes(length)
        assert len(der.only_element(data, der.OCTET_STRING, ber=True).content) == length
        if more:
            with pytest.raises(Malformed, match="shortest"):
                der.only_element(data, der.OCTET_STRING)
        else:
            assert len(der.only_element(data, der.OCTET_STRING).content) == length


def test_an_element_ends_where_its_parent_does() -> None:
    """Octets that follow the parent are not the child's, neither as content nor as its end."""
    for data in (b"\x30\x02\x04\x02aa", b"\x30\x02\x04\x82\x01\x00" + bytes(256), b"\x30\x01\x04\x00"):
        with pytest.raises(Malformed):
            list(der.children(der.read_element(data, 0, len(data))))
    for data in (b"\x30\x02\x30\x80\0\0", b"\x30\x03\x30\x80\0\0"):
        with pytest.raises(Malformed):
            list(der.children(der.read_element(data, 0, len(data), ber=True), ber=True))
    assert [each.whole for each in der.children(der.only_element(b"\x30\x04\x30\x80\0\0", 0x30), ber=True)] == [
        b"\x30\x80\0\0"
    ]


def test_ber_reads_indefinite_lengths_at_every_level() -> None:
    data = b"\x30\x80\x30\x80\x04\x01a\0\0\x04\x81\x01b\0\0"
    outer = der.only_element(data, der.SEQUENCE, ber=True)
    first, second = der.children(outer, ber=True)
    assert [each.content for each in der.children(first, ber=True)] == [b"a"]
    assert second.content == b"b"
    for at in range(len(data)):
        with pytest.raises(Malformed):
            der.only_element(data[:at], der.SEQUENCE, ber=True)


def test_nesting_and_rows_are_capped() -> None:
    with pytest.raises(TooLarge):
        der.only_element(b"\x30\x80" * 40 + b"\0\0" * 40, der.SEQUENCE, ber=True)
    row = der.encode_element(der.SEQUENCE, b"\x05\0" * (der.CHILDREN_MAX + 1))
    with pytest.raises(TooLarge):
        list(der.children(der.only_element(row, der.SEQUENCE)))
    deep = b""
    for _ in range(der.WALK_DEPTH_MAX + 2):
        deep = der.encode_element(der.SEQUENCE, deep)
    with pytest.raises(TooLarge):
        list(der.walk(der.only_element(deep, der.SEQUENCE)))


def test_as_many_as_the_caps_allow() -> None:
    levels = b"\x30\x80" * der.DEPTH_MAX + b"\0\0" * der.DEPTH_MAX
    assert der.only_element(levels, der.SEQUENCE, ber=True).end == len(levels)
    with pytest.raises(TooLarge):
        der.only_element(b"\x30\x80" + levels + b"\0\0", der.SEQUENCE, ber=True)
    row = b"\x05\0" * der.CHILDREN_MAX
    assert len(list(der.children(der.only_element(der.encode_element(der.SEQUENCE, row), der.SEQUENCE)))) == 10_000
    assert der.only_element(b"\x30\x80" + row + b"\0\0", der.SEQUENCE, ber=True).content == row
    with pytest.raises(TooLarge):
        der.only_element(b"\x30\x80" + row + b"\x05\0\0\0", der.SEQUENCE, ber=True)
    deep = b""
    for _ in range(der.WALK_DEPTH_MAX + 1):
        deep = der.encode_element(der.SEQUENCE, deep)
    assert len(list(der.walk(der.only_element(deep, der.SEQUENCE)))) == der.WALK_DEPTH_MAX + 1
    with pytest.raises(TooLarge):
        list(der.walk(der.only_element(der.encode_element(der.SEQUENCE, deep), der.SEQUENCE)))


def test_walk_passes_over_what_it_cannot_read_and_goes_on() -> None:
    broken, text, last = b"\x04\x03\x30\x05a", b"\x04\x02ab", b"\x05\0"
    whole = der.encode_element(der.SEQUENCE, broken + text + last)
    assert [each.whole for each in der.walk(der.only_element(whole, der.SEQUENCE))] == [whole, broken, text, last]


def test_walk_looks_into_octet_strings() -> None:
    tags = [each.tag for each in der.walk(der.only_element(NESTED, der.SEQUENCE))]
    assert tags == [der.SEQUENCE, der.OBJECT_IDENTIFIER, der.OCTET_STRING, der.SEQUENCE]


_ARCS = st.one_of(
    st.tuples(st.integers(0, 1), st.integers(0, 39)), st.tuples(st.just(2), st.integers(0, 2**40))
).flatmap(lambda head: st.lists(st.integers(0, 2**60), max_size=5).map(lambda rest: (*head, *rest)))


@given(_ARCS)
def test_object_identifiers_agree_with_asn1crypto(arcs: tuple[int, ...]) -> None:
    dotted = ".".join(map(str, arcs))
    encoded = der.encode_oid(dotted)
    assert der.dotted_oid(der.only_element(encoded, der.OBJECT_IDENTIFIER).content) == dotted
    if arcs[0] < 2 or arcs[1] < 40:  # asn1crypto 1.5 reads larger second arcs wrongly
        assert core.ObjectIdentifier.load(encoded).dotted == dotted


@pytest.mark.parametrize("text", ["", "1", "1.", "3.1", "1.40", "1.-2", "1.²", "a.b", "1." + "9" * 50])
def test_what_is_no_object_identifier(text: str) -> None:
    with pytest.raises(WireError):
        der.encode_oid(text)


def test_object_identifiers_as_long_as_allowed() -> None:
    longest = "1.3" + ".1" * 63  # 64 octets
    assert der.dotted_oid(der.only_element(der.encode_oid(longest), der.OBJECT_IDENTIFIER).content) == longest
    with pytest.raises(TooLarge):
        der.encode_oid(longest + ".1")
    der.encode_oid("2." + "9" * 39)
    with pytest.raises(Malformed):
        der.encode_oid("2." + "9" * 40)
    assert [der.encode_oid(text)[2:] for text in ("0.39", "1.0", "1.39", "2.0", "2.40")] == [
        bytes([octet]) for octet in (39, 40, 79, 80, 120)
    ]


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x2a\x80\x01", b"\x2a\x86", bytes(65)])
def test_damaged_object_identifiers(content: bytes) -> None:
    with pytest.raises(WireError):
        der.dotted_oid(content)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_element_or_a_wire_error(data: bytes) -> None:
    for ber in (False, True):
        try:
            element = der.read_element(data, 0, len(data), ber=ber)
            list(der.walk(element))
        except WireError:
            continue
        assert element.end <= len(data)


@pytest.mark.parametrize(
    ("tag", "content", "text"),
    [
        (der.UTF8_STRING, b"\xc3\xa9", "é"),
        (der.NUMERIC_STRING, b"12 3", "12 3"),
        (der.PRINTABLE_STRING, b"a_b", "a_b"),
        (der.TELETEX_STRING, b"\xe9", "é"),
        (der.IA5_STRING, b"a@b", "a@b"),
        (der.VISIBLE_STRING, b"", ""),
        (der.UNIVERSAL_STRING, b"\0\0\0\xe9", "é"),
        (der.BMP_STRING, b"\0\xe9", "é"),
        (der.UTF8_STRING, b"\xe9", None),
        (der.PRINTABLE_STRING, b"\xe9", None),
        (der.BMP_STRING, b"\0\xe9\0", None),
        (der.OCTET_STRING, b"a", None),
    ],
)
def test_text_of_a_character_string(tag: int, content: bytes, text: str | None) -> None:
    assert der.text_of(der.only_element(der.encode_element(tag, content), tag)) == text
