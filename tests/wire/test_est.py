"""EST bodies: what the stock clients send, what they take, and messages of certificates judged by others."""

import base64
import datetime
import subprocess
from pathlib import Path
from shutil import which

import pytest
from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fleet.domain import labels
from fleet.wire import der
from fleet.wire.errors import Malformed, TooLarge, Unsupported, WireError
from fleet.wire.est import (
    BODY_SIZE_MAX,
    CERTIFICATES_MAX,
    CERTS_ONLY,
    OPERATIONS,
    PKCS10,
    MediaType,
    decode_body,
    decode_certs_only,
    encode_body,
    is_certs_only,
    is_pkcs10,
    parse_media_type,
)
from fleet.wire.pkcs7 import join_signed_data, split_signed_data
from tests.certs_only import encode_certs_only
from tests.odd_certificates import certificate as odd_certificate

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(name: str) -> x509.Certificate:
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .public_key(KEY.public_key())
        .sign(KEY, hashes.SHA256())
    )


CERTIFICATES = [certificate(name) for name in ("root", "issuing", "server")]
MESSAGE = encode_certs_only(CERTIFICATES)


# Bodies


@given(st.binary(min_size=1, max_size=2000), st.booleans())
def test_a_body_goes_round(data: bytes, wrap: bool) -> None:
    assert decode_body(encode_body(data, wrap=wrap)) == data


