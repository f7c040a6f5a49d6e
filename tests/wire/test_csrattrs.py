"""CSR attributes: what we write is read by a decoder that is not ours, and what others write by us."""

from contextlib import suppress
from dataclasses import replace

import pytest
from asn1crypto import core, parser, x509
from hypothesis import given
from hypothesis import strategies as st

from fleet.wire import der
from fleet.wire.csrattrs import ATTRIBUTES_MAX, SIZE_MAX, CsrAttributes, decode_csrattrs, encode_csrattrs
from fleet.wire.errors import Malformed, TooLarge, WireError

CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
EVERY_KEY = ("EC-P256", "EC-P384", "RSA-2048+", "Ed25519", "ML-DSA-44", "ML-DSA-65")
WHOLE = CsrAttributes(EVERY_KEY, (CLIENT_AUTH,), "Acme", binding=True)


def inside(data: bytes) -> list[bytes]:
    """The elements in the content of the one element that is `data`, cut apart by asn1crypto alone."""
    *_, content, trailer = parser.parse(data, strict=True)
    assert trailer == b""
    found = []
    while content:
        *_, header, body, trailer = parser.parse(content)
        found.append(header + body + trailer)
        content = content[len(found[-1]) :]
    return found


def oid_of(data: bytes) -> str:
    dotted: str = core.ObjectIdentifier.load(data, strict=True).dotted
    return dotted


def parts_of(data: bytes) -> dict[str, list[bytes]]:
    """Each attribute's OID with its values; an OID that stands alone has none."""
    found: dict[str, list[bytes]] = {}
    for part in inside(data):
        if part[0] == 0x06:
            found[oid_of(part)] = []
        else:
            name, values = inside(part)
            found.setdefault(oid_of(name), []).extend(inside(values))
    return found


def test_a_decoder_that_is_not_ours_reads_every_part() -> None:
    parts = parts_of(encode_csrattrs(WHOLE))
    assert parts["1.2.840.113549.1.9.7"] == []
    curves = [oid_of(value) for value in parts["1.2.840.10045.2.1"]]
    assert curves == ["1.2.840.10045.3.1.7", "1.3.132.0.34"]
    assert [core.Integer.load(value).native for value in parts["1.2.840.113549.1.1.1"]] == [2048]
    assert {"1.3.101.112", "2.16.840.1.101.3.4.3.17", "2.16.840.1.101.3.4.3.18"} <= set(parts)
    [extensions] = parts["1.2.840.113549.1.9.14"]
    [usage] = x509.Extensions.load(extensions, strict=True)
    assert usage["extn_value"].parsed.native == ["client_auth"]


def test_the_template_is_rfc_9908s() -> None:
    [template] = parts_of(encode_csrattrs(WHOLE))["1.2.840.113549.1.9.16.2.61"]
    version, subject, key, attributes = inside(template)
    assert core.Integer.load(version).native == 0
    organisation, common_name = (inside(inside(rdn)[0]) for rdn in inside(subject))
    assert [oid_of(part) for part in common_name] == ["2.5.4.3"]  # no value: the client fills it in
    assert core.UTF8String.load(organisation[1]).native == "Acme"
    assert key[0] == 0xA0
    [algorithm] = inside(key)
    assert [oid_of(part) for part in inside(algorithm)] == ["1.2.840.10045.2.1", "1.2.840.10045.3.1.7"]
    assert attributes[0] == 0xA1
    assert der.encode_oid("1.2.840.113549.1.9.16.2.62") in attributes
    # RFC 9908, 3.4: `attributes` is there even when it is empty.
    [bare] = parts_of(encode_csrattrs(CsrAttributes(("Ed25519",))))["1.2.840.113549.1.9.16.2.61"]
    assert bare.endswith(b"\xa1\x00")


@pytest.mark.parametrize("wanted", [WHOLE, CsrAttributes(), CsrAttributes(("Ed25519",)), CsrAttributes(binding=True)])
def test_what_is_written_is_read(wanted: CsrAttributes) -> None:
    # A client takes O from the template; ours names itself as its operator says.
    assert decode_csrattrs(encode_csrattrs(wanted)) == replace(wanted, organisation="")


@pytest.mark.parametrize(
    "wanted",
    [
        WHOLE,
        CsrAttributes(("EC-P256",), ("1.3.6.1.5.5.7.3.2",)),
        CsrAttributes(("RSA-2048+",)),
        CsrAttributes(("Ed25519", "EC-P384"), binding=True),
        CsrAttributes(),
    ],
)
def test_for_libest_identifiers_come_last(wanted: CsrAttributes) -> None:
    encoded = encode_csrattrs(wanted, ends_in_oid=True)
    tags = [part[0] for part in inside(encoded)]
    assert tags == sorted(tags, reverse=True)  # attributes, then identifiers
    assert tags[-1] == der.OBJECT_IDENTIFIER
    assert der.encode_oid("1.2.840.113549.1.9.16.2.61") not in encoded
    found = decode_csrattrs(encoded)
    assert set(found.key_types) == set(wanted.key_types)
    assert (found.extended_key_usages, found.binding) == (wanted.extended_key_usages, wanted.binding)


def test_the_example_of_rfc_7030_is_read() -> None:
    # RFC 7030, 4.5.2: challengePassword, ecPublicKey on secp384r1, an extension request, ecdsa-with-SHA384
    extension_request = der.encode_element(
        der.SEQUENCE,
        der.encode_oid("1.2.840.113549.1.9.14")
        + der.encode_element(der.SET, der.encode_oid("1.3.6.1.1.1.1.22")),  # a MAC address: no Extensions at all
    )
    key = der.encode_oid("1.2.840.10045.2.1") + der.encode_element(der.SET, der.encode_oid("1.3.132.0.34"))
    example = der.encode_element(
        der.SEQUENCE,
        der.encode_oid("1.2.840.113549.1.9.7")
        + der.encode_element(der.SEQUENCE, key)
        + der.encode_element(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.9.15") + der.encode_element(der.SET, b""))
        + der.encode_oid("1.2.840.10045.4.3.3"),
    )
    assert decode_csrattrs(example) == CsrAttributes(("EC-P384",), binding=True)
    with pytest.raises(Malformed):
        decode_csrattrs(der.encode_element(der.SEQUENCE, extension_request))


def test_sizes_are_capped() -> None:
    with pytest.raises(TooLarge):
        decode_csrattrs(bytes(SIZE_MAX + 1))
    many = der.encode_element(der.SEQUENCE, der.encode_oid("1.3.101.112") * (ATTRIBUTES_MAX + 1))
    with pytest.raises(TooLarge):
        decode_csrattrs(many)


def test_cut_anywhere_it_is_refused() -> None:
    whole = encode_csrattrs(WHOLE)
    for size in range(len(whole)):
        with pytest.raises(WireError):
            decode_csrattrs(whole[:size])
    with pytest.raises(WireError):
        decode_csrattrs(whole + b"\0")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(WireError):
        decode_csrattrs(data)


@given(st.data())
def test_a_changed_byte_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(encode_csrattrs(WHOLE))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        decode_csrattrs(bytes(whole))