def test_one_line_has_no_line_end_and_wrapped_lines_are_64_wide() -> None:
    data = bytes(range(256))
    assert encode_body(data) == base64.b64encode(data)
    lines = encode_body(data, wrap=True).split(b"\n")
    assert {len(line) for line in lines[:-2]} == {64}
    assert lines[-1] == b""
    assert b"".join(lines) == base64.b64encode(data)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_white_space_is_taken_anywhere(data: bytes, draw: st.DataObject) -> None:
    text = bytearray(base64.b64encode(data))
    for _ in range(8):
        at = draw.draw(st.integers(0, len(text)))
        text[at:at] = draw.draw(st.sampled_from([b"\r\n", b"\n", b" ", b"\t"]))
    assert decode_body(bytes(text)) == data


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \r\n",
        b"MII",
        b"MIIB=",
        b"MIIB====",
        b"MI=B",
        b"AA==AA==",
        b"MIIB-_",
        b"MIIB\0",
        b"MIIB\x0b",
        b"-----BEGIN CERTIFICATE REQUEST-----",
        b"\x30\x82\x01\x00",
        "MIIB\u00a0".encode(),
    ],
)
def test_everything_else_is_not_base64(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode_body(body)


def test_the_body_is_capped_before_it_is_read() -> None:
    with pytest.raises(TooLarge):
        decode_body(b"A" * (BODY_SIZE_MAX + 1))
    assert len(decode_body(b"A" * BODY_SIZE_MAX)) == BODY_SIZE_MAX * 3 // 4


# certs-only


def test_certificates_go_round() -> None:
    assert set(decode_certs_only(MESSAGE)) == set(CERTIFICATES)
    assert decode_certs_only(encode_certs_only(CERTIFICATES[:1])) == CERTIFICATES[:1]


def test_our_bytes_are_the_library_s_bytes() -> None:
    """Both are DER of the same value, but for the SET that may be sorted."""
    one = CERTIFICATES[:1]
    assert encode_certs_only(one) == pkcs7.serialize_certificates(one, Encoding.DER)
    assert set(pkcs7.load_der_pkcs7_certificates(MESSAGE)) == set(CERTIFICATES)


def test_a_foreign_decoder_reads_it() -> None:
    content = cms.ContentInfo.load(MESSAGE, strict=True)
    assert content["content_type"].native == "signed_data"
    signed = content["content"]
    assert signed["version"].native == "v1"
    assert len(signed["signer_infos"]) == 0
    assert len(signed["digest_algorithms"]) == 0
    assert signed["encap_content_info"]["content_type"].native == "data"
    found = {each.chosen.dump() for each in signed["certificates"]}
    assert found == {each.public_bytes(Encoding.DER) for each in CERTIFICATES}
    assert content.dump(force=True) == MESSAGE


@pytest.mark.skipif(which("openssl") is None, reason="needs openssl")
def test_openssl_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "chain.p7"
    path.write_bytes(MESSAGE)
    done = subprocess.run(
        ["openssl", "pkcs7", "-inform", "DER", "-in", str(path), "-print_certs", "-noout"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("subject=") == len(CERTIFICATES)


@pytest.mark.skipif(which("openssl") is None, reason="needs openssl")
def test_we_read_what_openssl_writes(tmp_path: Path) -> None:
    source, path = tmp_path / "chain.pem", tmp_path / "chain.p7"
    source.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in CERTIFICATES))
    subprocess.run(
        ["openssl", "crl2pkcs7", "-nocrl", "-certfile", str(source), "-outform", "DER", "-out", str(path)], check=True
    )
    assert set(decode_certs_only(path.read_bytes())) == set(CERTIFICATES)


def indefinite(tag: int, content: bytes) -> bytes:
    return bytes((tag, 0x80)) + content + b"\0\0"


def test_indefinite_lengths_are_read() -> None:
    """As BouncyCastle's streaming generator writes them."""
    encoded = b"".join(each.public_bytes(Encoding.DER) for each in CERTIFICATES)
    data = der.encode_oid("1.2.840.113549.1.7.1")
    signed = indefinite(0x30, b"\x02\x01\x01\x31\x00" + indefinite(0x30, data) + indefinite(0xA0, encoded) + b"\x31\0")
    message = indefinite(0x30, der.encode_oid("1.2.840.113549.1.7.2") + indefinite(0xA0, signed))
    assert decode_certs_only(message) == CERTIFICATES
    for at in range(len(message)):
        with pytest.raises(WireError):
            decode_certs_only(message[:at])


def test_cut_at_every_byte() -> None:
    for at in range(len(MESSAGE)):
        with pytest.raises(WireError):
            decode_certs_only(MESSAGE[:at])
    with pytest.raises(Malformed):
        decode_certs_only(MESSAGE + b"\0")


def test_a_flipped_byte_is_no_crash() -> None:
    for at in range(len(MESSAGE)):
        damaged = bytearray(MESSAGE)
        damaged[at] ^= 0xFF
        try:
            decode_certs_only(bytes(damaged))
        except WireError:
            continue


@pytest.mark.parametrize("serial", [0, -5])
def test_a_certificate_whose_serial_number_is_not_positive_is_read(serial: int) -> None:
    """RFC 5280, 4.1.2.2: users of certificates should be prepared to handle them gracefully."""
    odd = odd_certificate(ec.generate_private_key(ec.SECP256R1()), serial=serial)
    [found] = decode_certs_only(join_signed_data([odd]))
    assert found.serial_number == serial


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_wire_error(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_certs_only(data)


def test_counts_and_sizes_are_capped() -> None:
    one = CERTIFICATES[0].public_bytes(Encoding.DER)
    assert len(decode_certs_only(join_signed_data([one] * CERTIFICATES_MAX))) == CERTIFICATES_MAX
    with pytest.raises(TooLarge):
        decode_certs_only(join_signed_data([one] * (CERTIFICATES_MAX + 1)))
    with pytest.raises(TooLarge):
        decode_certs_only(bytes(BODY_SIZE_MAX + 1))


def test_messages_without_a_certificate() -> None:
    with pytest.raises(Malformed, match="no certificate"):
        decode_certs_only(join_signed_data([]))


def test_other_kinds_of_message() -> None:
    enveloped = der.encode_element(0x30, der.encode_oid("1.2.840.113549.1.7.3") + b"\xa0\x02\x30\0")
    with pytest.raises(Unsupported):
        decode_certs_only(enveloped)
    attribute_certificate = join_signed_data([]).replace(b"\x31\0", b"\xa0\x02\xa2\0\x31\0", 1)
    with pytest.raises(WireError):
        decode_certs_only(attribute_certificate)
    for content in (b"", b"\x05\0", der.encode_oid("1.2.840.113549.1.7.2"), b"\x06\0"):
        with pytest.raises(WireError):
            decode_certs_only(der.encode_element(0x30, content))


def test_sets_are_in_der_order_and_revocation_lists_apart() -> None:
    message = join_signed_data([b"\x30\x01b", b"\x30\x01a"], [b"\x30\x01c"])
    assert split_signed_data(message, 2) == ([b"\x30\x01a", b"\x30\x01b"], [b"\x30\x01c"])


# Media types


def test_what_we_say_ourselves() -> None:
    assert is_certs_only(CERTS_ONLY)
    assert is_pkcs10(PKCS10)
    assert CERTS_ONLY == "application/pkcs7-mime; smime-type=certs-only"
    assert "simpleenroll" in OPERATIONS
    assert set(OPERATIONS) == labels.OPERATIONS  # which imports nothing of wire


@pytest.mark.parametrize(
    "header",
    [
        "application/pkcs10",
        "Application/PKCS10",
        " application/pkcs10 ",
        "application/pkcs10;charset=utf-8",
        "application/pkcs10; ",
    ],
)
def test_requests_by_any_spelling(header: str) -> None:
    assert is_pkcs10(header)


@pytest.mark.parametrize(
    "header", [None, "", "text/plain", "application/pkcs10x", "application", "a b/pkcs10", "x" * 300]
)
def test_what_is_no_request(header: str | None) -> None:
    assert not is_pkcs10(header)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("application/pkcs7-mime", True),
        ('application/pkcs7-mime; smime-type="certs-only"', True),
        ("application/pkcs7-mime;smime-type=Certs-Only", True),
        ("application/pkcs7-mime; smime-type=CMC-response", False),
        ("application/pkcs7-mime; smime-type", False),
        ("application/x-pkcs7-mime", False),
        (None, False),
    ],
)
def test_answers_by_any_spelling(header: str | None, expected: bool) -> None:
    assert is_certs_only(header) is expected


def test_a_media_type_s_parameters() -> None:
    found = parse_media_type('Multipart/Mixed; Boundary="abc"; x=1')
    assert found == MediaType("multipart/mixed", (("boundary", "abc"), ("x", "1")))
    assert found.parameter("boundary") == "abc"
    assert found.parameter("y") is None


@given(st.text(max_size=40))
def test_any_header_is_a_media_type_or_a_wire_error(header: str) -> None:
    try:
        assert "/" in parse_media_type(header).name
    except WireError:
        return


def test_a_body_in_pem_is_named_as_that() -> None:
    with pytest.raises(Malformed, match="is PEM"):
        decode_body(b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n")
